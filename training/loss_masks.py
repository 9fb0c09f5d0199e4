"""Masks that weight the loss: where an image shows what is to be learnt."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from training.examples import Example, Record, View, crop_place
from utils.catalogue import is_image
from utils.cli import UserError
from utils.files import file_sha256
from utils.images import BadImage, read_image

MOST_COLOUR = 4  # of 255: how far the channels of a mask differ on average, since JPEG's differ a little
MaskReader = Callable[[Example, View, tuple[int, int]], torch.Tensor]


def find_masks(folders: Sequence[Path | None], examples: Sequence[Example | Record]) -> dict[str, Path]:
    """{id: mask} for every image: the file with its name, whatever its ending, in the folder of its data set.

    None in the place of a folder: the images of that set have no masks.
    """
    found: dict[str, Path] = {}
    for number, folder in enumerate(folders):
        if folder is None:
            continue
        if not folder.is_dir():
            raise UserError(
                f"--mask_loss {folder}: no such folder; give one with a mask for each image, of the same name"
            )
        there = {path.stem: path for path in sorted(folder.iterdir()) if is_image(path.name)}
        wanted = {one.id: _file_name(one) for one in examples if one.set == number}
        missing = [name for name in wanted.values() if name not in there]
        if missing:
            raise UserError(
                f"--mask_loss {folder}: {len(missing)} of {len(wanted)} images have no mask ({missing[0]}.png …); "
                "add them: white is what counts, black what doesn't"
            )
        found |= {one: there[name] for one, name in wanted.items()}
    return found


def _file_name(one: Example | Record) -> str:
    """Of an image, without its ending; one in a hub dataset has its id."""
    return one.source.stem if isinstance(one.source, Path) else one.id.rpartition("/")[2]


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """A mask of a photo of this size, in grey."""
    try:
        image = read_image(path)[0]
    except BadImage as error:
        raise UserError(f"--mask_loss {path}: can't be read ({error}); replace it") from None
    low, high = (np.asarray(image, dtype=int).min(2), np.asarray(image, dtype=int).max(2))
    if (high - low).mean() > MOST_COLOUR:
        raise UserError(f"--mask_loss {path}: is in colour; give a grey image, in which white is what counts")
    mask = image.convert("L")
    if mask.size != size:
        raise UserError(f"--mask_loss {path}: is {mask.size}, its image {size}; make them the same size")
    if np.asarray(mask).max() < 8:
        raise UserError(
            f"--mask_loss {path}: is all black, so its image would teach nothing; correct it, or remove both"
        )
    return mask


def view_mask(mask: Image.Image, example: Example, view: View, shape: tuple[int, int]) -> torch.Tensor:
    """(1, height, width) in 0 … 1 of latent size: cropped as `example_tensor` crops the photo, then averaged."""
    size, (left, top) = crop_place(example, view)
    mask = mask.resize(size, Image.Resampling.BILINEAR)
    mask = mask.crop((left, top, left + example.shape[0], top + example.shape[1]))
    mask = ImageOps.mirror(mask) if view.flip else mask
    mask = mask.resize(shape[::-1], Image.Resampling.BOX)
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None] / 255


def mask_reader(folders: Sequence[Path | None], examples: list[Example]) -> tuple[MaskReader, str]:
    """A function that returns the mask of a view in the latents' (height, width); and a checksum of all masks.

    An image without one, such as a class image, counts everywhere.
    """
    paths, sizes = find_masks(folders, examples), {one.id: one.size for one in examples}
    for one, path in paths.items():  # what does not fit is refused now
        read_mask(path, sizes[one])

    @functools.lru_cache(maxsize=1024)
    def read(example: Example, view: View, shape: tuple[int, int]) -> torch.Tensor:
        if example.id not in paths:
            return torch.ones(1, *shape)
        return view_mask(read_mask(paths[example.id], example.size), example, view, shape)

    sums = " ".join(f"{one} {file_sha256(path)}" for one, path in paths.items())
    return read, hashlib.sha256(sums.encode()).hexdigest()
