"""Tasks from options to scores, on made-up files: splits, tokens, answers, bad data."""

import gzip
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import sklearn.metrics
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from deepnarrow.config import resolve_options
from deepnarrow.contract import check_task
from deepnarrow.errors import InputError
from deepnarrow_text_t5.options import default_data_options, default_options
from deepnarrow_text_t5.tasks import BENCHMARK_TASKS, build, custom, metrics, prompts, tasks
from deepnarrow_text_t5.tasks.averages import averages
from deepnarrow_text_t5.tasks.examples import TextExample, halves
from deepnarrow_text_t5.tasks.readers import read_lines
from deepnarrow_text_t5.tasks.rows import encode
from deepnarrow_text_t5.tasks.scoring import score_subsets
from deepnarrow_text_t5.vocabulary import EOS_ID, Vocabulary, train_vocabulary

HERE = pathlib.Path(__file__).parent
COLOURS = ("blue", "green", "red")


def made_files():
    spec = importlib.util.spec_from_file_location("make_task_golden",
                                                  HERE / "make_task_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vocabulary():
    texts = [*made_files().FILES.values(), *(" ".join(t.words or ()) for t in
                                             BENCHMARK_TASKS.values())]
    return Vocabulary(train_vocabulary([" ".join(text.split()) for text in texts], 512), 512)


@pytest.fixture(autouse=True)
def _environment(vocabulary, tmp_path, monkeypatch):
    """A cache of its own, and a vocabulary that takes no corpus."""
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "open_data", lambda _: types.SimpleNamespace(vocabulary=vocabulary))


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    made_files().write_files(root)
    return {"glue": str(root / "GLUE"), "super_glue": str(root / "SuperGLUE"),
            "squad": str(root / "squad")}


def make_tasks(**data):
    options = resolve_options(default_data_options(), data, "data")
    return tasks(options, default_options())


