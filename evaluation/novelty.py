"""Novelty: are generated images copies of training images? The floors are the same figures of real test images.

The intervals are Wilson's, for other generated images with the same training images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evaluation import metrics
from evaluation.diversity import NEAR
from evaluation.figures import Figure, Measured, fill, measure_share
from evaluation.image_measures import find_look_alikes
from evaluation.image_sets import ImageSet
from evaluation.metrics import as_features, as_pair, nearest
from utils.cli import UserError, counted

LEAST = 20  # images of each set
LISTED = 24  # images of a kind in the report
JUDGES = ("dinov2", "clip", "demo", "inception")  # whose neighbours are listed: the first that there is
FIGURES = (
    Figure("auth_pct", "novelty", "Authentic images (AuthPct)", "near floor", "%"),
    Figure("copies", "novelty", "Suspected copies of training images", "lower", "%"),
)
NEAR_COPIES = Figure("near_copies", "novelty", "Near-copies by look", "lower", "%")
HOW = {
    "auth_pct": "share whose nearest training image is nearer to another training image than to it; copies give 0",
    "copies": "share nearer to a training image than 99 % of the real test images are (by that choice 1 % of those)",
    "near_copies": "share that looks like a training image or its mirror: of 256 bits of a perceptual hash 16 at most "
    "differ, and the colours by 3 levels",
}
FLOOR = "; the floor is the real test images' own"


class Neighbour(NamedTuple):
    generated: int
    train: int
    distance: float


@dataclass(frozen=True)
class Novelty:
    authentic: Measured
    copies: Measured
    nearest: list[Neighbour]  # each generated image's nearest training image; the nearest pair first


def compare_novelty(train: ArrayLike, test: ArrayLike, generated: ArrayLike) -> Novelty:
    """AuthPct and the share of suspected copies; their floors are those of the test images, which are not copies.

    Suspected is what lies nearer to a training image than all but 1 % of the test images do.
    """
    train, generated = as_pair(train, generated)
    test = as_features(test, what="test features")
    for what, features in (("training", train), ("real", test), ("generated", generated)):
        metrics.require(len(features), LEAST, f"{what} image")
    distances, which = (column[:, 0] for column in nearest(generated, train))
    calibration = nearest(test, train).distances[:, 0]
    threshold = float(np.quantile(calibration, NEAR))
    authentic = [measure_share(metrics.authentic(train, features)) for features in (generated, test)]
    copies = [measure_share(one < threshold) for one in (distances, calibration)]
    return Novelty(
        replace(authentic[0], floor=replace(authentic[1], n=None)),
        replace(copies[0], floor=replace(copies[1], n=None), threshold=threshold),
        [Neighbour(int(i), int(which[i]), float(distances[i])) for i in distances.argsort(kind="stable")],
    )


def judge_encoder(encoder: str, sets: Mapping[str, ImageSet]) -> tuple[list[Figure], list[dict[str, Any]]]:
    """The figures by one encoder's features, and the generated images nearest to a training image, suspected or not."""
    listed: list[dict[str, Any]] = []

    def compute() -> list[Measured]:
        found = compare_novelty(*(sets[name].features[encoder] for name in ("train", "real", "generated")))
        limit = found.copies.threshold
        for one in found.nearest[:LISTED]:
            near = {"nearest": sets["train"].paths[one.train], "distance": one.distance, "limit": limit}
            file = {"file": sets["generated"].paths[one.generated]}
            listed.append(file | near | {"suspected": one.distance < limit, "by": encoder})
        return [found.authentic, found.copies]

    figures = fill(FIGURES, compute)
    return [one.of(encoder, HOW[one.id] + FLOOR) for one in figures], listed


def judge_looks(sets: Mapping[str, ImageSet]) -> tuple[Figure, list[dict[str, Any]]]:
    """Near-copies by hash and colours, which need no encoder: the figure, and the pairs."""
    train, generated = sets["train"], sets["generated"]
    ids = [str(i) for i in range(len(train.records))]
    found = find_look_alikes(ids, train.measures, generated.measures)
    own = find_look_alikes(ids, train.measures, sets["real"].measures)
    floor = measure_share([copy for _, copy in own])
    copies = [
        {"file": file, "nearest": train.paths[int(near)], "distance": None, "limit": None}
        | {"suspected": True, "by": "look"}
        for file, (near, copy) in zip(generated.paths, found)
        if copy
    ]
    figure = NEAR_COPIES.of(None, HOW["near_copies"] + FLOOR)
    return replace(figure, measured=measure_share([copy for _, copy in found], floor)), copies


def judge_novelty(sets: Mapping[str, ImageSet], encoders: Sequence[str]) -> tuple[list[Figure], list[dict[str, Any]]]:
    """Figures by these encoders, and suspected pairs.

    Refuses test images that are training images, since they show what is not a copy.
    """
    shared = set(sets["real"].keys) & set(sets["train"].keys)
    if shared:
        raise UserError(
            f"--real and --train share {counted(len(shared), 'image')}: the test images set the "
            "limit for copies, so they must not be training images; give two splits, or leave out --train"
        )
    look, copies = judge_looks(sets)
    figures = [look]
    nearest_pairs: list[dict[str, Any]] = []
    for encoder in sorted(encoders, key=JUDGES.index):
        found, listed = judge_encoder(encoder, sets)
        figures += found
        nearest_pairs = nearest_pairs or listed
    known = {pair["file"] for pair in nearest_pairs}
    copies = [pair for pair in copies if pair["file"] not in known]
    return figures, (nearest_pairs + copies)[: 2 * LISTED]
