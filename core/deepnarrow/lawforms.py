"""The core's forms of scaling laws. They import nothing, so that listing them costs nothing."""

from __future__ import annotations

from typing import Any

from deepnarrow.plugins import LawForm


def _power(params: Any, x: Any) -> Any:
    coefficient, exponent = params
    return coefficient * x ** exponent


def _power_floor(params: Any, x: Any) -> Any:
    coefficient, exponent, floor = params
    return floor + coefficient * x ** exponent


def _chinchilla(params: Any, x: Any) -> Any:
    a, b, e, alpha, beta = params
    n, d = x
    return e + a * n ** -alpha + b * d ** -beta


def _shape(params: Any, x: Any) -> Any:
    import numpy as np

    coefficient, exponent, slope, bend = params
    cost, depth, width = x
    aspect = np.log(depth / width)
    return coefficient * cost ** exponent * np.exp(slope * aspect + bend * aspect ** 2)


POWER = LawForm(
    "power", ("coefficient", "exponent"), _power,
    "y = coefficient * x^exponent, a line in log-log axes; its slopes are the alphas of Tay et al. "
    "2022, Scaling Laws vs Model Architectures")
POWER_FLOOR = LawForm(
    "power_floor", ("coefficient", "exponent", "floor"), _power_floor,
    "y = floor + coefficient * x^exponent; Henighan et al. 2020")
CHINCHILLA = LawForm(
    "chinchilla", ("A", "B", "E", "alpha", "beta"), _chinchilla,
    "L = E + A / N^alpha + B / D^beta; Hoffmann et al. 2022, approach 3", ("n", "d"))
SHAPE = LawForm(
    "shape", ("coefficient", "exponent", "aspect_slope", "aspect_bend"), _shape,
    "ln y = ln coefficient + exponent ln cost + aspect_slope a + aspect_bend a^2, a = ln(depth / "
    "width): at equal cost, quality against how deep and narrow; quadratic around an optimum, an "
    "assumption", ("x", "depth", "width"))
FORMS = (POWER, POWER_FLOOR, CHINCHILLA, SHAPE)
