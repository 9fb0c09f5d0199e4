"""Diversity: how varied the generated set is; the floors are the same figures of the real set.

The intervals are for other sets of the same size (see quality.py).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from evaluation.figures import Figure, Measured, fill, measure
from evaluation.intervals import Estimate, Z, around, resample_surplus, wilson
from evaluation.kernels import blocks, squared_distances
from evaluation.metrics import as_features, as_pair, describe_lack, near_pairs, nearest, normalise, require, vendi_score
from evaluation.quality import SUBSETS, check_sizes, take

LEAST = 20  # images
NEAR = 0.01  # nearer than this share of the real images are to their own nearest neighbour: suspected
FIGURES = (
    Figure("vendi", "diversity", "Vendi score", "near floor"),
    Figure("mean_distance", "diversity", "Mean pairwise distance", "near floor"),
    Figure("near_duplicates", "diversity", "Near-duplicates inside the set", "lower", "%"),
)
OF_ONE_SET = FIGURES[:2]
HOW = {
    "vendi": "effective number of different images, by the cosine of features",
    "mean_distance": "of the features of two images of the set",
    "near_duplicates": "share with another image of the set closer than the closest 1 % of the real ones (so 1 % of "
    "those are)",
}


def judge_diversity(
    encoder: str, real: np.ndarray | None, generated: np.ndarray, resamples: int, seed: int
) -> list[Figure]:
    """Vendi score, mean distance and near-duplicates of one encoder's features; without real ones, what needs none."""
    if real is None or len(real) < LEAST:  # then there is no floor
        found = fill(OF_ONE_SET, lambda: measure_variety(generated, resamples, seed))
        lack = describe_lack(0 if real is None else len(real), LEAST, "real image")
        found += [FIGURES[2].refuse(lack)] if real is not None else []
        return [one.of(encoder, HOW[one.id]) for one in found]
    found = fill(FIGURES, lambda: list(compare_diversity(real, generated, resamples, seed).values()))
    return [one.of(encoder, f"{HOW[one.id]}; the floor is the real set's own") for one in found]


def vendi_influence(features: np.ndarray) -> np.ndarray:
    """What each item adds to the logarithm of the Vendi score, times n, to first order: x log(K) x, centred."""
    n, d = features.shape
    if n <= d:
        values, vectors = np.linalg.eigh(features @ features.T / n)
        weights = n * vectors**2 * values.clip(0)
    else:
        values, vectors = np.linalg.eigh(features.T @ features / n)
        weights = (features @ vectors) ** 2
    influence = -weights @ np.log(values.clip(1e-300))
    return influence - influence.mean()


def mean_distances(features: np.ndarray) -> np.ndarray:
    """Every item's mean distance to the others."""
    n = len(features)
    sums = [np.sqrt(squared_distances(features[block], features)).sum(1) for block in blocks(n, n)]
    return np.concatenate(sums) / (n - 1)


def estimate_vendi(features: np.ndarray, n: int, resamples: int, rng: np.random.Generator) -> Estimate:
    """The Vendi score of features of length 1, at n items."""
    repeats = 1 if len(features) == n else SUBSETS
    value = np.mean([np.log(vendi_score(take(features, n, rng))) for _ in range(repeats)])
    errors = resample_surplus(len(features), resamples, rng) @ vendi_influence(features) / len(features)
    return Estimate(*np.exp(around(float(value), errors)).clip(1, n).tolist())


def estimate_distance(features: np.ndarray, resamples: int, rng: np.random.Generator) -> Estimate:
    means = mean_distances(features)
    errors = resample_surplus(len(features), resamples, rng) @ (2 * (means - means.mean())) / len(features)
    return around(means.mean(), errors)


def estimate_near(features: np.ndarray, threshold: float) -> Estimate:
    """The share of items that have another of the set within the threshold; the interval from leaving one out."""
    n = len(features)
    partners: list[list[int]] = [[] for _ in range(n)]
    for i, j in near_pairs(features, threshold):
        partners[i].append(j)
        partners[j].append(i)
    count = sum(map(bool, partners))
    without = [count - bool(mine) - sum(len(partners[j]) == 1 for j in mine) for mine in partners]
    half = Z * np.sqrt((n - 1) * np.var(np.array(without) / (n - 1)))
    share, low, high = wilson(count, n)  # where none or all are near, leaving one out shows no variance
    return Estimate(share, max(0.0, min(low, share - half)), min(1.0, max(high, share + half)))


def measure_variety(generated: ArrayLike, resamples: int, seed: int) -> list[Measured]:
    """Vendi score and mean pairwise distance of one set alone."""
    generated = as_features(generated, what="generated features")
    require(len(generated), LEAST, "generated image")
    rng, n = np.random.default_rng(seed), len(generated)
    vendi = estimate_vendi(normalise(generated, "generated features"), n, resamples, rng)
    return [measure(one, n) for one in (vendi, estimate_distance(generated, resamples, rng))]


def compare_diversity(
    real: ArrayLike, generated: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict[str, Measured]:
    """Vendi score (of the cosine), mean pairwise distance and share of near-duplicates; floor: of the real set.

    Vendi score and near-duplicates are computed at the smaller n. Near means: as close as 1 % of the real images
    are to their own nearest neighbour.
    """
    real, generated = as_pair(real, generated)
    n, rng = check_sizes(LEAST, real, generated), np.random.default_rng(seed)
    equal = take(real, n, rng), take(generated, n, rng)
    threshold = float(np.quantile(nearest(equal[0]).distances, NEAR))
    units = normalise(real, "real features"), normalise(generated, "generated features")
    found = {
        "vendi": [estimate_vendi(unit, n, resamples, rng) for unit in units],
        "mean_distance": [estimate_distance(features, resamples, rng) for features in (real, generated)],
        "near_duplicates": [estimate_near(features, threshold) for features in equal],
    }
    sizes = {"n_real": len(real), "n_generated": len(generated)}
    results = {name: measure(other, n, measure(own), **sizes) for name, (own, other) in found.items()}
    results["near_duplicates"] = replace(results["near_duplicates"], threshold=threshold)
    return results
