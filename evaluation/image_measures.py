"""What is measured of an image without an encoder: faults, background, the object's size and colour, its look."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from evaluation.feature_cache import cached_rows, content_keys
from utils import image_checks, images
from utils.console import track
from utils.parallel import thread_map

VERSION = "measures-3"  # names the cache: raise it with any change of what is measured
SIDE = 128  # pixels: everything but faults and look is measured on images no larger
FAULTS = (None, "unreadable", "NaN latents", "black (or NaN)", "of one colour", "noise")
COLUMNS = ("fault", "border", "touch", "extent", "lightness", "a", "b")
COLOUR = slice(COLUMNS.index("lightness"), len(COLUMNS))  # CIELAB of the object; NaN without one
HASH = len(COLUMNS)  # 32 bytes, then 32 of the mirrored image, then the thumbnail
MIRROR, THUMB = HASH + 32, HASH + 64
SIZE = THUMB + 768


def measure_border(image: Image.Image) -> tuple[float, float]:
    """How far the image's rim is from plain, in levels of 255, and the share of it that an object covers.

    Of the rim's pixels, how far the middle three quarters reach from the rim's median: an object that leaves the
    image covers less than a quarter, and makes no background unclean. Covered is what differs by more than 40.
    """
    pixels = np.asarray(image, dtype=np.int16)
    rim = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    rim = np.concatenate([rim, pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    apart = np.abs(rim - np.median(rim, axis=0)).max(1)
    return float(np.quantile(apart, 0.75)), float((apart > 40).mean())


def object_extent(image: Image.Image) -> float:
    """The longer side of the box around what differs from the background, as a share of the image's longer side."""
    mask = ndimage.binary_opening(images.differs_from_border(image, 16))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0
    return float(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1) / max(image.size)


def measure(path: Path) -> np.ndarray:
    """One row: COLUMNS, the hashes of it and its mirror, colour thumbnail."""
    row = np.zeros(SIZE, np.float32)
    try:
        image, _ = images.read_image(path)
    except images.BadImage:
        row[0] = FAULTS.index("unreadable")
        return row
    row[0] = FAULTS.index(image_checks.find_fault(image))
    square = image if image.width == image.height else images.fit_square(image, max(image.size))
    mirror = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    row[HASH:MIRROR] = images.perceptual_hash(square).view(np.uint8)
    row[MIRROR:THUMB] = images.perceptual_hash(mirror).view(np.uint8)
    row[THUMB:] = images.colour_thumb(square)
    small = image
    if max(image.size) > SIDE:
        width, height = (max(4, round(side * SIDE / max(image.size))) for side in image.size)
        small = image.resize((width, height), Image.Resampling.BOX)
    row[1:3] = measure_border(small)
    row[3] = object_extent(small)
    colour = images.object_colour(small)
    row[COLOUR] = np.nan if colour is None else colour
    return row


def is_readable(rows: np.ndarray) -> np.ndarray:
    return rows[:, 0] != FAULTS.index("unreadable")


def measure_images(
    files: Sequence[Path], cache: Path | None, workers: int = 1, keys: Sequence[str] | None = None
) -> np.ndarray:
    """A row for each file, in their order; cached by the file's content."""

    def compute(places: list[int]) -> Iterator[np.ndarray]:
        found = thread_map(measure, (files[i] for i in places), workers)
        for row in track(found, len(places), "images", "measuring"):
            yield row[None]

    keys = keys or content_keys(files, workers)
    return cached_rows(cache / VERSION if cache else None, keys, SIZE, compute)


def find_look_alikes(ids: list[str], known: np.ndarray, rows: np.ndarray) -> list[tuple[str, bool]]:
    """For each image the id of the `known` one that looks most like it or its mirror, and whether it is a copy."""
    codes, thumbs = known[:, HASH:MIRROR].astype(np.uint8).view(np.uint64), known[:, THUMB:].astype(np.uint8)
    index, found = image_checks.NearIndex(ids, codes, thumbs), []
    for row in rows:
        own, mirrored = row[HASH:THUMB].astype(np.uint8).reshape(2, 32).view(np.uint64)
        thumb = row[THUMB:].astype(np.int16)
        views = [(own, thumb), (mirrored, thumb.reshape(16, 16, 3)[:, ::-1].ravel())]
        name, bits, colour = image_checks.nearest_look(index, views)
        found.append((name, image_checks.is_near(bits, colour)))
    return found
