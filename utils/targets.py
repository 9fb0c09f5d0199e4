"""What a recipe asks of a set, `fid: "<50"`, and whether an evaluation shows it, given the interval."""

import re

from utils.cli import UserError

# A name that says no encoder means the one of the figure's usual kind, or else the first that was used.
USUAL = {"fid": "frechet/inception", "kid": "kid/inception", "fd_dinov2": "frechet/dinov2", "cmmd": "cmmd/clip"}
PATTERN = re.compile(r"([\w/]+?)\s*=?\s*(<=?|>=?)\s*(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)\s*(%?)")


def parse_target(words: str) -> tuple[str, str, float]:
    """(name, `<` or `>`, limit) of `fid<50` or, as a recipe's key and value become, `fid=<50`."""
    found = PATTERN.fullmatch(words.strip())
    if not found:
        raise UserError(f"--targets {words}: expected a figure and its limit, such as `fid<50` or `clip_score>0.25`")
    name, sign, limit, percent = found.groups()
    if percent and not 0 <= float(limit) <= 100:
        raise UserError(f"--targets {words}: a share is 0% to 100%")
    return name, sign[0], float(limit) * (0.01 if percent else 1)


def find_figure(name: str, figures: list[dict]) -> dict:
    """The figure that a target means."""
    wanted = USUAL.get(name, name)
    by_id = {one["id"]: one for one in figures}
    if wanted not in by_id:
        same = [one for key, one in by_id.items() if key.rpartition("/")[0] == name]
        if same and name not in ("fid", "fd_dinov2"):
            return same[0]
        hint = "; add inception to --encoders" if name == "fid" else ""
        raise UserError(f"--targets {name}: this evaluation has no such figure{hint}; it has {', '.join(by_id)}")
    return by_id[wanted]


def check_target(words: str, encoders: list[str], known: list[str]) -> None:
    """Before any work: that the target can be read and that there will be such a figure. `known`: names of figures."""
    name = parse_target(words)[0]
    wanted = USUAL.get(name, name)
    whole = wanted in known or "/" not in wanted
    base, _, encoder = (wanted, "", "") if whole else wanted.rpartition("/")
    if base not in known:
        there = dict.fromkeys([*(key for key, one in USUAL.items() if one.partition("/")[0] in known), *known])
        raise UserError(
            f"--targets {words}: no figure is called `{name}` with these flags; there are {', '.join(there)}"
        )
    if encoder and encoder not in encoders and not (name == "cmmd" and "demo" in encoders):
        raise UserError(f"--targets {words}: needs {encoder} among --encoders")


def judge(asked: str, figures: list[dict]) -> dict:
    """`met` is None where the interval holds the limit, or the figure was refused: then nothing is shown."""
    name, sign, limit = parse_target(asked)
    one = find_figure(name, figures)
    met = None
    if one["value"] is not None:
        below, above = one["high"] < limit, one["low"] > limit
        met = (below if sign == "<" else above) or (None if not (below or above) else False)
    said = asked.strip()[len(name) :].lstrip().removeprefix("=").strip()
    ends = {key: one[key] for key in ("value", "low", "high")}
    found = {"target": name, "asked": said, "figure": one["id"], **ends, "met": met}
    return found | ({"refused": one["refused"]} if one.get("refused") else {})
