"""Scaling laws fitted to a `Table`, with intervals, and refused where the data do not say.

A point is a size: rows that share name and inputs are seeds of it and count once, as their mean.
All fits are of log y. A fit that is not *identified* has no numbers: too few sizes, too short a
span, or parameters that trade off against each other; `mend` says which runs would help.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from deepnarrow.bootstrap import LEVEL, SEED, Interval
from deepnarrow.errors import InputError, shorten
from deepnarrow.lawfit import LOG_SUMS, fit_generic, fit_log_sum, generic_starts, log_sum, solve
from deepnarrow.plugins import LawForm
from deepnarrow.summary import TIMES
from deepnarrow.table import Table, count_non_finite, direction_of, domains, find_column

BOOTSTRAP = 1000
MIN_SIZES = 4
MIN_SPAN = 0.5  # decades of each input
MIN_SPAN_TERMS = 1.0  # the same, for sums of several terms: a floor needs curvature to show
# Of the Jacobian at the estimate, inputs centred and columns scaled to length 1. 30 for the data of
# Hoffmann et al.; above some hundreds the parameters of a sum trade off against each other.
MAX_CONDITION = 500.0
MAX_RATIO = 20.0  # of an exponent's bounds, in sums of several terms
# Below, resampling points would leave too few of them: residuals are drawn from Student's t
# instead.
MIN_CASES = 30
EXTRAPOLATION = 10.0  # beyond this factor, drawn dashed and said
HOLD_OUT = 0.2  # share of the largest sizes that a second fit has to predict


@dataclasses.dataclass(frozen=True)
class HoldOut:
    """A fit without the largest sizes, judged on them.

    Attributes:
      points: how many were held out.
      factor: how much larger the largest held out is than the largest fitted (product of inputs).
      error: mean of |predicted / measured - 1|.
    """

    points: int
    factor: float
    error: float


@dataclasses.dataclass(frozen=True)
class Alpha:
    """A slope in the notation of Tay et al. 2022: larger is better scaling.

    Attributes:
      name: e.g. `alpha_F,U`: F FLOPs, P parameters, U upstream, D downstream.
      value: the exponent times `sign`.
      sign: -1 where exactly one of the two axes is better when it is less.
      transform: of the axes.
    """

    name: str
    value: Interval
    sign: int
    transform: str


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted, or refused, law.

    Attributes:
      form: its name.
      inputs: column by input.
      y: the column.
      params: by name; without numbers where not identified.
      identified: whether the data determine the parameters.
      reason: why not, or None.
      mend: which runs would mend it, or None.
      flags: what to keep in mind, in words.
      sizes: number of points.
      spans: decades of each input.
      condition: number of the scaled Jacobian; None where nothing was fitted.
      residual: root mean square of log y around the fit; None where nothing was fitted.
      hold_out: None where too few sizes are left without the largest.
      alpha: of form `power`.
      optimum: of form `shape`: the depth / width with the best quality, if there is one.
      non_finite: values of the columns that were NaN or infinite.
      ranges: smallest and largest value of each input.
      sample: [draws, parameters] of the bootstrap, natural parameters; empty where refused.
    """

    form: str
    inputs: Mapping[str, str]
    y: str
    params: Mapping[str, Interval]
    identified: bool
    reason: str | None
    mend: str | None = None
    flags: tuple[str, ...] = ()
    sizes: int = 0
    spans: Mapping[str, float] = dataclasses.field(default_factory=dict)
    condition: float | None = None
    residual: float | None = None
    hold_out: HoldOut | None = None
    alpha: Alpha | None = None
    optimum: Interval | None = None
    non_finite: int = 0
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    sample: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 0)), compare=False)


@dataclasses.dataclass(frozen=True)
class Points:
    """Sizes: `logs` [inputs, points], `log_y` [points]; `cluster` [points] numbers the shapes."""

    logs: np.ndarray
    log_y: np.ndarray
    cluster: np.ndarray


