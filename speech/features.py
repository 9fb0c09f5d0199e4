"""What the training of a voice sees of audio: linear spectrograms, and log-mel spectrograms of them."""

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import VitsConfig
from transformers.audio_utils import mel_filter_bank

SMALLEST = 1e-5  # of a mel energy, before its logarithm


@dataclass(frozen=True)
class FeatureSettings:
    """Samples a second, and the sizes of a spectrogram: `n_fft`, `hop` and `win` in samples."""

    rate: int
    n_fft: int
    hop: int
    win: int
    mels: int = 80

    @property
    def shortest(self) -> int:
        """Samples that a waveform needs at least, since its ends are mirrored."""
        return (self.n_fft - self.hop) // 2 + 1


def settings_of(config: VitsConfig) -> FeatureSettings:
    """Those that a voice of this config was made for: one frame for each step of its decoder."""
    n_fft = 2 * (config.spectrogram_bins - 1)
    return FeatureSettings(config.sampling_rate, n_fft, math.prod(config.upsample_rates), n_fft)


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    """Where autocast chooses no other precision; on the meta device, which sizes are computed on, there is none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def spectrogram(waveform: torch.Tensor, settings: FeatureSettings) -> torch.Tensor:
    """Magnitudes (batch, bins, samples // hop) of waveforms (batch, samples), in float32 also under autocast.

    The ends are mirrored, so in a batch only waveforms of one length give what each gives alone.
    """
    with in_float32(waveform.device):
        margin = (settings.n_fft - settings.hop) // 2
        padded = F.pad(waveform.float()[:, None], (margin, margin), mode="reflect")[:, 0]
        window = hann_window(settings.win, waveform.device)
        n_fft, hop, win = settings.n_fft, settings.hop, settings.win
        parts = torch.stft(padded, n_fft, hop, win, window, center=False, return_complex=True)
        return (torch.view_as_real(parts).square().sum(-1) + 1e-6).sqrt()


def log_mel(magnitudes: torch.Tensor, settings: FeatureSettings) -> torch.Tensor:
    """Log-mel spectrograms (batch, mels, frames) of a linear one, with librosa's filters, in float32."""
    with in_float32(magnitudes.device):
        energies = mel_filters(settings, magnitudes.device) @ magnitudes.float()
        return energies.clamp(min=SMALLEST).log()


@functools.lru_cache(maxsize=8)
def hann_window(length: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # what is kept is used in training too
        return torch.hann_window(length, device=device)


@functools.lru_cache(maxsize=8)
def mel_filters(settings: FeatureSettings, device: torch.device) -> torch.Tensor:
    """The filters (mels, bins) up to half the rate, as librosa's `filters.mel` makes them."""
    bins, top = settings.n_fft // 2 + 1, settings.rate / 2
    filters = mel_filter_bank(bins, settings.mels, 0.0, top, settings.rate, norm="slaney", mel_scale="slaney")
    with torch.inference_mode(False):
        return torch.from_numpy(filters.T).float().to(device)
