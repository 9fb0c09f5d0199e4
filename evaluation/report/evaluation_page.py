"""report.html of an evaluation: one file that a person reads from top to bottom, made from metrics.json alone."""

from pathlib import Path
from typing import Any

from evaluation.intervals import Estimate
from evaluation.report import tables
from evaluation.report.charts import Mark, Strip, fit_axis
from evaluation.report.formatting import format_interval, read_estimate
from evaluation.report.rendering import render_page
from evaluation.report.utility import accuracy_charts, arm_title, read_utility
from evaluation.report.verdict import (
    GROUPS,
    compare_with_floor,
    describe_failed_checks,
    group_of,
    group_refused,
    judge_evaluation,
    target_state,
)
from utils.cli import UserError
from utils.files import read_object, write_text

AIMS = {"lower": "lower is better", "higher": "higher is better", "near floor": "best near the floor"}
SETS = {
    "generated": "{} generated image{}",
    "real": "{} real one{}",
    "train": "{} training image{}",
    "instance_data_dir": "{} photo{} of the subject",
    "identity_reference": "{} reference photo{}",
}


def read_evaluation(folder: Path, flag: str = "") -> dict[str, Any]:
    """metrics.json of an evaluation; `flag` is what its folder was given by."""
    path, expected = folder / "metrics.json", "an evaluation with `figures`, as evaluate.py makes it"
    metrics = read_object(path, expected, flag)
    if not isinstance(metrics.get("figures"), list):
        raise UserError(f"{flag} {path}: expected {expected}".strip())
    return metrics


def write_report(folder: Path) -> Path:
    """Make report.html from metrics.json and from the images that it names."""
    metrics = read_evaluation(folder)
    utility = read_utility(metrics.get("utility"), folder)
    headline, sentences = judge_evaluation(metrics, utility)
    figures, sets, made = metrics["figures"], metrics.get("sets", {}), metrics.get("made", {})
    human, shares = metrics.get("human"), metrics.get("shares", {})
    page = render_page(
        "report.html",
        metrics=metrics,
        folder=folder,
        name=Path(sets.get("generated", {}).get("path") or folder.resolve()).name,
        sizes=describe_sets(sets),
        date=str(made.get("date") or "")[:10],
        headline=headline,
        failed_checks=describe_failed_checks(metrics),
        sentences=sentences,
        units={one["id"]: one.get("unit", "") for one in figures},
        groups={title: [one for one in figures if group_of(one) == key] for key, title in GROUPS.items()},
        figures_legend=figures_legend(figures),
        target_state=target_state,
        group_refused=group_refused,
        figure_strip=figure_strip,
        describe_aim=describe_aim,
        compare_with_floor=compare_with_floor,
        splits=tables.split_tables(metrics, identity=False),
        identity_splits=tables.split_tables(metrics, identity=True),
        shares=tables.share_tables(shares),
        planned=any(one.get("plan") is not None for values in shares.values() for one in values),
        utility=utility,
        accuracy_charts=accuracy_charts,
        arm_title=arm_title,
        seeds=max((len(arm.get("seeds", [])) for arm in utility["arms"]), default=0) if utility else 0,
        people=tables.people_rows(human) if human else [],
        made={key: describe_fact(key, value) for key, value in made.items() if value is not None},
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def describe_sets(sets: dict[str, Any]) -> str:
    sizes = {key: sets[key]["n"] for key in SETS if isinstance(sets.get(key), dict)}
    first, *others = [SETS[key].format(f"{n:,}", "s" * (n != 1)) for key, n in sizes.items()] or [""]
    return f"{first} against {' and '.join(others)}" if others else first


def describe_fact(key: str, value: Any) -> str:
    """A value of `made` as text; of a dict within a dict only the values."""
    if isinstance(value, dict):
        words = [[name, *(one.values() if isinstance(one, dict) else [one])] for name, one in value.items()]
        return ", ".join(" ".join(map(str, one)) for one in words)
    return f"{value:,.0f}" if key == "seconds" else str(value)


def figures_legend(figures: list[dict[str, Any]]) -> list[tuple[str, str]]:
    entries = [("generated", "generated set, with its 95 % interval")]
    if any(one.get("floor") for one in figures):
        entries.append(("band", "floor: what real photos get"))
    if any(ring_of(one) is not None for one in figures):
        entries.append(("ring", "generated set at the floor’s number of images"))
    return entries


def ring_of(figure: dict[str, Any]) -> float | None:
    """The figure at the floor's number of images, where that differs from the figure itself."""
    other, value = figure.get("at_floor_n"), figure.get("value")
    worth_showing = other is not None and value is not None and figure.get("floor") and abs(other - value) > 1e-9
    return other if worth_showing else None


def describe_aim(figure: dict[str, Any]) -> str:
    return " · ".join(filter(None, (AIMS.get(figure.get("better", "")), figure.get("encoder"))))


def figure_strip(figure: dict[str, Any]) -> Strip | None:
    """The figure on its own axis, in front of the band of its floor; None where it has no value."""
    if figure.get("refused") or figure.get("value") is None:
        return None
    unit = figure.get("unit", "")
    mark = Mark("generated", read_estimate(figure), ring_of(figure))
    floor = read_estimate(figure["floor"]) if figure.get("floor") else None
    estimates = [mark.estimate, *([Estimate(mark.ring)] if mark.ring is not None else []), *([floor] if floor else [])]
    within = all(0 <= end <= 1 for one in estimates for end in one if end is not None)  # a cosine may be below 0
    share = unit == "%" or within and figure.get("better") != "lower"
    encoder = f" · {figure['encoder']}" if figure.get("encoder") else ""
    label = "{}{}: {}, interval {}".format(figure["name"], encoder, *format_interval(mark.estimate, unit))
    label += "; floor {}, {}".format(*format_interval(floor, unit)) if floor else ""
    return Strip(fit_axis(estimates, unit, share), [mark], label, floor)
