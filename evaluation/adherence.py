"""Does an image show what its text asks for? CLIP scores (cosines), and attributes that CLIP reads off an image."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from evaluation import assessment, intervals
from evaluation.features import Encoder, text_features
from evaluation.image_sets import OWN
from evaluation.metrics import require
from utils.cli import UserError
from utils.image_checks import cosines
from utils.wording import name_article, word_value

FEWEST = 10  # images for a mean; splits say their n, and need two
USUAL = ("article", "colour", "gender", "season")
MOST_VALUES = 60
LOWEST = 0.1


def check_attributes(sets: Sequence[list[dict]], wanted: Sequence[str] | None) -> None:
    there = {key for records in sets for one in records for key, value in one.items() if value} - set(OWN)
    for key in wanted or ():
        if key not in there:
            raise UserError(f"--attributes {key}: no image has one; there are {', '.join(sorted(there)) or 'none'}")


def usable_attributes(sets: Sequence[list[dict]], wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """The wanted columns, or those of USUAL that the sets have, and the values of each, at least two."""
    values = {key: {one[key] for records in sets for one in records if one.get(key)} for key in wanted or USUAL}
    return {key: sorted(found) for key, found in values.items() if 1 < len(found) <= MOST_VALUES}


def clip_scores(encoder: Encoder, features: np.ndarray, records: list[dict]) -> np.ndarray:
    """The cosine of each image with its text; NaN where it has none."""
    scores = np.full(len(records), np.nan)
    told = [i for i, one in enumerate(records) if one["text"]]
    if told:
        scores[told] = cosines(features[told], text_features(encoder, [records[i]["text"] for i in told]))
    return scores


def mean_share(values: np.ndarray) -> dict:
    """A mean with its interval, which for all-or-nothing values is a share's."""
    values = values[~np.isnan(values)]
    require(len(values), FEWEST, "a mean, images")
    if set(np.unique(values)) <= {0.0, 1.0}:
        return assessment.share(values > 0)
    return dict(zip(("value", "low", "high"), intervals.mean_interval(values))) | {"n": len(values)}


def lowest(scores: np.ndarray, resamples: int, seed: int) -> dict:
    """The mean of the lowest tenth."""
    known = scores[~np.isnan(scores)]
    require(len(known), 5 * FEWEST, "the lowest tenth, images")

    def statistic(items: np.ndarray) -> float:
        return np.sort(items)[: max(1, round(LOWEST * len(items)))].mean()

    found = intervals.bootstrap(known, statistic, resamples, seed)
    return dict(zip(("value", "low", "high"), found)) | {"n": len(known), "resamples": resamples}


def _floor(function, *values) -> dict | None:
    """What the real set gets; none where it has too few texts."""
    try:
        return function(*values)
    except UserError:
        return None


def scores_figures(name: str, scores: np.ndarray, real: np.ndarray, resamples: int, seed: int) -> list[dict]:
    own = "; the floor is that of the real images with their own texts"
    blanks = [
        assessment.figure(
            "clip_score", "adherence", "CLIP score", "higher", "", "mean cosine of an image with its text" + own, name
        ),
        assessment.figure(
            "clip_score_lowest", "adherence", "CLIP score, lowest tenth", "higher", "",
            "mean cosine of the tenth of the images that fit their texts least" + own, name,
        ),
    ]  # fmt: skip
    made = []
    for blank, function, more in zip(blanks, (mean_share, lowest), ((), (resamples, seed))):
        try:
            made.append(assessment.fill(blank, function(scores, *more), _floor(function, real, *more)))
        except UserError as error:
            made.append(assessment.refused(blank, f"{error}; texts are needed with the images"))
    return made


def phrase(key: str, value: str, article: str | None) -> str:
    """What an image is compared with, `a photo of red boots`; only the value differs between the candidates."""
    noun = name_article(value if key == "article" else article)[0]
    words = word_value(key, value)
    if key == "article":
        return f"a photo of {noun}"
    return f"a photo of {noun}, {words} collection" if key == "season" else f"a photo of {words} {noun}"


