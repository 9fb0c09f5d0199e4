"""Look-alikes: images that people see as one photo, found by their hash and colours."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from preparation.records import ImageFacts

COLOUR_LIMIT = 3.0  # levels of 255, mean over 16x16 places: the same shoe in another colour differs by more
BEYOND = (12, 2.0)  # bits and levels over the limits: pairs that help to choose the limits


class Pair(NamedTuple):
    first: str
    second: str
    bits: int  # of 256 that differ
    colour: float  # mean difference, in levels


@dataclass(frozen=True)
class LookAlikes:
    bits: int  # the limits
    colour: float
    pairs: list[Pair]
    beyond: list[Pair]  # the nearest that do not count as one photo
    groups: list[list[str]]


def find_look_alikes(images: dict[str, ImageFacts], bits: int) -> LookAlikes:
    """The pairs within the limits, those a little beyond, and the groups that the pairs make."""
    found: list[Pair] = []
    if len(images) > 1:
        ids = list(images)
        near = near_pairs(*stack_looks(images), bits + BEYOND[0], COLOUR_LIMIT + BEYOND[1])
        found = [Pair(ids[i], ids[j], distance, colour) for i, j, distance, colour in near]
    pairs = [pair for pair in found if pair.bits <= bits and pair.colour <= COLOUR_LIMIT]
    beyond = [pair for pair in found if pair.bits > bits or pair.colour > COLOUR_LIMIT]
    linked = sorted({one for pair in pairs for one in pair[:2]})
    return LookAlikes(bits, COLOUR_LIMIT, pairs, beyond[:40], group_linked(linked, [pair[:2] for pair in pairs]))


def stack_looks(images: dict[str, ImageFacts]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes and the thumbs of all images, as rows."""
    facts = images.values()
    return np.stack([one.hash for one in facts]), np.stack([one.thumb for one in facts])


def near_pairs(hashes: np.ndarray, thumbs: np.ndarray, bits: int, colour: float) -> list[tuple[int, int, int, float]]:
    """(i, j, bits that differ, mean difference in colour) of the pairs within both limits, the nearest first.

    Of identical ones only the first is compared with others, and the rest are paired with it: a placeholder that stands
    in for thousands of missing photos would make millions of pairs.
    """
    first: dict[tuple[bytes, bytes], int] = {}
    pairs = []
    for index, key in enumerate(zip(map(bytes, hashes), map(bytes, thumbs))):
        if first.setdefault(key, index) != index:
            pairs.append((first[key], index, 0, 0.0))
    unlike = np.array(list(first.values()), dtype=np.intp)
    codes = hashes[unlike]
    for start in range(0, len(codes), 64):  # in blocks: all pairs at once would need gigabytes
        block = codes[start : start + 64, None] ^ codes[None, start:]
        distance = np.bitwise_count(block).sum(2, dtype=np.uint16)
        for row, column in zip(*np.nonzero(distance <= bits)):
            if row < column:
                i, j = int(unlike[start + row]), int(unlike[start + column])
                apart = float(np.abs(thumbs[i].astype(np.int16) - thumbs[j]).mean())
                if apart <= colour:
                    pairs.append((i, j, int(distance[row, column]), round(apart, 2)))
    return sorted(pairs, key=lambda pair: (pair[2], pair[3], pair[:2]))


def group_linked(ids: list[str], pairs: list[tuple[str, str]]) -> list[list[str]]:
    """The ids in groups, the two of a pair always in one; groups and members in the order of `ids`."""
    from scipy.sparse import coo_array  # here: the workers of --verify, which import this module, need neither
    from scipy.sparse.csgraph import connected_components

    place = {one: i for i, one in enumerate(ids)}
    rows, columns = ([place[pair[end]] for pair in pairs] for end in (0, 1))
    links = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(ids), len(ids)))
    groups: dict[int, list[str]] = {}
    for one, number in zip(ids, connected_components(links, directed=False)[1].tolist()):
        groups.setdefault(number, []).append(one)
    return list(groups.values())
