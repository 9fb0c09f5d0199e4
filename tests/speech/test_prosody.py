"""Pitch, energy and styles: what a voice hears of them, and that it begins with its own sound and learns them."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import soundfile
import torch
from transformers import VitsConfig

from speech.audio import trim_silence
from speech.copy_synthesis import copy_sound
from speech.dataset import Utterance
from speech.features import settings_of, spectrogram
from speech.parts import Cues, make_condition
from speech.prosody import SEMITONE, SMALLEST, measure_prosody, measure_utterances, plan_prosody, standardise
from speech.references import with_encoder
from speech.styles import HEADS, choose_style, weigh_tokens
from speech.synthesis import Speaking, speak
from speech.vits import Utterances, forward_train
from speech.voices import Voice, load_voice, new_voice, save_voice, with_parts, with_speakers
from tests.speech.test_synthesis import TEXT, loud_voice
from tests.tiny_voices import CHARACTERS, RATE, SIZES, SPEAKERS, hum, utterances
from tests.toy_speech import toy_speech
from utils.cli import UserError, mask_text

SETTINGS = {"means": {name: [5.0, -20.0] for name in ("", *SPEAKERS)}, "deviations": [SEMITONE, 3.0]}
PARTS = {"prosody": SETTINGS, "style_tokens": {"tokens": 3}, "style_adaptive_norm": {}}
STYLE = ((0.0, 1.0, 0.0),) * HEADS


def rich_voice(speakers: int) -> Voice:
    return with_parts(loud_voice(speakers), PARTS, 0)


def heard(voice: Voice, seeds: list[int]) -> Utterances:
    """A batch whose pitch, energy and styles the voice hears; the last utterance has no style."""
    batch = utterances(voice, seeds)
    styled = torch.ones(len(seeds)).index_fill(0, torch.tensor([len(seeds) - 1]), 0)
    return dataclasses.replace(batch, prosody=torch.tensor([[seed - 2.0, 1.0] for seed in seeds]), styled=styled)


def measured(speaker: str, pitch: float, energy: float) -> Utterance:
    return Utterance("a", None, "a", speaker, 1.0, RATE, prosody=(pitch, energy))  # type: ignore[arg-type]


@pytest.mark.parametrize("speakers", [0, 2])
def test_a_voice_begins_with_its_own_sound_and_is_loaded_with_its_parts(tmp_path, speakers):
    plain, rich = loud_voice(speakers), rich_voice(speakers)
    for how in (Speaking(), Speaking(pitch=3, energy=-6, style=STYLE)):
        assert np.array_equal(speak(plain, TEXT, 1), speak(rich, TEXT, 1, how))
    learn(rich)
    save_voice(tmp_path, rich)
    found = load_voice(str(tmp_path))
    for how in (Speaking(), Speaking(pitch=3), Speaking(style=STYLE)):
        assert np.array_equal(speak(rich, TEXT, 1, how), speak(found, TEXT, 1, how))


def test_a_voice_of_one_that_has_learnt_how_to_speak_keeps_its_sound_with_more_speakers_or_an_encoder():
    rich = rich_voice(0)
    learn(rich)
    before = speak(rich, TEXT, 1)
    some = [dataclasses.replace(measured(name, 5.0, -20.0), id=name) for name in SPEAKERS]
    for voice in (with_speakers(rich, SPEAKERS), with_encoder(rich, "demo", some, torch.eye(64)[:2])):
        assert voice.speakers == list(SPEAKERS)
        assert all(np.array_equal(speak(voice, TEXT, 1, Speaking(speaker=name)), before) for name in SPEAKERS)


def test_layers_that_never_heard_anything_are_silent_when_a_part_comes():
    config = VitsConfig(**SIZES | {"speaker_embedding_size": 8}, use_stochastic_duration_prediction=False)
    plain = new_voice(config, CHARACTERS, 0)
    assert plain.model.decoder.cond.bias.abs().max() > 0
    assert np.array_equal(speak(plain, TEXT, 1), speak(with_parts(plain, PARTS, 0), TEXT, 1, Speaking(pitch=3)))


def learn(voice: Voice, rate: float = 0.02) -> None:
    """Three steps; the first layers of a chain that begins with zeros get no gradient at the first."""
    optimizer = torch.optim.Adam(voice.model.parameters(), rate)
    for _ in range(3):
        found = forward_train(voice.model, heard(voice, [1, 2, 4]), 8)
        (found.segment.square().sum() + found.kl.sum() + found.duration.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    voice.model.eval()


@pytest.mark.parametrize("speakers", [0, 2])
def test_every_part_learns_and_is_heard(speakers):
    voice, before = rich_voice(speakers), rich_voice(speakers).model.state_dict()
    learn(voice)
    same = [name for name, one in voice.model.state_dict().items() if torch.equal(one, before[name])]
    assert not [name for name in same if "embed_speaker" not in name and "flows" not in name]
    own = speak(voice, TEXT, 1)
    for how in (Speaking(pitch=4), Speaking(energy=4), Speaking(style=STYLE)):
        made = speak(voice, TEXT, 1, how)
        assert made.shape != own.shape or np.abs(made - own).max() > 1e-4, how
    copies = [copy_sound(voice, hum("casa"), how) for how in (Speaking(), Speaking(pitch=4, style=STYLE))]
    assert np.array_equal(*copies)  # of a recording, which has its own


def test_what_is_computed_of_an_utterance_depends_neither_on_others_nor_on_padding():
    voice = rich_voice(2)
    learn(voice)
    together, alone = heard(voice, [1, 2, 4, 5]), heard(voice, [1, 2, 4, 5]).split(1)
    conditions = make_condition(voice.model, together.cues)
    found = forward_train(voice.model, together, 8)
    for i, one in enumerate(alone):
        assert torch.allclose(make_condition(voice.model, one.cues)[0], conditions[i], atol=1e-5)
        assert torch.allclose(forward_train(voice.model, one, 8).kl[0], found.kl[i], rtol=1e-5)
    assert not torch.allclose(conditions[0], conditions[2])  # of one speaker, in two manners


def test_styles_tell_loud_recordings_from_quiet_ones_after_ten_steps():
    voice = rich_voice(2)
    optimizer = torch.optim.Adam(voice.model.parameters(), 1e-3)
    for step in range(10):
        batch = half_quiet(heard(voice, list(range(4 * step, 4 * step + 4))))
        found = forward_train(voice.model, batch, 8)
        ((found.segment - found.real).square().mean() + (found.kl / batch.frame_lengths).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        styles = make_condition(voice.model, Cues(styles=half_quiet(heard(voice, list(range(100, 112)))).cues.styles))
    loud, quiet = styles[:-1:2, :, 0], styles[1:-1:2, :, 0]  # the last has none
    apart = (loud.mean(0) - quiet.mean(0)).norm()
    assert apart > 2 * max(loud.std(0).norm(), quiet.std(0).norm())
    assert apart > 0.03 * loud.norm(dim=1).mean()  # not all but the same


def half_quiet(batch: Utterances) -> Utterances:
    """Every other utterance 12 dB quieter."""
    factors = torch.tensor([1.0, 0.25] * len(batch))[: len(batch)]
    spectrograms, waveforms = batch.spectrograms * factors[:, None, None], batch.waveforms * factors[:, None]
    return dataclasses.replace(batch, spectrograms=spectrograms, waveforms=waveforms)


def test_pitch_and_energy_are_those_of_the_sound():
    low, high = (measure_prosody(toy_speech(2, pitch=pitch), RATE) for pitch in (120, 180))
    assert high.pitch - low.pitch == pytest.approx(math.log(1.5), abs=0.01)
    quiet = measure_prosody(toy_speech(2, pitch=120) / 2, RATE)
    assert quiet.energy - low.energy == pytest.approx(20 * math.log10(0.5), abs=0.01)
    assert math.isnan(measure_prosody(np.random.default_rng(0).normal(0, 0.1, RATE), RATE).pitch)


def test_a_sound_is_measured_once_and_a_torn_line_again(tmp_path, monkeypatch):
    some = []
    for number, text in enumerate(("casa", "rio azul")):
        soundfile.write(tmp_path / f"{number}.wav", hum(text), RATE)
        some.append(Utterance(str(number), tmp_path / f"{number}.wav", text, "", 1.0, RATE))
    cache = tmp_path / "cache/prosody.jsonl"
    first = measure_utterances(some, cache, 1)
    cache.write_bytes(cache.read_bytes()[:-9])  # as a kill leaves it
    seen = []
    real = measure_prosody
    monkeypatch.setattr("speech.prosody.measure_prosody", lambda *sound: seen.append(1) or real(*sound))
    for _ in range(2):
        assert [one.prosody for one in measure_utterances(some, cache, 1)] == [one.prosody for one in first]
    assert len(seen) == 1


def test_numbers_are_of_the_speaker_and_what_a_voice_has_learnt_stays(caplog):
    some = [measured("ana", 5.0, -20), measured("ana", 5.2, -26), measured("rui", 4.5, -20), measured("rui", 4.7, -26)]
    settings = plan_prosody(some, SPEAKERS, {"means": {}, "deviations": []})
    assert settings["means"] == {"ana": pytest.approx([5.1, -23]), "rui": pytest.approx([4.6, -23])}
    assert settings["deviations"] == pytest.approx([0.1, 3]) and not caplog.records
    assert standardise(settings, some[2], SPEAKERS) == pytest.approx([-1, 1])
    assert standardise(settings, measured("rui", math.nan, -23), SPEAKERS) == [0, 0]
    more = plan_prosody([measured("ana", 9.0, 0), measured("bia", 6.0, -9)], ["ana", "rui", "bia"], settings)
    assert more == settings | {"means": settings["means"] | {"bia": [6.0, -9.0]}}
    alone = plan_prosody([measured("", 4.0, -20), measured("", 4.4, -20)], [], SETTINGS)  # maybe of somebody else
    assert alone == {"means": {"": pytest.approx([4.2, -20])}, "deviations": SETTINGS["deviations"]}
    with caplog.at_level(logging.WARNING):
        levelled = plan_prosody([measured("", 5.0, -23), measured("", 5.2, -23.1)], [], {"means": {}, "deviations": []})
    assert "--no-level_loudness" in caplog.text and levelled["deviations"][1] == SMALLEST[1]


def test_a_recording_is_as_heard_in_training_and_a_token_is_its_own_weights(tmp_path):
    voice = rich_voice(0)
    sound = trim_silence(np.pad(utterances(voice, [1]).waveforms[0].numpy(), RATE), RATE)
    soundfile.write(tmp_path / "a.wav", np.pad(sound, RATE), RATE, "FLOAT")
    found = torch.tensor(choose_style(voice.model, tmp_path / "a.wav", None))
    spectra = spectrogram(torch.from_numpy(sound)[None], settings_of(voice.model.config))
    expected = weigh_tokens(voice.model, spectra, torch.tensor([spectra.shape[2]]))[0]
    assert found.shape == (HEADS, 3) and torch.allclose(found, expected, atol=0.02)
    assert choose_style(voice.model, None, ["1:0.5", "0:-1"]) == ((-1.0, 0.5, 0.0),) * HEADS
    assert choose_style(voice.model, None, None) == ()


def test_what_a_voice_has_not_learnt_is_refused(tmp_path):
    plain, rich = loud_voice(), rich_voice(0)
    with pytest.raises(UserError, match="--energy -2: the voice has not learnt it; train it with .*--prosody"):
        speak(plain, TEXT, 0, Speaking(energy=-2))
    with pytest.raises(UserError, match="--style_token 0:1: the voice knows no styles; .*--style_tokens") as error:
        choose_style(plain.model, None, ["0:1"])
    assert mask_text(str(error.value)) == str(error.value)  # it is no secret
    with pytest.raises(UserError, match="--style_token 3:1: the voice has tokens 0 to 2"):
        choose_style(rich.model, None, ["3:1"])
    soundfile.write(tmp_path / "a.wav", np.ones(100) / 2, RATE)
    with pytest.raises(UserError, match="--style_reference .*a.wav: 100 samples are too short"):
        choose_style(rich.model, tmp_path / "a.wav", None)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    with pytest.raises(UserError, match="--style_reference .*silent.wav: is silent; give a recording of speech"):
        choose_style(rich.model, tmp_path / "silent.wav", None)
    with pytest.raises(UserError, match="--style_token 1:1 01:2: gives a token two weights; give it one"):
        choose_style(rich.model, None, ["1:1", "01:2"])
    with pytest.raises(UserError, match="--style_reference .*a.wav: gives the weights .*; leave --style_token out"):
        choose_style(rich.model, tmp_path / "a.wav", ["0:1"])
