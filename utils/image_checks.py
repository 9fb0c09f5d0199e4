"""Checks of generated images: noise, near-copies of training images, and how well an image matches its text (CLIP).

The limits of noise were chosen on 226 catalogue photos (as they are, and at 512 and 128 pixels), 160 drawn shoes, 72
images of the demo pipeline, and 118 images of noise (latents of deviation 1 to 30 through the demo VAE, random pixels).
None of the former and all of the latter count as noise; so do 2 of 24 that the demo pipeline made badly (4 steps,
guidance 20).
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from utils import images
from utils.catalogue import is_image
from utils.cli import UserError
from utils.files import list_files
from utils.hub import DEMO, load_named, load_whole
from utils.parallel import thread_map

if TYPE_CHECKING:
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

CELL = 8  # pixels: what one latent is decoded to
NOISE_MEAN, NOISE_QUARTER = 0.6, 0.14
# The limits by which prepare_dataset.py finds two files of one photo. Within them are 226 photos as JPEG of quality 30
# and at 128 pixels, and 80 drawn shoes through the VAE and back. Of images that are not copies: no two of the photos,
# none of 72 demo images among 1500 drawn ones (16 are within twice the limits), 3 of 120 drawn among 1500 others. Not
# found: a shift by 2 of 128 pixels.
NEAR_BITS, NEAR_COLOUR = 16, 3.0


def noise_measure(image: Image.Image) -> tuple[float, float]:
    """How much neighbouring cells differ, where 1 is as much as any two: the mean, and that of the smoothest quarter.

    A photo's cells resemble their neighbours and much of it is smooth: the mean was 0.37 at most at 512 pixels, 0.71 at
    128, and the smoothest quarter reached 0.07. In decoded noise nothing is smooth: at least 0.72 and 0.21.
    """
    size = [max(4, round(side / CELL)) for side in image.size]
    cells = np.asarray(image.resize(size, Image.Resampling.BOX), dtype=np.float64)
    steps = [np.square(np.diff(cells, axis=axis)).sum(2).ravel() for axis in (0, 1)]
    unlike = np.concatenate(steps) / max(2 * cells.var((0, 1)).sum(), 1e-9)
    return float(unlike.mean()), float(np.sqrt(np.quantile(unlike, 0.25)))


def finite_images(latents: "torch.Tensor") -> list[bool]:
    """For each image of a batch of latents, whether they hold no NaN and no infinity."""
    return latents.isfinite().flatten(1).all(1).tolist()


def find_fault(image: Image.Image, finite: bool = True) -> str | None:
    """The fault of an image that no prompt can ask for, as words to count by; None where there is none."""
    if not finite:
        return "NaN latents"
    if fault := image_fault(image):
        return fault
    mean, quarter = noise_measure(image)
    return "noise" if mean > NOISE_MEAN and quarter > NOISE_QUARTER else None


class NearIndex(NamedTuple):
    """Hashes and small versions of the images of a folder, to find those that a new image is a copy of."""

    ids: list[str]
    hashes: np.ndarray
    thumbs: np.ndarray


def _look(path: Path) -> tuple[np.ndarray, np.ndarray] | str:
    try:
        image, _ = images.read_image(path, longest=512)
    except images.BadImage as error:
        return str(error)
    if image.width != image.height:
        image = images.fit_square(image, 512)
    return images.perceptual_hash(image), images.colour_thumb(image)


def index_images(folder: Path, workers: int = 1) -> NearIndex:
    """The index of --reject_near_train, of a prepared split or any folder of images; `workers` threads read them.

    An id is the file's path in the folder without its ending.
    """
    flag = f"--reject_near_train {folder}"
    if not folder.is_dir():
        raise UserError(f"{flag}: no such folder; give a split of a prepared dataset, or a folder of images")
    names = [name for name in list_files(folder) if is_image(name)]
    if not names:
        raise UserError(f"{flag}: holds no images; give a split of a prepared dataset, such as data/x/train")
    looks = list(thread_map(_look, (folder / name for name in names), workers))
    for name, look in zip(names, looks):
        if isinstance(look, str):
            raise UserError(f"{flag}: {name}: {look}; remove or replace the file")
    ids = [str(Path(name.removeprefix("images/")).with_suffix("")) for name in names]
    return NearIndex(ids, np.stack([look[0] for look in looks]), np.stack([look[1] for look in looks]))


def nearest(index: NearIndex, image: Image.Image) -> tuple[str, int, float]:
    """(id, bits of 256 that differ, mean difference in colour) of the image most like this one, or like its mirror.

    Mirrored too, since a model trained with flips copies its images mirrored as well.
    """
    views = (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return nearest_look(index, [(images.perceptual_hash(view), images.colour_thumb(view)) for view in views])


def nearest_look(index: NearIndex, looks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[str, int, float]:
    """The same, from the hash and the colours of each view."""
    best = (np.inf, "", 0, 0.0)
    for code, thumb in looks:
        bits = np.bitwise_count(index.hashes ^ code).sum(1, dtype=np.intp)
        few = np.argsort(bits, kind="stable")[:256]  # colours of those alone: a whole catalogue's would take long
        colour = np.abs(index.thumbs[few].astype(np.int16) - thumb).mean(1)
        unlike = np.maximum(bits[few] / NEAR_BITS, colour / NEAR_COLOUR)
        at = int(unlike.argmin())
        best = min(best, (float(unlike[at]), index.ids[few[at]], int(bits[few[at]]), round(float(colour[at]), 2)))
    return best[1:]


def is_near(bits: int, colour: float) -> bool:
    """Whether an image so far from a training image counts as its copy."""
    return bits <= NEAR_BITS and colour <= NEAR_COLOUR


class Clip(NamedTuple):
    model: "CLIPModel"
    tokenizer: "CLIPTokenizer"
    processor: "CLIPImageProcessorPil"


def load_clip(name: str, device: "torch.device | str" = "cpu", flag: str = "--clip_model", advice: str = "") -> Clip:
    """A transformers CLIP in float32, of a hub id or folder; `demo` is the small one that knows the demo's shoes."""
    import torch
    from transformers import AutoConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    place = str(DEMO / "clip") if name == "demo" else name

    def load() -> Clip:
        kind = AutoConfig.from_pretrained(place).model_type
        if kind != "clip":  # it would be loaded all the same, with random weights
            raise ValueError(f"its config.json is of a {kind}")
        model = load_whole(CLIPModel, place, dtype=torch.float32)
        tokenizer, processor = CLIPTokenizer.from_pretrained(place), CLIPImageProcessorPil.from_pretrained(place)
        return Clip(model.eval().requires_grad_(False).to(device), tokenizer, processor)

    return load_named(flag, place, "CLIP", load, advice)


