"""Adherence: does an image show what its text asks for? CLIP scores (cosines), and attributes that CLIP recognises."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evaluation import intervals
from evaluation.features import Encoder, text_features
from evaluation.figures import Figure, Measured, Rows, fill, measure, split_means, stratify
from evaluation.image_sets import OWN, ImageSet, Record
from evaluation.metrics import normalise, require
from utils.cli import UserError
from utils.image_checks import cosines
from utils.wording import name_article, word_value

FEWEST, FEWEST_LOWEST = 10, 50  # images for a mean, and for one of their lowest tenth; splits need two
FEWEST_OF_VALUE = 5  # real images by which CLIP is refused for one value of an attribute
WITH_TEXT, WITH_VALUE = "captioned generated image", "labelled generated image"
USUAL = ("article", "colour", "gender", "season")
MOST_VALUES = 60
LISTED_VALUES = 20  # of an attribute, in splits and shares
LOWEST = 0.1
SURE = 0.8  # CLIP counts the values in generated images if it recognises at least this share of those in real ones
SCORE = Figure("clip_score", "adherence", "CLIP score", "higher")
LOWEST_SCORE = Figure("clip_score_lowest", "adherence", "CLIP score, lowest tenth", "higher")
HOW = {
    "clip_score": "mean cosine of an image with its text",
    "clip_score_lowest": "mean cosine of the tenth of the images that fit their texts least",
}


@dataclass
class Adherence:
    figures: list[Figure] = field(default_factory=list)
    splits: dict[str, dict[str, Rows]] = field(default_factory=dict)  # {figure: {attribute: means}}
    shares: dict[str, Rows] = field(default_factory=dict)  # {attribute: the share of each value}
    scores: np.ndarray | None = None  # each generated image's CLIP score


def check_attributes(sets: Sequence[list[Record]], wanted: Sequence[str] | None) -> None:
    known = {key for records in sets for one in records for key, value in one.items() if value} - set(OWN)
    for key in wanted or ():
        if key not in known:
            raise UserError(
                f"--attributes {key}: no image has this attribute; give one of: {', '.join(sorted(known)) or 'none'}"
            )


def usable_attributes(sets: Sequence[list[Record]], wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """The wanted columns, or those of USUAL that the sets have, and the values of each, at least two."""
    values = {key: {one[key] for records in sets for one in records if one.get(key)} for key in wanted or USUAL}
    return {key: sorted(found) for key, found in values.items() if 1 < len(found) <= MOST_VALUES}


def clip_scores(encoder: Encoder, features: np.ndarray, records: list[Record]) -> np.ndarray:
    """The cosine of each image with its text (Hessel et al. 2021, arXiv 2104.08718; not times 2.5); NaN without one."""
    scores = np.full(len(records), np.nan)
    known = [i for i, one in enumerate(records) if one["text"]]
    if known:
        scores[known] = cosines(features[known], text_features(encoder, [records[i]["text"] for i in known]))
    return scores


def measure_mean(values: np.ndarray, is_share: bool = False, what: str = WITH_TEXT) -> Measured:
    """The mean of the known values; refuses fewer than FEWEST."""
    known = values[~np.isnan(values)]
    require(len(known), FEWEST, what)
    return measure(intervals.mean_or_share(known, is_share), len(known))


def measure_hits(hits: np.ndarray) -> Measured:
    return measure_mean(hits, True, WITH_VALUE)


def measure_lowest(scores: np.ndarray, resamples: int, seed: int) -> Measured:
    """The mean of the lowest tenth, bootstrapped."""
    known = scores[~np.isnan(scores)]
    require(len(known), FEWEST_LOWEST, WITH_TEXT)

    def statistic(items: np.ndarray) -> float:
        return np.sort(items)[: max(1, round(LOWEST * len(items)))].mean()

    return measure(intervals.bootstrap(known, statistic, resamples, seed), len(known), resamples=resamples)


def with_floor(compute: Callable[[np.ndarray], Measured], values: np.ndarray, real: np.ndarray | None) -> Measured:
    """The generated set's figure with the real set's as its floor; without one where the real set has too few texts."""
    found = compute(values)
    if real is None:
        return found
    try:
        return replace(found, floor=compute(real))
    except UserError:
        return found


def score_figures(encoder: str, scores: np.ndarray, real: np.ndarray | None, resamples: int, seed: int) -> list[Figure]:
    """The CLIP scores; `real`: those of the real images with their own texts, the floor."""

    def measure_lowest_tenth(some: np.ndarray) -> Measured:
        return measure_lowest(some, resamples, seed)

    found = fill([SCORE], lambda: [with_floor(measure_mean, scores, real)])
    found += fill([LOWEST_SCORE], lambda: [with_floor(measure_lowest_tenth, scores, real)])
    floor = "; the floor is that of the real images with their own texts" if real is not None else ""
    return [one.of(encoder, HOW[one.id] + floor) for one in found]


def phrase(key: str, value: str, article: str | None) -> str:
    """What an image is compared with, `a photo of red boots`; only the value differs between the candidates."""
    noun = name_article(value if key == "article" else article)[0]
    words = word_value(key, value)
    if key == "article":
        return f"a photo of {noun}"
    return f"a photo of {noun}, {words} collection" if key == "season" else f"a photo of {words} {noun}"


def recognise(encoder: Encoder, features: np.ndarray, records: list[Record], key: str, values: list[str]) -> list[str]:
    """The value of an attribute whose phrase CLIP finds most like each image (zero-shot)."""
    units = normalise(features)
    articles = [None if key == "article" else one.get("article") for one in records]
    found = [""] * len(records)
    for article in set(articles):
        texts = normalise(text_features(encoder, [phrase(key, value, article) for value in values]))
        places = [i for i, one in enumerate(articles) if one == article]
        for i, best in zip(places, (units[places] @ texts.T).argmax(1)):
            found[i] = values[best]
    return found


def attribute_hits(records: list[Record], seen: list[str], key: str) -> np.ndarray:
    """1 where the value seen is the one asked for, NaN where none is asked for."""
    return np.array([np.nan if not one.get(key) else float(value == one[key]) for one, value in zip(records, seen)])


def can_judge(hits: np.ndarray, records: list[Record], key: str) -> bool:
    """Whether CLIP recognises real images' values more often than someone who always names the most frequent."""
    labels = Counter(one[key] for one in records if one.get(key))
    known = hits[~np.isnan(hits)]
    if len(known) < FEWEST:
        return False
    return intervals.wilson(int(known.sum()), len(known)).low > labels.most_common(1)[0][1] / len(known)


