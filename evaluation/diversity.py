"""How varied a set is, and how new: figures of one set, with the real photos' own beside them.

The intervals are for other sets of the same size (see utils/comparison.py); those of novelty are for other generated
images beside the same training photos.
"""

import numpy as np

from evaluation import metrics
from evaluation.comparison import MINIMUM, SUBSETS, require_enough, take
from evaluation.intervals import Z, around, resample_surplus, wilson
from evaluation.kernels import blocks, squared_distances
from evaluation.metrics import as_features, as_pair, near_pairs, nearest, normalise

NEAR = 0.01  # closer than this share of the real photos are to their own nearest neighbour: suspect


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


def vendi_estimate(features: np.ndarray, n: int, resamples: int, rng: np.random.Generator) -> tuple:
    repeats = 1 if len(features) == n else SUBSETS
    value = np.mean([np.log(metrics.vendi_score(take(features, n, rng))) for _ in range(repeats)])
    errors = resample_surplus(len(features), resamples, rng) @ vendi_influence(features) / len(features)
    return tuple(np.exp(around(value, errors)).clip(1, n).tolist())


def distance_estimate(features: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple:
    means = mean_distances(features)
    errors = resample_surplus(len(features), resamples, rng) @ (2 * (means - means.mean())) / len(features)
    return around(means.mean(), errors)


def near_estimate(features: np.ndarray, threshold: float) -> tuple:
    """The share of items that have another of the set within the threshold; the interval from leaving one out."""
    n, pairs = len(features), near_pairs(features, threshold)
    partners = [[] for _ in range(n)]
    for i, j in pairs:
        partners[i].append(j)
        partners[j].append(i)
    count = sum(map(bool, partners))
    without = [count - bool(mine) - sum(len(partners[j]) == 1 for j in mine) for mine in partners]
    error = np.sqrt((n - 1) * np.var(np.array(without) / (n - 1)))
    share, low, high = wilson(count, n)  # where none or all are, leaving one out tells nothing
    half = Z * error
    return share, max(0.0, min(low, share - half)), min(1.0, max(high, share + half))


def compare_diversity(real, generated, resamples: int = 1000, seed: int = 0) -> dict[str, dict]:
    """Vendi score (cosine), mean pairwise distance and share of near duplicates, and the real set's: `real`.

    Vendi is computed at the smaller n. Near duplicates too, and near is what 1 % of the real photos are to their own
    nearest neighbour.
    """
    real, generated = as_pair(real, generated)
    n, rng = require_enough("vendi", real, generated), np.random.default_rng(seed)
    equal = take(real, n, rng), take(generated, n, rng)
    threshold = float(np.quantile(nearest(equal[0])[0], NEAR))
    units = normalise(real, "real features"), normalise(generated, "generated features")
    found = {
        "vendi": [vendi_estimate(unit, n, resamples, rng) for unit in units],
        "mean_distance": [distance_estimate(features, resamples, rng) for features in (real, generated)],
        "near_duplicates": [near_estimate(features, threshold) for features in equal],
    }
    results = {}
    for name, estimates in found.items():
        own, other = ({"value": one[0], "low": one[1], "high": one[2]} for one in estimates)
        results[name] = other | {"n": n, "n_real": len(real), "n_generated": len(generated), "real": own}
    results["near_duplicates"]["threshold"] = threshold
    return results


def share(hits: np.ndarray, scale: float = 1.0) -> dict:
    return {key: scale * value for key, value in zip(("value", "low", "high"), wilson(int(hits.sum()), len(hits)))}


def compare_novelty(train, test, generated) -> dict[str, dict]:
    """AuthPct and the share of suspected copies, and the same of the test photos (`real`), which are no copies.

    Suspected is what lies nearer to a training photo than all but 1 % of the test photos do; `nearest` lists
    (generated item, its training item, distance) of all of them, nearest first.
    """
    train, generated = as_pair(train, generated)
    test = as_features(test, what="test features")
    for what, features in (("training", train), ("test", test), ("generated", generated)):
        metrics.require(len(features), MINIMUM["novelty"], f"novelty, {what} images")
    distances, which = (column[:, 0] for column in nearest(generated, train))
    calibration = nearest(test, train)[0][:, 0]
    threshold = float(np.quantile(calibration, NEAR))
    found = {
        "auth_pct": [share(metrics.authentic(train, features), 100) for features in (test, generated)],
        "copies": [share(one < threshold) for one in (calibration, distances)],
    }
    sizes = {"n": len(generated), "n_train": len(train), "n_test": len(test)}
    results = {name: own | sizes | {"real": real} for name, (real, own) in found.items()}
    results["copies"] |= {
        "threshold": threshold,
        "nearest": [(int(i), int(which[i]), float(distances[i])) for i in distances.argsort(kind="stable")],
    }
    return results
