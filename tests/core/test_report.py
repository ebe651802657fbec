"""The report: whole, offline, readable with any records, and inert whatever names hold."""

from __future__ import annotations

import base64
import csv
import dataclasses
import doctest
import hashlib
import html.parser
import io
import json
import math
import re
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from deepnarrow import summary
from deepnarrow.errors import InputError
from deepnarrow.lawforms import POWER
from deepnarrow.laws import fit
from deepnarrow.pareto import fronts
from deepnarrow.records import CurvePoint, MetricRow, Record
from deepnarrow.report import (
    charts,
    explorer,
    morecharts,
    page,
    render,
    sheets,
    text,
    write_report,
)
from deepnarrow.report.page import slug
from deepnarrow.report.tables import count_runs, mean_curves, transfer_tables
from deepnarrow.report.terminal import pareto_tables
from deepnarrow.summary import shape_table
from deepnarrow.table import from_records

# name -> (layers, d_model, d_ff): two bases; a deep-narrow and a shallow-wide shape of about equal
# cost between them.
SHAPES = {"tiny": (2, 64, 256), "mini": (8, 192, 768), "tiny-nl4": (4, 64, 256),
          "tiny-nl12-dm48-ff192": (12, 48, 192),
          "tiny-nl2-dm128-ff512": (2, 128, 512), "tiny-nl8-dm96": (8, 96, 256)}
HOSTILE = [
    "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<b>bold</b>",
    "javascript:alert(1)", "\x1b[31mred\x1b[0m", "[bold red]markup[/]", "\u202eevil",
    "=HYPERLINK(1)", "a\x00b\nc\td", "&amp;lt;", "'; DROP TABLE records; --", "x" * 1000,
    "{datum.y}", "\ud800", "\uffff", "]]>", "",
]


def fronts_of(records, *arguments):
    return fronts(from_records(records), *arguments)


def synthetic(modality="vision_vit", seeds=2, loss=0.4, classes=10, stacks=1, **fields):
    """Records of six shapes that learn a little better the deeper and the larger they are."""
    rng = np.random.default_rng(len(modality))
    records = []
    for name, (layers, d_model, d_ff) in SHAPES.items():
        params = stacks * layers * (4 * d_model * 64 + 2 * d_model * d_ff)
        level = loss * (params / 5e5) ** -0.15 * layers ** -0.08
        shape = {"num_encoder_layers": layers, "num_decoder_layers": layers * (stacks - 1),
                 "d_model": d_model, "d_ff": d_ff, "d_kv": 16, "num_heads": 4,
                 "share_heads": False, "share_kv": False}
        for seed in range(seeds):
            final = level + rng.normal(0, 0.01 * loss)
            records.append(Record(
                f"{modality}/{name}/{seed}", "quickstart", modality, "transformer", name, shape,
                seed, "done", {}, {
                    "params_total": params + 800 * d_model, "params_non_embedding": params,
                    "flops_forward_per_example": params * 2 * 64.0, "tokens_seen": 64 * 32 * 600,
                    "flops_train_total": params * 6 * 64.0 * 32 * 600, "peak_bytes": None,
                    "step_time_s": 0.004 * layers + params * 2e-8 + rng.normal(0, 2e-4)},
                "matmul", {"device": "cpu", "host": "build"}, _metrics(rng, final, loss, classes),
                _curve(rng, final)))
    return [dataclasses.replace(record, **fields) for record in records]


def _metrics(rng, final, loss, classes):
    best = 1 / (1 + final / loss * 0.25)
    rows = [MetricRow("upstream", "", "loss", "min", final),
            MetricRow("upstream", "", "accuracy", "max", best)]
    for origin, level in (("pretrained", best), ("untrained", 0.45), ("raw", 0.6)):
        for shots in (1, 5, 10):
            rows += [MetricRow("few_shot", "digits", "accuracy", "max",
                               level - 0.3 / shots + rng.normal(0, 0.02), origin, shots, shot_seed)
                     for shot_seed in range(3)]
        if origin != "raw":
            rows.append(MetricRow("fine_tune", "digits", "accuracy", "max", level + 0.03, origin,
                                  finetune_seed=0))
    for stage in ("few_shot", "fine_tune"):
        rows += [MetricRow(stage, "digits", metric, "max", value, "raw")
                 for metric, value in (("chance", 1 / classes), ("majority", 1.3 / classes))]
    return tuple(rows)


