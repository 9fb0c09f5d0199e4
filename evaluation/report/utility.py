"""Does the synthetic set help? The curves of train_classifier.py's results.json as a section of a page."""

import json
from html import escape
from pathlib import Path

from evaluation.report import charts
from evaluation.report.page import section, value_html
from utils.cli import UserError, counted


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


def _title(arm: dict) -> str:
    """Arms of one name differ in how many of the real images they have."""
    share = arm["real_share"]
    return f"{arm['name']} · {share * 100:g} % of real" if 0 < share < 1 else arm["name"]


def _ratio_curves(arms: list[dict]) -> str:
    """Accuracy against the number of synthetic images for each real one, all real images in use; a curve a set."""
    full = [arm for arm in arms if arm["real_share"] == 1]
    ratios = sorted({arm["synthetic_ratio"] or 0 for arm in full})
    sets = list(dict.fromkeys(arm.get("synthetic") or "synthetic" for arm in full if arm["synthetic_ratio"]))
    if len(ratios) < 2:
        return ""
    names = [f"{ratio:.2g}×" if ratio else "none" for ratio in ratios]
    series = []
    for i, name in enumerate(sets[:5]):
        own = [arm for arm in full if not arm["synthetic_ratio"] or (arm.get("synthetic") or "synthetic") == name]
        points = [_point(ratios.index(arm["synthetic_ratio"] or 0), arm) for arm in own]
        series.append({"name": name, "kind": f"generated run{i + 1}" if sets[1:] else "generated", "points": points})
    return _curves("With all real images", series, names, "synthetic images for each real one")


def _share_curves(arms: list[dict]) -> str:
    """Accuracy against the share of the real images in use: one curve for each arm that was trained on several."""
    mixed = [arm for arm in arms if arm["real_share"]]
    shares = sorted({arm["real_share"] for arm in mixed})
    if len(shares) < 2:
        return ""
    names = list(dict.fromkeys(arm["name"] for arm in mixed))
    names = [name for name in names if sum(arm["name"] == name for arm in mixed) > 1][:6]
    series = []
    for name in names:
        points = [_point(shares.index(arm["real_share"]), arm) for arm in mixed if arm["name"] == name]
        others = [one for one in names if one != "real"]
        kind = "real" if name == "real" else f"generated run{others.index(name) + 1}" if others[1:] else "generated"
        series.append({"name": name, "kind": kind, "points": points})
    return _curves(
        "With fewer real images", series, [f"{share * 100:g} %" for share in shares], "share of the real ones"
    )


def _curves(title: str, series: list[dict], names: list[str], across: str) -> str:
    said = [
        f"{one['name']}, {names[place]}: {value:.1%}" for one in series for place, value, *_ in sorted(one["points"])
    ]
    key = charts.legend([(one["kind"], one["name"]) for one in series]) if len(series) > 1 else ""
    label = f"Accuracy by {across}: {'; '.join(said)}"
    return f"<h3>{title}</h3>{key}{charts.chart(series, names, label, across)}"


def _arms_table(arms: list[dict]) -> str:
    rows = ""
    for arm in arms:
        cells = [value_html(_estimate(arm, metric), "%") for metric in ("accuracy", "macro_f1")]
        rows += f"<tr><th scope=row>{escape(_title(arm))}</th><td data-label=real>{arm['n_real']:,}</td>"
        rows += f"<td data-label=synthetic>{arm['n_synthetic']:,}</td><td data-label=accuracy>{cells[0]}</td>"
        rows += f"<td data-label='macro F1'>{cells[1]}</td></tr>"
    head = "<thead><tr><th>Trained on<th>Real<th>Synthetic<th>Accuracy<th>Macro F1</tr></thead>"
    return f"<table class='stack many'>{head}<tbody>{rows}</tbody></table>"


def _comparisons(comparisons: list[dict]) -> str:
    """Those of accuracy; of other metrics to be unfolded."""
    first = [one for one in comparisons if one["metric"] == "accuracy"]
    rest = [one for one in comparisons if one["metric"] != "accuracy"]
    text = f"<h3>Differences in accuracy</h3>{_comparisons_table(first)}" if first else ""
    if rest:
        metrics = ", ".join(dict.fromkeys(one["metric"].replace("_f1", " F1") for one in rest))
        text += f"<details><summary>Differences in {escape(metrics)}</summary>{_comparisons_table(rest)}</details>"
    return text


def _comparisons_table(comparisons: list[dict]) -> str:
    rows, states = "", {"better": "good", "worse": "bad"}
    for one in comparisons:
        points = {key: one[name] * 100 for key, name in (("value", "difference"), ("low", "low"), ("high", "high"))}
        p = one.get("p_holm", one.get("p"))
        share = one.get("real_share")
        where = f" · {share * 100:g} % of real" if share and share < 1 else ""
        rows += f"<tr><th scope=row>{escape(one['second'])}, against {escape(one['first'])}{where}</th>"
        rows += f"<td>{value_html(points)}</td><td>{'' if p is None else f'p = {p:.2g}'}</td>"
        rows += f"<td class='state {states.get(one['verdict'], 'soft')}'>{escape(one['verdict'])}</td></tr>"
    adjusted = "Paired test, Holm’s p" if any("p_holm" in one for one in comparisons) else "Paired test"
    head = f"<thead><tr><th>Compared<th>Difference, points<th>{adjusted}<th>Verdict</tr></thead>"
    return f"<table class='stack many'>{head}<tbody>{rows}</tbody></table>"


def utility_section(results: dict | None) -> str:
    if not results:
        return ""
    arms = results["arms"]
    seeds = max((len(arm.get("seeds", [])) for arm in arms), default=0)
    tested = f"{counted(results['n_test'], 'real photo')}" if results.get("n_test") else "real photos"
    intro = (
        f"A classifier ({results.get('model', 'model not named')}) of {results['target']}, tested on {tested}; "
        f"means of {counted(seeds, 'seed')}, with 95 % intervals."
    )
    left = "".join(f"<p class=note>{escape(line[:1].upper() + line[1:])}.</p>" for line in results.get("left_out", []))
    parts = (_ratio_curves(arms), _share_curves(arms), _arms_table(arms), left)
    return section("utility", "Does it help?", *parts, _comparisons(results.get("comparisons", [])), intro=intro)
