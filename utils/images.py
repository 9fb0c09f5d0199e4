"""Images: read from disk, checked, fitted to a size and compared; labelled grids; the colour of the object."""

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError
from scipy import fft, ndimage

from utils.cli import UserError
from utils.files import open_regular, read_file, replaced_file

MOST_PIXELS = 100_000_000
NEAR_COLOUR = 24  # levels: what differs more from the background, or from what is beside it, is of an object
BLANK = 3.0  # levels: the standard deviation below which an image is of one colour
LABEL_LINES = 4  # of a label in a grid
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # not EPS and the like, which run programs
HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"))
CONVERT = "convert it to JPEG: on a Mac `sips -s format jpeg a.heic --out a.jpg`, elsewhere `heif-convert a.heic a.jpg`"
SETTINGS_CHUNK, XMP_CHUNK = "parameters", "XML:com.adobe.xmp"  # of a PNG; A1111's name, and the standard's
ImageSource = Path | Callable[[], Path | bytes]  # a file, or what fetches the encoded bytes of a hub dataset


class BadImage(Exception):
    """An image that can't be used: `reason` is one of a few, to count by; `detail` is of this image."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def read_image(
    source: Path | bytes, max_pixels: int = MOST_PIXELS, longest: int | None = None, shortest: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """An image as RGB, upright, decoded to its last byte, and the size it has on disk (upright). Raises BadImage.

    A JPEG may come back at 1/2, 1/4 or 1/8, where its longest (or shortest) side stays at least twice the one given:
    enough for a Lanczos reduction to that side, and decoded in half the time.
    """
    try:
        data = source if isinstance(source, bytes) else read_file(source)
    except OSError as error:
        raise BadImage("cannot be read", error.strerror) from None
    if not data:
        raise BadImage("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bombs (refused below) and of damaged EXIF (ignored)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            size = image.size
            if size[0] * size[1] > max_pixels:
                raise BadImage("decompression bomb", f"{size[0]}x{size[1]} pixels, more than {max_pixels:,}")
            if longest or shortest:
                scale = min(1, 2 * longest / max(size) if longest else 2 * shortest / min(size))
                image.draft(None, (math.ceil(size[0] * scale), math.ceil(size[1] * scale)))
            image.load()
            turned = image.getexif().get(0x0112, 1) >= 5
            return to_rgb(_upright(image)), (size[::-1] if turned else size)
        except BadImage:
            raise
        except Image.DecompressionBombError:
            raise BadImage("decompression bomb", f"more than {max_pixels:,} pixels") from None
        except UnidentifiedImageError:
            if is_heic(data):
                raise BadImage("HEIC is not read", CONVERT) from None
            raise BadImage("not an image", f"begins with {data[:12]!r}") from None
        except Exception as error:  # a decoder can raise anything on foreign data
            truncated = any(word in str(error).lower() for word in ("truncat", "not enough", "premature"))
            reason = "truncated" if truncated else "cannot be decoded"
            raise BadImage(reason, str(error) or type(error).__name__) from None


def is_heic(data: bytes) -> bool:
    """Whether a file is HEIC, whatever its name."""
    return data[4:12] in HEIC


def require_image(path: Path, flag: str = "", longest: int | None = None, shortest: int | None = None) -> Image.Image:
    """As read_image; a file that can't be used is an error that names the flag and the file."""
    try:
        return read_image(path, longest=longest, shortest=shortest)[0]
    except BadImage as error:
        raise UserError(f"{flag} {path}: {error}; remove or replace the file".lstrip()) from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the rotation is unknown
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: transparency on white, 16-bit scaled and not clipped."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if values.max() > 255 else 255
        return Image.fromarray(np.clip(values * (255 / top) + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def is_blank(image: Image.Image) -> bool:
    """Whether an image is of one colour except for noise; a white shoe on white is not."""
    pixels = np.asarray(image.resize((48, 48), Image.Resampling.BOX), dtype=np.float64)
    return bool(pixels.reshape(-1, 3).std(0).max() < BLANK)


def crop_centre(image: Image.Image) -> Image.Image:
    """The largest square in the middle."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def fit_square(image: Image.Image, side: int, pad: str = "edge") -> Image.Image:
    """The whole image in a square, aspect kept (Lanczos); the rest in a colour, or for `edge` in its background."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (side - width) // 2, (side - height) // 2
    if pad == "edge":
        square = np.empty((side, side, 3), np.uint8)
        square[top : top + height, left : left + width] = np.asarray(image)
        colour = border_colour(image)
        _continue(square[:, left : left + width], top, height, colour)
        _continue(square.swapaxes(0, 1), left, width, colour)
        return Image.fromarray(square)
    padded = Image.new("RGB", (side, side), pad)
    padded.paste(image, (left, top))
    return padded


def border_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of the four sides in a row, one of each corner twice."""
    pixels = np.asarray(image)
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def border_colour(image: Image.Image) -> np.ndarray:
    """The most frequent colour along the four sides, which is the background's: an object touches less of them."""
    border = border_pixels(image)
    some = border[:: math.ceil(len(border) / 128)].astype(np.int16)
    near = np.abs(some[:, None] - some).max(2) <= NEAR_COLOUR
    return np.median(some[near[near.sum(1).argmax()]], axis=0)


def _continue(lines: np.ndarray, first: int, count: int, colour: np.ndarray) -> None:
    """Fill what lies before and after `count` lines of pixels with background, and blend these into it; in place."""
    inside, few = lines[first : first + count], max(2, count // 48)
    if count < len(lines):
        lines[:first] = _blend(inside[:few], colour)
        lines[first + count :] = _blend(inside[::-1][:few], colour)


def _blend(strip: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The background that continues a border; the border's lines (the outermost first) are faded into it, in place.

    Of several lines, since the last one of a JPEG may differ; where an object touches them, from both sides of it.
    """
    line = np.median(strip, axis=0)
    background = _find_background(line, colour)
    places = np.flatnonzero(background)
    if len(places):
        line = np.stack([np.interp(np.arange(len(line)), places, channel[places]) for channel in line.T], -1)
    else:
        line = np.broadcast_to(np.median(line, axis=0), line.shape)
    smooth = ndimage.uniform_filter1d(line, max(3, len(line) // 16), axis=0, mode="nearest")
    apart = smooth - strip
    apart[np.abs(apart).max(2) > NEAR_COLOUR] = 0  # what an object has there stays as it is
    fade = 1 - (np.arange(len(strip)) + 0.5) / len(strip)
    strip[:] = (strip + fade[:, None, None] * apart).round()
    return smooth.round()


def _find_background(line: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Where a border line is background: between two jumps, mostly near its colour; a line without jumps is."""
    step = max(1, len(line) // 128)
    ahead, behind = (np.roll(line, shift, axis=0) for shift in (-step, step))
    jumps = np.abs(ahead - behind).max(1) > NEAR_COLOUR
    jumps[:step] = jumps[-step:] = False  # np.roll compares the line's two ends there
    parts, count = ndimage.label(~jumps)
    if count < 2:
        return ~jumps
    near = (np.abs(line - colour).max(1) <= NEAR_COLOUR).astype(float)
    sizes, found = np.bincount(parts), ndimage.mean(near, parts, np.arange(count + 1)) > 0.25
    return (found & (sizes > len(line) // 24))[parts] & ~jumps


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """256 bits (4 uint64): which of the 16x16 lowest frequencies of the brightness are above their median."""
    grey = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    waves = fft.dctn(grey)[:16, :16].ravel()
    waves[0] = 0  # overall brightness says nothing about the image
    return np.packbits(waves > np.median(waves)).view(np.uint64)


def colour_thumb(image: Image.Image) -> np.ndarray:
    """16x16x3 values, which differ between a shoe in two colours; the hash does not."""
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX)).ravel()


def make_grid(
    images: list[Image.Image], columns: int, labels: list[str] | None = None, gap: int = 4, letters: int = 14
) -> Image.Image:
    """Images of one size in a grid on white, each with its label below it, in as many lines as it needs.

    `letters`: how many of them, as high as they are, an image is wide.
    """
    width, height = images[0].size
    font: Any = ImageFont.load_default(max(9, width // letters))
    texts = [wrap_text(label, font, width - font.size // 2) for label in labels or [""] * len(images)]
    line = font.size + 3
    text = line * max(len(lines) for lines in texts) + 4 if labels else 0
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + text + gap) - gap), "white")
    draw = ImageDraw.Draw(grid)
    for index, image in enumerate(images):
        x, y = index % columns * (width + gap), index // columns * (height + text + gap)
        grid.paste(image, (x, y))
        for number, words in enumerate(texts[index]):
            draw.text((x + width / 2, y + height + line * (number + 0.5) + 2), words, "black", font, anchor="mm")
    return grid


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels; one that needs more than LABEL_LINES ends in an ellipsis."""
    made = [""]
    for word in text.split():
        longer = f"{made[-1]} {word}".strip()
        if made[-1] and font.getlength(longer) > width:
            made.append(word)
        else:
            made[-1] = longer
    if len(made) > LABEL_LINES:
        made = [*made[: LABEL_LINES - 1], made[LABEL_LINES - 1] + " …"]
    return made


def differs_from_border(image: Image.Image, threshold: int) -> np.ndarray:
    """True where a pixel differs from the border's colour; the inside of a white shoe on white may be False."""
    border = np.median(border_pixels(image), axis=0)
    return np.abs(np.asarray(image, dtype=np.int16) - border).max(2) > threshold


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 to CIELAB (CIE 1976, D65), where a distance is about the difference that an eye sees."""
    linear = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def object_colour(image: Image.Image, limits: Sequence[int] = (25, 10)) -> np.ndarray | None:
    """CIELAB of the most frequent colour of the object without its lowest 30 % (soles, shadow); None without object.

    Background is what is within a limit of the border's colour or of the row's ends, so a gradient is no part of the
    object. The first limit leaves out a photo's shadows, and of a white shoe on white all but its rim.
    """
    pixels = np.asarray(image)
    planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0), dtype=np.int16)
    backgrounds = (border_colour(image)[:, None, None], planes[:, :, :1], planes[:, :, -1:])
    apart = np.min([np.abs(planes - one).max(0) for one in backgrounds], axis=0)
    for limit in limits:
        mask = ndimage.binary_opening(apart > limit)
        rows = np.flatnonzero(mask.any(1))
        if len(rows):
            mask[max(rows[0] + 1, round(rows[-1] + 1 - 0.3 * (rows[-1] + 1 - rows[0]))) :] = False
            return _most_frequent(_lab(pixels[mask]))
    return None


def _most_frequent(lab: np.ndarray) -> np.ndarray:
    """The median of the colours around the fullest cell of a grid of 10 units."""
    cells = (lab // 10).astype(int) + 16
    codes = cells @ (1, 32, 1024)
    centre = 10 * (cells[(codes == np.bincount(codes).argmax()).argmax()] - 16) + 5
    near = np.linalg.norm(lab - centre, axis=1) < 14
    return np.median(lab[near], axis=0)


def foreground_colour(image: Image.Image, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette's name for the colour of a drawn object, which has no shadow; None without object."""
    colour = object_colour(image, (10,))
    if colour is None:
        return None
    return list(palette)[np.linalg.norm(_lab(np.array(list(palette.values()))) - colour, axis=1).argmin()]


class Palette(NamedTuple):
    """What each label of colours looks like in a set of images; row i of all arrays belongs to names[i]."""

    names: list[str]
    medians: np.ndarray  # CIELAB
    spreads: np.ndarray
    counts: np.ndarray  # images
    right: np.ndarray  # share of them that is likeliest to have its own label


def measure_palette(colours: np.ndarray, labels: Sequence[str | None], least: int = 5) -> Palette:
    """The palette of images by their objects' colours (NaN: no object), of labels that `least` images or more have.

    `right` is cross-validated: a fifth of the images is compared with the medians of the others.
    """
    named = [label if label and not np.isnan(colour[0]) else None for label, colour in zip(labels, colours)]
    names = [name for name, count in Counter(filter(None, named)).most_common() if count >= least]
    used = [i for i, name in enumerate(named) if name in names]
    place, colours = np.array([names.index(named[i]) for i in used], int), colours[used]
    fold, hits = np.empty(len(used), int), np.empty(len(used))
    fold[np.argsort(place, kind="stable")] = np.arange(len(used)) % 5  # each label has images in each
    for one in set(fold):
        apart = fold == one
        others = _measure_labels(colours[~apart], place[~apart], names)
        hits[apart] = place_in_palette(others, colours[apart]) == place[apart]
    counts = np.bincount(place, minlength=len(names))
    right = np.bincount(place, hits, minlength=len(names)) / counts
    return _measure_labels(colours, place, names)._replace(counts=counts, right=right)


def _measure_labels(colours: np.ndarray, place: np.ndarray, names: list[str]) -> Palette:
    groups = [colours[place == i] for i in range(len(names))]
    medians = np.array([np.median(group, axis=0) for group in groups]).reshape(-1, 3)
    # 1.4826 median deviations are a normal distribution's standard deviation; of less than 4 an eye sees little.
    spreads = [np.fmax(4, 1.4826 * np.median(np.abs(group - m), axis=0)) for group, m in zip(groups, medians)]
    return Palette(names, medians, np.array(spreads).reshape(-1, 3), np.zeros(len(names)), np.zeros(len(names)))


def place_in_palette(palette: Palette, colours: np.ndarray) -> np.ndarray:
    """For each colour the place of the label that it is likeliest to have, by normal distributions; -1 for NaN."""
    apart = (colours[:, None] - palette.medians) / palette.spreads
    unlike = np.square(apart).sum(2) + 2 * np.log(palette.spreads).sum(1)
    return np.where(np.isnan(colours[:, 0]), -1, unlike.argmin(1) if palette.names else -1)


def bucket_shapes(resolution: int, step: int) -> list[tuple[int, int]]:
    """Shapes of about resolution² pixels, sides multiples of `step`, from 1:2 to 2:1 and the square."""
    shapes = {(resolution, resolution)}
    for side in range(step * math.ceil(resolution / math.sqrt(2) / step), resolution, step):
        other = int(resolution * resolution / side) // step * step
        shapes |= {(side, other), (other, side)}
    return sorted(shapes)


def nearest_shape(size: tuple[int, int], shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The shape whose proportions are nearest to the image's."""
    aspect = math.log(size[0] / size[1])
    return min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - aspect), shape))


def is_whole_png(path: Path) -> bool:
    """Whether a PNG reaches its end: a power cut may leave a name without its data."""
    try:
        with open_regular(path) as file:
            file.seek(-12, os.SEEK_END)
            return file.read(8)[4:] == b"IEND"
    except OSError:
        return False


def write_png(path: Path, image: Image.Image, facts: dict[str, str] | None = None) -> None:
    """A PNG, complete or not there, with the facts in its header. Not flushed: for each image that takes time."""
    with replaced_file(path, flush=False) as file:
        image.save(file, "PNG", compress_level=4, pnginfo=png_header(facts or {}))


def png_header(facts: dict[str, str]) -> PngImagePlugin.PngInfo:
    """The text chunks of these names."""
    info = PngImagePlugin.PngInfo()
    for name, value in facts.items():
        add = info.add_text if name == SETTINGS_CHUNK else info.add_itxt  # as far as it can be, in the older kind
        add(name, value)
    return info
