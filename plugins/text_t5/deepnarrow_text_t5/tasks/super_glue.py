"""SuperGLUE (Wang et al. 2019) in T5's form, from its JSON lines or from tensorflow-datasets.

WSC has two forms. `super_glue_wsc` is T5's: the pronoun is marked, the target is what it refers to,
and training takes the examples whose noun is the referent only, and those of Definite Pronoun
Resolution where `data.tasks.dpr` says where they are, as T5's mixture does. `super_glue_wsc_marked`
asks whether the marked noun is the referent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepnarrow.errors import InputError
from deepnarrow_text_t5.tasks import prompts
from deepnarrow_text_t5.tasks.benchmark import BenchmarkTask, convert_fields
from deepnarrow_text_t5.tasks.examples import TextExample, label_index
from deepnarrow_text_t5.tasks.readers import (
    Placed,
    column,
    read_jsonl,
    read_lines,
    read_tfds,
    text,
    tfds_folder,
)
from deepnarrow_text_t5.tasks.scoring import (
    Scorer,
    score_accuracy,
    score_answers,
    score_class_f1,
    score_multirc,
    score_referents,
)

FILES = {"train": "train.jsonl", "validation": "val.jsonl"}
TARGET_LENGTH = 32  # of all of SuperGLUE, so that one model may serve all
BOOLEAN = ("False", "True")
_WSC_FIELDS = ("text", "span1_text", "span1_index", "span2_text", "span2_index", "label")


def _read(folder: Path, part: str, where: str) -> Iterator[Placed]:
    return read_jsonl(folder / FILES[part], where)


# --- MultiRC -------------------------------------------------------------------------------------
def _read_multirc(folder: Path, part: str, where: str) -> Iterator[Placed]:
    for placed in _read(folder, part, where):
        with_text = _table(column(placed, "passage"), placed.place, "text", "questions")
        for question in with_text["questions"]:
            _table(question, placed.place, "question", "answers", "idx")
            for answer in question["answers"]:
                _table(answer, placed.place, "text", "label", "idx")
                yield Placed(placed.place, {
                    "paragraph": with_text["text"], "question": question["question"],
                    "answer": answer["text"], "label": answer["label"],
                    "idx": {"paragraph": placed.row.get("idx"), "question": question["idx"],
                            "answer": answer["idx"]}})


def _convert_multirc(placed: Placed, part: str) -> list[TextExample]:
    del part
    row, label = placed.row, label_index(column(placed, "label"), BOOLEAN, placed.place)
    for name in ("paragraph", "question", "answer"):
        text(placed, name)
    question = f"{row['idx']['paragraph']}/{row['idx']['question']}"
    return [TextExample(prompts.multirc(row), BOOLEAN[label], label, (label, question),
                        row["paragraph"])]


# --- ReCoRD --------------------------------------------------------------------------------------
def _read_record(folder: Path, part: str, where: str) -> Iterator[Placed]:
    for placed in _read(folder, part, where):
        passage = _table(column(placed, "passage"), placed.place, "text", "entities")
        words = passage["text"]
        entities = {words[span["start"]:span["end"] + 1] for span in passage["entities"]}
        for query in column(placed, "qas"):
            _table(query, placed.place, "query", "answers")
            answers = {answer["text"] for answer in query["answers"]}
            yield Placed(placed.place, {
                "passage": words, "query": query["query"], "entities": sorted(entities),
                "answers": sorted(answers)})


def _convert_record(placed: Placed, part: str) -> list[TextExample]:
    """One example an answer to train on, one a query to evaluate."""
    answers = column(placed, "answers")
    if not answers:
        raise InputError(placed.place, "has no answers", expected="at least one")
    for name in ("passage", "query"):
        text(placed, name)
    inputs = prompts.record(placed.row)
    targets = answers if part == "train" else answers[:1]
    return [TextExample(inputs, target, None, tuple(answers), placed.row["passage"])
            for target in targets]


# --- WSC -----------------------------------------------------------------------------------------
def _read_wsc(folder: Path, part: str, where: str) -> Iterator[Placed]:
    for placed in _read(folder, part, where):
        spans = _table(column(placed, "target"), placed.place, *_WSC_FIELDS[1:-1])
        row = {"text": column(placed, "text"), "label": column(placed, "label"), **spans}
        for span in ("span1", "span2"):
            row[f"{span}_text"] = _mend_span(row["text"], row[f"{span}_text"],
                                             row[f"{span}_index"])
        yield Placed(placed.place, row)


def _mend_span(sentence: str, span: str, index: int) -> str:
    """Returns a span as it stands in the text: case, final full stop and line breaks may differ.

    As tensorflow-datasets' `wsc.fixed`; a span that stands there in no way is left as it is.
    """
    words = sentence.split()
    if span in sentence or not 0 <= index < len(words):
        return span
    first = span[:1].lower() if words[index][0].islower() else span[:1].upper()
    mended = (first + span[1:]).rstrip(".").replace("\n", " ")
    return mended if mended in sentence else span


def _convert_wsc(placed: Placed, part: str) -> list[TextExample]:
    """T5's form: the pronoun is marked, the noun is the target."""
    row, label = placed.row, label_index(column(placed, "label"), BOOLEAN, placed.place)
    if part == "train" and not label:
        return []
    for name in ("text", "span2_text"):
        text(placed, name)
    noun = text(placed, "span1_text")
    return [TextExample(prompts.wsc_pronoun(row, placed.place), noun, None, (label, noun),
                        row["text"])]


