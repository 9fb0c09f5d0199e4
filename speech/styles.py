"""Global Style Tokens (Wang et al., 2018, arXiv 1803.09017): how a recording is spoken, as weights of a few vectors.

An encoder hears the log-mel spectrogram of a recording and looks for it among the tokens; what they say, so weighted,
is the style, which is added to the voice's condition. All of it is learnt with the voice, without any labels.
"""

import argparse
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VitsModel

from speech.audio import read_sound, resample, trim_silence
from speech.features import log_mel, settings_of, spectrogram
from utils.cli import UserError

NAME = "style_tokens"  # of the part
CHANNELS, LAYERS, KERNEL = 128, 3, 5  # of the encoder of recordings
HEADS, HEAD_SIZE = 4, 32
MEAN, DEVIATION = -4.7, 1.8  # about those of speech in log-mel spectrograms: what all recordings share is left out
SHARPNESS = 6.0  # of the search, so that recordings differ in their weights from the first step
SCALE = 5.0  # of the style, so that the layer from zero that hears it learns soon
DROPPED = 0.1  # of the utterances in training have no style, and so teach the voice how to speak without one


Weights = tuple[tuple[float, ...], ...]  # of each token in each head


@dataclass(frozen=True)
class Styles:
    """Whose style some utterances have: that of their recordings, where `heard` is 1, or given weights of tokens."""

    spectrograms: Tensor | None = None  # (batch, bins, frames), linear
    frame_lengths: Tensor | None = None  # (batch,)
    heard: Tensor | None = None  # (batch,), 0 for none
    weights: Tensor | None = None  # (batch, heads, tokens)


def add_style_tokens(model: VitsModel, tokens: int) -> None:
    model.style_tokens = StyleTokens(tokens, settings_of(model.config).mels)
    model.style_to_condition = torch.nn.Linear(HEADS * HEAD_SIZE, model.config.speaker_embedding_size, bias=False)


class StyleTokens(torch.nn.Module):
    """What it computes of a recording depends on neither the ones beside it nor the padding: it has no batch norm."""

    def __init__(self, tokens: int, mels: int):
        super().__init__()
        sizes = [mels, *[CHANNELS] * LAYERS]
        layers = [torch.nn.Conv1d(a, b, KERNEL, padding=KERNEL // 2) for a, b in zip(sizes, sizes[1:])]
        for layer in layers:
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="tanh")
            torch.nn.init.zeros_(layer.bias)
        self.layers = torch.nn.ModuleList(layers)
        self.query = torch.nn.Linear(2 * CHANNELS, HEADS * HEAD_SIZE)
        torch.nn.init.orthogonal_(self.query.weight, gain=10)  # only its angles count: it turns slowly
        self.tokens = torch.nn.Parameter(0.5 * torch.randn(HEADS, tokens, HEAD_SIZE))

    def attend(self, mels: Tensor, mask: Tensor) -> Tensor:
        """Weights (batch, heads, tokens) of log-mel spectrograms; `mask` (batch, 1, frames)."""
        hidden = (mels - MEAN) / DEVIATION
        for layer in self.layers:
            hidden = layer(hidden * mask).tanh()
        hidden, frames = hidden.float() * mask, mask.sum(2)
        mean = hidden.sum(2) / frames
        spread = (((hidden - mean[:, :, None]) * mask).square().sum(2) / frames + 1e-5).sqrt()
        heard = F.layer_norm(torch.cat([mean, spread], 1), (2 * CHANNELS,))
        query = self.query(heard).unflatten(1, (HEADS, HEAD_SIZE))
        # By angles: longer and longer queries, as Adam makes them, would soon find one token for every recording.
        cosines = torch.einsum("bhs,hts->bht", F.normalize(query, dim=2), F.normalize(self.tokens.tanh(), dim=2))
        return (SHARPNESS * cosines).softmax(2)

    def mix(self, weights: Tensor) -> Tensor:
        """The style (batch, heads * size) of weights; of equal ones it is zero, as none."""
        tokens = self.tokens.tanh()
        return SCALE * torch.einsum("bht,hts->bhs", weights, tokens - tokens.mean(1, keepdim=True)).flatten(1)


def hear_styles(model: VitsModel, styles: Styles) -> Tensor:
    """What styles add to the condition (batch, size)."""
    weights = styles.weights
    if weights is None:
        weights = weigh_tokens(model, styles.spectrograms, styles.frame_lengths)
    added = model.style_to_condition(model.style_tokens.mix(weights))
    return added if styles.heard is None else added * styles.heard[:, None]


def weigh_tokens(model: VitsModel, spectrograms: Tensor, frame_lengths: Tensor) -> Tensor:
    """The weights (batch, heads, tokens) that the tokens have in recordings."""
    places = torch.arange(spectrograms.shape[2], device=spectrograms.device)
    mask = (places < frame_lengths[:, None])[:, None].float()
    return model.style_tokens.attend(log_mel(spectrograms, settings_of(model.config)), mask)


def token_weight(text: str) -> str:
    """A type for the weight of a token, as `3:0.5`."""
    number, _, weight = text.partition(":")
    with contextlib.suppress(ValueError):
        if number.isdecimal() and math.isfinite(float(weight)):
            return text
    raise argparse.ArgumentTypeError(f"{text[:40]}: expected the number of a token and its weight, such as 3:0.5")


def choose_style(
    model: VitsModel,
    reference: Path | str | None,
    tokens: Sequence[str] | None,
    weigh: Callable[[VitsModel, Any], Weights] | None = None,
) -> Weights:
    """The weights of a style that was asked for by a recording or by tokens (`3:0.5`); () where none was.

    `weigh` gives those of a recording where it is no file.
    """
    if not reference and not tokens:
        return ()
    asked = f"--style_reference {reference}" if reference else f"--style_token {' '.join(tokens or ())}"
    if not hasattr(model, NAME):
        raise UserError(
            f"{asked}: the voice knows no styles; train it with train_tts.py --style_tokens, or leave it out"
        )
    if reference and tokens:
        raise UserError(f"{asked}: gives the weights of all tokens; leave --style_token out")
    if reference:
        return (weigh or weigh_file)(model, reference)
    count = model.style_tokens.tokens.shape[1]
    numbers = [int(one.partition(":")[0]) for one in tokens or ()]
    if len({*numbers}) < len(numbers):
        raise UserError(f"{asked}: gives a token two weights; give it one")
    weights = {int(number): float(weight) for number, _, weight in (one.partition(":") for one in tokens or ())}
    if max(weights) >= count:
        raise UserError(f"{asked}: the voice has tokens 0 to {count - 1}")
    return (tuple(weights.get(number, 0.0) for number in range(count)),) * HEADS


@torch.no_grad()
def weigh_file(model: VitsModel, path: Path) -> Weights:
    """The weights that the tokens have in a recording, at the voice's rate and without the silence at its ends."""
    settings, sound = settings_of(model.config), read_sound(path, "--style_reference")
    samples = trim_silence(resample(sound.samples, sound.rate, settings.rate), settings.rate)
    if len(samples) < max(settings.shortest, settings.hop):
        raise UserError(f"--style_reference {path}: {len(samples)} samples are too short for a style; give a sentence")
    if not samples.any():
        raise UserError(f"--style_reference {path}: is silent; give a recording of speech")
    spectra = spectrogram(torch.from_numpy(samples)[None].to(model.device), settings)
    found = weigh_tokens(model, spectra, torch.tensor([spectra.shape[2]], device=model.device))
    return tuple(map(tuple, found[0].tolist()))
