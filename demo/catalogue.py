"""Draw a footwear catalogue in the layout of the Fashion Product Images dataset: styles.csv and images/<id>.jpg.

Every image depends on (seed, index) alone: the same command always draws the same catalogue, and any part of it can be
drawn again on its own.

    python demo/catalogue.py --output_dir data/demo_catalogue --num_images 600
    python demo/catalogue.py --output_dir data/damaged --num_images 200 --size 512 --damage
"""

import argparse
import csv
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, files, images, outputs  # first: it says in one line which package is missing

# isort: split
from PIL import Image

from demo.shoes import COLOURS, KINDS, draw_shoe

GENDERS, GENDER_SHARES = ("Men", "Women", "Unisex", "Boys", "Girls"), (46, 36, 10, 4, 4)
SEASONS, SEASON_SHARES = ("Summer", "Fall", "Winter", "Spring"), (46, 28, 18, 8)
BRANDS = ("Northfell", "Carrow", "Tamsin & Oak", "Veldt", "Pierline", "Quayside", "Rook", "Solbritt")
COLUMNS = "id gender masterCategory subCategory articleType baseColour season year usage productDisplayName".split()


def product(seed: int, index: int, kinds: list[str]) -> dict[str, str]:
    """One row of styles.csv. The men's share and the seasons are about those of the real catalogue."""
    rng = random.Random(f"product/{seed}/{index}")
    gender = rng.choices(GENDERS, GENDER_SHARES)[0]
    kind = rng.choice(kinds)
    # Few rare colours and many black shoes, as in a real catalogue; every colour does occur.
    colour = rng.choices(list(COLOURS), (22, 12, 8, 12, 8, 6, 6, 7, 9, 6, 5, 6))[0]
    owner = {"Unisex": "Unisex", "Boys": "Boys'", "Girls": "Girls'"}.get(gender, f"{gender}'s")
    values = (
        10000 + index,
        gender,
        "Footwear",
        "Sandal" if kind == "Sandals" else "Shoes",
        kind,
        colour,
        rng.choices(SEASONS, SEASON_SHARES)[0],
        rng.randint(2010, 2018),
        "Formal" if kind == "Loafers" else "Sports" if kind == "Sneakers" else "Casual",
        f"{rng.choice(BRANDS)} {owner} {colour} {kind}",
    )
    return dict(zip(COLUMNS, map(str, values)))


def draw_product(row: dict[str, str], seed: int, size: tuple[int, int]) -> Image.Image:
    return draw_shoe(row["articleType"], row["baseColour"], f"{seed}/{row['id']}", size)


def save_product(row: dict[str, str], folder: Path, seed: int, size: tuple[int, int]) -> None:
    # 4:4:4 keeps thin coloured lines; Pillow's default halves the colour resolution.
    draw_product(row, seed, size).save(folder / f"{row['id']}.jpg", quality=94, subsampling=0)


def damage_images(rows: list[dict[str, str]], folder: Path) -> dict[str, str]:
    """Damage one image in each way that is seen in real catalogues; {id: what was done}, for tests to check."""
    done = {}
    path = {row["id"]: folder / f"{row['id']}.jpg" for row in rows}
    ids = iter(path)

    def damage(what: str) -> Path:
        done[key := next(ids)] = what
        return path[key]

    damage("missing").unlink()
    truncated = damage("truncated")
    truncated.write_bytes(truncated.read_bytes()[:900])
    damage("not an image").write_text("<html>404 Not Found</html>")
    damage("empty file").write_bytes(b"")
    Image.new("RGB", (64, 64), "white").save(damage("blank"))
    turned = damage("EXIF rotation")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: a viewer turns it by 90 degrees
    Image.open(turned).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif, quality=94)
    for mode, what in (("CMYK", "CMYK"), ("L", "grey")):
        target = damage(what)
        Image.open(target).convert(mode).save(target, quality=94)
    original = path[next(ids)].read_bytes()
    damage("exact duplicate").write_bytes(original)
    near = damage("near duplicate")
    near.write_bytes(original)
    Image.open(near).save(near, quality=60)
    return done


def write_catalogue(
    output_dir: Path, count: int, size: tuple[int, int], seed: int, kinds: list[str], damage: bool
) -> dict[str, str]:
    """Write images/ and styles.csv; {id: damage}, empty without `damage`."""
    folder = output_dir / "images"
    folder.mkdir(parents=True)
    rows = [product(seed, index, kinds) for index in range(count)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(save_product, folder=folder, seed=seed, size=size), rows, chunksize=16))
    done = damage_images(rows, folder) if damage else {}
    with open(output_dir / "styles.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        if damage:  # a name with unquoted commas, a row given twice, an id used twice
            torn, twice = rows[-1], rows[-2]
            line = ",".join(
                [*(str(90000) if c == "id" else torn[c] for c in COLUMNS[:-1]), "Rook Shoes, red, wide, new"]
            )
            save_product({**torn, "id": "90000"}, folder, seed, size)
            file.write(line + "\n" + ",".join(twice.values()) + "\n")
            file.write(",".join({**twice, "productDisplayName": "Another name"}.values()) + "\n")
            done |= {"90000": "unquoted commas", twice["id"]: "row given twice, then once more with another name"}
    return done


def check_size(text: str) -> str:
    width, height = parse_size(text)
    if not (64 <= width <= 2400 and 0.9 * width <= height <= 2400):
        raise argparse.ArgumentTypeError(f"{text!r} can't be drawn: 64 to 2400 pixels a side, not wider than high")
    return text


def parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    try:
        return int(width), int(height or width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 512 or 1800x2400") from None


def preview(rows: list[dict[str, str]], seed: int) -> Image.Image:
    """Some products of each kind, at 256 pixels, to look at."""
    chosen = []
    for kind in KINDS:
        by_colour = {row["baseColour"]: row for row in rows if row["articleType"] == kind}
        chosen += list(by_colour.values())[:6]
    labels = [f"{row['baseColour']} {row['articleType']}" for row in chosen]
    return images.make_grid([draw_product(row, seed, (256, 256)) for row in chosen], 6, labels)


def main(args: argparse.Namespace) -> None:
    cli.show_settings(args)
    if args.output_dir.exists():
        raise cli.UserError(f"--output_dir {args.output_dir} exists already; name a new folder, or remove it first")
    least = 20 if args.damage else 1
    if args.num_images < least:
        raise cli.UserError(f"--num_images {args.num_images} is too few; give at least {least}")
    if args.dry_run:
        return
    rows = [product(args.seed, index, args.kinds) for index in range(args.num_images)]
    with outputs.replaced_folder(args.output_dir) as folder:
        damage = write_catalogue(folder, args.num_images, parse_size(args.size), args.seed, args.kinds, args.damage)
        preview(rows, args.seed).save(folder / "preview.png")
        files.write_manifest(folder)
    for key, what in damage.items():
        print(f"{key}: {what}")
    print(f"{args.num_images} products in {args.output_dir}")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder for styles.csv and images/")
    parser.add_argument("--num_images", type=cli.Range(1, 1_000_000, int), default=600, help="products to draw")
    parser.add_argument("--size", type=check_size, default="512", help="pixels: 512, or 1800x2400 (default: 512)")
    parser.add_argument("--seed", type=cli.seed_number, default=0, help="another seed draws other products")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="which to draw")
    parser.add_argument("--damage", action="store_true", help="damage some files and rows, as in real catalogues")
    cli.run(main, cli.parse_args(parser))
