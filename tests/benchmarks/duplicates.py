"""What the duplicate threshold finds, and what it finds by mistake, on the images of a catalogue.

Copies of every image are made as shops make them, and searched; the catalogue's own pairs that are found are listed,
to be judged by eye (it may hold real duplicates).

    python tests/benchmarks/duplicates.py --catalogue data/demo_catalogue
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from preparation.look_alikes import COLOUR_LIMIT, near_pairs
from utils import images

BITS = (0, 8, 12, 16, 24, 32, 40)


def recompress(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def crop(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def watermark(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((5, 5), "shop.example", fill="grey", font_size=image.height // 25)
    return image


CHANGES = {
    "JPEG quality 40": recompress,
    "a third of the size": lambda image: image.reduce(3),
    "a small watermark": watermark,
    "6 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.06),
    "1 % cut off each side": lambda image: crop(image, 0.01),
    "2 % cut off each side": lambda image: crop(image, 0.02),
    "5 % white border": lambda image: ImageOps.expand(image, round(image.width * 0.025), "white"),
    "mirrored": ImageOps.mirror,
}


def sign(originals: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    squares = [images.fit_square(image, 512) for image in originals]
    return np.stack([images.perceptual_hash(one) for one in squares]), np.stack(
        [images.colour_thumb(one) for one in squares]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", type=Path, required=True, help="a folder with images/")
    args = parser.parse_args()
    names, originals = [], []
    for path in sorted((args.catalogue / "images").iterdir()):
        try:
            originals.append(images.read_image(path)[0])
            names.append(path.stem)
        except images.BadImage as error:
            print(f"{path.name}: {error}")
    hashes, thumbs = sign(originals)
    print(f"{len(originals)} images, {len(originals) * (len(originals) - 1) // 2:,} pairs; found within so many bits:")
    print(f"{'':24}" + "".join(f"{bits:>8}" for bits in BITS))
    pairs = near_pairs(hashes, thumbs, max(BITS), COLOUR_LIMIT)
    print(f"{'pairs of the catalogue':24}" + "".join(f"{sum(p[2] <= bits for p in pairs):8}" for bits in BITS))
    for what, change in CHANGES.items():
        changed, coloured = sign([change(image) for image in originals])
        distance = np.bitwise_count(hashes ^ changed).sum(1, dtype=int)
        same = np.abs(thumbs.astype(int) - coloured).mean(1) <= COLOUR_LIMIT
        print(f"{what:24}" + "".join(f"{((distance <= bits) & same).mean():8.0%}" for bits in BITS))
    for i, j, bits, colour in pairs[:20]:
        print(f"{names[i]} and {names[j]}: {bits} bits, {colour} levels of colour")


if __name__ == "__main__":
    main()
