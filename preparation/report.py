"""What a prepared dataset says about itself: counts and shares, and a report for people."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from preparation import figures, portraits
from utils.catalogue import fault_line
from utils.cli import counted
from utils.files import write_json
from utils.images import fit_square

UNREADABLE = ("row can't be read", "no id", "no file_name")  # the reasons that are the table's fault


def count_values(products: list[dict], columns: list[str]) -> dict[str, dict[str, int]]:
    """{column: {value: how many}}, the most frequent first, years in order; "(none)" is a missing one.

    A column that is empty is left out.
    """
    counts = {}
    for column in columns:
        found = Counter(one["attributes"].get(column) or "(none)" for one in products)
        if set(found) - {"(none)"}:
            in_order = column == "year"
            counts[column] = dict(sorted(found.items(), key=lambda item: (0 if in_order else -item[1], item[0])))
    return counts


def with_shares(counts: dict[str, int]) -> dict[str, dict]:
    total = sum(counts.values())
    return {name: {"count": count, "share": round(count / total, 4)} for name, count in counts.items()}


def catalogue_facts(found) -> dict:
    """What there is to say of a Catalogue's table."""
    unreadable = [one["row"] for one in found.rejected if one["reason"] in UNREADABLE]
    return {
        "kind": found.kind,
        "rows": found.rows,
        "columns": found.columns,
        "recovered_rows": found.recovered,
        "unreadable_rows": unreadable,
        "notes": found.notes,
    }


def analyse(products: list[dict], rejected: list[dict], columns: list[str], side: int) -> dict:
    """Counts, shares and sizes of the usable products, and what was left out."""
    sizes = Counter("{}x{}".format(*one["size"]) for one in products)
    shares = count_values(products, columns)
    return {
        "selection": {"rows": len(products) + len(rejected), "usable": len(products)},
        "problems": dict(Counter(one["reason"] for one in rejected).most_common()),
        "rejected": [{key: one[key] for key in ("id", "row", "reason", "detail")} for one in rejected],
        "shares": {column: with_shares(counts) for column, counts in shares.items()},
        "sizes": {
            "counts": dict(sizes.most_common()),
            "side": side,
            "enlarged": sum(max(one["size"]) < side for one in products),
        },
    }


def _some(values: list, most: int = 12) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def _table(counts: dict[str, int], most: int = 15) -> list[str]:
    total = sum(counts.values())
    lines = [f"  {name:24} {count:7,}  {count / total:6.1%}" for name, count in list(counts.items())[:most]]
    return lines + ([f"  … and {len(counts) - most} more"] if len(counts) > most else [])


def _count_lines(numbers: list) -> str:
    return f"{len(numbers)} (line{'s' * (len(numbers) > 1)} {_some(numbers)})" if numbers else "0"


def catalogue_lines(facts: dict) -> list[str]:
    """The table alone: what was read, recovered, not recovered."""
    lines = [
        f"read: {facts['kind']}, {counted(facts['rows'], 'row')}, columns: {', '.join(facts['columns']) or 'none'}"
    ]
    if facts["recovered_rows"]:
        lines.append(f"torn rows recovered: {_count_lines(facts['recovered_rows'])}")
    lines.append(f"rows not recovered: {_count_lines(facts['unreadable_rows'])}")
    return lines + [f"note: {note}" for note in facts["notes"]]


def report_text(analysis: dict) -> str:
    """report.txt, from what analysis.json holds."""
    chosen = "photos" if "photos" in analysis else " + ".join(analysis["options"]["category"] or ["all categories"])
    lines = [*catalogue_lines(analysis["catalogue"]), ""]
    if analysis["categories"]:
        lines += ["categories", *_table(analysis["categories"]), ""]
    rows, usable = counted(analysis["selection"]["rows"], "row"), analysis["selection"]["usable"]
    lines += [f"{chosen}: {rows}, {counted(usable, 'usable image')}"]
    problems = analysis["problems"]
    lines += ["", f"left out: {sum(problems.values())}", *(f"  {reason:40} {n:6,}" for reason, n in problems.items())]
    for entry in analysis["rejected"][:40]:
        lines.append(f"    {fault_line(entry)}")
    if len(analysis["rejected"]) > 40:
        lines.append(f"    … and {len(analysis['rejected']) - 40} more, in analysis.json")
    for column, counts in analysis["shares"].items():
        lines += ["", column, *_table({name: value["count"] for name, value in counts.items()})]
    sizes = analysis["sizes"]
    lines += ["", "image sizes (width x height, upright)", *_table(sizes["counts"], 8)]
    if sizes["enlarged"]:
        lines.append(f"  smaller than {sizes['side']} pixels on both sides, so enlarged: {sizes['enlarged']:,}")
    lines += portraits.photo_lines(analysis["photos"]) if "photos" in analysis else []
    found = analysis["duplicates"]
    pairs, groups = counted(len(found["pairs"]), "pair"), counted(len(found["groups"]), "group")
    largest = f", the largest of {max(map(len, found['groups']))}" if found["groups"] else ""
    within = f"within {found['bits']} of 256 bits and {found['colour']:g} levels of colour"
    lines += ["", f"look-alikes: {pairs} {within}, in {groups}{largest}"]
    lines += [f"  {a} and {b}: {bits} bits, colour {colour:g}" for a, b, bits, colour in found["pairs"][:20]]
    if len(found["pairs"]) > 20:
        lines.append(f"  … and {len(found['pairs']) - 20} more, in analysis.json")
    if found["pairs"] or found["beyond"]:
        lines.append("  see figures/pairs.png: is each pair one photo? Then judge --duplicate_threshold by it")
    return "\n".join(lines) + "\n"


def write_analysis(folder: Path, analysis: dict, products: list[dict], load: Callable[[dict], Image.Image]) -> None:
    """report.txt, analysis.json and figures/ of the products, whose images `load` gives."""
    (folder / "report.txt").write_text(report_text(analysis), encoding="utf-8")
    write_json(folder / "analysis.json", analysis)
    (folder / "figures").mkdir()
    counts = {column: {name: v["count"] for name, v in of.items()} for column, of in analysis["shares"].items()}
    figures.bar_panels(folder / "figures/shares.png", counts | {"image size": analysis["sizes"]["counts"]})
    by_id = {one["id"]: one for one in products}

    def tile(product_id: str) -> Image.Image:
        return fit_square(load(by_id[product_id]), 160, "white")

    attributes = {key: one["attributes"] for key, one in by_id.items()}
    figures.sample_grid(folder / "figures/samples.png", attributes, tile)
    found = analysis["duplicates"]
    figures.pairs_grid(folder / "figures/pairs.png", found["pairs"], found["beyond"], tile)
