"""Which images count as one photo, and the box around a product."""

import io

import numpy as np
from PIL import Image, ImageDraw

from preparation.look_alikes import near_pairs
from preparation.processing import foreground_box
from tests.drawings import drawn, encode
from utils.images import colour_thumb, fit_square, perceptual_hash


def test_the_foreground_box_holds_the_object():
    image = Image.new("RGB", (1000, 600), "white")
    image.paste("red", (200, 300, 700, 500))
    left, top, right, bottom = foreground_box(image, margin=0)
    assert left <= 200 and top <= 300 and right >= 700 and bottom >= 500
    assert right - left < 520 and bottom - top < 220
    assert foreground_box(Image.new("RGB", (30, 20), "white")) == (0, 0, 30, 20)


def signatures(images):
    return np.stack([perceptual_hash(one) for one in images]), np.stack([colour_thumb(one) for one in images])


def test_copies_are_near_and_others_are_not():
    originals = [fit_square(drawn((300, 300), seed), 256) for seed in range(30)]
    copies = [
        Image.open(io.BytesIO(encode(one.resize((200, 200)), "JPEG", quality=60))).resize((256, 256))
        for one in originals
    ]
    pairs = near_pairs(*signatures(originals + copies), bits=16, colour=3.0)
    assert {(i, j) for i, j, _, _ in pairs} == {(i, i + 30) for i in range(30)}


def test_the_same_shape_in_another_colour_is_no_copy():
    red, blue = Image.new("RGB", (256, 256), "white"), Image.new("RGB", (256, 256), "white")
    for image, colour in ((red, (150, 60, 60)), (blue, (60, 60, 205))):
        ImageDraw.Draw(image).ellipse([40, 90, 220, 170], fill=colour)
    assert not near_pairs(*signatures([red, blue]), bits=16, colour=3.0)
    assert near_pairs(*signatures([red, blue]), bits=64, colour=99)


def test_a_placeholder_that_is_there_a_thousand_times_makes_no_million_pairs():
    images = [fit_square(drawn((90, 90), seed), 64) for seed in range(3)]
    hashes, thumbs = signatures(images)
    pairs = near_pairs(np.repeat(hashes, 1000, 0), np.repeat(thumbs, 1000, 0), bits=8, colour=3.0)
    assert len(pairs) == 3 * 999


def test_pairs_are_found_across_blocks():
    images = [fit_square(drawn((90, 90), seed), 64) for seed in range(150)]
    images[149] = images[3]
    assert [(i, j) for i, j, *_ in near_pairs(*signatures(images), bits=0, colour=0)] == [(3, 149)]
