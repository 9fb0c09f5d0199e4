"""The pitch of sounds whose pitch is known, and differences of pitch that are known."""

import numpy as np
import pytest

from speech.pitch import Pitch, compare_pitch, find_pitch

RATE = 16000


def hum(hertz, rate=RATE, harmonics=range(1, 9)):
    """A harmonic sound whose pitch follows `hertz`, a value a sample."""
    phase = 2 * np.pi * np.cumsum(hertz) / rate
    return sum(np.sin(k * phase) / k for k in harmonics if k * np.max(hertz) < rate / 2) * 0.2


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
@pytest.mark.parametrize("hertz", [70, 110, 220, 450])
def test_the_pitch_of_a_tone_is_found_at_every_rate(rate, hertz):
    found = find_pitch(hum(np.full(rate // 2, hertz), rate), rate)
    assert len(found.hertz) == 51 and found.voiced[3:-3].all()
    assert found.hertz[3:-3] == pytest.approx(hertz, rel=0.005)


def test_a_voice_whose_lowest_harmonic_is_missing_has_its_pitch():
    found = find_pitch(hum(np.full(RATE // 2, 150.0), harmonics=range(2, 9)), RATE)
    assert found.hertz[3:-3] == pytest.approx(150, rel=0.01)


def test_a_glide_is_followed():
    hertz = np.linspace(100, 250, RATE)
    found = find_pitch(hum(hertz), RATE)
    assert found.hertz[3:98] == pytest.approx(hertz[::160][3:98], rel=0.04)


def test_voice_is_told_from_noise_and_silence():
    rng = np.random.default_rng(0)
    voice, noise = hum(np.full(RATE // 2, 120.0)), rng.normal(0, 0.1, RATE // 2)
    parts = [voice, np.zeros(RATE // 2), noise, voice + 0.02 * rng.normal(size=RATE // 2)]
    voiced = find_pitch(np.concatenate(parts), RATE).voiced
    shares = [voiced[50 * i + 3 : 50 * i + 47].mean() for i in range(4)]
    assert shares == [1, 0, 0, 1]
    assert not find_pitch(np.zeros(RATE), RATE).voiced.any()


def test_differences_of_pitch_are_those_that_are_known():
    hertz, voiced = np.geomspace(100, 200, 40), np.arange(40) < 30
    pairs = np.stack([np.arange(40)] * 2, 1)
    higher = compare_pitch(Pitch(hertz, voiced), Pitch(hertz * 2 ** (1 / 12), voiced), pairs)
    assert higher.rmse == pytest.approx(np.log(2) / 12)  # a semitone
    assert higher.correlation == pytest.approx(1) and higher.voicing == 0
    fewer = compare_pitch(Pitch(hertz, voiced), Pitch(1e4 / hertz, np.arange(40) < 20), pairs)
    assert fewer.correlation == pytest.approx(-1) and fewer.voicing == 0.25
    none = compare_pitch(Pitch(hertz, voiced), Pitch(hertz, np.arange(40) < 5), pairs)
    assert np.isnan(none.rmse) and np.isnan(none.correlation) and none.voicing == 25 / 40
