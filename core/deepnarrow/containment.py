"""Runs a plugin's code so that it harms nobody: what it prints, raises, how long it takes."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from deepnarrow.errors import PluginError

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
        raise PluginError("", f"{what}{type(error).__name__}{detail}") from error


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
