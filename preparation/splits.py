"""Which product goes to which split: exact counts, look-alikes together, none moved that had its place."""

import hashlib
import math
from collections import Counter

from utils.dataset import SPLITS


def apportion(total: int, shares: dict) -> dict:
    """Whole numbers that add up to `total` in these shares: the largest remainders get what is over."""
    weight = sum(shares.values())
    exact = {key: total * share / weight for key, share in shares.items()}
    counts = {key: math.floor(value + 1e-9) for key, value in exact.items()}
    # In whole billionths, so that 426.75 and 426.75000000000006 are a tie, which the order of the keys decides.
    by_remainder = sorted(counts, key=lambda key: -round((exact[key] - counts[key]) * 1e9))
    for key in by_remainder[: total - sum(counts.values())]:
        counts[key] += 1
    return counts


def pool_rare(values: list[tuple], least: int) -> list[str]:
    """A stratum's name for each product; values that occur less than `least` times are pooled as "Other"."""
    names = [" / ".join(part or "(none)" for part in value) for value in values]
    counts = Counter(names)
    return [name if counts[name] >= least else "Other" for name in names]


def group_linked(ids: list[str], pairs: list[tuple[str, str]]) -> list[list[str]]:
    """The ids in groups, two of a pair always in one; groups and members in the order of `ids`."""
    leader = {one: one for one in ids}

    def find(one):
        while leader[one] != one:
            leader[one] = leader[leader[one]]
            one = leader[one]
        return one

    for a, b in pairs:
        leader[find(b)] = find(a)
    groups = {}
    for one in ids:
        groups.setdefault(find(one), []).append(one)
    return list(groups.values())


def groups_of_pairs(pairs: list[tuple[str, str]]) -> list[list[str]]:
    """The groups that pairs make, without anything that is in no pair."""
    return group_linked(sorted({one for pair in pairs for one in pair}), pairs)


def settle_conflicts(ids: list[str], pairs: list[tuple[str, str]], kept: dict[str, str]) -> dict[str, str]:
    """{id to leave out: why}, so that no look-alikes are in two splits though none that has its place moves.

    Old ones in different splits (the threshold was changed): those in the most precious split stay, test before val
    before train. New ones whose look-alikes have places in different splits are left out, all of their group.
    """
    out = {}
    old = [one for one in ids if one in kept]
    for group in group_linked(old, [pair for pair in pairs if kept.keys() >= set(pair)]):
        best = max(group, key=lambda one: SPLITS.index(kept[one]))
        why = f"near duplicate of {best}, which is in {kept[best]}"
        out |= {one: why for one in group if kept[one] != kept[best]}
    fresh = [one for one in ids if one not in kept]
    for group in group_linked(fresh, [pair for pair in pairs if kept.keys().isdisjoint(pair)]):
        members = set(group)
        near = {x if y in members else y for x, y in pairs if (x in members) != (y in members)} - out.keys()
        if len({kept[one] for one in near}) > 1:
            why = "near duplicate of " + " and ".join(f"{one} ({kept[one]})" for one in sorted(near))
            out |= dict.fromkeys(group, why)
    return out


def assign_splits(
    groups: list[list[str]], strata: dict[str, str], shares: dict[str, float], seed: int, kept: dict[str, str]
) -> dict[str, str]:
    """{id: split}. Old ids keep theirs; new ones fill up to the exact counts, in every stratum as near as can be.

    A group goes to the split of its old member, if any. The others come largest first, then in the order of a hash of
    (seed, their first id), each to where its stratum lacks most; the totals are not overdrawn while that can be helped.
    """
    result = {one: kept[one] for group in groups for one in group if one in kept}
    for group in groups:
        if place := next((result[one] for one in group if one in result), None):
            result |= dict.fromkeys(group, place)
    total = sum(map(len, groups))
    room = apportion(total, shares)
    sizes = Counter(strata[one] for group in groups for one in group)
    lack = {(name, split): sizes[name] * shares[split] / sum(shares.values()) for name in sizes for split in shares}
    for one, split in result.items():
        room[split] -= 1
        lack[strata[one], split] -= 1

    def order(group):
        return -len(group), hashlib.sha256(f"{seed}/{group[0]}".encode()).digest()

    for group in sorted((group for group in groups if group[0] not in result), key=order):
        fits = [split for split in shares if room[split] >= len(group)]
        stratum = strata[group[0]]
        best = max(fits, key=lambda split: lack[stratum, split]) if fits else max(shares, key=room.get)
        for one in group:
            result[one] = best
            room[best] -= 1
            lack[strata[one], best] -= 1
    return result
