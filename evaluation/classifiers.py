"""The classifiers: a small CNN, one layer on features, and a transformers model; torchvision is not needed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from utils.cli import UserError
from utils.hub import load_named, load_whole

FLAG, KIND = "--pretrained_model_name_or_path", "transformers image model"
ADVICE = f"give the hub id or folder of a {KIND} with config.json, preprocessor_config.json and model.safetensors"
Builder = Callable[[], nn.Module]  # a new model, its weights from torch's global seed


def small_cnn(classes: int) -> nn.Module:
    """Patches of 4 x 4 pixels, two convolutions that halve the side, the mean over what is left, one layer."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, stride=4, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    for narrow, wide in ((32, 64), (64, 128)):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a tenth faster on a CPU


def probe(features: int, classes: int) -> nn.Module:
    """One layer. Batch statistics without weights make features of any scale comparable."""
    return nn.Sequential(nn.BatchNorm1d(features, affine=False), nn.Linear(features, classes))


def find_backbone(source: str, classes: int, resolution: int | None) -> tuple[Builder, int]:
    """What builds a transformers classifier, and the side of its images, which it is checked to take."""
    wanted = read_inputs(source)
    side = resolution or wanted.side

    def build() -> nn.Module:
        return Backbone(source, classes, wanted)

    check_side(source, build(), side)
    return build, side


class Inputs(NamedTuple):
    """The images that a model takes: pixels a side, mean and standard deviation of its channels."""

    side: int
    mean: list[float]
    std: list[float]


def read_inputs(source: str) -> Inputs:
    """What images a transformers model takes; no weights are read."""
    from transformers import AutoConfig, BaseImageProcessor  # here, since the CNN needs neither

    def load() -> tuple[Any, dict[str, Any]]:
        return AutoConfig.from_pretrained(source), BaseImageProcessor.get_image_processor_dict(source)[0]

    config, wants = load_named(FLAG, source, KIND, load, ADVICE)
    size = wants.get("crop_size") or wants.get("size") or getattr(config, "image_size", 224)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    mean, std = (wants.get(key) or [0.5] * 3 for key in ("image_mean", "image_std"))
    return Inputs(int(size), mean, std)


class Backbone(nn.Module):
    """A transformers classifier that takes pixels in -1 … 1 and returns logits, as the small CNN does."""

    def __init__(self, source: str, classes: int, inputs: Inputs):
        from transformers import AutoModelForImageClassification, logging

        super().__init__()
        logging.set_verbosity_error()  # else each training logs that the last layer is new

        def load() -> nn.Module:
            last_layer = r"\w*classifier"  # new, for these classes
            return load_whole(AutoModelForImageClassification, source, last_layer, num_labels=classes)

        self.model = load_named(FLAG, source, KIND, load, ADVICE)
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(inputs.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(inputs.std)[:, None, None])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=(pixels / 2 + 0.5 - self.mean) / self.std).logits


def check_side(source: str, model: nn.Module, side: int) -> None:
    """Refuse, before any image is decoded, a side that the model does not take."""
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, side, side))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--resolution {side}: {source} does not take images of that side ({' '.join(str(error).split())[:200]}); "
            "leave the flag out for the model's own"
        ) from error
