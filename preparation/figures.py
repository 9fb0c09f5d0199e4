"""The figures of a report: bars of counts, a sample of the images, pairs of look-alikes."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from preparation.look_alikes import LookAlikes
from utils.catalogue import Attributes, Product
from utils.images import make_grid
from utils.wording import name_article, word_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, BAR, LABEL = 5.6, 0.27, 1.35  # inches: a column of panels, a bar, the names on its left
MOST_BARS, SAMPLES = 14, 24  # in a panel; images in the sample


def bar_panels(path: Path, panels: dict[str, dict[str, int]]) -> None:
    """One panel of horizontal bars per title, each with its count and share; the rest after MOST_BARS is summed up."""
    from matplotlib.figure import Figure  # no pyplot: no display and no global state

    panels = {title: _shorten(counts) for title, counts in panels.items() if counts}
    if not panels:
        return
    filled = [0.0] * min(2, len(panels))  # each panel goes into the column that is shorter so far
    places = []
    for counts in panels.values():
        column = filled.index(min(filled))
        places.append((column, filled[column] + 0.4))
        filled[column] += 0.55 + BAR * len(counts)
    width, height = WIDTH * len(filled), max(filled)
    figure = Figure(figsize=(width, height))
    for (column, top), (title, counts) in zip(places, panels.items()):
        bars = BAR * len(counts)
        left, bottom = (column * WIDTH + LABEL) / width, 1 - (top + bars) / height
        axis = figure.add_axes((left, bottom, (WIDTH - LABEL - 0.1) / width, bars / height))
        _draw_bars(axis, title, counts)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes whatever matplotlib's version says


def _draw_bars(axis: "Axes", title: str, counts: dict[str, int]) -> None:
    total = sum(counts.values())
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in counts]
    bars = axis.barh(range(len(counts)), list(counts.values()), tick_label=names, color="#4a6fa5", height=0.72)
    labels = [f" {count:,}  {count / total:.1%}" for count in counts.values()]
    axis.bar_label(bars, labels, fontsize=8, color="#333333")
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlim(0, max(counts.values()) * 1.28)
    axis.set_ylim(len(counts) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.xaxis.set_visible(False)
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _shorten(counts: dict[str, int]) -> dict[str, int]:
    names = list(counts)
    if len(names) <= MOST_BARS:
        return counts
    shown, others = names[: MOST_BARS - 1], names[MOST_BARS - 1 :]
    return {name: counts[name] for name in shown} | {f"{len(others)} others": sum(counts[name] for name in others)}


def sample_grid(path: Path, products: list[Product], tile: Callable[[str], Image.Image]) -> None:
    """Some of the images, the same ones every time, each with its attributes; without a product there is no file."""
    some = sorted(products, key=lambda one: hashlib.sha256(one.id.encode()).digest())[:SAMPLES]
    if some:
        labels = [_describe(one.attributes) or one.id for one in some]
        make_grid([tile(one.id) for one in some], min(6, len(some)), labels).save(path)


def _describe(attributes: Attributes) -> str:
    article = attributes.get("article")
    words = [word_value(key, attributes.get(key)) for key in ("gender", "colour")]
    return " ".join(filter(None, [*words, article and name_article(article)[0]]))


def pairs_grid(path: Path, found: LookAlikes, tile: Callable[[str], Image.Image]) -> None:
    """The pairs nearest to the threshold, on either side of it, to choose it by; without a pair there is no file."""
    pairs = found.pairs[-18:] + found.beyond[:18]
    if pairs:
        verdicts = ["same photo"] * len(found.pairs[-18:]) + ["different photos"] * len(found.beyond[:18])
        labels = [
            f"{pair.first}, {pair.second}: {pair.bits} bits, colour {pair.colour:.1f}: {verdict}"
            for pair, verdict in zip(pairs, verdicts)
        ]
        tiles = [make_grid([tile(pair.first), tile(pair.second)], 2, gap=0) for pair in pairs]
        make_grid(tiles, min(3, len(pairs)), labels, gap=12, letters=28).save(path)  # each is two images wide
