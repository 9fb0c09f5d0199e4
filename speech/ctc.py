"""A small recogniser of characters (CTC: Graves et al., 2006), trained by demo/pretrain_voice.py."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from speech.convolutions import Convolutions, hear, load_network, pad

BLANK = 0
AT_ONCE = 16  # sounds; sorted by length, so that little of a batch is padding
Hear = Callable[[Sequence[np.ndarray]], list[tuple[str, float]]]


def spell(text: str, characters: str) -> list[int]:
    """The tokens of a text: lower-case letters and single spaces, the blank is 0; all else separates words."""
    known = "".join(one if one in characters else " " for one in text.lower())
    return [characters.index(one) + 1 for one in re.sub(r"\s+", " ", known).strip()]


def read_out(best: np.ndarray, characters: str) -> str:
    """The text of the best token of each frame: repeats once, blanks left out."""
    kept = [token for before, token in zip([BLANK, *best], best, strict=False) if token not in (before, BLANK)]
    return re.sub(r"\s+", " ", "".join(characters[token - 1] for token in kept)).strip()


def score(network: Convolutions, mels: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (batch, frames, 1 + characters) of a batch, and how many of the frames each sound has.

    The network gives two frames at a time, so that it does half of the work.
    """
    outputs, mask = network(mels, lengths)
    batch, frames, width = outputs.shape
    return outputs.float().view(batch, 2 * frames, width // 2).log_softmax(-1), 2 * mask.sum((1, 2)).long()


@torch.no_grad()
def recognise(network: Convolutions, characters: str, mels: Sequence[torch.Tensor]) -> list[tuple[str, float]]:
    """The text of each sound, and a confidence in 0..1: the mean probability of its characters."""
    scores, lengths = score(network, *pad(mels))
    best = scores.exp().max(-1)
    heard = []
    for values, tokens, frames in zip(best.values, best.indices, lengths.tolist(), strict=True):
        letters = tokens[:frames] != BLANK
        confidence = float(values[:frames][letters].mean()) if letters.any() else 0.0
        heard.append((read_out(tokens[:frames].cpu().numpy(), characters), confidence))
    return heard


def load_ctc(folder: Path, flag: str = "--asr", device: torch.device | str = "cpu") -> Hear:
    """What recognises sounds at 16 kHz: a function from a list of them to a list of (text, confidence).

    The text is of lower-case letters, without punctuation.
    """
    network, settings = load_network(folder, flag, device)
    characters = str(settings["characters"])

    def hear_all(sounds: Sequence[np.ndarray]) -> list[tuple[str, float]]:
        order = sorted(range(len(sounds)), key=lambda index: len(sounds[index]))
        heard: list[tuple[str, float]] = [("", 0.0)] * len(sounds)
        for start in range(0, len(order), AT_ONCE):
            chosen = order[start : start + AT_ONCE]
            results = recognise(network, characters, [hear(sounds[index], device) for index in chosen])
            for index, result in zip(chosen, results, strict=True):
                heard[index] = result
        return heard

    return hear_all
