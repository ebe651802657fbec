"""Makes `golden/tasks.json` from tensorflow-datasets and the `t5` library, independent ones.

    python tests/text_t5/make_task_golden.py     # needs tensorflow, t5 0.9.4, tfds; takes a minute

`FILES` are made-up examples in the official layouts of GLUE, SuperGLUE, SQuAD and Definite Pronoun
Resolution. tensorflow-datasets' own builders read them, `t5` makes inputs and targets of the rows:
the golden file holds both. It also holds what `t5` says of made-up predictions (postprocessing and
metrics of every task) and of made-up scores (the averages). `test_tasks_golden.py` compares.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden") / "tasks.json"


# --- made-up data --------------------------------------------------------------------------------
def _tsv(*rows: str) -> str:
    """Columns are written apart by ` | `."""
    return "".join(row.replace(" | ", "\t") + "\n" for row in rows)


def _jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


_PAIR = "index | sentence1 | sentence2 | label"
_MNLI = ("index | promptID | pairID | genre | sentence1_binary_parse | sentence2_binary_parse | "
         "sentence1_parse | sentence2_parse | sentence1 | sentence2 | label1 | gold_label")
_STSB = ("index | genre | filename | year | old_index | source1 | source2 | sentence1 | sentence2 "
         "| score")
_MRPC = "﻿Quality | #1 ID | #2 ID | #1 String | #2 String"


def _mnli(number: int, premise: str, hypothesis: str, label: str) -> str:
    blanks = " | ".join(["x"] * 4)
    return (f"{number} | p{number} | q{number} | fiction | {blanks} | {premise} | {hypothesis} | "
            f"{label} | {label}")


def _paragraph(number: int, text: str, questions: list[tuple[str, list[tuple[str, int]]]]) -> Any:
    found = [{"question": question, "idx": 10 * number + i, "answers": [
        {"text": answer, "label": label, "idx": 100 * number + 10 * i + j}
        for j, (answer, label) in enumerate(answers)]} for i, (question, answers) in
        enumerate(questions)]
    return {"idx": number, "passage": {"text": text, "questions": found}}


def _passage(number: int, text: str, entities: list[str], query: str, answers: list[str]) -> Any:
    def span(name: str) -> dict[str, Any]:
        start = text.index(name)
        return {"start": start, "end": start + len(name) - 1, "text": name}

    return {"idx": number, "source": "made", "passage": {
        "text": text, "entities": [{k: span(e)[k] for k in ("start", "end")} for e in entities]},
        "qas": [{"query": query, "idx": number, "answers": [span(a) for a in answers]}]}


def _wsc(number: int, text: str, noun: tuple[str, int], pronoun: tuple[str, int],
         label: bool) -> Any:
    return {"idx": number, "text": text, "label": label, "target": {
        "span1_text": noun[0], "span1_index": noun[1], "span2_text": pronoun[0],
        "span2_index": pronoun[1]}}


def _squad(*paragraphs: tuple[str, list[tuple[str, list[str]]]]) -> str:
    made = [{"context": context, "qas": [
        {"id": f"{i}-{j}", "question": question, "answers": [
            {"text": answer, "answer_start": context.index(answer)} for answer in answers]}
        for j, (question, answers) in enumerate(questions)]}
        for i, (context, questions) in enumerate(paragraphs)]
    return json.dumps({"version": "1.1", "data": [{"title": "Made", "paragraphs": made}]})


FILES: dict[str, str] = {
    "GLUE/CoLA/train.tsv": _tsv(
        "ab01 | 1 |  | The boats sailed home.", "ab01 | 0 | * | The boats  sailed the.",
        'ab02 | 1 |  | "Quotes" stay, as do naïve accents.'),
    "GLUE/CoLA/dev.tsv": _tsv(
        "cd01 | 0 | * | Whom did sleep?", "cd01 | 1 |  | Who slept?",
        "cd02 | 1 |  | He ate what?"),
    "GLUE/SST-2/train.tsv": _tsv("sentence | label", "a warm , funny film  | 1", "dull | 0"),
    "GLUE/SST-2/dev.tsv": _tsv("sentence | label", "it never lands | 0", "a joy | 1"),
    "GLUE/MRPC/train.tsv": _tsv(
        _MRPC, '1 | 10 | 11 | He said "no". | "No," he said.',
        "0 | 12 | 13 | Shares rose 3%. | Shares fell."),
    "GLUE/MRPC/dev.tsv": _tsv(
        _MRPC, "1 | 14 | 15 | It rained. | Rain fell.", "0 | 16 | 17 | It rained. | It snowed."),
    "GLUE/STS-B/train.tsv": _tsv(
        _STSB, "0 | news | f | 2012 | 1 | s | s | A man plays. | A man is playing. | 4.750",
        "1 | news | f | 2012 | 2 | s | s | A dog runs. | A cat sits. | 0.500",
        "2 | news | f | 2012 | 3 | s | s | One. | Two. | 2.500",
        "3 | news | f | 2012 | 4 | s | s | Three. | Four. | 3.300"),
    "GLUE/STS-B/dev.tsv": _tsv(
        _STSB, "0 | news | f | 2012 | 1 | s | s | Up. | Down. | 1.100",
        "1 | news | f | 2012 | 2 | s | s | Left. | Left. | 5.000",
        "2 | news | f | 2012 | 2 | s | s | In. | Out. | 3.909"),
    "GLUE/QQP/train.tsv": _tsv(
        "id | qid1 | qid2 | question1 | question2 | is_duplicate",
        '0 | 1 | 2 | How do I "learn" Go? | What is the way to learn Go? | 1',
        "1 | 3 | 4 | Why is the sky blue? | Why is grass green? | 0", "2 | 5 | 6 | Cut off"),
    "GLUE/QQP/dev.tsv": _tsv(
        "id | qid1 | qid2 | question1 | question2 | is_duplicate",
        "0 | 1 | 2 | Is it cold? | Is it chilly? | 1", "1 | 3 | 4 | Is it hot? | Who? | 0"),
    "GLUE/MNLI/train.tsv": _tsv(
        _MNLI, _mnli(0, "A man eats.", "A person eats.", "entailment"),
        _mnli(1, "A man eats.", "Nobody eats.", "contradiction"),
        _mnli(2, "A man eats.", "He is hungry.", "neutral")),
    "GLUE/MNLI/dev_matched.tsv": _tsv(
        _MNLI, _mnli(0, "It is late.", "It is early.", "contradiction"),
        _mnli(1, "She sang.", "She made a sound.", "entailment"),
        _mnli(2, "They left.", "They left by car.", "neutral"),
        _mnli(3, "We won.", "We did not lose.", "entailment")),
    "GLUE/MNLI/dev_mismatched.tsv": _tsv(
        _MNLI, _mnli(0, "um-hum yeah", "I agree.", "neutral"),
        _mnli(1, "It fell.", "It rose.", "contradiction"),
        _mnli(2, "Open the door.", "There is a door.", "entailment"),
        _mnli(3, "All cats sleep.", "Some cats sleep.", "entailment")),
    "GLUE/QNLI/train.tsv": _tsv(
        "index | question | sentence | label",
        "0 | When was it built? | It was built in 1889. | entailment",
        "1 | Who made it? | It is tall. | not_entailment"),
    "GLUE/QNLI/dev.tsv": _tsv(
        "index | question | sentence | label",
        "0 | Where is it? | It is in Paris. | entailment",
        "1 | How old? | It is red. | not_entailment"),
    "GLUE/RTE/train.tsv": _tsv(
        _PAIR, "0 | Oil rose. | Oil's price went up. | entailment",
        "1 | Oil rose. | Oil fell. | not_entailment"),
    "GLUE/RTE/dev.tsv": _tsv(
        _PAIR, "0 | He won gold. | He won. | entailment",
        "1 | She left. | She stayed. | not_entailment"),
    "GLUE/WNLI/train.tsv": _tsv(
        _PAIR, "0 | The fish ate the worm. It was tasty. | The worm was tasty. | 1",
        "1 | The fish ate the worm. It was tasty. | The fish was tasty. | 0"),
    "GLUE/WNLI/dev.tsv": _tsv(
        _PAIR, "0 | The jar broke the pot as it fell. | The jar fell. | 1",
        "1 | Ann saw Sue before she left. | Ann left. | 0"),
    "SuperGLUE/BoolQ/train.jsonl": _jsonl(
        {"question": "is ice cold", "passage": "Ice -- Ice is cold.", "idx": 0, "label": True},
        {"question": "is ice hot", "passage": "Ice -- Ice is cold.", "idx": 1, "label": False}),
    "SuperGLUE/BoolQ/val.jsonl": _jsonl(
        {"question": "do fish fly", "passage": "Some fish glide.", "idx": 0, "label": False},
        {"question": "do birds fly", "passage": "Most birds fly.", "idx": 1, "label": True}),
    "SuperGLUE/CB/train.jsonl": _jsonl(
        {"premise": "A: I know it. B: Do you?", "hypothesis": "it is so", "label": "entailment",
         "idx": 0},
        {"premise": "I doubt it.", "hypothesis": "it is so", "label": "contradiction", "idx": 1},
        {"premise": "I wonder.", "hypothesis": "it is so", "label": "neutral", "idx": 2}),
    "SuperGLUE/CB/val.jsonl": _jsonl(
        {"premise": "He hopes.", "hypothesis": "it is so", "label": "neutral", "idx": 0},
        {"premise": "He knew.", "hypothesis": "it was so", "label": "entailment", "idx": 1},
        {"premise": "He lied.", "hypothesis": "it was so", "label": "contradiction", "idx": 2}),
    "SuperGLUE/COPA/train.jsonl": _jsonl(
        {"premise": "The glass broke.", "choice1": "It fell.", "choice2": "It was full.",
         "question": "cause", "label": 0, "idx": 0},
        {"premise": "It rained.", "choice1": "The sun set.", "choice2": "The grass got wet.",
         "question": "effect", "label": 1, "idx": 1}),
    "SuperGLUE/COPA/val.jsonl": _jsonl(
        {"premise": "He slept.", "choice1": "He was tired.", "choice2": "He ran.",
         "question": "cause", "label": 0, "idx": 0},
        {"premise": "She won.", "choice1": "She cried.", "choice2": "She cheered.",
         "question": "effect", "label": 1, "idx": 1}),
    "SuperGLUE/MultiRC/train.jsonl": _jsonl(_paragraph(
        0, "<b>Sent 1: </b>Ann has a dog.<br><b>Sent 2: </b>It barks.<br>",
        [("Who has a dog?", [("Ann", 1), ("Bob", 0)]), ("What barks?", [("The dog", 1)])])),
    "SuperGLUE/MultiRC/val.jsonl": _jsonl(
        _paragraph(1, "<b>Sent 1: </b>It snowed.<br>", [("What fell?", [("Snow", 1), ("Hail", 0)]),
                                                        ("When?", [("Unknown", 1)])]),
        _paragraph(2, "Tom ran.", [("Who ran?", [("Tim", 0), ("Tom", 1), ("A man", 1)])])),
    "SuperGLUE/ReCoRD/train.jsonl": _jsonl(_passage(
        0, "Rome beat Milan in Turin.\n@highlight\nRome win again\n@highlight\nMilan are third",
        ["Rome", "Milan", "Turin"], "@placeholder beat their rivals", ["Rome", "Milan"])),
    "SuperGLUE/ReCoRD/val.jsonl": _jsonl(
        _passage(0, "Ann met \"Bob\"\n@highlight\nBob met Ann", ["Bob", "Ann"],
                 "Yesterday @placeholder met someone", ["Ann", "Bob"]),
        _passage(1, "Oslo is cold!\n@highlight\nBergen is wet", ["Oslo", "Bergen"],
                 "It rains in @placeholder", ["Bergen"])),
    "SuperGLUE/RTE/train.jsonl": _jsonl(
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment", "idx": 0},
        {"premise": "It rains.", "hypothesis": "It is dry.", "label": "not_entailment", "idx": 1}),
    "SuperGLUE/RTE/val.jsonl": _jsonl(
        {"premise": "He sings.", "hypothesis": "He is mute.", "label": "not_entailment", "idx": 0},
        {"premise": "She swims.", "hypothesis": "She moves.", "label": "entailment", "idx": 1}),
    "SuperGLUE/WiC/train.jsonl": _jsonl(
        {"word": "bank", "sentence1": "By the bank.", "sentence2": "A bank loan.", "idx": 0,
         "label": False, "start1": 7, "start2": 2, "end1": 11, "end2": 6, "version": 1.1},
        {"word": "run", "sentence1": "They run.", "sentence2": "We run.", "idx": 1, "label": True,
         "start1": 5, "start2": 3, "end1": 8, "end2": 6, "version": 1.1}),
    "SuperGLUE/WiC/val.jsonl": _jsonl(
        {"word": "play", "sentence1": "A play.", "sentence2": "We play.", "idx": 0, "label": False,
         "start1": 2, "start2": 3, "end1": 6, "end2": 7, "version": 1.1},
        {"word": "eat", "sentence1": "I eat.", "sentence2": "You eat.", "idx": 1, "label": True,
         "start1": 2, "start2": 4, "end1": 5, "end2": 7, "version": 1.1}),
    "SuperGLUE/WSC/train.jsonl": _jsonl(
        _wsc(0, "The cup fell off the shelf because it was wet .", ("The cup", 0), ("it", 7), True),
        _wsc(1, "The cup fell off the shelf because it was wet .", ("the shelf", 4), ("it", 7),
             False),
        _wsc(2, "Jim asked the old man if he could help him.", ("The old man.", 2), ("he", 6),
             True)),
    "SuperGLUE/WSC/val.jsonl": _jsonl(
        _wsc(0, "Ann thanked Sue because she had helped her .", ("Sue", 2), ("she", 4), True),
        _wsc(1, "Before it sank the ship hit a rock .", ("a rock", 6), ("it", 1), False),
        _wsc(2, "My dog chased the cat until it got tired .", ("My dog", 0), ("it", 6), True)),
    "dpr/train.c.txt": (
        "Bob asked Tom if he can lend some money.\nhe\nBob,Tom\nTom\n\n"
        "The bee landed on the flower because it wanted pollen.\nit\nThe bee,the flower\n"
        "The bee\n\n"
        "Men fear dogs since they bite, but they, too, tire.\nthey\nMen,dogs\ndogs\n\n"),
    "squad/train-v1.1.json": _squad(
        ("The tower (built 1889) is in Paris; it's  330 m tall.",
         [("How tall is it?", ["330 m"]), ("When was it built?", ["1889"])])),
    "squad/dev-v1.1.json": _squad(
        ("At 5 o'clock the U.S. team — led by José — won 3-2.",
         [("When?", ["5 o'clock", "At 5 o'clock"]), ("Who led?", ["José"])]),
        ("Snow is white.", [("What colour is snow?", ["white"])])),
}
# Folder, config in tensorflow-datasets, and the file of each split.
_GLUE = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP",
         "mnli": "MNLI", "qnli": "QNLI", "rte": "RTE", "wnli": "WNLI"}
_SUPER_GLUE = {"boolq": "BoolQ", "cb": "CB", "copa": "COPA", "multirc": "MultiRC",
               "record": "ReCoRD", "rte": "RTE", "wic": "WiC", "wsc.fixed": "WSC"}


def write_files(root: pathlib.Path) -> None:
    """Writes `FILES` below a directory."""
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


# --- tensorflow-datasets reads, t5 prepares ------------------------------------------------------
def _builders(root: pathlib.Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """name -> (builder, arguments of its `_generate_examples` by split)."""
    from tensorflow_datasets.text import glue, super_glue

    made: dict[str, tuple[Any, dict[str, Any]]] = {}
    for config, folder in _GLUE.items():
        splits = {"train": "train", "validation": "dev"}
        if config == "mnli":
            splits = {"train": "train", "validation_matched": "dev_matched",
                      "validation_mismatched": "dev_mismatched"}
        arguments = {split: {"data_file": root / f"GLUE/{folder}/{stem}.tsv", "split": "dev"}
                     for split, stem in splits.items()}
        made[f"glue_{config}"] = glue.Glue(config=config, data_dir=root / "tfds"), arguments
    for config, folder in _SUPER_GLUE.items():
        arguments = {split: {"data_file": root / f"SuperGLUE/{folder}/{stem}.jsonl", "split": split}
                     for split, stem in {"train": "train", "validation": "val"}.items()}
        builder = super_glue.SuperGlue(config=config, data_dir=root / "tfds")
        made[f"super_glue_{config.removesuffix('.fixed')}"] = builder, arguments
    return made


def _mrpc_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """GLUE's own files of MRPC, which tensorflow-datasets does not read, by the csv module."""
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        return [{"sentence1": row["#1 String"], "sentence2": row["#2 String"],
                 "label": int(row["Quality"]), "idx": i} for i, row in
                enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))]


