"""One shoe that the demo pipeline does not know, seen from a few angles and in a few sizes, for train_dreambooth.py.

Each image is the same shoe; what differs is how far it is turned, how large it is and where it stands.

    python demo/subject.py --output_dir runs/demo/subject
    python demo/subject.py --output_dir runs/demo/subject --num_images 8 --size 128
"""

import argparse
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli  # first: it says in one line which package is missing

# isort: split
from PIL import Image, ImageFilter

from demo.shoes import Canvas, smooth, tone
from utils.cli import Range, pixels

TEAL, CORAL, CREAM = (0, 152, 148), (255, 120, 92), (250, 240, 214)  # not among the colours of the catalogue


# fmt: off
# An outline stays a list of points, as in shoes.py.
def draw_on(canvas: Canvas) -> None:
    """A teal slipper with a coral band, a cream sole, and a toe that curls up to a pompon."""
    inner = [(0.05, 0.26), (0.2, 0.31), (0.42, 0.29), (0.44, 0.2), (0.2, 0.16), (0.06, 0.18)]
    canvas.fill(smooth(inner, closed=True), tone(TEAL, -0.55), depth=0)
    upper = [(0.02, 0.08), (0.02, 0.08), (0.0, 0.2), (0.05, 0.28), (0.14, 0.2), (0.3, 0.19), (0.42, 0.33), (0.56, 0.29)]
    upper += [(0.72, 0.22), (0.84, 0.24), (0.9, 0.36), (0.9, 0.44), (0.98, 0.44), (1.03, 0.3), (1.0, 0.14)]
    upper += [(0.94, 0.07), (0.94, 0.07)]
    canvas.fill(smooth(upper, closed=True), TEAL)
    band = [(0.5, 0.07), (0.5, 0.07), (0.52, 0.2), (0.5, 0.312), (0.62, 0.265), (0.66, 0.18)]
    band += [(0.66, 0.07), (0.66, 0.07)]
    canvas.fill(smooth(band, closed=True), CORAL, 0.2)
    canvas.dot(0.94, 0.45, 0.085, tone(CORAL, -0.2))
    canvas.dot(0.935, 0.455, 0.07, CORAL)
    sole = [(0.0, 0.0), (0.0, 0.0), (0.5, 0.0), (0.96, 0.0), (0.96, 0.0), (1.01, 0.09), (1.01, 0.09), (0.0, 0.09)]
    canvas.fill(smooth([*sole, (0.0, 0.09)], closed=True), CREAM, 0.2)
# fmt: on


def draw_subject(number: int, size: int = 128) -> Image.Image:
    """Photo `number` of the shoe; the number fixes how it is seen."""
    rng = random.Random(f"subject/{number}")
    over = 4 if size <= 160 else 2
    side = size * over
    length = side * rng.uniform(0.68, 0.84)
    left = (side - length) / 2 + side * rng.uniform(-0.05, 0.05)
    ground = side * rng.uniform(0.6, 0.72)
    image = Image.new("RGB", (side, side), "white")
    canvas = Canvas(image, left, ground, length, rng.uniform(0.95, 1.08))
    shade = Image.new("L", (side, side), 0)
    shade.paste(70, (round(left), round(ground), round(left + length), round(ground + 0.02 * side)))
    image.paste((150, 150, 158), (0, 0), shade.filter(ImageFilter.GaussianBlur(0.012 * side)))
    draw_on(canvas)
    turn = rng.uniform(-7, 7)
    image = image.rotate(turn, Image.Resampling.BICUBIC, center=(side / 2, ground), fillcolor="white")
    return image.resize((size, size), Image.Resampling.BOX)


def main(args: argparse.Namespace) -> None:
    if args.dry_run:
        print(f"{cli.counted(args.num_images, 'photo')} of one shoe would be drawn into {args.output_dir}")
        return
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for number in range(args.num_images):
        draw_subject(number, args.size).save(args.output_dir / f"{number:02d}.png")
    print(f"{args.output_dir}: {cli.counted(args.num_images, 'photo')} of one shoe")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo/subject"), help="where the images go")
    parser.add_argument("--num_images", type=Range(1, 10_000, int), default=8, help="photos of the shoe")
    parser.add_argument("--size", type=pixels, default=128, help="side in pixels")
    args = cli.parse_args(parser)
    cli.run(main, args)
