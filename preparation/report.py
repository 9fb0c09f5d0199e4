"""The report of a prepared dataset: counts and shares, and a text for people."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from preparation import figures
from preparation.existing import Request
from preparation.labels import Contradiction
from preparation.look_alikes import LookAlikes
from preparation.portraits import photo_lines
from preparation.selection import UNREADABLE
from utils.catalogue import Catalogue, Product, Rejected
from utils.cli import counted, name_some
from utils.console import format_table
from utils.files import write_json
from utils.images import fit_square

Counts = dict[str, int]
Shares = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Sizes:
    counts: Counts  # of images on disk, upright: {width x height: how many}
    side: int
    enlarged: int  # how many are smaller than `side`


@dataclass(frozen=True)
class Analysis:
    request: Request
    catalogue: Catalogue
    categories: Counts
    usable: int  # images
    rejected: list[Rejected]
    values: dict[str, Counts]  # of the usable products, by column; without any image, of the table's rows
    sizes: Sizes
    look_alikes: LookAlikes
    photos: list[dict[str, Any]] | None = None  # of portraits, as the next
    shapes: list[tuple[int, int]] | None = None
    contradictions: Sequence[Contradiction] = ()

    @property
    def rows(self) -> int:
        return self.usable + len(self.rejected)

    @property
    def problems(self) -> Counts:
        return dict(Counter(one.reason for one in self.rejected).most_common())

    def list_rejected(self) -> list[dict[str, Any]]:
        return [{"id": one.id, "row": one.row, "reason": one.reason, "detail": one.detail} for one in self.rejected]


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The content of analysis.json."""
    return {
        **asdict(analysis.request),
        "catalogue": describe_catalogue(analysis.catalogue),
        "categories": analysis.categories,
        "selection": {"rows": analysis.rows, "usable": analysis.usable},
        "problems": analysis.problems,
        "rejected": analysis.list_rejected(),
        "shares": {column: with_shares(counts) for column, counts in analysis.values.items()},
        "contradicted_labels": [one._asdict() for one in analysis.contradictions],
        "sizes": asdict(analysis.sizes),
        **({"photos": analysis.photos, "shapes": analysis.shapes} if analysis.photos is not None else {}),
        "duplicates": asdict(analysis.look_alikes),
    }


def count_values(products: Sequence[Product | Rejected], columns: Sequence[str]) -> dict[str, Counts]:
    """{column: {value: how many}}, the most frequent first, years in order; "(none)" is a missing one.

    A column that is empty is left out.
    """
    counts = {}
    for column in columns:
        found = Counter(one.attributes.get(column) or "(none)" for one in products)
        if set(found) - {"(none)"}:
            in_order = column == "year"
            counts[column] = dict(sorted(found.items(), key=lambda item: (0 if in_order else -item[1], item[0])))
    return counts


def count_sizes(sizes: list[tuple[int, int]], side: int) -> Sizes:
    counts = Counter(f"{width}x{height}" for width, height in sizes)
    return Sizes(dict(counts.most_common()), side, sum(max(size) < side for size in sizes))


def with_shares(counts: Counts) -> Shares:
    total = sum(counts.values())
    return {name: {"count": count, "share": round(count / total, 4)} for name, count in counts.items()}


def unreadable_rows(found: Catalogue) -> list[int | str]:
    return [one.row for one in found.rejected if one.reason in UNREADABLE]


def describe_catalogue(found: Catalogue) -> dict[str, Any]:
    """What was read of the table, for metadata.json and analysis.json."""
    return {
        "kind": found.kind,
        "rows": found.rows,
        "columns": found.columns,
        "recovered_rows": found.recovered,
        "unreadable_rows": unreadable_rows(found),
        "notes": found.notes,
    }


def _table(counts: Counts, most: int = 15) -> list[str]:
    total = sum(counts.values())
    rows = [(f"  {name}", f"{count:,}", f"{count / total:.1%}") for name, count in list(counts.items())[:most]]
    more = [f"  … and {len(counts) - most} more"] if len(counts) > most else []
    return [*format_table(rows, label=26).splitlines(), *more]


def _list_lines(numbers: list[int | str]) -> str:
    return f"{len(numbers)} (line{'s' * (len(numbers) > 1)} {name_some([*map(str, numbers)], 12)})"


