"""Distances and scores from features and predictions: pure functions of arrays or tensors, computed in float64.

What is undefined is refused here; whether there are images enough for a figure to mean something is asked in
`utils/comparison.py`, which puts intervals and floors beside these values. No more than a few rows of a kernel or
distance matrix are held at a time.
"""

from collections.abc import Sequence

import numpy as np

from evaluation.kernels import blocks, gaussian_kernel, mmd, polynomial_kernel, squared_distances
from utils.cli import UserError, counted

CMMD_SCALE = 1000  # as published


def as_features(features, names: Sequence[str] | None = None, what: str = "features") -> np.ndarray:
    """One row per item, in float64; a row that is not finite is refused by its name."""
    if hasattr(features, "detach"):
        features = features.detach().cpu().double().numpy()
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(f"{what}: expected a table of items by dimensions, found shape {features.shape}")
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        shown = ", ".join(str(names[i]) if names is not None else f"item {i}" for i in bad[:3])
        more = f" and {len(bad) - 3:,} more" if len(bad) > 3 else ""
        raise UserError(f"{what}: not a number in those of {shown}{more}; leave it out, or run the encoder in float32")
    return features


def as_pair(real, generated) -> tuple[np.ndarray, np.ndarray]:
    real, generated = as_features(real, what="real features"), as_features(generated, what="generated features")
    if real.shape[1] != generated.shape[1]:
        raise UserError(
            f"real features have {real.shape[1]} dimensions, generated {generated.shape[1]}; use one encoder for both"
        )
    return real, generated


def require(count: int, least: int, what: str) -> None:
    if count < least:
        raise UserError(f"{what}: needs at least {counted(least, 'item')}, found {count:,}")


def normalise(features: np.ndarray, what: str = "features") -> np.ndarray:
    """Every row at length 1."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    if not length.all():
        raise UserError(f"{what}: item {int(np.argmin(length))} is all zeros and has no direction; check the encoder")
    return features / length


# Fréchet distance


def frechet_from_moments(mean_a, covariance_a, mean_b, covariance_b) -> float:
    """|Δμ|² + tr A + tr B − 2 tr √(AB), the last as the sum of the singular values of √A √B."""

    def root(matrix):
        values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
        return vectors * np.sqrt(values.clip(0)) @ vectors.T  # rounding leaves eigenvalues just below zero

    cross = np.linalg.svd(root(covariance_a) @ root(covariance_b), compute_uv=False).sum()
    shift = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    return float(max(0.0, shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross))


def frechet_distance(real, generated) -> float:
    """Between the Gaussians that have the sets' means and covariances (of n − 1); also where n is below d.

    Xc = Q R, so that tr √(AB) is the sum of the singular values of Rx Ryᵀ: no covariance, and nothing squared.
    """
    real, generated = as_pair(real, generated)
    total, triangles = 0.0, []
    for features in (real, generated):
        require(len(features), 2, "Fréchet distance")
        centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
        total += (centred**2).sum()
        triangles.append(np.linalg.qr(centred, mode="r"))
    shift = real.mean(0) - generated.mean(0)
    cross = np.linalg.svd(triangles[0] @ triangles[1].T, compute_uv=False).sum()
    return float(max(0.0, shift @ shift + total - 2 * cross))


# Kernel distances


def kid(real, generated) -> float:
    """Kernel distance, (x·y/d + 1)³, unbiased, over all pairs; may be below zero where there is no difference."""
    real, generated = as_pair(real, generated)
    require(min(len(real), len(generated)), 2, "KID")
    return mmd(real, generated, polynomial_kernel, biased=False)


def cmmd(real, generated) -> float:
    """1000 times the squared MMD of embeddings at length 1, Gaussian kernel of σ 10, biased, as published."""
    real, generated = as_pair(real, generated)
    return CMMD_SCALE * mmd(
        normalise(real, "real features"), normalise(generated, "generated features"), gaussian_kernel, biased=True
    )


# Neighbours


def nearest(queries, base=None, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the k nearest of `base` and which they are, nearest first; without `base`, among each other."""
    queries = as_features(queries)
    others = queries if base is None else as_features(base)
    require(len(others) - (base is None), k, f"{counted(k, 'nearest neighbour')}")
    which = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k))
    for block in blocks(len(queries), len(others)):
        part = squared_distances(queries[block], others)
        if base is None:
            part[np.arange(len(part)), np.arange(block.start, block.stop)] = np.inf
        near = np.argpartition(part, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(near, np.take_along_axis(part, near, 1).argsort(1, kind="stable"), 1)
        which[block], distances[block] = near, np.sqrt(np.take_along_axis(part, near, 1))
    return distances, which


def prdc(real, generated, k: int = 5) -> dict[str, float]:
    """Precision and recall (share of one set inside the other's balls), density and coverage of the real balls.

    A ball reaches to the k-th nearest neighbour in its own set.
    """
    real, generated = as_pair(real, generated)
    require(min(len(real), len(generated)), k + 1, f"precision and recall at k = {k}")
    real_radius, generated_radius = nearest(real, k=k)[0][:, -1], nearest(generated, k=k)[0][:, -1]
    balls, covered, recalled = np.zeros(len(generated)), 0, 0
    for block in blocks(len(real), len(generated)):
        distances = np.sqrt(squared_distances(real[block], generated))
        inside = distances < real_radius[block, None]
        balls += inside.sum(0)
        covered += inside.any(1).sum()
        recalled += (distances < generated_radius).any(1).sum()
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(recalled / len(real)),
        "density": float(balls.mean() / k),
        "coverage": float(covered / len(real)),
    }


def expected_coverage(n: int, k: int = 5) -> float:
    """Of two sets of n from one distribution."""
    i = np.arange(1, k + 1)
    return float(1 - np.prod((n - i) / (2 * n - i)))


def authentic(train, generated) -> np.ndarray:
    """For each generated item: is its nearest training item nearer to another training item than to it?"""
    train, generated = as_pair(train, generated)
    require(len(train), 2, "AuthPct")
    distances, which = nearest(generated, train)
    return nearest(train)[0][which[:, 0], 0] < distances[:, 0]


def auth_pct(train, generated) -> float:
    return float(100 * authentic(train, generated).mean())


# Diversity


def vendi_of_kernel(kernel) -> float:
    """The effective number of different items: exp of the entropy of the eigenvalues of K/n, with K's diagonal 1."""
    values = np.linalg.eigvalsh(np.asarray(kernel, np.float64) / len(kernel)).clip(0)
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def vendi_score(features) -> float:
    """With the cosine as similarity; from the smaller of the n × n and the d × d matrix, whose eigenvalues agree."""
    features = normalise(as_features(features))
    n, d = features.shape
    return vendi_of_kernel(features @ features.T) if n <= d else vendi_of_kernel(features.T @ features * (d / n))


def near_pairs(features, threshold: float) -> list[tuple[int, int]]:
    """Pairs of items of one set that are at most `threshold` apart."""
    features = as_features(features)
    pairs = []
    for block in blocks(len(features), len(features)):
        rows, columns = np.nonzero(squared_distances(features[block], features) <= threshold**2)
        pairs += [(int(i), int(j)) for i, j in zip(rows + block.start, columns) if i < j]
    return pairs
