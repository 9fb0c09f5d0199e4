"""How far two sounds or two texts are apart: pure functions of arrays; docs/metrics.md describes each."""

import functools
from collections.abc import Hashable, Sequence

import numpy as np
from transformers.audio_utils import mel_filter_bank

from speech.frames import cut_frames

WINDOW = 0.025  # seconds
MELS = 80
COEFFICIENTS = 13  # of the cepstrum, after the one that is the loudness
QUIETEST = 1e-4  # of the loudest band of a sound: 80 dB below it
DECIBELS = 10 / np.log(10)


@functools.lru_cache(maxsize=8)
def mel_filters(rate: int, size: int) -> np.ndarray:
    """Triangles (bins, mels) up to half the rate, each with a sum of 1: a band's mean amplitude."""
    filters = mel_filter_bank(size // 2 + 1, MELS, 0.0, rate / 2, rate, mel_scale="slaney")
    return filters / np.maximum(filters.sum(0), 1e-12)


def log_bands(samples: np.ndarray, rate: int) -> np.ndarray:
    """Natural logarithms of the amplitude in mel bands (frames, mels), not below 80 dB under the loudest."""
    width = round(WINDOW * rate)
    size = 2 ** int(np.ceil(np.log2(2 * width)))  # fine enough that no band is between two bins
    spectrum = np.abs(np.fft.rfft(cut_frames(samples, rate, width) * np.hanning(width), size))
    bands = spectrum @ mel_filters(rate, size)
    return np.log(np.maximum(bands, max(QUIETEST * bands.max(), 1e-12)))


def mel_cepstrum(logs: np.ndarray) -> np.ndarray:
    """Coefficients 1 to 13 (frames, 13) of log_bands = c0 + c1 cos ω + c2 cos 2ω …, with ω on the mel scale.

    Without c0 the loudness does not count.
    """
    places = np.pi * (np.arange(MELS) + 0.5) / MELS
    return logs @ np.cos(np.outer(places, np.arange(1, COEFFICIENTS + 1))) * (2 / MELS)


def cepstral_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mel-cepstral distortion in dB of each frame of one cepstrum and each of another.

    (10 / ln 10) √(2 Σ (c_d − c'_d)²): the root mean square difference of the smoothed log spectra (Kubichek 1993).
    """
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return DECIBELS * np.sqrt(2 * np.maximum(squares, 0))


def align(distances: np.ndarray) -> np.ndarray:
    """The pairs (steps, 2) of frames whose distances have the least sum, both in order, none left out.

    Dynamic time warping (Sakoe & Chiba 1978), one anti-diagonal of the table at a time.
    """
    rows, columns = distances.shape
    moves = np.zeros((rows + columns - 1, rows), np.int8)  # [i + j, i]: both a step on, the row, the column
    before, last = np.full(rows + 1, np.inf), np.full(rows + 1, np.inf)  # sums of two diagonals, by row + 1
    for k in range(rows + columns - 1):
        i = np.arange(max(0, k - columns + 1), min(k, rows - 1) + 1)
        options = np.stack([before[i], last[i], last[i + 1]])
        moves[k, i] = options.argmin(0)
        sums = np.full(rows + 1, np.inf)
        sums[i + 1] = distances[i, k - i] + (options.min(0) if k else 0.0)
        before, last = last, sums
    i, j = rows - 1, columns - 1
    pairs = [(i, j)]
    while i or j:
        move = moves[i + j, i]
        i, j = i - (move != 2), j - (move != 1)
        pairs.append((i, j))
    return np.array(pairs[::-1])


def count_edits(said: Sequence[Hashable], meant: Sequence[Hashable]) -> int:
    """Insertions, deletions and substitutions that make one sequence of the other (Levenshtein 1966)."""
    known: dict[Hashable, int] = {}
    first, second = (np.array([known.setdefault(one, len(known)) for one in some], int) for some in (said, meant))
    places = np.arange(len(second) + 1)
    row = places
    for number, one in enumerate(first, 1):
        others = np.append(number, np.minimum(row[1:] + 1, row[:-1] + (second != one)))
        row = np.minimum.accumulate(others - places) + places  # each insertion costs 1
    return int(row[-1])
