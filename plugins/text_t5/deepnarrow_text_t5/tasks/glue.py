"""GLUE (Wang et al. 2018) in T5's form, from its TSV files or from tensorflow-datasets.

WNLI is here and not in the averages: T5 leaves it out, for its validation split contradicts its
train split.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from deepnarrow.errors import InputError
from deepnarrow_text_t5.tasks import prompts
from deepnarrow_text_t5.tasks.benchmark import BenchmarkTask, convert_fields
from deepnarrow_text_t5.tasks.examples import TextExample
from deepnarrow_text_t5.tasks.readers import Placed, column, read_tsv, text
from deepnarrow_text_t5.tasks.scoring import (
    Scorer,
    score_accuracy,
    score_f1,
    score_matthews,
    score_similarity,
    score_subsets,
)

FILES = {"train": "train.tsv", "validation": "dev.tsv", "validation_matched": "dev_matched.tsv",
         "validation_mismatched": "dev_mismatched.tsv"}
COLA_HEADER = ("source", "label", "mark", "sentence")
MRPC_COLUMNS = {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}
_TWO_SENTENCES = ("sentence1", "sentence2")
_MNLI_PARTS = {"train": ("train",), "validation": ("validation_matched", "validation_mismatched")}


def _read(
    folder: Path, part: str, where: str, *, columns: Mapping[str, str],
    header: tuple[str, ...] | None = None,
) -> Iterator[Placed]:
    """Reads one TSV file; a line that ends early is left out, as tensorflow-datasets does (QQP)."""
    for placed in read_tsv(folder / FILES[part], where, header):
        row = {field: column(placed, name) for field, name in columns.items()}
        if None not in row.values() and row["label"] != "":
            yield Placed(placed.place, row)


def _read_mrpc(folder: Path, part: str, where: str) -> Iterator[Placed]:
    """Reads GLUE's `train.tsv` and `dev.tsv`, or Microsoft's one file by GLUE's list of ids."""
    whole = folder / "msr_paraphrase_train.txt"
    if (folder / FILES[part]).is_file() or not whole.is_file():
        yield from _read(folder, part, where, columns=MRPC_COLUMNS)
        return
    ids = {tuple(row.values()) for _, row in read_tsv(folder / "dev_ids.tsv", where, ("a", "b"))}
    for placed in read_tsv(whole, where):
        is_dev = (column(placed, "#1 ID"), column(placed, "#2 ID")) in ids
        if is_dev == (part == "validation"):
            yield Placed(placed.place, {f: column(placed, c) for f, c in MRPC_COLUMNS.items()})


def _convert_mnli(placed: Placed, part: str, *, words: tuple[str, ...]) -> list[TextExample]:
    (example,) = convert_fields(placed, part, task="mnli", fields=("hypothesis", "premise"),
                                words=words, group="premise")
    return [example._replace(reference=(example.label, part.removeprefix("validation_")))]


def _convert_stsb(placed: Placed, part: str) -> list[TextExample]:
    del part
    for name in _TWO_SENTENCES:
        text(placed, name)
    inputs = prompts.fields("stsb", placed.row, _TWO_SENTENCES)
    try:
        score = float(column(placed, "label"))
    except (ValueError, TypeError):
        score = -1.0
    if not 0 <= score <= 5:
        raise InputError(placed.place, "score is out of range", got=repr(placed.row["label"]),
                         expected="0..5")
    return [TextExample(inputs, prompts.similarity(score), None, score, inputs)]


def _classes(
    config: str, folder: str, fields: tuple[str, ...], words: tuple[str, ...], score: Scorer,
    metrics: tuple[str, ...] = ("accuracy",), *, label: str = "label",
    read: Callable[[Path, str, str], Iterator[Placed]] | None = None,
) -> BenchmarkTask:
    columns = {**{field: field for field in fields}, "label": label}
    return BenchmarkTask(
        f"glue_{config}", "glue", config, folder,
        read=read or functools.partial(_read, columns=columns),
        convert=functools.partial(convert_fields, task=config, fields=fields, words=words,
                                  group=None),
        score=score, metrics=metrics, words=words)


_NLI = ("entailment", "neutral", "contradiction")
_STSB = BenchmarkTask(
    "glue_stsb", "glue", "stsb", "STS-B",
    read=functools.partial(_read, columns={
        "sentence1": "sentence1", "sentence2": "sentence2", "label": "score"}),
    convert=_convert_stsb, score=score_similarity,
    metrics=("pearson_corrcoef", "spearman_corrcoef"), referenced=True)
_MNLI = BenchmarkTask(
    "glue_mnli", "glue", "mnli", "MNLI",
    read=functools.partial(_read, columns={
        "premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}),
    convert=functools.partial(_convert_mnli, words=_NLI), score=score_subsets,
    metrics=("accuracy_matched", "accuracy_mismatched"), words=_NLI, referenced=True,
    parts=_MNLI_PARTS)

GLUE = (
    _classes("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), score_matthews,
             ("matthews_corrcoef",), read=functools.partial(
                 _read, columns={"sentence": "sentence", "label": "label"}, header=COLA_HEADER)),
    _classes("sst2", "SST-2", ("sentence",), ("negative", "positive"), score_accuracy),
    _classes("mrpc", "MRPC", _TWO_SENTENCES, ("not_equivalent", "equivalent"), score_f1,
             ("f1", "accuracy"), read=_read_mrpc),
    _STSB,
    _classes("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), score_f1,
             ("f1", "accuracy"), label="is_duplicate"),
    _MNLI,
    _classes("qnli", "QNLI", ("question", "sentence"), ("entailment", "not_entailment"),
             score_accuracy),
    _classes("rte", "RTE", _TWO_SENTENCES, ("entailment", "not_entailment"), score_accuracy),
    _classes("wnli", "WNLI", _TWO_SENTENCES, ("not_entailment", "entailment"), score_accuracy),
)
