"""Uncertainty over training seeds and evaluation examples: draws of what the true means may be.

Few seeds are the rule, and a percentile bootstrap of two or three numbers is far too narrow. So the
variance over seeds is pooled across the shapes that have few of them, and draws are from Student's
t (Gaussian noise over a drawn variance): for a linear function of the means their percentiles are
exactly the pooled-t interval. Evaluation examples are resampled as they are, the same ones for
every shape, so that what is hard for all cancels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics

import numpy as np
from jaxtyping import Float

from deepnarrow.table import SeedValues

LEVEL = 0.9
DRAWS = 4000
SEED = 0
# From this many training seeds on, a shape's own variance is used.
OWN_VARIANCE = 8
_CELLS = 4_000_000  # of a table of resampled examples held at a time
POOLED_T = "pooled-t"
POOLED_T_EXAMPLES = "pooled-t and examples"


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 90% interval; None where there is none. `method`: how it was made."""

    estimate: float | None
    low: float | None
    high: float | None
    method: str


@dataclasses.dataclass(frozen=True)
class Uncertain:
    """Means of shapes with what is known of their noise.

    Attributes:
      mean: [shapes].
      variance: [shapes] of a mean over training seeds.
      group: [shapes] which variance estimate a shape uses.
      df: [groups] degrees of freedom of each estimate.
      examples: [shapes, examples] deviations of per-example values from the shape's mean, or None.
    """

    mean: Float[np.ndarray, " shapes"]
    variance: Float[np.ndarray, " shapes"]
    group: np.ndarray
    df: np.ndarray
    examples: Float[np.ndarray, "shapes examples"] | None

    @property
    def method(self) -> str:
        return POOLED_T if self.examples is None else POOLED_T_EXAMPLES

    @functools.cached_property
    def standard(self) -> Float[np.ndarray, "draws shapes"]:
        """The draws that most analyses share, `DRAWS` from `SEED`; read only."""
        drawn = _draw(self, DRAWS, SEED)
        drawn.flags.writeable = False
        return drawn


def uncertain(values: SeedValues) -> Uncertain | None:
    """Returns the noise of `values`, or None where no shape has two training seeds.

    Shapes with fewer than `OWN_VARIANCE` seeds share one variance, pooled over those of them that
    have at least two: sum (n - 1) sd^2 / sum (n - 1). One-seed shapes borrow it.
    """
    many = values.n >= OWN_VARIANCE
    pooled = (values.n > 1) & ~many
    freedom = int((values.n[pooled] - 1).sum())
    if not many.any() and not freedom:
        return None
    own = np.flatnonzero(many)
    source = pooled if freedom else many  # few seeds beside many: the many's variance is the best
    weight = (values.n - 1) * source
    shared = np.nansum(weight * np.nan_to_num(values.sd) ** 2) / weight.sum()
    sd2, group = np.full(len(values.n), shared), np.zeros(len(values.n), dtype=int)
    sd2[own], group[own] = values.sd[own] ** 2, 1 + np.arange(len(own))
    df = np.array([weight.sum(), *(values.n[own] - 1)], dtype=float)
    examples = None
    if values.examples is not None:
        examples = values.examples - values.examples.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return Uncertain(values.mean, sd2 / values.n, group, df, examples)


def restrict(noise: Uncertain, places: np.ndarray) -> Uncertain:
    """Returns the noise of the shapes at `places`; variances stay pooled over all."""
    examples = None if noise.examples is None else noise.examples[places]
    return dataclasses.replace(noise, mean=noise.mean[places], variance=noise.variance[places],
                               group=noise.group[places], examples=examples)


def draw_means(
    noise: Uncertain, draws: int = DRAWS, seed: int = SEED
) -> Float[np.ndarray, "draws shapes"]:
    """Draws what the true means may be: mean + t noise over seeds + resampled examples."""
    return noise.standard if (draws, seed) == (DRAWS, SEED) else _draw(noise, draws, seed)