def write_jsonl(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def colour_rows(number=400):
    rng = np.random.default_rng(3)
    return [{"text": f"thing {i} looks {i * 7}", "colour": COLOURS[int(rng.integers(3))]}
            for i in range(number)]


@pytest.fixture
def colours(tmp_path):
    """A custom task of 400 rows, gzipped."""
    write_jsonl(tmp_path / "colours.jsonl.gz", colour_rows())
    line = f"jsonl:{tmp_path / 'colours.jsonl.gz'}#text->colour"
    return make_tasks(custom_tasks={"colours": line})["colours"]


def batch_of(source, number):
    rows = [source.load(i, None) for i in range(number)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


# --- every benchmark task ------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(BENCHMARK_TASKS))
def test_a_task_from_files_to_a_perfect_score(name, official, vocabulary):
    """Whoever says each target gets 1 in every metric, by tokens and by ranks."""
    task = make_tasks(task_input_length=200, tasks=official)[name]
    check_task(task)
    source = task.examples("validation_full")
    batch = batch_of(source, source.num_examples)
    assert batch["inputs"].shape == (source.num_examples, 200)
    assert batch["targets"].shape == (source.num_examples, task.options["target_length"])
    truth = task.references("validation_full") if task.references else source.labels()
    assert len(truth) == source.num_examples
    scores = task.score(batch["targets"], truth)
    if name == "super_glue_wsc":  # one noun of three is not the referent
        assert scores.metrics == {"accuracy": pytest.approx(2 / 3)}
        return
    least = 0.99 if name == "glue_stsb" else 1 - 1e-9  # its targets are rounded scores
    assert all(least < value <= 1 + 1e-9 for value in scores.metrics.values())
    assert task.metric.name in scores.metrics
    if task.num_classes is not None:
        assert "label" in batch
        ranks = np.zeros((source.num_examples, task.num_classes)) - 1
        ranks[np.arange(source.num_examples), source.labels()] = -0.5
        assert task.score(ranks, truth).metrics == scores.metrics
        assert (batch["label"] == source.labels()).all()
    said = vocabulary.decode(batch["inputs"][0].tolist())
    assert said.startswith(name.split("_")[-1] if name not in (
        "squad", "super_glue_wsc_marked") else ("question:", "wsc text:"))


@pytest.mark.parametrize("name", sorted(BENCHMARK_TASKS))
def test_halves_are_the_validation_split_once(name, official):
    task = make_tasks(tasks=official)[name]
    parts = {split: task.examples(split) for split in ("validation", "test", "validation_full")}
    rows = {split: sorted(source.load(i, None)["inputs"].tobytes()
                          for i in range(source.num_examples)) for split, source in parts.items()}
    assert sorted(rows["validation"] + rows["test"]) == rows["validation_full"]
    assert rows["validation"]
    assert rows["test"]
    assert len({source.content_hash for source in parts.values()}) == 3


def test_groups_stay_together_and_order_does_not_matter():
    examples = [TextExample(f"q{i}", "x", None, None, f"paragraph {i // 3}") for i in range(300)]
    select, report = halves(examples)
    assert not {e.group for e in select} & {e.group for e in report}
    assert len(select) == len(report) == 150
    assert {e.inputs for e in halves(examples[::-1])[0]} == {e.inputs for e in select}


def test_mnli_is_scored_on_both_subsets(official):
    task = make_tasks(tasks=official)["glue_mnli"]
    subsets = [subset for _, subset in task.references("validation_full")]
    assert subsets == ["matched"] * 4 + ["mismatched"] * 4
    truth = [(0, "matched"), (1, "matched"), (2, "mismatched")]
    scores = score_subsets(np.array([0, 0, 2]), truth)
    assert scores.metrics == {"accuracy_matched": 0.5, "accuracy_mismatched": 1.0, "mean": 0.75}
    assert scores.per_example.mean() == pytest.approx(0.75)


def test_wsc_trains_on_referents_and_takes_definite_pronouns_along(official, tmp_path):
    alone = make_tasks(tasks=official)["super_glue_wsc"].examples("train")
    place = str(pathlib.Path(official["squad"]).parent / "dpr")
    both = make_tasks(tasks={**official, "dpr": place})["super_glue_wsc"].examples("train")
    assert (alone.num_examples, both.num_examples) == (2, 5)


def test_content_hash_is_of_the_content_not_of_the_path(official, tmp_path):
    made_files().write_files(tmp_path)
    here = make_tasks(tasks=official)["glue_rte"].examples("train").content_hash
    there = make_tasks(tasks={"glue_rte": str(tmp_path / "GLUE/RTE")})["glue_rte"]
    assert there.examples("train").content_hash == here
    longer = make_tasks(tasks=official, task_target_length=20)["glue_rte"]
    assert longer.examples("train").content_hash != here
    path = tmp_path / "GLUE/RTE/train.tsv"
    path.write_text(path.read_text().replace("Oil fell", "Oil sank"))
    changed = make_tasks(tasks={"glue_rte": str(tmp_path / "GLUE/RTE")})["glue_rte"]
    assert changed.examples("train").content_hash != here


def test_microsofts_mrpc_files_and_glues_dev_ids(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (tmp_path / "msr_paraphrase_train.txt").write_text(
        header + "1\t1\t2\ta\tb\n0\t3\t4\tc\td\n1\t5\t6\te\tf\n", encoding="utf-8")
    (tmp_path / "dev_ids.tsv").write_text("3\t4\n5\t6\n")
    task = make_tasks(tasks={"glue_mrpc": str(tmp_path)})["glue_mrpc"]
    assert task.examples("train").labels().tolist() == [1]
    assert task.examples("validation_full").labels().tolist() == [0, 1]


# --- answers -------------------------------------------------------------------------------------
def test_unknown_words_are_wrong_and_nan_is_nan(official, vocabulary):
    task = make_tasks(tasks=official)["glue_sst2"]
    length = task.options["target_length"]
    said = np.zeros((3, length), np.int32)
    for row, word in zip(said, ("positive", "quite positive", "negative"), strict=True):
        ids = [*vocabulary.encode(word), EOS_ID]
        row[:len(ids)] = ids
    scores = task.score(said, np.array([1, 1, 1]))
    assert scores.metrics == {"accuracy": pytest.approx(1 / 3)}
    assert scores.per_example.tolist() == [1.0, 0.0, 0.0]
    ranks = np.array([[-1.0, -2.0], [np.nan, -1.0], [-1.0, -3.0]])
    broken = task.score(ranks, np.array([0, 0, 0]))
    assert np.isnan(broken.metrics["accuracy"])
    assert broken.per_example is None


def test_candidates_are_the_label_words(colours, vocabulary):
    batch = batch_of(colours.examples("test"), 6)
    found = colours.candidates(batch)
    assert found.keys() == {"targets"}
    for row, targets, label in zip(found["targets"], batch["targets"], batch["label"], strict=True):
        assert [vocabulary.decode(one.tolist()) for one in row] == list(COLOURS)
        assert (row[label] == targets).all()


def test_a_label_that_does_not_fit_is_an_error(official):
    task = make_tasks(tasks=official, task_target_length=2)["glue_qqp"]
    with pytest.raises(InputError, match=r"short for the label 'not_duplicate'.*task_target_len"):
        task.examples("train")


def test_two_labels_alike_to_the_vocabulary_are_an_error(tmp_path):
    rows = [{"text": f"t {i}", "label": "a  b" if i % 2 else "a b"} for i in range(50)]
    write_jsonl(tmp_path / "x.jsonl", rows)
    task = make_tasks(custom_tasks={"x": f"jsonl:{tmp_path / 'x.jsonl'}#text->label"})["x"]
    with pytest.raises(InputError, match="two labels are the same to the vocabulary"):
        task.examples("train")


# --- tokens --------------------------------------------------------------------------------------
def test_tokens_are_cut_padded_and_cached(vocabulary, tmp_path, monkeypatch):
    texts = ["a man eats", "", "the cat sat on the mat " * 20]
    ragged = encode(vocabulary, texts)
    for i, text in enumerate(texts):
        ids = vocabulary.encode(text)
        row = ragged.padded(i, 12).tolist()
        assert row == ([*ids[:11], EOS_ID] + [0] * 12)[:12]
        assert ragged.padded(i, len(ids) + 1).tolist() == [*ids, EOS_ID]
    monkeypatch.setattr(Vocabulary, "encode_all", lambda *_: pytest.fail("encoded again"))
    again = encode(vocabulary, texts)
    assert (again.tokens == ragged.tokens).all()
    assert (again.ends == ragged.ends).all()


def test_bag_of_pieces_counts_the_commonest(colours, vocabulary):
    bags = colours.baseline("test")
    source = colours.examples("test")
    thing = vocabulary.encode("thing")[-1]
    counts = [source.load(i, None)["inputs"].tolist().count(thing) for i in range(len(bags))]
    assert any((np.expm1(bags).round() == np.array(counts)[:, None]).all(axis=0))
    assert bags.shape[0] == source.num_examples


# --- custom tasks --------------------------------------------------------------------------------
def test_custom_splits_hold_each_text_once(tmp_path, vocabulary):
    rows = colour_rows() + [{"text": f" Thing {i}  LOOKS {i * 7}", "colour": "red"}
                            for i in range(400)]
    write_jsonl(tmp_path / "c.jsonl", rows)
    with pytest.warns(UserWarning, match="542 of 800 rows have a text that stands with several"):
        task = make_tasks(custom_tasks={"c": f"jsonl:{tmp_path / 'c.jsonl'}#text->colour"})["c"]
    texts, total = {}, 0
    for split in ("train", "validation", "test"):
        source = task.examples(split)
        total += source.num_examples
        texts[split] = {vocabulary.decode(source.load(i, None)["inputs"].tolist()).lower()
                        for i in range(source.num_examples)}
    assert total == 800
    assert not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]
    assert len(texts["train"]) == pytest.approx(320, abs=30)
    assert all(text.startswith("c: thing ") for text in texts["train"])


def test_custom_files_of_the_splits_decide_instead_of_the_hash(tmp_path, vocabulary):
    for number, split in enumerate(("train", "validation", "test")):
        write_jsonl(tmp_path / f"{split}.jsonl", [
            {"text": f"{split} {i}", "colour": ("red", "blue")[i % 2]} for i in range(4 + number)])
    line = f"jsonl:{tmp_path}/{{split}}.jsonl#text->colour"
    task = make_tasks(custom_tasks={"c": line})["c"]
    for number, split in enumerate(("train", "validation", "test")):
        source = task.examples(split)
        assert source.num_examples == 4 + number
        assert all(vocabulary.decode(source.load(i, None)["inputs"].tolist()).startswith(
            f"c: {split}") for i in range(4 + number))
    write_jsonl(tmp_path / "test.jsonl", [{"text": " TRAIN  1", "colour": "red"}])
    custom.read_labelled.cache_clear()
    with pytest.raises(InputError, match=r"stands in the files of two splits.*train and test"):
        make_tasks(custom_tasks={"c": line})


def test_custom_tsv_with_numbers_as_labels(tmp_path, vocabulary):
    lines = ["stars\treview"] + [f"{i % 11}\t\"good\" {i}" for i in range(200)]
    (tmp_path / "r.tsv").write_text("\n".join(lines) + "\n")
    task = make_tasks(custom_tasks={"stars": f"tsv:{tmp_path / 'r.tsv'}#review->stars"})["stars"]
    assert task.num_classes == 11
    source = task.examples("train")
    batch = batch_of(source, 20)
    assert task.score(batch["targets"], source.labels()[:20]).metrics == {"accuracy": 1.0}
    assert task.kinds == {"few_shot", "fine_tune"}
    for row, label in zip(batch["targets"], batch["label"], strict=True):
        assert vocabulary.decode(row.tolist()) == str(label)  # 10 is after 9, not after 1


@pytest.mark.parametrize("split_files", [False, True])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("label", [str, int, lambda c: c == 1])
def test_a_custom_task_is_the_same_in_every_format(tmp_path, label, dictionary, split_files):
    """The same content hashes, so the same keys of trials; other rows, other hashes."""
    rows = [{"n": i, "label": label(i % 2), "text": f"thing {i}"} for i in range(120)]
    parts = {"all": rows} if not split_files else {
        "train": rows[:60], "validation": rows[60:90], "test": rows[90:]}
    for name, part in parts.items():
        write_jsonl(tmp_path / f"{name}.jsonl", part)
        (tmp_path / f"{name}.tsv").write_text("".join(
            "\t".join(map(str, line)) + "\n" for line in [part[0], *(r.values() for r in part)]))
        table = pa.table({key: [row[key] for row in part] for key in part[0]})
        if dictionary:
            table = table.set_column(2, "text", table["text"].dictionary_encode())
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=7)
    write_jsonl(tmp_path / "other.jsonl", [{**row, "text": f"{row['text']}!"} for row in rows])

    def hashes(kind, name):
        task = make_tasks(custom_tasks={"c": f"{kind}:{tmp_path}/{name}.{kind}#text->label"})["c"]
        return {split: (task.examples(split).content_hash, task.examples(split).num_examples,
                        task.examples(split).labels().tolist()) for split in task.splits}

    name = "{split}" if split_files else "all"
    expected = hashes("jsonl", name)
    assert sum(number for _, number, _ in expected.values()) == 120
    assert hashes("tsv", name) == expected
    assert hashes("parquet", name) == expected
    other = hashes("jsonl", "other")
    assert all(other[split][0] != expected[split][0] for split in expected)


@pytest.mark.parametrize(("columns", "line", "message"), [
    (None, "#text->label", "x.parquet': cannot be read .got No such file"),
    (b"text\tlabel\n", "#text->label", "x.parquet': is no readable Parquet file"),
    ({"text": ["a"], "label": [1]}, "#txt->label",
     "has no column 'txt' .expected one of text, label.. Hint: did you mean #text"),
    ({"text": ["a"], "label": [1]}, "#text->lbl", "has no column 'lbl' .expected one of text, lab"),
    ({"text": [3], "label": [1]}, "#text->label", "column 'text' is no text .got int64"),
    ({"text": [b"a"], "label": [1]}, "#text->label", "column 'text' is no text .got binary"),
    ({"text": ["a", None], "label": [1, 2]}, "#text->label",
     "row 2: column 'text' is not text .got None"),
    ({"text": ["a", " "], "label": [1, 2]}, "#text->label", "row 2: column 'text' is empty"),
    ({"text": ["a", "b"], "label": [1, None]}, "#text->label",
     "row 2: column 'label' is no label .got None"),
    ({"text": ["a"], "label": [0.5]}, "#text->label", "row 1: column 'label' is no label .got 0.5"),
    ({"text": ["a"], "label": [[1]]}, "#text->label", "row 1: column 'label' is no label"),
    ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "#text->label",
     "has no rows"),
    ({"text": ["a"], "label": [1]}, "#text->label", "number of classes .got 1; expected 2"),
    ({"text": pa.StringArray.from_buffers(2, pa.py_buffer(np.int32([0, 1, 3]).tobytes()),
                                          pa.py_buffer(b"a\xff\xfe")), "label": [1, 2]},
     "#text->label", "row group 1 has text that is not valid UTF-8 .got byte 0xff"),
])
def test_bad_parquet_files_of_custom_tasks_are_named(tmp_path, columns, line, message):
    path = tmp_path / "x.parquet"
    if isinstance(columns, bytes):
        path.write_bytes(columns)
    elif columns is not None:
        pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=message) as caught:
        make_tasks(custom_tasks={"mine": f"parquet:{path}{line}"})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data.custom_tasks.mine")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"without pyarrow .*pip install pyarrow"):
        make_tasks(custom_tasks={"mine": f"parquet:{tmp_path}/x.parquet#text->label"})


