"""What is saved comes back bit for bit, and nothing else does."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepnarrow.checkpoint import Checkpointer
from deepnarrow.errors import InputError


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: object


def make_state(seed: int = 0, width: int = 4, dtype=jnp.float32) -> State:
    key = jax.random.key(seed)
    params = {"layers": {"kernel": jax.random.normal(key, (2, 3, width), dtype)},
              "scale": jnp.full((), 1e-40, jnp.float32)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    return State(jnp.int32(seed), params, optimizer.init(params))


def abstract(state):
    return jax.eval_shape(lambda: state)


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_restores_the_same_bits(tmp_path, dtype):
    state = make_state(3, dtype=dtype)
    extra = {"curve": [[1, "train/loss", 0.1], [2, "train/loss", None]], "seconds": math.pi,
             "tiny": 5e-324, "name": "é"}
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(7, state, extra)
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.latest_step() == 7
        for like in (abstract(state), state):
            restored, found = checkpointer.restore(like)
            assert_same_bits(state, restored)
            assert found == extra
            assert isinstance(restored, State)


def test_saving_does_not_see_later_changes(tmp_path):
    state = make_state(1)
    expected = jax.tree.map(np.array, state)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
        restored, extra = checkpointer.restore(abstract(make_state(1)))
    assert_same_bits(expected, jax.tree.map(np.array, restored))
    assert extra == {}


def test_an_empty_directory_has_no_step(tmp_path):
    with Checkpointer(tmp_path / "a" / "b") as checkpointer:
        assert checkpointer.latest_step() is None
        with pytest.raises(InputError, match="no such checkpoint"):
            checkpointer.restore(abstract(make_state()))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_newest(tmp_path, keep):
    with Checkpointer(tmp_path, keep=keep) as checkpointer:
        for step in (1, 2, 10, 11):
            checkpointer.save(step, make_state(step))
        checkpointer.wait()
        kept = sorted(int(p.name) for p in tmp_path.iterdir())
        assert kept == [1, 2, 10, 11][-keep:]
        assert int(checkpointer.restore(abstract(make_state()))[0].step) == 11
        assert int(checkpointer.restore(abstract(make_state()), kept[0])[0].step) == kept[0]
        with pytest.raises(InputError, match="no such checkpoint"):
            checkpointer.restore(abstract(make_state()), 5)


def test_a_step_is_saved_once(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, make_state(2))
        for step in (2, 1):
            with pytest.raises(InputError, match=f"step cannot be saved.*got {step}"):
                checkpointer.save(step, make_state(9))
        assert int(checkpointer.restore(abstract(make_state()))[0].step) == 2


def without_scale(state):
    return state._replace(params={"layers": state.params["layers"]})


def with_head(state):
    return state._replace(params=state.params | {"head": jnp.zeros(3)})


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: make_state(width=5),
     r"3 arrays differ .*opt_state/1/0/mu/layers/kernel .*got float32\[2, 3, 4\]; "
     r"expected float32\[2, 3, 5\]"),
    (lambda s: make_state(dtype=jnp.bfloat16), r"got float32\[2, 3, 4\]; expected bfloat16"),
    (without_scale, r"1 arrays differ .*params/scale .*got float32\[\]; expected nothing"),
    (with_head, r"1 arrays differ .*params/head .*got nothing; expected float32\[3\]"),
])
def test_another_model_is_refused(tmp_path, change, words):
    state = make_state()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        with pytest.raises(InputError, match=words):
            checkpointer.restore(abstract(change(state)))


def test_half_written_checkpoints_are_ignored(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1))
    # What Orbax leaves when it is killed in the middle of a save.
    for step in (2, 3):
        (tmp_path / f"{step}.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(
            parents=True)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 1
        checkpointer.save(2, make_state(2))
        checkpointer.wait()
        assert int(checkpointer.restore(abstract(make_state()))[0].step) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_bad_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be made"):
        Checkpointer(tmp_path / "file")
    with pytest.raises(InputError, match="keep is out of range"):
        Checkpointer(tmp_path, keep=0)


def test_says_nothing(tmp_path, capfd, caplog):
    with caplog.at_level(logging.INFO), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state())
        checkpointer.restore(abstract(make_state()))
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
