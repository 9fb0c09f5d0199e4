"""Images that a generated one starts from or keeps to: read, fitted, made edges or depth."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from families.models import read_config
from utils import images
from utils.catalogue import is_image
from utils.cli import UserError
from utils.hub import load_named


def list_images(flag: str, place: Path, most: int) -> list[Path]:
    """One image, or the first in a folder by name, each whole; image i uses the i-th, and round again."""
    found = [place] if place.is_file() else sorted(one for one in place.rglob("*") if is_image(one.name))
    if not found:
        raise UserError(f"{flag} {place}: no images there; give an image or a folder of them")
    with ThreadPoolExecutor() as pool:  # each is read now, and not after an hour of drawing; none is kept
        all(pool.map(lambda path: read_image(flag, path).size, found[:most]))
    return found


def read_image(flag: str, path: Path) -> Image.Image:
    try:
        return images.read_image(path)[0]
    except images.BadImage as error:
        raise UserError(f"{flag} {path}: {error}; remove or replace it") from None


def read_square(flag: str, path: Path, side: int) -> Image.Image:
    return images.crop_centre(read_image(flag, path)).resize((side, side), Image.Resampling.LANCZOS)


def canny_edges(image: Image.Image, low: int = 100, high: int = 200) -> Image.Image:
    import cv2  # here: nothing else needs it

    edges = cv2.Canny(np.asarray(image), low, high)
    return Image.fromarray(np.repeat(edges[:, :, None], 3, axis=2))


def load_depth(name: str, device: torch.device):
    """What estimates depth, by a transformers model: image -> image, near is bright."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    def load():
        model = AutoModelForDepthEstimation.from_pretrained(name, use_safetensors=True)
        return AutoImageProcessor.from_pretrained(name), model.to(device).eval()

    processor, model = load_named("--depth_model", name, "transformers depth estimator", load)

    @torch.no_grad()
    def estimate(image: Image.Image) -> Image.Image:
        depth = model(**processor(image, return_tensors="pt").to(device)).predicted_depth[0].float().cpu().numpy()
        level = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
        grey = Image.fromarray((level * 255).round().astype(np.uint8))
        return grey.resize(image.size, Image.Resampling.BICUBIC).convert("RGB")

    return estimate


def load_controlnet(name: str, model: str, dtype: torch.dtype):
    """A ControlNet that fits the model's UNet."""
    from diffusers import ControlNetModel

    def load():
        kind = ControlNetModel.load_config(name).get("_class_name")
        if kind != "ControlNetModel":
            raise ValueError(f"its config.json is of a {kind}")
        net = ControlNetModel.from_pretrained(name, dtype=dtype, use_safetensors=True)
        if lacking := [key for key, weight in net.named_parameters() if weight.is_meta]:
            raise ValueError(f"its file lacks {len(lacking)} of the weights, such as {lacking[0]}")
        return net

    net, unet = load_named("--controlnet", name, "ControlNet", load), read_config(model, "unet/config.json")
    for key in ("cross_attention_dim", "block_out_channels", "in_channels"):
        theirs, ours = (list(one) if isinstance(one, (list, tuple)) else one for one in (net.config[key], unet[key]))
        if theirs != ours:
            raise UserError(
                f"--controlnet {name}: made for another family of models ({key} {theirs}, this model's is {ours})"
            )
    return net


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """(n, 3, height, width) in 0..1."""
    return torch.from_numpy(np.stack([np.asarray(one) for one in images])).permute(0, 3, 1, 2).float() / 255
