"""The report: whole, offline, readable with any records, and inert whatever names hold."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import math
import re
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from deepnarrow.errors import InputError
from deepnarrow.pareto import fronts, shape_table
from deepnarrow.records import CurvePoint, MetricRow, Record
from deepnarrow.report import charts, text, write_report
from deepnarrow.report.page import slug
from deepnarrow.report.tables import count_runs, mean_curves, transfer_tables
from deepnarrow.report.terminal import pareto_tables

# name -> (layers, d_model, d_ff): one deep-narrow and one shallow-wide shape of about equal cost.
SHAPES = {"tiny": (2, 64, 256), "tiny-nl4": (4, 64, 256), "tiny-nl12-dm48-ff192": (12, 48, 192),
          "tiny-nl2-dm128-ff512": (2, 128, 512), "tiny-nl8-dm96": (8, 96, 256)}
HOSTILE = [
    "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<b>bold</b>",
    "javascript:alert(1)", "\x1b[31mred\x1b[0m", "[bold red]markup[/]", "\u202eevil", "=HYPERLINK(1)",
    "a\x00b\nc\td", "&amp;lt;", "'; DROP TABLE records; --", "x" * 1000, "{datum.y}", "\ud800",
    "\uffff", "]]>", "",
]


def synthetic(modality="vision_vit", seeds=2, loss=0.4, classes=10, stacks=1, **fields):
    """Records of five shapes that learn a little better the deeper and the larger they are."""
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
                f"{modality}/{name}/{seed}", "quickstart", modality, "transformer", name, shape, seed,
                "done", {}, {
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


def both():
    return synthetic() + synthetic("text_t5", loss=3.1, classes=4, stacks=2)


class Outline(html.parser.HTMLParser):
    """The tags of a page with their attributes' names, and its visible text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.ids = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(both(), folder, "Quickstart"), folder


# --- the page --------------------------------------------------------------------------------------
def test_the_report_is_a_page_and_its_figures(report):
    files, folder = report
    assert [file.name for file in files] == [
        "report.html", "fronts-text_t5.png", "curves-text_t5.png", "fronts-vision_vit.png",
        "curves-vision_vit.png"]
    assert sorted(files) == sorted(folder.iterdir())
    for file in files[1:]:
        image = np.asarray(Image.open(file).convert("L"))
        assert image.shape[1] > 1500
        assert (image < 128).sum() > 2000  # ink: axes, labels and lines were drawn


def test_the_page_is_self_contained_and_small(report):
    page = report[0][0].read_text("utf-8")
    assert len(page) < 3e6
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|\bhref=|<script|<link", page, re.I)
    outline = Outline(page)
    assert ("meta", ("http-equiv", "content")) in outline.tags
    assert len(outline.ids) == len(set(outline.ids))


def test_the_page_draws_every_front_and_curve(report):
    outline = Outline(report[0][0].read_text("utf-8"))
    # Two modalities x (2 upstream + probe at most shots + fine-tuned) x 3 costs, and 2 x 2 curves.
    assert sum(tag == "svg" for tag, _ in outline.tags) == 2 * 4 * 3 + 2 * 2
    shown = " ".join(outline.text)
    for phrase in ("Quickstart", "text_t5", "vision_vit", "Upstream loss", "5-shot probe accuracy",
                   "Raw inputs", "Majority class", "Chance", "untrained", "Median step time (ms)",
                   "Forward FLOPs per example", "Non-embedding parameters", *SHAPES):
        assert phrase in shown, phrase


def test_the_same_records_give_the_same_bytes(report, tmp_path):
    again = write_report(both(), tmp_path, "Quickstart")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in report[0]]


def test_numbers_on_the_page_are_those_of_the_records(report):
    shown = " ".join(Outline(report[0][0].read_text("utf-8")).text)
    for row in shape_table(both()):
        for quality in row.qualities.values():
            assert text.quality(quality.mean, quality.sd) in shown


# --- records of any kind ---------------------------------------------------------------------------
def _no_metrics(records):
    return [dataclasses.replace(record, metrics=(), curve=()) for record in records]


@pytest.mark.parametrize(("records", "phrase"), [
    ([], "No finished runs"),
    (synthetic(seeds=1)[:1], "1 shape"),
    (synthetic(status="failed", environment={"error": "out of memory"}), "out of memory"),
    (synthetic(status="diverged"), "No finished runs"),
    (_no_metrics(synthetic(seeds=1)), "No transfer was measured"),
    (_no_metrics(synthetic(seeds=1)), "No learning curves were recorded"),
    (synthetic(seeds=1, costs={}), "No finite cost" if False else "for want of a finite cost"),
    (synthetic(seeds=1, costs={"params_non_embedding": 0.0}), "are not drawn"),
    (synthetic(seeds=1, shape={}), "Pareto-efficient"),
    ([*synthetic(seeds=1), *synthetic("b", status="failed")], "No finished runs."),
], ids=str.__call__ if False else None)
def test_any_records_make_a_report(tmp_path, records, phrase):
    page = write_report(records, tmp_path, "t")[0].read_text("utf-8")
    assert phrase in " ".join(Outline(page).text)
