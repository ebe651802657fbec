"""The store keeps every record exactly, all of it or nothing, whatever other processes do."""

from __future__ import annotations

import csv
import dataclasses
import pickle
import random
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepnarrow.errors import InputError
from deepnarrow.export import COLUMNS, export_csv, export_parquet, flat_rows
from deepnarrow.records import CurvePoint, MetricRow, Outcome, Record, latest
from deepnarrow.store import APPLICATION_ID, SCHEMA_VERSION, Store

SHAPE = {"num_encoder_layers": 2, "num_decoder_layers": 0, "d_model": 64, "d_ff": 256, "d_kv": 16,
         "num_heads": 4, "share_heads": False, "share_kv": False}


def make(key="k0", status="done", loss=0.5, **fields):
    given_fields = {
        "key": key, "study": "s", "modality": "vision", "architecture": "transformer",
        "name": "tiny", "shape": SHAPE, "seed": 0, "status": status, "config": {"a": [1, "x"]},
        "costs": {"params_non_embedding": 1000, "step_time_s": 0.25, "peak_bytes": None},
        "flop_convention": "matmul", "environment": {"device": "cpu", "seconds": 1.5},
        "metrics": (MetricRow("upstream", "", "loss", "min", loss),
                    MetricRow("few_shot", "digits", "accuracy", "max", 0.75, shots=5, shot_seed=1)),
        "curve": (CurvePoint("upstream", 20, "train/loss", 2.5),),
        "outcomes": (Outcome("few_shot", "digits", "accuracy", "pretrained", (1.0, 0.0, 1.0),
                             shots=5, shot_seed=1),),
    }
    return Record(**(given_fields | fields))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "records.sqlite") as store:
        yield store


# --- round trip ----------------------------------------------------------------------------------
finite = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-2**63, 2**63 - 1)
text = st.text(max_size=20)
maybe_seed = st.none() | st.integers(0, 2**31)
stages = st.sampled_from(["upstream", "few_shot", "fine_tune"])
origins = st.sampled_from(["pretrained", "untrained", "raw"])
values = st.none() | st.booleans() | st.integers() | finite | st.text(max_size=8)
tables = st.dictionaries(text, st.recursive(
    values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6), max_size=4)
metrics = st.builds(MetricRow, stage=stages, task=text, metric=text, value=st.none() | finite,
                    direction=st.sampled_from(["min", "max"]), origin=origins, shots=maybe_seed,
                    shot_seed=maybe_seed, finetune_seed=maybe_seed)
points = st.builds(CurvePoint, stage=stages, step=integers, name=text, value=st.none() | finite)
outcomes = st.builds(Outcome, stage=stages, task=text, metric=text, origin=origins,
                     values=st.lists(finite, max_size=5).map(tuple), shots=maybe_seed,
                     shot_seed=maybe_seed, finetune_seed=maybe_seed)
any_record = st.builds(
    Record, key=text, study=text, modality=text, architecture=text, name=text, shape=tables,
    seed=integers, status=st.sampled_from(["done", "diverged", "failed", "preempted"]),
    config=tables, costs=tables, flop_convention=text, environment=tables,
    metrics=st.lists(metrics, max_size=4).map(tuple), curve=st.lists(points, max_size=4).map(tuple),
    outcomes=st.lists(outcomes, max_size=2).map(tuple))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(any_record, max_size=4, unique_by=lambda record: record.key))
