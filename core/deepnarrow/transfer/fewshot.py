"""The few-shot probe: ridge regression on frozen features, closed form, for every modality.

The mathematics and the sampling are those of big_vision's evaluator `fewshot_lsr`: features
whitened by the shots' mean and standard deviation, a constant feature of 100 for the bias, targets
of +-1, and k examples of every class drawn without replacement. One seed draws the same examples
there and here, so the accuracies can be compared.

Only NumPy is needed to probe; extracting features from a model needs JAX.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Num

from deepnarrow.errors import InputError
from deepnarrow.modality import Batch, Params, Source
from deepnarrow.protocol import check_range
from deepnarrow.transfer import apply_all

BIAS_CONSTANT = 100.0  # so large that the ridge hardly holds the bias back
STD_FLOOR = 1e-5  # added to the standard deviation of every feature
MAX_SCORES = 2**24  # scores held at once: 64 MiB of float32
MAX_WEIGHTS = 2**26  # weights held at once: 256 MiB of float32
# Real features hardly compress; a file that grows more than this on reading is no file of features.
MAX_EXPANSION = 100


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Test accuracy of every probe.

    Attributes:
      shots: examples a class, in the order of the axis `shots`.
      seeds: seeds of the draws.
      l2: strengths of the ridge.
      accuracy: share of the test examples that are classified rightly.
      correct: which they are.
    """

    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    l2: tuple[float, ...]
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
    l2: Sequence[float] = (1024.0,),
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
      l2: strengths of the ridge; big_vision's default is 2^10.
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
    correct = []
    for start in range(0, len(draws), per_pass):
        probes = [_solve(x_train[i], y_train[i], num_classes, l2, center)
                  for i in draws[start : start + per_pass]]
        correct.append(_classify(x_test, y_test, center, probes, num_classes))
    # [shots * seeds, l2, n_test] -> [l2, shots, seeds, n_test]
    hits = np.concatenate(correct).reshape(len(shots), len(seeds), len(l2), len(y_test))
    hits = np.ascontiguousarray(hits.transpose(2, 0, 1, 3))
    return ProbeResult(tuple(shots), tuple(seeds), tuple(l2), hits.mean(axis=-1), hits)


