"""Images to train on: read from any layout, hashed, sized, bucketed; one crop of one image as a tensor."""

import hashlib
import io
import logging
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from families.models import side_step, training_shapes
from utils.cli import UserError
from utils.dataset import CHANGED
from utils.devices import keyed_generator
from utils.files import read_file
from utils.images import CONVERT, FORMATS, MOST_PIXELS, BadImage, ImageSource, is_heic, nearest_shape, read_image

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """An image and its caption, as the data has them; `sha256` is what its file must have, where that is known.

    `set`: the number of its data set, from 0; an epoch has it `repeats` times. `captions`: what one is drawn from, in
    place of the text, where there are several.
    """

    id: str
    source: ImageSource
    text: str | None
    sha256: str | None = None
    set: int = 0
    repeats: int = 1
    captions: tuple[str, ...] = ()


class Example(NamedTuple):
    """One image to train on; `shape` is the (width, height) it is fitted to, `sha256` that of its file.

    `set` and `captions`: as of a record.
    """

    id: str
    source: ImageSource
    text: str
    sha256: str
    size: tuple[int, int]
    shape: tuple[int, int]
    set: int = 0
    captions: tuple[str, ...] = ()

    def caption_at(self, share: float) -> str:
        """The caption that a draw in [0, 1) means."""
        return self.captions[int(share * len(self.captions))] if self.captions else self.text


def open_source(source: ImageSource) -> Path | bytes:
    return source() if callable(source) else source


class FileFacts(NamedTuple):
    sha256: str
    size: tuple[int, int]  # upright


class Fault(NamedTuple):
    problem: str


def _file_facts(record: Record) -> FileFacts | Fault:
    """What an image's file says, or what is wrong with it; only its header is decoded."""
    try:
        source = open_source(record.source)
        content = source if isinstance(source, bytes) else read_file(source)
        if not content:
            return Fault(f"{describe(record)} is empty")
        sha256 = hashlib.sha256(content).hexdigest()
        if record.sha256 not in (None, sha256):
            return Fault(f"{describe(record)} {CHANGED}")
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        # Of a TIFF, Pillow gives the upright size already.
        turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in range(5, 9)
        width, height = image.size[::-1] if turned else image.size
        if width * height > MOST_PIXELS:
            return Fault(f"{describe(record)} has {width}x{height} pixels, more than {MOST_PIXELS:,}")
    except UnidentifiedImageError:
        return Fault(f"{describe(record)} is {f'HEIC ({CONVERT})' if is_heic(content) else 'not an image'}")
    except Exception as error:  # whatever a damaged file makes a decoder raise
        return Fault(f"{describe(record)} can't be read ({error})")
    return FileFacts(sha256, (width, height))


def describe(one: Record | Example) -> str:
    """Its file, or the name that the dataset gives it."""
    return str(one.source) if isinstance(one.source, Path) else f"image {one.id}"


def fitting_shapes(model: str, resolution: int, buckets: bool, listed: str | None = None) -> list[tuple[int, int]]:
    """The (width, height) that images are fitted to: `listed` as h,w;h,w, or those of the resolution."""
    shapes = training_shapes(model, resolution, buckets)  # refuses a resolution that the model can't have
    if not listed:
        return shapes
    step = side_step(model)
    shapes = [(int(width), int(height)) for height, width in (one.split(",") for one in listed.split(";"))]
    for width, height in shapes:
        if width % step or height % step:
            raise UserError(
                f"--aspect_ratio_buckets {height},{width}: this model takes multiples of {step}; change its sides"
            )
    return sorted(set(shapes))


def largest_shape(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    return max(shapes, key=lambda shape: shape[0] * shape[1])


def data_fingerprint(examples: list[Example]) -> str:
    """Changes with any image or caption, and with their order."""
    lines = [f"{one.id} {one.sha256} " + ("\n".join(one.captions) or one.text) + "\n" for one in examples]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_captions(records: list[Record]) -> None:
    """Refuse images without a caption, with their number."""
    missing = [describe(one) for one in records if not one.text]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(records)} images have no caption ({', '.join(missing[:3])} …); put a <name>.txt "
            "beside each, name the column that holds the captions with --caption_column, or give all of them one with "
            "train_dreambooth.py --instance_prompt"
        )


