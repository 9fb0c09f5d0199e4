"""A classifier of transformers that sees product images as its backbone was taught to; torchvision is not needed."""

from pathlib import Path

import torch
from torch import nn

from utils.cli import UserError
from utils.hub import hub_failure


def read_backbone(source: str) -> dict:
    """How a transformers model wants its images: {"side", "mean", "std"}; no weights are read."""
    from transformers import AutoConfig, BaseImageProcessor  # here: the CNN needs neither

    if not Path(source).is_dir() and source.count("/") != 1:
        raise UserError(f"--pretrained_model_name_or_path {source}: no such folder, and not a hub id (owner/name)")
    try:
        config = AutoConfig.from_pretrained(source)
        wants, _ = BaseImageProcessor.get_image_processor_dict(source)
    except (OSError, ValueError) as error:
        raise backbone_error(source, error) from error
    size = wants.get("crop_size") or wants.get("size") or getattr(config, "image_size", 224)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    mean, std = (wants.get(key) or [0.5] * 3 for key in ("image_mean", "image_std"))
    return {"side": int(size), "mean": mean, "std": std}


def backbone_error(source: str, error: Exception) -> UserError:
    return UserError(
        f"--pretrained_model_name_or_path {source}: can't be loaded ({hub_failure(error)}); give a hub id or a folder "
        "of a transformers image model with config.json, preprocessor_config.json and model.safetensors"
    )


class Backbone(nn.Module):
    """A transformers classifier that takes pixels in -1 … 1 and gives logits, as the small CNN does."""

    def __init__(self, source: str, classes: int, mean: list[float], std: list[float]):
        from transformers import AutoModelForImageClassification, logging

        super().__init__()
        logging.set_verbosity_error()  # it would tell with every training that the last layer is new
        logging.disable_progress_bar()
        try:
            self.model = AutoModelForImageClassification.from_pretrained(
                source, num_labels=classes, ignore_mismatched_sizes=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise backbone_error(source, error) from error
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=(pixels / 2 + 0.5 - self.mean) / self.std).logits


def check_side(source: str, model: nn.Module, side: int) -> None:
    """An error where the model can't see images of that side; told before any is decoded."""
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, side, side))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--resolution {side}: {source} can't see images of that side ({' '.join(str(error).split())[:200]}); "
            "leave the flag out for the model's own"
        ) from error