@pytest.mark.parametrize(("content", "line", "message"), [
    (None, "jsonl:{}#text->label", "cannot be read.*No such file"),
    ('{"text": "a", "label": 1}\n', "jsonl:{}#txt->label", "line 1: has no column 'txt'.*did you "
     "mean text"),
    ('{"text": "a"}\n', "jsonl:{}#text->label", "has no column 'label'"),
    ('{"text": "a", "label": 0.5}\n', "jsonl:{}#text->label", "no label .got 0.5"),
    ('{"text": "a", "label": null}\n', "jsonl:{}#text->label", "no label .got None"),
    ('{"text": "  ", "label": 1}\n', "jsonl:{}#text->label", "line 1: column 'text' is empty"),
    ('{"text": 3, "label": 1}\n', "jsonl:{}#text->label", "column 'text' is not text .got 3"),
    ('{"text": "a", "label": 1}\n[]\n', "jsonl:{}#text->label", "line 2: is not a JSON object"),
    ('{"text": "a", "label": 1}\n{"te', "jsonl:{}#text->label", "line 2: is not JSON"),
    ('{"text": "a", "label": 1}\n', "jsonl:{}#text->label", "number of classes .got 1; expected 2"),
    ("", "jsonl:{}#text->label", "has no rows"),
    ("text\tlabel\na\n", "tsv:{}#text->label", "line 2: column 'label' is no label"),
    ("text\tlabel\na\t1\n", "csv:{}#text->label", "cannot be read.*expected KIND:PATH"),
    ("text\tlabel\na\t1\n", "tsv:{}#text", "cannot be read.*expected KIND:PATH"),
    (b'{"text": "a", "label": 1}\n{"text": "\xff", "label": 1}\n', "jsonl:{}#text->label",
     "line 2: is not UTF-8"),
    (b"\x1f\x8b\x08broken", "jsonl:{}#text->label", "is damaged"),
])
def test_bad_custom_files_are_named(tmp_path, content, line, message):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        make_tasks(custom_tasks={"mine": line.format(path)})


