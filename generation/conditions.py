"""Images that a generated one starts from or follows: found, read, cropped; their edges or their depth."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.catalogue import is_image
from utils.cli import UserError
from utils.hub import load_named, load_whole
from utils.images import crop_centre, require_image


@dataclass(frozen=True)
class Conditions:
    """Image i takes the i-th file of each list, which starts again after its last file; an empty list gives none."""

    init_images: list[Path]
    control_images: list[Path]
    size: int
    to_control: Callable[[Image.Image], Image.Image] | None  # makes the edges or the depth of a control image

    def init_image(self, index: int) -> Image.Image | None:
        return read_square("--init_images", self.init_images, index, self.size)

    def control_image(self, index: int) -> Image.Image | None:
        found = read_square("--control_images", self.control_images, index, self.size)
        return self.to_control(found) if found and self.to_control else found


def list_images(flag: str, place: Path, most: int) -> list[Path]:
    """A file, or the images in a folder by name; refuses a damaged one among the first `most`, which will be read."""
    found = [place] if place.is_file() else sorted(one for one in place.rglob("*") if is_image(one.name))
    if not found:
        raise UserError(f"{flag} {place}: no images there; give an image or a folder of them")
    with ThreadPoolExecutor() as pool:  # read now, and not after an hour of work; none is kept
        all(pool.map(lambda path: require_image(path, flag).size, found[:most]))
    return found


def nth(files: list[Path], index: int) -> Path:
    """The file of image `index`: the list starts again after its last one."""
    return files[index % len(files)]


def read_square(flag: str, files: list[Path], index: int, side: int) -> Image.Image | None:
    if not files:
        return None
    image = crop_centre(require_image(nth(files, index), flag))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def canny_edges(image: Image.Image) -> Image.Image:
    import cv2  # here: nothing else needs it

    edges = cv2.Canny(np.asarray(image), 100, 200)
    return Image.fromarray(np.repeat(edges[:, :, None], 3, axis=2))


def load_depth(name: str, device: torch.device) -> Callable[[Image.Image], Image.Image]:
    """A function from an image to its depth map (near is bright), by a transformers model."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    def load():
        # The first of DPT's fusion layers has a part that is never used; published files leave it out.
        unused = r"neck\.fusion_stage\.layers\.0\.residual_layer1\."
        model = load_whole(AutoModelForDepthEstimation, name, may_lack=unused)
        return AutoImageProcessor.from_pretrained(name), model.to(device).eval()

    processor, model = load_named("--depth_model", name, "transformers depth estimator", load)

    @torch.no_grad()
    def estimate_depth(image: Image.Image) -> Image.Image:
        depth = model(**processor(image, return_tensors="pt").to(device)).predicted_depth[0].float().cpu().numpy()
        level = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
        grey = Image.fromarray((level * 255).round().astype(np.uint8))
        return grey.resize(image.size, Image.Resampling.BICUBIC).convert("RGB")

    return estimate_depth