def test_records_come_back_exactly_and_adding_again_changes_nothing(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("store") / "records.sqlite"
    with Store(path) as store:
        assert [store.add(record) for record in records] == [True] * len(records)
        assert [store.add(record) for record in records] == [False] * len(records)
    with Store(path, read_only=True) as store:
        assert store.records() == records
        assert sum(store.statuses().values()) == len(records)


def test_non_finite_numbers_are_null(store):
    nan, inf = float("nan"), float("inf")
    store.add(make(loss=nan, status="diverged", costs={"step_time_s": inf},
                   config={"deep": [{"x": -inf}, nan]},
                   curve=(CurvePoint("upstream", 1, "train/loss", inf),),
                   outcomes=(Outcome("few_shot", "t", "m", "raw", (1.0, nan, inf)),)))
    record = store.records()[0]
    assert record.metrics[0].value is None
    assert record.costs == {"step_time_s": None}
    assert record.config == {"deep": [{"x": None}, None]}
    assert record.curve[0].value is None
    np.testing.assert_array_equal(record.outcomes[0].values, [1.0, nan, nan])
    db = sqlite3.connect(store.path)
    stored = db.execute("SELECT value FROM metrics ORDER BY position").fetchall()
    assert stored == [(None,), (0.75,)]
    db.close()


def test_scalars_of_array_libraries_are_numbers(store):
    store.add(make(loss=np.float32(0.5), seed=np.int64(3), costs={"params_total": np.int32(7)}))
    record = store.records()[0]
    assert (record.metrics[0].value, record.seed, record.costs) == (0.5, 3, {"params_total": 7})


def test_filters(store):
    for i, (modality, status) in enumerate([("a", "done"), ("b", "done"), ("a", "failed")]):
        store.add(make(key=f"k{i}", modality=modality, status=status))
    assert [r.key for r in store.records(modality="a")] == ["k0", "k2"]
    assert [r.key for r in store.records(modality="a", status="done")] == ["k0"]
    assert len(store.records(modality="a")[0].metrics) == 2


# --- one result a key ----------------------------------------------------------------------------
def test_a_finished_key_is_stored_once(store):
    assert store.add(make(status="failed", metrics=()))
    assert store.finished_keys() == set()
    assert store.add(make())
    again = make(costs={"step_time_s": 9.0}, environment={"host": "elsewhere"}, study="other")
    assert not store.add(again)
    assert [r.status for r in store.records()] == ["failed", "done"]
    assert store.records()[1].costs["step_time_s"] == 0.25
    assert store.finished_keys() == {"k0"}


@pytest.mark.parametrize("change", [
    {"loss": 0.6}, {"status": "diverged"}, {"seed": 1}, {"name": "base"}, {"metrics": ()}])
def test_other_results_of_a_finished_key_are_refused(store, change):
    store.add(make())
    with pytest.raises(InputError, match=r"record k0.*is finished with (an)?other"):
        store.add(make(**change))
    assert store.records() == [make()]


def test_a_conflict_shows_both_values(store):
    store.add(make())
    with pytest.raises(InputError, match=r"got upstream loss 0\.6; expected upstream loss 0\.5"):
        store.add(make(loss=0.6))


def test_statuses_count_keys_by_finished_or_last_record(store):
    for key, status in [("a", "failed"), ("a", "done"), ("b", "preempted"), ("b", "failed"),
                        ("c", "diverged"), ("c", "failed"), ("d", "done")]:
        store.add(make(key=key, status=status))
    assert store.statuses() == {"diverged": 1, "done": 2, "failed": 1}
    assert store.finished_keys() == {"a", "c", "d"}
    counted = [record.status for record in latest(store.records())]
    assert sorted(counted) == ["diverged", "done", "done", "failed"]


def test_rows_are_only_added(store):
    store.add(make())
    db = sqlite3.connect(store.path)
    for statement in ("UPDATE metrics SET value = 1", "DELETE FROM records", "DELETE FROM outcomes",
                      "UPDATE curves SET step = 0"):
        with pytest.raises(sqlite3.IntegrityError, match="only added"):
            db.execute(statement)
    db.close()
    assert store.records() == [make()]


# --- all or nothing ------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [
    {"metrics": (MetricRow("upstream", "", "loss", "sideways", 1.0),)},
    {"status": "maybe"},
    {"seed": 2**64},
    {"config": {"f": print}},
    {"name": "\ud800"},
    {"curve": (CurvePoint("upstream", 1, "a", 1.0), CurvePoint("upstream", 2**70, "a", 1.0))},
    {"curve": (CurvePoint("upstream", 1, "a", {1}),)},
])
def test_a_record_that_cannot_be_stored_leaves_nothing(store, bad):
    with pytest.raises(InputError, match="record k0: cannot be stored"):
        store.add(make(**bad))
    assert store.records() == []
    assert store.add(make())


_WRITER = """
import pickle, sys
from deepnarrow.store import Store
path, template, name = sys.argv[1:]
record = pickle.loads(bytes.fromhex(template))
with Store(path) as store:
    for i in range(100_000):
        store.add(type(record)(**{**vars(record), "key": f"{name}-{i}"}))
        print(f"{name}-{i}", flush=True)
"""


def test_killed_writers_lose_no_acknowledged_record(tmp_path):
    path, delays, acknowledged = tmp_path / "records.sqlite", random.Random(0), set()
    for round_ in range(4):
        writers = [subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), pickle.dumps(make()).hex(), f"{round_}{w}"],
            stdout=subprocess.PIPE, text=True) for w in "ab"]
        ready = [writer.stdout.readline() for writer in writers]
        time.sleep(0.2 * delays.random())
        for writer, first in zip(writers, ready, strict=True):
            writer.kill()
            # A line that the kill cut short acknowledges nothing.
            rest, _ = writer.communicate()
            acknowledged |= {line.strip() for line in (first + rest).splitlines(True)
                             if line.endswith("\n")}
    with Store(path) as store:
        records = store.records()
        assert len(acknowledged) >= 8
        assert acknowledged <= store.finished_keys()
        assert len(records) == len(store.finished_keys())
        assert all(record == make(key=record.key) for record in records)
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_many_processes_may_open_a_new_store_at_once(tmp_path):
    script = ("import sys; from deepnarrow.store import Store; "
              "s = Store(sys.argv[1]); print(s.statuses()); s.close()")
    runs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "records.sqlite")],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert (run.returncode, out, err) == (0, b"{}\n", b"")


def test_a_reader_sees_whole_records_while_a_writer_is_at_work(store):
    store.add(make(key="a"))
    with Store(store.path, read_only=True) as reader:
        store._db.execute("BEGIN IMMEDIATE")
        store._insert(make(key="b"), "digest")
        assert reader.finished_keys() == {"a"}
        assert reader.records() == [make(key="a")]
        store._db.execute("COMMIT")
        assert reader.statuses() == {"done": 2}
        with pytest.raises(InputError, match="readonly"):
            reader.add(make(key="c"))


