"""Pictures to train on: read from any layout, hashed, sized, bucketed; one crop of one picture as a tensor."""

import functools
import hashlib
import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from utils import data, models, sources
from utils.cli import UserError
from utils.images import FORMATS, BadImage, read_image
from utils.sampling import keyed_generator

logger = logging.getLogger(__name__)


class Picture(NamedTuple):
    """One picture to train on; `shape` is the (width, height) it is fitted to, `sha256` that of its file."""

    id: str
    source: Path | Callable[[], Path | bytes]  # of a hub dataset: what fetches the encoded bytes
    text: str
    sha256: str
    size: tuple[int, int]
    shape: tuple[int, int]


def read_records(
    folder: str, image_column: str | None, caption_column: str, config: str | None = None
) -> tuple[list[dict], list[dict]]:
    """{"id", "source", "text"} of the training and of the held-out pictures, from whatever layout is there."""
    root = Path(folder)
    if (root / "metadata.json").is_file():
        counts = data.read_metadata(root)["counts"]
        splits = [data.read_split(root, split) if split in counts else [] for split in ("train", "val")]
        return tuple([{"id": one["id"], "source": one["path"], "text": one["text"]} for one in part] for part in splits)
    parts = [root]
    if (root / "train").is_dir():  # an imagefolder with splits: its test pictures must not be trained on
        parts = [root / "train"] + [root / name for name in ("val", "validation") if (root / name).is_dir()][:1]
    found = [_read_products(str(part), image_column, caption_column, config) for part in parts]
    return found[0], found[1] if len(found) > 1 else []


def _read_products(name: str, image_column, caption_column, config) -> list[dict]:
    try:
        found = sources.read_catalogue(name, image_column, caption_column, config, "train")
    except UserError as error:
        raise UserError(str(error).replace("--catalogue", "--train_data_dir")) from None
    if found.rejected:
        reasons = Counter(one["reason"] for one in found.rejected)
        counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        logger.warning(
            "%s: %d of %d rows are left out (%s), such as %s",
            name, len(found.rejected), found.rows, counts, found.rejected[0]["id"]
        )  # fmt: skip
    return [
        {
            "id": one["id"],
            "text": one["text"],
            "source": functools.partial(sources.picture_source, found.dataset, one["image"])
            if isinstance(one["image"], int)
            else one["image"],
        }
        for one in found.products
    ]


def open_source(source: Path | Callable[[], Path | bytes]) -> Path | bytes:
    return source() if callable(source) else source


def hold_out(records: list[dict], fraction: float) -> tuple[list[dict], list[dict]]:
    """Training and held-out records; a hash of the id decides, so that growth moves nothing."""
    limit = fraction * 2**32
    held = [int.from_bytes(hashlib.sha256(str(one["id"]).encode()).digest()[:4], "big") < limit for one in records]
    return [one for one, out in zip(records, held) if not out], [one for one, out in zip(records, held) if out]


def _file_facts(record: dict) -> tuple[str, tuple[int, int]]:
    """sha256 and upright size; only the header of the picture is decoded."""
    try:
        source = open_source(record["source"])
        content = source if isinstance(source, bytes) else source.read_bytes()
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        # Of a TIFF, Pillow gives the upright size already.
        turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in range(5, 9)
        size = image.size[::-1] if turned else image.size
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise UserError(f"{describe(record)} can't be read ({error}); remove it, or mend it") from None
    return hashlib.sha256(content).hexdigest(), size


def describe(record: dict | Picture) -> str:
    one = record if isinstance(record, dict) else record._asdict()
    return str(one["source"]) if isinstance(one["source"], Path) else f"picture {one['id']}"


def bucket_shapes(resolution: int, step: int) -> list[tuple[int, int]]:
    """Shapes of about resolution² pixels, sides multiples of `step`, from 1:2 to 2:1 and the square."""
    shapes = {(resolution, resolution)}
    for side in range(step * math.ceil(resolution / math.sqrt(2) / step), resolution, step):
        other = int(resolution * resolution / side) // step * step
        shapes |= {(side, other), (other, side)}
    return sorted(shapes)


def nearest_shape(size: tuple[int, int], shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The shape whose proportions are nearest to the picture's."""
    aspect = math.log(size[0] / size[1])
    return min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - aspect), shape))


def training_shapes(model: str, resolution: int, buckets: bool) -> list[tuple[int, int]]:
    """The shapes that pictures are fitted to: sides that the VAE and every level of the UNet can halve."""
    vae, unet = (models.read_config(model, f"{part}/config.json") for part in ("vae", "unet"))
    step = 2 ** (len(vae["block_out_channels"]) + len(unet["block_out_channels"]) - 2)
    if resolution % step:
        near = max(step, round(resolution / step) * step)
        raise UserError(f"--resolution {resolution}: this model takes multiples of {step}, such as {near}")
    return bucket_shapes(resolution, step) if buckets else [(resolution, resolution)]