def _curve(rng, final):
    steps = range(20, 601, 20)
    decay = [final + 2.2 * math.exp(-step / 120) for step in steps]
    train = [CurvePoint("upstream", step, "train/loss", value + rng.normal(0, 0.03))
             for step, value in zip(steps, decay, strict=True)]
    validation = [CurvePoint("upstream", step, "validation/loss", value + 0.02)
                  for step, value in zip(steps, decay, strict=True) if step % 100 == 0]
    return (*train, *validation)


def small(record, task="digits"):
    """The record with so few qualities and costs that its report is drawn quickly."""
    probe = next(row for row in record.metrics if row.stage == "few_shot")
    return dataclasses.replace(
        record, metrics=(record.metrics[0], dataclasses.replace(probe, task=task)),
        costs={"params_non_embedding": record.costs["params_non_embedding"]})


def both():
    return synthetic() + synthetic("text_t5", loss=3.1, classes=4, stacks=2)


class Outline(html.parser.HTMLParser):
    """The tags of a page with their attributes' names, and its visible text."""

    def __init__(self, written):
        super().__init__()
        self.tags, self.text, self.ids = [], [], []
        self.feed(written)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(both(), folder, "Quickstart"), folder


# --- the page ------------------------------------------------------------------------------------
def test_the_report_is_a_page_its_figures_and_its_tables(report):
    files, folder = report
    names = [file.name for file in files]
    assert names[0] == "report.html"
    assert sorted(files) == sorted(folder.iterdir())
    kinds = [f"{kind}-{modality}" for kind in ("fronts", "curves", "laws", "agreement")
             for modality in ("text_t5", "vision_vit")] + ["effects"]
    assert {name for name in names if not name.endswith(".csv")} == {
        "report.html", *(f"{kind}.{end}" for kind in kinds for end in ("png", "svg"))}
    assert {name for name in names if name.endswith(".csv")} == {f"{name}.csv" for name in (
        "shapes", "qualities", "fronts", "matches", "savings", "gains", "regions", "agreement",
        "laws", "worth", "curves", "transfer", "effects", "verdicts", "tau", "metrics",
        "deepnarrow-tests")}
    for kind in kinds:
        image = np.asarray(Image.open(folder / f"{kind}.png").convert("L"))
        assert image.shape[1] > 700
        assert (image < 128).sum() > 1000  # ink: axes, labels and lines were drawn
        root = ET.fromstring((folder / f"{kind}.svg").read_text("utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_page_is_self_contained_and_small(report):
    written = report[0][0].read_text("utf-8")
    assert len(written) < 3e6
    loads = r"https?:|//[a-z]|@import|url\(|\bsrc=|\bhref=(?!\"#)|<link"
    assert not re.search(loads, _without_comments(written), re.IGNORECASE)
    outline = Outline(written)
    assert ("meta", ("http-equiv", "content")) in outline.tags
    assert len(outline.ids) == len(set(outline.ids))
    links = set(re.findall(r'href="#([^"]*)"', written))
    assert links
    assert links <= set(outline.ids)


def _without_comments(written):
    return re.sub(r"(?m)^\s*// .*$| // .*$", "", written)


def test_no_script_runs_but_the_pages_own(report):
    """The policy names the script by its hash, and lets nothing else in."""
    written = report[0][0].read_text("utf-8")
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", written, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [
        ' type="application/json" id="data"', ""]
    mark = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    policy, = re.findall(r'Content-Security-Policy" content="([^"]*)"', written)
    assert policy == (f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
                      f"'sha256-{mark}'; base-uri 'none'; form-action 'none'")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch",
                 "import", "XMLHttp", "Function("):
        assert word not in scripts[1][1], word


def explored(written):
    """The explorer's data as the script reads it."""
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>',
                                 written)[0])


