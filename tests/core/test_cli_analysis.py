"""`deepnarrow pareto`, `fit` and `compare` on anybody's table: documents, tables, refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepnarrow import cli
from deepnarrow.cli.analysis import load_records
from deepnarrow.recordfile import write_archive
from deepnarrow.store import Store
from tests.core.test_report import both, small


@pytest.fixture
def run(capsys):
    """`run("pareto", "t.csv", ...)` -> (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run):
    """Runs a command that must be refused and returns its error lines."""

    def refused(*arguments: str) -> list[str]:
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), err
        return err.splitlines()

    return refused


def csv_of(path: Path, header: str, rows: Any) -> str:
    path.write_text(header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def runs_csv(tmp_path):
    """Three shapes with two seeds each, one dominated, and one without a quality."""
    rows = [(name, seed, params, 2 * params, quality + seed / 1000)
            for name, params, quality in (("a", 10, 0.5), ("b", 20, 0.7), ("=c", 30, 0.6))
            for seed in (0, 1)]
    return csv_of(tmp_path / "t.csv", "name,seed,params,flops,superglue",
                  [*rows, ("d", 0, 5, 5, "nan")])


def test_pareto_of_any_csv(run, runs_csv):
    code, out, _ = run("pareto", runs_csv, "--cost", "params:min", "--cost", "flops:min",
                       "--quality", "superglue:max", "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found) == ["fronts"]
    assert [(f["cost"], f["quality"]) for f in found["fronts"]] == [
        ("params", "superglue"), ("flops", "superglue")]
    front = found["fronts"][0]
    assert [(p["name"], p["on_front"], p["on_any_front"]) for p in front["points"]] == [
        ("a", True, True), ("b", True, True), ("=c", False, False)]
    assert [round(p["membership"], 3) for p in front["points"]] == [1, 1, 0]
    assert front["hypervolume"] == pytest.approx((30 - 20) * (0.7 - 0.5))
    assert (front["left_out"], front["non_finite"]) == ({"d": "superglue is not finite"}, 1)
    shown = run("pareto", runs_csv, "--cost", "params", "--quality", "superglue", "--claims")[1]
    assert "superglue" in shown
    assert "1 value not finite" in shown
    assert "saved by the other shapes' front" in shown


def test_joint_pareto_and_claims(run, runs_csv, refused):
    code, out, _ = run("pareto", runs_csv, "--cost", "params", "--cost", "flops", "--quality",
                       "superglue:max", "--joint", "--json")
    front, = json.loads(out)["fronts"]
    assert code == 0
    assert (front["cost"], front["quality"]) == (["params", "flops"], ["superglue"])
    assert {p["name"]: p["on_front"] for p in front["points"]} == {
        "a": True, "b": True, "=c": False}
    assert front["hypervolume"] > 0
    code, out, _ = run("pareto", runs_csv, "--cost", "params", "--quality", "superglue:max",
                       "--claims", "--json")
    claims, = json.loads(out)["claims"]
    assert {m["baseline"] for m in claims["matches"]} == {"b", "=c"}
    [line] = refused("pareto", runs_csv, "--joint", "--claims", "--quality", "superglue")
    assert "leave out --joint" in line
    assert "joint front" in run("pareto", runs_csv, "--quality", "superglue", "--joint")[1]


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--cost", "parms", "--quality", "superglue"], "did you mean params?"),
    (["--cost", "params"], "--quality: is missing (expected one of seed, params, flops, superglue"),
    (["--cost", "params", "--quality", "name"], "'name': is a column of text (got 'a' in data row"),
])
def test_tables_refuse_unknown_columns(refused, runs_csv, arguments, expected):
    [line] = refused("pareto", runs_csv, *arguments)
    assert expected in line


@pytest.mark.parametrize("command", [
    ["pareto", "--quality", "q"], ["fit", "--form", "power", "--x", "params", "--y", "q"],
    ["compare"]])
def test_empty_tables_have_no_finished_runs(refused, tmp_path, command):
    empty = csv_of(tmp_path / "e.csv", "domain,name,seed,params,q", [])
    [line] = refused(command[0], empty, *command[1:])
    assert "no finished runs" in line
    assert "Hint: " in line


def test_fit_json(run, tmp_path):
    rows = [(10 ** k, 5 * (10 ** k) ** -0.1) for k in range(15, 20)]
    path = csv_of(tmp_path / "t.csv", "flops,loss", rows)
    code, out, _ = run("fit", path, "--form", "power", "--x", "flops", "--y", "loss", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["form"], found["identified"], found["reason"]) == ("power", True, None)
    assert set(found["params"]) == {"coefficient", "exponent"}
    one = found["params"]["exponent"]
    assert {"estimate", "low", "high"} <= set(one)
    assert one["estimate"] == pytest.approx(-0.1)
    assert found["alpha"]["name"] == "alpha_F,U"
    assert run("fit", path, "--form", "power", "--x", "flops", "--y", "loss", "--json")[1] == out
    shown = run("fit", path, "--form", "power", "--x", "flops", "--y", "loss")[1]
    assert "exponent" in shown


