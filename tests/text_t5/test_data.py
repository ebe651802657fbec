"""Corpus, vocabulary, sources and tasks, on the standard library that runs the tests."""

import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from deepnarrow.errors import InputError
from deepnarrow_text_t5 import corpus as corpus_module
from deepnarrow_text_t5 import sources
from deepnarrow_text_t5.cache import cached
from deepnarrow_text_t5.corpus import CLASSES, Document, load_corpus, make_corpus, normalise
from deepnarrow_text_t5.options import default_data_options, default_options
from deepnarrow_text_t5.sources import open_data, prepare, upstream
from deepnarrow_text_t5.spans import corrupt, lengths_of_inputs, noise_mask
from deepnarrow_text_t5.tasks import tasks
from deepnarrow_text_t5.vocabulary import (
    EOS_ID,
    MIN_PIECES,
    PAD_ID,
    UNK_ID,
    table_size,
    train_vocabulary,
)


@pytest.fixture(scope="module", autouse=True)
def _fresh_cache(tmp_path_factory):
    """Everything is made once for this file, in a cache of its own."""
    # What files before this one made in the same process was not written there.
    load_corpus.cache_clear()
    sources._open.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPNARROW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def settings():
    options = default_data_options()
    options.num_pieces = 1024
    return options


@pytest.fixture(scope="module")
def data(settings):
    return open_data(settings)


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


@pytest.fixture(scope="module")
def pretraining(settings):
    return upstream(settings, default_options())


@pytest.fixture(scope="module")
def task(settings):
    return tasks(settings, default_options())["stdlib_module"]


# --- corpus --------------------------------------------------------------------------------------
def test_corpus_is_large_enough_and_balanced(corpus):
    assert sum(map(len, corpus.train)) > 1_000_000
    labels = [label for rows in corpus.labelled.values() for _, label in rows]
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert counts.min() >= 100
    assert counts.max() / counts.sum() < 0.25
    assert np.bincount([label for _, label in corpus.labelled["train"]]).min() >= 50


def test_no_evaluated_document_is_trained_on(corpus):
    for split in ("validation", "test"):
        hidden = {normalise(text) for text, _ in corpus.labelled[split]}
        assert not hidden.intersection(map(normalise, corpus.train + corpus.validation))
    texts = [normalise(text) for text in corpus.train + corpus.validation]
    assert len(set(texts)) == len(texts)
    rows = [normalise(text) for split in corpus.labelled.values() for text, _ in split]
    assert not {t for t in rows if any(name in t for name in CLASSES)}


def test_texts_that_begin_alike_are_in_one_split(corpus, task):
    begun = {split: {normalise(text)[:48] for text, _ in rows}
             for split, rows in corpus.labelled.items()}
    assert not begun["train"] & begun["test"] | begun["train"] & begun["validation"]
    inputs = {}
    for split in ("train", "test"):  # as the model sees them, cut
        source = task.examples(split)
        inputs[split] = {source.load(i, np.random.default_rng(0))["inputs"].tobytes()
                         for i in range(source.num_examples)}
    assert not inputs["train"] & inputs["test"]


def documents():
    """More than enough for every class, all texts different."""
    return [Document(name, f"about thing {i} of part {name[::-1]} here") for name in CLASSES
            for i in range(120)]


def test_duplicates_go_to_one_place_and_ambiguous_texts_have_no_label():
    base = make_corpus(documents())
    twice = make_corpus(documents() + [
        Document(d.module, d.text.upper().replace(" ", "\n  ")) for d in documents()])
    assert twice == base
    both = "Something that two packages say alike."
    shared = make_corpus([*documents(), Document("email", both), Document("xml", both)])
    assert both in shared.train + shared.validation
    assert shared.labelled == base.labelled


def test_upstream_and_evaluated_texts_are_apart_by_construction():
    corpus = make_corpus(documents())
    upstream_texts = set(corpus.train + corpus.validation)
    train = {text for text, _ in corpus.labelled["train"]}
    evaluated = {text for s in ("validation", "test") for text, _ in corpus.labelled[s]}
    assert upstream_texts == train
    assert len(train) + len(evaluated) == len(documents())


def test_docstrings_are_parsed_not_run(tmp_path):
    (tmp_path / "email").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "email" / "a.py").write_text(
        '"""Module\n\n    text."""\nraise SystemExit\n\n\nclass A:\n    """Class text."""\n\n'
        '    def f(self):\n        """Function text."""\n\n    def g(self): "\\d"\n')
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "test" / "b.py").write_text('"""Not wanted."""')
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'b': 'Two', 'a': 'One'}")
    assert corpus_module.read_documents(tmp_path) == [
        Document("email", "Module\n\ntext."), Document("email", "Class text."),
        Document("email", "Function text."), Document("email", "\\d"),
        Document("topics", "One"), Document("topics", "Two")]


def test_a_stripped_standard_library_is_an_error():
    with pytest.raises(InputError, match=r"too few docstrings of package 'xml'.*complete standard"):
        make_corpus([d for d in documents() if d.module != "xml"])