def read_training_records(
    folder: str,
    image_column: str | None,
    caption_column: str,
    config: str | None = None,
    share_held_out: float = 0.0,
    max_samples: int | None = None,
    seed: int = 0,
) -> tuple[list[dict], list[dict]]:
    """What to train on and what is held out, of any layout."""
    train, held_out = read_records(folder, image_column, caption_column, config)
    if share_held_out and not held_out:
        train, held_out = hold_out(train, share_held_out)
    if max_samples and max_samples < len(train):
        chosen = torch.randperm(len(train), generator=keyed_generator("samples", seed))[:max_samples]
        train = [train[i] for i in sorted(chosen.tolist())]
    if not train:
        raise UserError(f"--train_data_dir {folder}: there is no picture to train on")
    return train, held_out


def trigger_word(folder: str) -> str | None:
    """The trigger word that prepare_dataset.py put before every caption, if it did."""
    root = Path(folder)
    return data.read_metadata(root)["options"].get("trigger_word") if (root / "metadata.json").is_file() else None


def all_views(found: list[Picture], crops: int, flip: bool) -> list[tuple[Picture, "View"]]:
    """Every view that draws can ask for; none where crops are endless (0)."""
    tokens = [(number + 0.5) / crops for number in range(crops)]
    return [
        (picture, choose_view(picture, token, crops, mirrored))
        for picture in found
        for token in tokens
        for mirrored in ((False, True) if flip else (False,))
    ]


def data_fingerprint(found: list[Picture]) -> str:
    """Changes with any picture or caption, and with their order."""
    lines = "".join(f"{one.id} {one.sha256} {one.text}\n" for one in found)
    return hashlib.sha256(lines.encode()).hexdigest()


def load_pictures(records: list[dict], shapes: list[tuple[int, int]]) -> list[Picture]:
    """The records with what their files say; pictures without a caption are an error that counts them."""
    silent = [describe(one) for one in records if not one["text"]]
    if silent:
        raise UserError(
            f"--train_data_dir: {len(silent)} of {len(records)} pictures have no caption, such as "
            f"{', '.join(silent[:3])}; put a <name>.txt beside each, or name the column that "
            "holds them with --caption_column"
        )
    with ThreadPoolExecutor() as pool:
        facts = list(pool.map(_file_facts, records))
    return [
        Picture(str(one["id"]), one["source"], one["text"], sha256, size, nearest_shape(size, shapes))
        for one, (sha256, size) in zip(records, facts)
    ]


class View(NamedTuple):
    """How a picture is seen: where in the room that cropping leaves (0 to 1 across and down), and whether mirrored."""

    across: float = 0.5
    down: float = 0.5
    flip: bool = False


def choose_view(picture: Picture, crop: float, crops: int, flip: bool) -> View:
    """The view of a draw: the centre, one of `crops` random ones, or for 0 any; the same in every run."""
    if crops == 1:
        return View(flip=flip)
    token = int(crop * crops) if crops else crop
    u = torch.rand(2, generator=keyed_generator("crop", picture.sha256, token), dtype=torch.float64).tolist()
    return View(*(round(x, 4) for x in u), flip)


def view_key(picture: Picture, view: View, interpolation: str) -> str:
    """All that decides the pixels: content, shape, crop, mirroring, filter; views that show the same have one key."""
    (width, height), (left, top) = picture.shape, crop_place(picture, view)[1]
    return f"{picture.sha256}.{width}x{height}.{left},{top}{'.flip' * view.flip}.{interpolation}"


def crop_place(picture: Picture, view: View) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size that covers the shape, and the crop's (left, top) in it before mirroring.

    In whole numbers, and rounded down as torchvision's Resize does: so the centre is that of the diffusers scripts.
    """
    (width, height), (across, down) = picture.shape, picture.size
    wide = across * height > down * width
    size = (across * height // down, height) if wide else (width, down * width // across)
    return size, (round((size[0] - width) * view.across), round((size[1] - height) * view.down))


def time_ids(picture: Picture, view: View) -> list[int]:
    """SDXL's micro-conditioning: original height and width, top and left of the crop, target height and width."""
    (width, _), (left, top) = crop_place(picture, view)
    left = width - picture.shape[0] - left if view.flip else left
    return [*picture.size[::-1], top, left, *picture.shape[::-1]]


def picture_tensor(picture: Picture, view: View, interpolation: str = "lanczos") -> torch.Tensor:
    """(3, height, width) in -1 … 1: decoded, upright, resized to cover its shape, cropped, mirrored."""
    try:
        image, _ = read_image(open_source(picture.source))
    except BadImage as error:
        raise UserError(f"{describe(picture)} can't be read ({error}); remove it, or mend it") from None
    size, (left, top) = crop_place(picture, view)
    image = image if image.size == size else image.resize(size, Image.Resampling[interpolation.upper()])
    image = image.crop((left, top, left + picture.shape[0], top + picture.shape[1]))
    image = ImageOps.mirror(image) if view.flip else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
