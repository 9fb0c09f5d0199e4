import numpy as np
import pytest
import torch

from speech.features import FeatureSettings, log_mel, mel_filters, settings_of, spectrogram
from tests.tiny_voices import hum, tiny_voice

SETTINGS = FeatureSettings(16_000, 1024, 256, 1024)


def test_a_frame_is_the_spectrum_of_the_samples_around_it():
    wave = torch.from_numpy(hum("abc"))
    found = spectrogram(wave[None], SETTINGS)
    assert found.shape == (1, 513, len(wave) // 256)
    start = 5 * 256 - (1024 - 256) // 2  # of the fifth frame
    spectrum = np.fft.rfft(wave[start : start + 1024].numpy() * torch.hann_window(1024).numpy())
    assert np.allclose(found[0, :, 5], np.sqrt(np.abs(spectrum) ** 2 + 1e-6), atol=1e-4)


@pytest.mark.parametrize("samples", [512, 767, 768, 5000])
def test_there_is_one_frame_for_each_whole_hop(samples):
    assert spectrogram(torch.zeros(2, samples), SETTINGS).shape[2] == samples // 256


def test_the_shortest_waveform_has_a_spectrogram_and_a_shorter_one_has_none():
    assert spectrogram(torch.zeros(1, SETTINGS.shortest), SETTINGS).shape[2] == 1
    with pytest.raises(RuntimeError, match="Padding size"):
        spectrogram(torch.zeros(1, SETTINGS.shortest - 1), SETTINGS)


def test_a_tone_is_loudest_in_the_mel_band_of_its_pitch():
    """By Slaney's scale: linear up to 1000 Hz (15 mels), then 27 mels for each factor of 6.4."""

    def mels(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)

    for pitch in (440.0, 3000.0):
        tone = 0.5 * torch.sin(2 * torch.pi * pitch * torch.arange(8000) / 16_000)
        loudest = int(log_mel(spectrogram(tone[None], SETTINGS), SETTINGS)[0, :, 15].argmax())
        assert loudest == round(mels(pitch) / mels(8000) * 81 - 1)


def test_silence_is_the_logarithm_of_the_smallest_energy():
    found = log_mel(torch.zeros(1, 513, 2), SETTINGS)
    assert torch.allclose(found, torch.tensor(1e-5).log())


def test_features_are_float32_under_autocast():
    wave = torch.from_numpy(hum("abcabc"))[None]
    expected = log_mel(spectrogram(wave, SETTINGS), SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        found = log_mel(spectrogram(wave, SETTINGS), SETTINGS)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_filters_made_in_inference_mode_serve_a_training():
    mel_filters.cache_clear()
    with torch.inference_mode():
        log_mel(torch.ones(1, 513, 2), SETTINGS)
    magnitudes = torch.ones(1, 513, 2, requires_grad=True)
    log_mel(magnitudes, SETTINGS).sum().backward()
    assert magnitudes.grad.sum() > 0


def test_settings_follow_a_voice():
    assert settings_of(tiny_voice().model.config) == SETTINGS
