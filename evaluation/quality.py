"""Quality: features of the generated set against those of the real set, with intervals and floors.

Resampling items with replacement and computing again would be wrong for most of these figures: duplicates are not new
images, and to a Fréchet distance or a neighbourhood they look like less variety. So the intervals come from each item's
influence on the figure (its derivative by the item's weight), computed once and bootstrapped, or from half-samples
without replacement; docs/metrics.md says which. Where the sets do not differ (by less than two standard deviations of
no difference), the influences are mere noise and make an interval √2 too wide: there the noise is taken out of them and
the quadratic part of the error put in. In simulation the intervals mostly hold the truth 93 to 97 times in 100 where
sets differ, and 95 to 100 where they do not.

All but KID have a bias that depends on n, hence the floor: the same figure for disjoint random halves of the real set
(low and high: where a new real set of that size would fall, 95 %), to be compared with the generated set's at that n,
`at_floor_n`. Of sets of unequal size, figures with such a bias are computed at the smaller n, averaged over random
subsets of the larger set.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evaluation import kernels, metrics
from evaluation.features import CLIPS
from evaluation.figures import Figure, Measured, fill, measure
from evaluation.intervals import Estimate, around, resample_surplus, student_quantile
from evaluation.metrics import Prdc, as_pair, frechet_distance, normalise
from evaluation.neighbourhoods import half_samples

# With fewer images the interval is as wide as the scale, or the halves are too small for a floor.
LEAST = {"frechet": 100} | dict.fromkeys(("kid", "cmmd", *Prdc._fields), 50)  # images of each set
FRECHET_SPLITS, FRECHET_PAIRS, SUBSETS = 12, 4, 3
MMD_SPLITS, PRDC_SPLITS = 400, 200
CMMD_SCALE = 1000  # as published
HALVES = (
    "the floor is the same figure between two halves of the real set, compared with that of as many generated images"
)
FRECHET = Figure("frechet", "quality", "Fréchet distance", "lower")
KID = Figure("kid", "quality", "KID", "lower")
CMMD = Figure("cmmd", "quality", "CMMD", "lower")
PRDC = (
    Figure("precision", "quality", "Precision", "higher", "%"),
    Figure("recall", "quality", "Recall", "higher", "%"),
    Figure("density", "quality", "Density", "near floor"),
    Figure("coverage", "quality", "Coverage", "higher", "%"),
)
FIGURES = (FRECHET, KID, CMMD, *PRDC)
HOW = {
    "frechet": "between Gaussians fitted to both sets' features; rises as n falls",
    "kid": "squared MMD of the features, cubic kernel, unbiased, over all pairs",
    "cmmd": "1000 times the squared MMD of features of length 1, Gaussian kernel of width 10",
    "precision": "share of generated images nearer to a real one than its fifth real neighbour",
    "recall": "share of real images nearer to a generated one than its fifth generated neighbour",
    "density": "number of real images that a generated one is so close to, divided by 5; 1 if the sets are alike",
    "coverage": "share of real images with a generated one nearer than their fifth real neighbour",
}


def is_defined(figure: Figure, encoder: str) -> bool:
    """CMMD is defined on CLIP's features alone."""
    return figure is not CMMD or encoder in CLIPS


def judge_quality(encoder: str, real: np.ndarray, generated: np.ndarray, resamples: int, seed: int) -> list[Figure]:
    """Fréchet distance, KID, CMMD, precision, recall, density and coverage of one encoder's features."""
    how = f"; {HALVES}"
    if len(real) != len(generated):
        how += f"; of {len(real)} real and {len(generated)} generated: at the smaller number, KID and CMMD of all"
    given = (real, generated, resamples, seed)
    found = fill([FRECHET], lambda: [compare_frechet(*given)])
    found += fill([KID], lambda: [compare_kid(*given)])
    found += fill([CMMD], lambda: [compare_cmmd(*given)]) if is_defined(CMMD, encoder) else []
    found += fill(PRDC, lambda: list(compare_prdc(*given).values()))
    return [one.of(encoder, HOW[one.id] + how) for one in found]


def check_sizes(least: int, real: np.ndarray, generated: np.ndarray) -> int:
    """The smaller n; refuses fewer than `least`."""
    metrics.require(len(real), least, "real image")
    metrics.require(len(generated), least, "generated image")
    return min(len(real), len(generated))


def spread(value: float, splits: np.ndarray) -> Estimate:
    """Where 95 % of the splits fall."""
    low, high = np.quantile(splits, [0.025, 0.975])
    return Estimate(value, low, high)


