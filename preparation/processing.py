"""Read, check, fit and write the images, in several processes."""

import hashlib
import io
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from preparation.portraits import PortraitRules, prepare_portrait
from preparation.records import Fitted, ImageFacts
from utils.catalogue import Product, file_or_bytes
from utils.console import track
from utils.faces import Faces
from utils.images import (
    BadImage,
    border_pixels,
    colour_thumb,
    crop_centre,
    fit_square,
    is_blank,
    object_colour,
    perceptual_hash,
    read_image,
)
from utils.parallel import parallel_map

if TYPE_CHECKING:
    import datasets

WHITE = 240  # of 255; the grey backgrounds of 226 catalogue photos have 230 at most


@dataclass(frozen=True)
class Framing:
    """How an image is brought to the size of the dataset: a square, or as a portrait."""

    side: int
    pad: str
    crop: str  # none, centre or foreground
    max_pixels: int
    portraits: PortraitRules | None = None
    faces: Faces | None = None


def process_images(
    products: list[Product], dataset: "datasets.Dataset | None", framing: Framing, folder: Path | None, workers: int
) -> dict[str, ImageFacts]:
    """{id: facts}, in the order of the products; writes <folder>/<id>.png if there is a folder."""
    jobs = ((one.id, file_or_bytes(dataset, one.image)) for one in products)
    results = parallel_map(partial(process_image, framing=framing, folder=folder), jobs, workers)
    tracked = track(results, len(products), "images", "reading")
    return {one.id: facts for one, facts in zip(products, tracked, strict=True)}


def process_image(job: tuple[str, Path | bytes], framing: Framing, folder: Path | None) -> ImageFacts:
    """The facts about one image (id, source). Runs in a worker process."""
    product_id, source = job
    try:
        fitted = fit_image(source, framing)
    except BadImage as error:
        return ImageFacts((error.reason, error.detail))
    if fitted.fault:
        return ImageFacts(fitted.fault, fitted.quality)
    image, sha256 = fitted.image, ""
    if folder:
        png = io.BytesIO()
        image.save(png, "PNG")
        (folder / f"{product_id}.png").write_bytes(png.getvalue())
        sha256 = hashlib.sha256(png.getvalue()).hexdigest()
    facts = ImageFacts(None, fitted.quality, fitted.size, perceptual_hash(image), colour_thumb(image), sha256=sha256)
    if framing.portraits:
        return facts
    small = image.resize((128, 128), Image.Resampling.BOX)
    return replace(facts, colour=object_colour(small), on_white=has_white_border(small))


def fit_image(source: Path | bytes, framing: Framing) -> Fitted:
    """The image as it goes into the dataset, a product photo in a square; raises BadImage."""
    if framing.portraits:
        return prepare_portrait(source, framing.max_pixels, framing.portraits, framing.faces)
    longest = framing.side if framing.crop == "none" else None
    shortest = framing.side if framing.crop == "centre" else None
    image, size = read_image(source, framing.max_pixels, longest, shortest)
    if is_blank(image):
        raise BadImage("blank or near uniform", f"{size[0]}x{size[1]}")
    if framing.crop == "centre":
        image = crop_centre(image)
    elif framing.crop == "foreground":
        image = image.crop(foreground_box(image))
    return Fitted(fit_square(image, framing.side, framing.pad), size)


def has_white_border(image: Image.Image) -> bool:
    """Whether three quarters of the border are white, or nearly: an object may touch the rest."""
    return bool((border_pixels(image).min(1) >= WHITE).mean() >= 0.75)


def foreground_box(image: Image.Image, margin: float = 0.05) -> tuple[int, int, int, int]:
    """The box around all that has edges, with a margin of its longer side; the whole image if nothing has.

    Edges and not colours: the backgrounds of product photos are often gradients, as bright as a part of the object.
    """
    scale = min(1, 256 / max(image.size))
    small = image.resize([max(2, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    down, across = np.abs(np.diff(pixels, axis=0))[:, :-1], np.abs(np.diff(pixels, axis=1))[:-1]
    edges = np.maximum(down, across).max(2) > 8
    ys, xs = np.flatnonzero(edges.sum(1) >= 2), np.flatnonzero(edges.sum(0) >= 2)
    if not (len(ys) and len(xs)):
        return (0, 0, *image.size)
    room = margin * max(xs[-1] - xs[0], ys[-1] - ys[0])
    left, top = (max(0, math.floor((first - room) / scale)) for first in (xs[0], ys[0]))
    right, bottom = (
        min(side, math.ceil((last + 2 + room) / scale)) for last, side in zip((xs[-1], ys[-1]), image.size)
    )
    return left, top, right, bottom
