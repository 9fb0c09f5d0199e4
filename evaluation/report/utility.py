"""Does the synthetic set help? results.json of train_classifier.py: its curves, and the titles of its arms."""

from pathlib import Path
from typing import Any

from evaluation.intervals import Estimate
from evaluation.report.charts import Curve, CurveChart
from utils.cli import UserError
from utils.files import read_object


def read_utility(path: str | None, folder: Path) -> dict[str, Any] | None:
    """results.json, which the evaluation names (from its own folder on, or its folder); None where it names none."""
    if not path:
        return None
    place = folder / path
    place = place / "results.json" if place.is_dir() else place
    expected = "results.json of train_classifier.py"
    results = read_object(place, expected)
    if "target" not in results or not isinstance(results.get("arms"), list):
        raise UserError(f"{place}: expected {expected}, with `target` and `arms`; run train_classifier.py again")
    return results


def arm_title(arm: dict[str, Any]) -> str:
    """Its name, and the share of the real images that it was trained on: arms of one name differ in it."""
    share = arm["real_share"]
    return f"{arm['name']} · {share * 100:g} % of real" if 0 < share < 1 else arm["name"]


def accuracy_charts(results: dict[str, Any]) -> list[CurveChart]:
    arms = results["arms"]
    return [chart for chart in (ratio_chart(arms), share_chart(arms)) if chart]


def ratio_chart(arms: list[dict[str, Any]]) -> CurveChart | None:
    """Accuracy by the number of synthetic images for each real one, with all real images: a curve for each set."""
    full = [arm for arm in arms if arm["real_share"] == 1]
    ratios = sorted({arm["synthetic_ratio"] or 0 for arm in full})
    if len(ratios) < 2:
        return None
    sets = list(dict.fromkeys(arm.get("synthetic") or "synthetic" for arm in full if arm["synthetic_ratio"]))
    curves = []
    for i, name in enumerate(sets[:5], 1):
        own = [arm for arm in full if not arm["synthetic_ratio"] or (arm.get("synthetic") or "synthetic") == name]
        points = sorted((ratios.index(arm["synthetic_ratio"] or 0), read_accuracy(arm)) for arm in own)
        curves.append(Curve(f"generated run{i}" if sets[1:] else "generated", name, points))
    names = [f"{ratio:.2g}×" if ratio else "none" for ratio in ratios]
    return CurveChart("With all real images", "synthetic images for each real one", names, curves)


def share_chart(arms: list[dict[str, Any]]) -> CurveChart | None:
    """Accuracy by the share of the real images in use: a curve for each arm that was trained on several shares."""
    mixed = [arm for arm in arms if arm["real_share"]]
    shares = sorted({arm["real_share"] for arm in mixed})
    if len(shares) < 2:
        return None
    names = [arm["name"] for arm in mixed]
    names = [name for name in dict.fromkeys(names) if names.count(name) > 1][:6]
    others = [name for name in names if name != "real"]
    curves = []
    for name in names:
        points = sorted((shares.index(arm["real_share"]), read_accuracy(arm)) for arm in mixed if arm["name"] == name)
        kind = "real" if name == "real" else f"generated run{others.index(name) + 1}" if others[1:] else "generated"
        curves.append(Curve(kind, name, points))
    labels = [f"{share * 100:g} %" for share in shares]
    return CurveChart("With fewer real images", "share of the real ones", labels, curves)


def read_accuracy(arm: dict[str, Any]) -> Estimate:
    return Estimate(*arm["accuracy_interval"])