def read_off(encoder: Encoder, features: np.ndarray, records: list[dict], key: str, values: list[str]) -> list[str]:
    """The value whose phrase CLIP finds most like each image."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    articles = [None if key == "article" else one.get("article") for one in records]
    found = [""] * len(records)
    for article in set(articles):
        texts = text_features(encoder, [phrase(key, value, article) for value in values])
        texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
        at = [i for i, one in enumerate(articles) if one == article]
        for i, best in zip(at, (units[at] @ texts.T).argmax(1)):
            found[i] = values[best]
    return found


def split_means(records: list[dict], values: np.ndarray, key: str) -> list[dict]:
    """The mean for each value of an attribute, the most frequent first."""
    rows = []
    for value, _ in Counter(one[key] for one in records if one.get(key)).most_common(20):
        mine = values[[one.get(key) == value for one in records]]
        mine = mine[~np.isnan(mine)]
        if len(mine) > 1:
            all_or_nothing = set(np.unique(mine)) <= {0.0, 1.0}
            mean, low, high = (
                intervals.wilson(int(mine.sum()), len(mine)) if all_or_nothing else intervals.mean_interval(mine)
            )
            rows.append({"value": value, "mean": mean, "low": low, "high": high, "n": len(mine)})
    return rows


def attribute_hits(records: list[dict], seen: list[str], key: str) -> np.ndarray:
    """1 where the value seen is the one asked for, NaN where none is asked for."""
    return np.array([np.nan if not one.get(key) else float(value == one[key]) for one, value in zip(records, seen)])


def can_judge(hits: np.ndarray, records: list[dict], key: str) -> bool:
    """Whether CLIP reads an attribute off real images more often right than by naming always the most frequent."""
    labels = Counter(one[key] for one in records if one.get(key))
    known = hits[~np.isnan(hits)]
    if len(known) < FEWEST:
        return False
    return intervals.wilson(int(known.sum()), len(known))[1] > labels.most_common(1)[0][1] / len(known)


def accuracy_figure(
    name: str, key: str, hits: np.ndarray, real_hits: np.ndarray, values: int, example: str, able: bool
) -> dict:
    """`values`: how many there are to choose from; `example`: one of them."""
    blank = assessment.figure(
        f"{key}_accuracy", "adherence", f"Right {key} (zero-shot)", "higher", "%",
        f"share of images that {name} finds more like the {key} asked for than like any other of {values}, each put "
        f"as in `{phrase(key, example, 'Boots')}`; guessing gives about {1 / values:.0%}; the floor is the real "
        f"images', by their labels", name,
    )  # fmt: skip
    if not able:
        right = f"{np.nanmean(real_hits):.0%} of" if (~np.isnan(real_hits)).any() else "none of"
        return assessment.refused(blank, f"{name} reads {right} the real images' {key} right: it can't judge this")
    try:
        return assessment.fill(blank, mean_share(hits), _floor(mean_share, real_hits))
    except UserError as error:
        return assessment.refused(blank, f"{error}; the images carry too few attributes")


def shares(
    real: list[dict], generated: list[dict], key: str, seen: list[str] | None, real_seen: list[str] | None
) -> list[dict]:
    """Of each value: its share of the real set by its labels, of the generated set, and of what was asked for (plan).

    The generated set's by what CLIP sees, if `seen` is given (then `real_seen` is the real set's), else by labels.
    """

    def count(values: list[str | None]) -> tuple[Counter, int]:
        known = [value for value in values if value]
        return Counter(known), len(known)

    labels, asked = count([one.get(key) for one in real]), count([one.get(key) for one in generated])
    shown, real_shown = (count(values) if values else None for values in (seen, real_seen))

    def part(counts: tuple[Counter, int], value: str) -> dict | None:
        if not counts[1]:
            return None
        share, low, high = intervals.wilson(counts[0][value], counts[1])
        return {"share": share, "low": low, "high": high, "n": counts[1]}

    values = [value for value, _ in (labels[0] + asked[0]).most_common(20)]
    rows = []
    for value in values:
        row = {"value": value, "real": part(labels, value), "generated": part(shown or asked, value)}
        row["plan"] = asked[0][value] / asked[1] if asked[1] else None
        row["by"] = "clip" if shown else "labels"
        if real_shown:
            row["real_seen"] = part(real_shown, value)
        rows.append(row)
    return rows
