"""An evaluation as text: what evaluate.py prints."""

from evaluation.report.page import interval
from utils.cli import counted


def summarise(metrics: dict) -> str:
    """The figures as a text table, and the targets."""

    def number(value: float, unit: str) -> str:
        return f"{100 * value:.4g} %" if unit == "%" else f"{value:.4g}"

    lines = [f"{'figure':<46}{'value':>9}  {'95 % interval':<24}{'floor':>9}"]
    for one in metrics["figures"]:
        name = f"{one['name']}, {one['encoder']}" if one["encoder"] else one["name"]
        if one["value"] is None:
            lines.append(f"{name:<46}  refused: {one['refused']}")
            continue
        value, low, high = (number(one[key], one["unit"]) for key in ("value", "low", "high"))
        floor = number(one["floor"]["value"], one["unit"]) if one["floor"] else ""
        ends = f"{low.removesuffix(' %')} to {high}"
        lines.append(f"{name:<46}{value:>9}  {ends:<24}{floor:>9}".rstrip())
    lines += metrics.get("left_out", [])
    words = {True: "met", False: "not met", None: "not shown"}
    for one in metrics["targets"]:
        said = f"refused: {one['refused']}" if one.get("refused") else words[one["met"]]
        lines.append(f"target {one['target']} {one['asked']}: {said}")
    return "\n".join(lines + describe_people(metrics.get("human")))


def describe_people(human: dict | None) -> list[str]:
    """What the raters of the human study said, as lines."""
    if not human:
        return []

    def tell(one: dict, unit: str = "") -> str:
        return "{} ({})".format(*interval(one, unit))

    lines = [f"people: {counted(len(human['raters']), 'rater')}, {counted(human['items'], 'image')}"]
    for key, title, unit in (("mean", "mean rating, 1 to 5", ""), ("good", "rated good (4 or 5)", "%")):
        kinds = [f"{kind} {tell(one, unit)}" for kind, one in human[key].items()]
        lines.append(f"  {title}: {', '.join(kinds)}")
    told = human["told"]
    lines.append(f"  real told from generated, guessing gives 50 %: {tell(told, '%')}: {told['verdict']}")
    alpha = human["agreement"]
    lines.append(f"  agreement (Krippendorff's alpha): {alpha.get('refused') or tell(alpha)}")
    return lines + [f"  {note}" for note in human.get("notes", [])]
