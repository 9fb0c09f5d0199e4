"""Discriminators that tell recordings from decoded segments: by period, by scale, and by spectrogram.

Those by period and scale have the layers of HiFi-GAN's (arXiv 2010.05646), which VITS trained with, and the names that
published checkpoints of MMS for training give them. Those by spectrogram follow UnivNet's (arXiv 2106.07889).
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.nn.utils.parametrizations import weight_norm
from transformers import VitsConfig

from speech.features import FeatureSettings, spectrogram
from speech.voices import load_from, local_name
from utils.files import read_object, write_safetensors
from utils.hub import find_file

logger = logging.getLogger(__name__)

SLOPE = 0.1  # of the leaky ReLU
FILE = "discriminators.safetensors"  # beside a voice's own weights
ADVICE = f"copy the voice again, or remove its {FILE} to train with new ones"
PUBLISHED_PREFIX = "discriminator."  # of the weights that a published checkpoint for training has in its one file

# The parts of a weight that is divided by its norm, and what other files call them.
NORM, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
RENAMED = {"weight_g": NORM, "weight_v": DIRECTION, "weight": DIRECTION}


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The sizes of all discriminators; an empty tuple leaves out those of its kind.

    By default small ones, as fit a small voice. `PUBLISHED` are those of VITS.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7)
    period_channels: tuple[int, ...] = (8, 32, 64, 96)
    scale_channels: tuple[int, ...] = ()
    resolutions: tuple[int, ...] = (512, 1024)  # the n_fft of each; a frame every quarter of it
    resolution_channels: int = 16


LARGE = 256  # channels of a voice's decoder, from which on it is judged by those of VITS
PUBLISHED = DiscriminatorConfig((2, 3, 5, 7, 11), (32, 128, 512, 1024), (16, 64, 256, 1024), ())


class Judgement(NamedTuple):
    """Of each discriminator its scores (batch, n), and what each of its layers computed."""

    scores: list[torch.Tensor]
    features: list[torch.Tensor]


class Discriminator(torch.nn.Module):
    """Layers with a leaky ReLU after each, and a last one that gives the scores."""

    def __init__(self, convs: Sequence[torch.nn.Module], final: torch.nn.Module) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(weight_norm(one) for one in convs)
        self.final_conv = weight_norm(final)

    def view(self, waveform: torch.Tensor) -> torch.Tensor:
        """What the first layer sees of waveforms (batch, samples)."""
        return waveform[:, None]

    def forward(self, waveform: torch.Tensor) -> list[torch.Tensor]:
        """What each layer computes, the scores (batch, n) last."""
        hidden, found = self.view(waveform), []
        for conv in self.convs:
            hidden = F.leaky_relu(conv(hidden), SLOPE)
            found.append(hidden)
        return [*found, self.final_conv(hidden)]


class PeriodDiscriminator(Discriminator):
    """Sees each n-th sample of a waveform in one column."""

    def __init__(self, period: int, channels: tuple[int, ...]) -> None:
        convs = [torch.nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)) for a, b in pairwise((1, *channels))]
        convs.append(torch.nn.Conv2d(channels[-1], channels[-1], (5, 1), 1, (2, 0)))
        super().__init__(convs, torch.nn.Conv2d(channels[-1], 1, (3, 1), 1, (1, 0)))
        self.period = period

    def view(self, waveform: torch.Tensor) -> torch.Tensor:
        missing = -waveform.shape[1] % self.period
        whole = F.pad(waveform[:, None], (0, missing), mode="reflect")
        return whole.unflatten(2, (-1, self.period))


class ScaleDiscriminator(Discriminator):
    """Sees the waveform as it is, with ever wider layers in groups."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        convs = [torch.nn.Conv1d(1, channels[0], 15, 1, 7)]
        for i, (a, b) in enumerate(pairwise((*channels, channels[-1]))):
            convs.append(torch.nn.Conv1d(a, b, 41, 4, 20, groups=4 ** (i + 1)))
        convs.append(torch.nn.Conv1d(channels[-1], channels[-1], 5, 1, 2))
        super().__init__(convs, torch.nn.Conv1d(channels[-1], 1, 3, 1, 1))