def accuracy_figure(encoder: str, key: str, values: list[str]) -> Figure:
    how = (
        f"share of images that {encoder} finds more like the {key} asked for than like any other of {len(values)}, "
        f"each phrased as in `{phrase(key, values[0], 'Boots')}`; guessing gives about {1 / len(values):.0%}; the "
        "floor is the real images', by their labels, with as many of each value as the generated set has"
    )
    return Figure(f"{key}_accuracy", "adherence", f"Right {key} (zero-shot)", "higher", "%", how).of(encoder)


def compare_hits(figure: Figure, hits: np.ndarray, records: list[Record], by_value: Rows, key: str) -> Figure:
    """The accuracy with its floor; values that CLIP does not recognise in real images become NaN in `hits`.

    `by_value`: the real images' share of hits for each value.
    """
    unsure = [row["value"] for row in by_value if row["n"] >= FEWEST_OF_VALUE and row["mean"] <= 0.5]
    hits[[one.get(key) in unsure for one in records]] = np.nan
    floor = stratify(by_value, [one[key] for one, hit in zip(records, hits) if not np.isnan(hit)])
    left_out = f"; not judged, since half or fewer of the real ones are right: {', '.join(unsure)}" if unsure else ""
    figure = replace(figure, how=figure.how + left_out)
    return fill([figure], lambda: [replace(measure_hits(hits), floor=floor)], left_out)[0]


def judge_attribute(found: Adherence, encoder: Encoder, sets: dict[str, ImageSet], key: str, values: list[str]) -> None:
    """Add the accuracy of one attribute, its splits and its shares."""
    real, generated = sets["real"], sets["generated"]
    seen, real_seen = (
        recognise(encoder, one.features[encoder.name], one.records, key, values) for one in (generated, real)
    )
    hits, real_hits = attribute_hits(generated.records, seen, key), attribute_hits(real.records, real_seen, key)
    figure, able = accuracy_figure(encoder.name, key, values), can_judge(real_hits, real.records, key)
    if able:
        figure = compare_hits(figure, hits, generated.records, split_means(real.records, real_hits, key, True, 1), key)
        found.splits[f"{key}_accuracy"] = {key: split_means(generated.records, hits, key, True, most=LISTED_VALUES)}
    else:
        right = f"{np.nanmean(real_hits):.0%} of" if (~np.isnan(real_hits)).any() else "none of"
        figure = figure.refuse(
            f"{encoder.name} recognises {right} the real images' {key}: so it can't judge the generated ones'"
        )
    found.figures.append(figure)
    if not np.isnan(found.scores).all():
        found.splits["clip_score"][key] = split_means(generated.records, found.scores, key, False, most=LISTED_VALUES)
    by_clip = (seen, real_seen) if able and np.nanmean(real_hits) >= SURE else (None, None)
    found.shares[key] = count_shares(real.records, generated.records, key, *by_clip)


def judge_adherence(
    encoder: Encoder, sets: dict[str, ImageSet], columns: dict[str, list[str]], resamples: int, seed: int
) -> Adherence:
    """`columns`: {attribute: its values}."""
    scores, real_scores = (
        clip_scores(encoder, sets[name].features[encoder.name], sets[name].records) for name in ("generated", "real")
    )
    figures = score_figures(encoder.name, scores, real_scores, resamples, seed)
    found = Adherence(figures, {"clip_score": {}}, {}, scores)
    for key, values in columns.items():
        judge_attribute(found, encoder, sets, key, values)
    return found


def count_shares(
    real: list[Record],
    generated: list[Record],
    key: str,
    seen: list[str] | None = None,
    real_seen: list[str] | None = None,
) -> Rows:
    """Of each value: its share of the real set by its labels, of the generated set, and of what was asked for (plan).

    The generated set's by what CLIP sees, if `seen` is given (then `real_seen` is the real set's), else by labels.
    """
    labels, asked = (Counter(one[key] for one in records if one.get(key)) for records in (real, generated))
    shown, real_shown = (Counter(filter(None, values)) if values else None for values in (seen, real_seen))

    def share(counts: Counter[str], value: str) -> dict[str, Any] | None:
        if not counts.total():
            return None
        share, low, high = intervals.wilson(counts[value], counts.total())
        return {"share": share, "low": low, "high": high, "n": counts.total()}

    rows = []
    for value, _ in (labels + asked).most_common(LISTED_VALUES):
        row = {"value": value, "real": share(labels, value), "generated": share(shown or asked, value)}
        row["plan"] = asked[value] / asked.total() if asked else None
        row["by"] = "clip" if shown else "labels"
        if real_shown:
            row["real_seen"] = share(real_shown, value)
        rows.append(row)
    return rows
