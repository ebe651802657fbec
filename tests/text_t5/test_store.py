"""The token store: what it holds, that a killed build goes on, that damage is found; examples."""

import gzip
import itertools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from deepnarrow.cli import main
from deepnarrow.data import TrainStream, eval_batches
from deepnarrow.errors import InputError
from deepnarrow.files import WorkdirLock
from deepnarrow_text_t5 import building, sources, store
from deepnarrow_text_t5.building import StoreSettings, build_store, end_to_end
from deepnarrow_text_t5.options import default_data_options, default_options
from deepnarrow_text_t5.sources import open_data, prepare, upstream
from deepnarrow_text_t5.spans import lengths_of_raw
from deepnarrow_text_t5.store import Tokens, open_store
from deepnarrow_text_t5.vocabulary import EOS_ID, PAD_ID, read_vocabulary, train_vocabulary

WORDS = ("the", "loop", "returns", "every", "object", "when", "called", "without", "argument")


def texts(count, seed=0):
    """Different documents of 3 to 60 words."""
    rng = random.Random(seed)
    return [f"Number {i}: " + " ".join(rng.choices(WORDS, k=rng.randint(3, 60)))
            for i in range(count)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path / "cache"))
    sources._open.cache_clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A vocabulary of 512 pieces, as a file."""
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(2000)]
    path.write_bytes(train_vocabulary([*texts(300), *words], 512))
    return path


@pytest.fixture
def corpus(tmp_path):
    """A source of 200 documents, two of them alike but for white space, one empty."""
    rows = texts(197)
    rows += ["", "Twice  the same.", "Twice the\tsame. "]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return f"jsonl:{path}"


def settings(source, model, **changes):
    return StoreSettings(**{"source": source, "vocabulary": str(model), "num_pieces": 512,
                            "validation_share": 0.2, **changes})


def silent(share, note):
    assert 0.0 <= share <= 1.0
    assert note


def read_all(tokens):
    return tokens.read(0, tokens.num_tokens).tolist()


def documents(tokens):
    return [tuple(tokens.read(start, stop).tolist()) for start, stop in tokens.documents()]


def options(source, model="", **changes):
    made = default_data_options()
    with made.unlocked():
        made.update({"source": source, "vocabulary": str(model), "num_pieces": 512,
                     "validation_share": 0.2, "input_length": 32, **changes})
    return made


# --- content -------------------------------------------------------------------------------------
def test_documents_lie_end_to_end_in_their_order(tmp_path, corpus, model):
    made = build_store(settings(corpus, model), tmp_path / "s", silent)
    vocabulary = read_vocabulary(model)
    rows = [json.loads(line)["text"]
            for line in pathlib.Path(corpus.removeprefix("jsonl:")).read_text().splitlines()]
    ids = [tuple(vocabulary.encode(row)) for row in rows if row.strip()]
    split = {name: documents(tokens) for name, tokens in made.splits.items()}
    assert sorted(split["train"] + split["validation"]) == sorted(ids)
    assert not set(split["train"]) & set(split["validation"])
    assert 20 <= len(split["validation"]) <= 60
    for name, found in split.items():
        assert found == [one for one in ids if one in set(found)]
        assert read_all(made.splits[name]) == [t for one in found for t in (*one, EOS_ID)]
        facts = made.manifest["splits"][name]
        assert (facts["documents"], facts["tokens"]) == (len(found), len(read_all(
            made.splits[name])))
        assert facts["empty"] == (name == "train")


def test_splits_do_not_depend_on_the_order(tmp_path, corpus, model):
    path = pathlib.Path(corpus.removeprefix("jsonl:"))
    first = build_store(settings(corpus, model), tmp_path / "a", silent)
    lines = path.read_text().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    path.write_text("".join(lines))
    second = build_store(settings(corpus, model), tmp_path / "b", silent)
    for split in ("train", "validation"):
        assert sorted(documents(first.splits[split])) == sorted(documents(second.splits[split]))


def test_training_documents_that_are_in_the_own_validation_split_are_left_out(tmp_path, model):
    rows = {"train": ["a a a", "b b  b", "c c c"], "validation": ["b b b"]}
    for split, split_texts in rows.items():
        (tmp_path / f"c4-{split}.00000-of-00001.json.gz").write_bytes(gzip.compress(
            "".join(json.dumps({"text": text}) + "\n" for text in split_texts).encode()))
    made = build_store(settings(f"c4_json:{tmp_path}/*.json.gz", model), tmp_path / "s", silent)
    vocabulary = read_vocabulary(model)
    assert documents(made.splits["train"]) == [tuple(vocabulary.encode(t)) for t in (
        "a a a", "c c c")]
    assert documents(made.splits["validation"]) == [tuple(vocabulary.encode("b b b"))]
    assert made.manifest["splits"]["train"]["duplicates"] == 1


def test_reading_across_shards_is_reading_one_array():
    rng = np.random.default_rng(0)
    whole = rng.integers(2, 60_000, 500).astype(np.uint16)
    cuts = [0, 7, 8, 200, 201, 202, 480, 500]
    parts = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    tokens = Tokens(parts, [np.array([len(part)]) for part in parts], "")
    assert tokens.num_tokens == 500
    for _ in range(300):
        start, stop = sorted(rng.integers(0, 501, 2))
        if start < 500:
            read = tokens.read(int(start), int(stop))
            assert read.dtype == np.int32
            assert (read == whole[start:stop]).all()


def test_end_to_end_of_nothing_is_nothing():
    tokens, ends = end_to_end([], np.uint16)
    assert (len(tokens), len(ends), tokens.dtype) == (0, 0, np.uint16)


# --- killed and gone on with ----------------------------------------------------------------------
def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())
            if path.name != ".lock"}


@pytest.mark.parametrize("trained", [False, True])
def test_a_build_killed_before_any_write_ends_the_same(
        tmp_path, corpus, model, monkeypatch, trained):
    """Every point between two writes is tried: the last write of the first run never happens."""
    monkeypatch.setattr(building, "BATCH_CHARACTERS", 1000)
    wanted = settings(corpus, "" if trained else model, shard_tokens=900, num_pieces=520)
    if trained:
        monkeypatch.setattr(building, "load_vocabulary",
                            lambda texts, pieces: read_vocabulary(model))
    build_store(wanted, tmp_path / "whole", silent)
    whole = contents(tmp_path / "whole")
    assert sum(name.endswith(".tokens") for name in whole) >= 5
    writes = 0

    def write_until(limit):
        def write(path, data):
            nonlocal writes
            writes += 1
            if writes > limit:
                raise KeyboardInterrupt
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        def write_json(path, value):
            write(path, (json.dumps(value, indent=1) + "\n").encode())

        monkeypatch.setattr(building, "write_bytes", write)
        monkeypatch.setattr(building, "write_json", write_json)

    for limit in range(100):
        folder, writes = tmp_path / f"killed-{limit}", 0
        write_until(limit)
        try:
            build_store(wanted, folder, silent)
            break
        except KeyboardInterrupt:
            writes = 0
            write_until(1000)
            build_store(wanted, folder, silent)
            assert contents(folder) == whole, limit
    assert 12 < limit < 99


@pytest.mark.slow
def test_a_build_killed_by_the_kernel_goes_on(tmp_path, model):
    path = tmp_path / "long.txt"
    path.write_text("\n".join(texts(20_000)))
    code = (
        "import sys, pathlib; from deepnarrow_text_t5 import building as b\n"
        "b.BATCH_CHARACTERS = 50_000\n"
        "s = b.StoreSettings(*sys.argv[1:3], 512, 0.2, shard_tokens=20_000)\n"
        "b.build_store(s, pathlib.Path(sys.argv[3]), lambda share, note: None)\n")
    command = [sys.executable, "-c", code, f"text:{path}#line", str(model)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=os.environ)
    killed = 0
    while not (tmp_path / "s" / "manifest.json").exists():
        process = subprocess.Popen([*command, str(tmp_path / "s")], env=os.environ)
        found = len(list((tmp_path / "s").glob("*.note")))
        while process.poll() is None and killed < 3:
            if len(list((tmp_path / "s").glob("*.note"))) > found + 2:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.002)
        process.wait()
    assert killed >= 1
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_a_changed_corpus_or_setting_is_not_mixed_in(tmp_path, corpus, model, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build_store(settings(corpus, model), tmp_path / "s", silent)
    with pytest.raises(InputError, match=r"no store, or is not finished.*goes on where it was"):
        open_store(tmp_path / "s")
    with pytest.raises(InputError, match=r"other sources or settings .*another validation_share"):
        build_store(settings(corpus, model, validation_share=0.1), tmp_path / "s", silent)
    path = pathlib.Path(corpus.removeprefix("jsonl:"))
    content = path.read_text()
    path.write_text(content + json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(InputError, match=r"another sources, stamp.*delete the folder"):
        build_store(settings(corpus, model), tmp_path / "s", silent)
    with WorkdirLock(tmp_path / "t"), pytest.raises(InputError, match="in use by another run"):
        build_store(settings(corpus, model), tmp_path / "t", silent)


def test_a_folder_with_something_else_is_left_alone(tmp_path, corpus, model):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else .*thesis\.txt"):
        build_store(settings(corpus, model), tmp_path / "s", silent)
    with pytest.raises(InputError, match="is no folder"):
        build_store(settings(corpus, model), tmp_path / "s" / "thesis.txt", silent)
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("share", "rows", "message"), [
    (0.2, ["only one"], "the validation split is empty .*#paragraph"),
    (0.2, ["", " "], "split is empty")])
def test_an_empty_split_is_an_error(tmp_path, model, share, rows, message):
    (tmp_path / "a.txt").write_text("\n".join(rows))
    with pytest.raises(InputError, match=message):
        build_store(settings(f"text:{tmp_path}/a.txt#line", model, validation_share=share),
                    tmp_path / "s", silent)
    assert [path.name for path in (tmp_path / "s").iterdir()] == [".lock"]


def test_documents_that_unbalance_the_splits_are_warned_of(tmp_path, model):
    """A book without blank lines is one paragraph: it makes validation large, or nearly nothing."""
    paragraphs = texts(200, seed=5)
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    build_store(settings(f"text:{tmp_path}/a.txt#paragraph", model), tmp_path / "fine", silent)
    (tmp_path / "b.txt").write_text("\n".join(texts(4000, seed=6)))
    line = f"text:{tmp_path}/a.txt#paragraph + text:{tmp_path}/b.txt#"
    with pytest.warns(UserWarning, match=r"validation has \d.*of the tokens, not .*#line"):
        build_store(settings(line + "paragraph", model), tmp_path / "s", silent)
    build_store(settings(line + "line", model), tmp_path / "t", silent)


# --- damage --------------------------------------------------------------------------------------
@pytest.fixture
def made(tmp_path, corpus, model):
    build_store(settings(corpus, model), tmp_path / "s", silent)
    return tmp_path / "s"


FILES = ("train-00000.tokens", "train-00000.ends", "validation-00000.tokens", "vocabulary.model")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("damage", "message"), [
    (lambda p, b: p.write_bytes(b[:99] + bytes([b[99] ^ 4]) + b[100:]), "does not match its sha"),
    (lambda p, b: p.write_bytes(b[:-1]), "bytes instead of"),
    (lambda p, b: p.unlink(), "cannot be read")])
def test_damage_is_found_and_named(made, name, damage, message):
    path = made / name
    damage(path, path.read_bytes())
    with pytest.raises(InputError, match=rf"is damaged: {name} .*{message}.*prepare it again"):
        open_store(made)


@pytest.mark.parametrize(("change", "message"), [
    (lambda m: m | {"version": 2}, "another kind or version"),
    (lambda m: m | {"format": "x"}, "another kind or version"),
    (lambda m: m | {"vocabulary": m["vocabulary"] | {"file": "../../etc/passwd"}},
     "names a file outside"),
    (lambda m: m | {"dtype": "object"}, "not what `deepnarrow prepare` writes"),
    (lambda m: m | {"splits": {}}, "not what `deepnarrow prepare` writes"),
    (lambda m: [m], "another kind"), (lambda m: "{", "another kind")])
def test_a_foreign_manifest_is_refused(made, change, message):
    path = made / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message):
        open_store(made)
    path.write_text('{"format": ')
    with pytest.raises(InputError, match="is not valid JSON"):
        open_store(made)


def test_hashes_are_computed_once_and_again_after_a_change(made, monkeypatch):
    hashed = []
    monkeypatch.setattr(store, "file_sha256", lambda path: hashed.append(path.name) or "")
    open_store(made)  # build_store opened it, and so verified it
    assert not hashed
    path = made / "train-00000.tokens"
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="does not match"):
        open_store(made)
    assert hashed


def test_another_vocabulary_is_refused(tmp_path, made, model):
    other = tmp_path / "other.model"
    other.write_bytes(train_vocabulary([*texts(300), *map(str, range(3000))], 512))
    with pytest.raises(InputError, match="made with another vocabulary"):
        open_data(options(f"prepared:{made}", other))
    same = open_data(options(f"prepared:{made}", model))
    assert same.vocabulary.content_hash == read_vocabulary(model).content_hash


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read"), (b"", "is no SentencePiece model"),
    (b"no model", "is no SentencePiece model")])
def test_a_vocabulary_that_is_none_is_refused(tmp_path, corpus, content, message):
    path = tmp_path / "x.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"vocabulary '.*x\.model': {message}"):
        build_store(settings(corpus, path), tmp_path / "s", silent)
    assert not (tmp_path / "s").exists()


def test_special_ids_of_another_model_are_refused(tmp_path, corpus):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(200)), model_prefix=str(tmp_path / "x"), vocab_size=60,
        minloglevel=2)
    with pytest.raises(InputError, match=r"other special ids.*pad -1, eos 2, unk 0.*pad_id=0"):
        read_vocabulary(tmp_path / "x.model")


def test_a_vocabulary_is_trained_on_training_documents_once(tmp_path, monkeypatch):
    """Its texts are a sample in their order; what was trained on the same texts is not again."""
    seen = []

    def train(texts, pieces):
        seen.append((list(texts), pieces))
        return train_vocabulary(texts, pieces)

    monkeypatch.setattr("deepnarrow_text_t5.vocabulary.train_vocabulary", train)
    rows = [f"{text} {i * 7919}" for i, text in enumerate(texts(900))]
    (tmp_path / "a.txt").write_text("\n".join(rows))
    wanted = settings(f"text:{tmp_path}/a.txt#line", "")
    first = build_store(wanted, tmp_path / "s", silent)
    assert build_store(wanted, tmp_path / "t", silent).vocabulary == first.vocabulary
    ((sample, pieces),) = seen
    assert pieces == first.vocabulary.num_pieces == 512
    assert sample == [row for row in rows if row in set(sample)]
    assert len(sample) == first.manifest["splits"]["train"]["documents"]
    monkeypatch.setattr(building, "TRAINING_CHARACTERS", 20_000)
    with pytest.raises(InputError, match="SentencePiece cannot train it"):
        build_store(settings(wanted.source, "", num_pieces=30_000), tmp_path / "u", silent)
    assert 15_000 < sum(map(len, seen[1][0])) <= 20_000
    assert set(seen[1][0]) < set(sample)


# --- examples ------------------------------------------------------------------------------------
def test_prepared_and_unprepared_give_the_same_examples(made, corpus, model):
    prepared = upstream(options(f"prepared:{made}"), default_options())
    direct = upstream(options(corpus, model), default_options())
    assert prepared.options == direct.options
    for one, other in ((prepared.train, direct.train), (prepared.validation, direct.validation)):
        assert one.content_hash == other.content_hash
        assert one.num_examples == other.num_examples > 10
        for index in (0, one.num_examples - 1):
            example, same = (s.load(index, np.random.default_rng(7)) for s in (one, other))
            assert all((example[k] == same[k]).all() for k in ("inputs", "targets"))


def test_an_unprepared_corpus_is_tokenised_once(corpus, model, monkeypatch, tmp_path):
    first = upstream(options(corpus, model), default_options()).train.content_hash
    sources._open.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "build_store", lambda *_: pytest.fail("made again"))
        assert upstream(options(corpus, model), default_options()).train.content_hash == first
    (folder,) = (tmp_path / "cache" / "text_t5" / "stores").iterdir()
    (folder / "train-00000.tokens").write_bytes(b"x")
    sources._open.cache_clear()
    assert upstream(options(corpus, model), default_options()).train.content_hash == first
    monkeypatch.setattr(sources, "MAX_UNPREPARED_BYTES", 1000)
    sources._open.cache_clear()
    with pytest.raises(InputError, match=r"too large to tokenise on the way .*deepnarrow prepare"):
        upstream(options(corpus, model), default_options())


@pytest.mark.parametrize("objective", ["span_corruption", "iid_drop_tokens", "prefix_lm"])
@pytest.mark.parametrize("kind", ["packed", "cut"])
def test_the_order_does_not_depend_on_hosts_and_resumes(made, objective, kind):
    data = upstream(options(f"prepared:{made}", objective=objective, documents=kind),
                    default_options())

    def batches(start, hosts, count=3):
        found = []
        for own in np.split(np.arange(8), hosts):
            with TrainStream(data.train, seed=5, batch_size=8, start_step=start,
                             rows=own) as stream:
                found.append([next(stream) for _ in range(count)])
        return [{key: np.concatenate([rows[i][key] for rows in found]) for key in found[0][i]}
                for i in range(count)]

    one = batches(0, 1)
    for other in (batches(0, 2), batches(0, 4), [one[0], *batches(1, 2, 2)]):
        for batch, same in zip(one, other, strict=True):
            assert batch.keys() == same.keys()
            assert all((batch[key] == same[key]).all() for key in batch)
    for batch in one:
        assert batch["inputs"].shape == (8, data.options["input_length"])
        assert batch["targets"].shape == (8, data.options["target_length"])
    assert len(list(eval_batches(data.validation, 16))) == -(-data.validation.num_examples // 16)


def test_one_document_an_example_is_cut_padded_and_counted(tmp_path, made, corpus, model):
    facts = prepare(options(corpus, model, documents="cut"), made, silent)
    data = open_data(options(f"prepared:{made}", documents="cut"))
    lengths = np.array([len(d) for d in documents(data.splits["train"])])
    raw = data.lengths.raw
    train = facts["splits"]["train"]
    assert train["cut_documents"] == (lengths > raw).sum() > 0
    assert train["cut_tokens"] == np.maximum(lengths - raw, 0).sum()
    assert train["examples"] == (lengths >= 2).sum() == len(lengths) - train["too_short"]
    assert f"{train['cut_tokens']:,} cut tokens" in facts["summary"]
    source = upstream(options(f"prepared:{made}", documents="cut"), default_options()).train
    for index, document in enumerate(documents(data.splits["train"])[:40]):
        example = source.load(index, np.random.default_rng(index))
        kept = document[:raw]
        assert sorted(t for side in example.values() for t in side.tolist()
                      if EOS_ID < t < 512) == sorted(kept)
        own = lengths_of_raw(len(kept))
        assert (example["inputs"] != PAD_ID).sum() == own.inputs
        assert (example["targets"] != PAD_ID).sum() == own.targets


def test_validation_can_be_limited(made):
    whole = upstream(options(f"prepared:{made}"), default_options()).validation
    some = upstream(options(f"prepared:{made}", validation_examples=3), default_options())
    assert some.validation.num_examples == 3 < whole.num_examples
    assert some.validation.content_hash != whole.content_hash
    first = [s.load(2, np.random.default_rng(0))["inputs"].tolist()
             for s in (some.validation, whole)]
    assert first[0] == first[1]


def test_every_option_that_changes_examples_changes_the_hash(made):
    changes = [{}, {"objective": "iid_drop_tokens"}, {"objective": "mass_style"},
               {"objective": "bert_style"}, {"noise_density": 0.3}, {"mean_span_length": 1.0},
               {"documents": "cut"}, {"documents": "cut", "noise_density": 0.16},
               {"objective": "mass_style", "noise_density": 0.16}, {"input_length": 40}]
    hashes = [upstream(options(f"prepared:{made}", **change), default_options()).train.content_hash
              for change in changes]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(("change", "message"), [
    ({"documents": "whole"}, "documents is unknown .*packed, cut"),
    ({"objective": "lm"}, "objective is unknown .*prefix_lm"),
    ({"noise_density": 0.0}, "noise_density is out of range"),
    ({"mean_span_length": 0.5}, "mean_span_length is out of range"),
    ({"validation_share": 0.0}, "validation_share is out of range"),
    ({"validation_examples": -1}, "validation_examples is out of range"),
    ({"input_length": 3000}, "split holds no example|more sentinels"),
    ({"source": "prepared:/nowhere"}, "no such folder.*deepnarrow prepare")])
def test_bad_options_are_named(made, change, message):
    with pytest.raises(InputError, match=message):
        upstream(options(**{"source": f"prepared:{made}", **change}), default_options())


def test_lengths_that_cannot_be_are_said_before_a_corpus_is_tokenised(tmp_path, corpus, model):
    with pytest.raises(InputError, match="input_length is too small"):
        prepare(options(corpus, model, input_length=2), tmp_path / "s", silent)
    assert not (tmp_path / "s").exists()


# --- the command ---------------------------------------------------------------------------------
CONFIG = """
def get_config():
    adafactor = {{"name": "adafactor", "learning_rate": 0.01, "schedule": "constant"}}
    return {{"name": "x", "seeds": (0,), "modalities": {{"text_t5": {{
        "shapes": ("micro",), "data": {{"source": "{source}", "vocabulary": "{model}",
                                        "input_length": 32, "validation_share": 0.2}},
        "protocol": {{"batch_size": 2, "budget": {{"kind": "examples", "amount": 4}},
                      "optimizer": adafactor}}}}}}}}