def test_the_explorer_has_every_shape_and_its_numbers(report):
    found = explored(report[0][0].read_text("utf-8"))
    rows = {(row.modality, row.label): row for row in shape_table(both())}
    axes = [axis["id"] for axis in found["axes"]]
    assert {"params_non_embedding", "flops_forward_per_example", "step_time_s", "upstream/loss",
            "digits/few_shot@10", "digits/fine_tune"} <= set(axes)
    shown = {(domain["name"], shape["name"]): shape for domain in found["domains"]
             for shape in domain["shapes"]}
    assert set(shown) == set(rows)
    for place, shape in shown.items():
        for axis, cell in zip(axes, shape["values"], strict=True):
            quality = rows[place].qualities.get(axis)
            if quality is not None:
                assert cell == [pytest.approx(quality.mean), pytest.approx(quality.sd), quality.n]
            elif axis in rows[place].costs and axis != "step_time_s":
                assert cell == [pytest.approx(rows[place].costs[axis]), None, 0]
        assert {(key, seed) for key, seed, _ in shape["trials"]} == {
            (f"{place[0]}/{place[1]}/{seed}", str(seed)) for seed in (0, 1)}
    front = fronts_of(both(), ["params_non_embedding"], [("upstream/loss", None)])[0]
    for point in front.points:
        given = shown[front.modality, point.name]["membership"]
        assert given["params_non_embedding|upstream/loss"] == pytest.approx(
            point.membership, abs=1e-4)


def test_every_row_of_the_tables_names_its_trials(report):
    keys = {record.key for record in both()}
    for file in report[1].glob("*.csv"):
        rows = list(csv.DictReader(file.read_text("utf-8").splitlines()))
        assert rows, file
        for row in rows if "trials" in rows[0] and "shape" in rows[0] else ():
            assert set(row["trials"].split(" ")) <= keys
            assert row["trials"]
    gains = list(csv.DictReader((report[1] / "gains.csv").read_text().splitlines()))
    assert {name for row in gains for name in row["trials"].split(" ")} <= keys
    matches = list(csv.DictReader((report[1] / "matches.csv").read_text().splitlines()))
    assert all(len(row["trials"].split(" ")) == 4 for row in matches)


def test_all_findings_are_told(report):
    shown = " ".join(Outline(report[0][0].read_text("utf-8")).text)
    for phrase in ("Across domains", "DeepNarrow's verdicts", "Kendall's tau-b", "no verdict",
                   "Savings at equal quality", "Who matches a baseline for less",
                   "What every operator buys", "Where depth stops paying",
                   "Operators by size, best first", "Does the ranking carry over?",
                   "Upstream against downstream", "Spearman's rho", "Scaling laws",
                   "alpha_P,U", "To mend it:", "Who is on the front, how surely", "on its front",
                   "10× the largest", "Was pre-training worth anything?",
                   "shapes beat an untrained network of their own in"):
        assert phrase in shown, phrase


def test_the_page_draws_every_front_and_curve(report):
    written = report[0][0].read_text("utf-8")
    # Two modalities x (2 upstream + probe at most shots + fine-tuned) x 3 costs, and 2 x 2 curves.
    assert len(re.findall(r'aria-label="[^"]* against [^"]*; on the front', written)) == 24
    assert len(re.findall(r'aria-label="Learning curves', written)) == 4
    shown = " ".join(Outline(written).text)
    for phrase in ("Quickstart", "text_t5", "vision_vit", "Upstream loss", "5-shot probe accuracy",
                   "Raw inputs", "Majority class", "Chance", "untrained", "Median step time (ms)",
                   "Forward FLOPs per example", "Non-embedding parameters", *SHAPES):
        assert phrase in shown, phrase


