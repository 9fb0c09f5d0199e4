"""Precision, recall, density and coverage of half-samples, from tables of neighbours that are computed once.

An item taken twice would be its own nearest neighbour and shrink its ball, so these figures allow no bootstrap. Those
of half-samples without replacement vary around their own mean as those of full samples do.
"""

from typing import NamedTuple

import numpy as np

from evaluation.kernels import blocks, squared_distances
from evaluation.metrics import Neighbours, Prdc, nearest

DEPTH = 6  # neighbours known, times k: of a half-sample, fewer than k are among them once in some 30,000 times
WORK = 400_000_000  # pairs looked at in all: where most of a set is in most balls, there are fewer half-samples
FEWEST = 100


class Pairs(NamedTuple):
    """Points that lie in the ball of an owner: their places, and the distance."""

    owner: np.ndarray
    point: np.ndarray
    distance: np.ndarray


class HalfSamples(NamedTuple):
    whole: Prdc  # of both sets
    samples: np.ndarray  # a row of the four scores for each pair of half-samples
    floor: np.ndarray  # for each pair of halves of the real set


def find_pairs(owners: np.ndarray, points: np.ndarray, reach: np.ndarray) -> Pairs:
    """Every point that is nearer to an owner than the owner's reach."""
    found = []
    for block in blocks(len(owners), len(points)):
        distances = np.sqrt(squared_distances(owners[block], points))
        rows, columns = np.nonzero(distances < reach[block, None])
        found.append((rows + block.start, columns, distances[rows, columns]))
    return Pairs(*(np.concatenate(parts) for parts in zip(*found)))


def table_pairs(table: Neighbours) -> Pairs:
    """Every item with its neighbours in its own set."""
    n, k = table.which.shape
    return Pairs(np.repeat(np.arange(n), k), table.which.ravel(), table.distances.ravel())


def radii(table: Neighbours, inside: np.ndarray, k: int) -> np.ndarray:
    """Every item's distance to its k-th nearest of those that are in the subset."""
    reached = np.cumsum(inside[table.which], axis=1) >= k
    reached[:, -1] = True
    return table.distances[np.arange(len(reached)), reached.argmax(1)]


def count_hits(
    pairs: Pairs, radius: np.ndarray, owners_in: np.ndarray, points_in: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each point of the subset in how many of its balls it is; for each ball how many points it has."""
    kept = (pairs.distance < radius[pairs.owner]) & owners_in[pairs.owner] & points_in[pairs.point]
    by_point = np.bincount(pairs.point[kept], minlength=len(points_in))[points_in]
    return by_point, np.bincount(pairs.owner[kept], minlength=len(owners_in))[owners_in]


class Balls(NamedTuple):
    """A set's neighbours among themselves, and the items of the other set that are in its balls."""

    table: Neighbours
    pairs: Pairs


def score(real: Balls, generated: Balls, real_in: np.ndarray, generated_in: np.ndarray, k: int) -> Prdc:
    """The scores of two subsets."""
    balls, covered = count_hits(real.pairs, radii(real.table, real_in, k), real_in, generated_in)
    recalled, _ = count_hits(generated.pairs, radii(generated.table, generated_in, k), generated_in, real_in)
    return Prdc((balls > 0).mean(), (recalled > 0).mean(), balls.mean() / k, (covered > 0).mean())


def choose(n: int, part: np.ndarray) -> np.ndarray:
    mask = np.zeros(n, bool)
    mask[part] = True
    return mask


def half_samples(
    real: np.ndarray, generated: np.ndarray, k: int, count: int, splits: int, rng: np.random.Generator
) -> HalfSamples:
    """`count` pairs of half-samples of two sets of equal size, and `splits` pairs of halves of the real set."""
    n, half, everything = len(real), len(real) // 2, np.ones(len(real), bool)
    tables = [nearest(features, k=min(DEPTH * k, n - 1)) for features in (real, generated)]
    one = Balls(tables[0], find_pairs(real, generated, tables[0].distances[:, -1]))
    other = Balls(tables[1], find_pairs(generated, real, tables[1].distances[:, -1]))
    work = len(one.pairs.owner) + len(other.pairs.owner)
    samples = []
    for _ in range(min(count, max(FEWEST, WORK // max(1, work)))):
        real_in, generated_in = choose(n, rng.permutation(n)[:half]), choose(n, rng.permutation(n)[:half])
        samples.append(score(one, other, real_in, generated_in, k))
    own, floor = Balls(tables[0], table_pairs(tables[0])), []
    for _ in range(splits):
        order = rng.permutation(n)
        floor.append(score(own, own, choose(n, order[:half]), choose(n, order[half : 2 * half]), k))
    return HalfSamples(score(one, other, everything, everything, k), np.array(samples), np.array(floor))
