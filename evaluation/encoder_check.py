"""Does an encoder understand the real images? Only then do its figures mean anything.

An encoder that was trained on other images (the demo's on drawn shoes) gives figures that look sound, and good ones to
a blurred set. So each must first tell the real images from spoilt copies of them, and what is known of the images must
show in its features.
"""

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from evaluation.adherence import USUAL
from evaluation.features import Encoder, image_features
from evaluation.image_sets import ImageSet, Record, Work
from evaluation.intervals import wilson
from evaluation.kernels import squared_distances
from evaluation.metrics import nearest, normalise
from utils.images import crop_centre

MOST, LEAST = 64, 4  # images that are looked at
LEAST_LABELLED = 20
NEEDED = 0.8  # of the images told from their copies; guessing gives 0.5, encoders that know such images 0.95 and more
SIDE = 336  # pixels: copies of larger images are reduced to it, which is what the largest usual encoder sees
GRID = 64  # noise has as many grains a side, so that no encoder averages it away
TILES = 4
VERSION = "spoilt-1"  # part of the cache's keys: raise it with any change of the copies


def blur(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(image.width / 24)))


def add_noise(pixels: np.ndarray) -> np.ndarray:
    grains = np.random.default_rng(0).normal(0, 70, (GRID, GRID, 3))
    places = np.arange(len(pixels)) * GRID // len(pixels)
    return (pixels + grains[places][:, places]).clip(0, 255).astype(np.uint8)


def shuffle(pixels: np.ndarray) -> np.ndarray:
    """The same tiles in another order."""
    side = len(pixels) // TILES
    tiles = pixels.reshape(TILES, side, TILES, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    mixed = tiles[np.random.default_rng(0).permutation(len(tiles))].reshape(TILES, TILES, side, side, 3)
    return mixed.swapaxes(1, 2).reshape(pixels.shape)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"blurred": blur, "noised": add_noise, "shuffled": shuffle}


def spoil(image: Image.Image, kind: str) -> Image.Image:
    """A copy of the middle square, which is what encoders see, with sides that can be divided into tiles."""
    square = crop_centre(image)
    side = max(TILES, min(square.width, SIDE) // TILES * TILES)
    return Image.fromarray(COPIES[kind](np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))))


def share_told(real: np.ndarray, copies: np.ndarray) -> float:
    """How often the nearest neighbour is of one's own kind, real or copy; one's own counterpart does not count.

    The nearest-neighbour test for two samples (Lopez-Paz & Oquab 2017, arXiv 1610.06545): 0.5 if they look the same.
    """
    n, both = len(real), normalise(np.concatenate([real, copies]).astype(np.float64))
    distances = squared_distances(both, both)
    own = np.arange(2 * n)
    distances[own, own] = distances[own, (own + n) % (2 * n)] = np.inf
    return float(((distances.argmin(1) >= n) == (own >= n)).mean())


def read_labels(features: np.ndarray, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """{attribute: how often an image's nearest neighbour has the same value, and how often another image has it}.

    Of the attributes that enough images have, with two values or more.
    """
    found = {}
    for key in USUAL:
        known = [i for i, one in enumerate(records) if one.get(key)]
        values = np.array([records[i][key] for i in known])
        counts = np.array(list(Counter(values.tolist()).values()))
        if len(known) < LEAST_LABELLED or len(counts) < 2:
            continue
        same = values[nearest(normalise(features[known])).which[:, 0]] == values
        share, low, high = wilson(int(same.sum()), len(same))
        chance = float((counts * (counts - 1)).sum() / (len(known) * (len(known) - 1)))
        found[key] = {"share": share, "low": low, "high": high, "chance": chance, "n": len(known)}
    return found


def find_problem(told: dict[str, float], read: dict[str, dict[str, Any]]) -> str:
    """Why an encoder's figures don't count, in words; empty where they do."""
    mean = sum(told.values()) / len(told)
    if mean < NEEDED:
        each = ", ".join(f"{kind} {share:.0%}" for kind, share in told.items())
        return (
            f"it tells {mean:.0%} of the real images from spoilt copies of them ({each}); guessing gives 50%, and "
            f"{NEEDED:.0%} are needed"
        )
    if read and not any(one["low"] > one["chance"] for one in read.values()):
        each = ", ".join(f"{key} {one['share']:.0%}, by chance {one['chance']:.0%}" for key, one in read.items())
        return f"nothing that is known of the real images shows in its features ({each})"
    return ""


def check_encoder(encoder: Encoder, images: ImageSet, work: Work) -> dict[str, Any]:
    """What metrics.json has of the check; `problem` is empty where the encoder passes."""
    chosen = random.Random(0).sample(range(len(images.paths)), min(MOST, len(images.paths)))
    told = {}
    for kind in COPIES:
        keys = [hashlib.sha256(f"{images.keys[i]} {VERSION} {kind}".encode()).hexdigest() for i in chosen]
        made = functools.partial(spoil, kind=kind)
        files = [images.paths[i] for i in chosen]
        copies = image_features(encoder, files, work.cache, work.batch_size, work.workers, keys, made)
        told[kind] = share_told(images.features[encoder.name][chosen], copies)
    read = read_labels(images.features[encoder.name], images.records)
    return {"n": len(chosen), "told": told, "labels": read, "problem": find_problem(told, read)}


def check_encoders(encoders: Sequence[Encoder], sets: Mapping[str, ImageSet], work: Work) -> dict[str, dict[str, Any]]:
    """{encoder: its check} on the real images, or else the photos of the subject; empty where these are too few."""
    images = sets.get("real") or sets.get("instance_data_dir")
    if images is None or len(images.records) < LEAST:
        return {}
    return {one.name: check_encoder(one, images, work) for one in encoders}
