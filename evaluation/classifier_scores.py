"""How good classifiers are, over training seeds and over test images; which of two is the better, if one is."""

import math
from collections.abc import Sequence

import numpy as np

from evaluation.intervals import LEVEL, mean_interval, paired_test, wilson

METRICS = ("accuracy", "macro_f1")
NO_DIFFERENCE = "no difference shown"


def scores(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and macro-F1 (r, seeds) with each row of `weights` (r, images) saying how often an image counts.

    `predicted` is (seeds, images). Macro-F1 is the mean over the classes of which an image counts.
    """
    classes = np.arange(max(truth.max(), predicted.max()) + 1)
    is_class = (truth[:, None] == classes).astype(np.float64)
    total, actual = weights.sum(1), weights @ is_class
    accuracy, macro = [], []
    for one in predicted:
        said = (one[:, None] == classes).astype(np.float64)
        hits, claimed = weights @ (said * is_class), weights @ said
        f1 = 2 * hits / np.maximum(actual + claimed, 1e-12)
        accuracy.append(hits.sum(1) / total)
        macro.append((f1 * (actual > 0)).sum(1) / (actual > 0).sum(1))
    return {"accuracy": np.stack(accuracy, 1), "macro_f1": np.stack(macro, 1)}


def resample_weights(images: int, resamples: int, seed: int) -> np.ndarray:
    """A first row in which every image counts once, then bootstraps of the images."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate([np.ones((1, images)), drawn])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """A mean over seeds and its interval over seeds and images, from (1 + resamples, seeds) of `scores`.

    Student's half-width over the seeds and the bootstrap's over the images, added as independent errors are. What
    changes with both is in either of them, so it counts twice: the interval is rather too wide than too narrow.
    """
    mean, _, high = mean_interval(values[0])
    errors = np.abs(values[1:].mean(1) - mean)
    reach = math.hypot(high - mean, float(np.quantile(errors, LEVEL)))
    return mean, mean - reach, mean + reach


def score_interval(values: np.ndarray, images: int) -> tuple[float, float, float]:
    """`interval` within 0 … 1, and no narrower than Wilson's for such a share of so many images.

    Where nearly every image is right, a bootstrap of them knows nothing of the errors that it has not seen.
    """
    mean, low, high = interval(values)
    _, least, most = wilson(round(mean * images), images)
    return mean, max(0.0, min(low, least)), min(1.0, max(high, most))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for their number: with no difference anywhere, one of all these falls below 0.05 in 5 % of cases."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def compare(pairs: list[tuple[dict, dict, dict[str, np.ndarray], dict[str, np.ndarray]]]) -> list[dict]:
    """Is the second arm of each pair better than the first? (first and second arm, then the `scores` of both.)

    Better or worse only where the paired test by seed shows it, adjusted for the number of pairs, and where the
    interval over seeds and images leaves 0 out.
    """
    lines = []
    for metric in METRICS:
        tests = [paired_test(first[metric][0], second[metric][0]) for *_, first, second in pairs]
        for (one, other, first, second), test, p in zip(pairs, tests, holm([test["p_t"] for test in tests])):
            mean, low, high = interval(second[metric] - first[metric])
            low, high = max(-1.0, low), min(1.0, high)
            shown = p < 1 - LEVEL and (low > 0 or high < 0)
            verdict = ("better" if mean > 0 else "worse") if shown else NO_DIFFERENCE
            line = {
                "first": one["name"],
                "second": other["name"],
                "real_share": max(one["real_share"], other["real_share"]),
            }
            line |= {"metric": metric, "difference": mean, "low": low, "high": high, "p": test["p_t"], "p_holm": p}
            lines.append(line | {"verdict": verdict})
    return lines


def verdict_lines(comparisons: list[dict], shares: Sequence[float]) -> list[str]:
    """The answer in words, by accuracy: for each share of the real images, then for synthetic ones alone."""
    lines, tested = [], [one for one in comparisons if one["metric"] == "accuracy"]
    helped = [one for one in tested if one["first"] == "real" and one["second"].startswith("real + ")]
    for share in shares:
        parts = []
        for word in ("better", "worse"):
            shown = [one for one in helped if one["real_share"] == share and one["verdict"] == word]
            shown.sort(key=lambda one: -abs(one["difference"]))
            told = ", ".join(f"{one['second']} {_tell(one)}" for one in shown)
            parts += [f"{word} with {told}"] if shown else []
        lines.append(f"with {share:.0%} of the real images: {'; '.join(parts) or NO_DIFFERENCE}")
    for one in tested:
        if one["first"] != "real":
            what = f"{one['second']} against {one['first']}, with {one['real_share']:.0%} of the real images"
        elif one not in helped and one["real_share"] == max(shares):
            what = f"{one['second']} alone against {one['real_share']:.0%} of the real images"
        else:
            continue
        lines.append(f"{what}: {one['verdict']} {_tell(one)}")
    return lines


def _tell(one: dict) -> str:
    return f"(accuracy {one['difference']:+.3f}, {one['low']:+.3f} to {one['high']:+.3f}, p {one['p_holm']:.2g})"
