"""What an evaluation comes to, in sentences."""

from utils.cli import counted
from utils.page import interval

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
        return "? not measured", "unsure"
    return states[target.get("met")]


def against_floor(figure: dict) -> tuple[str, str]:
    """(what the floor says of a figure, its colour).

    The floor's ends are where another set of real photos would fall 95 times in 100, so what lies between them can't be
    told from real. Compared at the floor's own n where that is known, since n biases most figures.
    """
    floor, better = figure["floor"], figure.get("better")
    if figure.get("at_floor_n") is not None:
        low = high = figure["at_floor_n"]
    else:
        low, high = figure.get("low", figure["value"]), figure.get("high", figure["value"])
    if low <= floor["high"] and high >= floor["low"]:
        return "as real photos", "good"
    above = low > floor["high"]
    if better == "near floor":
        return ("above" if above else "below") + " real photos", "bad"
    worse = above == (better == "lower")
    return ("worse" if worse else "better") + " than real photos", "bad" if worse else "good"


def verdict(metrics: dict, utility: dict | None) -> tuple[str, list[str]]:
    """(a headline, a few sentences): targets first, then the floor, copies, failures, use, people, what is refused."""
    figures = metrics["figures"]
    floors = [against_floor(one) for one in figures if one.get("floor") and one.get("value") is not None]
    same = sum(state == "good" for _, state in floors)
    headline, sentences = _targets_headline(metrics.get("targets", [])), []
    level = f"At the level of real photos in {same} of {counted(len(floors), 'figure')}."
    if not headline:
        headline = level if floors else f"{counted(len(figures), 'figure')}, and no targets were set."
    elif floors:
        sentences.append(level)
    sentences += _copies(metrics.get("pictures", {}).get("copies", []))
    sentences += _failures(metrics.get("pictures", {}).get("failures", []))
    sentences += _utility(utility)
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


def _copies(copies: list[dict]) -> list[str]:
    suspected = sum(bool(one.get("suspected")) for one in copies)
    if not copies:
        return []
    if not suspected:
        return ["None of the nearest neighbours is suspected to be a copy of a training picture."]
    pictures = "One picture is" if suspected == 1 else f"{suspected} pictures are"
    return [f"{pictures} suspected to be copied from training; see the nearest neighbours."]


def _failures(failures: list[dict]) -> list[str]:
    if not failures:
        return []
    worst = max(failures, key=lambda one: one["share"])
    if not worst["count"]:
        return ["No picture failed a check."]
    share, around = interval({**worst, "value": worst["share"]}, "%")
    return [f"Most frequent failure: {worst['reason']}, {share} ({around})."]


def _utility(utility: dict | None) -> list[str]:
    """How often synthetic pictures, added to real ones, made a better classifier: all comparisons, not the best one."""
    mixed = {arm["name"] for arm in (utility or {}).get("arms", []) if arm["real_share"] and arm["synthetic_ratio"]}
    found = [one for one in (utility or {}).get("comparisons", []) if one["metric"] == "accuracy"]
    words = [one["verdict"] for one in found if one["second"] in mixed]
    if not words:
        return []
    counts = [f"{words.count(word)} {word}" for word in dict.fromkeys(("better", "worse", *words)) if word in words]
    said = f"Synthetic pictures added to real ones: of {counted(len(words), 'comparison')} of a classifier’s accuracy"
    return [f"{said}, {', '.join(counts)}."]
