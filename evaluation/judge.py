"""All figures of an evaluation: of a generated set against real images, and of one person or subject."""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from evaluation import adherence, diversity, failures, novelty, quality, subject
from evaluation.adherence import Adherence
from evaluation.features import CLIPS, Encoder
from evaluation.figures import Figure, Rows, split_means
from evaluation.identity import Identity
from evaluation.image_sets import ImageSet, Record
from evaluation.metrics import describe_lack
from utils.parallel import available_cores, thread_map

SHOWN = 24  # images of a kind in the report
WITHOUT_REAL = "Without --real there are no figures of quality, of novelty, or of the faults of product photos."
UNCHECKED = "No encoder was checked on real images: fewer than {} were given."


@dataclass
class Findings:
    """What metrics.json says about the sets."""

    figures: list[Figure] = field(default_factory=list)
    splits: dict[str, dict[str, Rows]] = field(default_factory=dict)
    shares: dict[str, Rows] = field(default_factory=dict)
    images: dict[str, Rows] = field(default_factory=dict)  # examples for the report
    left_out: list[str] = field(default_factory=list)
    identity: Identity | None = None

    def as_json(self, folder: Path) -> dict[str, Any]:
        """With every path relative to the evaluation's folder, so that both can be moved together."""
        found = {"figures": [one.as_json() for one in self.figures], "splits": self.splits, "shares": self.shares}
        found["pictures"] = self.images
        if self.left_out:
            found["left_out"] = self.left_out
        if self.identity:
            found["identity"] = {"pictures": self.identity.rows, "references": self.identity.references.as_json()}
        return relative_paths(found, folder)


def relative_paths(value: Any, folder: Path) -> Any:
    """The value with every path in it as seen from the folder."""
    if isinstance(value, Path):
        return os.path.relpath(value.resolve(), folder.resolve())
    if isinstance(value, dict):
        return {key: relative_paths(one, folder) for key, one in value.items()}
    return [relative_paths(one, folder) for one in value] if isinstance(value, list) else value


