"""The pitch of a voice over time, and how two of them differ: pure functions; docs/metrics.md describes each."""

from typing import NamedTuple

import numpy as np
from scipy.signal import medfilt

from speech.frames import cut_frames

LOWEST, HIGHEST = 60.0, 500.0  # Hz, of voices
WINDOW = 0.025  # seconds that are compared with themselves, shifted
DIP = 0.15  # YIN's threshold: the first period that repeats this well is taken, and not one of its multiples
VOICED = 0.3  # a period that repeats worse than this is none
QUIETEST = 1e-3  # of the power of the loudest frame: 30 dB below it
FEWEST = 10  # frames that are voiced in both sounds, for a correlation


class Pitch(NamedTuple):
    """Of each frame: the frequency in Hz, and whether it is voiced."""

    hertz: np.ndarray
    voiced: np.ndarray


class PitchDifference(NamedTuple):
    rmse: float  # of the natural logarithm of the pitch; 0.058 is a semitone
    correlation: float
    voicing: float  # share of the frames


def find_pitch(samples: np.ndarray, rate: int) -> Pitch:
    """YIN (de Cheveigné & Kawahara 2002), every 10 ms; single frames that differ from both neighbours follow them."""
    width, longest = round(WINDOW * rate), int(rate / LOWEST)
    frames = cut_frames(samples, rate, width + longest)
    difference = shifted_difference(frames, width, longest)
    means = np.cumsum(difference[:, 1:], 1) / np.arange(1, longest + 1)
    relative = np.concatenate([np.ones((len(frames), 1)), difference[:, 1:] / np.maximum(means, 1e-12)], 1)
    period, depth = find_period(relative, int(rate / HIGHEST))
    power = (frames**2).mean(1)
    voiced = medfilt(((depth < VOICED) & (power > QUIETEST * power.max())).astype(float), 3) > 0
    return Pitch(rate / period, voiced)


def shifted_difference(frames: np.ndarray, width: int, longest: int) -> np.ndarray:
    """Σ (x_t − x_{t+τ})² over `width` samples, for τ of 0 to `longest`, of each frame."""
    size = 2 ** int(np.ceil(np.log2(frames.shape[1] + width)))
    product = np.conj(np.fft.rfft(frames[:, :width], size)) * np.fft.rfft(frames, size)
    correlation = np.fft.irfft(product, size)[:, : longest + 1]
    sums = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), 1)
    energy = sums[:, width : width + longest + 1] - sums[:, : longest + 1]
    return np.maximum(energy[:, :1] + energy - 2 * correlation, 0)


def find_period(relative: np.ndarray, shortest: int) -> tuple[np.ndarray, np.ndarray]:
    """(period in samples, how badly it repeats) of each frame: the first dip below DIP, or else the deepest."""
    inner = relative[:, shortest:-1]
    dips = (inner <= relative[:, shortest - 1 : -2]) & (inner < relative[:, shortest + 1 :])
    low = dips & (inner < DIP)
    deepest = np.where(dips, inner, np.inf).argmin(1)
    place = np.where(low.any(1), low.argmax(1), deepest) + shortest
    rows = np.arange(len(relative))
    before, here, after = (relative[rows, place + aside] for aside in (-1, 0, 1))
    curve = before - 2 * here + after
    aside = np.where(curve > 1e-12, (before - after) / (2 * np.maximum(curve, 1e-12)), 0)
    return place + np.clip(aside, -0.5, 0.5), here


def compare_pitch(first: Pitch, second: Pitch, pairs: np.ndarray) -> PitchDifference:
    """Of the frames that belong together (`pairs`, of their alignment); NaN where too few are voiced in both."""
    one, other = pairs.T
    voiced, also = first.voiced[one], second.voiced[other]
    both = voiced & also
    voicing = float((voiced != also).mean())
    if both.sum() < FEWEST:
        return PitchDifference(np.nan, np.nan, voicing)
    a, b = np.log(first.hertz[one][both]), np.log(second.hertz[other][both])
    spread = a.std() * b.std()
    correlation = float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 1e-12 else np.nan
    return PitchDifference(float(np.sqrt(((a - b) ** 2).mean())), correlation, voicing)
