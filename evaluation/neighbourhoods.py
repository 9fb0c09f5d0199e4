"""Precision, recall, density and coverage of half-samples, from tables of neighbours that are made once.

An item drawn twice would be its own nearest neighbour and shrink its ball, so these figures allow no bootstrap. Of
half-samples without replacement they spread, around their own mean, as the full sample's do from draw to draw.
"""

import numpy as np

from evaluation.kernels import blocks, squared_distances
from evaluation.metrics import nearest

NAMES = ("precision", "recall", "density", "coverage")
DEPTH = 6  # neighbours known, times k: of a half-sample, fewer than k are among them once in some 30,000 times
WORK = 400_000_000  # pairs looked at in all: where most of a set is in most balls, there are fewer half-samples
FEWEST = 100


def neighbour_table(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return nearest(features, k=min(DEPTH * k, len(features) - 1))


def pairs_within(owners: np.ndarray, points: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, ...]:
    """(owner, point, distance) of every point that is nearer to an owner than the owner's reach."""
    found = []
    for block in blocks(len(owners), len(points)):
        distances = np.sqrt(squared_distances(owners[block], points))
        rows, columns = np.nonzero(distances < reach[block, None])
        found.append((rows + block.start, columns, distances[rows, columns]))
    return tuple(np.concatenate(parts) for parts in zip(*found))


def table_pairs(table: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    distances, which = table
    return np.repeat(np.arange(len(which)), which.shape[1]), which.ravel(), distances.ravel()


def radii(table: tuple[np.ndarray, np.ndarray], inside: np.ndarray, k: int) -> np.ndarray:
    """Every item's distance to its k-th nearest of those that are in the subset."""
    distances, which = table
    reached = np.cumsum(inside[which], axis=1) >= k
    reached[:, -1] = True
    return distances[np.arange(len(distances)), reached.argmax(1)]


def hits(pairs: tuple, radius: np.ndarray, owners_in: np.ndarray, points_in: np.ndarray) -> tuple:
    """For each point of the subset, how many of the subset's balls it is in; for each ball, how many points it has."""
    owner, point, distance = pairs
    kept = (distance < radius[owner]) & owners_in[owner] & points_in[point]
    by_point = np.bincount(point[kept], minlength=len(points_in))[points_in]
    return by_point, np.bincount(owner[kept], minlength=len(owners_in))[owners_in]


def scores(real_table, generated_table, real_pairs, generated_pairs, real_in, generated_in, k: int) -> list[float]:
    """Precision, recall, density, coverage of two subsets; `pairs` are those in the balls of either's items."""
    balls, covered = hits(real_pairs, radii(real_table, real_in, k), real_in, generated_in)
    recalled, _ = hits(generated_pairs, radii(generated_table, generated_in, k), generated_in, real_in)
    return [(balls > 0).mean(), (recalled > 0).mean(), balls.mean() / k, (covered > 0).mean()]


def choose(n: int, *parts: np.ndarray) -> list[np.ndarray]:
    """A mask over n items for each list of them."""
    masks = np.zeros((len(parts), n), bool)
    for mask, part in zip(masks, parts):
        mask[part] = True
    return list(masks)


def half_samples(
    real: np.ndarray, generated: np.ndarray, k: int, count: int, splits: int, rng: np.random.Generator
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Scores of two sets of equal size, of pairs of half-samples of them, and of two halves of the real set; by row."""
    n, half, everything = len(real), len(real) // 2, np.ones(len(real), bool)
    tables = neighbour_table(real, k), neighbour_table(generated, k)
    pairs = (
        pairs_within(real, generated, tables[0][0][:, -1]),
        pairs_within(generated, real, tables[1][0][:, -1]),
    )
    work = sum(len(part[0]) for part in pairs)
    count = min(count, max(FEWEST, WORK // max(1, work)))
    values = []
    for _ in range(count):
        real_in, generated_in = choose(n, rng.permutation(n)[:half], rng.permutation(n)[:half])
        values.append(scores(*tables, *pairs, real_in, generated_in, k))
    own, floor = table_pairs(tables[0]), []
    for _ in range(splits):
        order = rng.permutation(n)
        one, other = choose(n, order[:half], order[half : 2 * half])
        floor.append(scores(tables[0], tables[0], own, own, one, other, k))
    return scores(*tables, *pairs, everything, everything, k), np.array(values), np.array(floor)
