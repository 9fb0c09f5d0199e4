"""Tables of values on one axis: the means by attribute, the shares of attributes, the answers of people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.charts import Axis, Mark, Strip, fit_axis
from evaluation.report.formatting import Estimate, format_interval, read_estimate
from utils.cli import counted

SHOWN = 12  # rows of a table; the others can be unfolded
SHARES_BY = {"clip": "as an encoder reads them off the images", "labels": "as they were asked for, not as they look"}


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

    @property
    def first(self) -> list[Row]:
        return self.rows[:SHOWN]

    @property
    def rest(self) -> list[Row]:
        return self.rows[SHOWN:]


def make_row(name: str, marks: list[Mark], axis: Axis, below: str = "", numbered: bool = True) -> Row:
    label = ", ".join(" ".join((mark.kind, *format_interval(mark.estimate, axis.unit))) for mark in marks)
    return Row(name, below, Strip(axis, marks, f"{name}: {label}", numbered=numbered))


def make_rows(values: Sequence[tuple[str, list[Mark]]], axis: Axis, below: Sequence[str] = ()) -> list[Row]:
    """Rows on one axis, whose numbers stand under the last row shown and the last that can be unfolded."""
    numbered = {min(len(values), SHOWN) - 1, len(values) - 1}
    texts = below or [""] * len(values)
    return [
        make_row(name, marks, axis, text, i in numbered) for i, ((name, marks), text) in enumerate(zip(values, texts))
    ]


def split_tables(metrics: dict[str, Any], identity: bool) -> list[Table]:
    """The means of figures by each value of an attribute: of the identity figures, or of the others."""
    known = {}
    for one in metrics["figures"]:
        known[one["id"].partition("/")[0]] = known[one["id"].replace("/", "_")] = one
    splits = metrics.get("splits", {})
    wanted = ["identity_verified", "identity_centroid"] if identity else splits
    tables = []
    for key in wanted:
        if key.startswith("identity_") != identity:
            continue
        figure = known.get(key, {"name": key.replace("_", " "), "unit": "%" if "accuracy" in key else ""})
        for column, values in splits.get(key, {}).items():
            title = f"{figure['name']} by {'prompt' if column == 'text' else column}"
            tables += [split_table(title, values, figure.get("unit", ""))] if values else []
    return tables


def split_table(title: str, values: list[dict[str, Any]], unit: str) -> Table:
    marks = [Mark("generated", read_estimate(one, "mean")) for one in values]
    axis = fit_axis([mark.estimate for mark in marks], unit, share=unit == "%")
    below = [counted(one["n"], "image") if one.get("n") is not None else "" for one in values]
    rows = make_rows([(str(one["value"]), [mark]) for one, mark in zip(values, marks)], axis, below)
    return Table(title[:1].upper() + title[1:], rows)


def share_tables(shares: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """How often each value of an attribute occurs: generated, real, and as planned."""
    tables = []
    for column, values in shares.items():
        marked = [(str(one["value"]), marks) for one in values if (marks := share_marks(one))]
        if marked:
            estimates = [mark.estimate for _, marks in marked for mark in marks]
            axis = fit_axis([Estimate(0.0), *estimates], "%", share=True)
            by = SHARES_BY.get(values[0].get("by"))
            note = f"Generated: {by}; real: by their labels." if by else ""
            tables.append(Table(column, make_rows(marked, axis), note))
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
