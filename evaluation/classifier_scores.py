"""How good classifiers are, over training seeds and over test images; which of two is the better, if one is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from evaluation.intervals import LEVEL, Estimate, mean_interval, resample_surplus, wilson
from evaluation.labelled import Arm, pair_arms

METRICS = ("accuracy", "macro_f1")
NO_DIFFERENCE = "no difference shown"
NOTHING_LEARNT = "no verdict: nothing learnt"
LEAST_SEEDS = 3  # for a test over seeds
Scores = dict[str, np.ndarray]  # of each metric


def score(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> Scores:
    """Accuracy and macro-F1 (r, seeds) with each row of `weights` (r, images) saying how often an image counts.

    `predicted` is (seeds, images). Macro-F1 is the mean over the classes of which an image counts. scikit-learn's
    functions take one row of weights at a time, which for 1,000 of them lasts minutes.
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
    return np.concatenate([np.ones((1, images)), 1 + resample_surplus(images, resamples, rng)])


def interval(values: np.ndarray) -> Estimate:
    """A mean over seeds and its interval over seeds and images, from (1 + resamples, seeds) of `score`.

    Student's half-width over the seeds and the bootstrap's over the images, added in quadrature as independent errors.
    What varies with both is in either of them and counts twice: the interval is rather too wide than too narrow.
    """
    mean, _, high = mean_interval(values[0])
    errors = np.abs(values[1:].mean(1) - mean)
    reach = math.hypot(high - mean, float(np.quantile(errors, LEVEL)))
    return Estimate(mean, mean - reach, mean + reach)


def score_interval(values: np.ndarray, images: int) -> Estimate:
    """`interval` within 0 … 1, and no narrower than Wilson's for such a share of so many images.

    Where nearly every image is right, a bootstrap of them knows nothing of the errors that it has not seen.
    """
    mean, low, high = interval(values)
    _, least, most = wilson(round(mean * images), images)
    return Estimate(mean, max(0.0, min(low, least)), min(1.0, max(high, most)))


def majority_scores(truth: np.ndarray) -> dict[str, float]:
    """What always naming the most frequent class of the test images gives."""
    guesses = np.full((1, len(truth)), np.bincount(truth).argmax())
    return {metric: float(values[0, 0]) for metric, values in score(truth, guesses, np.ones((1, len(truth)))).items()}


def has_learnt(scores: Scores, majority: Mapping[str, float]) -> bool:
    """Whether an arm's mean accuracy is above that of the most frequent class."""
    return float(scores["accuracy"][0].mean()) > majority["accuracy"] + 1e-9


