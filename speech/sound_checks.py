"""What is wrong with a sound that a voice made: NaN, silence, clipping, or a length that its text does not explain."""

from dataclasses import dataclass

import numpy as np

from speech.audio import frame_levels

QUIET = -50.0  # dB below full scale, of the loudest 20 ms
FULL = 0.999  # a sample that counts as clipped
MOST_FULL = 0.001  # of the samples: with a larger share of clipped ones the sound is rejected
SLACK = 1.0  # seconds that a short text may take longer


@dataclass(frozen=True)
class Limits:
    """Characters a second, at a speaking rate of 1. People read 10 to 20."""

    slowest: float = 4.0
    fastest: float = 40.0


def find_fault(samples: np.ndarray, rate: int, characters: int, limits: Limits, speaking_rate: float = 1.0) -> str:
    """Why the sound is rejected; empty where it is not."""
    if not np.isfinite(samples).all():
        return "NaN"
    if frame_levels(samples, rate).max() < QUIET:
        return "silence"
    if np.mean(np.abs(samples) >= FULL) > MOST_FULL:
        return "clipping"
    seconds = len(samples) / rate * speaking_rate
    if seconds < characters / limits.fastest:
        return "too short for its text"
    return "too long for its text" if seconds > SLACK + characters / limits.slowest else ""