def catalogue_lines(found: Catalogue) -> list[str]:
    """The table alone: what was read, recovered, not recovered."""
    lines = [f"read: {found.kind}, {counted(found.rows, 'row')}, columns: {', '.join(found.columns) or 'none'}"]
    if found.recovered:
        lines.append(f"torn rows recovered: {_list_lines(found.recovered)}")
    if unreadable := unreadable_rows(found):
        lines.append(f"rows not recovered: {_list_lines(unreadable)}")
    return lines + [f"note: {note}" for note in found.notes]


def report_text(analysis: Analysis) -> str:
    """report.txt: the table, and what was found in it and in its images."""
    return "\n".join([*catalogue_lines(analysis.catalogue), "", findings_text(analysis)])


def findings_text(analysis: Analysis) -> str:
    """The report without the lines on the table, which are printed before any image is read."""
    wanted = analysis.request.options["category"] or ["all categories"]
    chosen = "photos" if analysis.photos is not None else " + ".join(wanted)
    lines: list[str] = []
    if analysis.categories:
        lines += ["categories", *_table(analysis.categories), ""]
    lines += [f"{chosen}: {counted(analysis.rows, 'row')}, {counted(analysis.usable, 'usable image')}"]
    if not analysis.usable:
        lines += ["no usable image was found: the shares below are those of the table's rows"]
    lines += ["", *_rejected_lines(analysis)]
    for column, counts in analysis.values.items():
        lines += ["", column, *_table(counts)]
    lines += _contradiction_lines(analysis.contradictions)
    sizes = analysis.sizes
    if sizes.counts:
        lines += ["", "image sizes (width x height, upright)", *_table(sizes.counts, 8)]
    if sizes.enlarged:
        lines.append(f"  smaller than {sizes.side} pixels on both sides, so enlarged: {sizes.enlarged:,}")
    if analysis.photos is not None:
        lines += photo_lines(analysis.photos)
    return "\n".join([*lines, "", *_look_alike_lines(analysis.look_alikes)]) + "\n"


def _rejected_lines(analysis: Analysis) -> list[str]:
    rejected = analysis.rejected
    reasons = format_table([(f"  {reason}", f"{n:,}") for reason, n in analysis.problems.items()], label=26)
    lines = [f"left out: {len(rejected)}", *reasons.splitlines()]
    lines += [f"    {one}" for one in rejected[:40]]
    return lines + ([f"    … and {len(rejected) - 40} more, in analysis.json"] if len(rejected) > 40 else [])


def _contradiction_lines(found: Sequence[Contradiction], most: int = 20) -> list[str]:
    if not found:
        return []
    lines = ["", f"labels of colours that the image seems to contradict, to look at: {len(found)}"]
    lines += [f"  {one}" for one in found[:most]]
    return lines + ([f"  … and {len(found) - most} more, in analysis.json"] if len(found) > most else [])


def _look_alike_lines(found: LookAlikes) -> list[str]:
    pairs, groups = counted(len(found.pairs), "pair"), counted(len(found.groups), "group")
    largest = f", the largest of {max(map(len, found.groups))}" if found.groups else ""
    within = f"within {found.bits} of 256 bits and {found.colour:g} levels of colour"
    lines = [f"look-alikes: {pairs} {within}, in {groups}{largest}"]
    lines += [
        f"  {pair.first} and {pair.second}: {pair.bits} bits, colour {pair.colour:g}" for pair in found.pairs[:20]
    ]
    if len(found.pairs) > 20:
        lines.append(f"  … and {len(found.pairs) - 20} more, in analysis.json")
    if found.pairs or found.beyond:
        lines.append("  see figures/pairs.png: is each pair one photo? Choose --duplicate_threshold by it")
    return lines


def write_analysis(
    folder: Path, analysis: Analysis, products: list[Product], load: Callable[[Product], Image.Image]
) -> None:
    """report.txt, analysis.json and figures/ of the products, whose images `load` reads."""
    (folder / "report.txt").write_text(report_text(analysis), encoding="utf-8")
    write_json(folder / "analysis.json", to_json(analysis))
    (folder / "figures").mkdir()
    sizes = {"image size": analysis.sizes.counts}
    figures.bar_panels(folder / "figures/shares.png", analysis.values | sizes)
    by_id = {one.id: one for one in products}

    def tile(product_id: str) -> Image.Image:
        return fit_square(load(by_id[product_id]), 160, "white")

    figures.sample_grid(folder / "figures/samples.png", products, tile)
    figures.pairs_grid(folder / "figures/pairs.png", analysis.look_alikes, tile)
