"""What a command returns, and how it gets to stdout: tables for people, or one JSON document."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MIN_WIDTH = 160  # of a table that goes to a file or a pipe, where nothing folds it


@dataclasses.dataclass(frozen=True)
class Output:
    """What a command found out.

    Attributes:
      document: for `--json`: plain values; non-finite numbers are None.
      show: `show(console)` prints the same for people.
      exit_code: of the command.
      quiet: of a process that leaves it to another to print.
    """

    document: Any
    show: Callable[[Console], None]
    exit_code: int = 0
    quiet: bool = False


def write(output: Output, *, as_json: bool) -> None:
    """Writes `output` to stdout."""
    if output.quiet:
        return
    if as_json:
        write_text(json.dumps(output.document, allow_nan=False, indent=2) + "\n")
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(MIN_WIDTH, console.width))
    with console.capture() as capture:
        output.show(console)
    write_text(capture.get())


def write_text(text: str) -> None:
    """Writes to stdout; a reader that has gone away is no error, a full disk is."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except (OSError, UnicodeEncodeError) as error:
        _drop_stdout()
        raise InputError("stdout", "cannot be written", got=error) from error


def _drop_stdout() -> None:
    """Leaves the interpreter nothing to complain about when it flushes stdout at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(
    columns: Sequence[str], rows: Iterable[Iterable[object]], title: str | None = None
) -> Table:
    """A table of plain text; columns whose names end in ":" are numbers, to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from deepnarrow.report.text import plain

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for name in columns:
        right = name.endswith(":")
        made.add_column(name.removesuffix(":"), justify="right" if right else "left",
                        no_wrap=right, overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain("" if cell is None else cell, 400)) for cell in row))
    return made
