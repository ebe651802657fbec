"""Lines of plain and gzipped files, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deepnarrow.errors import InputError

# A document, and so a line, fits into memory several times over; what is longer is no document.
MAX_DOCUMENT_BYTES = 64 * 2**20
BOM = b"\xef\xbb\xbf"


def open_lines(path: Path, start: int) -> Iterator[tuple[int, bytes, float]]:
    """Yields number (from 1), bytes without the line's end, and share of the file read, from line
    `start` (from 0) on.

    Raises:
      InputError: the file cannot be read, is no gzip though its name says so, or has a line of more
        than 64 MiB.
    """
    where = f"file '{path}'"
    try:
        with open(path, "rb") as raw:
            size = max(os.fstat(raw.fileno()).st_size, 1)
            for index, line in enumerate(_lines(raw, path)):
                if index < start:
                    continue
                if index == 0:
                    line = line.removeprefix(BOM)
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise InputError(where, f"line {index + 1} is too long",
                                     expected=f"at most {MAX_DOCUMENT_BYTES} bytes",
                                     hint="is it a file of text lines?")
                yield index + 1, line.rstrip(b"\r\n"), min(raw.tell() / size, 1.0)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(where, "is no whole gzip file", got=error,
                         hint="download it again, or compress it again") from error
    except OSError as error:
        raise InputError(where, f"cannot be read: {error.strerror}") from error


def _lines(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines, none read further than what is allowed."""
    if path.name.endswith(".gz"):
        with gzip.open(raw, "rb") as file:
            yield from iter(lambda: file.readline(MAX_DOCUMENT_BYTES + 1), b"")
    else:
        yield from iter(lambda: raw.readline(MAX_DOCUMENT_BYTES + 1), b"")


def whole_file(path: Path) -> str:
    """Returns the text of a file.

    Raises:
      InputError: as `open_lines`, or more than 64 MiB of text.
    """
    lines, total = [], 0
    for number, line, _ in open_lines(path, 0):
        total += len(line) + 1
        if total > MAX_DOCUMENT_BYTES:
            raise InputError(f"file '{path}'", "is too long for one document",
                             expected=f"at most {MAX_DOCUMENT_BYTES} bytes",
                             hint="make its paragraphs or lines documents: #paragraph, #line")
        lines.append(decode(line, path, number))
    return "\n".join(lines)


def decode(line: bytes, path: Path, number: int) -> str:
    """Returns the text of a line.

    Raises:
      InputError: it is not UTF-8, or has a zero byte, as binary files do.
    """
    where = f"file '{path}'"
    if b"\0" in line:
        raise InputError(where, f"line {number} has a zero byte: this is no text file",
                         got=f"byte {line.index(0) + 1} of the line")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(where, f"line {number} is not valid UTF-8", got=f"byte 0x"
                         f"{line[error.start]:02x} at byte {error.start + 1} of the line",
                         hint="convert it: iconv -f latin1 -t utf-8") from error