def known_figures(given: set[str], encoders: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The ids that metrics.json will have. `given`: the flags that have a value; `columns`: the attributes."""
    real, train = "real" in given, "train" in given
    kinds = [*quality.FIGURES, *diversity.FIGURES, *(novelty.FIGURES if train else ())]
    kinds = kinds if real else list(diversity.OF_ONE_SET)
    found = [f"{kind.id}/{name}" for name in encoders for kind in kinds if quality.is_defined(kind, name)]
    for name in [name for name in encoders if name in CLIPS][:1]:
        scores = ["clip_score", "clip_score_lowest", *(f"{key}_accuracy" for key in columns if real)]
        found += [f"{kind}/{name}" for kind in scores]
    found += [one.id for one in failures.FIGURES] if real else ["invalid"]
    return [*found, *(["near_copies"] if train else []), *subject.known_figures(given, encoders)]


def predict_refusals(records: Mapping[str, list[Record]], known: Sequence[str]) -> dict[str, str]:
    """{id: why it will have no value} of the figures for which the numbers of images or texts say so."""
    counts = {f"{name.replace('train', 'training')} image": len(some) for name, some in records.items()}
    counts[adherence.WITH_TEXT] = sum(bool(one["text"]) for one in records["generated"])
    pair, all_three = ("real image", "generated image"), ("training image", "real image", "generated image")
    needs = {name: dict.fromkeys(pair, least) for name, least in quality.LEAST.items()}
    needs |= {kind.id: {"generated image": diversity.LEAST} for kind in diversity.OF_ONE_SET}
    needs["near_duplicates"] = dict.fromkeys(pair, diversity.LEAST)
    needs |= {kind.id: dict.fromkeys(all_three, novelty.LEAST) for kind in novelty.FIGURES}
    needs["clip_score"] = {adherence.WITH_TEXT: adherence.FEWEST}
    needs["clip_score_lowest"] = {adherence.WITH_TEXT: adherence.FEWEST_LOWEST}
    found: dict[str, str] = {}
    for figure in known:
        for what, least in needs.get(figure.partition("/")[0], {}).items():
            if lack := describe_lack(counts.get(what, 0), least, what):
                found.setdefault(figure, lack)
    return found


def choose_images(records: list[Record], scores: np.ndarray | None, seed: int) -> dict[str, Rows]:
    """A random sample of the set, and those whose texts fit best and worst (of the lowest tenth, at most).

    Not every tenth image or so: in a set whose kinds take turns that would be the same kind again and again.
    """
    sample = random.Random(seed).sample(records, min(SHOWN, len(records)))
    found: dict[str, Rows] = {"sample": [{"file": one["path"], "text": one["text"]} for one in sample]}
    if scores is not None and not np.isnan(scores).all():
        order = [int(i) for i in scores.argsort(kind="stable") if not np.isnan(scores[i])]
        lowest = order[: max(1, round(adherence.LOWEST * len(order)))]
        for name, places in (("worst", lowest[:SHOWN]), ("best", order[::-1][: SHOWN // 2])):
            found[name] = [
                {"file": records[i]["path"], "text": records[i]["text"], "score": float(scores[i])} for i in places
            ]
    return found


def judge_features(
    encoders: Sequence[Encoder], sets: dict[str, ImageSet], resamples: int, seed: int
) -> list[list[Figure]]:
    """For each encoder the figures of quality and diversity; without real images those that need none."""

    def judge(encoder: Encoder) -> list[Figure]:
        generated = sets["generated"].features[encoder.name]
        real = sets["real"].features[encoder.name] if "real" in sets else None
        found = quality.judge_quality(encoder.name, real, generated, resamples, seed) if real is not None else []
        return found + diversity.judge_diversity(encoder.name, real, generated, resamples, seed)

    with threadpool_limits(1):  # a core for each encoder: two cores for the matrices of one gain next to nothing
        return list(thread_map(judge, encoders, available_cores()))


def judge_against_real(
    encoders: Sequence[Encoder],
    sets: dict[str, ImageSet],
    all_generated: ImageSet,
    columns: dict[str, list[str]],
    resamples: int,
    seed: int,
) -> Findings:
    """`sets` hold readable images, `all_generated` the others too; `columns`: {attribute: its values}."""
    real, generated = sets["real"], sets["generated"]
    figures, by_text = [], Adherence()
    for encoder, found in zip(encoders, judge_features(encoders, sets, resamples, seed)):
        figures += found
        if encoder.embed_texts and by_text.scores is None:
            by_text = adherence.judge_adherence(encoder, sets, columns, resamples, seed)
            figures += by_text.figures
    splits = by_text.splits
    shares = by_text.shares or {key: adherence.count_shares(real.records, generated.records, key) for key in columns}
    failed, listed = failures.judge_failures(all_generated, real)
    right_colour = 1 - failures.find_failures(generated, failures.real_palette(real))["wrong_colour"]
    if by_colour := split_means(generated.records, right_colour, "colour", True, most=adherence.LISTED_VALUES):
        splits["measured_colour_accuracy"] = {"colour": by_colour}
    images = choose_images(generated.records, by_text.scores, seed) | {"copies": [], "failures": listed}
    images["real"] = choose_images(real.records, None, seed)["sample"]
    figures += failed
    if "train" in sets:
        found, images["copies"] = novelty.judge_novelty(sets, [one.name for one in encoders])
        figures += found
    return Findings(figures, splits, shares, images)


def judge_without_real(
    encoders: Sequence[Encoder], generated: ImageSet, all_generated: ImageSet, resamples: int, seed: int
) -> Findings:
    """What can be said of images that have none to be compared with: of the set alone, and examples."""
    figures = [one for found in judge_features(encoders, {"generated": generated}, resamples, seed) for one in found]
    scores = None
    for encoder in [one for one in encoders if one.embed_texts][:1]:
        scores = adherence.clip_scores(encoder, generated.features[encoder.name], generated.records)
        figures += adherence.score_figures(encoder.name, scores, None, resamples, seed)
    failed, listed = failures.judge_failures(all_generated, None)
    images = choose_images(generated.records, scores, seed) | {"copies": [], "failures": listed[:1]}
    return Findings(figures + failed[:1], images=images, left_out=[WITHOUT_REAL])  # the first is "invalid"