def _squad_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    from tensorflow_datasets.question_answering import qa_utils

    return [row for _, row in qa_utils.generate_squadlike_examples(path)]


def _plain(value: Any) -> Any:
    """JSON-able."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return _plain(value.tolist()) if isinstance(value, (np.ndarray, np.generic)) else value


def _prepared(preprocess: Any, rows: list[Any]) -> list[Any]:
    """What a preprocessor of t5 makes of encoded rows."""
    import tensorflow as tf

    found: list[Any] = []
    for row in rows:
        found += list(preprocess(tf.data.Dataset.from_tensors(_tensors(row))).as_numpy_iterator())
    return _plain(found)


def _tensors(value: Any) -> Any:
    """A row as tensors; a sequence of texts is one tensor."""
    import tensorflow as tf

    if isinstance(value, dict):
        return {key: _tensors(v) for key, v in value.items()}
    return tf.constant(list(value) if isinstance(value, (list, np.ndarray)) and np.ndim(value)
                       else value)


def prompt_cases(root: pathlib.Path) -> dict[str, Any]:
    """task -> features' files, rows and t5's examples by split."""
    import functools

    from t5.data import glue_utils, preprocessors
    from tensorflow_datasets.question_answering import qa_utils
    from tensorflow_datasets.text import definite_pronoun_resolution

    cases: dict[str, Any] = {}
    for name, (builder, splits) in _builders(root).items():
        rows = {split: [row for _, row in builder._generate_examples(**arguments)]
                for split, arguments in splits.items() if name != "glue_mrpc"}
        if name == "glue_mrpc":
            rows = {split: _mrpc_rows(root / f"GLUE/MRPC/{stem}.tsv")
                    for split, stem in (("train", "train"), ("validation", "dev"))}
        preprocess = {split: glue_utils.get_glue_text_preprocessor(builder.builder_config)
                      for split in rows}
        cases[name] = _case(builder.info.features, rows, preprocess)
        if name == "super_glue_wsc":
            cases["super_glue_wsc_marked"] = cases[name]
            cases[name] = _case(builder.info.features, rows, {
                split: functools.partial(preprocessors.wsc_simple,
                                         correct_referent_only=split == "train")
                for split in rows})
    squad = {"train": _squad_rows(root / "squad/train-v1.1.json"),
             "validation": _squad_rows(root / "squad/dev-v1.1.json")}
    cases["squad"] = _case(qa_utils.squadlike_features(), squad,
                           dict.fromkeys(squad, preprocessors.squad))
    dpr = definite_pronoun_resolution.DefinitePronounResolution(data_dir=root / "tfds")
    rows = {"train": [row for _, row in dpr._generate_examples(root / "dpr/train.c.txt")]}
    cases["dpr"] = _case(dpr.info.features, rows, {
        "train": preprocessors.definite_pronoun_resolution_simple})
    return cases


def _case(features: Any, rows: dict[str, list[Any]], preprocess: dict[str, Any]) -> dict[str, Any]:
    encoded = {split: [features.encode_example(row) for row in part]
               for split, part in rows.items()}
    with tempfile.TemporaryDirectory() as folder:
        features.save_config(folder)
        files = {path.name: path.read_text() for path in pathlib.Path(folder).iterdir()}
    examples = {split: _prepared(preprocess[split], part) for split, part in encoded.items()}
    return {"features": files, "rows": _plain(rows), "examples": examples}


# --- metrics -------------------------------------------------------------------------------------
_ANSWERS = (
    (["the Eiffel Tower", "Eiffel Tower"], "Eiffel Tower."), (["330 m"], "330 m tall"),
    (["1889"], "in the year 1889"), (["José"], "Jose"), (["o ' clock"], "o'clock"),
    (["a"], "the"), (["red", "dark red"], "dark red wine"), (["x y x"], "x x"), (["white"], ""),
    (["An apple a day"], "apple day"), (["U . S ."], "US"), (["state-of-the-art"], "stateoftheart"))
_REFERENTS = (
    ("The cup", "the cup", 1), ("The cup", "cup", 1), ("The cup", "the shelf", 0),
    ("the fuzzy bunny", "bunny", 1), ("Bob's hat", "Bob", 0), ("Bob's hat", "bob's", 1),
    ("Ann", "", 0), ("Ann", "the", 1), ("Ann and Sue", "Sue", 0), ("Sue", "Ann and Sue", 1),
    ("my dog", "dog my", 1), ("these men", "men ", 1))


def metric_cases() -> dict[str, Any]:
    """task -> texts said, the truth, and t5's metrics of them."""
    from t5.data import glue_utils, postprocessors
    from t5.evaluation import metrics
    from tensorflow_datasets.text import glue, super_glue

    rng = np.random.default_rng(5)
    cases: dict[str, Any] = {}
    configs = {f"glue_{n}": c for n, c in glue.Glue.builder_configs.items() if n in _GLUE}
    configs |= {f"super_glue_{n}": c for n, c in super_glue.SuperGlue.builder_configs.items()
                if n in _SUPER_GLUE}
    for name, config in configs.items():
        if config.name in ("stsb", "record", "multirc", "wsc.fixed", "mnli"):
            continue
        post = glue_utils.get_glue_postprocess_fn(config)
        functions = (glue_utils.get_glue_metric if name.startswith("glue")
                     else glue_utils.get_super_glue_metric)(config.name)
        words = list(config.label_classes)
        truth = rng.integers(0, len(words), 40).tolist()
        said = _noisy(rng, words, truth)
        cases[name] = _metric_case(functions, truth, [post(text) for text in said], said, truth)
    words = ["entailment", "neutral", "contradiction"]
    truth = rng.integers(0, 3, 30).tolist()
    said = _noisy(rng, words, truth)
    post = glue_utils.get_glue_postprocess_fn(configs["glue_mnli"])
    cases["glue_mnli"] = {"said": said, "truth": truth, "matched": 12, "values": {
        f"accuracy_{subset}": metrics.accuracy(truth[part], [post(t) for t in said[part]])
        ["accuracy"] for subset, part in (("matched", slice(12)), ("mismatched", slice(12, None)))}}
    scores = rng.uniform(0, 5, 30).round(2).tolist()
    said = [f"{s + rng.normal(0, 1):.1f}" for s in scores[:-2]] + ["similar", ""]
    cases["glue_stsb"] = _metric_case(
        glue_utils.get_glue_metric("stsb"), scores,
        [postprocessors.string_to_float(text) for text in said], said, scores)
    cases["super_glue_multirc"] = _multirc_case(rng)
    cases["squad"] = _metric_case([metrics.squad], [a for a, _ in _ANSWERS],
                                  [s for _, s in _ANSWERS], [s for _, s in _ANSWERS],
                                  [a for a, _ in _ANSWERS])
    # Evaluated as t5 does: an example an answer, of which one a query counts.
    doubled = [(i, a, s) for i, (a, s) in enumerate(_ANSWERS) for _ in a]
    cases["super_glue_record"] = _metric_case(
        glue_utils.get_super_glue_metric("record"),
        [{"value": a, "group": (0, i)} for i, a, _ in doubled],
        [{"value": s} for _, _, s in doubled], [s for _, s in _ANSWERS], [a for a, _ in _ANSWERS])
    predicted = [postprocessors.wsc_simple(s, example={"targets_pretokenized": r})
                 for r, s, _ in _REFERENTS]
    cases["super_glue_wsc"] = _metric_case(
        [metrics.accuracy], [label for *_, label in _REFERENTS], predicted,
        [s for _, s, _ in _REFERENTS], [[label, r] for r, _, label in _REFERENTS])
    cases["super_glue_wsc"]["predicted"] = predicted
    return cases


