from dataclasses import replace

import numpy as np
import pytest

from speech.audio import Sound, frame_levels, speech_level, trim_silence
from speech.sound_measures import (
    Limits,
    Take,
    clipped_share,
    find_contradictions,
    find_duplicates,
    find_fault,
    find_outliers,
    measure_sound,
    signal_to_noise,
)
from tests.toy_speech import toy_speech

RATE = 16_000
LIMITS = Limits((0.5, 20), (4, 30), 6, 0.005, 15, 0.6, 0.3, RATE)
TEXT = "vinte e duas letras aqui"


def measured(samples, rate=RATE):
    return measure_sound(Sound(samples, rate), trim_silence(samples, rate), rate)


@pytest.mark.parametrize("truth", [5, 10, 20, 30])
def test_signal_to_noise_is_what_was_mixed(truth):
    speech = toy_speech(3)
    power = 10 ** ((speech_level(speech, RATE) - truth) / 10)
    noise = np.random.default_rng(1).normal(0, np.sqrt(power), len(speech)).astype(np.float32)
    assert signal_to_noise(frame_levels(speech + noise, RATE)) == pytest.approx(truth, abs=1.5)


def test_clipping_is_found_also_where_it_was_made_quieter_and_not_in_a_loud_clean_sound():
    time = np.arange(RATE) / RATE
    clean = (0.97 * np.sin(2 * np.pi * 97 * time)).astype(np.float32)
    assert clipped_share(clean) < 0.001 and clipped_share(np.zeros(100, np.float32)) == 0
    for loud in (1.0, 0.5):
        assert clipped_share(np.clip(3 * clean, -1, 1) * loud) > 0.5


def test_each_fault_is_found_by_its_measure():
    rng = np.random.default_rng(0)
    good = toy_speech(2)
    assert find_fault(measured(good), TEXT, LIMITS) is None
    gap = np.concatenate([good, rng.normal(0, 1e-4, 5 * RATE), good]).astype(np.float32)
    sounds = {
        "silent": np.zeros(RATE, np.float32),
        "too short": toy_speech(0.45),
        "no speech": rng.normal(0, 0.1, 2 * RATE).astype(np.float32),
        "clipped": np.clip(9 * good, -1, 1),
        "noisy": good + rng.normal(0, 0.03, len(good)).astype(np.float32),
        "mostly silent": gap,
    }
    assert {kind: find_fault(measured(sound), TEXT, LIMITS)[0] for kind, sound in sounds.items()} == {
        kind: kind for kind in sounds
    }
    facts = measured(good)
    assert find_fault(replace(facts, rate=8000), TEXT, LIMITS)[1] == "8,000 Hz, less than 16,000; --upsample keeps it"
    assert find_fault(replace(facts, seconds=21), TEXT * 9, LIMITS)[0] == "too long"
    assert find_fault(facts, "oi", LIMITS)[0] == "text too short for the sound"
    assert find_fault(facts, TEXT * 4, LIMITS)[0] == "text too long for the sound"


def test_a_pace_is_judged_among_its_speakers_own():
    rng = np.random.default_rng(0)
    paces = {f"{who}{i}": pace * rng.lognormal(0, 0.08) for who, pace in (("s", 10), ("f", 20)) for i in range(40)}
    speakers = {one: one[0] for one in paces}
    assert find_outliers(paces, speakers, 6) == {}
    found = find_outliers(paces | {"s40": 20.0, "f40": 20.0}, speakers | {"s40": "s", "f40": "f"}, 6)
    assert list(found) == ["s40"] and "20.0 characters/s, median 9.9: " in found["s40"][1]
    few = {f"x{i}": 10.0 for i in range(10)} | {"x10": 25.0}
    assert find_outliers(few, dict.fromkeys(few, "x"), 6) == {}  # too few to know


def test_the_same_take_is_found_also_if_it_is_louder_and_another_take_is_not():
    first, other = toy_speech(2, 1), toy_speech(2, 2)
    noise = np.random.default_rng(0).normal(0, 1e-4, len(first)).astype(np.float32)

    def take(name, samples, text="oi", speaker="eva", digest=""):
        return Take(name, text, speaker, digest or name, measured(samples))

    takes = [take("a", first), take("b", 0.5 * first + noise), take("c", other), take("d", first, "tchau")]
    takes += [take("e", first, speaker="ana"), take("f", other, digest="c")]
    assert find_duplicates(takes) == {"b": "a", "f": "c"}


def test_one_sound_with_two_texts_is_left_out_with_both():
    facts = measured(toy_speech(1))
    takes = [
        Take(one, text, "", digest, facts)
        for one, text, digest in (("a", "oi", "x"), ("b", "ai", "x"), ("c", "oi", "y"))
    ]
    assert find_contradictions(takes) == {
        "a": ("one sound with several texts", "also b"),
        "b": ("one sound with several texts", "also a"),
    }
