"""Does the synthetic set help? The curves of train_classifier.py's results.json as a section of a page."""

import json
from html import escape
from pathlib import Path

from utils import charts
from utils.cli import UserError
from utils.page import interval, section, value_html


def read_utility(path: str | None, folder: Path) -> dict | None:
    """results.json, which the evaluation names (from its own folder on, or its folder); None where it names none."""
    if not path:
        return None
    place = folder / path
    place = place / "results.json" if place.is_dir() else place
    try:
        results = json.loads(place.read_text(encoding="utf-8"))
        return {"target": results["target"], "arms": results["arms"], **results}
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}; expected results.json of train_classifier.py") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} is no results.json of train_classifier.py ({error}); run that again") from None


def _estimate(arm: dict, metric: str = "accuracy") -> dict:
    return dict(zip(("value", "low", "high"), arm[f"{metric}_interval"]))


def _point(place: int, arm: dict) -> tuple:
    found = _estimate(arm)
    return place, found["value"], found["low"], found["high"]


def _ratio_curve(arms: list[dict]) -> str:
    """Accuracy against the number of synthetic pictures for each real one, all real pictures in use."""
    full = sorted((arm for arm in arms if arm["real_share"] == 1), key=lambda arm: arm["synthetic_ratio"])
    if len(full) < 2:
        return ""
    names = [f"{arm['synthetic_ratio']:g}×" if arm["synthetic_ratio"] else "none" for arm in full]
    series = [{"name": "all", "kind": "generated", "points": [_point(i, arm) for i, arm in enumerate(full)]}]
    label = "Accuracy by synthetic pictures added: " + "; ".join(
        f"{name} {' '.join(interval(_estimate(arm), '%'))}" for name, arm in zip(names, full)
    )
    return "<h3>With all real pictures</h3>" + charts.chart(
        series, names, label, "synthetic pictures for each real one"
    )


def _share_curves(arms: list[dict]) -> str:
    """Accuracy against the share of the real pictures in use; a curve for each kind of training set."""
    mixed = [arm for arm in arms if arm["real_share"] > 0]
    shares = sorted({arm["real_share"] for arm in mixed})
    low = [arm for arm in mixed if arm["real_share"] < 1]
    if not low:
        return ""
    kinds_of_sets = list(dict.fromkeys(arm["name"] for arm in low))
    series, kinds = [], []
    for number, name in enumerate(kinds_of_sets):
        kind = "real" if name == "real" else f"generated run{1 + number % 5}" if len(kinds_of_sets) > 2 else "generated"
        points = [_point(shares.index(arm["real_share"]), arm) for arm in mixed if arm["name"] == name]
        series.append({"name": name, "kind": kind, "points": points})
        kinds.append((kind, name))
    names = [f"{share * 100:g} %" for share in shares]
    label = "Accuracy by share of the real pictures: " + "; ".join(
        f"{one['name']} at {names[place]} {value:.1%}" for one in series for place, value, *_ in one["points"]
    )
    curves = charts.chart(series, names, label, "share of the real pictures in use")
    return "<h3>With fewer real pictures</h3>" + charts.legend(kinds) + curves


def _arms_table(arms: list[dict]) -> str:
    rows = ""
    for arm in arms:
        cells = [value_html(_estimate(arm, metric), "%") for metric in ("accuracy", "macro_f1")]
        rows += f"<tr><th scope=row>{escape(arm['name'])}</th><td data-label=real>{arm['n_real']:,}</td>"
        rows += f"<td data-label=synthetic>{arm['n_synthetic']:,}</td><td data-label=accuracy>{cells[0]}</td>"
        rows += f"<td data-label='macro F1'>{cells[1]}</td></tr>"
    head = "<thead><tr><th>Trained on<th>Real<th>Synthetic<th>Accuracy<th>Macro F1</tr></thead>"
    return f"<table class='stack many'>{head}<tbody>{rows}</tbody></table>"


def _comparisons_table(comparisons: list[dict]) -> str:
    rows, states = "", {"better": "good", "worse": "bad"}
    for one in comparisons:
        points = {"value": one["difference"] * 100, "low": one["low"] * 100, "high": one["high"] * 100}
        p = "" if one.get("p") is None else f"p = {one['p']:.2g}"
        share = f", {one['real_share'] * 100:g} % of real" if one.get("real_share") else ""
        rows += f"<tr><th scope=row>{escape(one['second'])}, against {escape(one['first'])}{share}</th>"
        rows += f"<td>{escape(one['metric'].replace('_', ' '))}</td><td>{value_html(points)}</td><td>{p}</td>"
        rows += f"<td class='state {states.get(one['verdict'], 'soft')}'>{escape(one['verdict'])}</td></tr>"
    head = "<thead><tr><th>Compared<th>Figure<th>Difference, points<th>Paired test<th>Verdict</tr></thead>"
    return f"<h3>Differences</h3><table class='stack many'>{head}<tbody>{rows}</tbody></table>" if rows else ""


def utility_section(results: dict | None) -> str:
    if not results:
        return ""
    arms = results["arms"]
    seeds = max((len(arm.get("seeds", [])) for arm in arms), default=0)
    intro = (
        f"A classifier ({results.get('model', 'model not named')}) of {results['target']}, tested on real photos; "
        f"mean of {seeds} seeds, 95 % intervals over seeds and test pictures."
    )
    parts = (
        _ratio_curve(arms),
        _share_curves(arms),
        _arms_table(arms),
        _comparisons_table(results.get("comparisons", [])),
    )
    return section("utility", "Does it help?", *parts, intro=intro)
