"""Makes the data of `deepnarrow_small_scale.py` from its sources; the same sources, the same bytes.

    python configs/studies/prepare_deepnarrow_small_scale.py SOURCES OUT

It comes before `deepnarrow study`, and takes a fraction of the minutes that one trial takes: expect
half a minute, and the number of rows of each file.

SOURCES holds `text/austen.txt.gz` (six novels one after the other, blank lines between paragraphs),
`text/kjv.txt.gz` (the King James Bible, a paragraph a line), `text/wordnet_glosses.jsonl.gz`
(`synset`, `lex`, `lemma`, `gloss` of every synset of WordNet 3.0), `peptides/amp_vs_uniprot.csv` (a
header, then SEQUENCE, 0 or 1), and the IDX files of `fashion_mnist/` and `mnist_5k/`, which are
copied. How to get them: docs/studies/deepnarrow_small_scale.md.

What is held out is decided first, by a hash: WordNet's synsets by their definition, Austen's
chapters by novel and number. No text of a held-out synset or chapter is written into `upstream_*`,
on which the vocabulary is trained, too; nor any other text that is the same after `normalised`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
# Shares of synsets and of chapters; the rest is `test`.
SYNSETS = (0.8, 0.1)
CHAPTERS = (0.72, 0.12)
UPSTREAM_VALIDATION = 0.03  # of the texts that nobody held out
# Read at every shape and seed: no more than fine-tuning sees once and evaluation needs (a standard
# error of 1.1%).
MOST = {TRAIN: 6000, VALIDATION: 1000, TEST: 2000}
# The eight commonest kinds of noun, by WordNet's number of their lexicographer file.
CLASSES = {4: "act", 5: "animal", 6: "artifact", 10: "speech", 15: "place", 18: "person",
           20: "plant", 26: "state"}
NOVELS = {"EMMA": "emma", "MANSFIELD PARK": "mansfield", "NORTHANGER ABBEY": "abbey",
          "PERSUASION": "persuasion", "PRIDE AND PREJUDICE": "pride",
          "SENSE AND SENSIBILITY": "sense"}
IMAGES = ("fashion_mnist", "mnist_5k")
MIN_WORDS = 15  # of a paragraph that is to tell its novel
_CHAPTER = re.compile(r"chapter [ivxlc0-9]+\.?", re.IGNORECASE)


class Labelled(NamedTuple):
    """A text of a task, with its class and split."""

    text: str
    label: str
    split: str


def normalised(text: str) -> str:
    """What two texts share that differ only in case, punctuation and space.

    >>> normalised('The Cat,  "sat" --\\nthere')
    'the cat sat there'
    """
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def place(kind: str, text: str) -> float:
    """A number in [0, 1) from the hash of `kind` and `text`."""
    return int.from_bytes(hashlib.sha256(f"{kind}\0{text}".encode()).digest()[:6], "big") / 2**48


def split_of(where: float, shares: tuple[float, float]) -> str:
    """The split of a number in [0, 1)."""
    return TRAIN if where < shares[0] else VALIDATION if where < sum(shares) else TEST


# --- sources --------------------------------------------------------------------------------------
def definition_of(gloss: str) -> str:
    """A gloss without its examples, which stand in quotation marks behind semicolons."""
    return gloss.split('; "')[0].strip()


def read_glosses(path: Path) -> tuple[list[tuple[str, str]], list[Labelled]]:
    """Returns upstream's (definition, text) of every synset not held out, and the task."""
    upstream, task = [], []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            definition = definition_of(row["gloss"])
            split = split_of(place("synset", normalised(definition)), SYNSETS)
            if split == TRAIN:
                upstream.append((definition, f"{row['lemma'].replace('_', ' ')}: {row['gloss']}"))
            if row["lex"] in CLASSES:
                task.append(Labelled(definition, CLASSES[row["lex"]], split))
    return upstream, task


