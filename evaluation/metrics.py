"""Distances and scores of features: pure functions of arrays, computed in float64; docs/metrics.md describes each.

What is undefined is refused here; whether there are images enough for a figure to mean something is checked in
quality.py, diversity.py and novelty.py, which add intervals and floors. No more than a few rows of a distance matrix
are held at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evaluation.kernels import blocks, squared_distances
from utils.cli import UserError, counted, name_some


def as_features(features: ArrayLike, names: Sequence[object] | None = None, what: str = "features") -> np.ndarray:
    """One row per item, in float64; a row that is not finite is refused by its name."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(f"{what}: expected a table of items by dimensions, found shape {features.shape}")
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        shown = name_some([str(names[i]) if names is not None else f"item {i}" for i in bad.tolist()], 3)
        raise UserError(f"{what}: not a number in those of {shown}; leave it out, or run the encoder in float32")
    return features


def as_pair(real: ArrayLike, generated: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    real, generated = as_features(real, what="real features"), as_features(generated, what="generated features")
    if real.shape[1] != generated.shape[1]:
        raise UserError(
            f"real features have {real.shape[1]} dimensions, generated {generated.shape[1]}; use one encoder for both"
        )
    return real, generated


def describe_lack(count: int, least: int, what: str) -> str:
    """Why a figure has no value, for a `what` such as `real image`; empty where there are enough."""
    return f"needs at least {counted(least, what)}, found {count:,}" if count < least else ""


def require(count: int, least: int, what: str) -> None:
    if lack := describe_lack(count, least, what):
        raise UserError(lack)


def normalise(features: np.ndarray, what: str = "features") -> np.ndarray:
    """Every row at length 1; a row of zeros is refused."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    if not length.all():
        raise UserError(f"{what}: item {int(np.argmin(length))} is all zeros and has no direction; check the encoder")
    return features / length


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """|Δμ|² + tr A + tr B − 2 tr √(AB) of the sets' means and covariances A, B (Heusel et al. 2017, arXiv 1706.08500).

    With the centred features Xc = Q R, tr √(AB) is the sum of the singular values of R_real R_generatedᵀ: no covariance
    is computed and nothing is squared, so that n may be below d.
    """
    real, generated = as_pair(real, generated)
    total, triangles = 0.0, []
    for features in (real, generated):
        require(len(features), 2, "item")
        centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
        total += (centred**2).sum()
        triangles.append(np.asarray(np.linalg.qr(centred, mode="r")))
    shift = real.mean(0) - generated.mean(0)
    cross = np.linalg.svd(triangles[0] @ triangles[1].T, compute_uv=False).sum()
    return float(max(0.0, shift @ shift + total - 2 * cross))


class Neighbours(NamedTuple):
    """The k nearest of each item, the nearest first: (items, k) each."""

    distances: np.ndarray
    which: np.ndarray


def nearest(queries: ArrayLike, base: ArrayLike | None = None, k: int = 1) -> Neighbours:
    """The k nearest of `base` to each query; without `base`, among each other.

    scikit-learn's brute force gives two equal items a distance above 0, by rounding; here copies are at exactly 0.
    """
    queries = as_features(queries)
    others = queries if base is None else as_features(base)
    require(len(others) - (base is None), k, "other item")
    distances, which = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for block in blocks(len(queries), len(others)):
        part = squared_distances(queries[block], others)
        if base is None:
            part[np.arange(len(part)), np.arange(block.start, block.stop)] = np.inf
        near = np.argpartition(part, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(near, np.take_along_axis(part, near, 1).argsort(1, kind="stable"), 1)
        which[block], distances[block] = near, np.sqrt(np.take_along_axis(part, near, 1))
    return Neighbours(distances, which)


class Prdc(NamedTuple):
    """The names are the figures' ids."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: ArrayLike, generated: ArrayLike, k: int = 5) -> Prdc:
    """Each item's ball reaches to the k-th nearest neighbour in its own set.

    Precision: the share of generated items in a real ball; recall: of real items in a generated ball (Kynkäänniemi et
    al. 2019, arXiv 1904.06991). Density: real balls that hold a generated item, over k; coverage: the share of real
    balls that hold a generated item (Naeem et al. 2020, arXiv 2002.09797).
    """
    real, generated = as_pair(real, generated)
    require(min(len(real), len(generated)), k + 1, "item")
    real_radius, generated_radius = nearest(real, k=k).distances[:, -1], nearest(generated, k=k).distances[:, -1]
    balls, covered, recalled = np.zeros(len(generated)), 0, 0
    for block in blocks(len(real), len(generated)):
        distances = np.sqrt(squared_distances(real[block], generated))
        inside = distances < real_radius[block, None]
        balls += inside.sum(0)
        covered += inside.any(1).sum()
        recalled += (distances < generated_radius).any(1).sum()
    shares = ((balls > 0).mean(), recalled / len(real), balls.mean() / k, covered / len(real))
    return Prdc(*map(float, shares))


def authentic(train: ArrayLike, generated: ArrayLike) -> np.ndarray:
    """For each generated item, whether its nearest training item is nearer to another training item than to it.

    Authenticity of Alaa et al. (2022, arXiv 2102.08921); its share is the AuthPct of Stein et al. (2023, arXiv
    2306.04675).
    """
    train, generated = as_pair(train, generated)
    require(len(train), 2, "item")
    found = nearest(generated, train)
    return nearest(train).distances[found.which[:, 0], 0] < found.distances[:, 0]


def vendi_of_kernel(kernel: ArrayLike) -> float:
    """exp of the entropy of the eigenvalues of K/n, with K's diagonal 1 (Friedman & Dieng 2022, arXiv 2210.02410)."""
    kernel = np.asarray(kernel, np.float64)
    values = np.linalg.eigvalsh(kernel / len(kernel)).clip(0)
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def vendi_score(features: ArrayLike) -> float:
    """With the cosine as similarity; from the smaller of the n × n and the d × d matrix, whose eigenvalues agree."""
    features = normalise(as_features(features))
    n, d = features.shape
    return vendi_of_kernel(features @ features.T) if n <= d else vendi_of_kernel(features.T @ features * (d / n))


def near_pairs(features: ArrayLike, threshold: float) -> list[tuple[int, int]]:
    """Pairs of items of one set that are at most `threshold` apart."""
    features = as_features(features)
    pairs = []
    for block in blocks(len(features), len(features)):
        rows, columns = np.nonzero(squared_distances(features[block], features) <= threshold**2)
        pairs += [(int(i), int(j)) for i, j in zip(rows + block.start, columns) if i < j]
    return pairs
