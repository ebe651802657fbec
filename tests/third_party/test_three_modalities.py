"""One study, one store, one report: text, vision, and a stranger's modality."""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import io
import pathlib
import sys

import pytest

from deepnarrow.config import load_config
from deepnarrow.plugins import GROUP, load_plugins
from deepnarrow.store import Store
from deepnarrow.study import run_study

ROOT = pathlib.Path(__file__).parents[2]
PEPTIDES = pathlib.Path(__file__).parent / "deepnarrow_peptides"
# Sizes for seconds: one shape a modality, a few steps, no probes but one.
SMALL = ["seeds=(0,)", "modalities.text_t5.shapes=('micro-nl1-dm16-ff16-kv8-nh2',)",
         "modalities.vision_vit.shapes=('tiny-nl1-dm16-ff16-kv8-nh2',)",
         "modalities.peptides.shapes=('tiny-nl1-dm16-ff16-kv8-nh2',)",
         *(f"modalities.{name}.protocol.{setting}" for name in ("text_t5", "vision_vit", "peptides")
           for setting in ("budget.amount=16", "batch_size=8", "few_shot.seeds=1",
                           "fine_tune.examples=16", "fine_tune.batch_size=8"))]


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.syspath_prepend(PEPTIDES)
    yield load_plugins([p for p in importlib.metadata.entry_points(group=GROUP)
                        if p.name in ("text_t5", "vision_vit")],
                       extra=[importlib.import_module("deepnarrow_peptides.plugin")], strict=True)
    for name in [name for name in sys.modules if name.startswith("deepnarrow_peptides")]:
        del sys.modules[name]


def test_three_modalities_stand_in_one_report(registry, tmp_path):
    config = load_config(ROOT / "configs" / "three_modalities.py", SMALL)
    summary = run_study(config, tmp_path / "run", registry)
    assert dict(summary.counts) == {"done": 3}
    with Store(tmp_path / "run" / "records.sqlite", read_only=True) as store:
        records = {record.modality: record for record in store.records()}
    assert set(records) == {"text_t5", "vision_vit", "peptides"}
    for record in records.values():
        stages = {row.stage for row in record.metrics if row.value is not None}
        assert stages == {"upstream", "few_shot", "fine_tune"}
    report = tmp_path / "run" / "report"
    page = (report / "report.html").read_text()
    assert all(name in page for name in records)
    tables = [list(csv.DictReader(io.StringIO(path.read_text())))
              for path in sorted(report.glob("*.csv"))]
    assert any({row.get("modality") for row in rows} == set(records) for rows in tables)


def test_the_config_has_the_same_questions_in_every_modality():
    config = load_config(ROOT / "configs" / "three_modalities.py", [])
    for study in config.modalities.values():
        base, deep, wide = study.shapes
        assert (deep, wide) == (f"{base}-nl*2-dm*0.5", f"{base}-nl*0.5-dm*2")
    budgets = {study.protocol.budget for study in config.modalities.values()}
    assert len(budgets) == 1