def test_an_extrapolation_is_dashed_beyond_ten_times_and_said():
    records = synthetic(seeds=3)
    table = from_records(records)
    law = fit(table, POWER, {"x": "flops_forward_per_example"}, "upstream/loss", bootstrap=200)
    assert law.identified
    chart = morecharts.law_chart(law, table)
    line = chart["layer"][0]["data"]["values"]
    top = law.ranges["x"][1]
    parts = {part: [row["x"] for row in line if row["part"] == part] for part in morecharts.PARTS}
    assert max(parts["measured"]) == pytest.approx(top)
    assert max(parts["up to 10x beyond"]) == pytest.approx(10 * top)
    assert min(parts["more than 10x beyond"]) == pytest.approx(10 * top)
    assert max(parts["more than 10x beyond"]) > 25 * top
    dashes = chart["layer"][1]["encoding"]["strokeDash"]["scale"]
    assert dict(zip(dashes["domain"], dashes["range"], strict=True))["more than 10x beyond"] == [
        4, 4]
    svg = render.to_svg(chart, "law")
    assert 'stroke-dasharray="4,4"' in svg
    assert "10× the largest" in svg
    refused = fit(from_records(records[:6]), POWER, {"x": "flops"}, "upstream/loss")
    assert morecharts.drawn_laws([refused]) == []


def test_the_same_records_give_the_same_bytes(tmp_path):
    records = [small(record) for record in synthetic(seeds=1)]
    one, two = (write_report(records, tmp_path / name, "Quickstart") for name in "ab")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
    assert len(one) > 10


def test_numbers_on_the_page_are_those_of_the_records(report):
    shown = " ".join(Outline(report[0][0].read_text("utf-8")).text)
    for row in shape_table(both()):
        for quality in row.qualities.values():
            assert text.quality(quality.mean, quality.sd) in shown


# --- records of any kind -------------------------------------------------------------------------
BARE = [dataclasses.replace(r, metrics=(), curve=()) for r in synthetic(seeds=1)]


@pytest.mark.parametrize(("records", "phrase"), [
    ([], "No finished runs"),
    ([], "No trial has ended yet"),
    ([small(synthetic()[0])], "1 shape of vision_vit, 1 training seed."),
    (synthetic(status="failed", environment={"error": "out of memory"}), "out of memory"),
    (synthetic(status="diverged"), "No finished runs"),
    (BARE, "No transfer was measured"),
    (BARE, "No learning curves were recorded"),
    (synthetic(seeds=1, costs={}), "params_non_embedding is missing"),
    (synthetic(seeds=1, costs={"params_non_embedding": 1.0}),
     "step_time_s was not measured: it needs 20 timed training steps"),
    (synthetic(seeds=1, costs={"params_non_embedding": 0.0}), "Not drawn: up to 6 shapes"),
    ([small(r) for r in synthetic(seeds=1, shape={})], "Pareto-efficient"),
    ([small(synthetic()[0]), *synthetic("b", status="failed")], "No finished runs."),
])
def test_any_records_make_a_report(tmp_path, records, phrase):
    written = write_report(records, tmp_path, "t")[0].read_text("utf-8")
    assert phrase in " ".join(Outline(written).text)


def test_many_runs_make_a_report_of_bounded_size(tmp_path):
    record = synthetic(seeds=1)[0]
    records = [dataclasses.replace(
        record, key=str(i), name=f"tiny-dm{i}", curve=record.curve[:2], metrics=(MetricRow(
            "upstream", "", "loss", "min", 1 + math.sin(i)),),
        costs={"params_non_embedding": 1000.0 + i}) for i in range(3000)]
    start = time.process_time()
    files = write_report(records, tmp_path, "many")
    assert time.process_time() - start < 20
    assert files[0].stat().st_size < 3e6
    shown = " ".join(Outline(files[0].read_text("utf-8")).text)
    assert shown.count("2,500 more rows not shown") == 2  # shapes and runs
    assert "claims: are made of fewer shapes (got 3000" in shown
    assert re.search(r"Not drawn: up to 2,\d{3} shapes", shown)


def test_a_report_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_report([], tmp_path / "file", "t")


# --- names are data ------------------------------------------------------------------------------
def _renamed(name):
    record = small(synthetic(seeds=1)[0], task=name)
    return dataclasses.replace(
        record, name=name, modality=name, architecture=name, study=name, flop_convention=name,
        environment={"device": name, "host": name, "error": name},
        metrics=(record.metrics[1], MetricRow("upstream", "", name, "min", 0.5)),
        curve=(CurvePoint("upstream", 1, f"{name}/loss", 1.0),))


