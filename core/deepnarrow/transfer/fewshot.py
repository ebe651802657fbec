"""The few-shot probe: ridge regression on frozen features, closed form, for every modality.

`ridge.py` has the mathematics, which are those of big_vision's evaluator `fewshot_lsr`. Here one
pass over the test features serves all numbers of shots, seeds and strengths of the ridge.

Only NumPy is needed to probe; extracting features from a model needs JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from deepnarrow.errors import InputError
from deepnarrow.modality import Batch, Params, Source
from deepnarrow.protocol import L2, PARITY_L2, check_l2, check_range
from deepnarrow.transfer import apply_all
from deepnarrow.transfer.ridge import BIAS_CONSTANT, choose_l2, draw_shots, ridge_weights, whiten

MAX_SCORES = 2**24  # scores held at once: 64 MiB of float32
MAX_WEIGHTS = 2**26  # weights held at once: 256 MiB of float32


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Test accuracy of every probe.

    Attributes:
      shots: examples a class, in the order of the axis `shots`.
      seeds: seeds of the draws.
      l2: strengths of the ridge, as they were asked for: numbers, or "auto".
      strength: the numbers that were used: for "auto" what the shots themselves chose.
      accuracy: share of the test examples that are classified rightly.
      correct: which they are.
    """

    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    l2: tuple[L2, ...]
    strength: Float64[np.ndarray, "l2 shots seeds"]
    accuracy: Float64[np.ndarray, "l2 shots seeds"]
    correct: Bool[np.ndarray, "l2 shots seeds n_test"]


