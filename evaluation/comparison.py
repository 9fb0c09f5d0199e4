"""One set of features against another: every distance with its 95 % interval, and beside it what real photos get.

How each interval is made, since to draw items with replacement and compute again would be wrong for most of these:
duplicates are no new photos, and look to a Fréchet distance, a Vendi score or a neighbourhood like a lack of variety.

- Fréchet, Vendi, mean distance, near duplicates: each item's influence on the figure is computed once, and the
  influences are bootstrapped. KID and CMMD: the same, from the sums of the kernel's rows.
- Where the sets do not differ (by less than two standard deviations of no difference), the influences on a Fréchet
  distance or an MMD are mere noise and make an interval √2 too wide. There the noise is taken out of them and the
  quadratic part of the error put in: for an MMD from the bootstrapped kernel, for the Fréchet distance from the spread
  of the floor. In simulation intervals mostly hold the truth 93 to 97 times in 100 where sets differ, and 95 to 100
  where they do not.
- Precision, recall, density, coverage: half-samples without replacement, whose spread around their mean is that of the
  full sets' figures.
- AuthPct and shares: Wilson's, over the generated items; the training set is given.

The intervals are for the figure's expected value at this n. All but KID are biased by an amount that n decides, hence
the floor: the same figure for disjoint random halves of the real set (its low and high: where a new real set of that
size would fall, 95 %), and beside it the generated set's at the same n, `at_floor_n`. Of sets of unequal size, figures
that n biases are computed at the smaller n, averaged over random subsets of the larger set.
"""

import numpy as np
from scipy import special

from evaluation import kernels, metrics
from evaluation.intervals import around, resample_surplus
from evaluation.metrics import CMMD_SCALE, as_pair, frechet_distance, normalise
from evaluation.neighbourhoods import NAMES, half_samples

# Fewer say nothing: an interval as wide as the scale, or halves too small for a floor.
MINIMUM = {"frechet": 100, "kid": 50, "cmmd": 50, "prdc": 50, "vendi": 20, "novelty": 20}
FRECHET_SPLITS, FRECHET_PAIRS, SUBSETS = 12, 4, 3
MMD_SPLITS, PRDC_SPLITS = 400, 200


def require_enough(metric: str, real: np.ndarray, generated: np.ndarray) -> int:
    """The smaller n, if the metric can bear it."""
    metrics.require(len(real), MINIMUM[metric], f"{metric}, real images")
    metrics.require(len(generated), MINIMUM[metric], f"{metric}, generated images")
    return min(len(real), len(generated))


