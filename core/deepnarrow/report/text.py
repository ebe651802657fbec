"""How names and numbers look in a report. Names are data: these are the only ways to show one."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepnarrow.bootstrap import Interval

_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)", re.DOTALL)
# Control, format (zero width, bidirectional overrides) and surrogate characters; line separators.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_NOT_XML = "\ufffe\uffff"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NONE = "–"


def plain(text: object, limit: int = 200) -> str:
    """Shows `text` on one line of visible characters; the middle of a longer one gives way to "…".

    >>> plain("\\x1b[31mred\\x1b[0m\\nnext")
    'red next'
    >>> plain("base-nl32-ff4096-kv64", limit=12)
    'base-nl3…v64'
    """
    # The limit comes first too, so that a text of megabytes costs nothing.
    raw = _ANSI.sub("", _middle(str(text), 20 * limit))
    spaced = "".join(" " if c.isspace() else c for c in raw)
    shown = "".join(c for c in spaced
                    if unicodedata.category(c) not in _INVISIBLE and c not in _NOT_XML)
    return _middle(re.sub(" +", " ", shown), limit)


def _middle(text: str, limit: int) -> str:
    tail = (limit - 1) // 3
    return text if len(text) <= limit else f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def escape(text: object, limit: int = 200) -> str:
    """Shows `text` in HTML, as content or as a quoted attribute: it stays text there.

    >>> escape("</script><b title='x'>")
    '&lt;/script&gt;&lt;b title=&#x27;x&#x27;&gt;'
    """
    return html.escape(plain(text, limit), quote=True)


def count(value: float | None, giga: str = "G") -> str:
    """Shows a count to three digits with a decimal prefix; `giga` is "B" for parameters.

    >>> count(1_234_567), count(999), count(None)
    ('1.23M', '999', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    for size, prefix in _PREFIXES:
        # 999,999 is 1M, not 1000k.
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{giga if prefix == 'G' else prefix}"
    return f"{value:.3g}"


def plural(number: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "row"), plural(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def seconds(value: float | None) -> str:
    """Shows a duration to three digits.

    >>> seconds(0.01234), seconds(75)
    ('12.3 ms', '75 s')
    """
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value * 1e3:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"


def quality(mean: float | None, sd: float | None = None) -> str:
    """Shows a quality to four decimals at most, with its standard deviation where known.

    >>> quality(0.91234, 0.00345), quality(12.3456), quality(None)
    ('0.9123 ± 0.0034', '12.35', '–')
    """
    if mean is None or not math.isfinite(mean):
        return NONE
    digits = 4 if abs(mean) < 10 else 2 if abs(mean) < 1000 else 0
    return f"{mean:,.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def cost(name: str, value: float | None) -> str:
    """Shows a value of the cost column `name` with its unit.

    >>> cost("step_time_s", 0.25), cost("params_total", 2.5e9), cost("peak_bytes", 3e9)
    ('250 ms', '2.5B', '3 GB')
    """
    if name.startswith("step_time_s"):
        return seconds(value)
    if name == "peak_bytes":
        shown = count(value)
        number = shown.rstrip("kMGTP")
        return shown if shown == NONE else f"{number} {shown[len(number) :]}B"
    return count(value, "B" if name.startswith("params") else "G")


def ratio(value: float) -> str:
    """A share of a cost in percent; digits where it rounds to 100% and is less.

    >>> ratio(0.5), ratio(0.9982), ratio(0.99999)
    ('50%', '99.8%', '<100%')
    """
    shown = f"{value:.0%}"
    if shown == "100%" and value < 1:
        shown = f"{value:.1%}" if value < 0.9995 else "<100%"
    return shown


def interval(one: Interval | None, form: str = "{:+.4g}") -> str:
    """An estimate with its bounds, "?" for a bound outside what was measured.

    >>> from deepnarrow.bootstrap import Interval
    >>> interval(Interval(0.5, 0.25, None, "t")), interval(None)
    ('+0.5 [+0.25, ?]', '–')
    """
    if one is None or (one.estimate is None and one.low is None and one.high is None):
        return NONE
    middle, low, high = ("?" if v is None else form.format(v)
                         for v in (one.estimate, one.low, one.high))
    return middle if low == high == "?" else f"{middle} [{low}, {high}]"


def share(one: Interval | None) -> str:
    """An interval of shares, in percent."""
    return interval(one, "{:.0%}")


def cost_title(name: str) -> str:
    """Names a cost in words; a column of somebody's table keeps its name."""
    known, at, chip = name.partition("@")
    if at and known in COST_TITLES:
        return f"{COST_TITLES[known]} on {plain(chip, 20)}, predicted"
    return COST_TITLES.get(name) or plain(name, 60)


def quality_title(name: str) -> str:
    """Names a quality (see `summary.quality_name`) in words; a name of another form stays.

    >>> quality_title("upstream/loss")
    'Upstream loss'
    >>> quality_title("digits/few_shot@5"), quality_title("squad/fine_tune/f1")
    ('digits, 5-shot probe accuracy', 'squad, fine-tuned f1')
    """
    first, slash, rest = name.partition("/")
    if not slash:
        return plain(name)
    if first == "upstream":
        return f"Upstream {plain(rest)}"
    return f"{plain(first)}, {stage_title(rest)}"


def stage_title(rest: str) -> str:
    """Names the part of a quality after its task: `few_shot@5`, `fine_tune`, `fine_tune/f1`."""
    stage, _, metric = rest.partition("/")
    kind, _, shots = stage.partition("@")
    probe = f"{plain(shots)}-shot probe" if shots else "probe"
    words = {"few_shot": probe, "fine_tune": "fine-tuned"}.get(kind, plain(kind))
    return f"{words} {METRIC_TITLES.get(metric) or plain(metric) or 'accuracy'}"


METRIC_TITLES = {"accuracy_l2_auto": "accuracy, L2 chosen"}
COST_TITLES = {
    "params_total": "Parameters",
    "params_non_embedding": "Non-embedding parameters",
    "flops_forward_per_example": "Forward FLOPs per example",
    "flops_train_total": "Training FLOPs",
    "tokens_seen": "Tokens seen",
    "step_time_s": "Step time",
    "peak_bytes": "Peak memory",
    "chip_hours": "Chip-hours of pre-training",
}