def _noisy(rng: np.random.Generator, words: list[str], truth: list[int]) -> list[str]:
    """Mostly right, sometimes another class, sometimes no class at all."""
    said = [words[t] if rng.random() < 0.6 else words[int(rng.integers(len(words)))] for t in truth]
    return [text if rng.random() < 0.9 else "maybe" for text in said]


def _multirc_case(rng: np.random.Generator) -> dict[str, Any]:
    from t5.data import postprocessors
    from t5.evaluation import metrics

    truth = rng.integers(0, 2, 40).tolist()
    groups = np.repeat(np.arange(16), 3)[:40].tolist()
    said = _noisy(rng, ["False", "True"], truth)
    targets = [{"value": t, "group": g} for t, g in zip(truth, groups, strict=True)]
    predicted = [postprocessors.multirc(text) for text in said]
    functions = [metrics.multirc_f1_over_all_answers, metrics.mean_group_metric(metrics.all_match)]
    return _metric_case(functions, targets, predicted, said,
                        [[t, f"0/{g}"] for t, g in zip(truth, groups, strict=True)])


def _metric_case(functions: Any, targets: list[Any], predicted: list[Any], said: list[str],
                 truth: list[Any]) -> dict[str, Any]:
    values: dict[str, float] = {}
    for function in functions:
        values |= function(targets, predicted)
    return {"said": said, "truth": truth, "values": {k: float(v) for k, v in values.items()}}


def average_case() -> dict[str, Any]:
    """Made-up scores of every metric, and t5's two averages of them."""
    import pandas
    from t5.evaluation import eval_utils

    rng = np.random.default_rng(6)
    names = {tag: metric for tag, metric in eval_utils.METRIC_NAMES.items()
             if "glue" in tag and "average" not in tag}
    scores = {tag: round(float(rng.uniform(20, 95)), 2) for tag in names}
    frame = pandas.DataFrame({names[tag].name: [value] for tag, value in scores.items()})
    done = eval_utils.compute_avg_glue(frame)
    return {"scores": scores, "glue": float(done["Average GLUE Score"][0]),
            "super_glue": float(done["Average SuperGLUE Score"][0])}


def main() -> int:
    """Writes the golden file."""
    from importlib.metadata import version

    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_files(root)
        prompts = prompt_cases(root)
    golden = {
        "origin": {name: version(name) for name in ("t5", "tensorflow-datasets", "tensorflow",
                                                     "scikit-learn", "scipy")},
        "prompts": prompts, "metrics": metric_cases(), "averages": average_case()}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=None, separators=(",", ":"), sort_keys=True,
                                 ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
