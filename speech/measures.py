"""What an utterance is measured by against the recording of the same sentence, and a picture of its spectrum."""

from typing import NamedTuple

import numpy as np
from matplotlib import colormaps

from speech.audio import trim_silence
from speech.distances import align, cepstral_distances, log_bands, mel_cepstrum
from speech.pitch import Pitch, compare_pitch, find_pitch


class Measures(NamedTuple):
    """Of two sounds without the silence at their ends; NaN where there is too little voice to tell."""

    mcd: float  # dB
    f0_rmse: float
    f0_correlation: float
    voicing_error: float
    seconds: float
    real_seconds: float
    pitch: float  # Hz, the median
    real_pitch: float


VERSION = 1  # of how they are computed: part of a cache's key


def compare_sounds(real: np.ndarray, other: np.ndarray, rate: int) -> Measures:
    """Both at one rate. Frames are aligned by the spectra, the pitch of those that belong together is compared."""
    real, other = trim_silence(real, rate), trim_silence(other, rate)
    first, second = (mel_cepstrum(log_bands(one, rate)) for one in (real, other))
    distances = cepstral_distances(first, second)
    pairs = align(distances)
    mcd = float(distances[tuple(pairs.T)].mean())
    real_pitch, pitch = find_pitch(real, rate), find_pitch(other, rate)
    difference = compare_pitch(real_pitch, pitch, pairs)
    seconds = len(other) / rate, len(real) / rate
    return Measures(mcd, *difference, *seconds, median_pitch(pitch), median_pitch(real_pitch))


def median_pitch(pitch: Pitch) -> float:
    return float(np.median(pitch.hertz[pitch.voiced])) if pitch.voiced.any() else np.nan


def draw_spectrogram(samples: np.ndarray, rate: int) -> np.ndarray:
    """RGB (mels, frames, 3): mel bands from low to high, 80 dB from the loudest down."""
    logs = log_bands(samples, rate)
    reach = max(float(np.ptp(logs)), 1e-9)
    return colormaps["magma"]((logs.T[::-1] - logs.min()) / reach, bytes=True)[..., :3]
