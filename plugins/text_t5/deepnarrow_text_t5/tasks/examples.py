"""What a task's rows become before they are tokens, and how its splits are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from deepnarrow.errors import InputError, shorten
from deepnarrow_text_t5.cache import share


class TextExample(NamedTuple):
    """One example, text to text.

    Attributes:
      inputs: what the encoder reads, the prompt.
      target: what the decoder is to say.
      label: index of the class; None for free text.
      reference: what `score` compares with where a label is not enough (JSON-able); else None.
      group: examples of one group stay together when a split is cut.
    """

    inputs: str
    target: str
    label: int | None
    reference: Any
    group: str


def label_index(value: Any, words: Sequence[str], place: str) -> int:
    """Returns the class that a label names: by its word, by its index, or by a bool.

    Raises:
      InputError: the label is none of them.
    """
    if isinstance(value, str) and value in words:
        return words.index(value)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(words):
        return int(value)
    raise InputError(place, "label is outside the set", got=repr(value),
                     expected=f"one of {shorten(', '.join(words))}, or 0..{len(words) - 1}")


def halves(examples: Sequence[TextExample]) -> tuple[list[TextExample], list[TextExample]]:
    """Cuts examples into a select half and a report half, by the hash of their groups.

    The groups are put into the order of their hashes; the first half of them, the middle one
    included, is the select half. So the halves depend on the texts alone, not on their order or
    the format they came in, and hold every example once.
    """
    groups = sorted({example.group for example in examples}, key=lambda g: share("halves", g))
    first = set(groups[:(len(groups) + 1) // 2])
    return ([example for example in examples if example.group in first],
            [example for example in examples if example.group not in first])
