"""Pictures: grids for people to look at, the object on a plain background, and its colour by name."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage


def make_grid(images: list[Image.Image], columns: int, labels: list[str] | None = None, gap: int = 4) -> Image.Image:
    """Equal-sized pictures side by side on white, each with its label beneath."""
    width, height = images[0].size
    font = ImageFont.load_default(max(10, width // 12))
    text = font.size + 6 if labels else 0
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + text + gap) - gap), "white")
    draw = ImageDraw.Draw(grid)
    for index, image in enumerate(images):
        x, y = index % columns * (width + gap), index // columns * (height + text + gap)
        grid.paste(image, (x, y))
        if labels:
            draw.text((x + width / 2, y + height + text / 2), labels[index], "black", font, anchor="mm")
    return grid


def differs_from_border(image: Image.Image, threshold: int = 10) -> np.ndarray:
    """True where a pixel is not of the border's colour; the inside of a white shoe on white may stay False."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.abs(pixels - np.median(border, axis=0)).max(2) > threshold


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 to CIELAB (D65), where distance is close to what an eye sees."""
    linear = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def foreground_colour(image: Image.Image, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette's name for most of the object, its lowest 30 % (soles, shadow) left out; None if nothing is seen."""
    mask = ndimage.binary_opening(differs_from_border(image))
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    top, bottom = rows[0], rows[-1] + 1
    mask[max(top + 1, round(bottom - 0.3 * (bottom - top))) :] = False
    pixels = np.asarray(image.convert("RGB"))[mask]
    if not len(pixels):
        return None
    distance = np.linalg.norm(_lab(pixels)[:, None] - _lab(list(palette.values()))[None], axis=-1)
    votes = np.bincount(distance.argmin(1), minlength=len(palette))
    return list(palette)[votes.argmax()]