def test_a_custom_split_without_rows_is_an_error(tmp_path):
    write_jsonl(tmp_path / "two.jsonl", [{"text": "a b", "label": i} for i in range(2)])
    line = f"jsonl:{tmp_path / 'two.jsonl'}#text->label"
    with pytest.warns(UserWarning, match="2 of 2 rows"):
        task = make_tasks(custom_tasks={"two": line})["two"]
    sizes = {}
    for split in ("train", "validation", "test"):
        try:
            sizes[split] = task.examples(split).num_examples
        except InputError as error:
            assert "is empty" in str(error)  # noqa: PT017
    assert sum(sizes.values()) == 2
    assert len(sizes) == 1


@pytest.mark.parametrize("name", ["glue_cola", "stdlib_module", "a b", "1x"])
def test_bad_names_of_custom_tasks(tmp_path, name):
    write_jsonl(tmp_path / "d.jsonl", [{"text": f"a {i}", "label": i % 2} for i in range(9)])
    with pytest.raises(InputError, match=r"is the name of a task|is no name of a task"):
        make_tasks(custom_tasks={name: f"jsonl:{tmp_path / 'd.jsonl'}#text->label"})


# --- bad benchmark data --------------------------------------------------------------------------
def test_an_unconfigured_task_says_which_option_to_set():
    found = make_tasks()
    assert set(BENCHMARK_TASKS) < set(found)
    with pytest.raises(InputError, match=r"set data.tasks.glue_cola or glue to a folder"):
        found["glue_cola"].examples("train")
    with pytest.raises(InputError, match=r"set data.tasks.squad to a folder"):
        found["squad"].examples("train")


