"""What is measured of two sounds, one of them changed in a known way."""

import numpy as np
import pytest

from speech.measures import compare_sounds, draw_spectrogram

RATE = 16000


def speak(hertz, seconds=1.0, gap=0.0):
    """Vowels that change, with a silence at both ends."""
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(hertz + 20 * np.sin(2 * np.pi * time / seconds)) / RATE
    tilt = 1.5 + np.sin(4 * np.pi * time / seconds)
    sound = sum(np.sin(k * phase) / k**tilt for k in range(1, 20)) * 0.1
    return np.pad(sound, round(gap * RATE)).astype(np.float32)


def test_a_recording_is_not_apart_from_itself_whatever_silence_surrounds_it():
    found = compare_sounds(speak(120, gap=0.3), speak(120, gap=0.5), RATE)
    assert found.mcd < 0.3 and found.f0_rmse < 0.01 and found.f0_correlation > 0.99 and found.voicing_error < 0.02
    assert found.seconds == pytest.approx(found.real_seconds, abs=0.03)


def test_pitch_and_tempo_that_were_changed_are_measured():
    found = compare_sounds(speak(120, gap=0.3), speak(120 * 2 ** (2 / 12), 1.5, gap=0.3), RATE)
    assert found.f0_rmse == pytest.approx(2 * np.log(2) / 12, abs=0.03) and found.f0_correlation > 0.9
    assert found.seconds - found.real_seconds == pytest.approx(0.5, abs=0.03)
    assert found.pitch / found.real_pitch == pytest.approx(2 ** (2 / 12), rel=0.03)


def test_what_has_no_voice_has_no_pitch_to_compare():
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    found = compare_sounds(speak(120), noise, RATE)
    assert np.isnan([found.f0_rmse, found.f0_correlation, found.pitch]).all()
    assert found.voicing_error > 0.9 and found.mcd > compare_sounds(speak(120), speak(120), RATE).mcd + 3


def test_a_spectrogram_shows_high_bands_above_and_time_to_the_right():
    time = np.arange(RATE) / RATE
    sound = np.where(time < 0.5, np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 5000 * time))
    brightness = draw_spectrogram(sound, RATE).sum(-1).astype(int)
    assert brightness.shape == (80, 101)
    assert brightness[:, 25].argmax() > 60 and brightness[:, 75].argmax() < 20
