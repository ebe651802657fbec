"""What is saved comes back bit for bit, and nothing else does."""

from __future__ import annotations

import logging
import math
import random
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepnarrow.checkpoint import Checkpointer, restore_params
from deepnarrow.errors import InputError
from deepnarrow.manifest import MANIFEST, Damaged, verify


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


# --- damage ---------------------------------------------------------------------------------------
def save_two(directory):
    with Checkpointer(directory, keep=2) as checkpointer:
        checkpointer.save(1, make_state(1))
        checkpointer.save(2, make_state(2))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damages(folder, drawn):
    """One random fault: a flipped bit, a file cut short, longer, gone, added, or two exchanged."""
    files = files_of(folder)
    path = files[drawn.randrange(len(files))]
    data = path.read_bytes()
    kind = drawn.choice(["flip", "cut", "longer", "gone", "added", "exchanged"])
    if kind == "flip" and data:
        place = drawn.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << drawn.randrange(8)])
                         + data[place + 1:])
    elif kind == "cut" and data:
        path.write_bytes(data[:drawn.randrange(len(data))])
    elif kind in ("flip", "cut", "longer"):
        path.write_bytes(data + b"x")
    elif kind == "gone":
        path.unlink()
    elif kind == "added":
        (path.parent / "more").write_bytes(data)
    else:
        other = next(f for f in files if f.read_bytes() != data)
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    return f"{kind} {path.relative_to(folder)}"


def restore_newest(directory):
    with Checkpointer(directory) as checkpointer:
        return checkpointer.restore(abstract(make_state()))[0]


def test_every_fault_is_found_and_the_step_before_is_used(tmp_path):
    """Each of 100 faults is found by the manifest alone; with every tenth the step is restored."""
    save_two(tmp_path / "whole")
    drawn = random.Random(0)
    for fault in range(100):
        run = tmp_path / f"run{fault}" / "checkpoints"
        shutil.copytree(tmp_path / "whole", run)
        done = damages(run / "2", drawn)
        try:
            verify(run / "2")
            pytest.fail(f"not found: {done}")
        except Damaged:
            pass
        if fault % 10 == 0:
            with pytest.warns(UserWarning, match="checkpoint .* is damaged: .*quarantine"):
                restored = restore_newest(run)
            assert_same_bits(restored, make_state(1))
            assert [path.name for path in (run.parent / "quarantine").iterdir()] == ["2"], done
        shutil.rmtree(run.parent)


def test_a_damaged_step_that_was_asked_for_is_an_error_and_stays(tmp_path):
    save_two(tmp_path / "checkpoints")
    files_of(tmp_path / "checkpoints" / "2")[0].write_bytes(b"")
    with pytest.raises(InputError, match=r"checkpoint .*2: is damaged: .* has 0 bytes instead of"):
        restore_params(tmp_path / "checkpoints", 2, abstract(make_state()).params)
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_a_step_that_was_committed_but_not_described_is_set_aside(tmp_path):
    save_two(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "2" / MANIFEST).unlink()  # killed between commit and manifest
    with pytest.warns(UserWarning, match="2 is damaged: it has no manifest"):
        checkpointer = Checkpointer(tmp_path / "checkpoints")
    assert checkpointer.latest_step() == 1
    checkpointer.save(2, make_state(3))
    checkpointer.close()
    assert_same_bits(restore_newest(tmp_path / "checkpoints"), make_state(3))
    assert (tmp_path / "quarantine" / "2").is_dir()


def test_when_no_step_is_whole_there_is_none(tmp_path):
    save_two(tmp_path / "checkpoints")
    for step in (1, 2):
        files_of(tmp_path / "checkpoints" / str(step))[-1].unlink()
    with (pytest.warns(UserWarning, match="is damaged"),
          Checkpointer(tmp_path / "checkpoints") as checkpointer):
        assert checkpointer.newest_whole() is None


def test_older_steps_stay_until_a_newer_one_is_described(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=1)
    checkpointer.save(1, make_state(1))
    checkpointer.wait()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("deepnarrow.checkpoint.write_manifest", killed)
    checkpointer.save(2, make_state(2))
    with pytest.raises(KeyboardInterrupt):
        checkpointer.wait()
    assert (tmp_path / "checkpoints" / "1").is_dir()
    monkeypatch.undo()
    checkpointer.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_manifest_says_what_is_saved(tmp_path):
    save_two(tmp_path / "checkpoints")
    manifest = verify(tmp_path / "checkpoints" / "2")
    assert manifest["step"] == 2
    assert manifest["arrays"]["params/layers/kernel"] == "float32[2, 3, 4]"
    assert "jax" in manifest["versions"]


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
