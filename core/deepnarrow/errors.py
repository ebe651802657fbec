"""Errors are part of the interface: each names the thing, its value, what is allowed, a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SHOWN = 80


def shorten(value: object, limit: int = MAX_SHOWN) -> str:
    """Shows `value` in an error on one line: at most `limit` characters, nothing unprintable.

    Of what is longer both ends are kept: the end of a path is the file's name.

    >>> shorten("a/long/path/file.txt", limit=15)
    'a/lo...file.txt'
    >>> shorten("a\\nb")
    'a\\\\nb'
    """
    text = str(value)
    if len(text) > 2 * limit:  # what is shown is settled by its ends
        text = text[:limit] + text[-limit:]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(safe) <= limit:
        return safe
    head = (limit - 3) // 3
    return f"{safe[:head]}...{safe[head + 3 - limit:]}"


def suggest(word: str, known: Iterable[str]) -> str | None:
    """Returns the name nearest to `word`, or None where nothing is near.

    >>> suggest("bsae", ["tiny", "base", "large"])
    'base'
    """
    if len(word) > MAX_SHOWN:
        return None
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


class InputError(ValueError):
    """Something the user gave is wrong. The command line prints it in one line and exits with 2.

    >>> print(InputError("shape 'base-nl0'", "nl is too small", got=0, expected="1..4096"))
    shape 'base-nl0': nl is too small (got 0; expected 1..4096)
    """

    def __init__(
        self,
        where: str,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
    ):
        self.where, self.what, self.got, self.expected, self.hint = where, what, got, expected, hint
        facts = [f"got {shorten(got)}"] if got is not None else []
        facts += [f"expected {expected}"] if expected is not None else []
        text = f"{shorten(where, 200)}: {what}"
        text += f" ({'; '.join(facts)})" if facts else ""
        text += f". Hint: {hint}" if hint else ""
        super().__init__(text)


class ShapeError(InputError):
    """A shape expression or a shape that cannot be."""


class PluginError(InputError):
    """A plugin broke its contract; the message names its distribution."""


class NotApplicable(InputError):
    """An operator, architecture or task that cannot serve here, with the reason."""


class InputErrors(InputError):
    """Every error of one input (a config, a study), so that the user mends them in one go."""

    def __init__(self, errors: list[InputError]):
        self.errors = errors
        super().__init__(errors[0].where, errors[0].what)
        self.args = ("\n".join(str(e) for e in errors),)


class Preempted(Exception):
    """Asked to stop (Ctrl-C, SIGTERM): state is saved, the command exits with 75; run it again."""
