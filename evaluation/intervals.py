"""95 % intervals, paired tests and agreement: what lets a figure be called different from another, or not."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special  # `stats` takes a second to import

from utils.cli import UserError

LEVEL = 0.95
Z = float(special.ndtri(0.5 + LEVEL / 2))


def finite(values, what: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{what}: value {int(np.argmin(np.isfinite(values)))} is not a number; leave it out")
    return values


def wilson(hits: int, total: int) -> tuple[float, float, float]:
    """A share and its interval, which stays inside 0 … 1 and has a width even for none of n."""
    if not 0 <= hits <= total or total < 1:
        raise UserError(f"a share of {hits} out of {total}: expected at least one item, and no more hits than items")
    share, spread = hits / total, Z**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    # At the ends exact: the root's rounding would leave the share itself outside.
    return share, 0.0 if hits == 0 else centre - half, 1.0 if hits == total else centre + half


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean and Student's interval, which holds for as few as two values (of seeds, of raters)."""
    values = finite(values, "mean")
    if len(values) < 2:
        raise UserError(f"an interval of a mean: needs at least 2 values, found {len(values)}")
    half = float(special.stdtrit(len(values) - 1, 0.5 + LEVEL / 2)) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def bootstrap(
    items: Sequence, statistic: Callable[[np.ndarray], float], resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of independent items (rows) and its percentile interval; not for what duplicates would change."""
    items = np.asarray(items)
    if len(items) < 2:
        raise UserError(f"a bootstrap: needs at least 2 items, found {len(items)}")
    rng = np.random.default_rng(seed)
    values = [statistic(items[rng.integers(0, len(items), len(items))]) for _ in range(resamples)]
    return float(statistic(items)), *(float(one) for one in np.nanquantile(values, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]))


def resample_surplus(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each item is drawn by a bootstrap, less 1: rows that add up to 0."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples) - 1.0


def around(value: float, errors: np.ndarray) -> tuple[float, float, float]:
    """The value and the interval around it that 95 % of these errors stay within.

    Symmetric: the shape of an error's distribution is less well known than its width, and to mirror it did worse.
    """
    reach = np.quantile(np.abs(errors), LEVEL)
    return float(value), float(value - reach), float(value + reach)


def crossed_interval(parts: Sequence[tuple[np.ndarray, float]]) -> tuple[float, float, float]:
    """A weighted sum of the means of tables, and an interval for other raters and other items.

    parts: (raters by items, weight); NaN where one did not rate. The same raters (rows) in all, other items in each: a
    difference has the weights 1 and -1. The variances of the raters' means and of the items' means are added (both hold
    what is left to chance, so the interval is a little wide), with Satterthwaite's degrees of freedom. In simulation a
    difference's holds the truth 97 to 99 times in 100, a mean's 94 to 99 from 5 raters on, of 2 raters who differ much
    89. With one rater it is for other items only. Where nothing varies it is Wilson's for shares, over the items.
    """
    value, by_rater, spreads = 0.0, 0.0, []
    for table, weight in parts:
        given = ~np.isnan(table)
        table = table[:, given.any(0)]
        items = np.nanmean(table, 0)
        if len(items) < 2:
            raise UserError(f"an interval of ratings: needs at least 2 items, found {len(items)}")
        value += weight * float(items.mean())
        # A rater's mean of what they rated, beside what all gave those same items.
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
        half = float(special.stdtrit(freedom, 0.5 + LEVEL / 2)) * math.sqrt(total)
    return value, value - half, value + half


def difference(first: dict, second: dict) -> dict:
    """Second less first, of independent figures {"value", "low", "high"}, with its interval.

    The half widths towards one another add up in quadrature, so that intervals may be lopsided (as Wilson's are).
    """
    value = second["value"] - first["value"]
    low = value - math.hypot(second["value"] - second["low"], first["high"] - first["value"])
    high = value + math.hypot(second["high"] - second["value"], first["value"] - first["low"])
    return {"value": value, "low": low, "high": high}


def paired_test(first: Sequence[float], second: Sequence[float], seed: int = 0) -> dict:
    """Is `second` other than `first`, both measured with the same seeds? The mean difference and two tests.

    `shown` goes by the t-test. The permutation test (signs flipped; all ways up to 16 pairs, else 65,536 drawn) needs
    no bell curve, but its p is at least 2 / 2^pairs: with 5 seeds 0.0625. Neither knows of another test set: what is
    shown is a difference on this one.
    """
    first, second = finite(first, "paired test"), finite(second, "paired test")
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise UserError(
            f"paired test: needs two equally long lists of at least 2, found {len(first)} and {len(second)}"
        )
    differences, n = second - first, len(first)
    mean, low, high = mean_interval(differences)
    error = differences.std(ddof=1) / math.sqrt(n)
    if error > 1e-12 * max(1e-300, abs(mean)):
        t_p = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    else:
        t_p = 0.0 if mean else 1.0  # the same difference with every seed
    if n <= 16:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        extreme, ways = _as_extreme(signs, differences), 2**n
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], (2**16, n))
        extreme, ways = _as_extreme(signs, differences) + 1, 2**16 + 1  # what was seen is one of the ways
    return {
        "difference": mean,
        "low": low,
        "high": high,
        "p_t": t_p,
        "p_permutation": extreme / ways,
        "n": n,
        "shown": t_p < 1 - LEVEL,
    }


def _as_extreme(signs: np.ndarray, differences: np.ndarray) -> int:
    seen = abs(differences.sum())
    return int((abs(signs @ differences) >= seen - 1e-12 * abs(differences).sum()).sum())


def krippendorff_alpha(ratings) -> float:
    """Agreement of raters (rows) about items (columns) on an interval scale; NaN where one did not rate.

    1 is perfect, 0 what chance gives. NaN where all ratings are equal: there is nothing to agree about.
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


def agreement(ratings, resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Krippendorff's alpha with an interval over items, for these raters."""
    ratings = np.asarray(ratings, np.float64)
    rated = ratings[:, (~np.isnan(ratings)).sum(0) >= 2]
    krippendorff_alpha(ratings)  # refuses what is no table or has nothing to compare
    return bootstrap(rated.T, lambda rows: krippendorff_alpha(rows.T), resamples, seed)