def test_fit_chinchilla_and_refusal_json(run, tmp_path):
    rows = [(n, d, 1.7 + 400 * n ** -0.34 + 410 * d ** -0.28)
            for n in (1e7, 1e8, 1e9, 1e10) for d in (1e9, 1e10, 1e11)]
    path = csv_of(tmp_path / "t.csv", "N,D,loss", rows)
    code, out, _ = run("fit", path, "--form", "chinchilla", "--n", "N", "--d", "D", "--y", "loss",
                       "--bootstrap", "100", "--json")
    found = json.loads(out)
    assert code == 0
    assert {k: v["estimate"] for k, v in found["params"].items()} == pytest.approx(
        {"A": 400, "B": 410, "E": 1.7, "alpha": 0.34, "beta": 0.28}, rel=1e-3)
    few = csv_of(tmp_path / "few.csv", "N,D,loss", rows[:3])
    code, out, _ = run("fit", few, "--form", "chinchilla", "--n", "N", "--d", "D", "--y", "loss",
                       "--json")
    found = json.loads(out)
    assert code == 0
    assert not found["identified"]
    assert "too few sizes" in found["reason"]
    assert found["params"]["alpha"] == {
        "estimate": None, "low": None, "high": None, "method": "not identified"}
    assert "not identified: too few sizes" in run(
        "fit", few, "--form", "chinchilla", "--n", "N", "--d", "D", "--y", "loss")[1]


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--form", "powr", "--x", "params"], "did you mean power?"),
    (["--form", "power"], "--x: is missing: form power needs it"),
    (["--form", "power", "--x", "params", "--n", "flops"], "--n: form power does not take it"),
    (["--form", "power", "--x", "parms"], "did you mean params?"),
    (["--form", "power", "--x", "params", "--bootstrap", "9"], "--bootstrap: is not an integer"),
])
def test_fit_refuses(refused, runs_csv, arguments, expected):
    [line] = refused("fit", runs_csv, *arguments, "--y", "superglue")
    assert expected in line


def domains_csv(path: Path, factor: float) -> str:
    rng, rows = random.Random(0), []
    for domain, sign in (("text", 1.0), ("vision", factor)):
        for name, cost, effect in [("tiny", 1e6, 0), ("mini", 4e6, 0), *(
                (f"tiny-{op}", 1.5e6, 0.02 * (i - 2.5)) for i, op in enumerate(
                    ("nl16", "ff4k", "kv32", "nh4", "dm1k", "el8")))]:
            rows += [(domain, name, seed, cost, 0.05 * math.log10(cost) + sign * effect
                      + rng.gauss(0, 1e-3)) for seed in range(3)]
    return csv_of(path, "domain,shape,seed,params,accuracy", rows)


@pytest.mark.parametrize(("factor", "tau"), [(1.0, 1.0), (-1.0, -1.0)])
def test_compare_json(run, tmp_path, factor, tau):
    path = domains_csv(tmp_path / "t.csv", factor)
    code, out, _ = run("compare", path, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["tau"]["estimate"] == tau
    assert found["tau"]["low"] <= tau <= found["tau"]["high"]
    assert found["tau"]["p"] == pytest.approx(2 / 720)
    assert list(found["verdicts"]) == ["text", "vision", "joint"]
    assert set(found["verdicts"].values()) <= {"holds", "fails", "undecided"}
    assert {(e["domain"], e["operator"]) for e in found["effects"]} == {
        (d, o) for d in ("text", "vision") for o in ("nl16", "ff4k", "kv32", "nh4", "dm1k", "el8")}
    assert all(e["low"] < e["estimate"] < e["high"] for e in found["effects"])
    assert run("compare", path, "--json")[1] == out
    shown = run("compare", path)[1]
    assert "Kendall's tau-b of 6 shared operators" in shown
    assert "DeepNarrow, joint: " in shown


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--by", "dom"], "has no such column (got dom"),
    (["--margin", "-1"], "--margin: is not a pos"),
    (["--saving", "1.5"], "--saving: is not below 1"), (["--quality", "accurac"], "accuracy?"),
    (["--quality", "sound=accuracy"], "no rows of this domain (got sound; expected one of text"),
    (["--cost", "params:max"], "a cost is better where it is less"),
    (["--deep", "x*"], "--deep: matches no shape"),
])
def test_compare_refuses(refused, tmp_path, arguments, expected):
    [line] = refused("compare", domains_csv(tmp_path / "t.csv", 1.0), *arguments)
    assert expected in line


def test_one_domain_is_refused(refused, runs_csv):
    [line] = refused("compare", runs_csv, "--quality", "superglue")
    assert "there is one domain only (got no column domain" in line


def test_names_are_data(run, tmp_path):
    name = "<img onerror=x>\x1b[31m[bold]red"
    path = csv_of(tmp_path / "t.csv", "name,params,q", [(name, 1, 1), (name, 1, 2)])
    shown = run("pareto", path, "--quality", "q")[1]
    assert "\x1b" not in shown
    assert "[bold]red" in shown
    assert json.loads(run("pareto", path, "--quality", "q", "--json")[1])[
        "fronts"][0]["points"][0]["name"] == name


