"""speech/sound_checks.py: each fault is found, and by its name."""

import numpy as np
import pytest

from speech.sound_checks import Limits, find_fault

TONE = 0.3 * np.sin(np.arange(16_000) * 0.1).astype(np.float32)


@pytest.mark.parametrize(
    "samples, characters, fault",
    [
        (TONE, 15, ""),
        (np.where(np.arange(16_000) == 7, np.nan, TONE), 15, "NaN"),
        (TONE * 0.001, 15, "silence"),
        (np.clip(TONE * 10, -1, 1), 15, "clipping"),
        (TONE, 60, "too short for its text"),
        (np.tile(TONE, 5), 15, "too long for its text"),
        (np.tile(TONE, 2)[:20_000], 1, ""),  # a short text may take its time
    ],
)
def test_a_fault_is_named(samples, characters, fault):
    assert find_fault(samples, 16_000, characters, Limits()) == fault


def test_the_limits_go_with_the_speaking_rate():
    assert find_fault(TONE, 16_000, 60, Limits(), speaking_rate=2) == ""
    assert find_fault(np.tile(TONE, 5), 16_000, 15, Limits(), speaking_rate=0.5) == ""
