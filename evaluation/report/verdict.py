"""What an evaluation concludes, in sentences."""

from collections import Counter
from typing import Any

from evaluation.intervals import difference
from evaluation.report.formatting import format_interval, read_estimate
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
WORSE = "Worse than real photos"
NEEDED = ("quality", "adherence", "diversity")  # groups of figures for a verdict on the whole
USUAL_ENCODERS = ("clip", "dinov2")  # that know photos of all kinds
HOW_TO_GET = {
    "quality": "Figures of quality need --real with at least 50 images, and an encoder.",
    "adherence": "Figures of adherence need images with texts, and an encoder that knows texts, such as clip.",
    "diversity": "Figures of diversity need at least 20 generated images, and an encoder.",
}
MET = {True: ("met", "good"), False: ("missed", "bad"), None: ("undecided", "unsure")}


def group_of(figure: dict[str, Any]) -> str:
    return figure["group"] if figure.get("group") in GROUPS else "other"


def target_state(target: dict[str, Any]) -> tuple[str, str]:
    """(word, its colour) of a target; `met` is None where its interval holds the limit."""
    if target.get("value") is None:
        return "refused" if target.get("refused") else "not measured", "unsure"
    return MET[target.get("met")]


def compare_with_floor(figure: dict[str, Any]) -> tuple[str, str]:
    """(words, their colour) for a figure and its floor.

    A figure that depends on n is compared at the floor's own n, and the floor's ends are where another set of real
    photos would fall 95 times in 100. Else the floor is the real set's own figure, and their difference has an
    interval. Where it holds 0 no difference is shown, as it must be with few images.
    """
    floor, better = figure["floor"], figure.get("better")
    if figure.get("at_floor_n") is not None:
        low, high = figure["at_floor_n"] - floor["high"], figure["at_floor_n"] - floor["low"]
    else:
        apart = difference(floor, figure)
        low, high = apart["low"], apart["high"]
    if low <= 0 <= high:
        return "no difference shown", "soft"
    above = low > 0
    if better == "near floor":
        return ("above" if above else "below") + " real photos", "bad"
    worse = above == (better == "lower")
    return ("worse" if worse else "better") + " than real photos", "bad" if worse else "good"


def judge_evaluation(metrics: dict[str, Any], utility: dict[str, Any] | None) -> tuple[str, list[str]]:
    """(a headline, sentences): the targets or else the floor, then copies, failures, use, people, refused figures.

    There is no verdict on the whole without a figure of each group of NEEDED: a bad set can be good in one alone.
    """
    figures, images = metrics["figures"], metrics.get("pictures", {})
    met, missing, sentences = judge_targets(metrics.get("targets", [])), find_missing(figures), []
    level = judge_floors(figures)
    if missing:
        verdict = f"No verdict{' on the whole' if met else ''}: there is no figure of {either(missing)}."
        headline = f"{met} {verdict}".strip()
        sentences += [] if describe_failed_checks(metrics) else [HOW_TO_GET[key] for key in missing]
        sentences += [level] if level.startswith(WORSE) else []  # not that it is no worse
    else:
        headline = met or level or f"{counted(len(figures), 'figure')}, and no targets were set."
        sentences += [level] if met and level else []
    sentences += judge_copies(figures, images.get("copies", []))
    sentences += judge_failures(images.get("failures", []), figures)
    sentences += [f"Usefulness for a classifier, {line}." for line in (utility or {}).get("verdict", [])]
    sentences += metrics.get("left_out", [])
    if human := metrics.get("human"):
        share, around = format_interval(read_estimate(human["told"]), "%")
        verdict = human["told"]["verdict"]
        sentences.append(f"People guess right {share} of the time ({around}): {verdict}.")
    if refused := sum(bool(one.get("refused")) for one in figures):
        sentences.append(f"{counted(refused, 'figure')} could not be computed; the reason is shown instead.")
    return headline, sentences


def describe_failed_checks(metrics: dict[str, Any]) -> list[str]:
    """Which encoders do not understand the real images, why, and which to use instead."""
    return [
        f"The encoder {name} does not understand these images: {one['problem']}. Its figures are left out; use "
        f"--encoders {' '.join(other for other in USUAL_ENCODERS if other != name)}."
        for name, one in metrics.get("checks", {}).items()
        if one.get("problem")
    ]


def either(names: list[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def find_missing(figures: list[dict[str, Any]]) -> list[str]:
    """The groups of NEEDED without any figure that was computed."""
    there = {one.get("group") for one in figures if one.get("value") is not None}
    return [key for key in NEEDED if key not in there]


def group_refused(figures: list[dict[str, Any]]) -> dict[str, list[str]]:
    """{reason: the names of the figures that were not computed for it}."""
    found: dict[str, list[str]] = {}
    for one in figures:
        if one.get("value") is None:
            name = " · ".join(filter(None, (one["name"], one.get("encoder"))))
            found.setdefault(one.get("refused") or "no value", []).append(name)
    return found


def judge_targets(targets: list[dict[str, Any]]) -> str:
    if not targets:
        return ""
    counts = Counter(target_state(one)[0] for one in targets)
    met = counts.pop("met", 0)
    if not counts:
        return "The target is met." if met == 1 else f"All {met} targets are met."
    others = sorted(counts, key=lambda word: word != "missed")
    parts = [f"{met} of {counted(len(targets), 'target')} met", *(f"{counts[word]} {word}" for word in others)]
    return ", ".join(parts) + "."


def judge_floors(figures: list[dict[str, Any]]) -> str:
    floors = [compare_with_floor(one) for one in figures if one.get("floor") and one.get("value") is not None]
    if not floors:
        return ""
    short, of = sum(state == "bad" for _, state in floors), counted(len(floors), "figure")
    if short:
        return f"{WORSE} in {short} of {of}; the others are not shown to be worse."
    return f"Not shown to be worse than real photos in any of {of}."


def judge_copies(figures: list[dict[str, Any]], copies: list[dict[str, Any]]) -> list[str]:
    found = [one for one in figures if one["id"].partition("/")[0] == "copies" and one.get("value") is not None]
    if found:
        share, around = format_interval(read_estimate(found[0]), "%")
        return [f"Suspected copies of training images: {share} ({around}){describe_floor(found[0].get('floor'))}."]
    suspected = sum(bool(one.get("suspected")) for one in copies)
    return [f"Suspected copies of training images: {suspected} of {len(copies)} checked."] if copies else []


def judge_failures(failures: list[dict[str, Any]], figures: list[dict[str, Any]]) -> list[str]:
    if not failures:
        return []
    worst = max(failures, key=lambda one: one["share"])
    if not worst["count"]:
        return [f"No fault was found by these checks: {', '.join(one['reason'].lower() for one in failures)}."]
    share, around = format_interval(read_estimate(worst, "share"), "%")
    reason = worst["reason"][:1].lower() + worst["reason"][1:]
    floor = next((one["floor"] for one in figures if one.get("floor") and one["name"] == worst["reason"]), None)
    return [f"Most frequent failure: {reason}, {share} ({around}){describe_floor(floor)}."]


def describe_floor(floor: dict[str, Any] | None) -> str:
    return f"; of real photos, {format_interval(read_estimate(floor), '%')[0]}" if floor else ""
