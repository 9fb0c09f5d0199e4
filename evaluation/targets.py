"""Targets such as `fid: "<50"`, and whether an evaluation shows that they are met, given the interval."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from utils.cli import UserError

# A name without an encoder means the encoder that the figure is usually computed with, or else the first that was used.
USUAL = {"fid": "frechet/inception", "kid": "kid/inception", "fd_dinov2": "frechet/dinov2", "cmmd": "cmmd/clip"}
SHARE, COSINE, AMOUNT = (0, 1), (-1, 1), (0, math.inf)
RANGES: dict[str, tuple[float, float]] = {  # what a figure can be, whatever the encoder; all others are shares
    "frechet": AMOUNT,
    "kid": (-math.inf, math.inf),
    "cmmd": AMOUNT,
    "density": AMOUNT,
    "vendi": (1, math.inf),
    "mean_distance": AMOUNT,
    "clip_score": COSINE,
    "clip_score_lowest": COSINE,
    "identity/centroid": COSINE,
    "identity/nearest": COSINE,
    "fidelity/subject": COSINE,
    "fidelity/prompt": COSINE,
    "fidelity/prior_distance": (0, 2),
    "fidelity/prior_variety": (-2, 2),
    "fidelity/prior_leak": (-2, 2),
}
PATTERN = re.compile(r"([\w/]+?)\s*=?\s*(<=?|>=?)\s*(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)\s*(%?)")


class Target(NamedTuple):
    name: str
    sign: str  # < or >
    limit: float


def parse_target(words: str) -> Target:
    """`fid<50` or, as a recipe's key and value become, `fid=<50`."""
    found = PATTERN.fullmatch(words.strip())
    if not found:
        raise UserError(f"--targets {words}: expected a figure and its limit, such as `fid<50` or `clip_score>0.25`")
    name, sign, limit, percent = found.groups()
    return Target(name, sign[0], float(limit) * (0.01 if percent else 1))


def find_figure(words: str, figures: Sequence[str]) -> str:
    """The figure's id that a target means."""
    name = parse_target(words).name
    wanted = USUAL.get(name, name)
    if wanted in figures:
        return wanted
    if same := [one for one in figures if one.rpartition("/")[0] == name]:
        return same[0]
    needs = ""
    if name in USUAL:
        encoder = wanted.rpartition("/")[2]
        needs = f"; it needs {'--inception FILE|URL' if encoder == 'inception' else f'{encoder} among --encoders'}"
    raise UserError(
        f"--targets {words}: no figure is called `{name}` with these flags{needs}; there are {', '.join(figures)}"
    )


def figure_range(figure: str) -> tuple[float, float]:
    return RANGES.get(figure) or RANGES.get(figure.rpartition("/")[0], SHARE)


def keep_in_range(found: dict[str, Any]) -> None:
    """End the intervals of figures, floors and splits of metrics.json where the figure ends: Student's would go on.

    A value that is beyond by itself, as an estimate without bias may be, is an end of its interval.
    """
    parts = [(one["id"], "value", part) for one in found["figures"] for part in (one, one["floor"]) if part]
    for key, columns in found["splits"].items():
        parts += [(key.replace("identity_", "identity/"), "mean", part) for part in itertools.chain(*columns.values())]
    for key, name, part in parts:
        if (value := part[name]) is not None:
            (least, most), low, high = figure_range(key), part["low"], part["high"]
            part |= {"low": min(value, max(low, least)), "high": max(value, min(high, most))}


def check_target(words: str, figures: Sequence[str], refused: Mapping[str, str]) -> None:
    """Refuse, before any work, a figure that will not be computed, and a limit outside its range.

    `refused`: {figure: why}, where that is known already.
    """
    figure = find_figure(words, figures)
    if figure in refused:
        raise UserError(f"--targets {words}: {figure} {refused[figure]}; add images, or leave out this target")
    (low, high), target = figure_range(figure), parse_target(words)
    possible = low < target.limit <= high if target.sign == "<" else low <= target.limit < high
    if "%" in words and (low, high) != SHARE:
        raise UserError(f"--targets {words}: {figure} is not a share; give a limit without %")
    if not possible:
        reach = f"{low} or more" if high == math.inf else f"{low} to {high}"
        reach += " (0% to 100%)" if (low, high) == SHARE else ""
        raise UserError(f"--targets {words}: {figure} is {reach}; give a limit inside this range")


def judge_target(words: str, figures: Sequence[dict[str, Any]], missing: Mapping[str, str]) -> dict[str, Any]:
    """`met` is None where the interval holds the limit, or where the figure was refused.

    `missing`: {figure: why} of what is not among the figures, since its encoder failed the check.
    """
    name, sign, limit = parse_target(words)
    by_id: dict[str, dict[str, Any]] = {one["id"]: one for one in figures}
    for key, why in missing.items():
        by_id[key] = {"id": key, "value": None, "low": None, "high": None, "refused": why}
    one = by_id[find_figure(words, list(by_id))]
    met = None
    if one["value"] is not None:
        below, above = one["high"] < limit, one["low"] > limit
        met = (below if sign == "<" else above) or (None if not (below or above) else False)
    asked = words.strip()[len(name) :].lstrip().removeprefix("=").strip()
    ends = {key: one[key] for key in ("value", "low", "high")}
    found = {"target": name, "asked": asked, "figure": one["id"], **ends, "met": met}
    return found | ({"refused": one["refused"]} if one.get("refused") else {})