def test_a_hostile_name_computes_nothing_in_a_spreadsheet(tmp_path):
    for name in [n for n in HOSTILE if n.strip() and n != "\uffff"]:
        records = [_renamed(name), dataclasses.replace(
            _renamed(name), seed=1, key=name + "1", name="-" + name)]
        for file in write_report(records, tmp_path, name):
            if file.suffix == ".csv":
                raw = file.read_text("utf-8")
                assert "\0" not in raw
                for row in csv.reader(io.StringIO(raw)):
                    for cell in row:
                        assert not cell.startswith(("=", "+", "@", "\t", "\r")), (file, cell)
                        assert not cell.startswith("-") or _is_number(cell), (file, cell)


def _is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _page_outline(name, folder):
    outline = Outline(write_report([_renamed(name)], folder, name)[0].read_text("utf-8"))
    # Whether a label fits, and how many lines a name takes, is layout.
    return [tag for tag in outline.tags if tag[0] not in {"text", "tspan"}], outline.text


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    return _page_outline("x", tmp_path_factory.mktemp("harmless"))[0]


@pytest.mark.parametrize("name", [n for n in HOSTILE if n.strip() and n not in "\uffff\ud800"])
def test_a_hostile_name_changes_no_tag(tmp_path, harmless, name):
    tags, shown = _page_outline(name, tmp_path / "hostile")
    assert tags == harmless
    assert not set(map(ord, "\x00\x1b\u202e")) & set(map(ord, "".join(shown)))
    assert all(path.parent == tmp_path / "hostile" for path in (tmp_path / "hostile").iterdir())


@pytest.mark.parametrize("name", ["", "\uffff", "\u202e", "\ud800"])
def test_a_name_of_nothing_visible_makes_a_report(tmp_path, name):
    assert write_report([_renamed(name)], tmp_path, name)[0].stat().st_size > 10_000


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=300))
@example("".join(HOSTILE))
def test_escaped_text_is_inert_and_visible(name):
    escaped = text.escape(name)
    assert len(text.plain(name)) <= 200
    assert not re.search(r"[<>\"']|&(?!(amp|lt|gt|quot|#x27);)", escaped)
    outline = Outline(f'<p title="{escaped}">{escaped}</p>')
    assert outline.tags == [("p", ("title",))]
    assert "".join(outline.text) == text.plain(name)
    assert text.plain(text.plain(name)) == text.plain(name)


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=80), unique=True))
@settings(max_examples=200, deadline=None)
@example(["a", "A", "../a", "a/", "con", "", ".", "x" * 300, "é", "e\u0301"])
def test_slugs_are_plain_file_names_that_never_meet(names):
    slugs = [slug(name) for name in names]
    assert all(re.fullmatch(r"[a-z0-9_-]{1,60}", found) for found in slugs)
    assert len(set(slugs)) == len(slugs)


# --- reductions ----------------------------------------------------------------------------------
def test_counts():
    nan = float("nan")
    done = dataclasses.replace(synthetic(seeds=1)[0], metrics=(
        MetricRow("upstream", "", "loss", "min", None),), curve=(
        CurvePoint("upstream", 1, "train/loss", nan), CurvePoint("upstream", 2, "train/loss", 1.0)))
    failed = dataclasses.replace(done, status="failed", metrics=(), curve=())
    counts = count_runs([failed, done], [done])
    assert counts.statuses == {"done": 1, "diverged": 0, "failed": 0, "preempted": 0}
    assert (counts.earlier_attempts, counts.non_finite) == (1, 2)


def test_mean_curves_by_hand():
    records = synthetic(seeds=3)[:3]
    curves = [((1, 4.0), (2, 2.0)), ((1, 6.0), (2, None)), ((1, 100.0),)]
    records = [dataclasses.replace(record, curve=tuple(
        CurvePoint("upstream", step, "train/loss", value) for step, value in points))
        for record, points in zip(records, curves, strict=True)]
    records[2] = dataclasses.replace(records[2], status="diverged")
    curve, = mean_curves(records, shape_table(records))["train/loss"]
    assert (curve.label, curve.points, curve.seeds) == ("tiny", ((1, 5.0), (2, 2.0)), 2)


