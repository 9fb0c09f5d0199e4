"""Losses between a decoded segment and the recording, one value for each utterance (batch,).

Their mean over a step's utterances is the step's loss, however the step is cut into micro-batches.
"""

import torch

from speech.features import FeatureSettings, log_mel, spectrogram


def mel_distances(segment: torch.Tensor, real: torch.Tensor, settings: FeatureSettings) -> torch.Tensor:
    """The mean absolute difference of log-mel spectrograms, of waveforms (batch, samples)."""
    found, wanted = (log_mel(spectrogram(one, settings), settings) for one in (segment, real))
    return (found - wanted).abs().mean((1, 2))


def discriminator_losses(real: list[torch.Tensor], decoded: list[torch.Tensor]) -> torch.Tensor:
    """Of least squares (LSGAN, arXiv 1611.04076): a recording shall score 1, a decoded segment 0."""
    pairs = zip(real, decoded)
    return torch.stack([(1 - r.float()).square().mean(1) + d.float().square().mean(1) for r, d in pairs]).sum(0)


def generator_losses(decoded: list[torch.Tensor]) -> torch.Tensor:
    """The other side: the decoded segment shall score 1."""
    return torch.stack([(1 - d.float()).square().mean(1) for d in decoded]).sum(0)


def feature_distances(real: list[torch.Tensor], decoded: list[torch.Tensor]) -> torch.Tensor:
    """The mean absolute difference in each layer of each discriminator, summed (HiFi-GAN, arXiv 2010.05646, eq. 7)."""
    pairs = zip(real, decoded)
    return torch.stack([(r.detach().float() - d.float()).abs().flatten(1).mean(1) for r, d in pairs]).sum(0)
