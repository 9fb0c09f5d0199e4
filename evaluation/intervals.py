"""95 % intervals and agreement: what lets a figure be called different from another, or not."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # `stats`, with its own Wilson interval and tests, takes a second to import

from utils.cli import UserError

LEVEL = 0.95
Z = float(special.ndtri(0.5 + LEVEL / 2))


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def student_quantile(freedom: float) -> float:
    """How many standard errors Student's 95 % interval reaches to either side."""
    return float(special.stdtrit(freedom, 0.5 + LEVEL / 2))


def wilson(hits: float, total: float) -> Estimate:
    """A share and its score interval (Wilson 1927, JASA 22), which stays in 0 … 1 and has a width even for 0 of n."""
    if not 0 <= hits <= total or total < 1:
        raise UserError(f"a share of {hits} out of {total}: expected at least one item, and no more hits than items")
    share, spread = hits / total, Z**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    # Exact at the ends: the root's rounding would leave the share itself outside.
    return Estimate(share, 0.0 if hits == 0 else centre - half, 1.0 if hits == total else centre + half)


def mean_interval(values: ArrayLike) -> Estimate:
    """A mean and Student's interval, valid from two values on (of seeds, of raters); refuses what is not finite."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"mean: value {int(np.argmin(np.isfinite(values)))} is not a number; leave it out")
    if len(values) < 2:
        raise UserError(f"an interval of a mean: needs at least 2 values, found {len(values)}")
    mean = float(values.mean())
    half = student_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def mean_or_share(values: ArrayLike, is_share: bool) -> Estimate:
    """Wilson's interval for values that are 0 or 1, else Student's."""
    values = np.asarray(values, np.float64)
    return wilson(int(values.sum()), len(values)) if is_share else mean_interval(values)


def bootstrap(
    items: ArrayLike, statistic: Callable[[np.ndarray], float], resamples: int = 1000, seed: int = 0
) -> Estimate:
    """A statistic of independent rows and its percentile interval (Efron 1979); not for what duplicates change.

    A resample without a value (NaN) is left out, which scipy.stats.bootstrap would not do.
    """
    items = np.asarray(items)
    if len(items) < 2:
        raise UserError(f"a bootstrap: needs at least 2 items, found {len(items)}")
    rng = np.random.default_rng(seed)
    values = [statistic(items[rng.integers(0, len(items), len(items))]) for _ in range(resamples)]
    low, high = np.nanquantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(float(statistic(items)), float(low), float(high))


def resample_surplus(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each item is in a bootstrap sample, less 1: rows that add up to 0."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples) - 1.0


def around(value: float, errors: np.ndarray) -> Estimate:
    """The value and the interval around it that 95 % of these errors stay within.

    Symmetric: the shape of an error's distribution is less well known than its width, and to mirror it did worse.
    """
    reach = np.quantile(np.abs(errors), LEVEL)
    return Estimate(float(value), float(value - reach), float(value + reach))


def jackknife(arrays: Sequence[np.ndarray], statistic: Callable[..., float]) -> Estimate:
    """A statistic of equally long arrays and Student's interval of Tukey's jackknife, which leaves out one item each.

    A bootstrap would take items twice, and a duplicate's cosine of 1 is not a loss of variety.
    """
    n, value = len(arrays[0]), float(statistic(*arrays))
    if n < 3:
        raise UserError(f"an interval by jackknife: needs at least 3 items, found {n}")
    left = np.array([statistic(*(np.delete(one, i, 0) for one in arrays)) for i in range(n)])
    half = student_quantile(n - 1) * math.sqrt((n - 1) / n * np.square(left - left.mean()).sum())
    return Estimate(value, value - half, value + half)


def crossed_interval(parts: Sequence[tuple[np.ndarray, float]]) -> Estimate:
    """A weighted sum of the means of tables, and an interval for other raters and other items.

    parts: (raters by items, weight); NaN where one did not rate. The same raters (rows) in all, other items in each: a
    difference has the weights 1 and -1. The variances of the raters' means and of the items' means are added (both hold
    what is left to chance, so the interval is a little wide); degrees of freedom by Satterthwaite (1946). In simulation
    a difference's holds the truth 97 to 99 times in 100, a mean's 94 to 99 from 5 raters on, of 2 raters who differ
    much 89. With one rater it is for other items only. Where nothing varies it is Wilson's for shares, over the items.
    """
    value, by_rater, spreads = 0.0, np.zeros(1), []
    for table, weight in parts:
        given = ~np.isnan(table)
        table = table[:, given.any(0)]
        items = np.nanmean(table, 0)
        if len(items) < 2:
            raise UserError(f"an interval of ratings: needs at least 2 items, found {len(items)}")
        value += weight * float(items.mean())
        # A rater's mean of what they rated, less what all raters gave those same items.
        rows = [
            float((row - items)[~np.isnan(row)].mean()) if given[i].any() else np.nan for i, row in enumerate(table)
        ]
        by_rater = by_rater + weight * np.array(rows)
        spreads.append((weight**2 * items.var(ddof=1) / len(items), len(items) - 1))
    raters = by_rater[~np.isnan(by_rater)]
    if len(raters) > 1:
        spreads.append((raters.var(ddof=1) / len(raters), len(raters) - 1))
    total = sum(spread for spread, _ in spreads)
    if total < 1e-24:
        half = max(abs(weight) for _, weight in parts) * wilson(0, sum(table.shape[1] for table, _ in parts))[2]
    else:
        freedom = total**2 / sum(spread**2 / degrees for spread, degrees in spreads)
        half = student_quantile(freedom) * math.sqrt(total)
    return Estimate(value, value - half, value + half)


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Second less first, of independent figures {"value", "low", "high"}, with its interval.

    The half widths that face each other are added in quadrature (Newcombe 1998; "MOVER", Zou & Donner 2008), so that
    the intervals may be asymmetric, as Wilson's are.
    """
    value = second["value"] - first["value"]
    low = value - math.hypot(second["value"] - second["low"], first["high"] - first["value"])
    high = value + math.hypot(second["high"] - second["value"], first["value"] - first["low"])
    return {"value": value, "low": low, "high": high}


def krippendorff_alpha(ratings: ArrayLike) -> float:
    """Agreement of raters (rows) about items (columns) on an interval scale (Krippendorff 2011); NaN: not rated.

    1 is perfect, 0 what chance gives. NaN where all ratings are equal: agreement is undefined.
    """
    ratings = np.asarray(ratings, np.float64)
    if ratings.ndim != 2:
        raise UserError(f"agreement: expected a table of raters by items, found shape {ratings.shape}")
    given = ~np.isnan(ratings)
    paired = given.sum(0) >= 2
    if not paired.any():
        raise UserError("agreement: no item was rated by two raters; merge more ratings")
    ratings, counts = np.where(given, ratings, 0)[:, paired], given.sum(0)[paired]
    deviations = np.where(given[:, paired], ratings - ratings.sum(0) / counts, 0)
    observed = (2 * counts * (deviations**2).sum(0) / (counts - 1)).sum() / counts.sum()
    values = ratings[given[:, paired]]
    expected = 2 * values.var(ddof=1)
    return float(1 - observed / expected) if expected else math.nan


def agreement(ratings: ArrayLike) -> Estimate:
    """Krippendorff's alpha with an interval over items, for these raters."""
    ratings = np.asarray(ratings, np.float64)
    rated = ratings[:, (~np.isnan(ratings)).sum(0) >= 2]
    krippendorff_alpha(ratings)  # refuses what is not a table, and items with one rating each
    return bootstrap(rated.T, lambda rows: krippendorff_alpha(rows.T))
