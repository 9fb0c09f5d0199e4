"""The equal error rate, against a count by hand and a case whose rate is known."""

import numpy as np
import pytest
from scipy.special import ndtr

from evaluation.verification import equal_error_rate, verify_speakers
from utils.cli import UserError


def test_the_rate_is_where_as_many_are_refused_as_accepted() -> None:
    assert equal_error_rate(np.array([0.9, 0.8]), np.array([0.1, 0.7])) == 0
    assert equal_error_rate(np.array([0.9, 0.8, 0.4, 0.7]), np.array([0.1, 0.5, 0.2, 0.3])) == 0.25
    assert equal_error_rate(np.array([0.1, 0.2]), np.array([0.8, 0.9])) == 1


def test_two_normal_distributions_have_the_rate_of_their_distance() -> None:
    rng = np.random.default_rng(0)
    found = equal_error_rate(rng.normal(2, 1, 200_000), rng.normal(0, 1, 200_000))
    assert found == pytest.approx(ndtr(-1), abs=0.003)


def test_speakers_are_told_apart_by_vectors_that_know_them_and_by_no_others() -> None:
    rng = np.random.default_rng(0)
    speakers = [f"s{i // 6}" for i in range(60)]
    centres = np.repeat(rng.normal(size=(10, 8)), 6, 0)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    known = verify_speakers(speakers, unit(centres + 0.3 * rng.normal(size=(60, 8))))
    assert known.value < 0.1 and known.low < known.value < known.high
    blind = verify_speakers(speakers, unit(rng.normal(size=(60, 8))))
    assert blind.low < 0.5 < blind.high
    clones = verify_speakers(speakers, unit(centres + 0.3 * rng.normal(size=(60, 8))), unit(centres))
    assert clones.value < known.value + 0.05


def test_one_speaker_alone_has_no_rate() -> None:
    with pytest.raises(UserError, match="give two speakers or more"):
        equal_error_rate(np.array([0.5]), np.array([]))
