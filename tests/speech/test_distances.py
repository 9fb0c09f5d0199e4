"""Distances of sounds and of texts against values known by hand and slow references."""

import numpy as np
import pytest

from speech.distances import MELS, align, cepstral_distances, count_edits, log_bands, mel_cepstrum

RATE = 16000


def slow_cost(distances):
    """The least sum over all paths from corner to corner, cell by cell."""
    sums = np.full(distances.shape, np.inf)
    for i, j in np.ndindex(*distances.shape):
        before = [sums[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
        sums[i, j] = distances[i, j] + (min(before) if before else 0)
    return sums[-1, -1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (9, 9), (7, 13), (20, 4)])
def test_the_alignment_is_the_cheapest_one(shape):
    distances = np.random.default_rng(sum(shape)).random(shape)
    pairs = align(distances)
    assert pairs[0].tolist() == [0, 0] and pairs[-1].tolist() == [shape[0] - 1, shape[1] - 1]
    steps = np.diff(pairs, axis=0)
    assert ((steps >= 0) & (steps <= 1)).all() and (steps.sum(1) > 0).all()
    assert distances[tuple(pairs.T)].sum() == pytest.approx(slow_cost(distances))


def test_a_sound_that_was_stretched_is_aligned_with_itself():
    frames = np.random.default_rng(0).normal(size=(30, 13))
    distances = cepstral_distances(frames, frames.repeat(2, axis=0))
    pairs = align(distances)
    assert distances[tuple(pairs.T)].max() < 1e-5 and (pairs[:, 0] == pairs[:, 1] // 2).all()


@pytest.mark.parametrize("coefficient", [1, 7, 13])
def test_a_known_change_of_the_spectrum_has_its_known_distortion(coefficient):
    """log |S| + a cos kω changes c_k by a, and so the distortion is (10 / ln 10) √2 a."""
    logs = np.random.default_rng(1).normal(size=(5, MELS))
    ripple = 0.5 * np.cos(np.pi * coefficient * (np.arange(MELS) + 0.5) / MELS)
    found = cepstral_distances(mel_cepstrum(logs), mel_cepstrum(logs + ripple)).diagonal()
    assert found == pytest.approx(10 / np.log(10) * np.sqrt(2) * 0.5)


def test_loudness_is_no_distortion_and_another_timbre_is():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.1, RATE // 2)
    low = np.convolve(noise, np.ones(8) / 8, "same")
    first, louder, other = (mel_cepstrum(log_bands(one, RATE)) for one in (noise, 3 * noise, low))
    assert cepstral_distances(first, louder).diagonal().max() < 1e-3
    assert cepstral_distances(first, other).diagonal().mean() > 5


def slow_edits(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, j in np.ndindex(len(a), len(b)):
        change = table[i, j] + (a[i] != b[j])
        table[i + 1, j + 1] = min(change, table[i, j + 1] + 1, table[i + 1, j] + 1)
    return table[-1, -1]


def test_edits_are_counted_as_in_the_textbook():
    assert count_edits("sitting", "kitten") == 3 and count_edits("abc", "abc") == 0
    assert count_edits("", "abc") == count_edits("abc", "") == 3 and count_edits("", "") == 0
    assert count_edits("o gato preto".split(), "o rato é preto".split()) == 2
    rng = np.random.default_rng(3)
    for _ in range(50):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 12))) for _ in range(2))
        assert count_edits(a, b) == slow_edits(a, b), (a, b)
