"""How laws are fitted: one solver for sums of power laws, many starts and resamples at once.

The core's forms are sums of power laws, fitted in log space: log y is the logsumexp over terms of a
linear function of the parameters (Hoffmann et al. 2022, approach 3). Forms of plugins are fitted by
`fit_generic`, one at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from deepnarrow.errors import PluginError
from deepnarrow.plugins import LawForm

HUBER_DELTA = 1e-3
MAX_STEPS = 600
COARSE_STARTS, COARSE_STEPS = 96, 60
KEPT_STARTS = 10
GENERIC_STARTS, GENERIC_STEPS = 32, 15


@dataclasses.dataclass(frozen=True)
class LogSum:
    """A form log y = log sum_t exp(design[t] @ theta).

    Attributes:
      design: `design(log_inputs [inputs, points]) -> [terms, points, parameters]`.
      logs: the parameters that theta holds the logarithm of.
      delta: of Huber's loss on log y; infinite for least squares.
      starts: `starts(log_inputs, log_y) -> [starts, parameters]`; None for one term, a line.
    """

    design: Callable[[np.ndarray], np.ndarray]
    logs: tuple[int, ...]
    delta: float
    starts: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """[..., parameters] as the solver has them -> as the form names them."""
        found = np.array(theta, dtype=np.float64)
        with np.errstate(over="ignore"):
            found[..., list(self.logs)] = np.exp(found[..., list(self.logs)])
        return found


def _columns(points: int, *columns: np.ndarray | float) -> np.ndarray:
    """[points] each -> [points, parameters]."""
    return np.stack([np.broadcast_to(np.asarray(c, float), points) for c in columns], axis=-1)


def _power_design(logs: np.ndarray) -> np.ndarray:
    return _columns(logs.shape[1], 1, logs[0])[None]


def _floor_design(logs: np.ndarray) -> np.ndarray:
    size = logs.shape[1]
    return np.stack([_columns(size, 1, logs[0], 0), _columns(size, 0, 0, 1)])


def _chinchilla_design(logs: np.ndarray) -> np.ndarray:
    n, d, size = logs[0], logs[1], logs.shape[1]
    return np.stack([_columns(size, 1, 0, 0, -n, 0), _columns(size, 0, 1, 0, 0, -d),
                     _columns(size, 0, 0, 1, 0, 0)])


def _shape_design(logs: np.ndarray) -> np.ndarray:
    aspect = logs[1] - logs[2]
    return _columns(logs.shape[1], 1, logs[0], aspect, aspect ** 2)[None]


def _floor_starts(logs: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    exponents = np.array([-2, -1, -0.5, -0.3, -0.1, -0.05, 0.05, 0.1, 0.3, 0.5, 1, 2])
    floors = log_y.min() + np.log([1e-4, 0.3, 0.6, 0.9, 0.99])
    found = []
    for exponent, floor in itertools.product(exponents, floors):
        rest = np.log(np.maximum(np.exp(log_y) - math.exp(floor), 1e-9 * np.exp(log_y)))
        found.append([np.median(rest - exponent * logs[0]), exponent, floor])
    return np.array(found)


def _chinchilla_starts(logs: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """Terms that share the loss at the centre of the data, over a grid of exponents and floors."""
    centre = np.median(logs, axis=1)
    exponents = (0.05, 0.2, 0.35, 0.6, 1.0, 1.5)
    floors = log_y.min() + np.log([1e-2, 0.3, 0.7, 0.95])
    found = []
    shares = (0.2, 0.5, 0.8)
    for alpha, beta, floor, share in itertools.product(exponents, exponents, floors, shares):
        rest = math.log(max(math.exp(np.median(log_y)) - math.exp(floor), 1e-6))
        found.append([rest + math.log(share) + alpha * centre[0],
                      rest + math.log(1 - share) + beta * centre[1], floor, alpha, beta])
    return np.array(found)


LOG_SUMS: Mapping[str, LogSum] = {
    "power": LogSum(_power_design, (0,), math.inf),
    "power_floor": LogSum(_floor_design, (0, 2), math.inf, _floor_starts),
    "chinchilla": LogSum(_chinchilla_design, (0, 1, 2), HUBER_DELTA, _chinchilla_starts),
    "shape": LogSum(_shape_design, (0,), math.inf),
}


def fit_log_sum(form: LogSum, logs: np.ndarray, log_y: np.ndarray) -> np.ndarray:
    """The point estimate of theta, from many starts: a few steps from each, the best to the end."""
    design = form.design(logs)
    if form.starts is None:
        return np.linalg.lstsq(design[0], log_y, rcond=None)[0]
    starts = form.starts(logs, log_y)
    ones = np.ones((len(starts), len(log_y)))
    loss = _local(starts, design, log_y, ones, form.delta)[0]
    starts = starts[np.argsort(loss, kind="stable")[:COARSE_STARTS]]
    theta, loss = solve(starts, design, log_y, ones[: len(starts)], form.delta, COARSE_STEPS)
    best = theta[np.argsort(loss, kind="stable")[:KEPT_STARTS]]
    theta, loss = solve(best, design, log_y, ones[: len(best)], form.delta)
    return theta[np.argmin(loss)]


def log_sum(
    theta: Float[np.ndarray, "batch parameters"],
    design: Float[np.ndarray, "terms points parameters"],
) -> tuple[Float[np.ndarray, "batch points"], Float[np.ndarray, "batch points parameters"]]:
    """Returns log y and its Jacobian for each row of `theta`."""
    terms, points, size = design.shape
    flat = theta @ design.reshape(-1, size).T  # [batch, terms * points]
    exponents = flat.reshape(len(theta), terms, points)
    top = exponents.max(axis=1, keepdims=True)
    shares = np.exp(exponents - top)
    total = shares.sum(axis=1, keepdims=True)
    shares /= total
    jacobian = np.empty((len(theta), points, size))
    for k in range(size):
        active = [t for t in range(terms) if design[t, :, k].any()]
        jacobian[:, :, k] = sum(shares[:, t] * design[t, :, k] for t in active)
    return (top + np.log(total))[:, 0], jacobian  # [batch, 1, points] -> [batch, points]


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Huber's loss: quadratic up to `delta`, linear beyond."""
    size = np.abs(residual)
    if math.isinf(delta):
        return 0.5 * residual ** 2
    return np.where(size <= delta, 0.5 * residual ** 2, delta * (size - 0.5 * delta))


