"""Pictures that a generated one starts from or keeps to: read, fitted, made edges or depth."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils import images
from utils.cli import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def list_pictures(flag: str, place: Path) -> list[Path]:
    """One picture, or all in a folder by name; image i uses the i-th, and round again."""
    found = [place] if place.is_file() else sorted(one for one in place.rglob("*") if one.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{flag} {place}: no pictures there; give a picture or a folder of them")
    return found


def read_square(flag: str, path: Path, side: int) -> Image.Image:
    try:
        picture, _ = images.read_image(path)
    except images.BadImage as error:
        raise UserError(f"{flag} {path}: {error}; remove or replace it") from None
    return images.crop_centre(picture).resize((side, side), Image.Resampling.LANCZOS)


def canny_edges(picture: Image.Image, low: int = 100, high: int = 200) -> Image.Image:
    import cv2  # here: nothing else needs it

    edges = cv2.Canny(np.asarray(picture), low, high)
    return Image.fromarray(np.repeat(edges[:, :, None], 3, axis=2))


def load_depth(name: str, device: torch.device):
    """What estimates depth, by a transformers model: picture -> picture, near is bright."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    try:
        processor = AutoImageProcessor.from_pretrained(name)
        model = AutoModelForDepthEstimation.from_pretrained(name, use_safetensors=True).to(device).eval()
    except Exception as error:  # each library raises its own
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"--depth_model {name}: can't be loaded ({detail})") from error

    @torch.no_grad()
    def estimate(picture: Image.Image) -> Image.Image:
        depth = model(**processor(picture, return_tensors="pt").to(device)).predicted_depth[0].float().cpu().numpy()
        level = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
        grey = Image.fromarray((level * 255).round().astype(np.uint8))
        return grey.resize(picture.size, Image.Resampling.BICUBIC).convert("RGB")

    return estimate


def load_controlnet(name: str, unet, dtype: torch.dtype):
    """A ControlNet that fits the UNet."""
    from diffusers import ControlNetModel

    try:
        net = ControlNetModel.from_pretrained(name, dtype=dtype, use_safetensors=True)
    except Exception as error:  # each library raises its own
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"--controlnet {name}: can't be loaded ({detail})") from error
    for key in ("cross_attention_dim", "block_out_channels", "in_channels"):
        theirs, ours = net.config[key], unet.config[key]
        if str(theirs).strip("[]()") != str(ours).strip("[]()"):  # a tuple in one, a list in the other
            raise UserError(
                f"--controlnet {name}: made for another family of models ({key} {theirs}, this model's is {ours})"
            )
    return net


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """(n, 3, height, width) in 0..1."""
    return torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2).float() / 255