def test_the_commands_import_no_jax(tmp_path):
    path = domains_csv(tmp_path / "t.csv", 1.0)
    code = ("import sys; from deepnarrow.cli import main; code = main(); "
            "print([m for m in ('jax', 'flax', 'tensorflow') if m in sys.modules], "
            "file=sys.stderr); sys.exit(code)")
    for arguments in (["compare", path], ["pareto", path, "--quality", "accuracy", "--claims"],
                      ["fit", path, "--domain", "text", "--form", "power", "--x", "params", "--y",
                       "accuracy"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True,
                              text=True, timeout=120)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]"), done.stderr


@pytest.fixture
def study(tmp_path):
    """One study as a workdir and as an archive, with a try, which nothing reports."""
    records = [small(record) for record in both()]
    records.append(dataclasses.replace(
        records[0], key="try", seed=100, config={"try": True}, metrics=records[-1].metrics))
    workdir, archive = tmp_path / "study", tmp_path / "study.jsonl.gz"
    workdir.mkdir()
    with Store(workdir / "records.sqlite") as store:
        store.add_all(records)
    write_archive(records, archive)
    return str(workdir), str(archive)


@pytest.mark.parametrize("arguments", [
    ["pareto", "--cost", "params"], ["compare", "--cost", "params", "--reference", "tiny,mini"],
    ["fit", "--domain", "text_t5", "--form", "power", "--x", "params", "--y", "upstream/loss"]])
def test_an_archive_reads_as_its_workdir_does(run, study, arguments):
    command, *rest = arguments
    first, second = (run(command, source, *rest, "--json") for source in study)
    assert first[0] == 0, first[2]
    assert first == second


def test_a_report_takes_an_archive_for_records(refused, study, tmp_path):
    workdir, archive = study
    assert load_records([archive]) == load_records([workdir])
    [line] = refused("report", archive, "--out", str(tmp_path / "x"), "--cost", "params")
    assert "a CSV or Parquet file among the sources" in line
    spoilt = tmp_path / "spoilt.jsonl.gz"
    spoilt.write_bytes(Path(archive).read_bytes()[:-9])
    assert "archive" in refused("report", str(spoilt), "--out", str(tmp_path / "x"))[0]
    assert not (tmp_path / "x").exists()


def test_a_report_compares_with_the_reference_family_that_is_named(run, refused, study, tmp_path):
    pattern, out = "tiny,mini,tiny-nl4", tmp_path / "page"
    assert run("report", study[1], "--out", str(out), "--reference", pattern)[0] == 0
    _, text, _ = run("compare", study[1], "--cost", "params", "--reference", pattern, "--json")
    with (out / "effects.csv").open(newline="") as file:
        shown = {(row["domain"], row["operator"]): float(row["effect"])
                 for row in csv.DictReader(file) if row["stage"] == "upstream"}
    assert shown == {(one["domain"], one["operator"]): pytest.approx(one["estimate"])
                     for one in json.loads(text)["effects"]}
    assert "nl+" not in {operator for _, operator in shown}  # one of the family, so no operator's
    with (out / "matches.csv").open(newline="") as file:
        assert {row["baseline"] for row in csv.DictReader(file)} <= set(pattern.split(","))
    [line] = refused("report", study[1], "--out", str(tmp_path / "y"), "--reference", "none*")
    assert line.startswith("error: --reference: matches no shape")
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(("text", "expected"), [
    ("name;params;q\na;1;2\n", "columns with commas between"),
    ("name\tparams\n", "columns with commas between"),
    ("\0\1\2PAR", "is no text"),
    ("name,params,q\na,1_000,2\n", "got '1_000' in data row 1"),
    ("name,params,q\na,١٢,2\n", "is a column of text"),
])
def test_other_dialects_are_named(refused, tmp_path, text, expected):
    path = tmp_path / "t.csv"
    path.write_text(text)
    [line] = refused("pareto", str(path), "--cost", "params", "--quality", "q")
    assert expected in line


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--cost", "params", "--cost", "params:min", "--quality", "superglue"],
     "--cost: is given twice"),
    (["--cost", "params", "--quality", "params"], "--quality: is a cost already"),
    (["--cost", "params", "--quality", "superglue", "--chip", "v5e"], "no source is one"),
    (["--cost", "params", "--quality", "superglue", "--chip", "v5"], "did you mean v5"),
])
def test_pareto_refuses(refused, runs_csv, arguments, expected):
    [line] = refused("pareto", runs_csv, *arguments)
    assert expected in line


def test_a_source_that_is_not_there_is_said(refused, tmp_path):
    [line] = refused("pareto", str(tmp_path / "none.csv"))
    assert "does not exist" in line


def test_two_shapes_are_not_measured_from_a_line_through_both(refused, tmp_path):
    rows = [(domain, name, i, i) for domain in "xy" for i, name in enumerate("ab", 1)]
    path = csv_of(tmp_path / "t.csv", "domain,name,params,q", rows)
    [line] = refused("compare", path, "--quality", "q:max")
    assert "too few shapes" in line
