"""What an evaluation comes to, in sentences."""

from evaluation.intervals import difference
from evaluation.report.page import interval
from utils.cli import counted

GROUPS = {
    "quality": "Quality",
    "adherence": "Prompt adherence",
    "diversity": "Diversity",
    "novelty": "Novelty",
    "failures": "Failures",
    "identity": "Identity",
    "fidelity": "Fidelity",
    "other": "Other",
}


def group_of(figure: dict) -> str:
    return figure["group"] if figure.get("group") in GROUPS else "other"


def target_state(target: dict) -> tuple[str, str]:
    """(word, its colour) of a target; `met` is None where its interval holds the limit."""
    states = {True: ("✓ met", "good"), False: ("✕ missed", "bad"), None: ("? undecided", "unsure")}
    if target.get("value") is None:
        return "? refused" if target.get("refused") else "? not measured", "unsure"
    return states[target.get("met")]


def against_floor(figure: dict) -> tuple[str, str]:
    """(what the floor says of a figure, its colour).

    A figure that n biases is known at the floor's own n, and the floor's ends are where another set of real photos
    would fall 95 times in 100. Else the floor is the real set's own figure, and their difference has an interval.
    Where it holds 0 nothing is shown: with few images that is said of anything.
    """
    floor, better = figure["floor"], figure.get("better")
    if figure.get("at_floor_n") is not None:
        apart = {"low": figure["at_floor_n"] - floor["high"], "high": figure["at_floor_n"] - floor["low"]}
    else:
        apart = difference(floor, figure)
    if apart["low"] <= 0 <= apart["high"]:
        return "no difference shown", "soft"
    above = apart["low"] > 0
    if better == "near floor":
        return ("above" if above else "below") + " real photos", "bad"
    worse = above == (better == "lower")
    return ("worse" if worse else "better") + " than real photos", "bad" if worse else "good"


def verdict(metrics: dict, utility: dict | None) -> tuple[str, list[str]]:
    """(a headline, a few sentences): targets first, then the floor, copies, failures, use, people, what is refused."""
    figures = metrics["figures"]
    floors = [against_floor(one) for one in figures if one.get("floor") and one.get("value") is not None]
    short = sum(state == "bad" for _, state in floors)
    headline, sentences = _targets_headline(metrics.get("targets", [])), []
    level = f"Short of real photos in {short} of {counted(len(floors), 'figure')}; in the others, not shown to be."
    if not short:
        level = f"Not shown to fall short of real photos in any of {counted(len(floors), 'figure')}."
    if not headline:
        headline = level if floors else f"{counted(len(figures), 'figure')}, and no targets were set."
    elif floors:
        sentences.append(level)
    sentences += _copies(figures, metrics.get("pictures", {}).get("copies", []))
    sentences += _failures(metrics.get("pictures", {}).get("failures", []), figures)
    sentences += _utility(utility)
    sentences += metrics.get("left_out", [])
    if human := metrics.get("human"):
        told, around = interval(human["told"], "%")
        sentences.append(f"People told real from generated {told} of the time ({around}): {human['told']['verdict']}.")
    refused = sum(bool(one.get("refused")) for one in figures)
    if refused:
        sentences.append(f"{counted(refused, 'figure')} could not be given; the reason stands in its place.")
    return headline, sentences


def _targets_headline(targets: list[dict]) -> str:
    if not targets:
        return ""
    words = [target_state(one)[1] for one in targets]
    met, missed = words.count("good"), words.count("bad")
    if met == len(targets):
        return "The target is met." if met == 1 else f"All {met} targets are met."
    parts = [f"{met} of {counted(len(targets), 'target')} met"]
    parts += [f"{missed} missed"] if missed else []
    parts += [f"{len(targets) - met - missed} undecided"] if met + missed < len(targets) else []
    return ", ".join(parts) + "."


def _copies(figures: list[dict], copies: list[dict]) -> list[str]:
    shares = [one for one in figures if one["id"].partition("/")[0] == "copies" and one.get("value") is not None]
    if shares:
        share, around = interval(shares[0], "%")
        real = f"; of real photos, {interval(shares[0]['floor'], '%')[0]}" if shares[0].get("floor") else ""
        return [f"Suspected copies of training images: {share} ({around}){real}."]
    suspected = sum(bool(one.get("suspected")) for one in copies)
    return [f"Suspected copies of training images: {suspected} of {len(copies)} looked at."] if copies else []


def _failures(failures: list[dict], figures: list[dict]) -> list[str]:
    if not failures:
        return []
    worst = max(failures, key=lambda one: one["share"])
    if not worst["count"]:
        return ["No image failed a check."]
    share, around = interval({**worst, "value": worst["share"]}, "%")
    reason = worst["reason"][:1].lower() + worst["reason"][1:]
    floor = next((one["floor"] for one in figures if one.get("floor") and one["name"] == worst["reason"]), None)
    real = f"; of real photos, {interval(floor, '%')[0]}" if floor else ""
    return [f"Most frequent failure: {reason}, {share} ({around}){real}."]


def _utility(utility: dict | None) -> list[str]:
    """What train_classifier.py found, in its own words."""
    return [f"Use for a classifier, {line}." for line in (utility or {}).get("verdict", [])]