def _convert_wsc_marked(placed: Placed, part: str) -> list[TextExample]:
    del part
    label = label_index(column(placed, "label"), BOOLEAN, placed.place)
    for name in ("text", "span1_text", "span2_text"):
        text(placed, name)
    return [TextExample(prompts.wsc_marked(placed.row), BOOLEAN[label], label, None,
                        placed.row["text"])]


def read_definite_pronouns(folder: Path) -> list[TextExample]:
    """Returns the train split of Definite Pronoun Resolution (Rahman and Ng 2012) in WSC's form.

    Args:
      folder: a prepared tensorflow-datasets one, or the official one with `train.c.txt`.

    Raises:
      InputError: it is neither, or a row is not what it should be.
    """
    where, prepared = "task 'super_glue_wsc', data.tasks.dpr", tfds_folder(folder)
    rows = (read_tfds(prepared, "train", where) if prepared
            else _read_dpr(folder / "train.c.txt", where))
    examples = []
    for placed in rows:
        candidates = column(placed, "candidates")
        noun = candidates[label_index(placed.row["label"], candidates, placed.place)]
        inputs = prompts.definite_pronoun(placed.row)
        examples.append(TextExample(inputs, noun, None, (1, noun), inputs))
    return examples


def _read_dpr(path: Path, where: str) -> Iterator[Placed]:
    """Blocks of four lines: sentence, pronoun, two candidates, the right one."""
    lines = [(place, line.strip()) for place, line in read_lines(path, where)]
    blocks = [(place, line) for place, line in lines if line]
    if len(blocks) % 4:
        raise InputError(f"{where}, file '{path}'", "is not in blocks of four lines",
                         got=f"{len(blocks)} lines")
    for i in range(0, len(blocks), 4):
        (place, sentence), (_, pronoun), (_, pair), (_, correct) = blocks[i:i + 4]
        candidates = [name.strip() for name in pair.split(",")]
        yield Placed(place, {"sentence": sentence, "pronoun": pronoun, "candidates": candidates,
                             "label": correct})


# --- the table -----------------------------------------------------------------------------------
def _table(value: Any, place: str, *keys: str) -> Any:
    """Returns an object inside a row.

    Raises:
      InputError: it is none, or lacks a key.
    """
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise InputError(place, f"has no {key!r} where it should",
                             got=", ".join(value) if isinstance(value, dict) else repr(value))
    return value


def _classes(
    config: str, folder: str, fields: tuple[str, ...], words: Sequence[str], score: Scorer,
    metrics: tuple[str, ...] = ("accuracy",), group: str | None = None,
) -> BenchmarkTask:
    return BenchmarkTask(
        f"super_glue_{config}", "super_glue", config, folder, read=_read,
        convert=functools.partial(convert_fields, task=config, fields=fields, words=tuple(words),
                                  group=group),
        score=score, metrics=metrics, words=tuple(words), target_length=TARGET_LENGTH)


_MULTIRC = BenchmarkTask(
    "super_glue_multirc", "super_glue", "multirc", "MultiRC", read=_read_multirc,
    convert=_convert_multirc, score=score_multirc, metrics=("f1", "exact_match"), words=BOOLEAN,
    referenced=True, target_length=TARGET_LENGTH)
_RECORD = BenchmarkTask(
    "super_glue_record", "super_glue", "record", "ReCoRD", read=_read_record,
    convert=_convert_record, score=score_answers, metrics=("em", "f1"), referenced=True,
    target_length=TARGET_LENGTH)
_WSC = BenchmarkTask(
    "super_glue_wsc", "super_glue", "wsc.fixed", "WSC", read=_read_wsc, convert=_convert_wsc,
    score=score_referents, metrics=("accuracy",), referenced=True, target_length=TARGET_LENGTH)
_WSC_MARKED = BenchmarkTask(
    "super_glue_wsc_marked", "super_glue", "wsc.fixed", "WSC", read=_read_wsc,
    convert=_convert_wsc_marked, score=score_accuracy, metrics=("accuracy",), words=BOOLEAN,
    target_length=TARGET_LENGTH)

SUPER_GLUE = (
    _classes("boolq", "BoolQ", ("passage", "question"), BOOLEAN, score_accuracy, group="passage"),
    _classes("cb", "CB", ("hypothesis", "premise"), ("entailment", "contradiction", "neutral"),
             score_class_f1, ("mean_3class_f1", "accuracy"), group="premise"),
    _classes("copa", "COPA", ("choice1", "choice2", "premise", "question"),
             ("choice1", "choice2"), score_accuracy, group="premise"),
    _MULTIRC,
    _RECORD,
    _classes("rte", "RTE", ("hypothesis", "premise"), ("entailment", "not_entailment"),
             score_accuracy, group="premise"),
    _classes("wic", "WiC", ("sentence1", "sentence2", "word"), BOOLEAN, score_accuracy),
    _WSC,
    _WSC_MARKED,
)