def split_halves(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(n)
    return order[: n // 2], order[n // 2 : n // 2 * 2]


def take(features: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return features if len(features) == n else features[rng.permutation(len(features))[:n]]


def frechet_influence(real: np.ndarray, generated: np.ndarray) -> list[np.ndarray]:
    """What each item of both sets adds to their Fréchet distance, times n, to first order; with mean 0.

    The derivative by a covariance A is 1 − T, where T takes A's Gaussian to the other. With Xc = Q R and the singular
    values P Σ Pᵀ of R's product, x T x is q P Σ Pᵀ q: nothing is inverted, so n may be below d.
    """
    shift = real.mean(0) - generated.mean(0)
    sets = [features - features.mean(0) for features in (real, generated)]
    factors = [np.linalg.qr(centred / np.sqrt(len(centred) - 1)) for centred in sets]
    left, values, right = np.linalg.svd(factors[0].R @ factors[1].R.T, full_matrices=False)
    influences = []
    for centred, factor, vectors, sign in zip(sets, factors, (left, right.T), (1, -1)):
        moved = 2 * sign * centred @ shift + (centred**2).sum(1)
        influence = moved - (len(centred) - 1) * (factor.Q @ vectors) ** 2 @ values
        influences.append(influence - influence.mean())
    return influences


def compare_frechet(real: ArrayLike, generated: ArrayLike, resamples: int = 1000, seed: int = 0) -> Measured:
    real, generated = as_pair(real, generated)
    n, rng = check_sizes(LEAST["frechet"], real, generated), np.random.default_rng(seed)
    repeats = 1 if len(real) == len(generated) else SUBSETS
    size = n // 2
    value = float(np.mean([frechet_distance(take(real, n, rng), take(generated, n, rng)) for _ in range(repeats)]))
    splits = []
    for _ in range(FRECHET_SPLITS):
        one, other = split_halves(len(real), rng)
        splits.append(frechet_distance(real[one[:size]], real[other[:size]]))
    pairs = [
        frechet_distance(real[rng.permutation(len(real))[:size]], generated[rng.permutation(len(generated))[:size]])
        for _ in range(FRECHET_PAIRS)
    ]
    at_floor_n, mean, error = float(np.mean(pairs)), float(np.mean(splits)), float(np.std(splits, ddof=1))
    influences = frechet_influence(real, generated)
    variance = float(sum(one.var() / len(one) for one in influences))
    shrink = 1.0
    if variance and at_floor_n < mean + 2 * error:  # no difference: what remains is quadratic, and counted twice
        quadratic = (error * min(size / n, value / at_floor_n)) ** 2  # as the floor falls with n, or faster
        shrink = np.sqrt(max(variance - quadratic, quadratic) / variance)
    errors = sum(resample_surplus(len(one), resamples, rng) @ one / len(one) for one in influences) * shrink
    reach = error * student_quantile(FRECHET_SPLITS - 1) * np.sqrt(1 + 1 / FRECHET_SPLITS)  # of one more split
    floor = measure(Estimate(mean, mean - reach, mean + reach), size)
    sizes = {"n_real": len(real), "n_generated": len(generated), "resamples": resamples}
    return measure(around(value, errors), n, floor, at_floor_n=at_floor_n, **sizes)


class MmdErrors(NamedTuple):
    """The unbiased squared MMD, a bootstrap of its error, and the mean kernel of different items of each set."""

    value: float
    errors: np.ndarray
    real_mean: float
    generated_mean: float


def mmd_errors(
    real: np.ndarray, generated: np.ndarray, kernel: kernels.Kernel, resamples: int, rng: np.random.Generator
) -> MmdErrors:
    """The MMD (Gretton et al. 2012, arXiv 0805.2368) with what an interval needs.

    With centred weights the forms below see only the double-centred kernel, so only their diagonals need centring.
    """
    sets = (real, generated)
    weights = [resample_surplus(len(features), resamples, rng) for features in sets]
    rows, columns, squares, form = kernels.kernel_sums(real, generated, kernel, *weights)
    n, m = len(real), len(generated)
    cross = rows.sum() / (n * m)
    noise_cross = (squares - (rows**2).sum() / m - (columns**2).sum() / n + n * m * cross**2) / (n * m)
    value, quadratic, means = -2 * cross, -2 * form / (n * m), []
    noisy, clean = [], []  # the linear part of the errors, and the same without the noise in the influences
    for features, weight, others in zip(sets, weights, (rows / m, columns / n)):
        n, other_n = len(features), len(real) + len(generated) - len(features)
        own, _, squares, form = kernels.kernel_sums(features, features, kernel, weight, weight)
        diagonal = kernels.kernel_diagonal(features, kernel)
        mean = own.sum() / n**2
        centred = diagonal - 2 * own / n + mean
        different = (own - diagonal) / (n - 1)
        noise = (squares - 2 * (own**2).sum() / n + n**2 * mean**2 - (centred**2).sum()) / (n * (n - 1))
        influence = 2 * (different - others)
        influence = influence - influence.mean()
        kept = 1 - 4 * (noise / (n - 1) + noise_cross / other_n) / max(influence.var(ddof=1), 1e-300)
        noisy.append(weight @ influence / n)
        clean.append(noisy[-1] * np.sqrt(max(0.0, kept)))
        quadratic = quadratic + (form - weight**2 @ centred) / (n * (n - 1))
        value += different.mean()
        means.append(float(different.mean()))
    differs = value > 2 * quadratic.std()  # then the quadratic part is in the noise already
    errors = sum(noisy) if differs else sum(clean) + quadratic
    return MmdErrors(float(value), errors, *means)


def compare_kid(real: ArrayLike, generated: ArrayLike, resamples: int = 1000, seed: int = 0) -> Measured:
    """KID without bias (Bińkowski et al. 2018, arXiv 1801.01401), from all items; values below 0 occur."""
    real, generated = as_pair(real, generated)
    check_sizes(LEAST["kid"], real, generated)
    return compare_mmd(real, generated, kernels.polynomial_kernel, resamples, np.random.default_rng(seed))


def compare_cmmd(real: ArrayLike, generated: ArrayLike, resamples: int = 1000, seed: int = 0) -> Measured:
    """CMMD: embeddings of length 1, times 1000, with the published bias (Jayasumana et al. 2024, arXiv 2401.09603).

    The unbiased value of all items is taken, and that bias, which is known, is added for the smaller n.
    """
    real, generated = as_pair(real, generated)
    check_sizes(LEAST["cmmd"], real, generated)
    real, generated = normalise(real, "real features"), normalise(generated, "generated features")
    rng = np.random.default_rng(seed)
    return compare_mmd(real, generated, kernels.gaussian_kernel, resamples, rng, CMMD_SCALE, biased=True)


def compare_mmd(
    real: np.ndarray,
    generated: np.ndarray,
    kernel: kernels.Kernel,
    resamples: int,
    rng: np.random.Generator,
    scale: float = 1,
    biased: bool = False,
) -> Measured:
    """The squared MMD; `biased` is for a kernel whose diagonal is 1."""
    found = mmd_errors(real, generated, kernel, resamples, rng)
    n = min(len(real), len(generated))
    size = n // 2
    chosen = np.zeros((2, MMD_SPLITS, len(real)))
    for split in range(MMD_SPLITS):
        for side, half in enumerate(split_halves(len(real), rng)):
            chosen[side, split, half[:size]] = 1
    splits = scale * split_mmd(real, kernel, size, chosen)

    def bias(count: int, first: float, second: float) -> float:
        return scale * ((1 - first) + (1 - second)) / count if biased else 0.0

    splits = splits + bias(size, found.real_mean, found.real_mean)
    value, means = scale * found.value, (found.real_mean, found.generated_mean)
    estimate = around(value + bias(n, *means), scale * found.errors)
    floor = measure(spread(splits.mean(), splits), size)
    sizes = {"n_real": len(real), "n_generated": len(generated), "resamples": resamples}
    return measure(estimate, n, floor, at_floor_n=float(value + bias(size, *means)), **sizes)


def split_mmd(real: np.ndarray, kernel: kernels.Kernel, size: int, chosen: np.ndarray) -> np.ndarray:
    """The unbiased squared MMD between disjoint subsets of one set, `chosen[0]` and `chosen[1]`."""
    (first, second), diagonal = chosen, kernels.kernel_diagonal(real, kernel)
    left, right = np.concatenate([first, second, first]), np.concatenate([first, second, second])
    one, other, cross = kernels.kernel_sums(real, real, kernel, left, right).forms.reshape(3, -1)
    return (one + other - (first + second) @ diagonal) / (size * (size - 1)) - 2 * cross / size**2


def compare_prdc(
    real: ArrayLike, generated: ArrayLike, resamples: int = 1000, seed: int = 0, k: int = 5
) -> dict[str, Measured]:
    """Precision, recall, density and coverage, in this order."""
    real, generated = as_pair(real, generated)
    n, rng = check_sizes(LEAST["precision"], real, generated), np.random.default_rng(seed)
    metrics.require(n, 4 * (k + 1), "image")
    repeats = 1 if len(real) == len(generated) else SUBSETS
    subsets = [(take(real, n, rng), take(generated, n, rng)) for _ in range(repeats)]
    each = [metrics.prdc(*pair, k) for pair in subsets[1:]]
    halves = half_samples(*subsets[0], k, resamples, PRDC_SPLITS, rng)
    values = np.mean([*each, halves.whole], axis=0)
    sizes = {"n_real": len(real), "n_generated": len(generated), "resamples": len(halves.samples), "k": k}
    found = {}
    for name, value, sample, split in zip(Prdc._fields, values, halves.samples.T, halves.floor.T):
        estimate = around(value, sample - sample.mean())
        top = np.inf if name == "density" else 1.0
        estimate = estimate._replace(low=max(0.0, estimate.low), high=min(top, estimate.high))
        floor = measure(spread(split.mean(), split), n // 2)
        found[name] = measure(estimate, n, floor, at_floor_n=float(sample.mean()), **sizes)
    return found
