"""The study at small scale: its rungs cost the same, and what it holds out is nowhere upstream."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import itertools
import json
import pathlib
import sys

import pytest

from deepnarrow.assemble import count_costs
from deepnarrow.config import load_config, resolve_options
from deepnarrow.cost import summarize
from deepnarrow.ops import resolve
from deepnarrow.plugins import registry

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "studies"
PEPTIDES = pathlib.Path(__file__).parents[1] / "third_party" / "deepnarrow_peptides"
# By how much shapes of one rung may differ in parameters, which make a rung, and in FLOPs of a
# forward pass: attention makes deep shapes dearer, logits wide ones. The study compares at both.
SAME_PARAMS, SAME_FLOPS = 0.025, 0.15
OPTIONS = {
    "text_t5": {"vocab_size": 2176, "input_length": 64, "target_length": 14},
    "vision_vit": {"patch_size": 7, "image_size": 28, "channels": 1, "num_classes": 10},
    "peptides": {"length": 48},
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


CONFIG = load("deepnarrow_small_scale")
PREPARE = load("prepare_deepnarrow_small_scale")


# --- shapes --------------------------------------------------------------------------------------
@pytest.fixture
def modalities(monkeypatch):
    """The three modalities by name, with the prefix of their shapes."""
    monkeypatch.syspath_prepend(PEPTIDES)
    plugin = importlib.import_module("deepnarrow_peptides.plugin")
    found = registry()
    yield {"text_t5": ("micro", found.modality("text_t5")),
           "vision_vit": ("tiny", found.modality("vision_vit")),
           "peptides": ("tiny", plugin.deepnarrow_register_modalities()[0])}
    for name in [name for name in sys.modules if name.startswith("deepnarrow_peptides")]:
        del sys.modules[name]


def cost(modalities, domain, shape):
    prefix, modality = modalities[domain]
    found = registry()
    named = resolve(f"{prefix}-{shape}", found.vocabulary(modality))
    assert named.name == f"{prefix}-{shape}"  # what a record calls it, in every domain alike
    options = resolve_options(modality.options, OPTIONS[domain], "options")
    return summarize(count_costs(modality, found.architecture("transformer"), named.shape, options))


@pytest.mark.parametrize("domain", OPTIONS)
def test_shapes_of_a_rung_cost_the_same_and_rungs_double(modalities, domain):
    rungs = [[cost(modalities, domain, shape) for shape in rung] for rung in CONFIG.RUNGS]
    for rung in rungs:
        params = [one.params_non_embedding for one in rung]
        flops = [one.flops_forward_per_example for one in rung]
        assert max(params) / min(params) < 1 + SAME_PARAMS
        assert max(flops) / min(flops) < 1 + SAME_FLOPS
        assert max(params) <= 1e6
    sizes = [cost(modalities, domain, CONFIG.BASE).params_non_embedding,
             *(rung[0].params_non_embedding for rung in rungs)]
    ratios = [b / a for a, b in itertools.pairwise(sizes)]
    assert ratios == pytest.approx([2] * 3, rel=0.025)
    beyond = cost(modalities, domain, CONFIG.BEYOND).params_non_embedding
    # 0.8 of its cost is what the largest shapes cost: DeepNarrow's test stays inside the reference.
    assert beyond >= max(one.params_non_embedding for one in rungs[-1]) / 0.8


def test_every_domain_has_the_same_shapes_settings_and_enough_of_them():
    config = load_config(FOLDER / "deepnarrow_small_scale.py", [])
    assert len(set(CONFIG.SHAPES)) == len(CONFIG.SHAPES) == 13
    assert len(config.seeds) >= 3
    for study in config.modalities.values():
        assert tuple(shape.split("-", 1)[1] for shape in study.shapes) == CONFIG.SHAPES
        assert study.protocol.budget.kind == "examples"
        assert study.protocol.tune is not None
    # Tuned in one way: as many rates, as far apart, as long.
    tunes = [study.protocol.tune for study in config.modalities.values()]
    assert len({(len(tune.learning_rates), tune.learning_rates[1] / tune.learning_rates[0],
                 tune.seeds, tune.fraction, tune.extend) for tune in tunes}) == 1


def test_a_part_of_seeds_and_domains_is_a_part_of_the_study(monkeypatch):
    whole = load_config(FOLDER / "deepnarrow_small_scale.py", [])
    monkeypatch.setenv("DEEPNARROW_SEEDS", "0")
    monkeypatch.setenv("DEEPNARROW_DOMAINS", "peptides,text_t5")
    part = load_config(FOLDER / "deepnarrow_small_scale.py", [])
    assert part.seeds == (0,)
    assert part.modalities == {name: whole.modalities[name] for name in ("peptides", "text_t5")}


# --- data ----------------------------------------------------------------------------------------
def write_gzip(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def sources(tmp_path):
    """A made-up copy of the sources, with the same text in places that must not share a split."""
    novels = []
    for title in ("EMMA", "MANSFIELD PARK", "Persuasion"):
        novels.append(f"{title}\n\nby Jane Austen\n\n")
        for chapter in range(1, 40):
            words = " ".join(f"{title.lower()} said word{i}" for i in range(8))
            novels.append(f"CHAPTER {chapter}.\n\n{words} in {chapter}\n\n\n  Again\n and again, "
                          f"she said so {' '.join(map(str, range(15)))}.\n\n")
    write_gzip(tmp_path / "text/austen.txt.gz", "".join(novels))
    write_gzip(tmp_path / "text/kjv.txt.gz", "\n".join(
        [f"And he begat son number {i}." for i in range(60)]
        + [f"A KIND, of thing; number {i}!" for i in range(60)]))
    rows = [{"synset": f"s{i}", "lex": (5, 6, 0)[i % 3], "lemma": f"lemma_{i}",
             "gloss": f'a kind of thing: number {i // 2}; "an example of {i}"'} for i in range(240)]
    write_gzip(tmp_path / "text/wordnet_glosses.jsonl.gz",
               "".join(f"{json.dumps(row)}\n" for row in rows))
    peptides = tmp_path / "peptides/amp_vs_uniprot.csv"
    peptides.parent.mkdir()
    peptides.write_text("4,1,x\nACD, 1\nacd,1\nKKL, 0\nKKL, 1\nWWW, 0\n")
    for name in PREPARE.IMAGES:
        write_gzip(tmp_path / name / "images-idx3-ubyte.gz", "pixels")
    return tmp_path


def read(out, name):
    lines = gzip.decompress((out / f"{name}.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line)["text"] for line in lines]


def check_disjoint(out):
    """No held-out text is upstream or in another split, whatever its case and punctuation."""
    written = read(out, "upstream_train") + read(out, "upstream_validation")
    # A gloss stands upstream behind its lemma and before its examples.
    glosses = [PREPARE.definition_of(text.partition(": ")[2]) for text in written]
    upstream = {PREPARE.normalised(text) for text in written + glosses}
    for task in ("gloss_class", "novel"):
        texts = {split: [PREPARE.normalised(text) for text in read(out, f"{task}_{split}")]
                 for split in PREPARE.SPLITS}
        everything = [text for split in texts.values() for text in split]
        assert len(set(everything)) == len(everything)
        assert all(texts.values())
        assert not upstream & {*texts["validation"], *texts["test"]}
        assert upstream & {*texts["train"]}


def test_held_out_texts_are_nowhere_upstream(sources, tmp_path):
    PREPARE.prepare(sources, tmp_path / "out")
    check_disjoint(tmp_path / "out")


def test_synsets_with_one_definition_stay_together():
    splits = {PREPARE.split_of(PREPARE.place("synset", PREPARE.normalised(text)), PREPARE.SYNSETS)
              for text in ("A thing; or two", "a thing (or two)", "a  THING, or two.")}
    assert len(splits) == 1


def test_a_chapter_is_in_one_split_and_titles_begin_novels(sources):
    chapters = {}
    upstream, task = PREPARE.read_novels(sources / "text/austen.txt.gz")
    for row in task:
        if "again" not in row.text:
            chapters.setdefault((row.label, row.text.split()[-1]), set()).add(row.split)
    assert {novel for novel, _ in chapters} == {"emma", "mansfield", "persuasion"}
    assert len(chapters) == 117
    assert all(len(splits) == 1 for splits in chapters.values())
    assert {split for splits in chapters.values() for split in splits} == set(PREPARE.SPLITS)
    assert not set(upstream) & {row.text for row in task
                                if row.split != "train" and "again" not in row.text}


def test_the_same_sources_give_the_same_bytes_and_peptides_once(sources, tmp_path):
    counts = [PREPARE.prepare(sources, tmp_path / name) for name in ("one", "two")]
    assert counts[0] == counts[1]
    files = sorted(p for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert {p.name for p in files} >= {"peptides.csv", "upstream_train.jsonl.gz"}
    for path in files:
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()
    # One sequence stands with both labels, one twice.
    assert (tmp_path / "one/peptides.csv").read_text() == "sequence,label\nACD,1\nWWW,0\n"
