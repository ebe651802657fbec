"""Anybody's CSV and Parquet, records and our own exports become the same table."""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepnarrow import operators
from deepnarrow.bootstrap import uncertain
from deepnarrow.errors import InputError
from deepnarrow.export import export_csv, export_parquet
from deepnarrow.records import MetricRow, Outcome, Record
from deepnarrow.store import Store
from deepnarrow.table import (
    concat,
    count_non_finite,
    direction_of,
    find_column,
    from_records,
    seed_values,
    select,
    shapes_of,
)
from deepnarrow.tablefile import read_table

SHAPE = {"num_encoder_layers": 2, "num_decoder_layers": 1, "d_model": 64, "d_ff": 256, "d_kv": 16,
         "num_heads": 4, "share_heads": False, "share_kv": False}


def write(path, text):
    path.write_text(text)
    return path


def record(name="tiny", seed=0, loss=1.0, status="done", outcomes=(), metrics=()):
    return Record(
        key=f"{name}/{seed}", study="s", modality="toy", architecture="transformer", name=name,
        shape=SHAPE, seed=seed, status=status, flop_convention="matmul",
        config={"protocol": {"budget": {"kind": "examples", "amount": 1}}},
        costs={"params_non_embedding": 100.0, "params_total": 150.0}, environment={"device": "cpu"},
        metrics=(MetricRow("upstream", "", "loss", "min", loss), *metrics), outcomes=outcomes)


def values_of(table, column):
    return seed_values(table, shapes_of(table), column)


# --- files ---------------------------------------------------------------------------------------
def test_csv_and_parquet_say_the_same(tmp_path):
    text = "name,seed,params,loss,note\na,0,1e6,2.5,x\na,1,1e6,2.7,y\nb,0,2e6,,z\n"
    csv = read_table(write(tmp_path / "t.csv", "\ufeff" + text))
    columns = {"name": ["a", "a", "b"], "seed": [0, 1, 0], "params": [1e6, 1e6, 2e6],
               "loss": [2.5, 2.7, None], "note": ["x", "y", "z"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    parquet = read_table(tmp_path / "t.parquet")
    for table in (csv, parquet):
        found = values_of(table, "loss")
        assert found.names == ("a", "b")
        assert found.n.tolist() == [2, 0]
        assert found.mean[0] == pytest.approx(2.6)
        assert found.sd[0] == pytest.approx(np.std([2.5, 2.7], ddof=1))
        assert np.isnan(found.mean[1])
        assert count_non_finite(table, "loss") == 0
        assert list(table.seed) == ["0", "1", "0"]
        assert find_column(table, "params", "cost") == "params"


@pytest.mark.parametrize("cell", ["nan", "NaN", "inf", "-inf"])
def test_non_finite_cells_are_counted_and_empty_ones_are_not(tmp_path, cell):
    table = read_table(write(tmp_path / "t.csv", f"name,loss\na,{cell}\nb,\nc,1\n"))
    assert count_non_finite(table, "loss") == 1
    assert count_non_finite(select(table, table.name == "c"), "loss") == 0
    assert np.isfinite(values_of(table, "loss").mean).tolist() == [False, False, True]


def test_rows_without_a_seed_column_are_seeds_and_without_a_name_are_shapes(tmp_path):
    same = read_table(write(tmp_path / "a.csv", "shape,loss\na,1\na,3\n"))
    assert values_of(same, "loss").n.tolist() == [2]
    apart = read_table(write(tmp_path / "b.csv", "loss\n1\n3\n"))
    assert values_of(apart, "loss").names == ("row 1", "row 2")


def test_the_spread_of_shots_is_never_that_of_training(tmp_path):
    rows = "".join(f"a,{seed},{shot},{seed / 10 + shot}\n" for seed in (0, 1) for shot in (0, 1))
    table = read_table(write(tmp_path / "t.csv", "name,seed,shot_seed,acc\n" + rows))
    found = values_of(table, "acc")
    assert found.n.tolist() == [2]
    assert found.mean[0] == pytest.approx(0.55)
    assert found.sd[0] == pytest.approx(np.std([0.5, 0.6], ddof=1))


def test_one_seed_twice_is_refused(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "name,seed,loss\na,0,1\na,0,2\n"))
    with pytest.raises(InputError, match=r"shape 'a': has two rows of one seed .*shot_seed"):
        values_of(table, "loss")


@pytest.mark.parametrize(("text", "message"), [
    ("", "has no header"),
    ("a,a\n1,2\n", "two columns of one name"),
    ("a,b\n1\n", "data row 1 has another number of cells (got 1; expected 2"),
    ("\xff\xfe", "is no CSV"),
])
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as error:
        read_table(path)
    assert message in str(error.value)
    assert str(path)[-20:] in str(error.value) or "source" in str(error.value)


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="is no Parquet file"):
        read_table(tmp_path / "t.parquet")


