"""Where text is read from: one line a source, documents one by one, from any of them on.

A source is `KIND:PATH` or `KIND:PATH#COLUMN`; several are joined by ` + `. PATH is a file, a folder
(every file of the kind below it) or a pattern (`*.json.gz`). `{split}` in it stands for `train` and
`validation`, where the files of both are given apart; otherwise the hash of a document decides.

| kind | reads | `#` |
|---|---|---|
| `tfds` | a folder that tensorflow-datasets prepared as ArrayRecord, with its own splits | `text` |
| `c4_json` | C4's public shards, `c4-train.*.json.gz` and `c4-validation.*.json.gz` | `text` |
| `jsonl` | `.jsonl` `.json`, an object a line, also `.gz` | column, `text` |
| `tsv` | `.tsv`, names in the first line, no quoting, also `.gz` | column, `text` |
| `parquet` | `.parquet` | column, `text` |
| `text` | `.txt`, also `.gz` | a document: a `file`, a `paragraph` (up to a blank line), a `line` |
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import InputError, suggest
from deepnarrow_text_t5.corpus import load_corpus
from deepnarrow_text_t5.textfiles import decode, open_lines, whole_file

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

WHERE = "text_t5 data"
SPLITS = ("train", "validation")
SPLIT_FIELD = "{split}"
JOINED_BY = " + "
STDLIB = "stdlib"


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a source that is read in order: a file, or a split of a data set.

    Attributes:
      name: of the file or split, without its folder.
      split: `train` or `validation` where the source says so; None: the document's hash decides.
      stamp: what changes when its content does: size and time of change, of every file.
      num_bytes: its size on the disk.
      read: `read(start)` yields, from record `start` on, each document and which share of the part
        lies before its end; documents may be empty. Raises `InputError` where one cannot be read.
    """

    name: str
    split: str | None
    stamp: tuple[tuple[str, int, int], ...]
    num_bytes: int
    read: Callable[[int], Iterator[tuple[str, float]]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of source: its files' endings, what stands behind `#`, how a part is read."""

    suffixes: tuple[str, ...]
    column: str
    read: Callable[[Path, str, int], Iterator[tuple[str, float]]]
    columns: tuple[str, ...] = ()  # the only ones allowed; empty: any
    example: str = ""


def open_parts(source: str) -> list[Part]:
    """Returns the parts of `source` in a fixed order, after a look at the first document of each.

    Raises:
      InputError: a source is misspelt, has no files, or cannot be read.
    """
    parts = [part for text in source.split(JOINED_BY) for part in _open_one(text.strip())]
    for part in parts:
        next(part.read(0), None)
    return parts


def _open_one(text: str) -> list[Part]:
    if text == STDLIB:
        return _stdlib_parts()
    kind_name, colon, rest = text.partition(":")
    if not colon or kind_name not in KINDS:
        kinds = [*KINDS, "prepared"]
        near = suggest(kind_name, [*kinds, STDLIB])
        raise InputError(WHERE, "source is unknown", got=repr(text),
                         expected=f"{STDLIB}, or KIND:PATH with KIND one of {', '.join(kinds)}",
                         hint=f"did you mean {near}?" if near else None)
    kind = KINDS[kind_name]
    path, _, column = rest.rpartition("#") if "#" in rest else (rest, "", "")
    column = column or kind.column
    where = f"{WHERE}: source '{text}'"
    if not path:
        raise InputError(where, "has no path", expected=f"e.g. {kind.example}")
    if kind.columns and column not in kind.columns:
        near = suggest(column, kind.columns)
        raise InputError(where, "what stands behind '#' is unknown", got=repr(column),
                         expected=f"one of {', '.join(kind.columns)}",
                         hint=f"did you mean {near}?" if near else None)
    if kind_name == "tfds":
        from deepnarrow_text_t5.tfdsreader import tfds_parts

        return tfds_parts(Path(path).expanduser(), column)
    return [_file_part(file, split, kind, column)
            for split, file in _split_files(where, os.path.expanduser(path), kind)]


def _stdlib_parts() -> list[Part]:
    corpus = load_corpus()

    def part(split: str, texts: tuple[str, ...]) -> Part:
        size = sum(map(len, texts))
        return Part(f"{STDLIB}-{split}", split, ((corpus.content_hash, size, 0),), size,
                    lambda start: ((text, (index + 1) / len(texts))
                                   for index, text in enumerate(texts[start:], start)))

    return [part("train", corpus.train), part("validation", corpus.validation)]


def _file_part(path: Path, split: str | None, kind: Kind, column: str) -> Part:
    stat = path.stat()
    return Part(path.name, split, ((str(path.resolve()), stat.st_size, stat.st_mtime_ns),),
                stat.st_size, lambda start: kind.read(path, column, start))


# --- files ----------------------------------------------------------------------------------------
def _split_files(where: str, path: str, kind: Kind) -> list[tuple[str | None, Path]]:
    """Every file with the split that its place or name says, or None."""
    if SPLIT_FIELD in path:
        return [(split, file) for split in SPLITS
                for file in find_files(where, path.replace(SPLIT_FIELD, split), kind)]
    files = find_files(where, path, kind)
    if kind is KINDS["c4_json"]:
        said = [re.search(r"\b(train|validation)\b", file.name) for file in files]
        if all(said):
            return [(match.group(1), file) for match, file in zip(said, files, strict=True)
                    if match]
    return [(None, file) for file in files]


def find_files(where: str, path: str, kind: Kind) -> list[Path]:
    """Returns the files that `path` names, sorted: itself, all below a folder, or all that match.

    Raises:
      InputError: there are none; near names are told.
    """
    place = Path(path)
    if place.is_dir():
        found = [Path(folder, name) for folder, _, names in os.walk(place)
                 for name in names if name.endswith(kind.suffixes)]
        if not found:
            raise InputError(where, "the folder has no such files", got=path,
                             expected=f"files ending in {' '.join(kind.suffixes)}")
        return sorted(found)
    if place.is_file():
        return [place]
    found = [Path(name) for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
    if found:
        return sorted(found)
    if glob.has_magic(path):
        raise InputError(where, "no file matches", got=path, hint="is the folder right?")
    if place.exists():
        raise InputError(where, "is neither a file nor a folder", got=path)
    names = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
    near = suggest(place.name, names)
    raise InputError(where, "no such file or folder", got=path,
                     hint=f"did you mean {place.parent / near}?" if near else None)


# --- how each kind is read ------------------------------------------------------------------------
def _read_jsonl(path: Path, column: str, start: int) -> Iterator[tuple[str, float]]:
    for number, line, share in open_lines(path, start):
        if not line.strip():
            yield "", share
            continue
        where = f"file '{path}'"
        text = decode(line, path, number)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(where, f"line {number} is not valid JSON", got=str(error),
                             expected="an object a line") from error
        if not isinstance(row, dict):
            raise InputError(where, f"line {number} is no JSON object", got=type(row).__name__)
        if column not in row:
            raise no_column(where, column, row, f"line {number} ")
        if not isinstance(row[column], str):
            raise InputError(where, f"line {number}: column {column!r} is no text",
                             got=type(row[column]).__name__)
        yield row[column], share


def _read_tsv(path: Path, column: str, start: int) -> Iterator[tuple[str, float]]:
    lines = open_lines(path, 0)
    where = f"file '{path}'"
    _, first, _ = next(lines, (1, b"", 0.0))
    names = decode(first, path, 1).split("\t")
    if names == [""]:
        raise InputError(where, "has no names of columns in its first line", got="an empty line",
                         expected=f"names with tabs between, {column} among them")
    if names.count(column) > 1:
        raise InputError(where, f"has the column {column!r} more than once",
                         got=", ".join(names), hint="rename one of them")
    if column not in names:
        raise no_column(where, column, names, "")
    index = names.index(column)
    for number, line, share in lines:
        if number - 2 < start:
            continue
        if not line:
            yield "", share
            continue
        cells = decode(line, path, number).split("\t")
        if len(cells) != len(names):
            raise InputError(where, f"line {number} has a wrong number of columns",
                             got=len(cells), expected=f"{len(names)}, as the first line has")
        yield cells[index], share


def _read_parquet(path: Path, column: str, start: int) -> Iterator[tuple[str, float]]:
    for row, total, (text,) in parquet_rows(path, column, (), start, f"file '{path}'"):
        yield text or "", (row + 1) / total


def parquet_rows(
    path: Path, text: str, others: Sequence[str], start: int, where: str
) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Yields number (from 0), number of all rows, and values of some columns, from `start` on.

    No other columns are read, and no row groups before `start`. A missing value is None.

    Args:
      path: the file.
      text: a column that must be one of text (plain, or dictionary-encoded).
      others: more columns, of any type.
      start: the first row.
      where: what errors name first.

    Raises:
      InputError: pyarrow is not there, the file cannot be read or is no Parquet, a column is not
        there, there twice or of another type, or a text is not UTF-8.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(where, "cannot be read without pyarrow", got=error,
                         hint="pip install pyarrow") from error
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file, text, others, where)
            row = 0
            for group in range(file.num_row_groups):
                end = row + file.metadata.row_group(group).num_rows
                rows = _group_rows(file, group, (text, *others), where) if end > start else ()
                for number, values in enumerate(rows, row):
                    if number >= start:
                        yield number, file.metadata.num_rows, values
                row = end
    except FileNotFoundError as error:
        raise InputError(where, "cannot be read", got=os.strerror(error.errno or 0)) from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(where, "is no readable Parquet file", got=error) from error


def _check_columns(file: ParquetFile, text: str, others: Sequence[str], where: str) -> None:
    import pyarrow as pa

    names = file.schema_arrow.names
    for column in (text, *others):
        if column not in names:
            raise no_column(where, column, names, "")
        if names.count(column) > 1:
            raise InputError(where, f"has the column {column!r} more than once",
                             got=", ".join(names), hint="rename one of them")
    kind = file.schema_arrow.field(text).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if plain not in (pa.string(), pa.large_string(), pa.string_view()):
        raise InputError(where, f"column {text!r} is no text", got=kind)


def _group_rows(
    file: ParquetFile, group: int, columns: Sequence[str], where: str
) -> Iterator[tuple[Any, ...]]:
    """Rows of one row group."""
    for batch in file.iter_batches(row_groups=[group], columns=list(columns)):
        try:
            values = [batch.column(column).to_pylist() for column in columns]
        except UnicodeDecodeError as error:
            raise InputError(where, f"row group {group + 1} has text that is not valid UTF-8",
                             got=f"byte 0x{error.object[error.start]:02x}",
                             hint="write the file again with its text as UTF-8") from error
        yield from zip(*values, strict=True)


def _read_text(path: Path, unit: str, start: int) -> Iterator[tuple[str, float]]:
    if unit == "file":
        if start == 0:
            yield whole_file(path), 1.0
        return
    if unit == "line":
        for number, line, share in open_lines(path, start):
            yield decode(line, path, number), share
        return
    for index, (text, share) in enumerate(_paragraphs(path)):
        if index >= start:
            yield text, share


def _paragraphs(path: Path) -> Iterator[tuple[str, float]]:
    """Lines up to the next blank one, or the end, together."""
    lines: list[str] = []
    share = 0.0
    for number, line, share in open_lines(path, 0):
        if line.strip():
            lines.append(decode(line, path, number))
        elif lines:
            yield "\n".join(lines), share
            lines = []
    if lines:
        yield "\n".join(lines), share


def no_column(where: str, column: str, known: Iterable[str], place: str) -> InputError:
    """The error of a column that is not there."""
    names = [str(name) for name in known]
    near = suggest(column, names)
    return InputError(where, f"{place}has no column {column!r}",
                      expected=f"one of {', '.join(names[:20])}",
                      hint=f"did you mean #{near}?" if near else "name it behind '#'")


KINDS: Mapping[str, Kind] = {
    "tfds": Kind((), "text", lambda *_: iter(()), example="tfds:/data/c4/en/3.0.1"),
    "c4_json": Kind((".json.gz", ".json"), "text", _read_jsonl, ("text",),
                    "c4_json:/data/c4/*.json.gz"),
    "jsonl": Kind((".jsonl", ".json", ".jsonl.gz", ".json.gz"), "text", _read_jsonl,
                  example="jsonl:/data/a.jsonl#text"),
    "tsv": Kind((".tsv", ".tsv.gz"), "text", _read_tsv, example="tsv:/data/a.tsv#text"),
    "parquet": Kind((".parquet",), "text", _read_parquet, example="parquet:/data/a.parquet#text"),
    "text": Kind((".txt", ".txt.gz"), "file", _read_text, ("file", "paragraph", "line"),
                 "text:/data/books#paragraph"),
}
