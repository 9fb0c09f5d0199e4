"""The speaker encoder of the package Resemblyzer, from its pretrained.pt: an LSTM over windows of mels (GE2E).

Wan et al., 2018, arXiv 1710.10467. The file is a pickle, of which torch reads tensors and plain containers alone: one
with anything else in it is refused, and nothing in it runs. The package also cuts out long pauses; this does not.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech.features import FeatureSettings, hann_window, mel_filters
from utils.cli import UserError

FEATURES = FeatureSettings(16_000, n_fft=400, hop=160, win=400, mels=40)
SIZE, LAYERS = 256, 3
WINDOW, STEP = 160, 77  # frames: windows of 1.6 s, 1.3 a second
LEAST_FILLED = 0.75  # of the last window
LEVEL = 10 ** (-30 / 20)  # root mean square that quieter sounds are raised to


class Encoder(nn.Module):
    """Unit rows of windows (count, frames, mels) that are all at least 0."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES.mels, SIZE, LAYERS, batch_first=True)
        self.linear = nn.Linear(SIZE, SIZE)

    def forward(self, windows: Tensor) -> Tensor:
        hidden = self.lstm(windows)[1][0]
        return F.normalize(self.linear(hidden[-1]).relu(), dim=1)


def place_windows(samples: int) -> list[int]:
    """The first frame of each window; the last one is left out if little of it is filled, unless it is the only one."""
    frames = samples // FEATURES.hop + 1
    starts = list(range(0, max(1, frames - WINDOW + STEP + 1), STEP))
    filled = (samples - starts[-1] * FEATURES.hop) / (WINDOW * FEATURES.hop)
    return starts[:-1] if filled < LEAST_FILLED and len(starts) > 1 else starts


def cut_windows(sound: Tensor) -> Tensor:
    """Mel energies, not their logarithms, of a sound at 16 kHz in windows (count, frames, mels)."""
    sound = sound * (LEVEL / sound.square().mean().sqrt().clamp(min=1e-8)).clamp(min=1)
    starts = place_windows(len(sound))
    sound = F.pad(sound, (0, max(0, (starts[-1] + WINDOW) * FEATURES.hop - len(sound))))
    window = hann_window(FEATURES.win, sound.device)
    parts = torch.stft(
        sound, FEATURES.n_fft, FEATURES.hop, FEATURES.win, window, pad_mode="constant", return_complex=True
    )
    mels = (mel_filters(FEATURES, sound.device) @ torch.view_as_real(parts).square().sum(-1)).T
    return torch.stack([mels[start : start + WINDOW] for start in starts])


def load_resemblyzer(path: Path, flag: str, device: torch.device | str) -> Callable[[np.ndarray], Tensor]:
    """What gives the mean of a sound's windows; refuses a file that isn't Resemblyzer's, or holds more than tensors."""
    network = Encoder()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        names = network.state_dict().keys()
        network.load_state_dict({name: tensor for name, tensor in found["model_state"].items() if name in names})
    except Exception as error:  # of each kind of damage another
        raise UserError(
            f"{flag} {path}: is not the pretrained.pt of Resemblyzer ({' '.join(str(error).split())[:80]}); give that "
            "file, or a hub id or folder"
        ) from None
    network = network.to(device).eval().requires_grad_(False)
    return lambda sound: network(cut_windows(torch.as_tensor(sound, device=device))).mean(0)
