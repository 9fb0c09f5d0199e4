"""Labels of colours that an image contradicts."""

import pytest

from demo.shoes import draw_shoe
from preparation.labels import find_contradictions
from preparation.records import ImageFacts
from preparation.report import _contradiction_lines
from utils.catalogue import Product
from utils.images import object_colour


@pytest.fixture(scope="module")
def drawn():
    """Products of four colours, ten of each, with what was measured of their images; number 1 is white."""
    colours = ("Black", "White", "Brown", "Red")
    shown = [colours[i % 4] for i in range(40)]
    images = {
        str(i): ImageFacts(colour=object_colour(draw_shoe("Boots", c, str(i), (128, 128)))) for i, c in enumerate(shown)
    }
    return shown, images


def product(index: int, colour: str | None) -> Product:
    return Product(str(index), index, 0, None, {"colour": colour})


def test_a_white_shoe_labelled_black_is_listed_and_no_other(drawn):
    shown, images = drawn
    products = [product(i, "Black" if i == 1 else colour) for i, colour in enumerate(shown)]
    found = find_contradictions(products, images)
    assert [str(one) for one in found] == ["1: labelled Black, looks White"]
    assert _contradiction_lines(found)[1:] == [
        "labels of colours that the image seems to contradict, to look at: 1",
        "  1: labelled Black, looks White",
    ]


def test_nothing_is_said_without_labels_or_with_few(drawn):
    shown, images = drawn
    assert find_contradictions([product(i, None) for i in range(40)], images) == []
    assert find_contradictions([product(i, "Black") for i in range(4)], images) == []
    assert find_contradictions([], images) == []