def probe(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    num_classes: int,
    shots: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    l2: Sequence[L2] = (PARITY_L2,),
    class_names: Sequence[object] | None = None,
) -> ProbeResult:
    """Returns the accuracy of a linear probe for every strength `l2`, number of shots and seed.

    Features are taken as float32; the ridge is solved in float64. The test features are read once
    for all probes together (more often only where the weights of all would fill 256 MiB).

    Args:
      x_train: features [n_train, d] to draw the shots from.
      y_train: their labels [n_train], 0 ... num_classes - 1.
      x_test: features [n_test, d] to classify.
      y_test: their labels [n_test].
      num_classes: number of classes, at least 2.
      shots: examples a class.
      seeds: a seed draws the same examples for every number of shots: 5 shots include the 1.
      l2: strengths of the ridge: numbers (big_vision's default is 2^10), or "auto": each draw's is
        chosen by leaving out its own shots one by one (`ridge.choose_l2`). No other example is
        looked at for that, and none of the test split.
      class_names: what errors call the classes; their numbers if None.

    Raises:
      InputError: a class has too few examples, or features or labels cannot be; it names the first.

    >>> x = np.array([[-3.0], [-2.0], [2.0], [3.0]])
    >>> y = np.array([0, 0, 1, 1])
    >>> probe(x, y, x, y, num_classes=2, shots=(1, 2), seeds=(0,)).accuracy.tolist()
    [[[1.0], [1.0]]]
    """
    _check_settings(num_classes, shots, seeds, l2)
    x_train, y_train = _examples("train", x_train, y_train, num_classes)
    x_test, y_test = _examples("test", x_test, y_test, num_classes)
    if x_train.shape[1] != x_test.shape[1]:
        raise InputError("test features", "are not as wide as the train features",
                         got=f"d = {x_test.shape[1]}", expected=f"d = {x_train.shape[1]}")
    names = range(num_classes) if class_names is None else class_names
    _check_enough(y_train, max(shots), names)

    # [n_train, d] -> [d]
    center = x_train.mean(axis=0, dtype=np.float64).astype(np.float32)
    drawn = [draw_shots(y_train, num_classes, max(shots), seed) for seed in seeds]
    draws = [classes[:, :k].ravel() for k in shots for classes in drawn]
    per_pass = max(1, MAX_WEIGHTS // (len(l2) * num_classes * center.size))
    strengths, correct = [], []
    for start in range(0, len(draws), per_pass):
        fits = [_fit(x_train[i], y_train[i], num_classes, l2, center)
                for i in draws[start : start + per_pass]]
        strengths += [strength for strength, _ in fits]
        correct.append(_classify(x_test, y_test, center, [w for _, w in fits], num_classes))
    # [shots * seeds, l2, ...] -> [l2, shots, seeds, ...]
    axes = (len(shots), len(seeds), len(l2))
    strength = np.array(strengths).reshape(axes).transpose(2, 0, 1)
    hits = np.concatenate(correct).reshape(*axes, len(y_test)).transpose(2, 0, 1, 3)
    hits = np.ascontiguousarray(hits)
    return ProbeResult(tuple(shots), tuple(seeds), tuple(l2), strength, hits.mean(axis=-1), hits)


def _fit(
    x: Float32[np.ndarray, "n d"],
    y: Int64[np.ndarray, " n"],
    num_classes: int,
    l2: Sequence[L2],
    center: Float32[np.ndarray, " d"],
) -> tuple[list[float], Float32[np.ndarray, "d+1 columns"]]:
    """Strengths, and weights (bias last) that apply to `features - center`: columns [l2 * classes].

    The whitening is folded into them. Test features are centred by one vector for all draws:
    without it sums cancel in float32 where a feature's mean is much larger than its spread.
    """
    problem = whiten(x, y, num_classes)
    strengths = [choose_l2(problem) if isinstance(strength, str) else strength for strength in l2]
    weights = ridge_weights(problem, strengths)
    slopes = weights[:, :-1] / problem.std[:, None]
    shift = (problem.mean - center) @ slopes  # [l2, d, classes] -> [l2, classes]
    bias = BIAS_CONSTANT * weights[:, -1] - shift
    # What all classes share decides nothing, but under a strong ridge drowns the rest in float32.
    bias -= bias.mean(axis=1, keepdims=True)
    folded = np.concatenate([slopes, bias[:, None]], axis=1)  # [l2, d + 1, classes]
    # [l2, d + 1, classes] -> [d + 1, l2 * classes]
    return strengths, folded.transpose(1, 0, 2).reshape(center.size + 1, -1).astype(np.float32)


def _classify(
    x: Float32[np.ndarray, "n d"],
    y: Int64[np.ndarray, " n"],
    center: Float32[np.ndarray, " d"],
    weights: Sequence[Float32[np.ndarray, "d+1 columns"]],
    num_classes: int,
) -> Bool[np.ndarray, "draws l2 n"]:
    """Which test examples each probe gets right: one matmul for all probes, in chunks of rows."""
    joined = np.concatenate(weights, axis=1)  # [d + 1, draws * l2 * classes]
    columns = joined.shape[1]
    correct = np.empty((columns // num_classes, len(x)), bool)
    rows = min(len(x), max(1, MAX_SCORES // columns))
    inputs = np.ones((rows, x.shape[1] + 1), np.float32)  # the bias's input stays 1
    scores = np.empty((rows, columns), np.float32)
    for start in range(0, len(x), rows):
        chunk = slice(start, min(start + rows, len(x)))
        n = chunk.stop - start
        np.subtract(x[chunk], center, out=inputs[:n, :-1])
        np.matmul(inputs[:n], joined, out=scores[:n])
        classes = scores[:n].reshape(n, -1, num_classes).argmax(axis=2)
        correct[:, chunk] = (classes == y[chunk, None]).T  # [n, draws * l2] -> [draws * l2, n]
    return correct.reshape(len(weights), -1, len(x))


def extract_features(
    features: Callable[[Params, Batch], Any], params: Params, source: Source, batch_size: int,
    should_stop: Callable[[], bool] | None = None, rows: np.ndarray | None = None,
) -> Float32[np.ndarray, "n d"]:
    """Returns the features of every example of `source`, in order, padding dropped.

    Args:
      features: `features(params, batch) -> [batch, d]`, jitted, e.g. `Program.features`.
      params: the model's.
      source: the examples.
      batch_size: examples a call.
      should_stop: asked before each call.
      rows: of each batch, those that this process loads; None for all.

    Raises:
      Preempted: `should_stop` said True.
    """
    x = apply_all(features, params, source, batch_size, should_stop, rows)
    return x.astype(np.float32, copy=False)


def majority_accuracy(labels_train: np.ndarray, labels_test: np.ndarray) -> float:
    """Accuracy on the test labels of always answering the commonest train label (first of equals).

    >>> majority_accuracy(np.array([0, 1, 1]), np.array([1, 0, 0, 0]))
    0.25
    """
    classes, counts = np.unique(labels_train, return_counts=True)
    return float(np.mean(np.asarray(labels_test) == classes[counts.argmax()]))


def chance(num_classes: int) -> float:
    """Expected accuracy of uniform guessing.

    >>> chance(4)
    0.25
    """
    return 1.0 / num_classes


# --- checks ---------------------------------------------------------------------------------------
def _check_settings(
    num_classes: int, shots: Sequence[int], seeds: Sequence[int], l2: Sequence[L2]
) -> None:
    where = "few-shot probe"
    check_range(where, "num_classes", num_classes, 2)
    for name, values in (("shots", shots), ("seeds", seeds), ("l2", l2)):
        if len(values) == 0:
            raise InputError(where, f"{name} is empty", expected="at least one value")
    for name, integers, low in (("shots", shots, 1), ("seeds", seeds, 0)):
        for value in integers:
            check_range(where, name, value, low)
            if value != int(value):
                raise InputError(where, f"{name} are integers", got=value)
    for strength in l2:
        check_l2(where, strength)


def _examples(
    split: str, x: np.ndarray, y: np.ndarray, num_classes: int
) -> tuple[Float32[np.ndarray, "n d"], Int64[np.ndarray, " n"]]:
    x = _features(f"{split} features", x)
    y = check_labels(f"{split} labels", y, num_classes)
    if len(x) != len(y):
        raise InputError(f"{split} labels", "are not as many as the examples", got=len(y),
                         expected=len(x))
    return x, y


def _features(where: str, x: np.ndarray) -> Float32[np.ndarray, "n d"]:
    x = np.asarray(x)
    if x.dtype.kind not in "fiu" or x.ndim != 2 or 0 in x.shape:
        raise InputError(where, "are not a matrix of numbers", got=f"{x.dtype} {list(x.shape)}",
                         expected="a real array [n, d] with n, d >= 1")
    limit = np.finfo(np.float32).max
    if not (x.min() >= -limit and x.max() <= limit):  # negated, so that NaN is caught too
        bad = ~((x >= -limit) & (x <= limit))
        row, column = np.unravel_index(int(bad.argmax()), bad.shape)
        raise InputError(where, f"example {row}, feature {column} is not a finite float32",
                         got=x[row, column], hint="remove or mend such examples first")
    return x.astype(np.float32, copy=False)


def check_labels(where: str, y: np.ndarray, num_classes: int) -> Int64[np.ndarray, " n"]:
    """Returns labels as int64.

    Raises:
      InputError: one of them is not an integer in 0 ... num_classes - 1; it names the first.
    """
    y = as_integers(where, y)
    bad = (y < 0) | (y >= num_classes)
    if bad.any():
        index = int(bad.argmax())
        raise InputError(where, f"label of example {index} is out of range", got=y[index],
                         expected=f"0..{num_classes - 1}")
    return y


def as_integers(where: str, y: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Returns a list of numbers as int64.

    Raises:
      InputError: one of them is not an integer; it names the first.
    """
    y = np.asarray(y)
    if y.dtype.kind not in "fiu" or y.ndim != 1 or y.size == 0:
        raise InputError(where, "are not a list of integers", got=f"{y.dtype} {list(y.shape)}",
                         expected="an integer array [n] with n >= 1")
    limit = np.float64(2**53)  # integers beyond it are not exact in every dtype accepted here
    bad = ~(np.abs(y.astype(np.float64)) <= limit)
    bad |= np.floor(np.where(bad, 0, y)) != np.where(bad, 0, y)
    if bad.any():
        index = int(bad.argmax())
        raise InputError(where, f"label of example {index} is not an integer", got=y[index],
                         expected="an integer in -2^53..2^53")
    return y.astype(np.int64)


def _check_enough(y: Int64[np.ndarray, " n"], shots: int, names: Sequence[object]) -> None:
    counts = np.bincount(y, minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count < shots:
            raise InputError("few-shot probe", f"class {name} has too few train examples",
                             got=f"{count} examples", expected=f"at least {shots}, one a shot",
                             hint="ask for fewer shots or give more train examples")
