"""The geometry of charts: axes, ticks, marks. templates/charts.html writes them as SVG that needs no script.

Horizontal places are percentages: a chart fits any width, and its text keeps one size.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from evaluation.intervals import Estimate

EDGE = 0.02  # ticks that are nearer to an end of the axis have their text inside it


class Tick(NamedTuple):
    place: str
    anchor: str
    text: str
    value: float


@dataclass(frozen=True)
class Axis:
    start: float
    end: float
    unit: str = ""

    def fraction(self, value: float) -> float:
        return (value - self.start) / (self.end - self.start)

    def percent(self, value: float) -> float:
        return round(100 * min(1.0, max(0.0, self.fraction(value))), 2)

    def width(self, low: float, high: float) -> float:
        return round(max(0.3, self.percent(high) - self.percent(low)), 2)

    def ticks(self, most: int = 4) -> list[Tick]:
        """Round numbers on the axis, with the decimals that they need."""
        rough = (self.end - self.start) / most
        power = 10 ** math.floor(math.log10(rough))
        factor = next(one for one in (1, 2, 2.5, 5, 10) if one * power >= rough * 0.999)
        step = factor * power
        first, last = math.ceil(self.start / step - 1e-9), math.floor(self.end / step + 1e-9)
        places = max(0, -math.floor(math.log10(step) + 1e-9)) + (factor == 2.5)
        return [self._tick(i * step, places) for i in range(first, last + 1)]

    def _tick(self, value: float, places: int) -> Tick:
        far = self.fraction(value)
        anchor = "start" if far < EDGE else "end" if far > 1 - EDGE else "middle"
        share = f"{value * 100:,.{max(0, places - 2)}f} %"
        text = share if self.unit == "%" else f"{value:,.{places}f}"
        return Tick(f"{self.percent(value)}%", anchor, text.replace("-", "−"), value)


def fit_axis(estimates: Iterable[Estimate], unit: str = "", share: bool = False) -> Axis:
    """An axis for these values and intervals, from 0 on or, if they lie far from 0, around them; `share`: in 0 … 1."""
    known = [end for one in estimates for end in one if end is not None and math.isfinite(end)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    if low >= 0 and low < 0.5 * high or low == high == 0:
        start, end = 0.0, high + room
    else:
        start, end = low - 2 * room, high + 2 * room
        start = max(0.0, start) if low >= 0 else start
    return Axis(max(0.0, start), min(1.0, end), unit) if share else Axis(start, end, unit)


@dataclass(frozen=True)
class Mark:
    """A point with its interval. `kind` is a class of page.css; `ring` is a second value on the same line."""

    kind: str
    estimate: Estimate
    ring: float | None = None


@dataclass(frozen=True)
class Strip:
    """Marks on one axis, a line each, in front of a band."""

    axis: Axis
    marks: list[Mark]
    label: str
    band: Estimate | None = None


@dataclass(frozen=True)
class Curve:
    """Points are (place among the names along the axis, estimate)."""

    kind: str
    name: str
    points: list[tuple[int, Estimate]]


@dataclass(frozen=True)
class CurveChart:
    title: str
    along: str
    names: list[str]
    curves: list[Curve]

    @property
    def axis(self) -> Axis:
        return fit_axis((one for curve in self.curves for _, one in curve.points), "%", share=True)

    @property
    def legend(self) -> list[tuple[str, str]]:
        return [(curve.kind, curve.name) for curve in self.curves]

    @property
    def label(self) -> str:
        points = []
        for curve in self.curves:
            points += [f"{curve.name}, {self.names[place]}: {one.value:.1%}" for place, one in curve.points]
        return f"Accuracy by {self.along}: {'; '.join(points)}"