def test_transfer_stands_beside_its_baselines():
    records = synthetic(classes=4)
    table, = transfer_tables(records, shape_table(records))
    assert table.columns == ("few_shot@1", "few_shot@5", "few_shot@10", "fine_tune")
    assert {label for label, _ in table.rows} == set(SHAPES)
    baselines = dict(table.baselines)
    assert baselines["Chance"] == (0.25, 0.25, 0.25, 0.25)
    assert baselines["Majority class"] == pytest.approx((0.325,) * 4)
    raw = [row.value for record in records for row in record.metrics
           if (row.origin, row.shots, row.metric) == ("raw", 5, "accuracy")]
    assert baselines["Raw inputs"][1] == pytest.approx(sum(raw) / len(raw))
    assert baselines["Raw inputs"][3] is None
    for _, cells in table.rows:
        for pretrained, untrained in cells:
            assert pretrained.mean > untrained.mean
            assert pretrained.n == untrained.n == 2


# --- figures -------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_figures_are_valid_vega_lite():
    import altair

    records = synthetic()
    rows = shape_table(records)
    front_charts = [charts.front_chart(front) for front in fronts_of(records)[:1]]
    curve_charts = [charts.curve_chart(curves, name)
                    for name, curves in mean_curves(records, rows).items()]
    for chart in (*front_charts, *curve_charts):
        altair.Chart.from_dict(render.themed(chart)).to_dict()
    assert len(curve_charts) == 2


coordinates = st.tuples(st.integers(0, 292), st.integers(0, 208))


@settings(max_examples=100, deadline=None)
@given(st.lists(coordinates, min_size=1, max_size=20))
def test_labels_cover_neither_points_nor_each_other(points):
    names = dict.fromkeys(range(len(points)), "tiny-nl8")
    labels = charts.place_labels(points, names, (292, 208), [0.0] * len(points))
    boxes = []
    for i, label in labels.items():
        length = len("tiny-nl8") * charts.CHARACTER
        left = points[i][0] + label["dx"] - {"left": 0, "center": length / 2, "right": length}[
            label["align"]]
        middle = points[i][1] + label["dy"]
        boxes.append((left, middle - 7, left + length, middle + 7))
    for i, box in enumerate(boxes):
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in points)
        assert not any(charts._overlap(box, other) for other in boxes[:i])
    if len(points) == 1:
        assert len(labels) == 1


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-9, 1e24), st.floats(1.25, 1e6))
def test_log_ticks_are_within_the_axis(low, ratio):
    ticks = charts.log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 8
    assert all(low <= tick <= low * ratio for tick in ticks)
    assert ticks == sorted(set(ticks))


# --- numbers and the terminal --------------------------------------------------------------------
@pytest.mark.parametrize(("value", "shown"), [
    (0, "0"), (12, "12"), (999_999, "1M"), (1_234_567, "1.23M"), (2.5e9, "2.5G"), (1e15, "1P"),
    (None, "–"), (math.nan, "–"), (0.5, "0.5"), (-4000, "-4k"),
])
def test_counts_are_short(value, shown):
    assert text.count(value) == shown


def test_terminal_tables_show_every_front():
    console = Console(file=io.StringIO(), width=160)
    tables = pareto_tables(fronts_of(synthetic()))
    for table in tables:
        console.print(table)
    shown = console.file.getvalue()
    assert len(tables) == 6  # loss, accuracy, three numbers of shots, fine-tuned
    for name in SHAPES:
        assert shown.count(f" {name} ") == 6
    front = fronts_of(synthetic(), ["params_non_embedding"], [("upstream/loss", None)])[0]
    console = Console(file=io.StringIO(), width=160)
    console.print(pareto_tables([front])[0])
    rows = [line for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert [("●" in row) for row in rows] == [point.on_front for point in front.points]


@pytest.mark.parametrize("name", HOSTILE)
def test_terminal_tables_take_names_as_data(name):
    console = Console(file=io.StringIO(), width=400, force_terminal=False)
    for table in pareto_tables(fronts_of([_renamed(name)])):
        console.print(table)
    shown = console.file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", shown)
    if name == "[bold red]markup[/]":
        assert name in shown


@pytest.mark.parametrize("module", [summary, charts, page, text, sheets, explorer])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_no_fronts_no_tables():
    assert pareto_tables(fronts_of([])) == []