def fit(
    table: Table, form: LawForm, inputs: Mapping[str, str], y: str, *, domain: str | None = None,
    y_direction: str | None = None, bootstrap: int = BOOTSTRAP, seed: int = SEED,
) -> Law:
    """Fits `form` to one domain of `table`.

    Args:
      table: the rows.
      form: a registered form.
      inputs: the column of each of `form.inputs`.
      y: the column to predict.
      domain: which, where the table has several.
      y_direction: whether less or more of y is better, where the table does not say.
      bootstrap: number of resamples.
      seed: of the resampling.

    Raises:
      InputError: a column is not there; several domains and none chosen; values that are not
        positive; step times of several machines; no finite rows.
    """
    mine = _one_domain(table, domain)
    columns = {name: find_column(mine, column, "column") for name, column in inputs.items()}
    target = find_column(mine, y, "column")
    direction = direction_of(mine, target, y_direction)
    _check_machines(mine, list(columns.values()))
    points = _points(mine, [columns[name] for name in form.inputs], target)
    bad = count_non_finite(mine, *columns.values(), target)
    spans = {name: float(np.ptp(row)) / math.log(10)
             for name, row in zip(form.inputs, points.logs, strict=True)}
    ranges = {name: (math.exp(row.min()), math.exp(row.max()))
              for name, row in zip(form.inputs, points.logs, strict=True)}
    law = Law(form.name, columns, target, _no_numbers(form), False, None, None, (),
              len(points.log_y), spans, non_finite=bad, ranges=ranges)
    refused = _too_little(form, points, law)
    if refused is not None:
        return dataclasses.replace(law, reason=refused[0], mend=refused[1])
    law = _fitted(form, points, law, bootstrap, seed)
    if form.name == "power" and law.identified:
        return dataclasses.replace(law, alpha=_alpha(mine, law, direction))
    return law


def _one_domain(table: Table, domain: str | None) -> Table:
    from deepnarrow.table import select

    known = domains(table)
    if domain is not None and domain not in known:
        raise InputError("--domain", "no rows of this domain", got=domain,
                         expected=f"one of {', '.join(shorten(name) for name in known)}")
    if domain is None and len(known) > 1:
        raise InputError("--domain", "is missing: a law is fitted to one domain",
                         expected=f"one of {', '.join(shorten(name) for name in known)}")
    return select(table, table.domain == (known[0] if domain is None else domain))


def _check_machines(table: Table, columns: Sequence[str]) -> None:
    machines = set(table.columns["machine"][table.done]) if "machine" in table.columns else set()
    timed = next((name for name in columns if name in TIMES), None)
    if timed and len(machines) > 1:
        raise InputError(f"column {timed}", "was measured on several machines",
                         got=", ".join(sorted(map(str, machines))), expected="one machine")


def _points(table: Table, inputs: Sequence[str], y: str) -> Points:
    values = np.stack([table.columns[name] for name in [*inputs, y]])  # [inputs + 1, rows]
    usable = np.isfinite(values).all(axis=0) & table.done
    if not usable.any():
        raise InputError(f"column {shorten(y)!r}", "no row has finite values of it and of "
                         f"{', '.join(inputs)}", hint="no finished runs?")
    for name, row in zip([*inputs, y], values, strict=True):
        wrong = np.flatnonzero(usable & (row <= 0))
        if len(wrong):
            raise InputError(f"column {shorten(name)!r}", "is not positive, and laws are fitted to "
                             "logarithms", got=f"{row[wrong[0]]:g} in row {wrong[0] + 1} "
                             f"({shorten(table.name[wrong[0]], 40)})", expected="> 0",
                             hint="of a negative log-likelihood use the loss")
    groups: dict[tuple[object, ...], list[float]] = {}
    for i in np.flatnonzero(usable):
        groups.setdefault((table.name[i], *values[:-1, i]), []).append(float(values[-1, i]))
    names = {name: k for k, name in enumerate(dict.fromkeys(key[0] for key in groups))}
    logs = np.log(np.array([key[1:] for key in groups], dtype=np.float64)).T  # [inputs, points]
    means = np.log(np.array([math.fsum(v) / len(v) for v in groups.values()]))
    return Points(logs, means, np.array([names[key[0]] for key in groups]))


def _no_numbers(form: LawForm) -> dict[str, Interval]:
    return {name: Interval(None, None, None, "not identified") for name in form.parameters}


