"""Which images fail a check, and what real images get."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from evaluation import failures, image_measures
from evaluation.figures import stratify
from evaluation.image_measures import COLOUR, SIZE
from evaluation.image_sets import ImageSet

# What a catalogue calls navy is nearly black, and its brown is dark. Any other label is given to all of these.
REAL = {"Navy": (32, 34, 46), "Black": (22, 22, 22), "Brown": (66, 50, 44), "White": (226, 226, 224)}


def draw_shoe(folder, name: str, colour: tuple[int, ...], rng: np.random.Generator):
    """A dark-soled shoe in about this colour on a background that darkens to the top, as photos have it."""
    shade = np.linspace(150, 230, 96)[:, None, None] * np.ones((1, 96, 3))
    image = Image.fromarray(shade.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse([10, 30, 86, 70], fill=tuple(int(v) for v in np.clip(colour + rng.normal(0, 3, 3), 0, 255)))
    draw.rectangle([10, 62, 86, 70], fill=(60, 40, 30))
    image.save(folder / f"{name}.png")
    return folder / f"{name}.png"


def make_set(folder, counts: dict[str, int], colours=REAL, seed=0) -> ImageSet:
    folder.mkdir()
    rng, records = np.random.default_rng(seed), []
    for label, count in counts.items():
        for i in range(count):
            colour = colours.get(label, list(REAL.values())[i % 4])
            records.append({"path": draw_shoe(folder, f"{label}{i}", colour, rng), "colour": label})
    rows = np.stack([image_measures.measure(one["path"]) for one in records])
    return ImageSet(records, [str(i) for i in range(len(records))], rows, {})


def colour_figure(generated: ImageSet, real: ImageSet):
    return next(one for one in failures.judge_failures(generated, real)[0] if one.id == "wrong_colour")


def test_colours_are_judged_by_what_the_real_set_calls_them(tmp_path):
    real = make_set(tmp_path / "real", {"Navy": 8, "Black": 8, "Brown": 8, "White": 8})
    good = make_set(tmp_path / "good", {"Navy": 6, "Black": 6, "Brown": 6, "White": 6}, seed=1)
    swapped = {"Navy": REAL["Brown"], "Black": REAL["White"], "Brown": REAL["Black"], "White": REAL["Navy"]}
    bad = make_set(tmp_path / "bad", {"Navy": 6, "Black": 6, "Brown": 6, "White": 6}, swapped, seed=1)
    assert colour_figure(good, real).measured.value == 0 and colour_figure(bad, real).measured.value == 1


def test_a_colour_that_real_images_do_not_show_is_not_checked(tmp_path):
    real = make_set(tmp_path / "real", {"Navy": 8, "Black": 8, "White": 8, "Multi": 12, "Tan": 2})
    good = make_set(tmp_path / "good", {"Black": 4, "Multi": 4, "Tan": 4, "Teal": 4})
    figure = colour_figure(good, real)
    assert figure.measured.n == 4 and figure.measured.value == 0
    assert "Multi" in figure.how and "Tan" not in figure.how
    only = colour_figure(make_set(tmp_path / "only", {"Multi": 4, "Tan": 4}), real)
    assert "most of them show" in only.refused


def test_without_real_images_nothing_but_invalid_is_judged(tmp_path):
    figures, listed = failures.judge_failures(make_set(tmp_path / "good", {"Black": 4}), None)
    assert figures[0].id == "invalid" and figures[0].measured.value == 0 and listed[0]["reason"] == figures[0].name


def test_the_floor_is_that_of_as_many_images_of_each_label():
    rows = [{"value": "Black", "mean": 0.1, "n": 40}, {"value": "Brown", "mean": 0.5, "n": 10}]
    floor = stratify(rows, ["Brown"] * 30 + ["Black"] * 10 + ["Teal"] * 5)
    assert floor.value == pytest.approx(0.75 * 0.5 + 0.25 * 0.1) and floor.low < floor.value < floor.high
    assert stratify(rows, ["Teal"]) is None
    one = stratify(rows[:1], ["Black"] * 3)
    assert (one.value, one.n) == (0.1, 40) and one.high < stratify([{**rows[0], "n": 4}], ["Black"]).high


def test_an_image_without_an_object_has_no_colour(tmp_path):
    Image.new("RGB", (96, 96), "white").save(tmp_path / "blank.png")
    row = image_measures.measure(tmp_path / "blank.png")
    assert row.shape == (SIZE,) and np.isnan(row[COLOUR]).all()
