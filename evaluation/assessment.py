"""The figures of an evaluation as metrics.json holds them: each with n, a 95 % interval, what real photos get, and how.

A figure that the sets are too small for is `refused` with the reason, and has no value.
"""

from collections.abc import Callable, Sequence

import numpy as np

from evaluation import comparison, diversity, intervals
from evaluation.features import CLIPS
from utils.cli import UserError

HALVES = "the floor is the same between two halves of the real set, compared with what so many generated ones get"
QUALITY = {
    "frechet": ("Fréchet distance", "lower", "", "between Gaussians fitted to both sets' features; rises as n falls"),
    "kid": ("KID", "lower", "", "squared MMD of the features, cubic kernel, unbiased, over all pairs"),
    "cmmd": ("CMMD", "lower", "", "1000 times the squared MMD of features of length 1, Gaussian kernel of width 10"),
    "precision": (
        "Precision", "higher", "%", "share of generated images nearer to a real one than its fifth real neighbour"
    ),
    "recall": (
        "Recall", "higher", "%", "share of real images nearer to a generated one than its fifth generated neighbour"
    ),
    "density": (
        "Density", "near floor", "", "how many real ones a generated image is so near to, over 5: 1 if all is alike"
    ),
    "coverage": (
        "Coverage", "higher", "%", "share of real images with a generated one nearer than their fifth real neighbour"
    ),
}  # fmt: skip
DIVERSITY = {
    "vendi": ("Vendi score", "near floor", "", "effective number of different images, by the cosine of features"),
    "mean_distance": ("Mean pairwise distance", "near floor", "", "of the features of two images of the set"),
    "near_duplicates": (
        "Near-duplicates inside the set", "lower", "%",
        "share with another of the set nearer than the nearest 1 % of the real are (by that choice 1 % of those)",
    ),
}  # fmt: skip
NOVELTY = {
    "auth_pct": (
        "Authentic images (AuthPct)", "near floor", "%",
        "share whose nearest training image is nearer to another training image than to it; copies give 0",
    ),
    "copies": (
        "Suspected copies of training images", "lower", "%",
        "share nearer to a training image than 99 % of the real test images are (by that choice 1 % of those are)",
    ),
}  # fmt: skip


def figure(key: str, group: str, name: str, better: str, unit: str, how: str, encoder: str | None = None) -> dict:
    key = f"{key}/{encoder}" if encoder else key
    return {"id": key, "group": group, "name": name, "encoder": encoder, "better": better, "unit": unit, "how": how}


def fill(one: dict, found: dict, floor: dict | None = None) -> dict:
    kept = ("value", "low", "high", "n", "n_real", "n_generated", "at_floor_n", "resamples", "k", "threshold")
    blank = {"floor": floor or found.get("floor"), "at_floor_n": None}
    return one | blank | {key: found[key] for key in kept if key in found}


def refused(one: dict, why) -> dict:
    return one | {"value": None, "low": None, "high": None, "floor": None, "at_floor_n": None, "refused": str(why)}


def share(hits: Sequence[bool] | np.ndarray) -> dict:
    hits = np.asarray(hits, bool)
    return dict(zip(("value", "low", "high"), intervals.wilson(int(hits.sum()), len(hits)))) | {"n": len(hits)}


def _try(blanks: list[dict], compute: Callable[[], list[tuple]]) -> list[dict]:
    """The figures filled with what `compute` gives for each; all refused where it refuses."""
    try:
        return [fill(one, *found) for one, found in zip(blanks, compute(), strict=True)]
    except UserError as error:
        return [refused(one, error) for one in blanks]


def quality(encoder: str, real: np.ndarray, generated: np.ndarray, resamples: int, seed: int) -> list[dict]:
    """Fréchet, KID, CMMD (of CLIP alone, which it is defined on), precision, recall, density, coverage."""
    unequal = ""
    if len(real) != len(generated):
        unequal = f"; of {len(real)} real and {len(generated)} generated: at the smaller number, KID and CMMD of all"
    blanks = {
        key: figure(key, "quality", name, better, unit, f"{how}; {HALVES}{unequal}", encoder)
        for key, (name, better, unit, how) in QUALITY.items()
    }
    options = {"resamples": resamples, "seed": seed}
    figures = _try([blanks["frechet"]], lambda: [(comparison.compare_frechet(real, generated, **options),)])
    for name in ("kid", "cmmd") if encoder in CLIPS else ("kid",):
        figures += _try([blanks[name]], lambda: [(comparison.compare_mmd(real, generated, name, **options),)])  # noqa: B023
    names = ("precision", "recall", "density", "coverage")

    def neighbours():
        found = comparison.compare_prdc(real, generated, **options)
        return [(found[name],) for name in names]

    return figures + _try([blanks[name] for name in names], neighbours)


def variety(encoder: str, real: np.ndarray, generated: np.ndarray, resamples: int, seed: int) -> list[dict]:
    """Vendi score, mean distance, near-duplicates, the real set's beside them."""
    real_too = "; the floor is the real set's own"
    blanks = [
        figure(key, "diversity", name, better, unit, how + real_too, encoder)
        for key, (name, better, unit, how) in DIVERSITY.items()
    ]

    def compute():
        found = diversity.compare_diversity(real, generated, resamples, seed)
        return [(found[key], found[key]["real"]) for key in DIVERSITY]

    return _try(blanks, compute)


def scaled(found: dict, factor: float) -> dict:
    return found | {key: found[key] * factor for key in ("value", "low", "high")}


def novelty(encoder: str, train: np.ndarray, test: np.ndarray, generated: np.ndarray) -> tuple[list[dict], dict | None]:
    """AuthPct and suspected copies, and what compare_novelty says of the copies."""
    tested = "; the floor is the real test images' own"
    blanks = [
        figure(key, "novelty", name, better, unit, how + tested, encoder)
        for key, (name, better, unit, how) in NOVELTY.items()
    ]
    try:
        found = diversity.compare_novelty(train, test, generated)
    except UserError as error:
        return [refused(one, error) for one in blanks], None
    auth, copies = scaled(found["auth_pct"], 0.01), found["copies"]
    return [
        fill(blanks[0], auth, scaled(found["auth_pct"]["real"], 0.01)),
        fill(blanks[1], copies, copies["real"]),
    ], copies