def read_chapters(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yields novel, number of the chapter (from 0: what stands before it) and text by paragraph."""
    novel, chapter = "", 0
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for paragraph in re.split(r"\n\s*\n", file.read().replace("\r\n", "\n")):
            text = " ".join(paragraph.split())
            if text.upper() in NOVELS:
                novel, chapter = NOVELS[text.upper()], 0
            elif _CHAPTER.fullmatch(text):
                chapter += 1
            elif text and novel:
                yield novel, chapter, text


def read_novels(path: Path) -> tuple[list[str], list[Labelled]]:
    """Returns upstream's paragraphs, and the task: from a paragraph to its novel."""
    upstream, task = [], []
    for novel, chapter, text in read_chapters(path):
        split = split_of(place("chapter", f"{novel} {chapter}"), CHAPTERS)
        if split == TRAIN:
            upstream.append(text)
        if chapter and len(text.split()) >= MIN_WORDS:
            task.append(Labelled(text, novel, split))
    return upstream, task


def read_bible(path: Path) -> list[str]:
    """Returns the paragraphs: the file has one a line."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def read_peptides(path: Path) -> list[tuple[str, str]]:
    """Returns every sequence once with its label; none that stands with both labels."""
    labels: dict[str, set[str]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for sequence, label, *_ in list(csv.reader(file))[1:]:
            labels.setdefault(sequence.strip().upper(), set()).add(label.strip())
    return [(sequence, found.pop()) for sequence, found in labels.items() if len(found) == 1]


# --- what is written ------------------------------------------------------------------------------
def without_repeats(task: Iterable[Labelled]) -> list[Labelled]:
    """Each text once, in the strictest split that has it; by hash, at most `MOST` of a split."""
    order = {split: rank for rank, split in enumerate(reversed(SPLITS))}
    first: dict[str, Labelled] = {}
    for one in sorted(task, key=lambda one: (order[one.split], place("order", one.text))):
        first.setdefault(normalised(one.text), one)
    kept = {split: [one for one in first.values() if one.split == split] for split in SPLITS}
    return [one for split in SPLITS for one in kept[split][:MOST[split]]]


def prepare(sources: Path, out: Path) -> dict[str, int]:
    """Writes all files and returns how many rows each has."""
    glosses, gloss_task = read_glosses(sources / "text/wordnet_glosses.jsonl.gz")
    novels, novel_task = read_novels(sources / "text/austen.txt.gz")
    held_out = {normalised(one.text) for one in (*gloss_task, *novel_task) if one.split != TRAIN}
    texts = [text for definition, text in glosses if normalised(definition) not in held_out]
    texts += [*novels, *read_bible(sources / "text/kjv.txt.gz")]
    upstream: dict[str, list[Mapping[str, str]]] = {TRAIN: [], VALIDATION: []}
    for text in dict.fromkeys(texts):
        same = normalised(text)
        if same and same not in held_out:
            found = split_of(place("upstream", same), (1 - UPSTREAM_VALIDATION, 1.0))
            upstream[found].append({"text": text})
    files = {f"upstream_{split}": rows for split, rows in upstream.items()}
    for name, task in (("gloss_class", gloss_task), ("novel", novel_task)):
        kept = without_repeats(task)
        files |= {f"{name}_{split}": [{"text": one.text, "label": one.label}
                                      for one in kept if one.split == split] for split in SPLITS}
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (out / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    peptides = read_peptides(sources / "peptides/amp_vs_uniprot.csv")
    (out / "peptides.csv").write_text(
        "sequence,label\n" + "".join(f"{sequence},{label}\n" for sequence, label in peptides))
    for folder in IMAGES:
        (out / folder).mkdir(exist_ok=True)
        for file in sorted((sources / folder).glob("*.gz")):
            shutil.copyfile(file, out / folder / file.name)
    return {**{name: len(rows) for name, rows in files.items()}, "peptides": len(peptides)}


if __name__ == "__main__":
    for file_name, number in prepare(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{file_name}: {number}")
