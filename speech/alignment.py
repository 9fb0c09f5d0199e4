"""Monotonic alignment search: how many frames of speech each character takes (VITS, arXiv 2106.06103, section 2.2)."""

import numpy as np


def monotonic_path(scores: np.ndarray, text_lengths: np.ndarray, frame_lengths: np.ndarray) -> np.ndarray:
    """The frames that each character takes (batch, text) on the path with the largest sum of scores.

    `scores` are the log-likelihoods (batch, text, frames). A path begins at the first character, ends at the last,
    and from frame to frame stays or goes on by one; so each character takes a frame at least. What lies beyond an
    utterance's lengths changes nothing. ValueError where an utterance has more characters than frames.
    """
    batch, text, frames = scores.shape
    if (text_lengths > frame_lengths).any():
        raise ValueError("an utterance has more characters than frames")
    by_frame = np.ascontiguousarray(scores.transpose(2, 0, 1), dtype=np.float32)
    # The best sums of paths that end at each character, and at one more before the first.
    best = np.full((batch, text + 1), -np.inf, np.float32)
    best[:, 1] = by_frame[0, :, 0]
    goes_on = np.zeros((frames, batch, text), bool)  # from the character before
    for frame in range(1, frames):
        stay, step = best[:, 1:], best[:, :-1]
        np.less(stay, step, out=goes_on[frame])
        best[:, 1:] = np.maximum(stay, step) + by_frame[frame]
    goes_on &= (np.arange(frames)[:, None] < frame_lengths)[:, :, None]
    place = np.arange(batch) * text + text_lengths - 1  # in the flat (batch, text)
    places = np.empty((frames, batch), np.int64)
    for frame in range(frames - 1, -1, -1):
        places[frame] = place
        place = place - goes_on[frame].reshape(-1)[place]
    spoken = np.arange(frames)[:, None] < frame_lengths
    return np.bincount(places[spoken], minlength=batch * text).reshape(batch, text)