def paired_p(first: np.ndarray, second: np.ndarray) -> float | None:
    """The paired t-test's p over the seeds; None for fewer than LEAST_SEEDS, or where all differences are equal."""
    differences = second - first
    if len(differences) < LEAST_SEEDS or np.ptp(differences) <= 1e-12:
        return None
    return float(stats.ttest_rel(second, first).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted for their number (Holm 1979): with no difference anywhere, any of all is below 0.05 in 5 % of cases."""
    adjusted: list[float | None] = [None] * len(p_values)
    known, worst = [(p, i) for i, p in enumerate(p_values) if p is not None], 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        worst = max(worst, min(1.0, (len(known) - rank) * p))
        adjusted[i] = worst
    return adjusted


def compare(
    pairs: Sequence[tuple[Arm, Arm]], scores: Mapping[Arm, Scores], majority: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Is the second arm of each pair better than the first? As results.json has it.

    Better or worse only where the paired test by seed shows it, adjusted for the number of pairs, and where the
    interval over seeds and images does not hold 0. No verdict about an arm that has learnt nothing.
    """
    lines = []
    idle = {arm for arm, found in scores.items() if not has_learnt(found, majority)}
    for metric in METRICS:
        tests = [paired_p(scores[one][metric][0], scores[other][metric][0]) for one, other in pairs]
        for (one, other), p, adjusted in zip(pairs, tests, holm(tests)):
            mean, low, high = interval(scores[other][metric] - scores[one][metric])
            low, high = max(-1.0, low), min(1.0, high)
            shown = adjusted is not None and adjusted < 1 - LEVEL and (low > 0 or high < 0)
            verdict = ("better" if mean > 0 else "worse") if shown else NO_DIFFERENCE
            verdict = NOTHING_LEARNT if {one, other} & idle else verdict
            line = {"first": one.name, "second": other.name, "real_share": max(one.real_share, other.real_share)}
            line |= {"metric": metric, "difference": mean, "low": low, "high": high, "p": p, "p_holm": adjusted}
            lines.append(line | {"verdict": verdict})
    return lines


def summarise(
    arms: Sequence[Arm], done: Mapping[tuple[str, float, int], dict[str, Any]], truth: np.ndarray, seeds: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The arms and the comparisons of results.json. `done`: {(arm, share, seed): its line of results.jsonl}."""
    entries, scores, majority = [], {}, majority_scores(truth)
    weights = resample_weights(len(truth), 1000, 0)  # the same for every arm, so that they can be paired
    for arm in arms:
        lines = [done[arm.name, arm.real_share, seed] for seed in seeds]
        scores[arm] = score(truth, np.array([one["predicted"] for one in lines]), weights)
        entry = {"name": arm.name, "real_share": arm.real_share, "synthetic": arm.synthetic}
        entry |= {"synthetic_ratio": arm.ratio, "n_real": arm.n_real, "n_synthetic": arm.n_synthetic}
        entry |= {"seeds": list(seeds), "steps": [one["steps"] for one in lines]}
        for metric in METRICS:
            entry[metric] = scores[arm][metric][0].tolist()
            entry[f"{metric}_interval"] = list(score_interval(scores[arm][metric], len(truth)))
        entries.append(entry | {"learnt": has_learnt(scores[arm], majority)})
    return entries, compare(pair_arms(arms), scores, majority)


def verdict_lines(comparisons: Sequence[dict[str, Any]], shares: Sequence[float]) -> list[str]:
    """The answer in words, by accuracy: for each share of the real images, then for synthetic ones alone."""
    tested = [one for one in comparisons if one["metric"] == "accuracy"]
    helped = [one for one in tested if one["first"] == "real" and one["second"].startswith("real + ")]
    lines = [f"with {share:.0%} of the real images: {_describe_share(helped, share)}" for share in shares]
    for one in tested:
        if one["first"] != "real":
            what = f"{one['second']} against {one['first']}, with {one['real_share']:.0%} of the real images"
        elif one not in helped and one["real_share"] == max(shares):
            what = f"{one['second']} alone against {one['real_share']:.0%} of the real images"
        else:
            continue
        lines.append(f"{what}: {one['verdict']} {_describe_difference(one)}")
    return lines


def _describe_share(helped: Sequence[dict[str, Any]], share: float) -> str:
    parts = []
    for word in ("better", "worse"):
        shown = [one for one in helped if one["real_share"] == share and one["verdict"] == word]
        shown.sort(key=lambda one: -abs(one["difference"]))
        names = ", ".join(f"{one['second']} {_describe_difference(one)}" for one in shown)
        parts += [f"{word} with {names}"] if shown else []
    idle = [one["second"] for one in helped if one["real_share"] == share and one["verdict"] == NOTHING_LEARNT]
    parts += [f"{NOTHING_LEARNT} from the real images alone, or with {', '.join(idle)}"] if idle else []
    return "; ".join(parts) or NO_DIFFERENCE


def _describe_difference(one: dict[str, Any]) -> str:
    p = "no p" if one["p_holm"] is None else f"Holm-adjusted p {one['p_holm']:.2g}"
    return f"(accuracy {one['difference']:+.3f}, {one['low']:+.3f} to {one['high']:+.3f}, {p})"
