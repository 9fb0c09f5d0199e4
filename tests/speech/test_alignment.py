import numpy as np
import pytest

from speech.alignment import monotonic_path


def slow_path(scores: np.ndarray) -> list[int]:
    """The durations of one utterance (text, frames), cell by cell."""
    text, frames = scores.shape
    best = np.full((text, frames), -np.inf)
    best[0, 0] = scores[0, 0]
    for frame in range(1, frames):
        for place in range(min(text, frame + 1)):
            before = best[place - 1, frame - 1] if place else -np.inf
            best[place, frame] = max(best[place, frame - 1], before) + scores[place, frame]
    place, durations = text - 1, [0] * text
    for frame in range(frames - 1, -1, -1):
        durations[place] += 1
        if place and frame and best[place - 1, frame - 1] > best[place, frame - 1]:
            place -= 1
    return durations


def test_paths_equal_those_of_a_slow_search():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(16, 12, 40)).astype(np.float32)
    text = rng.integers(1, 13, 16)
    frames = np.maximum(text, rng.integers(10, 41, 16))
    found = monotonic_path(scores, text, frames)
    for one, length, last, durations in zip(scores, text, frames, found):
        assert durations[:length].tolist() == slow_path(one[:length, :last])
        assert durations[length:].sum() == 0 and durations.sum() == last and durations[:length].min() >= 1


def test_a_path_through_clear_scores_is_found():
    scores = np.zeros((1, 3, 6), np.float32)
    scores[0, [0, 0, 1, 2, 2, 2], range(6)] = 5
    assert monotonic_path(scores, np.array([3]), np.array([6])).tolist() == [[2, 1, 3]]


def test_what_lies_beyond_the_lengths_changes_nothing():
    scores = np.random.default_rng(1).normal(size=(1, 5, 20)).astype(np.float32)
    padded = np.full((1, 9, 33), np.nan, np.float32)
    padded[:, :5, :20] = scores
    lengths = np.array([5]), np.array([20])
    assert monotonic_path(padded, *lengths)[0, :5].tolist() == monotonic_path(scores, *lengths)[0].tolist()


def test_more_characters_than_frames_are_refused():
    with pytest.raises(ValueError, match="more characters than frames"):
        monotonic_path(np.zeros((2, 5, 5), np.float32), np.array([2, 5]), np.array([5, 4]))


def test_as_many_characters_as_frames_take_one_each():
    assert monotonic_path(np.zeros((1, 5, 5), np.float32), np.array([5]), np.array([5])).tolist() == [[1] * 5]
