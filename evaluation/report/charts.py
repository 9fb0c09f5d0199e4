"""Plots in SVG that need no script: across in per cent, so that they fit any width with their text at one size."""

import math
from html import escape

HEIGHT = 220  # of a chart, in pixels
LANE = 15


def axis_of(values: list[float], share: bool = False) -> tuple[float, float]:
    """Where an axis begins and ends: at 0, or around the values where they lie far from it."""
    values = [value for value in values if value is not None and math.isfinite(value)] or [0, 1]
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    if low >= 0 and low < 0.5 * high or low == high == 0:
        start, end = 0.0, high + room
    else:
        start, end = low - 2 * room, high + 2 * room
        start = max(0.0, start) if low >= 0 else start
    return (max(0.0, start), min(1.0, end)) if share else (start, end)


def ticks_of(low: float, high: float, most: int = 4) -> tuple[list[float], int]:
    """Round numbers on an axis, and the decimals that they need."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9)) + (round(step / 10 ** math.floor(math.log10(step)), 6) == 2.5)
    return [i * step for i in range(first, last + 1)], places


def tick_text(value: float, places: int, unit: str) -> str:
    text = f"{value * 100:,.{max(0, places - 2)}f} %" if unit == "%" else f"{value:,.{places}f}"
    return text.replace("-", "−")


def strip(
    axis: tuple[float, float],
    marks: list[dict],
    label: str,
    band: dict | None = None,
    unit: str = "",
    scale: bool = True,
) -> str:
    """Values with their intervals on one line each: marks are {"value", "low", "high", "kind"}, kinds are the CSS's.

    A mark of the kind `ring` shares the line of the one before. `band`, with low and high, lies behind all. Without
    `scale` the axis has no numbers, since a neighbour's has them.
    """
    start, end = axis

    def across(value: float) -> str:
        return f"{100 * min(1.0, max(0.0, (value - start) / (end - start))):.2f}%"

    def width(low: float, high: float) -> str:
        return f"{max(0.3, float(across(high)[:-1]) - float(across(low)[:-1])):.2f}%"

    lanes = sum(mark["kind"] != "ring" for mark in marks)
    bottom = LANE * lanes + 6
    parts = []
    if band:
        x, w = across(band["low"]), width(band["low"], band["high"])
        parts.append(f'<rect class="band" x="{x}" y="0" width="{w}" height="{bottom}"/>')
        if band.get("value") is not None:
            x = across(band["value"])
            parts.append(f'<line class="middle" x1="{x}" x2="{x}" y1="0" y2="{bottom}"/>')
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{bottom}" y2="{bottom}"/>')
    places, digits = ticks_of(start, end)
    for place in places:
        x, far = across(place), (place - start) / (end - start)
        anchor = "start" if far < 0.02 else "end" if far > 0.98 else "middle"
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        shown = tick_text(place, digits, unit) if scale else ""
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="{anchor}">{shown}</text>')
    lane = -1
    for mark in marks:
        lane += mark["kind"] != "ring"
        y = LANE * lane + LANE / 2 + 3
        parts.append(_mark(mark, y, across))
    height = bottom + (20 if scale else 6)
    return f'<svg class="strip" role="img" aria-label="{escape(label)}" height="{height}">{"".join(parts)}</svg>'


def _mark(mark: dict, y: float, across) -> str:
    """A bar from low to high with a point on it; a plan is a tick."""
    x = across(mark["value"])
    if mark["kind"] == "plan":
        return f'<line class="plan" x1="{x}" x2="{x}" y1="{y - 6}" y2="{y + 6}"/>'
    bar = ""
    if mark.get("low") is not None and mark.get("high") is not None:
        bar = f'<line class="reach" x1="{across(mark["low"])}" x2="{across(mark["high"])}" y1="{y}" y2="{y}"/>'
    radius = 4 if mark["kind"] == "ring" else 4.5
    return f'<g class="mark {mark["kind"]}">{bar}<circle cx="{x}" cy="{y}" r="{radius}"/></g>'


def chart(series: list[dict], names: list[str], label: str, across: str, unit: str = "%") -> str:
    """Curves of {"name", "kind", "points": [(place among `names`, value, low, high)]}, each point with its interval."""
    ends = [value for one in series for point in one["points"] for value in point[1:]]
    start, end = axis_of(ends, unit == "%")

    def up(value: float) -> float:
        return round(HEIGHT - HEIGHT * (value - start) / (end - start), 1)

    def along(place: float) -> str:
        return f"{100 * (place + 0.5) / len(names):.2f}%"

    lines, texts = [], []
    places, digits = ticks_of(start, end, 5)
    for place in places:
        y = up(place)
        lines.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        texts.append(f'<text x="100%" y="{y + 4}" text-anchor="end">{tick_text(place, digits, unit)}</text>')
    for i, name in enumerate(names):
        middle = f'x="{along(i)}" text-anchor="middle"'
        lines.append(f'<text {middle} y="{HEIGHT + 18}">{escape(name)}</text>')
    lines.append(f'<text x="50%" y="{HEIGHT + 38}" text-anchor="middle">{escape(across)}</text>')
    for number, one in enumerate(series):
        points = sorted(one["points"])
        aside = (number - (len(series) - 1) / 2) * 0.07  # curves beside one another, that intervals be seen
        inner = []
        for (i, a, *_), (j, b, *_) in zip(points, points[1:]):
            inner.append(f'<line x1="{along(i + aside)}" x2="{along(j + aside)}" y1="{up(a)}" y2="{up(b)}"/>')
        for i, value, low, high in points:
            x = along(i + aside)
            inner.append(f'<line class="reach" x1="{x}" x2="{x}" y1="{up(low)}" y2="{up(high)}"/>')
            inner.append(f'<circle cx="{x}" cy="{up(value)}" r="4.5"/>')
        lines.append(f'<g class="curve {one["kind"]}">{"".join(inner)}</g>')
    full = HEIGHT + 46
    return (
        f'<div class="chart" role="img" aria-label="{escape(label)}">'
        f'<svg class="scale" height="{full}">{"".join(texts)}</svg>'
        f'<svg class="plot" height="{full}">{"".join(lines)}</svg></div>'
    )


def legend(entries: list[tuple[str, str]]) -> str:
    """[(kind, what it stands for)], drawn as in the plots."""

    def sample(kind: str) -> str:
        if kind == "band":
            return '<rect class="band" x="0" y="1" width="26" height="12"/>'
        if kind == "plan":
            return '<line class="plan" x1="13" x2="13" y1="1" y2="13"/>'
        bar = "" if kind == "ring" else '<line class="reach" x1="1" x2="25" y1="7" y2="7"/>'
        return f'<g class="mark {kind}">{bar}<circle cx="13" cy="7" r="4.5"/></g>'

    items = [
        f'<span><svg width="26" height="14" aria-hidden="true">{sample(kind)}</svg>{escape(text)}</span>'
        for kind, text in entries
    ]
    return f'<p class="legend">{"".join(items)}</p>'
