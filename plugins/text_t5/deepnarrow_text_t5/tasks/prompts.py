"""The texts that T5 sees: prompts and targets of each benchmark, as Raffel et al. wrote them.

A row is a mapping with the field names of tensorflow-datasets (`glue`, `super_glue`, `squad`,
`definite_pronoun_resolution`). The prompts are those of the paper's appendix D, to the blank: tests
hold them against the `t5` library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepnarrow.errors import InputError

Row = Mapping[str, Any]

SIMILARITIES = tuple(f"{i / 5:.1f}" for i in range(26))  # STS-B's targets: 0.0, 0.2, ... 5.0
_BLANKS = re.compile(r"[ \t\n\f\r]+")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # ASCII only, as in RE2's [[:punct:]]
_HIGHLIGHT_AFTER_STOP = re.compile(r"([.?!\"'])\n@highlight\n")
_BOLD = re.compile("</?b>")


def fields(task: str, row: Row, names: Sequence[str]) -> str:
    """Returns `task name: text name: text ...`, the form of most of GLUE and SuperGLUE.

    >>> fields("rte", {"premise": "It rains.", "hypothesis": "It is wet."},
    ...        ("hypothesis", "premise"))
    'rte hypothesis: It is wet. premise: It rains.'
    """
    return " ".join([task, *(f"{name}: {row[name]}" for name in names)])


def multirc(row: Row) -> str:
    """Returns MultiRC's prompt, without the paragraph's markup."""
    text = fields("multirc", row, ("question", "answer", "paragraph"))
    return _BOLD.sub("", text.replace("<br>", " "))


def similarity(score: float) -> str:
    """Returns STS-B's target: the score to the next fifth, halves to the even one.

    >>> similarity(2.47), similarity(4.0)
    ('2.4', '4.0')
    """
    return f"{np.round(np.float32(score) * np.float32(5)) / np.float32(5):.1f}"


def record(row: Row) -> str:
    """Returns ReCoRD's prompt; the summary's bullets become sentences of the passage."""
    passage = _HIGHLIGHT_AFTER_STOP.sub(r"\1 ", row["passage"]).replace("\n@highlight\n", ". ")
    entities = ", ".join(row["entities"])
    return f"record query: {row['query']} entities: {entities} passage: {passage}"


def pad_punctuation(text: str) -> str:
    """Returns `text` with blanks around each punctuation mark, and single blanks only.

    >>> pad_punctuation("It's 3.5  m.")
    "It ' s 3 . 5 m . "
    """
    return _BLANKS.sub(" ", _PUNCTUATION.sub(r" \1 ", text))


def squad(row: Row) -> str:
    """Returns SQuAD's prompt, punctuation apart."""
    question, context = pad_punctuation(row["question"]), pad_punctuation(row["context"])
    return _BLANKS.sub(" ", f"question: {question} context: {context}")


def wsc_marked(row: Row) -> str:
    """Returns WSC's prompt of the form that is answered by True or False.

    The noun stands between `*`, the pronoun between `#`; a span that is not where its index says is
    not marked.
    """
    noun, pronoun = row["span1_index"], row["span2_index"]
    text = _mark(row["text"], row["span1_text"], noun, "*")
    # The two marks before the pronoun count as words.
    return "wsc text: " + _mark(text, row["span2_text"], pronoun + 2 * (noun < pronoun), "#")


def _mark(text: str, span: str, index: int, mark: str) -> str:
    before = re.match(rf"(?:\S+\s){{{index}}}", text, re.ASCII)
    if before is None or not text.startswith(span, before.end()):
        return text
    rest = text[before.end() + len(span):]
    return f"{text[:before.end()]}{mark} {span} {mark}{rest}"


def wsc_pronoun(row: Row, where: str) -> str:
    """Returns WSC's prompt of the form that is answered by the referent: `wsc: ... *it* ...`.

    In a few rows of the real data the index misses the pronoun, or punctuation sticks to it: then
    the nearest word that is the pronoun but for punctuation is taken, its punctuation set apart.

    >>> row = {"text": "The fish ate the worm . It was hungry .", "span2_text": "It",
    ...        "span2_index": 6}
    >>> wsc_pronoun(row, "doctest")
    'wsc: The fish ate the worm . *It* was hungry .'

    Raises:
      InputError: no such word; `where` names the row.
    """
    words, pronoun, index = row["text"].split(" "), row["span2_text"], row["span2_index"]
    if not (0 <= index < len(words) and words[index] == pronoun):
        words = row["text"].rstrip().split(" ")
        places = [i for i, word in enumerate(words) if _bare(word) == pronoun]
        if not places:
            raise InputError(where, "the pronoun is not in the text", got=pronoun,
                             expected=f"a word of {row['text']!r}")
        index = min(places, key=lambda i: (abs(i - row["span2_index"]), i))
        before, after = words[index].split(pronoun, 1)
        words[index:index + 1] = [part for part in (before, pronoun, after) if part]
        index += bool(before)
    return " ".join(["wsc:", *words[:index], f"*{pronoun}*", *words[index + 1:]])


def _bare(word: str) -> str:
    return _PUNCTUATION.sub("", word)


def definite_pronoun(row: Row) -> str:
    """Returns the prompt of Definite Pronoun Resolution, in the form of `wsc_pronoun`.

    The first occurrence that is followed by a blank, a full stop or a comma is marked.
    """
    pronoun = row["pronoun"]
    found = re.search(rf" {re.escape(pronoun)}(?=[ .,])", row["sentence"])
    if found is None:
        return f"wsc: {row['sentence']}"
    before, after = row["sentence"][:found.start()], row["sentence"][found.end():]
    return f"wsc: {before} *{pronoun}*{after}"
