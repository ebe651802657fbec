"""The log of the order of data: verified when it is read, resumed, and reached again."""

import json

import numpy as np
import pytest

from deepnarrow.errors import InputError
from deepnarrow.stepslog import START, StepsLog, extend, read_lines

ORDER = {"seed": 0, "batch_size": 4, "num_examples": 12}


def ids(step):
    return np.random.default_rng(step).integers(0, 12, 4)


def chain_at(step):
    chain = START
    for each in range(1, step + 1):
        chain = extend(chain, each, ids(each))
    return chain


def begin(path, steps=9, every=3):
    log = StepsLog(path, ORDER)
    log.open({"devices": 1})
    log.resume(0, None, ids)
    for step in range(1, steps + 1):
        log.update(step, ids(step))
        if step % every == 0:
            log.write(step)
    return log


def test_the_chain_depends_on_every_id_its_place_and_its_step():
    base = extend(START, 1, np.array([1, 2]))
    others = [extend(START, 1, np.array([2, 1])), extend(START, 2, np.array([1, 2])),
              extend(base, 1, np.array([1, 2])), extend(START, 1, np.array([1, 2, 2]))]
    assert len({base, *others}) == 5


def test_a_log_says_what_was_trained_on(tmp_path):
    begin(tmp_path / "steps.jsonl")
    lines = read_lines(tmp_path / "steps.jsonl")
    assert lines.order == ORDER
    assert lines.opened == ({"devices": 1},)
    assert lines.chains == {step: chain_at(step) for step in (3, 6, 9)}


@pytest.mark.parametrize("resumed", [0, 3, 4, 6, 8, 9])
def test_a_resumed_run_goes_on_with_the_same_chain(tmp_path, resumed):
    path = tmp_path / "steps.jsonl"
    begin(path)
    log = StepsLog(path, ORDER)
    log.open({"devices": 2})
    log.resume(resumed, chain_at(resumed) if resumed else None, ids)
    for step in range(resumed + 1, 13):
        log.update(step, ids(step))
        if step % 2 == 0:
            log.write(step)  # another interval than before
    lines = read_lines(path)
    assert lines.chains[12] == chain_at(12)
    assert lines.chains.items() <= {step: chain_at(step) for step in range(1, 13)}.items()
    assert [opened["devices"] for opened in lines.opened] == [1, 2]


def test_a_run_that_begins_its_data_anew_is_refused_where_it_comes_by_a_logged_step(tmp_path):
    path = tmp_path / "steps.jsonl"
    begin(path)
    log = StepsLog(path, ORDER)
    log.resume(4, chain_at(4), ids)
    for step in (5, 6):
        log.update(step, ids(step - 4))  # the stream was opened at its beginning
    with pytest.raises(InputError, match=r"other examples were trained on up to step 6 \(got"):
        log.write(6)


@pytest.mark.parametrize("chain", [START, "0" * 64])
def test_a_checkpoint_of_another_order_is_refused(tmp_path, chain):
    begin(tmp_path / "steps.jsonl")
    log = StepsLog(tmp_path / "steps.jsonl", ORDER)
    with pytest.raises(InputError, match="up to step 4"):
        log.resume(4, chain, ids)


def test_a_source_whose_order_changed_is_refused_on_resuming(tmp_path):
    begin(tmp_path / "steps.jsonl")
    log = StepsLog(tmp_path / "steps.jsonl", ORDER)
    with pytest.raises(InputError, match="up to step 8"):
        log.resume(8, chain_at(8), lambda step: ids(step)[::-1])


def test_another_seed_or_batch_size_is_refused_with_both(tmp_path):
    begin(tmp_path / "steps.jsonl")
    with pytest.raises(InputError, match=r"another order of data \(got .*'batch_size': 8.*; "
                       r"expected .*'batch_size': 4"):
        StepsLog(tmp_path / "steps.jsonl", {**ORDER, "batch_size": 8})


def test_a_torn_last_line_is_cut_at_every_byte(tmp_path):
    path = tmp_path / "steps.jsonl"
    begin(path)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert set(read_lines(path).chains) == {3, 6}  # `status` reads it as it is
        if cut > last:
            with pytest.warns(UserWarning, match=f"dropped {cut - last} bytes"):
                log = StepsLog(path, ORDER)
        else:
            log = StepsLog(path, ORDER)
        log.resume(6, chain_at(6), ids)
        for step in (7, 8, 9):
            log.update(step, ids(step))
        log.write(9)
        assert read_lines(path).chains[9] == chain_at(9)


def test_every_edit_shows(tmp_path):
    path = tmp_path / "steps.jsonl"
    begin(path)
    lines = path.read_text().splitlines()
    edits = [lines[:2] + lines[3:],  # lost
             lines[:3] + lines[2:],  # doubled
             [*lines[:2], lines[3], lines[2], lines[4]],  # exchanged
             [*lines[:2], json.dumps({**json.loads(lines[2]), "step": 4}), *lines[3:]],
             [json.dumps({**json.loads(lines[0]), "order": {}}), *lines[1:]],
             [*lines[:3], "{", lines[4]], [*lines[:3], '{"step": "x"}', lines[4]]]
    for edit in edits:
        path.write_text("\n".join(edit) + "\n")
        with pytest.raises(InputError, match=r"steps.jsonl line \d"):
            read_lines(path)


def test_no_log_is_an_empty_one(tmp_path):
    assert read_lines(tmp_path / "steps.jsonl").chains == {}
