"""Write numbers for people: how many digits, which unit, and intervals in brackets."""

import re
from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd

NOTHING = "–"
"""Text in place of a missing number."""


def rounded(value: float, digits: int) -> float:
    """Round ``value`` to ``digits`` significant digits."""
    return float(f"{value:.{digits}g}")


def decimal_places(value: float, digits: int) -> int:
    """Return the number of decimals that show ``digits`` significant digits of ``value``."""
    return digits - 1 if value == 0 else max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))


def number(value: float, digits: int = 3) -> str:
    """Write ``value`` to ``digits`` significant digits."""
    if not np.isfinite(value):
        return NOTHING
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{decimal_places(value, digits)}f}"


def rate(value: float) -> str:
    """Write a learning rate as one would type it: ``0.003``, ``3e-5``."""
    return f"{value:g}".replace("e-0", "e-")


def decimals_off(bounds: Collection[float], values: Iterable[float], decimals: int) -> int:
    """Return the least number of decimals, from ``decimals`` on, that rounds none of the values onto a bound.

    A value that equals a bound may stand on it, and so may one that up to three further decimals do not tell from it.
    """
    off = [(value, bound) for value in values for bound in bounds if value != bound]
    enough = (more for more in range(decimals, decimals + 4) if all(round(value, more) != at for value, at in off))
    return next(enough, decimals)


def interval(mean: float, low: float, high: float, digits: int = 4, bounds: Collection[float] = ()) -> str:
    """Write ``0.512 [0.480, 0.544]``, or only the mean if there are no bounds (one seed).

    The number of decimals shows two significant digits of the interval's half-width, but at least two and at most
    ``digits`` significant digits of the mean. It is larger where an end would be rounded onto one of the ``bounds``,
    which decide the verdict.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(mean)
    if mean != 0 and not 1e-4 <= abs(mean) < 1e6:
        return f"{number(mean)} [{number(low)}, {number(high)}]"
    decimals = decimal_places(mean, digits)
    if high > low:
        decimals = min(decimals, max(decimal_places(mean, 2), decimal_places((high - low) / 2, 2)))
    decimals = decimals_off(bounds, (low, high), decimals)
    return f"{mean:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def relative(scale: str, mean: float, low: float = np.nan, high: float = np.nan) -> str:
    """Write a comparison with equal weighting: ``0.62× [0.58, 0.66]``, or ``+1.3 [+0.9, +1.7]`` for a difference.

    An end is never rounded to no difference, so that the interval agrees with its verdict.
    """
    if not np.isfinite(mean):
        return NOTHING
    if scale == "ratio":
        estimate, _, bounds = interval(mean, low, high, 3 if mean < 1 else 4, bounds=(1,)).partition(" ")
        return f"{estimate}× {bounds}".rstrip()
    signed = re.sub(r"(?<![\d.e-])(?=\d)", "+", interval(mean, low, high, bounds=(0,)))
    return signed.replace("-", "−")


def step_ratio(mean: float, low: float, high: float) -> str:
    """Write the time of a step relative to that of equal weighting: ``1.20× [1.18, 1.22]``."""
    if not np.isfinite(mean):
        return NOTHING
    bounds = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) and np.isfinite(high) else ""
    return f"{mean:.2f}×{bounds}"


def percent(mean: float, low: float, high: float) -> str:
    """Write fractions of one as percentages with their sign: ``+3.1 % [+0.4, +5.8]``; no end is rounded to zero."""
    if not np.isfinite(mean):
        return NOTHING
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"{100 * mean:+.1f} %".replace("-", "−")
    decimals = decimals_off((0,), (100 * low, 100 * high), 1)
    estimate, *ends = (f"{100 * value:+.{decimals}f}" for value in (mean, low, high))
    return f"{estimate} % [{', '.join(ends)}]".replace("-", "−")


def p_value(value: float, level: float = 0.05) -> str:
    """Write a p-value to two significant digits, or to as many more as tell it from ``level``: ``0.013``, ``0.0504``.

    One below 0.001 is written ``<0.001``.
    """
    if value < 0.001:
        return "<0.001"
    digits = 2
    while rounded(value, digits) == level != value:
        digits += 1
    return number(value, digits)


def quantity(value: float, unit: str) -> str:
    """Write a count with a metric prefix: ``41.2 MFLOP``, ``3.20 MB``."""
    if not np.isfinite(value):
        return NOTHING
    power = min(4, max(0, int(np.log10(max(abs(value), 1)) // 3)))
    return f"{number(value / 1000**power)} {('', 'k', 'M', 'G', 'T')[power]}{unit}"


def span(values: pd.Series) -> str:
    """Write the range of ``values`` to two decimals: ``1.02 to 1.41``, or one number if both ends are equal."""
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to {high}"


def join(parts: Iterable[str]) -> str:
    """Join texts to ``a, b and c``; three or more of which one has a comma itself, to ``a; b, c; and d``."""
    items = list(parts)
    if len(items) == 1:
        return items[0]
    if len(items) > 2 and any("," in item for item in items):
        return f"{'; '.join(items[:-1])}; and {items[-1]}"
    return f"{', '.join(items[:-1])} and {items[-1]}"


def counted(count: int, what: str) -> str:
    """Write a count with its noun: ``1 run``, ``2 runs``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def in_words(least: float, most: float) -> str:
    """Write a span of seconds in words: ``about 40 seconds``, ``about 12 to 15 minutes``."""
    unit, name = (60.0, "minute") if most >= 100 else (1.0, "second")
    low, high = max(1, round(least / unit)), max(1, round(most / unit))
    return f"about {counted(low, name)}" if low == high else f"about {low} to {counted(high, name)}"


def core_time(seconds: float) -> str:
    """Write computing time: ``24 core-seconds``, ``7.4 core-minutes``, ``2.3 core-hours``."""
    if seconds < 60:
        return f"{seconds:.0f} core-seconds"
    unit, name = (3600.0, "core-hours") if seconds >= 3600 else (60.0, "core-minutes")
    return f"{seconds / unit:.1f} {name}"
