"""Fidelity to a subject without any face: pure functions of features.

CLIP-I and DINO: cosines of images to the photos of the subject. CLIP-T: to their prompts (Ruiz et al. 2022,
arXiv 2208.12242). Divergence from the prior: what training has changed in images of the class, of the same prompts and
seeds before and after.
"""

from dataclasses import replace

import numpy as np

from evaluation.figures import Figure, measure
from evaluation.intervals import Estimate, jackknife, mean_interval
from evaluation.metrics import normalise
from utils.cli import UserError

LEAST = 2  # images of each set: fewer have no spread
PRIOR = ("prior_distance", "prior_variety", "prior_leak")


def _rows(features: np.ndarray, what: str) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < LEAST:
        raise UserError(f"fidelity, {what}: needs features of at least {LEAST} images, found shape {features.shape}")
    return normalise(features, what)


def mean_similarity(features: np.ndarray) -> float:
    """The mean cosine of different rows (of length 1): 1 where all images are alike."""
    n = len(features)
    return float((np.square(features.sum(0)).sum() - n) / (n * (n - 1)))


def make_figure(kind: str, name: str, encoder: str, how: str, better: str = "lower") -> Figure:
    return Figure(f"fidelity/{kind}", "fidelity", name, better, "", how).of(encoder)


def with_value(figure: Figure, estimate: Estimate, n: int) -> Figure:
    return replace(figure, measured=measure(estimate, n))


def subject_similarity(instance: np.ndarray, images: np.ndarray, encoder: str) -> Figure:
    """CLIP-I or DINO, as the encoder is: the mean cosine of every image to every photo of the subject.

    The photos are given, the images a sample: the interval is over images. The floor is what the photos get among
    themselves, where there are three; a value nearly as high may also mean that they were memorised.
    """
    instance, images = _rows(instance, "instance photos"), _rows(images, "images")
    each = (images @ instance.T).mean(1)
    floor = measure(jackknife([instance], mean_similarity)) if len(instance) >= 3 else None
    how = f"mean cosine of {len(images)} images to {len(instance)} photos of the subject, Student over images"
    how += "; floor: photos among themselves, jackknife" if floor else ""
    name = {"clip": "CLIP-I", "dinov2": "DINO"}.get(encoder, "Likeness to the photos")
    found = measure(mean_interval(each), len(each), floor, n_real=len(instance))
    return replace(make_figure("subject", name, encoder, how, "higher"), measured=found)


def prompt_similarity(images: np.ndarray, texts: np.ndarray, encoder: str = "clip") -> Figure:
    """CLIP-T: the mean cosine of each image to its own prompt; rows belong together."""
    images, texts = _rows(images, "images"), _rows(texts, "prompts")
    if images.shape != texts.shape:
        raise UserError(f"CLIP-T: images and prompts differ, {images.shape} and {texts.shape}; expected one for one")
    how = "mean cosine of each image to its prompt, Student over images"
    each = (images * texts).sum(1)
    return with_value(make_figure("prompt", "CLIP-T", encoder, how, "higher"), mean_interval(each), len(each))


def prior_divergence(
    before: np.ndarray, after: np.ndarray, encoder: str, instance: np.ndarray | None = None
) -> list[Figure]:
    """What training changed in the class: rows are images of the same prompt and seed, before and after.

    How far each image moved, how much variety was lost, and (with photos of the subject) how far the class has turned
    into the subject. The last two are differences, after less before: 0 means no harm.
    """
    before, after = _rows(before, "class images before"), _rows(after, "class images after")
    if before.shape != after.shape:
        raise UserError(f"divergence from the prior: {before.shape} before, {after.shape} after; expected one for one")
    n = len(before)
    how = "mean of 1 - cosine between the class images of one prompt and seed, before and after training; Student"
    moved = (1 - (before * after).sum(1)).round(12)  # the same image twice: 0, and not 1e-17
    figures = [with_value(make_figure(PRIOR[0], "Distance from the prior", encoder, how), mean_interval(moved), n)]
    if n >= 3:
        how = "mean cosine among the class images after, less that before (0: as varied as it was); jackknife"
        lost = jackknife([before, after], lambda one, other: mean_similarity(other) - mean_similarity(one))
        figures.append(with_value(make_figure(PRIOR[1], "Variety of the class lost", encoder, how), lost, n))
    if instance is not None:
        how = "mean cosine of the class images to the subject's photos after, less that before (0: no leak); Student"
        leak = mean_interval(((after - before) @ _rows(instance, "instance photos").T).mean(1))
        figures.append(with_value(make_figure(PRIOR[2], "Subject in the class", encoder, how), leak, n))
    return figures