def embed_texts(clip: Clip, texts: list[str]) -> np.ndarray:
    """CLIP's features of texts. One that is too long is cut before its end token, which carries the text's meaning."""
    import torch

    limit = clip.model.config.text_config.max_position_embeddings
    words = clip.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    words = words.to(clip.model.device)
    with torch.inference_mode():
        found = clip.model.get_text_features(input_ids=words.input_ids, attention_mask=words.attention_mask)
    return found.pooler_output.cpu().numpy()


def embed_images(clip: Clip, images: list[Image.Image]) -> np.ndarray:
    import torch

    pixels = clip.processor(images, return_tensors="pt").pixel_values.to(clip.model.device)
    with torch.inference_mode():
        return clip.model.get_image_features(pixels).pooler_output.cpu().numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row of one with the same row of the other."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def clip_scores(clip: Clip, images: list[Image.Image], texts: list[str]) -> np.ndarray:
    """For each image with its text, the cosine of their CLIP features; NaN where CLIP gave that."""
    return cosines(embed_images(clip, images), embed_texts(clip, texts))


def image_fault(image: Image.Image) -> str | None:
    """Whether a generated image is black or of one colour, in words; None where it is neither."""
    low, high = zip(*image.getextrema())
    if max(high) < 8:
        return "black (or NaN)"
    return "of one colour" if images.is_blank(image) else None