def test_unknown_and_text_columns_are_refused(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "name,params,loss,note\na,1,2,x\n"))
    with pytest.raises(InputError, match=r"cost: no record has this cost.*did you mean params\?"):
        find_column(table, "parms", "cost")
    with pytest.raises(InputError, match=r"'note': is a column of text \(got 'x' in data row 1"):
        find_column(table, "note", "quality")
    with pytest.raises(InputError, match=r"has no such column \(got fieldd.*did you mean"):
        read_table(write(tmp_path / "u.csv", "field,loss\na,1\n"), by="fieldd")


def test_directions_by_name(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "loss,val_loss,glue,floss\n1,1,1,1\n"))
    assert [direction_of(table, name, None) for name in ("loss", "val_loss", "glue", "floss")] == [
        "min", "min", "max", "max"]
    assert direction_of(table, "loss", "max") == "max"


# --- records -------------------------------------------------------------------------------------
def test_records_and_their_export_are_one_table(tmp_path):
    probe = [MetricRow("few_shot", "digits", "accuracy", "max", v, shots=5, shot_seed=i)
             for i, v in enumerate((0.2, 0.4))]
    probe += [MetricRow("few_shot", "digits", "accuracy", "max", 0.6, "raw", 5, i) for i in (0, 1)]
    records = [record(seed=0, metrics=probe), record(seed=1, loss=2.0),
               record("wide", status="failed"), record("deep", loss=None)]
    with Store(tmp_path / "r.sqlite") as store:
        for one in records:
            store.add(one)
        export_csv(store, tmp_path / "r.csv")
        export_parquet(store, tmp_path / "r.parquet")
    direct = from_records(records)
    for table in (direct, read_table(tmp_path / "r.csv"), read_table(tmp_path / "r.parquet")):
        assert sorted(zip(table.name, table.seed, table.done, strict=True)) == [
            ("deep", "0", True), ("tiny", "0", True), ("tiny", "1", True), ("wide", "0", False)]
        assert table.qualities == ("upstream/loss", "digits/few_shot@5")
        assert table.directions == {"upstream/loss": "min", "digits/few_shot@5": "max"}
        tiny = select(table, table.name == "tiny")
        assert values_of(tiny, "upstream/loss").mean.tolist() == [1.5]
        assert values_of(tiny, "digits/few_shot@5").mean == pytest.approx([0.3])
        assert tiny.columns["depth"].tolist() == [3, 3]
        assert list(tiny.beside) == ["raw"]
        raw = tiny.beside["raw"]["digits/few_shot@5"]
        assert raw[tiny.seed == "0"] == pytest.approx([0.6])
        assert np.isnan(raw[tiny.seed == "1"]).all()
        assert find_column(table, "params", "cost") == "params_non_embedding"
    assert count_non_finite(direct, "upstream/loss") == 1
    assert set(direct.columns["budget_kind"]) == {"examples"}


def test_per_example_outcomes_widen_what_is_known_and_pair_the_shapes():
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.5
    records = []
    for name, flips in (("a", 0), ("b", 12)):
        for seed in (0, 1):
            right = hard.astype(float)
            right[:flips] = 1 - right[:flips]
            outcome = Outcome("fine_tune", "digits", "accuracy", "pretrained", tuple(right))
            metric = MetricRow("fine_tune", "digits", "accuracy", "max", float(right.mean()))
            records.append(record(name, seed, outcomes=(outcome,), metrics=(metric,)))
    table = from_records(records)
    noise = uncertain(values_of(table, "digits/fine_tune"))
    assert noise is not None
    assert noise.method == "pooled-t and examples"
    from deepnarrow.bootstrap import contrast_error

    alone, _ = contrast_error(noise, np.array([[1.0, 0.0]]))
    paired, _ = contrast_error(noise, np.array([[1.0, -1.0]]))
    assert alone[0] == pytest.approx(np.std(hard, ddof=1) / 20, rel=1e-6)
    assert paired[0] < alone[0] / 2


def test_tables_of_several_sources_share_the_name_of_a_cost(tmp_path):
    other = read_table(write(tmp_path / "t.csv", "name,params,upstream/loss\np,7,1\n"))
    whole = concat([other, from_records([record()])])
    assert len(whole) == 2
    assert whole.columns["params_non_embedding"].tolist() == [7, 100]
    assert list(whole.domain) == ["", "toy"]


def test_examples_in_docstrings():
    results = doctest.testmod(operators)
    assert results.attempted > 0
    assert results.failed == 0
