"""A run's order of data as it was: a hash chain over (step, example ids), in `steps.jsonl`.

    {"order": {"seed": 0, "batch_size": 16, "num_examples": 96}, "seal": ...}
    {"opened": {...}, "seal": ...}          where and with what a process begins or resumes the run
    {"step": 10, "chain": ..., "seal": ...}            after step 10

The chain after step t is sha256(chain after t - 1, t, ids of step t), so two runs whose chains
agree at a step have trained on the same examples in the same order up to there: none twice, none
left out. Each line is sealed together with the line before it: one that is lost, doubled or edited
shows. The chain is saved beside the state, too; a resumed run must find the same one here,
recomputes it from the line before, and when it comes by a step that an earlier process had reached
already, it must find that line again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepnarrow.errors import InputError, shorten
from deepnarrow.files import append_line, cut_torn_tail

STEPS_FILE = "steps.jsonl"
START = hashlib.sha256(b"deepnarrow steps").hexdigest()
MAX_BYTES = 2**30
Ids = Callable[[int], np.ndarray]  # step (from 1) -> the ids of its global batch


def extend(chain: str, step: int, ids: np.ndarray) -> str:
    """Returns the chain after `step`, whose global batch has `ids`.

    >>> extend(START, 1, np.array([3, 1])) == extend(START, 1, np.array([1, 3]))
    False
    """
    digest = hashlib.sha256(bytes.fromhex(chain))
    digest.update(np.int64(step).astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(ids, "<i8").tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class StepLines:
    """What a `steps.jsonl` says.

    Attributes:
      order: what the order of the data depends on; None in an empty file.
      chains: the chain after each step that has a line.
      opened: the conditions of each process that worked on the run, oldest first.
      seal: of the last line.
    """

    order: Mapping[str, Any] | None
    chains: Mapping[int, str]
    opened: tuple[Mapping[str, Any], ...]
    seal: str


def read_lines(path: Path) -> StepLines:
    """Reads and verifies a log; a last line that is cut short, as by a crash, does not count.

    Raises:
      InputError: a line was lost, doubled, moved or edited, or the file is no such log.
    """
    order, chains, opened, seal = None, {}, [], START
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(str(path), "is too large", expected=f"<= {MAX_BYTES} bytes")
        whole = path.read_bytes().rpartition(b"\n")[0]
    except FileNotFoundError:
        return StepLines(None, {}, (), START)
    for number, text in enumerate(whole.split(b"\n") if whole else (), start=1):
        line = _parse(text, f"{path} line {number}")
        if line.pop("seal", None) != (seal := _seal(seal, line)):
            raise InputError(f"{path} line {number}", "does not follow from the lines before it",
                             hint="the log was changed after it was written: train this trial in "
                             "a fresh run directory")
        if "order" in line:
            order = line["order"]
        elif "opened" in line:
            opened.append(line["opened"])
        elif chains.setdefault(line["step"], line["chain"]) != line["chain"]:
            raise _differs(path, line["step"], line["chain"], chains[line["step"]])
    return StepLines(order, chains, tuple(opened), seal)


class StepsLog:
    """The log of one run, open for writing by one process.

    Args:
      path: the file; None keeps the chain alone (the other processes of a run do).
      order: what the order depends on: `seed`, `batch_size`, `num_examples`.

    Raises:
      InputError: the log that is there is damaged or of another order.
    """

    def __init__(self, path: Path | None, order: Mapping[str, Any]):
        self.path, self.order = path, dict(order)
        self.lines = StepLines(None, {}, (), START)
        if path is not None:
            if dropped := cut_torn_tail(path):
                warnings.warn(f"{path}: dropped {dropped} bytes of a line that was cut short",
                              stacklevel=2)
            self.lines = read_lines(path)
        if self.lines.order is not None and dict(self.lines.order) != self.order:
            raise InputError(str(path), "the run was begun with another order of data",
                             got=self.order, expected=self.lines.order)
        self.chains, self._seal = dict(self.lines.chains), self.lines.seal
        self.chain = START
        self._written = self.lines.order is not None

    def open(self, conditions: Mapping[str, Any]) -> None:
        """Notes where and with what this process works on the run."""
        if not self._written:
            self._append({"order": self.order})
            self._written = True
        self._append({"opened": dict(conditions)})

    def resume(self, step: int, chain: str | None, ids: Ids) -> None:
        """Goes on after `step`, whose chain was saved as `chain`; verifies it.

        Raises:
          InputError: the order of the data is not the one that the run had.
        """
        before = max((s for s in self.chains if s < step), default=0)
        found = self.chains.get(before, START)
        for each in range(before + 1, step + 1):
            found = extend(found, each, ids(each))
        for logged in (chain, self.chains.get(step)):
            if logged is not None and logged != found:
                raise _differs(self.path, step, found, logged)
        self.chain = found

    def update(self, step: int, ids: np.ndarray) -> None:
        """Takes in the ids of the global batch of `step`."""
        self.chain = extend(self.chain, step, ids)

    def write(self, step: int) -> None:
        """Adds a line for `step`; where an earlier process wrote one, it must be the same.

        Raises:
          InputError: the earlier process had trained on other examples.
        """
        known = self.chains.get(step)
        if known is None:
            self._append({"step": step, "chain": self.chain})
            self.chains[step] = self.chain
        elif known != self.chain:
            raise _differs(self.path, step, self.chain, known)

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        seal = _seal(self._seal, line)
        append_line(self.path, json.dumps({**line, "seal": seal}))
        self._seal = seal


def _seal(before: str, line: Mapping[str, Any]) -> str:
    text = before + json.dumps(line, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, "is no JSON", got=shorten(error)) from error
    kinds = isinstance(line, dict) and (
        ("step" in line and type(line["step"]) is int and isinstance(line.get("chain"), str))
        or isinstance(line.get("opened"), dict) or isinstance(line.get("order"), dict))
    if not kinds:
        raise InputError(where, "is no line of a run's log", got=shorten(text.decode("utf-8",
                                                                                  "replace")))
    return line


def _differs(path: Path | None, step: int, got: str, expected: str) -> InputError:
    return InputError(
        str(path or "data order"), f"other examples were trained on up to step {step}",
        got=f"chain {got[:12]}", expected=f"chain {expected[:12]}",
        hint="the order of the data changed since this run was begun: train this trial in a fresh "
        "run directory")
