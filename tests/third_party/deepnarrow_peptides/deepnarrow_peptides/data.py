"""Peptides and their labels: read or made up; split by hash, no sequence in two splits."""

from __future__ import annotations

import csv
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from deepnarrow.errors import InputError
from deepnarrow.modality import Example, Metric, Source, Task, Upstream
from deepnarrow.transfer.scores import score_accuracy

ACIDS = "ACDEFGHIKLMNPQRSTVWY"
PAD, OTHER, MASK = 0, len(ACIDS) + 1, len(ACIDS) + 2
MADE_UP = 2400
# Split -> half-open share of [0, 1) that a sequence's hash falls into. Upstream sees no label, and
# no sequence of the task's validation and test splits.
SPLITS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
UPSTREAM = {"train": (0.0, 0.54), "validation": (0.54, 0.6)}

Peptides = tuple[tuple[str, int], ...]


def upstream(data_options: ConfigDict) -> Upstream:
    """Masked residues: `inputs` with a share of them hidden, `targets` that are 0 elsewhere."""
    length, rate = _length(data_options), data_options.mask_rate
    if not 0 < rate < 1:
        raise InputError("peptides data", "mask_rate is out of range", got=rate, expected="0 to 1")
    peptides = read_peptides(data_options.path)

    def source(split: str) -> Source:
        tokens, _ = encode(select(peptides, UPSTREAM[split]), length)
        fixed = split != "train"

        def load(index: int, rng: np.random.Generator) -> Example:
            rng = np.random.default_rng(index) if fixed else rng
            row = tokens[index]
            hidden = (rng.random(length) < rate) & (row != PAD)
            if not hidden.any():
                hidden[0] = True  # every example has something to name
            return {"inputs": np.where(hidden, MASK, row).astype(np.int32),
                    "targets": np.where(hidden, row, PAD).astype(np.int32)}

        return Source(len(tokens), load, content_hash(tokens, "masked", rate, split))

    return Upstream(source("train"), source("validation"), Metric("loss", "min"),
                    options={"length": length, "num_classes": 0})


def tasks(data_options: ConfigDict) -> Mapping[str, Task]:
    """`antimicrobial`: two classes."""
    length = _length(data_options)

    @functools.cache
    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        return encode(select(read_peptides(data_options.path), SPLITS[split]), length)

    def examples(split: str) -> Source:
        tokens, labels = arrays(split)
        load: Callable[[int, np.random.Generator], Example] = lambda index, rng: {  # noqa: E731
            "inputs": tokens[index], "label": labels[index]}
        return Source(len(tokens), load, content_hash(tokens, labels.tolist()), lambda: labels)

    def composition(split: str) -> np.ndarray:
        tokens, _ = arrays(split)
        # [n, length] -> [n, 20]
        return np.stack([(tokens == acid).sum(axis=1) for acid in range(1, OTHER)], axis=1)

    return {"antimicrobial": Task(
        name="antimicrobial", kinds=frozenset({"few_shot", "fine_tune"}), examples=examples,
        metric=Metric("accuracy", "max"), score=score_accuracy, num_classes=2,
        options={"num_classes": 2}, baseline=lambda split: composition(split).astype(np.float32),
    )}


def encode(peptides: Peptides, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens int32 [n, length], 0 behind the end, and labels int32 [n]."""
    tokens = np.full((len(peptides), length), PAD, np.int32)
    for row, (sequence, _) in zip(tokens, peptides, strict=True):
        found = [ACIDS.find(acid) + 1 or OTHER for acid in sequence[:length]]
        row[:len(found)] = found
    return tokens, np.array([label for _, label in peptides], np.int32)


def select(peptides: Peptides, share: tuple[float, float]) -> Peptides:
    """The peptides whose sequence's hash falls into `share`."""
    def place(sequence: str) -> float:
        return int.from_bytes(hashlib.sha256(sequence.encode()).digest()[:6], "big") / 2**48

    return tuple(p for p in peptides if share[0] <= place(p[0]) < share[1])


@functools.cache
def read_peptides(path: str) -> Peptides:
    """Every sequence once, with its label; made up where `path` is empty.

    Raises:
      InputError: the file cannot be read, or a line is no sequence and label.
    """
    if not path:
        return make_up(MADE_UP)
    found: dict[str, int] = {}
    try:
        with open(Path(path), newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if number == 1:
                    continue
                sequence, label = (*(cell.strip() for cell in row), "", "")[:2]
                if not sequence.isalpha() or label not in ("0", "1"):
                    raise InputError(f"peptides '{path}' line {number}", "is no peptide", got=row,
                                     expected="SEQUENCE, 0 or 1")
                found.setdefault(sequence.upper(), int(label))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"peptides '{path}'", "cannot be read", got=error,
                         expected="a CSV file of sequences and labels") from error
    return tuple(found.items())


def make_up(count: int) -> Peptides:
    """Half like antimicrobial peptides (short, cationic, every third or fourth residue
    hydrophobic), half of one composition throughout."""
    rng = np.random.default_rng(0)
    background = rng.dirichlet(np.full(len(ACIDS), 8.0))
    found: dict[str, int] = {}
    while len(found) < count:
        label, length = len(found) % 2, int(rng.integers(8, 40))
        letters = list(rng.choice(list(ACIDS), length, p=background))
        if label:
            turn = rng.integers(0, 4)
            for i in range(length):
                kind = "LIVFAW" if (i + turn) % 7 in (0, 3, 4) else "KRKGS"
                if rng.random() < 0.35:
                    letters[i] = rng.choice(list(kind))
        found.setdefault("".join(letters), label)
    return tuple(found.items())


def content_hash(tokens: np.ndarray, *facts: object) -> str:
    """A hash of what determines every example."""
    return hashlib.sha256(tokens.tobytes() + repr((tokens.shape, facts)).encode()).hexdigest()


def _length(data_options: ConfigDict) -> int:
    if not 1 <= data_options.length <= 4096:
        raise InputError("peptides data", "length is out of range", got=data_options.length,
                         expected="1..4096")
    return data_options.length