class SpectrogramDiscriminator(Discriminator):
    """Sees a spectrogram (batch, 1, bins, frames), computed in float32; four layers halve its bins."""

    def __init__(self, n_fft: int, channels: int) -> None:
        convs = [torch.nn.Conv2d(a, channels, (9, 3), (2, 1), (4, 1)) for a in (1, channels, channels, channels)]
        convs.append(torch.nn.Conv2d(channels, channels, 3, 1, 1))
        super().__init__(convs, torch.nn.Conv2d(channels, 1, 3, 1, 1))
        self.settings = FeatureSettings(rate=0, n_fft=n_fft, hop=n_fft // 4, win=n_fft)

    def view(self, waveform: torch.Tensor) -> torch.Tensor:
        return spectrogram(waveform, self.settings)[:, None]


class Discriminators(torch.nn.Module):
    """All that a config describes; in the order of published checkpoints: by scale, by period, by spectrogram."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        ours: list[Discriminator] = [ScaleDiscriminator(config.scale_channels)] if config.scale_channels else []
        ours += [PeriodDiscriminator(period, config.period_channels) for period in config.periods]
        ours += [SpectrogramDiscriminator(size, config.resolution_channels) for size in config.resolutions]
        self.config = config
        self.discriminators = torch.nn.ModuleList(ours)

    def forward(self, waveform: torch.Tensor) -> Judgement:
        found = [one(waveform) for one in self.discriminators]
        scores = [layers[-1].flatten(1) for layers in found]
        return Judgement(scores, [layer for layers in found for layer in layers])


def new_discriminators(config: DiscriminatorConfig, seed: int) -> Discriminators:
    """With random weights, as torch initialises layers, that depend on the seed alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Discriminators(config)


def open_discriminators(model: str | None, sizes: str, voice: VitsConfig, seed: int) -> Discriminators:
    """Those that a voice brings (None: one from nothing), or new ones of `sizes`.

    These are small, published, or auto, by the size of the voice.
    """
    if model and sizes == "auto":
        if found := load_from(model, load_discriminators, advice=ADVICE):
            return found
        logger.warning("%s has no discriminators (%s): their training begins with random weights", model, FILE)
    return new_discriminators(choose_sizes(sizes, voice), seed)


def check_discriminators(model: str | None, sizes: str) -> None:
    """Refuse a voice's folder whose discriminators would be trained on (see `open_discriminators`) but are damaged."""
    if model and sizes == "auto" and Path(local_name(model), FILE).exists():
        load_from(model, lambda source: None, needs=(FILE,), advice=ADVICE)


def choose_sizes(sizes: str, voice: VitsConfig) -> DiscriminatorConfig:
    """Those of new ones for a voice."""
    large = sizes == "published" or (sizes == "auto" and voice.upsample_initial_channel >= LARGE)
    return PUBLISHED if large else DiscriminatorConfig()


def save_discriminators(folder: Path, discriminators: Discriminators, dtype: torch.dtype = torch.float32) -> None:
    """Write them beside a voice, so that a later training of it goes on with them."""
    state = {name: tensor.to(dtype) for name, tensor in discriminators.state_dict().items()}
    write_safetensors(folder / FILE, state, {"config": json.dumps(asdict(discriminators.config))})


def load_discriminators(model: str) -> Discriminators | None:
    """Those of a voice's folder or hub id: ours, or of a published checkpoint for training; None where it has none."""
    ours, published = find_file(model, FILE), find_file(model, "model.safetensors")
    if ours:
        with safe_open(ours, "pt") as file:
            sizes = json.loads(file.metadata()["config"])
        return fill_discriminators(sizes, read_tensors(ours))
    if published and (found := read_tensors(published, PUBLISHED_PREFIX)):
        config = read_object(find_file(model, "config.json"), "a model's config")
        sizes = asdict(PUBLISHED) | {
            field: config[f"discriminator_{field}"]
            for field in ("periods", "period_channels", "scale_channels")
            if f"discriminator_{field}" in config
        }
        return fill_discriminators(sizes, found)
    return None


def read_tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a file whose names begin with `prefix`, by the rest of the name."""
    with safe_open(path, "pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def fill_discriminators(sizes: dict[str, Any], state: dict[str, torch.Tensor]) -> Discriminators:
    """Discriminators with these weights in float32; RuntimeError where they are not of these sizes.

    Published weights are plain, or have the names of torch's former weight norm.
    """
    found = Discriminators(DiscriminatorConfig(**{name: frozen(value) for name, value in sizes.items()}))
    filled = {}
    for name, tensor in state.items():
        tensor = tensor.float()
        layer, _, kind = name.rpartition(".")
        if kind == "weight":  # its norm, and itself, whose norm is divided by
            filled[f"{layer}.{NORM}"] = tensor.flatten(1).norm(dim=1).view(-1, *(1,) * (tensor.dim() - 1))
        filled[f"{layer}.{RENAMED.get(kind, kind)}"] = tensor
    found.load_state_dict(filled)
    return found


def frozen(value: Any) -> Any:
    """A list of a JSON file as a tuple; None, by which published configs leave out a kind, as an empty one."""
    return tuple(value or ()) if value is None or isinstance(value, list) else value
