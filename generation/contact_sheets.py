"""Contact sheets: the images of a folder as captioned grids, for people to look at."""

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from utils.cli import UserError
from utils.images import BadImage, make_grid, read_image


def _tile(path: Path, side: int) -> Image.Image:
    """An image on a white square of this side; smaller ones are enlarged without blurring."""
    try:
        image, _ = read_image(path, longest=side)
    except BadImage as error:
        raise UserError(f"{path}: {error}; remove it, and run the same command again to have it made anew") from None
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    tile = Image.new("RGB", (side, side), "white")
    tile.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return tile


def write_sheets(
    folder: Path, images: list[tuple[Path, str]], per_sheet: int = 48, columns: int = 8, side: int = 160
) -> Iterator[Path]:
    """sheet-0001.jpg … of (file, caption), one after the other, and no more than one sheet's images in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(images), per_sheet), 1):
        part = images[start : start + per_sheet]
        captions = [caption for _, caption in part]
        sheet = make_grid([_tile(path, side) for path, _ in part], min(columns, len(part)), captions)
        path = folder / f"sheet-{number:04d}.jpg"
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            sheet.save(partial, "JPEG", quality=90)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        yield path