def _too_little(form: LawForm, points: Points, law: Law) -> tuple[str, str] | None:
    """Why the points cannot determine the form, and which runs would, or None."""
    terms = len(LOG_SUMS[form.name].design(points.logs)) if form.name in LOG_SUMS else 1
    needed = max(MIN_SIZES, len(form.parameters) + 1)
    sizes = len(np.unique(points.logs.round(9), axis=1).T)
    if sizes < needed:
        more = needed - sizes
        equal = f" (of {law.sizes} points, equal ones count once)" if sizes < law.sizes else ""
        return (f"too few sizes: needs >= {needed}, got {sizes}{equal}",
                f"add {more} size{'s' if more > 1 else ''}, {_suggest(law, form, 10)}")
    for name, row in zip(form.inputs, points.logs, strict=True):
        if name in ("depth", "width"):
            continue
        column = shorten(law.inputs[name], 40)
        least = MIN_SPAN_TERMS if terms > 1 else MIN_SPAN
        distinct = len(np.unique(row.round(9)))
        if law.spans[name] < least:
            covered = f"{column} covers {law.spans[name]:.2f} decades, needs >= {least}"
            return (f"span too short: {covered}",
                    f"add sizes up to {column} = "
                    f"{law.ranges[name][0] * 10 ** least:.3g}")
        if distinct < 3:
            return (f"too few sizes: {column} has {distinct} values, needs >= 3",
                    f"add a value of {column} between {law.ranges[name][0]:.3g} and "
                    f"{law.ranges[name][1]:.3g}")
    if form.name == "shape":
        aspect = points.logs[1] - points.logs[2]
        if len(np.unique(aspect.round(9))) < 3 or np.ptp(aspect) < math.log(2):
            return ("too few shapes: depth / width needs >= 3 values over a factor of 2",
                    "add deeper and shallower shapes of the same costs")
    return None


def _suggest(law: Law, form: LawForm, factor: float) -> str:
    parts = []
    for name in form.inputs:
        low, high = law.ranges[name]
        top = max(high, low * factor)
        parts.append(f"{shorten(law.inputs[name], 40)} between {low:.3g} and {top:.3g}")
    return "with " + " and ".join(parts)


def _fitted(form: LawForm, points: Points, law: Law, bootstrap: int, seed: int) -> Law:
    theta, jacobian = _estimate(form, points)
    fitted_y = _predict_log(form, theta, points.logs)
    freedom = len(points.log_y) - len(form.parameters)
    residual = math.sqrt(float(((points.log_y - fitted_y) ** 2).sum()) / max(freedom, 1))
    condition = _condition(jacobian)
    law = dataclasses.replace(law, condition=condition,
                              residual=float(np.sqrt(np.mean((points.log_y - fitted_y) ** 2))))
    if not condition <= MAX_CONDITION:
        return dataclasses.replace(law, reason=(
            f"parameters trade off against each other: condition number {condition:.3g} > "
            f"{MAX_CONDITION:g}"), mend=_mend_condition(form, law))
    sample, method = _resample(form, points, theta, fitted_y, residual, bootstrap, seed)
    estimate = _natural(form, theta)
    params = _intervals(form, estimate, sample, points, residual, method)
    wide = _too_wide(form, params)
    if wide is not None:
        return dataclasses.replace(law, reason=wide, mend=_mend_condition(form, law))
    law = dataclasses.replace(law, params=params, identified=True, sample=sample)
    return dataclasses.replace(law, hold_out=_hold_out(form, points), flags=_flags(law),
                               optimum=_optimum(law))


def _estimate(form: LawForm, points: Points) -> tuple[np.ndarray, np.ndarray]:
    """The point estimate, and the Jacobian of log y with the inputs centred."""
    if form.name not in LOG_SUMS:
        return fit_generic(form, np.exp(points.logs), points.log_y, generic_starts(form))
    solver = LOG_SUMS[form.name]
    theta = fit_log_sum(solver, points.logs, points.log_y)
    # Where an input is measured from only moves the intercepts, so it must not count as a
    # trade-off.
    centred = solver.design(points.logs - points.logs.mean(axis=1, keepdims=True))
    exponents = solver.design(points.logs) @ theta  # [terms, points]
    shares = np.exp(exponents - exponents.max(axis=0))
    shares /= shares.sum(axis=0)
    return theta, (shares[..., None] * centred).sum(axis=0)  # [terms, points, p] -> [points, p]


def _condition(jacobian: np.ndarray) -> float:
    lengths = np.linalg.norm(jacobian, axis=0)
    if not np.isfinite(jacobian).all() or not lengths.all():
        return math.inf
    return float(np.linalg.cond(jacobian / lengths))


