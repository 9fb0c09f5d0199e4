"""Drawn images and encoded files of them."""

import io

import numpy as np
from PIL import Image, ImageDraw


def drawn(size=(120, 80), seed=0) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        draw.ellipse([x, y, x + size[0] // 3, y + size[1] // 3], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def encode(image: Image.Image, kind: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()