def test_the_store_is_durable_and_checked(store):
    pragmas = [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in (
        "journal_mode", "synchronous", "foreign_keys", "user_version", "application_id")]
    assert pragmas == ["wal", 2, 1, SCHEMA_VERSION, APPLICATION_ID]


def test_without_wal_it_says_so_and_works(tmp_path, monkeypatch):
    connect = sqlite3.connect
    # This VFS has no shared memory, as network file systems have none.
    monkeypatch.setattr(sqlite3, "connect",
                        lambda name, **options: connect(name + "&vfs=unix-dotfile", **options))
    with pytest.warns(UserWarning, match=r"WAL does not work on this file system.*'delete'"):
        store = Store(tmp_path / "records.sqlite")
    with store:
        store.add(make())
        assert store.records() == [make()]


# --- files that are no store ---------------------------------------------------------------------
def test_a_newer_store_asks_for_an_upgrade(store):
    store._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for read_only in (False, True):
        with pytest.raises(InputError, match=r"newer deepnarrow.*upgrade"):
            Store(store.path, read_only=read_only)


@pytest.mark.parametrize("content", [
    b"not a database, " * 100, b"SQLite format 3\0" + b"\1" * 4096])
def test_an_unknown_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "records.sqlite"
    path.write_bytes(content)
    for read_only in (False, True):
        with pytest.raises(InputError, match="cannot be used as a record store"):
            Store(path, read_only=read_only)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "records.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.commit()
    db.close()
    content = path.read_bytes()
    with pytest.raises(InputError, match="is not a record store of deepnarrow"):
        Store(path)
    assert path.read_bytes() == content


def test_places_where_no_store_can_be(tmp_path):
    (tmp_path / "empty").touch()
    for path, read_only, message in [
        (tmp_path, False, "no file can be here"),
        (tmp_path / "a" / "b", False, "no file can be here"),
        (tmp_path / "absent", True, "no records yet"),
        (tmp_path / "empty", True, "no records yet"),
    ]:
        with pytest.raises(InputError, match=message):
            Store(path, read_only=read_only)
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


def test_a_name_with_uri_characters_is_a_name(tmp_path):
    path = tmp_path / "a?mode=ro#%20 b.sqlite"
    with Store(path) as store:
        store.add(make())
    assert path.is_file()


# --- tables --------------------------------------------------------------------------------------
@pytest.fixture
def filled(store):
    store.add(make())
    store.add(make(key="k1", name="=HYPERLINK(1)", loss=-1 / 3, seed=1))
    store.add(make(key="k2", status="failed", metrics=(), curve=(), outcomes=()))
    return store


def test_flat_rows_are_one_a_metric_and_keep_failures(filled):
    rows = list(flat_rows(filled.records()))
    assert [(row["key"], row["metric"], row["value"], row["shots"]) for row in rows] == [
        ("k0", "loss", 0.5, None), ("k0", "accuracy", 0.75, 5), ("k1", "loss", -1 / 3, None),
        ("k1", "accuracy", 0.75, 5), ("k2", None, None, None)]
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert rows[0]["d_ff"] == 256
    assert rows[0]["params_non_embedding"] == 1000.0
    assert rows[0]["device"] == "cpu"


def test_csv_reads_back_and_holds_no_formula(filled, tmp_path):
    path = tmp_path / "out.csv"
    assert export_csv(filled, path) == 5
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["0.5", "0.75", repr(-1 / 3), "0.75", ""]
    assert rows[2]["name"] == "'=HYPERLINK(1)"
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@example("=1+1")
@example("@SUM(A1)")
@example("+1")
@example("-1")
@example("\t=1")
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(min_size=1, max_size=10))
def test_no_text_cell_starts_a_formula(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("csv")
    with Store(folder / "records.sqlite") as store:
        store.add(dataclasses.replace(make(), name=name))
        export_csv(store, folder / "out.csv")
    with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
        cell = next(csv.DictReader(file))["name"]
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell in (name, "'" + name)


def test_parquet_is_typed_and_equals_the_rows(filled, tmp_path):
    assert export_parquet(filled, tmp_path / "out.parquet") == 5
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.to_pylist() == list(flat_rows(filled.records()))
    assert str(table.schema.field("peak_bytes").type) == "double"


def test_an_empty_store_exports_a_header(store, tmp_path):
    assert export_csv(store, tmp_path / "out.csv") == 0
    assert (tmp_path / "out.csv").read_text().strip() == ",".join(COLUMNS)
    assert export_parquet(store, tmp_path / "out.parquet") == 0


def test_a_table_that_cannot_be_written_is_an_input_error(filled, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        export_csv(filled, tmp_path / "absent" / "out.csv")


@pytest.mark.parametrize("module", ["records", "store", "export", "pareto", "report",
                                    "report.terminal", "report.page", "report.charts"])
def test_analysis_does_not_import_jax(module):
    script = (f"import sys, deepnarrow.{module}; "
              "print([m for m in ('jax', 'jaxlib', 'flax') if m in sys.modules])")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
