import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.drawings import drawn, encode
from utils.images import BadImage, fit_square, is_blank, make_grid, read_image


def reason(data: bytes, **how) -> str:
    with pytest.raises(BadImage) as caught:
        read_image(data, **how)
    return caught.value.reason


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    stored = Image.new("RGB", (40, 20), "white")
    stored.paste("red", (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, size = read_image(encode(stored, "PNG", exif=exif))
    assert image.size == size == ((40, 20) if orientation < 5 else (20, 40))
    red_at = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    corner = tuple(at * (side - 1) for at, side in zip(red_at, size))
    assert image.getpixel(corner) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 4, 8))
    read, _ = read_image(encode(image.convert(mode), "PNG"))
    assert read.mode == "RGB" and read.getpixel((6, 4)) == (255, 255, 255)
    assert read.getpixel((1, 4)) != (255, 255, 255)


def test_half_transparency_is_mixed_with_white():
    read, _ = read_image(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert abs(read.getpixel((0, 0))[0] - 127) <= 1


def test_16_bit_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    read, _ = read_image(encode(Image.fromarray(ramp), "PNG"))
    assert np.abs(np.asarray(read)[..., 0].astype(float) - ramp / 257).max() <= 1


def test_cmyk_grey_and_palette_become_rgb():
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    for data in (encode(red.convert("CMYK"), "JPEG"), encode(red.quantize(4), "PNG"), encode(red.convert("L"), "JPEG")):
        assert read_image(data)[0].mode == "RGB"
    assert (
        np.abs(np.subtract(read_image(encode(red.convert("CMYK"), "JPEG"))[0].getpixel((8, 8)), (200, 30, 30))).max()
        < 12
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_short_differs_from_a_whole_one(kind):
    data = encode(drawn((300, 300)), kind)
    read_image(data)
    assert reason(data[: len(data) // 2]) in ("truncated", "cannot be decoded")


def test_each_kind_of_bad_file_has_its_reason(tmp_path):
    assert reason(b"") == "empty file"
    assert reason(b"<html>404</html>") == "not an image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n") == "not an image"
    for brand in (b"heic", b"mif1"):  # a phone's photo that was renamed to .jpg
        with pytest.raises(BadImage, match="HEIC is not read: convert it to JPEG"):
            read_image(b"\0\0\0\x18ftyp" + brand + bytes(40))
    assert reason(encode(drawn((100, 100)), "PNG"), max_pixels=9999) == "decompression bomb"
    with pytest.raises(BadImage, match="cannot be read"):
        read_image(tmp_path / "nothing.jpg")


def test_a_bomb_is_refused_before_it_is_decoded():
    huge = Image.new("1", (30000, 20000))
    data = encode(huge, "PNG")
    assert len(data) < 200_000 and reason(data) == "decompression bomb"


def test_blank_is_blank_and_a_white_shoe_is_not():
    noise = np.random.default_rng(0).integers(244, 256, (200, 200, 3), dtype=np.uint8)
    assert is_blank(Image.new("RGB", (50, 50), "grey")) and is_blank(Image.fromarray(noise))
    shoe = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(shoe).ellipse([30, 80, 170, 130], fill=(232, 232, 232))
    assert not is_blank(shoe)


def test_draft_decoding_changes_nothing_one_can_see():
    large = drawn((1200, 1600)).resize((1200, 1600))
    data = encode(large, "JPEG", quality=92)
    whole, size = read_image(data)
    reduced, size_on_disk = read_image(data, longest=256)
    assert size_on_disk == size == (1200, 1600) and reduced.size < whole.size and max(reduced.size) >= 512
    a, b = (np.asarray(fit_square(image, 256), dtype=float) for image in (whole, reduced))
    assert 10 * np.log10(255**2 / ((a - b) ** 2).mean()) > 38


def test_fitting_keeps_the_aspect_and_pads_as_asked():
    image = Image.new("RGB", (60, 120), (10, 200, 30))
    assert (np.asarray(fit_square(image, 64, "edge")) == (10, 200, 30)).all()
    white = np.asarray(fit_square(image, 64, "white"))
    assert (white[:, :16] == 255).all() and (white[:, 48:] == 255).all() and (white[:, 16:48] == (10, 200, 30)).all()
    assert fit_square(Image.new("RGB", (1, 500)), 64, "#0000ff").getpixel((0, 0)) == (0, 0, 255)


def test_edge_padding_continues_a_gradient_and_ignores_an_object_at_the_border():
    ramp = np.repeat(np.linspace(60, 220, 100, dtype=np.uint8)[:, None, None], 50, 1).repeat(3, 2)
    padded = np.asarray(fit_square(Image.fromarray(ramp), 100, "edge"), dtype=int)
    assert np.abs(padded[:, 0] - padded[:, 50]).max() < 12
    ramp[:] = 240
    ramp[40:60, :30] = 20
    assert (np.asarray(fit_square(Image.fromarray(ramp), 100, "edge"))[:, 0] == 240).all()


def steps_over_the_seams(padded: np.ndarray, width: int) -> np.ndarray:
    """For each row, how far colours jump where a portrait image of this width meets the bars beside it."""
    left = (padded.shape[1] - width) // 2
    values = padded.astype(int)
    return np.maximum(*(np.abs(values[:, at] - values[:, at - 1]).max(-1) for at in (left, left + width)))


def test_edge_padding_shows_no_seam_beside_an_object_that_covers_most_of_the_border():
    pixels = np.repeat(np.linspace(195, 225, 400)[:, None, None], 300, 1).repeat(3, 2).astype(np.uint8)
    pixels[100:340, :120] = (190, 140, 110)  # an arm, on 60 % of the left side
    before = pixels.copy()
    padded = np.asarray(fit_square(Image.fromarray(pixels), 400, "edge"))
    bars = np.concatenate([padded[:, :50], padded[:, 350:]], 1).astype(int)
    assert (np.ptp(bars, axis=2) < 3).all() and np.abs(bars[:, 0, 0] - np.linspace(195, 225, 400)).max() < 12
    steps = steps_over_the_seams(padded, 300)
    assert steps[:90].max() < 4 and steps[350:].max() < 4  # beside the arm there is its own edge
    assert (padded[100:340, 50:170] == before[100:340, :120]).all()


def test_edge_padding_does_not_continue_a_line_that_only_the_last_column_has():
    pixels = np.full((400, 300, 3), 250, np.uint8)
    pixels[:, -1] = 238
    pixels[150:250, 293:299] = 90  # a toe that ends before the last column
    padded = np.asarray(fit_square(Image.fromarray(pixels), 400, "edge"))
    assert np.abs(padded[:, 352:].astype(int) - 250).max() <= 1 and steps_over_the_seams(padded, 300).max() <= 2
    assert (padded[150:250, 343:349] == 90).all()


def test_labels_of_a_grid_stay_in_their_place():
    grid = make_grid([Image.new("RGB", (50, 40), "white")] * 2, 2, ["101, 102: 16", "b"], gap=4)
    ink = np.asarray(grid.convert("L"))[40:] < 128
    assert ink[:, :50].any() and not ink[:, 50:70].any()
    pair, label = [Image.new("RGB", (320, 160), "white")], ["1543, 1544: 3 bits, colour 1.2: same photo"]
    heights = [make_grid(pair, 1, label, letters=letters).height - 160 for letters in (14, 28)]
    assert heights[1] < 20 < heights[0]  # a pair of images has the letters of one
