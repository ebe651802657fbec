"""Ridge regression on a few shots, in closed form: draws, weights, and the choice of the strength.

The mathematics and the sampling are those of big_vision's evaluator `fewshot_lsr`: features
whitened by the shots' mean and standard deviation, a constant feature of 100 for the bias, targets
of +-1, and k examples of every class drawn without replacement. One seed draws the same examples
there and here, so the accuracies can be compared. Everything is solved in float64, by NumPy alone.

big_vision's strength is 2^10 for every model. That is not neutral to the width d of the features:
with fewer shots than features the eigenvalues that it is added to are of the order of d. So
`choose_l2` chooses it from the shots themselves; `docs/benchmarks.md` shows the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

BIAS_CONSTANT = 100.0  # so large that the ridge hardly holds the bias back
STD_FLOOR = 1e-5  # added to the standard deviation of every feature
# What `choose_l2` chooses from: from no ridge to speak of, to one that leaves of the weights hardly
# more than the differences between the classes' means.
L2_GRID = tuple(2.0**power for power in range(0, 22, 2))


class Problem(NamedTuple):
    """Whitened shots with their targets.

    Attributes:
      z: whitened features, the constant feature last.
      targets: 1 for an example's class, else -1.
      mean: the shots' mean.
      std: their standard deviation and `STD_FLOOR`.
    """

    z: Float64[np.ndarray, "n d+1"]
    targets: Float64[np.ndarray, "n classes"]
    mean: Float64[np.ndarray, " d"]
    std: Float64[np.ndarray, " d"]


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


def whiten(
    x: Float[np.ndarray, "n d"], y: Int64[np.ndarray, " n"], num_classes: int
) -> Problem:
    """Returns the problem that shots `x` of classes `y` pose."""
    x = x.astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0) + STD_FLOOR  # [n, d] -> [d]
    bias = np.full((len(x), 1), BIAS_CONSTANT)
    z = np.concatenate([(x - mean) / std, bias], axis=1)  # [n, d] -> [n, d + 1]
    targets = np.where(y[:, None] == np.arange(num_classes), 1.0, -1.0)  # [n] -> [n, classes]
    return Problem(z, targets, mean, std)


def ridge_weights(
    problem: Problem, l2: Sequence[float]
) -> Float64[np.ndarray, "l2 d+1 classes"]:
    """Returns the ridge's weights on whitened features (the bias's last) for every strength.

    They are `(z'z + l2 I)^-1 z't = z' (zz' + l2 I)^-1 t`; the smaller of the matrices is solved.
    """
    z, targets = problem.z, problem.targets
    wide = z.shape[0] < z.shape[1]
    gram, right = (z @ z.T, targets) if wide else (z.T @ z, z.T @ targets)
    solved = [np.linalg.solve(gram + strength * np.eye(len(gram)), right) for strength in l2]
    return np.stack([z.T @ s for s in solved] if wide else solved)


def leave_one_out_errors(
    problem: Problem, l2: Sequence[float]
) -> Float64[np.ndarray, "l2 n"]:
    """Returns each shot's squared error, mean over classes, when the ridge is fit to the others.

    With H = z (z'z + l2 I)^-1 z', the residual of shot i without itself is `(t - H t)_i / (1 -
    H_ii)` (PRESS; Allen 1974): exact, from one eigendecomposition. The whitening stays that of all
    shots, as in the probe itself; it knows no label.
    """
    z, targets = problem.z, problem.targets
    if z.shape[0] < z.shape[1]:
        eigenvalues, q = np.linalg.eigh(z @ z.T)
        eigenvalues = np.maximum(eigenvalues, 0.0)  # rounding makes small ones negative
        v = q * np.sqrt(eigenvalues)  # [n, n]
    else:
        eigenvalues, q = np.linalg.eigh(z.T @ z)
        eigenvalues = np.maximum(eigenvalues, 0.0)
        v = z @ q  # [n, d + 1]
    right = v.T @ targets
    errors = np.empty((len(l2), len(z)))
    for error, strength in zip(errors, l2, strict=True):  # H = v diag(1 / (eigenvalues + l2)) v'
        left = v / (eigenvalues + strength)
        leverage = np.einsum("nr,nr->n", left, v)
        residual = (targets - left @ right) / (1.0 - leverage)[:, None]
        error[:] = np.mean(residual**2, axis=1)
    return errors


def choose_l2(problem: Problem, grid: Sequence[float] = L2_GRID) -> float:
    """Returns the strength of `grid` with the smallest leave-one-out error on these shots.

    Nothing but the shots is looked at. Squared errors choose, not accuracies: those of a few shots
    mostly tie. The plain minimum is taken, not the strongest within a standard error of it: that is
    a little better where classes are clear, and much worse where they are not
    (`docs/benchmarks.md`).

    At one shot a class is unknown to the fit that leaves its example out. The error then weighs the
    bias against all slopes, and what is chosen depends on the number of classes and hardly on the
    features: a strong ridge, the same for every shape.
    """
    return float(grid[leave_one_out_errors(problem, grid).mean(axis=1).argmin()])
