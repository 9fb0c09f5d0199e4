"""speech/synthesis.py: the sound is transformers' own, and depends on nothing but voice, text, seed and settings."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import pipeline

from speech.synthesis import Speaking, fold_weight_norm, most_frames, speak, speak_tokens
from speech.voices import Voice, load_voice, save_voice, tokenize
from tests.tiny_voices import tiny_voice
from utils.cli import UserError

TEXT = "a casa azul do rio"
VOICES = [(speakers, stochastic) for speakers in (0, 2) for stochastic in (False, True)]


def loud_voice(speakers: int = 0, stochastic: bool = False) -> Voice:
    """A tiny voice whose random weights are heard: those of a new decoder and of new flows are near zero."""
    voice = tiny_voice(speakers=speakers, stochastic=stochastic)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in voice.model.named_parameters():
            if "decoder" in name or "conv_post" in name or "conv_proj" in name:
                parameter.normal_(std=0.1)
    return voice


@pytest.mark.parametrize("speakers, stochastic", VOICES)
def test_a_plain_pipeline_gives_the_same_sound_for_the_same_seed(tmp_path, speakers, stochastic):
    save_voice(tmp_path, loud_voice(speakers, stochastic))
    voice = load_voice(str(tmp_path))
    plain = pipeline("text-to-speech", model=str(tmp_path))
    for number in range(max(1, speakers)):
        how = Speaking(speaker=voice.speakers[number] if speakers else "")
        forward = {"speaker_id": number} if speakers else {}
        torch.manual_seed(7)
        made = plain(TEXT, forward_params=forward)
        assert made["sampling_rate"] == voice.model.config.sampling_rate
        assert np.abs(made["audio"]).max() > 0.01
        mine = speak(voice, TEXT, 7, how)
        assert mine.shape == made["audio"].shape
        assert np.abs(mine - made["audio"]).max() < 1e-5  # its weights lie elsewhere: the last bits differ
        torch.manual_seed(7)
        ids = torch.tensor([tokenize(voice, TEXT)])
        with torch.no_grad():
            own = voice.model(ids, **forward).waveform[0]
        assert np.array_equal(mine, own.numpy())


def test_speaking_rate_and_noise_scales_are_those_of_the_model():
    voice = loud_voice(stochastic=True)
    how = Speaking(rate=0.5, noise_scale=0.2, noise_scale_duration=0.1)
    made = speak(voice, TEXT, 3, how)
    voice.model.noise_scale, voice.model.noise_scale_duration = 0.2, 0.1
    torch.manual_seed(3)
    with torch.no_grad():
        expected = voice.model(torch.tensor([tokenize(voice, TEXT)]), speaking_rate=0.5).waveform[0].numpy()
    assert np.array_equal(made, expected)
    voice.model.speaking_rate = 0.5
    assert np.array_equal(made, speak(voice, TEXT, 3))


def test_speaking_disturbs_no_global_generator_and_no_other_thread():
    voice = loud_voice(stochastic=True)
    torch.manual_seed(0), np.random.seed(0)
    alone = [speak(voice, TEXT, seed) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(0).get_state())
    assert np.random.get_state()[2] == np.random.RandomState(0).get_state()[2]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: speak(voice, TEXT, seed), range(8)))
    assert all(map(np.array_equal, alone, together))
    assert not np.array_equal(alone[0], alone[1])


def test_folded_weights_give_the_same_sound():
    voice = loud_voice(2, stochastic=True)
    before = speak(voice, TEXT, 5)
    fold_weight_norm(voice.model)
    assert not [name for name, _ in voice.model.named_parameters() if "original" in name]
    assert np.array_equal(before, speak(voice, TEXT, 5))


def test_exploding_durations_do_not_fill_the_memory():
    voice = tiny_voice()
    with torch.no_grad():
        voice.model.duration_predictor.proj.bias.fill_(50)
    voice.model.config.sampling_rate = 256  # so that the limit is small
    assert len(speak(voice, TEXT, 0)) == most_frames(voice.model) * 256


def test_a_voice_of_nan_gives_nan_and_no_error():
    voice = tiny_voice()
    with torch.no_grad():
        voice.model.duration_predictor.proj.bias.fill_(torch.nan)
    assert len(speak_tokens(voice, torch.tensor([[0, 2, 0]]), 0)) == 3 * 256


def test_an_unknown_speaker_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="--speaker anna: the voice has no such speaker; it has ana, rui; did .*`ana`"):
        speak(tiny_voice(speakers=2), TEXT, 0, Speaking(speaker="anna"))
    with pytest.raises(UserError, match="--speaker ana: this voice has one speaker"):
        speak(tiny_voice(), TEXT, 0, Speaking(speaker="ana"))
