"""What the small recogniser and the small speaker encoder share: log-mels of 16 kHz sound, convolutions over time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from speech.features import FeatureSettings, log_mel, spectrogram
from utils.cli import UserError
from utils.files import read_object, write_json, write_safetensors

RATE = 16_000
# A window of 32 ms: short enough for a plosive, which the 64 ms of the voice's own spectrogram would blur.
FEATURES = FeatureSettings(RATE, n_fft=1024, hop=256, win=512)
LEVEL = 0.05  # root mean square of what a network hears


@dataclass(frozen=True)
class Size:
    channels: int
    layers: int
    outputs: int
    kernel: int = 5


class Convolutions(nn.Module):
    """Log-mels (batch, mels, frames) to (batch, frames / 2, outputs), by residual convolutions over time.

    What comes after a sound's end is zero before each of them, so that no other sound in the batch changes an output.
    """

    def __init__(self, size: Size):
        super().__init__()
        self.size = size
        channels, kernel = size.channels, size.kernel
        self.start = nn.Conv1d(FEATURES.mels, channels, kernel, stride=2, padding=kernel // 2)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(size.layers + 1))
        self.layers = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in range(size.layers)
        )
        self.end = nn.Linear(channels, size.outputs)

    def forward(self, mels: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs, and a mask (batch, frames / 2, 1) of those that are not padding; `lengths` in frames of the mels."""
        x = self.start(mels).transpose(1, 2)
        mask = (torch.arange(x.shape[1], device=x.device) < ((lengths + 1) // 2)[:, None])[..., None].to(x.dtype)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + nn.functional.relu(layer((norm(x) * mask).transpose(1, 2)).transpose(1, 2))
        return self.end(self.norms[-1](x)), mask


def hear(sound: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """The log-mels (frames, mels) of a sound at 16 kHz, brought to one level; silence is added after a short one."""
    samples = torch.as_tensor(np.asarray(sound, np.float32), device=device)
    samples = nn.functional.pad(samples, (0, max(0, FEATURES.n_fft - len(samples))))
    samples = samples * (LEVEL / samples.square().mean().sqrt().clamp(min=1e-5))
    return log_mel(spectrogram(samples[None], FEATURES), FEATURES)[0].T


def pad(mels: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch (batch, mels, frames) as networks read it, and how many frames each has."""
    lengths = torch.tensor([len(one) for one in mels], device=mels[0].device)
    scaled = [one / 4 + 1 for one in mels]  # to about -1..1
    return nn.utils.rnn.pad_sequence(scaled, batch_first=True).transpose(1, 2), lengths


def save_network(folder: Path, network: Convolutions, settings: dict[str, object]) -> None:
    """Weights in float16, and a config.json with the network's size and whatever its user needs."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().cpu() for name, tensor in network.state_dict().items()}
    write_safetensors(folder / "model.safetensors", half)
    write_json(folder / "config.json", {**settings, "size": asdict(network.size)})


def load_network(folder: Path, flag: str, device: torch.device | str) -> tuple[Convolutions, dict[str, object]]:
    """What `save_network` wrote, in float32."""
    settings = _read_settings(folder, flag)
    try:
        network = Convolutions(Size(**settings["size"]))
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (KeyError, TypeError, RuntimeError, OSError) as error:
        raise UserError(f"{flag} {folder}: its config.json and model.safetensors don't fit: {error}") from None
    return network.to(device).eval().requires_grad_(False), settings


def read_size(folder: Path, flag: str) -> Size:
    """That of a network, without its weights."""
    return Size(**_read_settings(folder, flag)["size"])


def _read_settings(folder: Path, flag: str) -> dict[str, Any]:
    return read_object(folder / "config.json", "the settings of a network of demo/pretrain_voice.py", flag)
