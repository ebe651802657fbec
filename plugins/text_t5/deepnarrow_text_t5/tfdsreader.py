"""Data that tensorflow-datasets prepared, read at random without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepnarrow.errors import InputError, shorten
from deepnarrow_text_t5.readers import SPLITS, Part, no_column

RANDOM_ACCESS = "array_record"
BATCH = 256  # records read at a time


def tfds_parts(folder: Path, column: str) -> list[Part]:
    """Returns a part for each split that is there: `train` and `validation`, or `train` alone.

    Raises:
      InputError: the folder holds no prepared data set, or one without random access.
    """
    where = f"text_t5 data: data set '{folder}'"
    info = read_info(folder, where)
    names = [str(split.get("name")) for split in info.get("splits", ())]
    if "train" not in names:
        raise InputError(where, "has no split 'train'", got=", ".join(names) or "no splits")
    own = [split for split in SPLITS if split in names]
    return [_part(folder, info, split, split if len(own) > 1 else None, column, where)
            for split in own]


def read_info(folder: Path, where: str) -> dict[str, Any]:
    """Returns `dataset_info.json` of a data set that can be read at random.

    Raises:
      InputError: there is none, or its files are TFRecord; with the remedy.
    """
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_bytes())
    except OSError as error:
        below = sorted(p.parent for p in folder.glob("*/dataset_info.json"))
        raise InputError(
            where, "is no prepared tensorflow-datasets folder", got=f"no {path.name}",
            expected="a folder such as c4/en/3.0.1",
            hint=f"did you mean {below[-1]}?" if below else None) from error
    except ValueError as error:
        raise InputError(where, f"{path.name} is not valid JSON", got=error) from error
    if not isinstance(info, dict):
        raise InputError(where, f"{path.name} is no JSON object")
    form = info.get("fileFormat", "tfrecord")
    if form != RANDOM_ACCESS and RANDOM_ACCESS not in info.get("alternativeFileFormats", ()):
        raise InputError(
            where, "cannot be read at random", got=shorten(form), expected=RANDOM_ACCESS,
            hint="with TensorFlow installed, prepare it again: tfds build DATASET "
                 "--file_format=array_record, or convert it: python -m "
                 "tensorflow_datasets.scripts.convert_format")
    return info


def _part(
    folder: Path, info: dict[str, Any], split: str, own: str | None, column: str, where: str
) -> Part:
    files = sorted(folder.glob(f"*-{split}.{RANDOM_ACCESS}-*"))
    if not files:
        raise InputError(where, f"split {split!r} has no files",
                         expected=f"NAME-{split}.{RANDOM_ACCESS}-00000-of-...")
    stats = [(file, file.stat()) for file in files]
    stamp = tuple((str(file.resolve()), s.st_size, s.st_mtime_ns) for file, s in stats)
    return Part(f"{info.get('name')}-{split}", own, stamp, sum(s.st_size for _, s in stats),
                lambda start: _read(folder, split, column, start, where))


def _read(
    folder: Path, split: str, column: str, start: int, where: str
) -> Iterator[tuple[str, float]]:
    import tensorflow_datasets

    tfds: Any = tensorflow_datasets  # its annotations are looser than what it returns
    try:
        builder = tfds.builder_from_directory(str(folder), file_format=RANDOM_ACCESS)
        features = builder.info.features
        if features is None or column not in features:
            raise no_column(where, column, features or (), "")
        only = tfds.features.FeaturesDict({column: features[column]})
        source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        total = len(source)
        for first in range(start, total, BATCH):
            records = source.__getitems__(list(range(first, min(first + BATCH, total))))
            for index, record in enumerate(records, first):
                row = only.deserialize_example_np(record)  # the other features stay unread
                yield _text(row[column], index, where), (index + 1) / total
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(where, f"split {split!r} cannot be read", got=error,
                         hint="is the copy complete?") from error


def _text(value: object, index: int, where: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise InputError(where, f"record {index} is not valid UTF-8",
                         got=f"byte {error.start + 1} of the text") from error
