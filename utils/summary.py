"""An evaluation as text: what evaluate.py prints."""

from utils.cli import counted
from utils.page import interval


def summarise(metrics: dict) -> str:
    """The figures as a text table, and the targets."""

    def number(one: dict, key: str, scale: float) -> str:
        return f"{scale * one[key]:.4g}"

    lines = [f"{'figure':<40}{'value':>9}  {'95 % interval':<22}{'real':>8}"]
    for one in metrics["figures"]:
        name = f"{one['name']}, {one['encoder']}" if one["encoder"] else one["name"]
        if one["value"] is None:
            lines.append(f"{name:<40}  refused: {one['refused']}")
            continue
        scale = 100 if one["unit"] == "%" else 1
        ends = f"{number(one, 'low', scale)} to {number(one, 'high', scale)}"
        floor = number(one["floor"], "value", scale) if one["floor"] else ""
        lines.append(f"{name:<40}{number(one, 'value', scale):>9}  {ends:<22}{floor:>8}  {one['unit']}")
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

    lines = [f"people: {counted(len(human['raters']), 'rater')}, {counted(human['items'], 'picture')}"]
    for key, title, unit in (("mean", "mean rating, 1 to 5", ""), ("good", "rated good (4 or 5)", "%")):
        kinds = [f"{kind} {tell(one, unit)}" for kind, one in human[key].items()]
        lines.append(f"  {title}: {', '.join(kinds)}")
    told = human["told"]
    lines.append(f"  real told from generated, guessing gives 50 %: {tell(told, '%')}: {told['verdict']}")
    alpha = human["agreement"]
    lines.append(f"  agreement (Krippendorff's alpha): {alpha.get('refused') or tell(alpha)}")
    return lines + [f"  {note}" for note in human.get("notes", [])]