def solve(
    theta: Float[np.ndarray, "batch parameters"],
    design: Float[np.ndarray, "terms points parameters"],
    log_y: Float[np.ndarray, "*batch points"],
    weights: Float[np.ndarray, "batch points"],
    delta: float,
    steps: int = MAX_STEPS,
    tolerance: float = 1e-10,
) -> tuple[Float[np.ndarray, "batch parameters"], Float[np.ndarray, " batch"]]:
    """Minimises sum_i weights_i huber(log_sum_i - log_y_i) for every row, by damped reweighted
    Gauss-Newton steps (Levenberg-Marquardt on Huber's weights). `log_y` is one for all rows, or
    one a row.

    Returns:
      The minimisers and their loss.
    """
    theta = np.array(theta, dtype=np.float64)
    log_y = np.broadcast_to(log_y, weights.shape)
    loss, gradient, hessian = _local(theta, design, log_y, weights, delta)
    damping = np.full(len(theta), 1e-3)
    active = np.arange(len(theta))
    small = np.zeros(len(theta), dtype=int)
    for _ in range(steps):
        scale = hessian[active] * np.eye(theta.shape[1]) + 1e-12 * np.eye(theta.shape[1])
        step = np.linalg.solve(hessian[active] + damping[active, None, None] * scale,
                               -gradient[active][..., None])[..., 0]
        tried = theta[active] + np.clip(step, -5, 5)
        new = _local(tried, design, log_y[active], weights[active], delta)
        better = new[0] <= loss[active]
        gain = (loss[active] - new[0]) / np.maximum(loss[active], 1e-300)
        moved = active[better]
        theta[moved], loss[moved] = tried[better], new[0][better]
        gradient[moved], hessian[moved] = new[1][better], new[2][better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 5), 1e-9, 1e9)
        still = np.where(better, gain < tolerance, damping[active] > 1e6)
        small[active] = np.where(still, small[active] + 1, np.where(better, 0, small[active]))
        active = active[(small[active] < 3) & (loss[active] > 1e-26)]
        if not len(active):
            break
    return theta, loss


def _local(
    theta: np.ndarray, design: np.ndarray, log_y: np.ndarray, weights: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss [batch], gradient [batch, parameters] and reweighted Gauss-Newton matrix."""
    value, jacobian = log_sum(theta, design)
    residual = value - log_y
    loss = (weights * huber(residual, delta)).sum(axis=1)
    pull = weights * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-200))
    gradient = np.einsum("bn,bnp->bp", pull * residual, jacobian)
    hessian = np.matmul((jacobian * pull[..., None]).transpose(0, 2, 1), jacobian)
    return loss, gradient, hessian


def fit_generic(
    form: LawForm, inputs: np.ndarray, log_y: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on log y from each of `starts` [starts, parameters], for a plugin's form.

    Returns:
      The best parameters and the Jacobian of log y there.

    Raises:
      PluginError: `predict` fails, or returns something else than one number a point.
    """
    from scipy.optimize import least_squares

    def residual(params: np.ndarray) -> np.ndarray:
        value = _predict(form, params, inputs)
        with np.errstate(all="ignore"):
            off = np.log(np.where(value > 0, value, np.nan)) - log_y
        return np.nan_to_num(off, nan=1e3, posinf=1e3, neginf=-1e3)

    def solved(start: np.ndarray, steps: int | None = None) -> Any:
        scale = np.maximum(np.abs(start), 1e-3)
        return least_squares(residual, start, x_scale=scale, max_nfev=steps)

    coarse = [solved(start, GENERIC_STEPS) for start in starts] if len(starts) > 1 else []
    coarse.sort(key=lambda found: found.cost)
    fine = [solved(found.x) for found in coarse[:3]] or [solved(starts[0])]
    best = min(fine, key=lambda found: found.cost)
    return best.x, best.jac


def generic_starts(form: LawForm, seed: int = 0) -> np.ndarray:
    """What the form suggests, then random magnitudes from 1e-3 to 1e3, of both signs."""
    rng = np.random.default_rng(seed)
    size = (GENERIC_STARTS, len(form.parameters))
    drawn = 10.0 ** rng.uniform(-3, 3, size) * rng.choice([1, 1, 1, -1], size)
    return np.array([*form.starts, *drawn], dtype=np.float64)


def _predict(form: LawForm, params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    where = f"law form {form.name!r}"
    try:
        with np.errstate(all="ignore"):
            value = np.asarray(form.predict(params, inputs[0] if len(inputs) == 1 else inputs),
                               dtype=np.float64)
    except Exception as error:  # a plugin's code
        raise PluginError(where, f"predict raised {type(error).__name__}: {error}") from error
    if value.shape != inputs.shape[1:]:
        raise PluginError(where, "predict returns no number a point", got=value.shape,
                          expected=inputs.shape[1:])
    return value
