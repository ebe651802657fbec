"""Rows of labelled data from disk: TSV, JSON lines, Parquet, prepared tensorflow-datasets.

No TensorFlow.

Every row comes with its place (`file 'dev.tsv', line 7`), which errors name.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from deepnarrow.errors import InputError, suggest
from deepnarrow_text_t5.readers import parquet_rows

MAX_LINE = 50_000_000  # characters; a longer one is no row
_BATCH = 256  # records read at a time
_GZIP_MAGIC = b"\x1f\x8b"
_PREPARE = "prepare it again with tfds.builder(..., file_format='array_record')"


class Placed(NamedTuple):
    """A row and where it stands."""

    place: str
    row: Mapping[str, Any]


def read_lines(path: Path, where: str) -> Iterator[tuple[str, str]]:
    """Yields (place, line) of a text file, plain or gzipped, without line ends and empty lines.

    Raises:
      InputError: no such file, not UTF-8 (the line is named), a damaged gzip, an endless line.
    """
    number = 0
    try:
        with io.TextIOWrapper(_open(path, where), encoding="utf-8-sig") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise InputError(_place(where, path, number), "line is too long",
                                     expected=f"at most {MAX_LINE} characters")
                if line := line.rstrip("\n"):
                    yield _place(where, path, number), line
    except UnicodeDecodeError as error:
        raise InputError(_place(where, path, _undecodable_line(path, where)), "is not UTF-8",
                         got=error.reason, hint="convert the file to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{where}, file '{path}'", "is damaged", got=error,
                         hint="fetch it again") from error


def _place(where: str, path: Path, number: int) -> str:
    return f"{where}, file '{path}', line {number}"


def _open(path: Path, where: str) -> BinaryIO:
    try:
        with open(path, "rb") as file:
            head = file.read(len(_GZIP_MAGIC))
        is_gzip = head == _GZIP_MAGIC
        return cast(BinaryIO, gzip.open(path)) if is_gzip else path.open("rb")
    except OSError as error:
        raise InputError(f"{where}, file '{path}'", "cannot be read",
                         got=error.strerror) from error


def _undecodable_line(path: Path, where: str) -> int:
    """The number of the first line that is not UTF-8."""
    with _open(path, where) as file:
        number = 0
        while line := file.readline():
            number += 1
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    return number


def read_tsv(path: Path, where: str, header: Sequence[str] | None = None) -> Iterator[Placed]:
    """Yields the rows of a tab-separated file, quotes meaning nothing.

    Where a row ends early, the missing columns are None; the caller decides.

    Args:
      path: the file.
      where: what errors name first.
      header: names of the columns; None to take them from the first line.
    """
    for place, line in read_lines(path, where):
        cells = line.split("\t")
        if header is None:
            header = cells
            continue
        yield Placed(place, dict(itertools.zip_longest(header, cells[:len(header)])))


def read_jsonl(path: Path, where: str) -> Iterator[Placed]:
    """Yields the objects of a file of JSON lines.

    Raises:
      InputError: a line is not a JSON object.
    """
    for place, line in read_lines(path, where):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(place, "is not JSON", got=error) from error
        if not isinstance(row, dict):
            raise InputError(place, "is not a JSON object", got=type(row).__name__)
        yield Placed(place, row)


def read_parquet(path: Path, where: str, text: str, others: Sequence[str]) -> Iterator[Placed]:
    """Yields the rows of a Parquet file, with these columns alone.

    Raises:
      InputError: what `parquet_rows` raises.
    """
    where = f"{where}, file '{path}'"
    for number, _, values in parquet_rows(path, text, others, 0, where):
        yield Placed(f"{where}, row {number + 1}", dict(zip((text, *others), values, strict=True)))


def read_json(path: Path, where: str) -> Any:
    """Returns the content of a JSON file.

    Raises:
      InputError: it cannot be read, or is no JSON.
    """
    text = "\n".join(line for _, line in read_lines(path, where))
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}, file '{path}'", "is not JSON", got=error) from error


def column(placed: Placed, name: str) -> Any:
    """Returns a column of a row.

    Raises:
      InputError: the row has no such column; the message lists those that it has.
    """
    if name not in placed.row:
        known = [str(key) for key in placed.row]
        near = suggest(name, known)
        raise InputError(placed.place, f"has no column {name!r}", got=", ".join(known),
                         hint=f"did you mean {near}?" if near else None)
    return placed.row[name]


def text(placed: Placed, name: str) -> str:
    """Returns a column that must hold text.

    Raises:
      InputError: the row has no such column, or something else in it.
    """
    value = column(placed, name)
    if not isinstance(value, str):
        raise InputError(placed.place, f"column {name!r} is not text", got=repr(value))
    return value


# --- tensorflow-datasets -------------------------------------------------------------------------
def tfds_folder(folder: Path) -> Path | None:
    """Returns the prepared folder that `folder` is or, version by version, holds; else None."""
    if (folder / "dataset_info.json").is_file():
        return folder
    versions = sorted(folder.glob("*/dataset_info.json"), key=lambda p: _version(p.parent.name))
    return versions[-1].parent if versions else None


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in name.split("."))


def read_tfds(folder: Path, split: str, where: str) -> Iterator[Placed]:
    """Yields the rows of a split of a folder that tensorflow-datasets prepared as ArrayRecord.

    Raises:
      InputError: not such a folder, no such split, another file format, text that is not UTF-8.
    """
    import tensorflow_datasets as tfds

    place = f"{where}, folder '{folder}'"
    try:
        builder: Any = tfds.builder_from_directory(folder)
        file_format = builder.info.file_format
    except Exception as error:  # the library's own errors are of many kinds
        raise InputError(place, "is no prepared tensorflow-datasets folder", got=error) from error
    if file_format is None or file_format.value != "array_record":
        raise InputError(place, "has no random access", got=file_format and file_format.value,
                         expected="array_record", hint=_PREPARE)
    if split not in builder.info.splits:
        raise InputError(place, f"has no split {split!r}", got=", ".join(builder.info.splits))
    source = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    sequences = {name for name, info in _flat(builder.info.features.get_tensor_info())
                 if info.shape != ()}
    for start in range(0, len(source), _BATCH):
        numbers = range(start, min(start + _BATCH, len(source)))
        for number, record in zip(numbers, source.__getitems__(list(numbers)), strict=True):
            one = f"{place}, {split} row {number}"
            try:
                yield Placed(one, _decode(record, sequences))
            except UnicodeDecodeError as error:
                raise InputError(one, "is not UTF-8", got=error.reason) from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by `outer/inner` names, as a serialised example has them."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _decode(record: bytes, sequences: Container[str]) -> dict[str, Any]:
    """Returns the fields of a serialised `tf.train.Example`, text decoded.

    A third of the time that the library's own decoding takes, which makes NumPy arrays of each.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    proto: Any = tf_example_pb2  # the classes are made when it is imported
    row: dict[str, Any] = {}
    for name, feature in proto.Example.FromString(record).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        if kind == "bytes_list":
            values = [value.decode() for value in values]
        *outer, inner = name.split("/")
        table = row
        for key in outer:
            table = table.setdefault(key, {})
        table[inner] = values if name in sequences or not values else values[0]
    return row
