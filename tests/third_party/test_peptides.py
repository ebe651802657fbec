"""A stranger's modality by the public road only: it installs, counts, trains and transfers."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from deepnarrow.assemble import count_costs, make_model
from deepnarrow.cli import main
from deepnarrow.config import ModalityStudy, StudyConfig, resolve_options
from deepnarrow.modality import EXAMPLE_MASK
from deepnarrow.ops import CORE_OPS, resolve
from deepnarrow.plugins import load_plugins
from deepnarrow.protocol import Budget, FewShot, FineTune, OptimizerConfig, Protocol, RunOptions
from deepnarrow.store import Store
from deepnarrow.study import run_study
from deepnarrow.testing import Subject, check_modality

HERE = pathlib.Path(__file__).parent / "deepnarrow_peptides"
# Checks that compile next to nothing.
QUICK = ("registration", "imports_without_jax", "content_hash", "loading_is_a_function",
         "examples_have_one_form", "splits_share_no_example", "labels",
         "stream_is_one_for_all_hosts", "params_are_counted", "axes", "big_arrays_are_split",
         "operators_build", "depth_is_layers", "operators_change_what_they_claim",
         "flops_are_counted", "flops_grow_with_depth", "flops_grow_with_width")
SHAPES = ("tiny", "small", "tiny-nl8-dm32", "tiny-ff64", "tiny-kv8", "tiny-nh2", "tiny-sh",
          "tiny-skv", "tiny-nl*0.5")


@pytest.fixture(scope="module", autouse=True)
def on_path():
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def registry(on_path):
    return load_plugins([], extra=[importlib.import_module("deepnarrow_peptides.plugin")])


@pytest.fixture(scope="module")
def modality(registry):
    return registry.modality("peptides")


def model_of(registry, modality, text, **options):
    named = resolve(text, registry.vocabulary(modality))
    resolved = resolve_options(modality.options, options, "options")
    architecture = registry.architecture("transformer")
    return (make_model(modality, architecture, named.shape, resolved),
            count_costs(modality, architecture, named.shape, resolved))


def test_it_imports_nothing_private():
    for path in HERE.rglob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("from deepnarrow.", "import deepnarrow.")):
                assert "._" not in line
                assert "import _" not in line


@pytest.mark.parametrize("num_classes", [0, 2])
@pytest.mark.parametrize("text", SHAPES)
def test_the_closed_form_is_what_the_model_has(registry, modality, text, num_classes):
    model, costs = model_of(registry, modality, text, num_classes=num_classes)
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    assert {array.path: array.shape for array in costs.arrays} == {
        tuple(k.key for k in path): leaf.shape for path, leaf in leaves}


def test_every_operator_of_an_encoder_is_among_the_shapes():
    symbols = {op.symbol.lower() for op in CORE_OPS} - {"el", "dl", "dm", "shkv"}
    assert symbols <= {symbol for symbol in symbols if any(symbol in text for text in SHAPES)}


def test_padding_and_masked_examples_change_nothing(registry, modality):
    model, _ = model_of(registry, modality, "tiny-nl2")
    params = model.init(jax.random.key(0))
    drawn = np.random.default_rng(0)
    targets = drawn.integers(1, 21, (4, 32)).astype(np.int32)
    targets[:, 12:] = 0
    batch = {"inputs": np.where(drawn.random((4, 32)) < 0.2, 22, targets) * (targets > 0),
             "targets": targets, EXAMPLE_MASK: np.ones(4, np.float32)}
    whole = model.loss(params, batch, None, train=False)
    short = {k: v[:, :16] if v.ndim == 2 else v for k, v in batch.items()}
    np.testing.assert_allclose(model.features(params, batch), model.features(params, short),
                               rtol=2e-5, atol=2e-6)
    masked = {**batch, EXAMPLE_MASK: np.array([1, 1, 0, 0], np.float32)}
    half = model.loss(params, masked, None, train=False)
    first = model.loss(params, {k: v[:2] for k, v in batch.items()}, None, train=False)
    assert float(half.weight_sum) == float(first.weight_sum) == float(whole.weight_sum) / 2
    np.testing.assert_allclose(half.loss_sum, first.loss_sum, rtol=1e-5)


def test_no_sequence_is_in_two_splits_and_upstream_sees_none_of_the_test(modality):
    data = importlib.import_module("deepnarrow_peptides.data")
    peptides = data.read_peptides("")
    found = {split: {s for s, _ in data.select(peptides, share)}
             for split, share in data.SPLITS.items()}
    assert sum(map(len, found.values())) == len(peptides) == len(set.union(*found.values()))
    for share in data.UPSTREAM.values():
        assert {s for s, _ in data.select(peptides, share)} <= found["train"]
    labels = np.array([label for _, label in peptides])
    assert labels.mean() == 0.5


def test_a_bad_file_is_named(tmp_path, modality):
    data = importlib.import_module("deepnarrow_peptides.data")
    path = tmp_path / "bad.csv"
    path.write_text("2,1,x\nACDK, 1\nAC-K, 1\n")
    with pytest.raises(data.InputError, match=r"bad.csv' line 3: is no peptide"):
        data.read_peptides(str(path))
    with pytest.raises(data.InputError, match="cannot be read"):
        data.read_peptides(str(tmp_path / "absent.csv"))


def test_a_study_pretrains_probes_and_fine_tunes(registry, tmp_path, monkeypatch):
    monkeypatch.setattr("deepnarrow.report.write_report", lambda *_, **__: [])
    optimizer = OptimizerConfig("adamw", 3e-3, "constant")
    protocol = Protocol(
        batch_size=32, budget=Budget("steps", 150), optimizer=optimizer,
        few_shot=FewShot(("antimicrobial",), shots=(5, 25), seeds=2),
        fine_tune=FineTune(("antimicrobial",), examples=32 * 120, batch_size=32,
                           optimizer=optimizer))
    study = ModalityStudy("peptides", ("tiny-nl1-dm32",), protocol)
    config = StudyConfig("peptides", (0,), {"peptides": study}, RunOptions(log_every=50))
    assert dict(run_study(config, tmp_path, registry).counts) == {"done": 1}
    with Store(tmp_path / "records.sqlite", read_only=True) as store:
        (record,) = store.records()
    rows = {(row.stage, row.metric, row.origin, row.shots): row.value for row in record.metrics}
    assert rows["upstream", "loss", "pretrained", None] < np.log(20)  # better than any one guess
    tuned = rows["fine_tune", "accuracy", "pretrained", None]
    assert tuned > rows["fine_tune", "majority", "raw", None] + 0.15
    assert ("few_shot", "accuracy", "untrained", 25) in rows


def test_it_is_found_once_installed(tmp_path):
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
                    "--no-build-isolation", "--target", str(target), str(HERE)], check=True,
                   capture_output=True, timeout=120)
    code = "import sys; from deepnarrow.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(target), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code, "list", "--json"], env=environment,
                          capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert any(row["name"] == "peptides" for row in found["modalities"])
    assert any(row.get("distribution") == "deepnarrow-peptides" for row in found["plugins"])
    done = subprocess.run([sys.executable, "-c", code, "shape", "peptides", "tiny-nl8-dm32"],
                          env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    code = ("import sys; from deepnarrow.testing import make_subject, modality_checks\n"
            "for name, check in modality_checks(make_subject('peptides')):\n"
            "    if name in sys.argv[1:]: check(); print(name)")
    done = subprocess.run([sys.executable, "-c", code, *QUICK], env=environment,
                          capture_output=True, text=True, timeout=300, check=False)
    assert sorted(done.stdout.split()) == sorted(QUICK), done.stderr
    assert main(["shape", "peptides", "tiny"]) == 2  # and is not there without


@pytest.mark.slow
def test_it_keeps_every_promise(registry, modality):
    subject = Subject(modality, registry.architecture("transformer"), registry)
    results = check_modality(subject, on_fail="return")
    assert [(r.name, r.message) for r in results if r.outcome != "passed"] == []
