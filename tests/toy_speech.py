"""Sounds that a detector of speech takes for speech: a buzzing glottis through vowels that change, and consonants."""

import numpy as np
from scipy.signal import lfilter

VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))  # formants, Hz


def resonate(samples: np.ndarray, formants: tuple[int, ...], rate: int) -> np.ndarray:
    for formant, width in zip(formants, (80, 100, 140)):
        radius = np.exp(-np.pi * width / rate)
        samples = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant / rate), radius**2], samples)
    return samples


def toy_speech(seconds: float, seed: int = 0, rate: int = 16_000, pitch: float = 120) -> np.ndarray:
    """Syllables of a consonant and a vowel, four a second, and a tenth of a second of faint noise at both ends."""
    generator = np.random.default_rng(seed)
    pieces = []
    for _ in range(max(1, round((seconds - 0.2) * 4))):
        hiss, voiced = generator.normal(0, 0.02, int(0.06 * rate)), int(0.19 * rate)
        glide = pitch * (1 + 0.15 * generator.normal()) * np.linspace(1.1, 0.9, voiced)
        pulses = np.diff(np.floor(np.cumsum(glide) / rate), prepend=0.0)
        vowel = resonate(pulses, VOWELS[generator.integers(len(VOWELS))], rate)
        vowel *= np.hanning(voiced) ** 0.5 / np.abs(vowel).max()
        pieces += [hiss, 0.4 * vowel]
    noise = generator.normal(0, 3e-4, round(seconds * rate))
    speech = np.concatenate(pieces)[: max(0, len(noise) - int(0.2 * rate))]
    noise[int(0.1 * rate) : int(0.1 * rate) + len(speech)] += speech
    return noise.astype(np.float32)
