"""The command line: `deepnarrow COMMAND ...`; one module a command, imported when it is called.

Exit codes: 0 done, 1 a bug (traceback), or everything failed, 2 bad input, 3 diverged (`train`),
4 a check failed (`check`), 70 hung (run it again), 75 stopped on request (run it again).
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from deepnarrow.cli.hugepages import restart_with_huge_pages
from deepnarrow.cli.output import Output, write
from deepnarrow.cli.parser import parse
from deepnarrow.errors import InputError, InputErrors, Preempted, shorten
from deepnarrow.signals import EXIT_PREEMPTED

EXIT_BAD_INPUT = 2
MAX_MESSAGE = 4000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; the installed `deepnarrow` is this function."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        restart_with_huge_pages(arguments)
    # Until a study has its own handlers, a scheduler's SIGTERM ends a command as Ctrl-C does; a
    # shell's background job starts with SIGINT ignored.
    previous = {number: signal.signal(number, signal.default_int_handler)
                for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _run(arguments)
    except InputError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        for one in error.errors if isinstance(error, InputErrors) else [error]:
            print(shorten(f"error: {one}", MAX_MESSAGE), file=sys.stderr)
        return EXIT_BAD_INPUT
    except (Preempted, KeyboardInterrupt) as stop:
        # An interrupt in the middle of anything else than a study's run has saved nothing.
        rest = "; the same command goes on from here" if isinstance(stop, Preempted) else ""
        print(f"stopped: {str(stop) or 'Ctrl-C'}{rest}", file=sys.stderr)
        return EXIT_PREEMPTED
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(arguments: Sequence[str]) -> int:
    try:
        command, options = parse(arguments)
    except SystemExit as end:  # --help and --version have printed
        return int(end.code or 0)
    # The document is all that a command puts on stdout: what libraries print goes to stderr.
    with contextlib.redirect_stdout(sys.stderr), _readable_warnings():
        output: Output = command(options)
    write(output, as_json=options.json)
    return output.exit_code


@contextlib.contextmanager
def _readable_warnings() -> Iterator[None]:
    """Shows what the user is warned of as a line of text, without the line of code it came from."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any) -> None:
        if category is UserWarning:
            print(shorten(f"warning: {message}", MAX_MESSAGE), file=sys.stderr)
        else:
            usual(message, category, *rest)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual
