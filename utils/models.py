"""Names of models, where they lie, and which family they belong to."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from utils.cli import UserError

if TYPE_CHECKING:  # prepare_dataset.py needs the names alone, and not the seconds that these take to import
    import torch
    from diffusers import DiffusionPipeline

DEFAULT_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"
MOVED = {
    "runwayml/stable-diffusion-v1-5": DEFAULT_MODEL,
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
}
WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")  # a single file, which is not a hub id
FAMILIES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}

logger = logging.getLogger(__name__)


def resolve_model(name: str) -> str:
    """The folder or hub id that a user's --pretrained_model_name_or_path means."""
    if name == "demo":
        return str(DEMO_MODEL)
    path = Path(name)
    if name in MOVED and not path.exists():
        logger.warning("%s no longer exists on the hub; using %s, the same weights", name, MOVED[name])
        return MOVED[name]
    if path.exists() and not (path / "model_index.json").is_file():
        raise UserError(f"--pretrained_model_name_or_path {name}: no model_index.json there; give a diffusers folder")
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~")) or path.suffix in WEIGHTS):
        raise UserError(
            f"--pretrained_model_name_or_path {name}: no such folder, and not a hub id (owner/name); "
            "`demo` means the small model that comes with this repository"
        )
    return name


def read_config(model: str, filename: str) -> dict:
    """One JSON file of a diffusers folder or hub repository; no weights are read."""
    try:
        path = Path(model) / filename if Path(model).is_dir() else Path(hf_hub_download(model, filename))
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        detail = " ".join(str(error).split())[:300]
        hint = "`demo` needs no network" if not Path(model).is_dir() else "the folder is not whole"
        raise UserError(
            f"--pretrained_model_name_or_path {model}: {filename} can't be read ({detail}); {hint}"
        ) from error


def model_family(model: str) -> str:
    """`sd1`, `sd2` or `sdxl`, read from the model's own configs."""
    parts = read_config(model, "model_index.json")
    if "unet" not in parts:
        raise UserError(
            f"{model}: a {parts.get('_class_name')} has no UNet; supported are {', '.join(FAMILIES.values())}"
        )
    if "text_encoder_2" in parts:
        return "sdxl"
    return "sd2" if read_config(model, "unet/config.json")["cross_attention_dim"] == 1024 else "sd1"


def load_pipeline(name: str, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """The whole pipeline on the device, its VAE in float32 where the rest is float16."""
    import torch
    from diffusers import DiffusionPipeline

    model = resolve_model(name)
    options = {"safety_checker": None, "requires_safety_checker": False} if model_family(model) != "sdxl" else {}
    try:
        pipeline = DiffusionPipeline.from_pretrained(model, dtype=dtype, use_safetensors=True, **options)
    except Exception as error:  # a missing part, a damaged file, no network: each library raises its own
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"--pretrained_model_name_or_path {name}: can't be loaded ({detail})") from error
    pipeline.to(device)
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)  # faster, also on a CPU
    if dtype == torch.float16:
        pipeline.vae.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
