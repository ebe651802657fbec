"""Runs a plugin's code so that it harms nobody: what it prints, raises, how long it takes."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from deepnarrow.errors import InputError, PluginError

# Packages whose lines on the way to an error are not the author's.
_CORE, _CARRIERS = str(Path(__file__).parent), {"pluggy", "importlib"}
PATIENCE = 10.0  # seconds that a plugin may load before its name is told


@contextlib.contextmanager
def contained(what: str) -> Iterator[None]:
    """Runs a plugin's code: what it prints goes to stderr, what it raises is a `PluginError`."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, PluginError):
        raise
    except BaseException as error:  # SystemExit too: no plugin ends the program
        detail = f": {error}" if str(error) else ""
        raise PluginError("", f"{what}{type(error).__name__}{detail}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """Where it was raised, ` (data.py, line 3)`: the innermost line that is the plugin's."""
    if isinstance(error, (SyntaxError, InputError)):  # they say it themselves
        return ""
    lines = [f" ({Path(frame.filename).name}, line {frame.lineno})"
             for frame in traceback.extract_tb(error.__traceback__)
             if not frame.filename.startswith(("<", _CORE))
             and not _CARRIERS & set(Path(frame.filename).parts)]
    return lines[-1] if lines else ""


@contextlib.contextmanager
def patiently(who: str, distribution: str) -> Iterator[None]:
    """Says whose code runs if it takes long. Nothing can end it safely but Ctrl-C."""
    def say() -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"note: {who} has been loading for {PATIENCE:g} s; if it never ends, press "
                  f"Ctrl-C and uninstall {distribution}", file=sys.stderr, flush=True)

    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
