"""Anybody's labelled file as a task, in one line: `jsonl:/data/reviews.jsonl.gz#text->stars`."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deepnarrow.errors import InputError, shorten
from deepnarrow_text_t5.cache import share
from deepnarrow_text_t5.tasks.benchmark import check_split
from deepnarrow_text_t5.tasks.examples import TextExample
from deepnarrow_text_t5.tasks.readers import (
    Placed,
    column,
    read_jsonl,
    read_parquet,
    read_tsv,
    text,
)

FORM = "KIND:PATH#TEXT->LABEL, with KIND jsonl, tsv or parquet; PATH may hold {split}"
SPLIT_FIELD = "{split}"  # in a path: a file a split, which decides instead of the text's hash
SPLITS = ("train", "validation", "test")
# Shares of texts that go to train and to validation; the rest is the test split.
TRAIN, VALIDATION = 0.8, 0.1
MAX_CLASSES = 1000
_LINE = re.compile(r"(jsonl|tsv|parquet):(.+)#([^#]+)->([^#]+)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class Labelled(NamedTuple):
    """A labelled file: (text, class, split) in order, and what the classes are called."""

    rows: tuple[tuple[str, int, str], ...]
    words: tuple[str, ...]


@functools.cache
def read_labelled(name: str, line: str) -> Labelled:
    """Reads the file, or the three files, of a custom task.

    The classes are the distinct labels, integers in the order of numbers, other labels in that of
    letters.

    Args:
      name: the task's.
      line: format, path, and names of the columns: see `FORM`.

    Raises:
      InputError: the line or the name cannot be, the file or a column is missing, a text is empty,
        a label is no text, integer or bool, there are not 2 to 1000 classes, or a text stands in
        the files of two splits.
    """
    where = f"data.custom_tasks.{name}"
    found = _LINE.fullmatch(line) if isinstance(line, str) else None
    if not _NAME.fullmatch(name):
        raise InputError(where, "is no name of a task", expected="letters, digits, _ and -")
    if found is None:
        raise InputError(where, "cannot be read", got=repr(line), expected=FORM)
    kind, path, text_column, label_column = found.groups()
    rows = [(_text(placed, text_column), _label(placed, label_column), split)
            for split, file in _files(path)
            for placed in _rows(kind, Path(file).expanduser(), where, text_column, label_column)]
    if not rows:
        raise InputError(f"{where}, file '{path}'", "has no rows")
    rows = [(row, label, split or _split_of(row)) for row, label, split in rows]
    labels = {label for _, label, _ in rows}
    if not 2 <= len(labels) <= MAX_CLASSES:
        raise InputError(f"{where}, column {label_column!r}", "has no usable number of classes",
                         got=len(labels), expected=f"2..{MAX_CLASSES}",
                         hint="is it the column of the labels?")
    words = tuple(sorted(labels, key=_order(labels)))
    index = {word: i for i, word in enumerate(words)}
    _check_splits(rows, where)
    _warn_of_contradictions(rows, where)
    return Labelled(tuple((row, index[label], split) for row, label, split in rows), words)


def _rows(
    kind: str, path: Path, where: str, text_column: str, label_column: str
) -> Iterator[Placed]:
    if kind == "parquet":
        return read_parquet(path, where, text_column, (label_column,))
    return (read_jsonl if kind == "jsonl" else read_tsv)(path, where)


def _files(path: str) -> list[tuple[str, str]]:
    """(split, file); no split where the text's hash decides."""
    if SPLIT_FIELD not in path:
        return [("", path)]
    return [(split, path.replace(SPLIT_FIELD, split)) for split in SPLITS]


def _check_splits(rows: list[tuple[str, str, str]], where: str) -> None:
    """Refuses texts that files put in two splits."""
    first: dict[str, str] = {}
    for row, _, split in rows:
        before = first.setdefault(_alike(row), split)
        if before != split:
            raise InputError(where, "a text stands in the files of two splits",
                             got=f"{shorten(row)!r} in {before} and {split}",
                             hint="leave it out of all but one")


def _warn_of_contradictions(rows: list[tuple[str, str, str]], where: str) -> None:
    """Warns of texts that stand with several labels: no model can be right about all of them."""
    first: dict[str, str] = {}
    several = {alike for row, label, _ in rows
               if first.setdefault(alike := _alike(row), label) != label}
    if several:
        number = sum(_alike(row) in several for row, _, _ in rows)
        warnings.warn(f"{where}: {number} of {len(rows)} rows have a text that stands with several "
                      f"labels, e.g. {shorten(min(several))!r}", stacklevel=2)


def _alike(row: str) -> str:
    return " ".join(row.lower().split())


def _text(placed: Placed, name: str) -> str:
    value = text(placed, name)
    if not value.strip():
        raise InputError(placed.place, f"column {name!r} is empty", hint="leave such rows out")
    return value


def _label(placed: Placed, name: str) -> str:
    value = column(placed, name)
    if isinstance(value, (str, int)) and str(value).strip():
        return str(value)
    raise InputError(placed.place, f"column {name!r} is no label", got=repr(value),
                     expected="text, an integer or a bool")


def _order(labels: set[str]) -> Any:
    return int if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels) else str


def read_split(name: str, line: str, split: str) -> list[TextExample]:
    """Returns a split of a custom task: texts that are alike are in one split.

    Raises:
      InputError: what `read_labelled` raises, and a split with nothing in it.
    """
    check_split(name, split)
    labelled = read_labelled(name, line)
    wanted = split.removesuffix("_full")
    examples = [
        TextExample(f"{name}: {row}", labelled.words[label], label, None, row)
        for row, label, place in labelled.rows if place == wanted]
    if not examples:
        raise InputError(f"task {name!r}", f"split {split!r} is empty",
                         got=f"{len(labelled.rows)} rows in all, of {shorten(line)}",
                         hint="the splits take 80, 10 and 10% of the texts: more rows are needed")
    return examples


def _split_of(row: str) -> str:
    place = share("custom task", _alike(row))
    if place < TRAIN:
        return "train"
    return "validation" if place < TRAIN + VALIDATION else "test"
