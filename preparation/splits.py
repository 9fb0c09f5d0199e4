"""Which product goes to which split: exact counts, look-alikes together, and no product moves to another split.

Largest remainders fix how many images each split gets; then each new group goes where its stratum is short of most.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

from preparation.look_alikes import group_linked
from utils.catalogue import Product, Rejected, reject_product
from utils.dataset import SPLITS

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class SplitRules:
    ratio: dict[str, float]  # {split: share}, in any unit
    stratify_by: list[str]  # columns
    min_stratum: int  # values with fewer products are pooled
    seed: int
    drop_duplicates: bool


@dataclass(frozen=True)
class Placement:
    splits: dict[str, str]  # {id: split} of the products that are in the dataset
    rejected: list[Rejected]
    saved: dict[str, str]  # {id: split} of every product that ever had a place


def place_products(
    products: list[Product], pairs: list[tuple[str, str]], kept: dict[str, str], rules: SplitRules
) -> Placement:
    """The split of each product, and those left out as look-alikes; `kept` are the places of an earlier dataset."""
    by_id = {one.id: one for one in products}
    conflicts = settle_conflicts(list(by_id), pairs, kept)
    rejected = [reject_product(by_id[one], "near duplicate across splits", why) for one, why in conflicts.items()]
    ids = [one for one in by_id if one not in conflicts]
    groups = group_linked(ids, [pair for pair in pairs if conflicts.keys().isdisjoint(pair)])
    twins: dict[str, str] = {}
    if rules.drop_duplicates:
        groups = [sorted(group, key=lambda one: one not in kept) for group in groups]  # the one that was there stays
        twins = {twin: group[0] for group in groups for twin in group[1:]}
        for twin, first in twins.items():
            detail = f"of {first}; --no-drop_duplicates keeps both"
            rejected.append(reject_product(by_id[twin], "near duplicate", detail))
        groups = [group[:1] for group in groups]
    members = [one for one in ids if one not in twins]
    values = [tuple(by_id[one].attributes.get(column) for column in rules.stratify_by) for one in members]
    strata = dict(zip(members, pool_rare(values, rules.min_stratum)))
    places = assign_splits(groups, strata, rules.ratio, rules.seed, kept)
    of_twins = {twin: places[first] for twin, first in twins.items()}
    saved = dict(sorted((kept | places | of_twins).items()))
    return Placement({one: places[one] for one in members}, rejected, saved)


def apportion(total: int, shares: dict[Key, float]) -> dict[Key, int]:
    """Whole numbers that add up to `total` in these shares, by largest remainders."""
    weight = sum(shares.values())
    exact = {key: total * share / weight for key, share in shares.items()}
    counts = {key: math.floor(value + 1e-9) for key, value in exact.items()}
    # In whole billionths, so that 426.75 and 426.75000000000006 are a tie, which the order of the keys decides.
    by_remainder = sorted(counts, key=lambda key: -round((exact[key] - counts[key]) * 1e9))
    for key in by_remainder[: total - sum(counts.values())]:
        counts[key] += 1
    return counts


def pool_rare(values: list[tuple[str | None, ...]], least: int) -> list[str]:
    """A stratum's name for each product; values that occur less than `least` times are pooled as "Other"."""
    names = [" / ".join(part or "(none)" for part in value) for value in values]
    counts = Counter(names)
    return [name if counts[name] >= least else "Other" for name in names]


def settle_conflicts(ids: list[str], pairs: list[tuple[str, str]], kept: dict[str, str]) -> dict[str, str]:
    """{id to leave out: why}, so that no look-alikes are in two splits and no product that has a place moves.

    Old ones in different splits (the threshold was changed): those in test stay, else those in val, and the others go.
    New ones whose look-alikes have places in different splits are left out with all of their group.
    """
    out: dict[str, str] = {}
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
    """{id: split}. Old ids keep theirs; new ones fill up to the exact counts, in every stratum as near as possible.

    A group goes to the split of its old member, if any. The others come largest first, then in the order of a hash of
    (seed, their first id), each to the split that its stratum is short of most and that has room for the group.
    """
    result = {one: kept[one] for group in groups for one in group if one in kept}
    for group in groups:
        if place := next((result[one] for one in group if one in result), None):
            result |= dict.fromkeys(group, place)
    room = apportion(sum(map(len, groups)), shares)
    sizes = Counter(strata[one] for group in groups for one in group)
    short = {(name, split): sizes[name] * shares[split] / sum(shares.values()) for name in sizes for split in shares}
    for one, split in result.items():
        room[split] -= 1
        short[strata[one], split] -= 1

    def order(group: list[str]) -> tuple[int, bytes]:
        return -len(group), hashlib.sha256(f"{seed}/{group[0]}".encode()).digest()

    for group in sorted((group for group in groups if group[0] not in result), key=order):
        fits = [split for split in shares if room[split] >= len(group)]
        stratum = strata[group[0]]
        best = max(fits, key=lambda split: short[stratum, split]) if fits else max(shares, key=room.__getitem__)
        for one in group:
            result[one] = best
            room[best] -= 1
            short[strata[one], best] -= 1
    return result