def _natural(form: LawForm, theta: np.ndarray) -> np.ndarray:
    return LOG_SUMS[form.name].natural(theta) if form.name in LOG_SUMS else np.asarray(theta)


def _predict_log(form: LawForm, theta: np.ndarray, logs: np.ndarray) -> np.ndarray:
    if form.name in LOG_SUMS:
        return log_sum(theta[None], LOG_SUMS[form.name].design(logs))[0][0]
    inputs = np.exp(logs)
    return np.log(form.predict(theta, inputs[0] if len(inputs) == 1 else inputs))


def _resample(
    form: LawForm, points: Points, theta: np.ndarray, fitted_y: np.ndarray, residual: float,
    bootstrap: int, seed: int,
) -> tuple[np.ndarray, str]:
    """[bootstrap, parameters] natural parameters of refits, and how they were drawn."""
    rng = np.random.default_rng(seed)
    clusters = int(points.cluster.max()) + 1
    freedom = max(len(points.log_y) - len(form.parameters), 1)
    design = LOG_SUMS[form.name].design(points.logs) if form.name in LOG_SUMS else None
    if clusters >= MIN_CASES and design is not None and len(design) > 1:
        counts = rng.multinomial(clusters, np.full(clusters, 1 / clusters), bootstrap)
        weights = counts[:, points.cluster].astype(np.float64)  # [bootstrap, points]
        found, _ = solve(np.repeat(theta[None], bootstrap, 0), design, points.log_y, weights,
                         LOG_SUMS[form.name].delta)
        return _natural(form, found), "percentile, sizes resampled"
    scale = residual * np.sqrt(freedom / rng.chisquare(freedom, (bootstrap, 1)))
    drawn = fitted_y + scale * rng.standard_normal((bootstrap, len(fitted_y)))
    if design is not None and len(design) == 1:
        return _natural(form, drawn @ np.linalg.pinv(design[0]).T), "t on residuals"
    if design is not None:
        found, _ = solve(np.repeat(theta[None], bootstrap, 0), design, drawn,
                         np.ones(drawn.shape), math.inf)
        return _natural(form, found), "percentile, residuals drawn from t"
    inputs = np.exp(points.logs)
    return np.array([fit_generic(form, inputs, y, theta[None])[0] for y in drawn]), \
        "percentile, residuals drawn from t"


def _intervals(
    form: LawForm, estimate: np.ndarray, sample: np.ndarray, points: Points, residual: float,
    method: str,
) -> dict[str, Interval]:
    """Intervals of the parameters: exactly Student's for lines, percentiles of refits else."""
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    bounds = np.quantile(sample, tails, axis=0)
    if method == "t on residuals":
        from scipy.special import stdtrit

        design = LOG_SUMS[form.name].design(points.logs)[0]
        freedom = len(design) - design.shape[1]
        error = residual * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
        theta = np.linalg.lstsq(design, points.log_y, rcond=None)[0]
        half = float(stdtrit(freedom, tails[1])) * error
        bounds = _natural(form, np.stack([theta - half, theta + half]))
    return {name: Interval(_plain(estimate[k]), _plain(bounds[0, k]), _plain(bounds[1, k]), method)
            for k, name in enumerate(form.parameters)}


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _too_wide(form: LawForm, params: Mapping[str, Interval]) -> str | None:
    exponents = {"power_floor": ("exponent",), "chinchilla": ("alpha", "beta")}
    for name in exponents.get(form.name, ()):
        low, high = params[name].low, params[name].high
        if low is None or high is None or low * high <= 0 or \
                max(abs(low), abs(high)) > MAX_RATIO * min(abs(low), abs(high)):
            return (f"{name} is not determined: its interval goes from {low or 0:.3g} to "
                    f"{high or 0:.3g}")
    return None


def _mend_condition(form: LawForm, law: Law) -> str:
    if form.name == "chinchilla":
        (n_low, n_high), (d_low, d_high) = law.ranges["n"], law.ranges["d"]
        n, d = (shorten(law.inputs[name], 40) for name in form.inputs)
        return (f"vary {d} at fixed {n}: add {n} = {n_low:.3g} with {d} = {d_high:.3g}, and {n} = "
                f"{n_high:.3g} with {d} = {d_low:.3g}")
    high = {shorten(law.inputs[name], 40): law.ranges[name][1] for name in form.inputs}
    return "add sizes up to " + ", ".join(f"{name} = {10 * top:.3g}" for name, top in high.items())


