import numpy as np
import pytest

from speech.vad import STEP_SECONDS, speech_probabilities
from tests.toy_speech import toy_speech


def test_speech_is_heard_where_it_is_at_any_rate():
    for rate in (16_000, 44_100):
        sound = np.concatenate([np.zeros(rate, np.float32), toy_speech(1, rate=rate), np.zeros(rate, np.float32)])
        heard = np.flatnonzero(speech_probabilities(sound, rate) > 0.5) * STEP_SECONDS
        assert abs(heard[0] - 1.1) < 0.1 and abs(heard[-1] - 1.9) < 0.15


@pytest.mark.parametrize("kind", ["noise", "tone", "silence"])
def test_other_sounds_are_no_speech(kind):
    time = np.arange(32_000) / 16_000
    sounds = {"noise": np.random.default_rng(0).normal(0, 0.1, 32_000), "tone": 0.3 * np.sin(2764 * time)}
    assert speech_probabilities(sounds.get(kind, 0 * time).astype(np.float32), 16_000).max() < 0.5
