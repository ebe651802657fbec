"""A benchmark's task: where its files lie, how they are read, asked and scored.

The 17 tasks of "Scale Efficiently" and what else T5 has of GLUE and SuperGLUE are tables of
`BenchmarkTask` in `glue.py`, `super_glue.py` and `squad.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from deepnarrow.errors import InputError
from deepnarrow_text_t5.tasks import prompts
from deepnarrow_text_t5.tasks.examples import TextExample, halves, label_index
from deepnarrow_text_t5.tasks.readers import Placed, column, read_tfds, text, tfds_folder
from deepnarrow_text_t5.tasks.scoring import Scorer

TFDS = "tfds:"
TRAIN_AND_VALIDATION = {"train": ("train",), "validation": ("validation",)}
SPLITS = ("train", "validation", "test", "validation_full")


@dataclasses.dataclass(frozen=True)
class BenchmarkTask:
    """One task of a benchmark.

    Attributes:
      name: e.g. `glue_cola`.
      benchmark: `glue`, `super_glue` or `squad`: also the option that says where all of it lies.
      config: its name in tensorflow-datasets, and its folder there.
      folder: its folder in the benchmark's official download.
      read: `read(folder, part, where)` yields the official files' rows, in tensorflow-datasets'
        fields; a label may be a word, an index or a bool.
      convert: `convert(placed row, part)` -> its examples.
      score: compares answers with the truth.
      metrics: the benchmark's own; the mean of them is what the averages count.
      words: what the classes are called, in order; None for free text.
      referenced: the truth is the examples' references, not their labels.
      parts: which splits of tensorflow-datasets make up `train` and `validation`.
      target_length: tokens of the targets where the options do not say.
    """

    name: str
    benchmark: str
    config: str
    folder: str
    read: Callable[[Path, str, str], Iterator[Placed]]
    convert: Callable[[Placed, str], list[TextExample]]
    score: Scorer
    metrics: tuple[str, ...]
    words: tuple[str, ...] | None = None
    referenced: bool = False
    parts: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: TRAIN_AND_VALIDATION)
    target_length: int = 16  # of all of GLUE, so that one model may serve all


def convert_fields(
    placed: Placed, part: str, *, task: str, fields: tuple[str, ...], words: tuple[str, ...],
    group: str | None,
) -> list[TextExample]:
    """Returns the one example of a row of named texts and a label, the form of most tasks.

    Args:
      placed: the row.
      part: of no account here.
      task: what the prompt begins with.
      fields: the texts, in the prompt's order.
      words: the classes.
      group: rows with the same text of this name stay together; None for those alike in all.

    Raises:
      InputError: a text is missing, or the label is none of the words.
    """
    del part
    for name in fields:
        text(placed, name)
    label = label_index(column(placed, "label"), words, placed.place)
    inputs = prompts.fields(task, placed.row, fields)
    return [TextExample(inputs, words[label], label, None,
                        placed.row[group] if group else inputs)]


def locate(task: BenchmarkTask, places: Mapping[str, str]) -> Path:
    """Returns the folder of a task's data: a prepared tensorflow-datasets one, or an official one.

    Args:
      task: whose.
      places: the data's option `tasks`: folders by task, or by benchmark.

    Raises:
      InputError: the options name none, or the folder is not there.
    """
    where = f"task {task.name!r}"
    given = places.get(task.name) or places.get(task.benchmark)
    if not given:
        either = task.name if task.name == task.benchmark else f"{task.name} or {task.benchmark}"
        raise InputError(where, "its data is not configured",
                         hint=f"set data.tasks.{either} to a folder; docs/tasks.md lists the forms")
    root = path_of(given)
    inner = [] if places.get(task.name) and task.name != task.benchmark else [
        root / task.config, root / task.folder]
    if not root.is_dir():
        raise InputError(where, "no such folder", got=root)
    for folder in (*inner, root):
        prepared = tfds_folder(folder)
        if prepared is not None:
            return prepared
    official = next((folder for folder in inner if folder.is_dir()), root)
    if given.startswith(TFDS):
        raise InputError(where, "holds no prepared tensorflow-datasets folder", got=root,
                         expected=f"{task.config}/VERSION/dataset_info.json in it")
    return official


def path_of(place: str) -> Path:
    """Returns the path that an option names.

    >>> path_of("tfds:/data/glue").as_posix()
    '/data/glue'
    """
    return Path(place.removeprefix(TFDS)).expanduser()


def read_split(task: BenchmarkTask, folder: Path, split: str) -> list[TextExample]:
    """Returns the examples of a split.

    `validation` and `test` are the select and the report half of the official validation split,
    whose whole is `validation_full`: the official test splits have no labels.

    Raises:
      InputError: no such split, a file or a column is missing, a label is outside its set, or
        nothing is left.
    """
    where = f"task {task.name!r}"
    check_split(task.name, split)
    official = "train" if split == "train" else "validation"
    examples = [example for part in task.parts[official]
                for placed in _read_part(task, folder, part, where)
                for example in task.convert(placed, part)]
    if split in ("validation", "test"):
        examples = halves(examples)[split == "test"]
    if not examples:
        raise InputError(f"{where}, folder '{folder}'", f"split {split!r} is empty",
                         expected="at least one example")
    return examples


def check_split(name: str, split: str) -> None:
    """Raises `InputError` for a split that no task has."""
    if split not in SPLITS:
        raise InputError(f"task {name!r}", "no such split", got=split,
                         expected=f"one of {', '.join(SPLITS)}")


def _read_part(
    task: BenchmarkTask, folder: Path, part: str, where: str
) -> Iterator[Placed]:
    if (folder / "dataset_info.json").is_file():
        return read_tfds(folder, part, where)
    return task.read(folder, part, where)