def spread(value: float, splits) -> dict:
    low, high = np.quantile(splits, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def result(estimate: tuple, real, generated, n: int, floor: dict, at_floor_n: float, resamples: int) -> dict:
    value, low, high = estimate
    sizes = {"n": n, "n_real": len(real), "n_generated": len(generated), "resamples": resamples}
    return {"value": value, "low": low, "high": high, **sizes, "floor": floor, "at_floor_n": float(at_floor_n)}


def halves(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
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
    parts = []
    for features in (real, generated):
        centred = features - features.mean(0)
        parts.append((centred, *np.linalg.qr(centred / np.sqrt(len(features) - 1))))
    left, values, right = np.linalg.svd(parts[0][2] @ parts[1][2].T, full_matrices=False)
    influences = []
    for (centred, q, _), vectors, sign in zip(parts, (left, right.T), (1, -1)):
        moved = 2 * sign * centred @ shift + (centred**2).sum(1)
        influence = moved - (len(centred) - 1) * (q @ vectors) ** 2 @ values
        influences.append(influence - influence.mean())
    return influences


def compare_frechet(real, generated, resamples: int = 1000, seed: int = 0) -> dict:
    real, generated = as_pair(real, generated)
    n, rng = require_enough("frechet", real, generated), np.random.default_rng(seed)
    repeats = 1 if len(real) == len(generated) else SUBSETS
    size = n // 2
    value = np.mean([frechet_distance(take(real, n, rng), take(generated, n, rng)) for _ in range(repeats)])
    splits = []
    for _ in range(FRECHET_SPLITS):
        one, other = halves(len(real), rng)
        splits.append(frechet_distance(real[one[:size]], real[other[:size]]))
    pairs = [
        frechet_distance(real[rng.permutation(len(real))[:size]], generated[rng.permutation(len(generated))[:size]])
        for _ in range(FRECHET_PAIRS)
    ]
    influences = frechet_influence(real, generated)
    variance = sum(one.var() / len(one) for one in influences)
    mean, error = np.mean(splits), np.std(splits, ddof=1)
    shrink = 1.0
    if variance and np.mean(pairs) < mean + 2 * error:  # no difference: what remains is quadratic, and counted twice
        quadratic = (error * min(size / n, value / np.mean(pairs))) ** 2  # as the floor falls with n, or faster
        shrink = np.sqrt(max(variance - quadratic, quadratic) / variance)
    errors = sum(resample_surplus(len(one), resamples, rng) @ one / len(one) for one in influences) * shrink
    reach = error * special.stdtrit(FRECHET_SPLITS - 1, 0.975) * np.sqrt(1 + 1 / FRECHET_SPLITS)  # of one more split
    floor = {"value": float(mean), "low": float(mean - reach), "high": float(mean + reach), "n": size}
    return result(around(value, errors), real, generated, n, floor, np.mean(pairs), resamples)


def mmd_errors(real, generated, kernel, resamples: int, rng) -> tuple[float, np.ndarray, list[float]]:
    """The unbiased squared MMD, a bootstrap of its error, and the mean kernel of different items, real and generated.

    With centred weights the forms below see only the double-centred kernel, so only their diagonals need centring.
    """
    sets = (real, generated)
    weights = [resample_surplus(len(features), resamples, rng) for features in sets]
    rows, columns, squares, form = kernels.kernel_sums(real, generated, kernel, *weights)
    n, m = len(real), len(generated)
    cross = rows.sum() / (n * m)
    noise_cross = (squares - (rows**2).sum() / m - (columns**2).sum() / n + n * m * cross**2) / (n * m)
    value, quadratic, linear, means = -2 * cross, -2 * form / (n * m), [], []
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
        linear.append((weight @ influence / n, np.sqrt(max(0.0, kept))))
        quadratic = quadratic + (form - weight**2 @ centred) / (n * (n - 1))
        value += different.mean()
        means.append(float(different.mean()))
    if value > 2 * quadratic.std():
        errors = linear[0][0] + linear[1][0]  # the quadratic part is in their noise already
    else:
        errors = linear[0][0] * linear[0][1] + linear[1][0] * linear[1][1] + quadratic
    return float(value), errors, means


def compare_mmd(real, generated, metric: str, resamples: int = 1000, seed: int = 0) -> dict:
    """`kid` or `cmmd`. Unbiased, so all items are used; the published bias of CMMD, which is known, is added at n."""
    real, generated = as_pair(real, generated)
    n, rng = require_enough(metric, real, generated), np.random.default_rng(seed)
    kernel, scale = kernels.polynomial_kernel, 1
    if metric == "cmmd":
        kernel, scale = kernels.gaussian_kernel, CMMD_SCALE
        real, generated = normalise(real, "real features"), normalise(generated, "generated features")
    value, errors, means = mmd_errors(real, generated, kernel, resamples, rng)
    size = n // 2
    chosen = np.zeros((2, MMD_SPLITS, len(real)))
    for split in range(MMD_SPLITS):
        for side, half in enumerate(halves(len(real), rng)):
            chosen[side, split, half[:size]] = 1
    splits = scale * split_mmd(real, kernel, size, chosen)

    def bias(count, first, second):
        return 0.0 if metric == "kid" else scale * ((1 - first) + (1 - second)) / count

    floor = {**spread(splits.mean() + bias(size, means[0], means[0]), splits + bias(size, means[0], means[0]))}
    estimate = around(scale * value + bias(n, *means), scale * errors)
    at_floor_n = scale * value + bias(size, *means)
    return result(estimate, real, generated, n, {**floor, "n": size}, at_floor_n, resamples)


def split_mmd(real: np.ndarray, kernel, size: int, chosen: np.ndarray) -> np.ndarray:
    """The unbiased squared MMD between disjoint subsets of one set, `chosen[0]` and `chosen[1]`."""
    (first, second), diagonal = chosen, kernels.kernel_diagonal(real, kernel)
    left, right = np.concatenate([first, second, first]), np.concatenate([first, second, second])
    one, other, cross = kernels.kernel_sums(real, real, kernel, left, right)[3].reshape(3, -1)
    return (one + other - (first + second) @ diagonal) / (size * (size - 1)) - 2 * cross / size**2


def compare_prdc(real, generated, k: int = 5, resamples: int = 1000, seed: int = 0) -> dict[str, dict]:
    real, generated = as_pair(real, generated)
    n, rng = require_enough("prdc", real, generated), np.random.default_rng(seed)
    metrics.require(n, 4 * (k + 1), f"precision and recall at k = {k}")
    subsets = [(take(real, n, rng), take(generated, n, rng))]
    if len(real) != len(generated):
        subsets += [(take(real, n, rng), take(generated, n, rng)) for _ in range(SUBSETS - 1)]
    each = [metrics.prdc(*pair, k) for pair in subsets[1:]]
    whole, samples, splits = half_samples(*subsets[0], k, resamples, PRDC_SPLITS, rng)
    each.append(dict(zip(NAMES, whole)))
    results = {}
    for name, sample, split in zip(NAMES, samples.T, splits.T):
        value, low, high = around(np.mean([one[name] for one in each]), sample - sample.mean())
        top = np.inf if name == "density" else 1.0
        floor = {**spread(split.mean(), split), "n": n // 2}
        estimate = value, max(0.0, low), min(top, high)
        results[name] = result(estimate, real, generated, n, floor, sample.mean(), len(samples)) | {"k": k}
    return results