@pytest.mark.parametrize(("places", "message"), [
    ({"glue_cols": "/x"}, "data.tasks.glue_cols: is no task or benchmark.*did you mean glue_cola"),
    ({"wordnet": "/x"}, "own go into data.custom_tasks"), ({"glue": 3}, "is no folder")])
def test_bad_places_are_named_at_once(places, message):
    with pytest.raises(InputError, match=message):
        make_tasks(tasks=places)


@pytest.mark.parametrize(("change", "message"), [
    (lambda p: p.unlink(), r"train.tsv': cannot be read .got No such file"),
    (lambda p: p.write_text("index\tsentence1\tsentence\tlabel\n0\ta\tb\tentailment\n"),
     r"line 2: has no column 'sentence2'.*did you mean sentence"),
    (lambda p: p.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tperhaps\n"),
     r"line 2: label is outside the set .got 'perhaps'; expected one of entailment, not_ent"),
    (lambda p: p.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t2\n"),
     r"label is outside the set .got 2; expected .*0..1"),
    (lambda p: p.write_text("index\tsentence1\tsentence2\tlabel\n"), r"split 'train' is empty"),
    (lambda p: p.write_bytes(b"index\tsentence1\tsentence2\tlabel\n0\ta\t\xe9\t1\n"),
     r"line 2: is not UTF-8"),
])
def test_bad_glue_files_are_named(tmp_path, change, message):
    made_files().write_files(tmp_path)
    change(tmp_path / "GLUE/RTE/train.tsv")
    task = make_tasks(tasks={"glue": str(tmp_path / "GLUE")})["glue_rte"]
    with pytest.raises(InputError, match=message):
        task.examples("train")


