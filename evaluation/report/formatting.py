"""Figures as text: a value and its 95 % interval, with the digits that the interval justifies."""

import math
from typing import Any

from evaluation.intervals import Estimate


def read_estimate(found: dict[str, Any], key: str = "value") -> Estimate:
    """The estimate in a part of metrics.json, whose value has the name `key`."""
    return Estimate(found[key], found.get("low"), found.get("high"))


def count_decimals(low: float, high: float) -> int:
    """Decimals that show two digits of the half width of an interval."""
    half = abs(high - low) / 2
    return min(5, max(0, 1 - math.floor(math.log10(half)))) if half > 0 and math.isfinite(half) else 3


def format_number(value: float, places: int, unit: str = "") -> str:
    """A figure as text; a share (unit %) is stored as 0 … 1. What rounds to 0 has no sign."""
    if unit == "%":
        value, places = value * 100, max(0, min(places - 2, 1))
    return f"{round(value, places) + 0.0:,.{places}f} {unit}".replace("-", "−").rstrip()


def format_interval(found: Estimate, unit: str = "") -> tuple[str, str]:
    """(value, its interval) as text."""
    value, low, high = found
    if low is None or high is None:
        return format_number(value, 3, unit), ""
    places = count_decimals(low, high)
    start, end = (format_number(one, places, unit).removesuffix(" %") for one in (low, high))
    return format_number(value, places, unit), f"{start} to {end}"


def format_difference(found: Estimate, unit: str = "") -> tuple[str, str]:
    """The same for a difference: with its sign, and in points for shares."""
    scale = 100 if unit == "%" else 1
    value, around = format_interval(Estimate(*(one * scale for one in found)))
    return ("+" if found.value > 0 else "") + value + (" points" if unit == "%" else ""), around