def test_an_unknown_source_is_an_error(settings):
    options = default_data_options()
    options.source = "web"
    with pytest.raises(InputError, match="source is unknown"):
        open_data(options)


# --- vocabulary ----------------------------------------------------------------------------------
def test_vocabulary_ids(data, corpus):
    vocabulary = data.vocabulary
    assert (vocabulary.vocab_size, vocabulary.table_size) == (1124, 1152)
    assert vocabulary.first_sentinel == 1123
    ids = vocabulary.encode_all(corpus.train[:500])
    flat = np.concatenate(ids)
    assert flat.min() > UNK_ID  # byte fallback: nothing is unknown, nothing is padding
    assert flat.max() < 1024
    assert ids[7] == vocabulary.encode(corpus.train[7])
    assert table_size(32_000) == 32_128


@pytest.mark.parametrize("text", ["Return the loop.", "naïve 中文 😀 \\d{3}", "a_b(c)[0]"])
def test_vocabulary_loses_nothing_but_white_space(data, text):
    ids = data.vocabulary.encode(text)
    assert data.vocabulary.decode([*ids, EOS_ID, 5, 6]) == text
    assert data.vocabulary.decode([PAD_ID, data.vocabulary.first_sentinel, *ids]) == text


def test_training_the_vocabulary_is_deterministic(corpus):
    texts = corpus.train[:1500]
    assert train_vocabulary(texts, MIN_PIECES) == train_vocabulary(texts, MIN_PIECES)


@pytest.mark.parametrize(("texts", "pieces", "message"), [
    (["text"], 100, "num_pieces is out of range"), (["text"], 1000, "cannot train"),
    ([], 1000, "cannot train")])
def test_a_vocabulary_that_cannot_be_is_an_error(texts, pieces, message):
    with pytest.raises(InputError, match=message):
        train_vocabulary(texts, pieces)


# --- upstream ------------------------------------------------------------------------------------
def test_upstream_decides_the_models_options(pretraining):
    assert pretraining.options["vocab_size"] == 1152
    assert (pretraining.options["input_length"], pretraining.options["target_length"]) == (64, 14)
    example = pretraining.train.load(3, np.random.default_rng(0))
    assert {name: (a.shape, a.dtype) for name, a in example.items()} == {
        "inputs": ((64,), np.int32), "targets": ((14,), np.int32)}
    assert pretraining.train.num_examples > 20 * pretraining.validation.num_examples / 2 > 100


def test_training_corruption_follows_the_rng_and_evaluation_is_fixed(pretraining):
    def load(source, seed):
        return source.load(5, np.random.default_rng(seed))["inputs"].tolist()

    assert load(pretraining.train, 1) == load(pretraining.train, 1) != load(pretraining.train, 2)
    assert load(pretraining.validation, 1) == load(pretraining.validation, 2)


def test_segments_are_the_packed_corpus(pretraining, data, corpus):
    """Inputs and targets put together are consecutive documents, each ended by EOS."""
    vocabulary = data.vocabulary
    example = pretraining.validation.load(0, np.random.default_rng(0))
    spans, text = {}, []
    for token in example["targets"][:-1].tolist():
        if token >= vocabulary.num_pieces:
            spans[token] = []
        else:
            spans[max(spans, key=lambda s: -s)].append(token)
    for token in example["inputs"][:-1].tolist():
        text += spans.get(token, [token])
    assert len(text) == data.lengths.raw
    first = text[:text.index(EOS_ID)] if EOS_ID in text else text
    starts = [ids[:len(first)] for ids in vocabulary.encode_all(corpus.validation)]
    assert first in starts


def test_what_was_made_once_is_read_again(settings, pretraining, task):
    """Another process finds the cache, trains nothing, and has the same content."""
    code = (
        "import deepnarrow_text_t5.vocabulary as v, deepnarrow_text_t5.corpus as c\n"
        "def fail(*_): raise SystemExit('made again')\n"
        "v.train_vocabulary = c.read_documents = fail\n"
        "from deepnarrow_text_t5 import plugin, options\n"
        "(m,) = plugin.deepnarrow_register_modalities()\n"
        "d = options.default_data_options(); d.num_pieces = 1024\n"
        "u = m.upstream(d, m.options); t = m.tasks(d, m.options)['stdlib_module']\n"
        "print(u.train.content_hash, u.validation.content_hash, t.examples('test').content_hash)\n")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True,
                          check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert printed.split() == [pretraining.train.content_hash, pretraining.validation.content_hash,
                               task.examples("test").content_hash]


def test_the_standard_library_prepared_is_the_same(settings, pretraining, tmp_path):
    facts = prepare(settings, tmp_path / "store", lambda *_: None)
    stored = default_data_options()
    stored.update({"source": facts["source"]})
    prepared = upstream(stored, default_options())
    for one, same in ((prepared.train, pretraining.train),
                      (prepared.validation, pretraining.validation)):
        assert one.num_examples == same.num_examples
        for index in range(0, one.num_examples, 50):
            made = [s.load(index, np.random.default_rng(index)) for s in (one, same)]
            assert (made[0]["inputs"] == made[1]["inputs"]).all()
            assert (made[0]["targets"] == made[1]["targets"]).all()


