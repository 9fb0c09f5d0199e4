"""What passes from one step of the preparation to the next."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils.catalogue import Product

Fault = tuple[str, str]  # reason, detail


@dataclass(frozen=True)
class Quality:
    """A portrait's row of the quality report; sharpness and brightness are those of the face, if there is one."""

    width: int
    height: int
    crop: tuple[int, int, int, int]
    shape: tuple[int, int]
    enlarged: float
    sharpness: float  # variance of the Laplacian at the training size
    brightness: float  # mean, 0 to 255
    black: float  # share of the pixels, as the next
    white: float
    faces: int | None  # None: no detector
    face_share: float | None  # of the crop's area


class Fitted(NamedTuple):
    """An image as it goes into the dataset, and the size it had on disk, upright."""

    image: Image.Image
    size: tuple[int, int]
    quality: Quality | None = None
    fault: Fault | None = None  # why a portrait is left out


@dataclass(frozen=True)
class ImageFacts:
    """The facts about an image: its fault, or the size, hash and thumb of what is written."""

    fault: Fault | None = None
    quality: Quality | None = None
    size: tuple[int, int] = (0, 0)
    hash: np.ndarray | None = None
    thumb: np.ndarray | None = None
    colour: np.ndarray | None = None  # of a product photo's object, in CIELAB
    on_white: bool = False  # whether its border is white
    sha256: str = ""


@dataclass(frozen=True)
class Example:
    """An image of the dataset with its caption, in its split."""

    product: Product
    caption: str
    image: ImageFacts
    split: str
