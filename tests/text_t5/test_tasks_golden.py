"""Prompts, targets, metrics and averages against tensorflow-datasets' and the t5 library's.

`golden/tasks.json` says which versions; `make_task_golden.py` made it. The same examples are read
from official files and from ArrayRecord folders in tensorflow-datasets' own schema.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from deepnarrow_text_t5.tasks import BENCHMARK_TASKS
from deepnarrow_text_t5.tasks.averages import METRICS, averages
from deepnarrow_text_t5.tasks.benchmark import locate, read_split
from deepnarrow_text_t5.tasks.super_glue import read_definite_pronouns

HERE = pathlib.Path(__file__).parent
GOLDEN = json.loads((HERE / "golden/tasks.json").read_text(encoding="utf-8"))
PROMPTS, SAID = GOLDEN["prompts"], GOLDEN["metrics"]
TASKS = sorted(PROMPTS.keys() - {"dpr"})


def load_made_files():
    spec = importlib.util.spec_from_file_location("make_task_golden",
                                                  HERE / "make_task_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The option `tasks` for the official folders."""
    root = tmp_path_factory.mktemp("official")
    load_made_files().write_files(root)
    return {"glue": str(root / "GLUE"), "super_glue": str(root / "SuperGLUE"),
            "squad": str(root / "squad"), "dpr": str(root / "dpr")}


def write_tfds(folder, case):
    """Writes rows as tensorflow-datasets does, without TensorFlow."""
    folder.mkdir(parents=True)
    for name, content in case["features"].items():
        (folder / name).write_text(content)
    features = tfds.features.FeatureConnector.from_config(str(folder))
    splits = []
    for split, rows in case["rows"].items():
        path = folder / f"made-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in rows:
            writer.write(features.serialize_example(features.encode_example(row)))
        writer.close()
        splits.append({"name": split, "shardLengths": [str(len(rows))], "numBytes": "1",
                       "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"})
    (folder / "dataset_info.json").write_text(json.dumps({
        "name": "made", "version": folder.name, "fileFormat": "array_record", "moduleName": "made",
        "releaseNotes": {}, "splits": splits}))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The option `tasks` for prepared folders."""
    root = tmp_path_factory.mktemp("tfds")
    for name in TASKS:
        task = BENCHMARK_TASKS[name]
        if name != "super_glue_wsc_marked":  # the same folder as the other form's
            write_tfds(root / task.benchmark / task.config / "1.0.2", PROMPTS[name])
    write_tfds(root / "dpr" / "1.1.0", PROMPTS["dpr"])
    return {name: f"tfds:{root / name}" for name in ("glue", "super_glue", "squad", "dpr")}


def theirs(name, split):
    """t5's examples of a split; of ReCoRD's evaluated ones, the one of each query that counts."""
    parts = BENCHMARK_TASKS[name].parts[split]
    examples = [example for part in parts for example in PROMPTS[name]["examples"][part]]
    if name == "super_glue_record" and split == "validation":
        examples = list({example["idx/query"]: example for example in reversed(examples)}.values())
        examples.reverse()
    return examples


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("form", ["official", "prepared"])
def test_prompts_and_targets_are_those_of_t5(form, name, split, request):
    places = request.getfixturevalue(form)
    task = BENCHMARK_TASKS[name]
    ours = read_split(task, locate(task, places), "train" if split == "train" else
                      "validation_full")
    expected = theirs(name, split)
    assert [(e.inputs, e.target) for e in ours] == [(e["inputs"], e["targets"]) for e in expected]
    if task.words:
        assert [task.words[e.label] for e in ours] == [e.target for e in ours]
    if "answers" in expected[0]:
        assert [list(e.reference) for e in ours] == [e["answers"] for e in expected]
    if "label" in expected[0]:  # WSC by pronoun
        assert [e.reference for e in ours] == [(e["label"], e["targets"]) for e in expected]


@pytest.mark.parametrize("form", ["official", "prepared"])
def test_definite_pronouns_are_those_of_t5(form, request):
    place = request.getfixturevalue(form)["dpr"].removeprefix("tfds:")
    ours = read_definite_pronouns(pathlib.Path(place))
    expected = PROMPTS["dpr"]["examples"]["train"]
    assert [(e.inputs, e.target) for e in ours] == [(e["inputs"], e["targets"]) for e in expected]


def test_multirc_groups_are_questions(official):
    task = BENCHMARK_TASKS["super_glue_multirc"]
    ours = read_split(task, locate(task, official), "validation_full")
    expected = [(e["idx/paragraph"], e["idx/question"]) for e in theirs(task.name, "validation")]
    assert [e.reference[1] for e in ours] == [f"{p}/{q}" for p, q in expected]


# --- metrics -------------------------------------------------------------------------------------
def answered(name, said):
    """The answers a scorer takes: classes, or the texts themselves."""
    words = BENCHMARK_TASKS[name].words
    index = {word: i for i, word in enumerate(words or ())}
    return np.array([index.get(text, -1) for text in said]) if words else said


def truth(name, case):
    if name == "glue_mnli":
        return [(label, "matched" if i < case["matched"] else "mismatched")
                for i, label in enumerate(case["truth"])]
    task = BENCHMARK_TASKS[name]
    return case["truth"] if task.referenced else np.array(case["truth"])


@pytest.mark.parametrize("name", sorted(SAID))
def test_metrics_are_those_of_t5(name):
    case, task = SAID[name], BENCHMARK_TASKS[name]
    scores = task.score(answered(name, case["said"]), truth(name, case))
    assert case["values"].keys() == set(task.metrics)
    assert {k: 100 * scores.metrics[k] for k in task.metrics} == pytest.approx(case["values"])
    assert len(set(case["values"].values()) - {0.0, 100.0}) >= 1  # neither all right nor all wrong
    mean = np.mean(list(case["values"].values())) / 100
    quoted = scores.metrics["mean" if len(task.metrics) > 1 else task.metrics[0]]
    assert quoted == pytest.approx(mean)
    if scores.per_example is not None:
        assert scores.per_example.mean() == pytest.approx(quoted)


def test_every_task_is_held_against_t5():
    assert sorted(BENCHMARK_TASKS) == TASKS
    assert BENCHMARK_TASKS.keys() - SAID.keys() == {"super_glue_wsc_marked"}  # accuracy, no more


def test_averages_are_those_of_t5():
    case = GOLDEN["averages"]
    names = {"glue_mnli_matched": ("glue_mnli", "accuracy_matched"),
             "glue_mnli_mismatched": ("glue_mnli", "accuracy_mismatched")}
    scores = {}
    for tag, value in case["scores"].items():
        theirs, metric = tag.split("/")
        theirs = theirs.removesuffix("_v002").removesuffix("_v102").replace(
            "_v102_simple_eval", "")
        name, metric = names.get(theirs, (theirs, metric))
        scores.setdefault(name, {})[metric] = value / 100
    scores["squad"] = {"em": 0.8, "f1": 0.9}
    found = averages(scores)
    assert 100 * found["glue"] == pytest.approx(case["glue"])
    assert 100 * found["super_glue"] == pytest.approx(case["super_glue"])
    assert found["squad"] == pytest.approx(0.85)
    assert found["all"] == pytest.approx((found["glue"] + found["super_glue"] + 0.85) / 3)
    assert len(METRICS) == 19
    del scores["glue_rte"]
    assert averages(scores).keys() == {"super_glue", "squad"}