def test_examples_of_the_default_never_change():
    """Records name their data by these hashes: raise `trialkey.REVISION` where this must change.

    The bytes are of fixed tokens, as the standard library differs between versions of Python.
    """
    lengths = lengths_of_inputs(64)
    tokens = np.arange(3, 3 + lengths.raw, dtype=np.int32)
    rng = np.random.default_rng((0, 0))
    inputs, targets = corrupt(tokens, noise_mask(lengths, rng), first_sentinel=1123, eos_id=1)
    assert hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest() == (
        "2199fbc20d041ba518a36a27fbff55c03a6c4f1ce1b29ea0dcf7d3095b238e11")


def test_content_hash_follows_the_options(settings, pretraining):
    longer = default_data_options()
    longer.update({"num_pieces": 1024, "input_length": 96})
    assert upstream(longer, default_options()).train.content_hash != pretraining.train.content_hash


@pytest.mark.parametrize(("name", "value", "message"), [
    ("input_length", 4, "input_length is too small"), ("input_length", 5000, "more sentinels"),
    ("num_pieces", 10, "num_pieces is out of range")])
def test_bad_data_options_are_named(name, value, message):
    options = default_data_options()
    options[name] = value
    with pytest.raises(InputError, match=message):
        upstream(options, default_options())


# --- cache ---------------------------------------------------------------------------------------
def test_a_damaged_cache_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path))
    assert cached("x", "key", lambda: b"content") == b"content"
    (path,) = pathlib.Path(tmp_path, "text_t5").iterdir()
    assert cached("x", "key", lambda: b"other") == b"content"
    path.write_bytes(path.read_bytes()[:-1])
    assert cached("x", "key", lambda: b"again") == b"again"


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set DEEPNARROW_CACHE"):
        cached("x", "key", lambda: b"content")


# --- tasks ---------------------------------------------------------------------------------------
def test_task_examples(task, data, corpus):
    source = task.examples("test")
    example = source.load(0, np.random.default_rng(0))
    assert {name: (a.shape, a.dtype) for name, a in example.items()} == {
        "inputs": ((64,), np.int32), "targets": ((14,), np.int32), "label": ((), np.int32)}
    text, label = corpus.labelled["test"][0]
    assert example["label"] == label == source.labels()[0]
    assert data.vocabulary.decode(example["targets"].tolist()) == CLASSES[label]
    said = data.vocabulary.decode(example["inputs"].tolist())
    assert said.startswith("stdlib module: ")
    assert " ".join(text.split()).startswith(said.removeprefix("stdlib module: ")[:20])
    sizes = [task.examples(split).num_examples for split in ("train", "validation", "test")]
    assert sizes == [len(rows) for rows in corpus.labelled.values()]


def test_candidates_are_the_labels_words(task):
    source = task.examples("test")
    rows = [source.load(i, np.random.default_rng(0)) for i in range(5)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    (name, targets), = task.candidates(batch).items()
    assert name == "targets"
    assert targets.shape == (5, len(CLASSES), *rows[0]["targets"].shape)
    assert task.num_classes == len(CLASSES)
    for words, row in zip(targets, rows, strict=True):
        assert (words[row["label"]] == row["targets"]).all()
        assert len({tuple(word) for word in words}) == len(CLASSES)


def test_bag_of_pieces_by_hand(task, data):
    bags = task.baseline("test")
    source = task.examples("test")
    assert bags.shape == (source.num_examples, data.vocabulary.table_size)
    prompt = data.vocabulary.encode("stdlib module: ")
    inputs = source.load(3, np.random.default_rng(0))["inputs"].tolist()[len(prompt):]
    for piece in range(data.vocabulary.table_size):
        count = 0 if piece in (PAD_ID, EOS_ID) else inputs.count(piece)
        assert bags[3, piece] == pytest.approx(np.log1p(count), abs=1e-6)


def test_score(task):
    log_likelihoods = np.full((3, 6), -9.0)
    log_likelihoods[[0, 1, 2], [4, 0, 2]] = -1.0
    scores = task.score(log_likelihoods, np.array([4, 1, 2]))
    assert scores.metrics == {"accuracy": pytest.approx(2 / 3)}
    assert scores.per_example.tolist() == [1.0, 0.0, 1.0]


def test_unknown_split_is_an_error(task):
    with pytest.raises(InputError, match=r"no such split.*train, validation, test"):
        task.examples("dev")


def test_building_tasks_reads_nothing_and_the_plugin_imports_no_jax(tmp_path):
    code = (
        "import sys\n"
        "from deepnarrow_text_t5 import plugin\n"
        "(m,) = plugin.deepnarrow_register_modalities()\n"
        "m.tasks(m.data_options, m.options)\n"
        "m.count_frame(m.presets['tiny'].shape, m.options)\n"
        "print([n for n in ('jax', 'flax', 'sentencepiece') if n in sys.modules])\n")
    env = {**os.environ, "DEEPNARROW_CACHE": str(tmp_path / "cache")}
    printed = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True,
                             check=True, env=env).stdout
    assert printed.strip() == "[]"
    assert not (tmp_path / "cache").exists()