def _draw(noise: Uncertain, draws: int, seed: int) -> Float[np.ndarray, "draws shapes"]:
    rng = np.random.default_rng(seed)
    scale = np.sqrt(noise.df / rng.chisquare(noise.df, (draws, len(noise.df))))[:, noise.group]
    normal = rng.standard_normal((draws, len(noise.mean)))
    found = noise.mean + np.sqrt(noise.variance) * scale * normal  # [draws, shapes]
    if noise.examples is not None:
        size = noise.examples.shape[1]
        step = max(1, _CELLS // size)
        for start in range(0, draws, step):
            part = found[start : start + step]
            counts = rng.multinomial(size, np.full(size, 1 / size), len(part))  # [part, examples]
            # Resampling shrinks the variance by (size - 1) / size.
            part += counts @ noise.examples.T / math.sqrt(size * (size - 1))
    return found


def contrast_error(
    noise: Uncertain, weights: Float[np.ndarray, "contrasts shapes"]
) -> tuple[Float[np.ndarray, " contrasts"], Float[np.ndarray, " contrasts"]]:
    """Standard errors of weighted sums of means, and their degrees of freedom (Satterthwaite)."""
    parts = weights ** 2 * noise.variance  # [contrasts, shapes]
    by_group = np.stack([np.where(noise.group == g, parts, 0).sum(axis=1)
                         for g in range(len(noise.df))], axis=1)  # -> [contrasts, groups]
    df = np.broadcast_to(noise.df, by_group.shape)
    if noise.examples is not None:
        size = noise.examples.shape[1]
        spread = (weights @ noise.examples).var(axis=1, ddof=1) / size
        by_group = np.column_stack([by_group, spread])
        df = np.column_stack([df, np.full(len(df), size - 1)])
    total = by_group.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total ** 2 / (by_group ** 2 / np.maximum(df, 1)).sum(axis=1)
    return np.sqrt(total), np.where(total > 0, freedom, df.max())


def contrasts(
    noise: Uncertain, weights: Float[np.ndarray, "contrasts shapes"], level: float = LEVEL
) -> list[Interval]:
    """Two-sided t intervals of weighted sums of means."""
    from scipy.special import stdtrit

    estimate = weights @ noise.mean
    error, df = contrast_error(noise, weights)
    half = stdtrit(df, (1 + level) / 2) * error
    return [Interval(float(e), float(e - h), float(e + h), noise.method)
            for e, h in zip(estimate, half, strict=True)]


def simultaneous(
    noise: Uncertain, weights: Float[np.ndarray, "contrasts shapes"], level: float = LEVEL,
    draws: int = 20_000, seed: int = SEED,
) -> list[Interval]:
    """Two-sided intervals that hold for all the sums together (max-t over draws).

    The critical value is the `level` quantile of the largest |t| over the contrasts, so it knows
    how they are correlated; with one contrast it is Student's.
    """
    estimate = weights @ noise.mean
    error, _ = contrast_error(noise, weights)
    drawn = draw_means(noise, draws, seed) @ weights.T - estimate  # [draws, contrasts]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error > 0, np.abs(drawn) / error, 0.0)
    critical = float(np.quantile(ratio.max(axis=1), level))
    return [Interval(float(e), float(e - critical * s), float(e + critical * s),
                     f"{noise.method}, simultaneous (max-t)")
            for e, s in zip(estimate, error, strict=True)]


def corrected_percentiles(
    estimate: float, drawn: Float[np.ndarray, " draws"], method: str, level: float = LEVEL
) -> Interval:
    """Bias-corrected percentile interval (Efron 1982) of a function of the means.

    A best-of-several is biased upwards, and its draws twice: the correction shifts the percentiles
    by the share of draws below the estimate. Bounds at an infinity are None: outside what was
    measured.
    """
    normal = statistics.NormalDist()
    below = float(np.mean(drawn < estimate) + np.mean(drawn <= estimate)) / 2
    shift = normal.inv_cdf(min(max(below, 1 / len(drawn)), 1 - 1 / len(drawn)))
    tails = [normal.cdf(2 * shift + normal.inv_cdf(p)) for p in ((1 - level) / 2, (1 + level) / 2)]
    low, high = (float(x) for x in np.quantile(drawn, tails, method="inverted_cdf"))
    return Interval(_finite(estimate), _finite(low), _finite(high),
                    f"{method}, bias-corrected percentile")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