def draw_shots(
    labels: Int64[np.ndarray, " n"], num_classes: int, shots: int, seed: int
) -> Int64[np.ndarray, "num_classes shots"]:
    """Returns which examples `seed` draws, class by class; the first k columns are its k shots.

    >>> draw_shots(np.array([0, 1, 0, 1, 1]), num_classes=2, shots=2, seed=0).shape
    (2, 2)
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(np.flatnonzero(labels == c))[:shots]
                     for c in range(num_classes)])


def ridge_weights(
    x: Float[np.ndarray, "n d"],
    y: Int64[np.ndarray, " n"],
    num_classes: int,
    l2: Sequence[float],
) -> tuple[
    Float64[np.ndarray, "l2 d+1 classes"], Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]
]:
    """Returns the ridge's weights on whitened features (bias last), and their mean and std.

    With z the whitened features and t the targets of +-1, the weights are
    `(z'z + l2 I)^-1 z't = z' (zz' + l2 I)^-1 t`. The smaller of the two matrices is decomposed once
    and serves every `l2`.
    """
    x = x.astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0) + STD_FLOOR  # [n, d] -> [d]
    bias = np.full((len(x), 1), BIAS_CONSTANT)
    z = np.concatenate([(x - mean) / std, bias], axis=1)  # [n, d] -> [n, d + 1]
    targets = np.where(y[:, None] == np.arange(num_classes), 1.0, -1.0)  # [n] -> [n, classes]
    if z.shape[0] >= z.shape[1]:
        eigenvalues, q = np.linalg.eigh(z.T @ z)  # [d + 1, d + 1]
        left, right = q, q.T @ (z.T @ targets)
    else:
        eigenvalues, q = np.linalg.eigh(z @ z.T)  # [n, n]
        left, right = z.T @ q, q.T @ targets
    return np.stack([(left / (eigenvalues + strength)) @ right for strength in l2]), mean, std


def _solve(
    x: Float32[np.ndarray, "n d"],
    y: Int64[np.ndarray, " n"],
    num_classes: int,
    l2: Sequence[float],
    center: Float32[np.ndarray, " d"],
) -> tuple[Float32[np.ndarray, "d columns"], Float32[np.ndarray, " columns"]]:
    """Weights and bias that apply to `features - center`, a column for each strength and class.

    The whitening is folded into them. Test features are centred by one vector for all draws:
    without it sums cancel in float32 where a feature's mean is much larger than its spread.
    """
    weights, mean, std = ridge_weights(x, y, num_classes, l2)
    slopes = weights[:, :-1] / std[:, None]
    shift = (mean - center) @ slopes  # [l2, d, classes] -> [l2, classes]
    bias = BIAS_CONSTANT * weights[:, -1] - shift
    # [l2, d, classes] -> [d, l2 * classes]
    slopes = slopes.transpose(1, 0, 2).reshape(center.size, -1)
    return slopes.astype(np.float32), bias.ravel().astype(np.float32)


def _classify(
    x: Float32[np.ndarray, "n d"],
    y: Int64[np.ndarray, " n"],
    center: Float32[np.ndarray, " d"],
    probes: Sequence[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
) -> Bool[np.ndarray, "draws l2 n"]:
    """Which test examples each probe gets right: one matmul for all probes, in chunks of rows."""
    weights = np.concatenate([w for w, _ in probes], axis=1)  # [d, draws * l2 * classes]
    bias = np.concatenate([b for _, b in probes])
    correct = np.empty((weights.shape[1] // num_classes, len(x)), bool)
    rows = max(1, MAX_SCORES // weights.shape[1])
    for start in range(0, len(x), rows):
        chunk = slice(start, start + rows)
        scores = (x[chunk] - center) @ weights  # [rows, d] -> [rows, draws * l2 * classes]
        scores += bias
        classes = scores.reshape(len(scores), -1, num_classes).argmax(axis=2)
        # [rows, draws * l2] -> [draws * l2, rows]
        correct[:, chunk] = (classes == y[chunk, None]).T
    return correct.reshape(len(probes), -1, len(x))


def extract_features(
    features: Callable[[Params, Batch], Any], params: Params, source: Source, batch_size: int,
    should_stop: Callable[[], bool] | None = None,
) -> Float32[np.ndarray, "n d"]:
    """Returns the features of every example of `source`, in order, padding dropped.

    Args:
      features: `features(params, batch) -> [batch, d]`, jitted, e.g. `Program.features`.
      params: the model's.
      source: the examples.
      batch_size: examples a call.
      should_stop: asked before each call.

    Raises:
      Preempted: `should_stop` said True.
    """
    x = apply_all(features, params, source, batch_size, should_stop)
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
    num_classes: int, shots: Sequence[int], seeds: Sequence[int], l2: Sequence[float]
) -> None:
    where = "few-shot probe"
    check_range(where, "num_classes", num_classes, 2)
    for name, values, low in (("shots", shots, 1), ("seeds", seeds, 0), ("l2", l2, 0)):
        if len(values) == 0:
            raise InputError(where, f"{name} is empty", expected="at least one value")
        for value in values:
            check_range(where, name, value, low, low_open=name == "l2")
            if name != "l2" and value != int(value):
                raise InputError(where, f"{name} are integers", got=value)


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
    y = _integers(where, y)
    bad = (y < 0) | (y >= num_classes)
    if bad.any():
        index = int(bad.argmax())
        raise InputError(where, f"label of example {index} is out of range", got=y[index],
                         expected=f"0..{num_classes - 1}")
    return y


def _integers(where: str, y: np.ndarray) -> Int64[np.ndarray, " n"]:
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


# --- anyone's features ----------------------------------------------------------------------------
def encode_labels(
    y_train: np.ndarray, y_test: np.ndarray
) -> tuple[Int64[np.ndarray, " n_train"], Int64[np.ndarray, " n_test"],
           Int64[np.ndarray, " classes"]]:
    """Returns both labels as positions in the train labels' sorted classes, and those classes.

    Raises:
      InputError: a test label does not occur among the train labels; it names the first.

    >>> encode_labels(np.array([7, -1, 7]), np.array([-1]))
    (array([1, 0, 1]), array([0]), array([-1,  7]))
    """
    y_train, y_test = _integers("train labels", y_train), _integers("test labels", y_test)
    classes, encoded = np.unique(y_train, return_inverse=True)
    bad = ~np.isin(y_test, classes)
    if bad.any():
        index = int(bad.argmax())
        raise InputError("test labels", f"label of example {index} has no train example",
                         got=y_test[index], hint="give train examples of every class")
    return encoded.astype(np.int64), np.searchsorted(classes, y_test), classes


def load_probe_arrays(
    path: str | os.PathLike[str],
) -> tuple[Num[np.ndarray, "n d"], Int64[np.ndarray, " n"]]:
    """Reads features `x` [n, d] and integer labels `y` [n] from an `.npz` file, as it stands there.

    Nothing in the file is run (no pickle), and nothing is allocated before the sizes that it claims
    are found consistent with the size that it has.

    Raises:
      InputError: there is no such file, it is no such archive, or its arrays cannot be.
    """
    where = str(path)
    if not Path(path).is_file():
        raise InputError(where, "is not a file", expected="an .npz file with x [n, d] and y [n]")
    try:
        with zipfile.ZipFile(path) as archive:
            x = _read_member(where, archive, "x", 2)
            y = _read_member(where, archive, "y", 1)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise InputError(where, "cannot be read as an .npz file", got=error,
                         hint="write it with np.savez(path, x=features, y=labels)") from error
    if len(x) != len(y):
        raise InputError(where, "x and y have different lengths", got=f"{len(x)} and {len(y)}")
    return x, _integers(f"{where}, y", y)


def _read_member(where: str, archive: zipfile.ZipFile, name: str, ndim: int) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        names = ", ".join(sorted(n.removesuffix(".npy") for n in archive.namelist()[:10]))
        raise InputError(where, f"has no array {name!r}", got=names or "no arrays",
                         expected="x [n, d] and y [n]")
    info = archive.getinfo(f"{name}.npy")
    shape, dtype, header_bytes = _read_header(f"{where}, {name}", archive, info)
    if dtype.kind not in "fiu" or len(shape) != ndim or min(shape) < 1:
        raise InputError(f"{where}, {name}", "is no such array", got=f"{dtype} {list(shape)}",
                         expected="numbers " + ("[n, d]" if ndim == 2 else "[n]"))
    size = header_bytes + dtype.itemsize * math.prod(shape)
    available = os.path.getsize(where) * MAX_EXPANSION
    if size != info.file_size or size > available:
        raise InputError(f"{where}, {name}", "claims another size than it has", got=f"{size} bytes",
                         expected=f"{min(info.file_size, available)} bytes",
                         hint="the file is damaged, or packed too tightly: write it with np.savez")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_header(
    where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype, int]:
    """Returns shape, dtype and the bytes before the data; no array is allocated."""
    with archive.open(info) as file:
        try:
            if np.lib.format.read_magic(file) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        except Exception as error:  # a hostile header makes NumPy's parser raise nearly anything
            raise InputError(where, "has no readable header", got=error) from error
        return shape, dtype, file.tell()
