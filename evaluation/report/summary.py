"""An evaluation as text: what evaluate.py prints."""

from typing import Any

from evaluation.intervals import Estimate
from evaluation.report.formatting import format_interval, read_estimate
from evaluation.report.verdict import describe_failed_checks, group_refused, judge_evaluation, target_state
from utils.cli import counted
from utils.console import format_table


def summarise(metrics: dict[str, Any]) -> str:
    """The figures as a text table, the targets, and what people said."""
    computed = [one for one in metrics["figures"] if one["value"] is not None]
    refused = group_refused(metrics["figures"])
    lines = [judge_evaluation(metrics, None)[0], *describe_failed_checks(metrics)]
    if computed:
        lines.append(format_table(map(figure_row, computed), ["figure", "value", "95 % interval", "floor"]))
    lines += [f"not computed: {', '.join(names)}: {reason}" for reason, names in refused.items()]
    lines += metrics.get("left_out", [])
    for one in metrics["targets"]:
        found = f"refused: {one['refused']}" if one.get("refused") else target_state(one)[0]
        lines.append(f"target {one['target']} {one['asked']}: {found}")
    return "\n".join(lines + describe_people(metrics.get("human")))


def figure_row(figure: dict[str, Any]) -> tuple[str, str, str, str]:
    name = f"{figure['name']}, {figure['encoder']}" if figure["encoder"] else figure["name"]
    value, ends = format_interval(read_estimate(figure), figure["unit"])
    floor = format_interval(read_estimate(figure["floor"]), figure["unit"])[0] if figure["floor"] else ""
    return name, value, ends, floor


def describe_people(human: dict[str, Any] | None) -> list[str]:
    """What the raters of the human study said, as lines."""
    if not human:
        return []
    lines = [f"people: {counted(len(human['raters']), 'rater')}, {counted(human['items'], 'image')}"]
    for key, title, unit in (("mean", "mean rating, 1 to 5", ""), ("good", "rated good (4 or 5)", "%")):
        kinds = [f"{kind} {with_interval(read_estimate(one), unit)}" for kind, one in human[key].items()]
        lines.append(f"  {title}: {', '.join(kinds)}")
    right, alpha = human["told"], human["agreement"]
    share = with_interval(read_estimate(right), "%")
    lines.append(f"  right guesses, real or generated (chance: 50 %): {share}: {right['verdict']}")
    agreed = alpha.get("refused") or with_interval(read_estimate(alpha))
    lines.append(f"  agreement (Krippendorff's alpha): {agreed}")
    return lines + [f"  {note}" for note in human.get("notes", [])]


def with_interval(found: Estimate, unit: str = "") -> str:
    return "{} ({})".format(*format_interval(found, unit))
