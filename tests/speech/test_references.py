"""Who speaks by recordings: which of them conditions an utterance, and a voice that begins to listen unchanged."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.functional import normalize

from speech.dataset import Utterance
from speech.references import encode_references, encoder_of, plan_references, with_encoder
from speech.synthesis import Speaking, speak
from speech.voices import Voice, load_voice, save_voice
from tests.tiny_voices import RATE, hum, tiny_voice
from utils.cli import UserError


def utterances(*speakers: str) -> list[Utterance]:
    return [Utterance(str(i), Path(f"{i}.flac"), "a", name, 1.0, RATE) for i, name in enumerate(speakers)]


def vectors(count: int) -> torch.Tensor:
    return normalize(torch.randn(count, 64, generator=torch.Generator().manual_seed(0)), dim=1)


def listening(voice: Voice, *speakers: str) -> Voice:
    return with_encoder(voice, "demo", utterances(*speakers), vectors(len(speakers)))


def test_an_utterance_is_spoken_by_any_other_one_of_its_speaker_and_by_its_own_only_where_it_is_alone() -> None:
    rows = vectors(7)
    train, held_out = plan_references(utterances("a", "b", "a", "a"), utterances("a", "c", "c"), rows)
    generator = torch.Generator().manual_seed(0)

    def drawn(references, index: int) -> set[int]:
        found = {references.draw(index, generator) for _ in range(60)}
        return {int((rows == one).all(1).nonzero()) for one in found}

    assert [drawn(train, i) for i in range(4)] == [{2, 3}, {1}, {0, 3}, {0, 2}]
    assert [drawn(held_out, i) for i in range(3)] == [{0, 2, 3}, {6}, {5}]


@pytest.mark.parametrize("speakers", [0, 2])
def test_a_voice_that_begins_to_listen_sounds_as_before_whoever_is_heard(speakers: int, tmp_path: Path) -> None:
    voice = tiny_voice(speakers=speakers, stochastic=True)
    before = speak(voice, "a casa", 0)
    save_voice(tmp_path / "voice", listening(voice, "eva", "leo", "eva"))
    grown = load_voice(str(tmp_path / "voice"))
    assert grown.speakers == ["eva", "leo"] and encoder_of(grown.model.config) == "demo"
    for how in Speaking(speaker="leo"), Speaking(vector=tuple(vectors(1)[0].tolist())):
        assert np.array_equal(speak(grown, "a casa", 0, how), before)


def test_a_voice_that_listens_keeps_whom_it_knows_and_speaks_otherwise_for_others() -> None:
    voice = listening(tiny_voice(speakers=2), "eva", "leo")
    torch.nn.init.normal_(voice.model.read_speaker.weight)
    torch.nn.init.normal_(voice.model.decoder.cond.weight)
    more = listening(voice, "rui", "rui")
    assert more.speakers == ["eva", "leo", "rui"]
    sounds = [speak(more, "a casa", 0, Speaking(speaker=name)) for name in ("eva", "leo", "rui")]
    assert np.array_equal(sounds[0], speak(voice, "a casa", 0)) and np.array_equal(
        sounds[1], speak(voice, "a casa", 0, Speaking(speaker="leo"))
    )
    assert not np.array_equal(sounds[2][:1000], sounds[0][:1000])


def test_references_of_any_rate_are_one_unit_vector_and_bad_ones_are_one_line(tmp_path: Path) -> None:
    voice, paths = listening(tiny_voice(), "eva"), [tmp_path / name for name in ("a.wav", "b.wav", "c.wav", "d.wav")]
    sound = hum("a casa do rio azul")
    silent = np.zeros(RATE, np.float32)
    soundfile.write(paths[0], sound, RATE)
    soundfile.write(paths[1], np.concatenate([silent, np.repeat(sound, 2), np.repeat(silent, 2)]), 2 * RATE)
    soundfile.write(paths[2], sound[: RATE // 2], RATE)
    soundfile.write(paths[3], silent, RATE)
    one, other = (np.array(encode_references([path], voice)) for path in paths[:2])
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5) and one @ other > 0.9
    with pytest.raises(UserError, match=r"c.wav: 0.5\d? s of speech in all; expected at least 1 s"):
        encode_references([paths[2]], voice)
    with pytest.raises(UserError, match="d.wav: is silent"):
        encode_references(paths, voice)
    with pytest.raises(UserError, match="this voice does not listen to recordings"):
        encode_references(paths, tiny_voice())