def _hold_out(form: LawForm, points: Points) -> HoldOut | None:
    """Fits without the largest sizes and predicts them."""
    scale = points.logs.sum(axis=0) if form.name == "chinchilla" else points.logs[0]
    sizes = np.unique(scale.round(9))
    held = scale.round(9) >= sizes[-max(1, round(HOLD_OUT * len(sizes)))]
    if len(sizes) < 4 or (~held).sum() < max(3, len(form.parameters)):
        return None
    rest = Points(points.logs[:, ~held], points.log_y[~held], points.cluster[~held])
    theta, _ = _estimate(form, rest)
    off = _predict_log(form, theta, points.logs[:, held]) - points.log_y[held]
    return HoldOut(int(held.sum()), math.exp(scale.max() - scale[~held].max()),
                   float(np.mean(np.abs(np.expm1(np.clip(off, -50, 50))))))


def _flags(law: Law) -> tuple[str, ...]:
    found = [f"{shorten(law.inputs[name], 40)} spans only {span:.2f} decades"
             for name, span in law.spans.items() if span < 1 and name not in ("depth", "width")]
    exponent = law.params.get("exponent")
    if exponent is not None and exponent.low is not None and exponent.high is not None and \
            exponent.low <= 0 <= exponent.high:
        found.append("the interval of the exponent holds 0: no trend is shown")
    floor = law.params.get("floor", law.params.get("E"))
    if floor is not None and (floor.low or 0) < 1e-3 * (floor.high or math.inf):
        found.append("the data do not tell the floor from 0")
    return tuple(found)


def _optimum(law: Law) -> Interval | None:
    """Of form `shape`: exp(-slope / (2 bend)), the depth / width where the quadratic turns."""
    if law.form != "shape" or not law.identified:
        return None
    slope, bend = law.sample[:, 2], law.sample[:, 3]
    known = (law.params["aspect_slope"].estimate, law.params["aspect_bend"].estimate)
    if known[0] is None or not known[1]:
        return None
    turn = -known[0] / (2 * known[1])
    same = np.sign(bend) == np.sign(known[1])
    if same.mean() < (1 + LEVEL) / 2:
        return None  # the bend's sign is not known, so whether there is an optimum is not either
    low, high = np.quantile(-slope[same] / (2 * bend[same]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    middle, low, high = (math.exp(min(max(v, -700), 700)) for v in (turn, low, high))
    return Interval(middle, low, high, "percentile, t on residuals")


def _alpha(table: Table, law: Law, direction: str) -> Alpha:
    x = law.inputs["x"]
    minimised = [direction == "min", table.directions.get(x) == "min"]
    sign = -1 if sum(minimised) == 1 else 1
    exponent = law.params["exponent"]
    low, high = (exponent.low, exponent.high) if sign > 0 else (exponent.high, exponent.low)
    value = Interval(_times(sign, exponent.estimate), _times(sign, low), _times(sign, high),
                     exponent.method)
    return Alpha(f"alpha_{_axis_letter(x)},{_axis_letter(law.y)}", value, sign,
                 f"slope of ln({law.y}) against ln({x}), times {sign:+d}")


def _times(sign: int, value: float | None) -> float | None:
    return None if value is None else sign * value


def _axis_letter(column: str) -> str:
    if column.startswith("params"):
        return "P"
    if "flops" in column.lower():
        return "F"
    if column.startswith("upstream/") or ("/" not in column and column in ("loss", "perplexity")):
        return "U"
    return "D" if "/" in column else column


def predict(
    form: LawForm, law: Law, inputs: np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns y, its bounds, and where it is beyond `EXTRAPOLATION` x the largest fitted input.

    Args:
      form: of the law.
      law: identified.
      inputs: [inputs, points].
      level: of the bounds.
    """
    given = inputs[0] if len(inputs) == 1 else inputs
    middle = form.predict([law.params[name].estimate for name in form.parameters], given)
    drawn = np.array([form.predict(row, given) for row in law.sample])  # [draws, points]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    tops = np.array([law.ranges[name][1] for name in form.inputs])
    far = (inputs > EXTRAPOLATION * tops[:, None] * (1 + 1e-9)).any(axis=0)
    return middle, low, high, np.asarray(far)
