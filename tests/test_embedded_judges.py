"""The embedded recogniser and speaker encoder on recordings of a voice that neither has heard, with unknown words."""

import difflib
import json

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from demo.voice_corpus import HELD_BACK
from speech.ctc import load_ctc
from speech.recogniser import load_recogniser
from speech.speaker import load_speaker_encoder
from utils.hub import DEMO


@pytest.fixture(scope="module")
def recordings() -> list[tuple[str, np.ndarray]]:
    folder = HELD_BACK / "test"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()][:12]
    return [(row["text"], soundfile.read(folder / row["file_name"], dtype="float32")[0]) for row in rows]


def test_the_recogniser_writes_what_is_said(recordings) -> None:
    heard = load_ctc(DEMO / "voice" / "recogniser")([sound for _, sound in recordings])
    for (text, _), (found, sure) in zip(recordings, heard, strict=True):
        meant = "".join(one for one in text if one not in ",.?!")
        assert difflib.SequenceMatcher(None, meant, found, autojunk=False).ratio() > 0.85
        assert sure > 0.8


def test_the_recogniser_is_surer_of_any_sentence_than_of_noise(recordings) -> None:
    recognise = load_ctc(DEMO / "voice" / "recogniser")
    noises = [np.random.default_rng(seed).normal(0, 0.1, 16_000).astype(np.float32) for seed in range(6)]
    of_speech, of_noise = (
        [sure for _, sure in recognise(sounds)] for sounds in ([sound for _, sound in recordings], noises)
    )
    assert min(of_speech) > max(of_noise) + 0.05


def test_demo_is_the_name_of_the_embedded_recogniser(recordings) -> None:
    sound = recordings[0][1]
    (expected,) = load_ctc(DEMO / "voice" / "recogniser")([sound])
    assert load_recogniser("demo", "cpu", "pt")([sound]) == [expected]


def test_a_speaker_is_nearer_to_itself_than_to_another(recordings) -> None:
    encode = load_speaker_encoder("demo", "cpu")
    same = encode([sound for _, sound in recordings])
    other = encode([resample_poly(sound, 4, 3) for _, sound in recordings])  # a deeper voice
    within = (same @ same.T)[np.triu_indices(len(same), 1)]
    assert within.mean() > 0.75
    assert within.mean() - (same @ other.T).mean() > 0.3