@pytest.mark.parametrize(("name", "file", "row", "message"), [
    ("super_glue_boolq", "BoolQ/train.jsonl", {"question": "q", "label": True},
     "has no column 'passage'"),
    ("super_glue_boolq", "BoolQ/train.jsonl", {"question": "q", "passage": "p", "label": "yes"},
     "label is outside the set"),
    ("super_glue_cb", "CB/train.jsonl", {"premise": 1, "hypothesis": "h", "label": "neutral"},
     "column 'premise' is not text"),
    ("super_glue_multirc", "MultiRC/train.jsonl", {"passage": {"text": "t"}},
     "has no 'questions' where it should"),
    ("super_glue_multirc", "MultiRC/train.jsonl", {"passage": 3}, "has no 'text' where it should"),
    ("super_glue_record", "ReCoRD/train.jsonl",
     {"passage": {"text": "t", "entities": []}, "qas": [{"query": "q", "answers": []}]},
     "has no answers"),
    ("super_glue_wsc", "WSC/train.jsonl", {"text": "a b", "label": True, "target": {
        "span1_text": "a", "span1_index": 0, "span2_text": "it", "span2_index": 1}},
     "the pronoun is not in the text"),
    ("super_glue_wsc", "WSC/train.jsonl", {"text": "a b", "label": True}, "no column 'target'"),
    ("squad", "../squad/train-v1.1.json", {"data": [{"paragraphs": [{"qas": []}], "x": 1}]},
     "is empty"),
    ("squad", "../squad/train-v1.1.json", {"data": [{}]}, "has not SQuAD's layout"),
    ("squad", "../squad/train-v1.1.json", {"data": [{"paragraphs": [{"context": "c", "qas": [
        {"id": "1", "question": "q", "answers": []}]}]}]}, "has no answers"),
])
def test_bad_json_files_are_named(tmp_path, name, file, row, message):
    made_files().write_files(tmp_path)
    (tmp_path / "SuperGLUE" / file).write_text(json.dumps(row) + "\n")
    found = make_tasks(tasks={"super_glue": str(tmp_path / "SuperGLUE"),
                              "squad": str(tmp_path / "squad")})
    with pytest.raises(InputError, match=message):
        found[name].examples("train")


@pytest.mark.parametrize(("info", "message"), [
    ("{}", "is no prepared tensorflow-datasets folder"),
    (json.dumps({"name": "glue", "version": "1.0.0", "fileFormat": "tfrecord", "moduleName": "x",
                 "releaseNotes": {}, "splits": []}), "has no random access .got tfrecord"),
])
def test_bad_prepared_folders_are_named(tmp_path, info, message):
    golden = json.loads((HERE / "golden/tasks.json").read_text())["prompts"]["glue_cola"]
    for name, content in {**golden["features"], "dataset_info.json": info}.items():
        (tmp_path / name).write_text(content)
    task = make_tasks(tasks={"glue_cola": f"tfds:{tmp_path}"})["glue_cola"]
    with pytest.raises(InputError, match=message):
        task.examples("train")


