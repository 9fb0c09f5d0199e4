"""Tables of values on one axis: the means by attribute, the shares of attributes, the answers of people."""

from dataclasses import dataclass
from typing import Any

from evaluation.intervals import Estimate
from evaluation.report.charts import Axis, Mark, Strip, fit_axis
from evaluation.report.formatting import format_interval, read_estimate
from utils.cli import counted

SHARES_BY = {
    "clip": "as an encoder recognises them in the images",
    "labels": "as requested in the prompts, not as seen in the images",
}


@dataclass(frozen=True)
class Row:
    name: str
    below: str  # in small letters
    strip: Strip


@dataclass(frozen=True)
class Table:
    title: str
    rows: list[Row]
    note: str = ""


def make_row(name: str, marks: list[Mark], axis: Axis, below: str = "") -> Row:
    label = ", ".join(" ".join((mark.kind, *format_interval(mark.estimate, axis.unit))) for mark in marks)
    return Row(name, below, Strip(axis, marks, f"{name}: {label}"))


def split_tables(metrics: dict[str, Any], identity: bool) -> list[Table]:
    """The means of figures by each value of an attribute: of the identity figures, or of the others."""
    known = {}
    for one in metrics["figures"]:
        known[one["id"].partition("/")[0]] = known[one["id"].replace("/", "_")] = one
    splits = metrics.get("splits", {})
    others = [key for key in splits if not key.startswith("identity_")]
    tables = []
    for key in ("identity_verified", "identity_centroid") if identity else others:
        figure = known.get(key, {"name": key.replace("_", " "), "unit": "%" if "accuracy" in key else ""})
        for column, values in splits.get(key, {}).items():
            title = f"{figure['name']} by {'prompt' if column == 'text' else column}"
            tables += [split_table(title, values, figure.get("unit", ""))] if values else []
    return tables


def split_table(title: str, values: list[dict[str, Any]], unit: str) -> Table:
    axis = fit_axis([read_estimate(one, "mean") for one in values], unit, share=unit == "%")
    rows = []
    for one in values:
        below = counted(one["n"], "image") if one.get("n") is not None else ""
        rows.append(make_row(str(one["value"]), [Mark("generated", read_estimate(one, "mean"))], axis, below))
    return Table(title[:1].upper() + title[1:], rows)


def share_tables(shares: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """How often each value of an attribute occurs: generated, real, and as planned."""
    tables = []
    for column, values in shares.items():
        marks = {str(one["value"]): share_marks(one) for one in values}
        estimates = [mark.estimate for those in marks.values() for mark in those]
        axis = fit_axis([Estimate(0.0), *estimates], "%", share=True)
        by = SHARES_BY.get(values[0].get("by")) if values else None
        note = f"Generated: {by}; real: by their labels." if by else ""
        rows = [make_row(name, those, axis) for name, those in marks.items() if those]
        tables += [Table(column, rows, note)] if rows else []
    return tables


def share_marks(one: dict[str, Any]) -> list[Mark]:
    marks = [Mark(kind, read_estimate(one[kind], "share")) for kind in ("generated", "real") if one.get(kind)]
    return marks + ([Mark("plan", Estimate(one["plan"]))] if one.get("plan") is not None else [])


def people_rows(human: dict[str, Any]) -> list[Row]:
    """The ratings of real and generated images, and last how often people guess right which is which."""
    rows = []
    for key, title, axis in (
        ("mean", "Mean rating, 1 to 5", Axis(1, 5)),
        ("good", "Rated good (4 or 5)", Axis(0, 1, "%")),
    ):
        marks = [Mark(kind, read_estimate(human[key][kind])) for kind in ("generated", "real")]
        rows.append(make_row(title, marks, axis))
    guesses = Mark("generated", read_estimate(human["told"]))
    return [*rows, make_row("Right guesses", [guesses], Axis(0, 1, "%"))]
