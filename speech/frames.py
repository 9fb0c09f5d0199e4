"""A sound cut into windows, one every 10 ms: what its spectrum, its pitch and their alignment in time are made of."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

HOP = 0.01  # seconds


def cut_frames(samples: np.ndarray, rate: int, width: int) -> np.ndarray:
    """Windows (frames, width) around every 10 ms of the sound, beyond whose ends there is silence."""
    hop = round(HOP * rate)
    padded = np.pad(np.asarray(samples, np.float64), (width // 2, width - width // 2))
    return sliding_window_view(padded, width)[: len(samples) + 1 : hop]
