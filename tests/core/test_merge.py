"""Joined records: nothing lost, nothing twice, in any order; and an archive is the records."""

from __future__ import annotations

import gzip
import itertools
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepnarrow.cli import main
from deepnarrow.errors import InputError
from deepnarrow.merge import merge_into_archive, merge_into_workdir, read_source
from deepnarrow.recordfile import read_archive, write_archive
from deepnarrow.store import Store
from tests.core.test_records import any_record, make

GROUPS = (
    [make("a"), make("b", status="failed"), make("c", status="preempted")],
    [make("b"), make("d", status="diverged", loss=None)],
    [make("c", status="failed"), make("a", environment={"device": "other"})],
)


@pytest.fixture
def sources(tmp_path):
    """A workdir, a store and an archive that share keys."""
    found = []
    for place, records in enumerate(GROUPS):
        folder = tmp_path / f"w{place}"
        folder.mkdir()
        with Store(folder / "records.sqlite") as store:
            store.add_all(records)
        found.append(str(folder))
    found[1] += "/records.sqlite"
    write_archive(read_source(found[2]), tmp_path / "w2.jsonl.gz")
    found[2] = str(tmp_path / "w2.jsonl.gz")
    return found


def finished(workdir):
    with Store(workdir / "records.sqlite", read_only=True) as store:
        return store.finished_keys(), store.statuses()


def test_any_order_and_grouping_finishes_the_same_keys_and_again_changes_nothing(sources, tmp_path):
    for place, order in enumerate(itertools.permutations(sources)):
        workdir = tmp_path / f"merged{place}"
        first = merge_into_workdir(order[:2], workdir)
        second = merge_into_workdir(order[2:], workdir)
        assert (first.added + second.added, second.total) == (6, 4)
        keys, statuses = finished(workdir)
        assert keys == {"a", "b", "d"}
        assert (statuses["done"], statuses["diverged"]) == (2, 1)
        assert merge_into_workdir(sources, workdir).added == 0


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(any_record, max_size=4, unique_by=lambda record: record.key))
def test_an_archive_gives_the_records_back_exactly(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("archive") / "records.jsonl.gz"
    assert write_archive(records, path) == len(records)
    assert read_archive(path) == records
    before = path.read_bytes()
    write_archive(read_archive(path), path)
    assert path.read_bytes() == before


def test_an_archive_of_archives_has_each_record_once(sources, tmp_path):
    out = tmp_path / "all.jsonl.gz"
    merged = merge_into_archive([*sources, ], out)
    assert (merged.read, merged.added, merged.total) == (7, 6, 6)
    again = tmp_path / "again.jsonl.gz"
    merge_into_archive([str(out)], again)
    assert again.read_bytes() == out.read_bytes()


def test_a_key_with_two_results_is_refused_and_nothing_is_added(sources, tmp_path):
    bad = tmp_path / "bad.jsonl.gz"
    write_archive([make("new"), make("a", loss=0.75)], bad)
    workdir = tmp_path / "merged"
    merge_into_workdir(sources, workdir)
    before = finished(workdir)
    with pytest.raises(InputError, match=r"record a .* finished with other metrics"):
        merge_into_workdir([str(bad)], workdir)
    assert finished(workdir) == before


def spoil(text):
    lines = text.splitlines(keepends=True)
    record = json.loads(lines[0])
    return {
        "is no JSON": "{" + lines[0],
        "other fields": json.dumps({**record, "more": 1}) + "\n",
        "status is unknown": json.dumps({**record, "status": "fine"}) + "\n",
        "metrics is no list": json.dumps({**record, "metrics": {}}) + "\n",
        "values are no list": json.dumps({**record, "outcomes": [
            {**record["outcomes"][0], "values": ["x"]}]}) + "\n",
        "costs is no table": json.dumps({**record, "costs": []}) + "\n",
        "is too long or cut short": lines[0].rstrip("\n"),
    }


@pytest.mark.parametrize("message", spoil(json.dumps(make().to_dict()) + "\n"))
def test_a_bad_line_is_named_and_nothing_is_made(tmp_path, message, capsys):
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(spoil(json.dumps(make().to_dict()) + "\n")[message].encode()))
    assert main(["merge", str(path), "--workdir", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "line 1" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_any_damage_to_an_archive_is_an_error(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    write_archive([make(f"k{i}") for i in range(20)], path)
    data = path.read_bytes()
    drawn = random.Random(0)
    for _ in range(60):
        cut = drawn.randrange(1, len(data))
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match="archive"):
            read_archive(path)
        place = drawn.randrange(18, len(data))  # behind the header, whose time is not checked
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << drawn.randrange(8))])
                         + data[place + 1:])
        with pytest.raises(InputError, match="archive"):
            read_archive(path)


@pytest.mark.parametrize(("arguments", "message"), [
    (["x"], "either --workdir or --out"),
    (["x", "--workdir", "d", "--out", "f.jsonl.gz"], "either --workdir or --out"),
    (["absent", "--workdir", "d"], "source 'absent': has no records"),
    (["w0", "--out", "f.csv"], "has another ending"),
])
def test_bad_arguments_are_named_in_one_line(sources, tmp_path, monkeypatch, capsys, arguments,
                                             message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["merge", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
