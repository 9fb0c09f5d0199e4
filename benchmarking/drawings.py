"""Images with captions to measure with, where the user has none yet: blurred noise, as large as the training needs."""

from pathlib import Path

import numpy as np
from PIL import Image

from utils.images import write_png

NUMBER = 8  # images; a step takes them again and again


def draw_images(folder: Path, side: int) -> Path:
    """A folder of images of `side` pixels, each with its caption in a .txt file; those of another side go."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("drawn-*"):
        if not path.name.startswith(f"drawn-{side}-"):
            path.unlink()
    for number in range(NUMBER):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        path = folder / f"drawn-{side}-{number}.png"
        if not path.exists():
            write_png(path, Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))
            path.with_suffix(".txt").write_text(f"blurred noise, number {number}\n")
    return folder
