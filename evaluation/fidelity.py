"""Fidelity to a subject without any face: pure functions of features, each giving figures of metrics.json.

CLIP-I and DINO: cosines of images to the photos of the subject. CLIP-T: to their prompts. Divergence from the prior:
what training has done to images of the class, of the same prompts and seeds before and after.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from evaluation.intervals import LEVEL, mean_interval
from evaluation.metrics import normalise
from utils.cli import UserError

LEAST = 2  # of each set: fewer have no spread


def _rows(features: np.ndarray, what: str) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < LEAST:
        raise UserError(f"fidelity, {what}: needs features of at least {LEAST} images, found shape {features.shape}")
    return normalise(features, what)


def mean_similarity(features: np.ndarray) -> float:
    """The mean cosine of different rows (of length 1): 1 where all images are alike."""
    n = len(features)
    return float((np.square(features.sum(0)).sum() - n) / (n * (n - 1)))


def jackknife(arrays: Sequence[np.ndarray], statistic: Callable[..., float]) -> tuple[float, float, float]:
    """A statistic of equally long arrays and its interval, from leaving out one item at a time.

    A bootstrap would draw items twice, and a twin's cosine of 1 is no variety lost.
    """
    n = len(arrays[0])
    value = statistic(*arrays)
    if n < 3:
        raise UserError(f"an interval by jackknife: needs at least 3 items, found {n}")
    left = np.array([statistic(*(np.delete(one, i, 0) for one in arrays)) for i in range(n)])
    error = math.sqrt((n - 1) / n * np.square(left - left.mean()).sum())
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
    return float(value), float(value - half), float(value + half)


def _figure(name: str, title: str, encoder: str, estimate: tuple, n: int, better: str, how: str, floor=None) -> dict:
    floor = dict(zip(("value", "low", "high"), floor)) if floor else None
    figure = {"id": f"fidelity/{name}/{encoder}", "group": "fidelity", "name": title, "encoder": encoder, "n": n}
    figure |= dict(zip(("value", "low", "high"), map(float, estimate)))
    return figure | {"better": better, "unit": "", "floor": floor, "at_floor_n": None, "how": how}


def subject_similarity(instance: np.ndarray, images: np.ndarray, encoder: str) -> list[dict]:
    """CLIP-I or DINO, as the encoder is: the mean cosine of every image to every photo of the subject.

    The photos are given, the images a sample: the interval is over images. The floor is what the photos get among
    themselves, where there are three; nearly all the way to it may also mean that they were learnt by heart.
    """
    instance, images = _rows(instance, "instance photos"), _rows(images, "images")
    each = (images @ instance.T).mean(1)
    name = {"clip": "CLIP-I", "dinov2": "DINO"}.get(encoder, "Likeness to the photos")
    floor = jackknife([instance], mean_similarity) if len(instance) >= 3 else None
    how = f"mean cosine of {len(images)} images to {len(instance)} photos of the subject, Student over images"
    how += "; floor: photos among themselves, jackknife" if floor else ""
    return [
        {
            **_figure("subject", name, encoder, mean_interval(each), len(each), "higher", how, floor),
            "n_real": len(instance),
        }
    ]


def prompt_similarity(images: np.ndarray, texts: np.ndarray, encoder: str = "clip") -> list[dict]:
    """CLIP-T: the mean cosine of each image to its own prompt; rows belong together."""
    images, texts = _rows(images, "images"), _rows(texts, "prompts")
    if images.shape != texts.shape:
        raise UserError(f"CLIP-T: images and prompts differ, {images.shape} and {texts.shape}; expected one for one")
    each = (images * texts).sum(1)
    how = "mean cosine of each image to its prompt, Student over images"
    return [_figure("prompt", "CLIP-T", encoder, mean_interval(each), len(each), "higher", how)]


def prior_divergence(
    before: np.ndarray, after: np.ndarray, encoder: str, instance: np.ndarray | None = None
) -> list[dict]:
    """What training did to the class: rows are images of the same prompt and seed, before and after.

    How far each image moved, how much variety was lost, and (with photos of the subject) how far the class has turned
    into the subject. The last two are differences, after less before: 0 is no harm.
    """
    before, after = _rows(before, "class images before"), _rows(after, "class images after")
    if before.shape != after.shape:
        raise UserError(f"divergence from the prior: {before.shape} before, {after.shape} after; expected one for one")
    n = len(before)
    moved = mean_interval((1 - (before * after).sum(1)).round(12))  # the same image twice: 0, and not 1e-17
    how = "mean of 1 - cosine between the class images of one prompt and seed, before and after training; Student"
    figures = [_figure("prior_distance", "Distance from the prior", encoder, moved, n, "lower", how)]
    if n >= 3:
        lost = jackknife([before, after], lambda one, other: mean_similarity(other) - mean_similarity(one))
        how = "mean cosine among the class images after, less that before (0: as varied as it was); jackknife"
        figures.append(_figure("prior_variety", "Variety of the class lost", encoder, lost, n, "lower", how))
    if instance is not None:
        instance = _rows(instance, "instance photos")
        drift = mean_interval(((after - before) @ instance.T).mean(1))
        how = "mean cosine of the class images to the subject's photos after, less that before (0: no leak); Student"
        figures.append(_figure("prior_leak", "Subject in the class", encoder, drift, n, "lower", how))
    return figures