"""


def test_the_command_prepares_and_a_study_uses_it(tmp_path, corpus, model, capsys):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(source=corpus, model=model))
    for _ in range(2):  # the second finds it made
        assert main(["prepare", str(config), "--out", str(tmp_path / "s"), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["source"] == f"prepared:{tmp_path}/s"
        assert facts["splits"]["train"]["documents"] > 100
    use = ["--set", f"modalities.text_t5.data.source={facts['source']}"]
    assert main(["study", str(config), "--dry-run", *use]) == 0
    capsys.readouterr()
    assert main(["prepare", str(config), "--out", str(tmp_path / "t"), *use]) == 2
    assert "is prepared already" in capsys.readouterr().err
    assert main(["prepare", str(config)]) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert main(["prepare", str(config), "--out", "x", "--modality", "text"]) == 2
    assert "did you mean text_t5?" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_preparing_imports_no_jax(tmp_path, corpus, model):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(source=corpus, model=model))
    code = ("import sys; from deepnarrow.cli import main\n"
            "code = main(sys.argv[1:])\n"
            "print(code, [n for n in ('jax', 'flax', 'grain') if n in sys.modules])\n")
    printed = subprocess.run(
        [sys.executable, "-c", code, "prepare", str(config), "--out", str(tmp_path / "s")],
        text=True, capture_output=True, check=True, env=os.environ).stdout
    assert printed.splitlines()[-1] == "0 []"


def test_stopped_and_out_of_space_say_that_it_goes_on(
        tmp_path, corpus, model, capsys, monkeypatch):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(source=corpus, model=model))
    command = ["prepare", str(config), "--out", str(tmp_path / "s")]
    for error, code, message in (
            (KeyboardInterrupt(), 75, "the same command goes on from here"),
            (OSError(28, "No space left on device"), 2, "No space left on device.*goes on")):
        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(building, "_write_shard", fail)
            assert main(command) == code
        assert re.search(message, capsys.readouterr().err)
    assert main(command) == 0
    assert re.search(r"s: validation .* documents.*; train .*Use it: data.source=prepared:",
                     capsys.readouterr().out)


@pytest.mark.parametrize("name", ["pretrain_c4", "scale_efficiently"])
def test_the_shipped_configs_fit_a_store(tmp_path, model, capsys, name):
    """A tiny C4 stands for the real one; everything else is as it is shipped."""
    for split, count in (("train", 400), ("validation", 40)):
        (tmp_path / f"c4-{split}.00000-of-00001.json.gz").write_bytes(gzip.compress("".join(
            json.dumps({"text": text, "url": "u", "timestamp": "t"}) + "\n"
            for text in texts(count, seed=len(split))).encode()))
    config = pathlib.Path(__file__).parents[2] / "configs" / "text_t5" / f"{name}.py"
    data = "modalities.text_t5.data"
    settings = ["--set", f"{data}.vocabulary={model}"]
    source = ["--set", f"{data}.source=c4_json:{tmp_path}/*.json.gz"]
    assert main(["prepare", str(config), "--out", str(tmp_path / "s"), *settings, *source]) == 0
    use = ["--set", f"{data}.source=prepared:{tmp_path}/s",
           "--set", "modalities.text_t5.protocol.batch_size=8"]  # it has fewer segments than 128
    if name == "scale_efficiently":  # no benchmark is here to fine-tune on
        use += ["--set", "modalities.text_t5.protocol.fine_tune=None"]
    assert main(["study", str(config), "--dry-run", "--json", *settings, *use]) == 0
    cells = json.loads(capsys.readouterr().out.partition("\n")[2])["cells"]
    assert {cell["steps"] for cell in cells} == {2**19 * 128 // 8}
    assert len(cells) == {"pretrain_c4": 1, "scale_efficiently": 12}[name]
    assert main(["study", str(config), "--dry-run"]) == 2  # nobody has put the real one there
    assert "is no prepared tensorflow-datasets folder" in capsys.readouterr().err


def test_a_modality_without_data_to_prepare_is_an_error(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(source="", model="").replace("text_t5", "vision_vit").replace(
        '"source": "", "vocabulary": "",', "").replace('"input_length": 32, ', "").replace(
        '"validation_share": 0.2', ""))
    assert main(["prepare", str(config), "--out", str(tmp_path / "s")]) == 2
    assert "none of its modalities has data to prepare" in capsys.readouterr().err