def load_examples(records: list[Record], shapes: list[tuple[int, int]]) -> list[Example]:
    """The records of an epoch, each as often as it repeats, with what their files say.

    Refuses what has no caption or is no image.
    """
    check_captions(records)
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_file_facts` refuses what is too large
        facts = list(pool.map(_file_facts, records))
    _refuse_bad([found.problem for found in facts if isinstance(found, Fault)], len(records))
    return [
        example
        for one, found in zip(records, facts)
        if isinstance(found, FileFacts)
        for example in one.repeats * [_make_example(one, found, shapes)]
    ]


def _make_example(one: Record, found: FileFacts, shapes: list[tuple[int, int]]) -> Example:
    shape = nearest_shape(found.size, shapes)
    return Example(str(one.id), one.source, one.text or "", found.sha256, found.size, shape, one.set, one.captions)


def list_texts(images: Sequence[Record | Example]) -> list[str]:
    """Every caption that may be drawn."""
    return [text for one in images for text in one.captions or (one.text or "",)]


def shuffle_tags(record: Record, orders: int, keep: int) -> Record:
    """The record with so many random orders of each caption's tags, equal in every run; the first `keep` stay."""
    texts = record.captions or ((record.text,) if record.text else ())
    return record._replace(captions=tuple(order_tags(text, number, keep) for text in texts for number in range(orders)))


def order_tags(text: str, number: int, keep: int) -> str:
    """One order of what stands between the commas of a caption."""
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    rest = tags[keep:]
    order = torch.randperm(len(rest), generator=keyed_generator("tags", text, number)).tolist()
    return ", ".join([*tags[:keep], *(rest[i] for i in order)])


def count_epoch(records: list[Record]) -> int:
    """The samples of an epoch."""
    return sum(one.repeats for one in records)


def _refuse_bad(faults: list[str], count: int) -> None:
    if faults:
        raise UserError(f"{len(faults)} of {count} images: {'; '.join(faults[:5])}; remove or repair them")


def check_whole(examples: list[Example]) -> None:
    """Refuse images that do not decode to their end; a JPEG is decoded small, which takes less time."""

    def fault(example: Example) -> str | None:
        try:
            read_image(open_source(example.source), longest=64)
        except BadImage as error:
            return f"{describe(example)} can't be read ({error})"
        return None

    distinct = dict.fromkeys(examples)  # some may be there several times
    with ThreadPoolExecutor() as pool:
        _refuse_bad(list(filter(None, pool.map(fault, distinct))), len(distinct))


class View(NamedTuple):
    """A crop of an image: its place in the room that cropping leaves (0 to 1 across and down), and whether mirrored."""

    across: float = 0.5
    down: float = 0.5
    flip: bool = False


@dataclass(frozen=True)
class Views:
    """Which views of an image are trained: so many random crops (1: the centre, 0: unlimited), mirrored or not."""

    crops: int
    flip: bool
    interpolation: str  # the filter of the resize

    def centre(self) -> "Views":
        """The one view in which held-out images are seen."""
        return Views(1, False, self.interpolation)

    def of(self, examples: list[Example]) -> list[tuple[Example, View]]:
        """Every view that the sample plan can ask for; none where they are unlimited."""
        return [
            (example, choose_view(example, (number + 0.5) / self.crops, self.crops, flip))
            for example in examples
            for number in range(self.crops)
            for flip in ((False, True) if self.flip else (False,))
        ]


def choose_view(example: Example, crop: float, crops: int, flip: bool) -> View:
    """The view of a draw: the centre, one of `crops` random ones, or for 0 any; the same in every run."""
    if crops == 1:
        return View(flip=flip)
    token = int(crop * crops) if crops else crop
    u = torch.rand(2, generator=keyed_generator("crop", example.sha256, token), dtype=torch.float64).tolist()
    return View(round(u[0], 4), round(u[1], 4), flip)


def view_key(example: Example, view: View, interpolation: str) -> str:
    """All that decides the pixels: content, shape, crop, mirroring, filter; views that show the same have one key."""
    (width, height), (left, top) = example.shape, crop_place(example, view)[1]
    return f"{example.sha256}.{width}x{height}.{left},{top}{'.flip' * view.flip}.{interpolation}"


def crop_place(example: Example, view: View) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size that covers the shape, and the crop's (left, top) in it before mirroring.

    In whole numbers, and rounded down as torchvision's Resize does: so the centre is that of the diffusers scripts.
    """
    (width, height), (across, down) = example.shape, example.size
    wide = across * height > down * width
    size = (across * height // down, height) if wide else (width, down * width // across)
    return size, (round((size[0] - width) * view.across), round((size[1] - height) * view.down))


def time_ids(example: Example, view: View) -> list[int]:
    """SDXL's micro-conditioning: original height and width, top and left of the crop, target height and width."""
    (width, _), (left, top) = crop_place(example, view)
    left = width - example.shape[0] - left if view.flip else left
    return [*example.size[::-1], top, left, *example.shape[::-1]]


def example_tensor(example: Example, view: View, interpolation: str = "lanczos") -> torch.Tensor:
    """(3, height, width) in -1 … 1: decoded, upright, resized to cover its shape, cropped, mirrored."""
    try:
        image, _ = read_image(open_source(example.source))
    except BadImage as error:
        raise UserError(f"{describe(example)} can't be read ({error}); remove or replace it") from None
    size, (left, top) = crop_place(example, view)
    # For images Pillow's nearest is what torchvision calls nearest_exact.
    filter = Image.Resampling[interpolation.removesuffix("_exact").upper()]
    image = image if image.size == size else image.resize(size, filter)
    image = image.crop((left, top, left + example.shape[0], top + example.shape[1]))
    image = ImageOps.mirror(image) if view.flip else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
