import csv
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.catalogue import COLUMNS, draw_product, product, save_product, write_catalogue
from demo.shoes import COLOURS, HELD_BACK, KINDS, KNOWN_KINDS, draw_shoe
from utils.images import foreground_colour

ROOT = Path(__file__).resolve().parent.parent


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_catalogue(tmp_path / name, 24, (64, 64), seed, list(KINDS), damage=False)
    a, b, c = (read_bytes(tmp_path / name) for name in "abc")
    assert a == b and a.keys() == c.keys() and a != c


def test_more_products_leave_the_first_ones_as_they_were():
    assert [product(3, i, list(KINDS)) for i in range(5)] == [product(3, i, list(KINDS)) for i in range(9)][:5]


def test_layout_is_that_of_fashion_product_images(tmp_path):
    write_catalogue(tmp_path / "c", 40, (64, 96), 0, list(KNOWN_KINDS), damage=False)
    with open(tmp_path / "c/styles.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS and len(rows) == 40
    assert {row["id"] for row in rows} == {path.stem for path in (tmp_path / "c/images").iterdir()}
    assert HELD_BACK not in {row["articleType"] for row in rows}
    assert Image.open(tmp_path / f"c/images/{rows[0]['id']}.jpg").size == (64, 96)


def test_every_kind_and_colour_occurs():
    seen = Counter((row["articleType"], row["baseColour"]) for row in (product(0, i, list(KINDS)) for i in range(2000)))
    assert set(seen) == {(kind, colour) for kind in KINDS for colour in COLOURS}


def test_size_changes_neither_shape_nor_colour():
    for kind in KINDS:
        small, large = (draw_shoe(kind, "Red", "s", (side, side)) for side in (64, 512))
        difference = np.abs(np.asarray(small, float) - np.asarray(large.resize((64, 64), Image.Resampling.BOX), float))
        other = np.abs(np.asarray(small, float) - np.asarray(draw_shoe(kind, "Red", "t", (64, 64)), float))
        assert difference.mean() < 3 < other.mean() * 1.5, kind


def test_the_largest_size_can_be_drawn():
    assert draw_shoe("Boots", "Blue", "s", (1800, 2400)).size == (1800, 2400)


def test_measured_colour_is_the_named_colour():
    rows = [product(5, i, list(KINDS)) for i in range(120)]
    right = [foreground_colour(draw_product(row, 5, (128, 128)), COLOURS) == row["baseColour"] for row in rows]
    assert np.mean(right) >= 0.99


def test_a_white_page_has_no_colour():
    assert foreground_colour(Image.new("RGB", (64, 64), "white"), COLOURS) is None


def test_damage_is_what_it_says(tmp_path):
    damage = write_catalogue(tmp_path / "c", 30, (64, 64), 0, list(KINDS), damage=True)
    by_kind = {what: tmp_path / f"c/images/{key}.jpg" for key, what in damage.items()}
    assert not by_kind["missing"].exists() and by_kind["empty file"].stat().st_size == 0
    with pytest.raises(OSError, match="truncated"):
        Image.open(by_kind["truncated"]).load()
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(by_kind["not an image"])
    assert Image.open(by_kind["blank"]).getextrema() == ((255, 255),) * 3
    assert Image.open(by_kind["EXIF rotation"]).getexif()[0x0112] == 6
    assert Image.open(by_kind["CMYK"]).mode == "CMYK" and Image.open(by_kind["grey"]).mode == "L"
    images = [path.read_bytes() for path in (tmp_path / "c/images").iterdir()]
    assert images.count(by_kind["exact duplicate"].read_bytes()) == 2
    lines = (tmp_path / "c/styles.csv").read_text().splitlines()
    assert [line.count(",") for line in lines].count(12) == 1  # nine are right, three more in one name
    assert Counter(line.split(",")[0] for line in lines).most_common(1)[0][1] == 3


def test_a_core_draws_at_least_50_images_a_second_at_64_pixels(tmp_path):
    rows = [product(0, i, list(KINDS)) for i in range(100)]
    began = time.process_time()  # of this core alone, whatever else the machine is doing
    for row in rows:
        save_product(row, tmp_path, 0, (64, 64))
    assert 100 / (time.process_time() - began) > 50


def run(*words):
    return subprocess.run([sys.executable, "demo/catalogue.py", *words], cwd=ROOT, capture_output=True, text=True)


def test_command_writes_a_catalogue_and_never_over_one(tmp_path):
    first = run("--output_dir", str(tmp_path / "c"), "--num_images", "12", "--size", "64")
    assert first.returncode == 0, first.stderr
    before = read_bytes(tmp_path / "c")
    second = run("--output_dir", str(tmp_path / "c"), "--num_images", "12")
    assert second.returncode == 1 and "exists already" in second.stderr and read_bytes(tmp_path / "c") == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "9999"], "can't be drawn"),
        (["--size", "512x200"], "not wider than high"),
        (["--size", "big"], "is not a size"),
        (["--num_images", "0"], "--num_images 0: expected a whole number, 1 to"),
        (["--num_images", "5", "--damage"], "at least 20"),
    ],
)
def test_wrong_values_are_named(tmp_path, words, message):
    result = run("--output_dir", str(tmp_path / "c"), *words)
    assert result.returncode and message in result.stderr and not (tmp_path / "c").exists()
