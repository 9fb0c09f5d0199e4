"""Contact sheets: the images of a folder as captioned grids, for people to look at."""

from pathlib import Path

from PIL import Image

from utils.cli import UserError
from utils.files import replaced_file
from utils.images import BadImage, make_grid, read_image


def write_sheets(folder: Path, images: list[Path], captions: list[str], per_sheet: int = 48, columns: int = 8) -> None:
    """sheet-0001.jpg … with no more than one sheet's images in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(images), per_sheet), 1):
        part = slice(start, start + per_sheet)
        tiles = [make_tile(path) for path in images[part]]
        sheet = make_grid(tiles, min(columns, len(tiles)), captions[part])
        with replaced_file(folder / f"sheet-{number:04d}.jpg") as file:
            sheet.save(file, "JPEG", quality=90)


def make_tile(path: Path, side: int = 160) -> Image.Image:
    """An image on a white square of this side; smaller ones are enlarged without blurring."""
    try:
        image, _ = read_image(path, longest=side)
    except BadImage as error:
        raise UserError(f"{path}: {error}; remove it, and run the same command again to generate it again") from None
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    tile = Image.new("RGB", (side, side), "white")
    tile.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return tile