def test_prepared_text_that_is_not_utf8_is_named(tmp_path):
    golden = json.loads((HERE / "golden/tasks.json").read_text())["prompts"]["glue_cola"]
    for name, content in golden["features"].items():
        (tmp_path / name).write_text(content)
    features = tfds.features.FeatureConnector.from_config(str(tmp_path))
    writer = ArrayRecordWriter(str(tmp_path / "glue-train.array_record-00000-of-00001"),
                               "group_size:1")
    for text in (b"fine", b"\xff\xfe"):
        writer.write(features.serialize_example({"sentence": text, "label": 1, "idx": 0}))
    writer.close()
    (tmp_path / "dataset_info.json").write_text(json.dumps({
        "name": "glue", "version": "2.0.0", "fileFormat": "array_record", "moduleName": "x",
        "releaseNotes": {}, "splits": [{
            "name": "train", "shardLengths": ["2"], "numBytes": "1",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}]}))
    task = make_tasks(tasks={"glue_cola": str(tmp_path)})["glue_cola"]
    with pytest.raises(InputError, match="train row 1: is not UTF-8"):
        task.examples("train")
    with pytest.raises(InputError, match="has no split 'validation'"):
        task.examples("validation")


def test_a_tfds_place_without_prepared_data_says_so(tmp_path):
    task = make_tasks(tasks={"glue": f"tfds:{tmp_path}"})["glue_cola"]
    with pytest.raises(InputError, match="holds no prepared tensorflow-datasets folder"):
        task.examples("train")
    missing = make_tasks(tasks={"glue": str(tmp_path / "nowhere")})["glue_cola"]
    with pytest.raises(InputError, match="no such folder"):
        missing.examples("train")


def test_unknown_splits_and_lengths_are_errors(official):
    task = make_tasks(tasks=official)["glue_rte"]
    with pytest.raises(InputError, match=r"no such split.*validation_full"):
        task.examples("dev")
    for bad in (1, 2.5, "64", True):
        with pytest.raises(InputError, match="task_input_length cannot be"):
            make_tasks(task_input_length=bad)


def test_lines_end_where_files_say(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffone\r\n\ntwo\u2028still two\nthree".encode())
    assert [line for _, line in read_lines(path, "test")] == ["one", "two\u2028still two", "three"]


# --- metrics against scikit-learn and SciPy ------------------------------------------------------
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(40))
def test_class_metrics_equal_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    number, classes = int(rng.integers(2, 30)), int(rng.integers(2, 5))
    labels, said = rng.integers(0, classes, number), rng.integers(-1, classes, number)
    assert metrics.matthews(labels, said) == pytest.approx(
        sklearn.metrics.matthews_corrcoef(labels, said))
    assert metrics.mean_class_f1(labels, said, classes) == pytest.approx(sklearn.metrics.f1_score(
        labels, said, labels=range(classes), average="macro", zero_division=0))
    two, pair = labels % 2, said % 2
    assert metrics.f1(two, pair) == pytest.approx(
        sklearn.metrics.f1_score(two, pair, zero_division=0))


@pytest.mark.parametrize("seed", range(20))
def test_correlations_equal_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, (2, 30)) / 5
    assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0])
    assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0])
    assert metrics.pearson(x, np.ones(30)) == metrics.spearman(np.ones(30), y) == 0.0


def test_wsc_finds_the_pronoun_where_the_index_misses():
    row = {"text": 'She said : "Help him," he cried , "or it rains". ', "span2_text": "him",
           "span2_index": 5}
    assert prompts.wsc_pronoun(row, "test") == (
        'wsc: She said : "Help *him* ," he cried , "or it rains".')


def test_benchmarks_serve_the_whole_validation_split_and_custom_tasks_do_not(colours):
    known = make_tasks()
    splits = {name: known[name].splits for name in ("glue_cola", "super_glue_cb", "squad")}
    assert set(splits.values()) == {("train", "validation", "test", "validation_full")}
    assert colours.splits == known["stdlib_module"].splits == ("train", "validation", "test")


def test_averages_leave_out_what_lacks_a_metric_or_a_task():
    scores = {"squad": {"em": 0.5, "f1": 0.75, "mean": 0.625}, "glue_cola": {"accuracy": 0.5},
              "mine": {"accuracy": 1.0}}
    assert averages(scores) == {"squad": 0.625}
