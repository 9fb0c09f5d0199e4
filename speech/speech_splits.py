"""Which recording goes to which split: by a hash, so that none moves when others come or go."""

import hashlib
from collections import Counter, defaultdict
from typing import NamedTuple

from utils.cli import UserError
from utils.dataset import SPLITS


class Placed(NamedTuple):
    splits: dict[str, str]  # {id: split}
    apart: dict[str, str]  # {id: why} of those that can't be in any


def split_of(group: str, ratio: dict[str, float], seed: int) -> str:
    """The split of a group, by its hash alone."""
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64 * sum(ratio.values())
    for split in reversed(SPLITS):  # test first, so that a larger share of it keeps what was in it
        if point < ratio[split]:
            return split
        point -= ratio[split]
    return "train"


def place_groups(groups: dict[str, str], kept: dict[str, str], ratio: dict[str, float], seed: int) -> Placed:
    """The split of each id of {id: group}; a group is in one split, and `kept` ids stay where they are.

    A split whose share is not 0 gets a group at least, if there are enough. Kept ids whose group is in several splits
    by now (a text was corrected): those in test stay, or else in val, and the others are set apart.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for one, group in groups.items():
        members[group].append(one)
    places: dict[str, str] = {}
    apart: dict[str, str] = {}
    fresh: list[str] = []
    for group, ids in members.items():
        there = {kept[one]: one for one in ids if one in kept}
        best = max(there, key=SPLITS.index, default=None)
        fresh += [] if best else [group]
        places[group] = best or split_of(group, ratio, seed)
        apart |= {one: f"as {there[best]}, which is in {best}" for one in ids if best and kept.get(one, best) != best}
    for split in SPLITS:
        sizes = Counter(places.values())
        movable = [group for group in fresh if sizes[places[group]] > 1 or split == "train"]
        if ratio[split] and not sizes[split] and movable:
            places[min(movable, key=lambda group: _order(group, split, seed))] = split
    return Placed({one: places[group] for one, group in groups.items() if one not in apart}, apart)


def _order(group: str, split: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{split}/{group}".encode()).digest()


def group_recordings(texts: dict[str, str], values: dict[str, str | None], disjoint: str | None) -> dict[str, str]:
    """{id: group}: recordings of one text are in one split; with `disjoint`, those with one value of that column."""
    if not disjoint:
        return {one: text.casefold() for one, text in texts.items()}
    if missing := [one for one in texts if not values.get(one)]:
        raise UserError(
            f"--disjoint {disjoint}: {missing[0]} has no {disjoint} ({len(missing):,} of {len(texts):,} recordings "
            "have none); leave the flag out, or name a column that all have"
        )
    return {one: f"{disjoint}: {values[one]}" for one in texts}
