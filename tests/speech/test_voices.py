import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitsModel, pipeline

from speech.voices import (
    FILES,
    describe_unknown,
    load_voice,
    new_voice,
    note_reading,
    read_aloud,
    read_phonemes,
    save_voice,
    tokenize,
    unknown_characters,
    with_speakers,
)
from tests.tiny_voices import SPEAKERS, tiny_voice
from utils.cli import UserError


def weights(voice) -> dict[str, torch.Tensor]:
    return voice.model.state_dict()


def speak(voice, speaker: int | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return voice.model(torch.tensor([tokenize(voice, "uma casa")]), speaker_id=speaker).waveform


@pytest.mark.parametrize("speakers, stochastic", [(0, False), (2, True)])
def test_a_saved_voice_is_loaded_whole(tmp_path, speakers, stochastic):
    voice = tiny_voice(0, speakers, stochastic)
    save_voice(tmp_path, voice)
    found = load_voice(str(tmp_path))
    assert found.speakers == list(SPEAKERS[:speakers]) and not found.model.training
    assert all(torch.equal(one, weights(found)[name]) for name, one in weights(voice).items())
    assert tokenize(found, "uma casa") == tokenize(voice, "uma casa")


def test_transformers_pipeline_reads_a_voice(tmp_path):
    save_voice(tmp_path, tiny_voice())
    speaker = pipeline("text-to-speech", str(tmp_path))
    torch.manual_seed(0)
    found = speaker("Uma casa!")
    assert found["sampling_rate"] == 16_000
    assert torch.equal(torch.as_tensor(found["audio"]).flatten(), speak(load_voice(str(tmp_path)))[0])


def test_half_the_bytes_on_disk_are_float32_in_memory(tmp_path):
    voice = tiny_voice()
    save_voice(tmp_path, voice, torch.float16)
    assert {one.dtype for one in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert VitsModel.from_pretrained(tmp_path).dtype == torch.float32  # as the pipeline loads it
    for name, one in weights(load_voice(str(tmp_path))).items():
        assert torch.equal(one, weights(voice)[name].half().float())


def test_a_checkpoint_with_torchs_former_weight_norm_is_whole(tmp_path):
    """As the hub's MMS voices have it."""
    voice = tiny_voice()
    save_voice(tmp_path, voice)
    path = tmp_path / "model.safetensors"
    former = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = load_file(path)
    for now, then in former.items():
        state = {name.replace(now, then): tensor for name, tensor in state.items()}
    assert any(name.endswith("weight_g") for name in state)
    save_file(state, path, {"format": "pt"})
    found = load_voice(str(tmp_path))
    assert all(torch.equal(one, weights(found)[name]) for name, one in weights(voice).items())
    save_voice(tmp_path / "again", found)
    again = load_voice(str(tmp_path / "again"))
    assert all(torch.equal(one, weights(again)[name]) for name, one in weights(voice).items())


def test_a_checkpoint_for_training_is_a_voice_too(tmp_path):
    """Its discriminator is none of the voice's weights."""
    save_voice(tmp_path, tiny_voice())
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"discriminator.final_conv.weight": torch.zeros(1)}, path, {"format": "pt"})
    assert load_voice(str(tmp_path)).speakers == []


def test_a_voice_that_lacks_a_weight_is_refused_in_one_line(tmp_path):
    save_voice(tmp_path, tiny_voice())
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["posterior_encoder.conv_pre.weight"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(
        UserError, match="--voice .*lack 1 of the weights of a VitsModel.*; give the hub id or folder"
    ) as error:
        load_voice(str(tmp_path), "--voice")
    assert "\n" not in str(error.value)


def test_an_error_about_the_demos_voice_names_no_folder_of_this_program(tmp_path, monkeypatch):
    monkeypatch.setattr("speech.voices.DEMO_VOICE", tmp_path / "model")
    with pytest.raises(UserError, match="^--x demo-voice: is not in this copy of the repository; restore it with `git"):
        load_voice("demo-voice", "--x")
    save_voice(tmp_path / "model", tiny_voice())
    (tmp_path / "model/model.safetensors").unlink()
    with pytest.raises(UserError, match="^--x demo-voice: does not contain a complete VITS voice") as error:
        load_voice("demo-voice", "--x")
    assert str(tmp_path) not in str(error.value)
    assert str(error.value).endswith("; restore it with `git checkout demo/voice/model`")
    with pytest.raises(UserError, match="^--x demo_voice: no such folder; .*demo-voice"):
        load_voice("demo_voice", "--x")


@pytest.mark.parametrize("cut", [False, True], ids=["missing", "cut"])
@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_a_file_is_refused_by_the_name_of_the_file(tmp_path, name, cut):
    """Without tokenizer_config.json transformers would read a voice of letters as English phonemes."""
    save_voice(tmp_path, tiny_voice())
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-10]) if cut else path.unlink()
    reason = f"does not contain a complete VITS voice \\({name} is {'damaged' if cut else 'missing'}"
    with pytest.raises(UserError, match=f"^--x .*{reason}.*; give the hub id or folder"):
        load_voice(str(tmp_path), "--x")


def test_a_pickle_is_not_read(tmp_path):
    save_voice(tmp_path, tiny_voice())
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="does not contain a complete VITS voice"):
        load_voice(str(tmp_path))


@pytest.mark.parametrize("name, reason", [("no/such/folder", "no such folder"), ("voice", "not a hub id")])
def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_refused(name, reason):
    with pytest.raises(UserError, match=f"--pretrained_model_name_or_path {name}: .*{reason}"):
        load_voice(name)


def test_a_voice_of_phonemes_reads_those_it_is_given(tmp_path):
    """And does not look for a program that makes them, whose absence would be an error."""
    save_voice(tmp_path, tiny_voice())
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"phonemize": True}))
    voice = load_voice(str(tmp_path))
    assert len(tokenize(voice, "casa")) == 9
    save_voice(tmp_path / "again", voice)
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["phonemize"] is False


def test_a_new_voice_depends_on_its_seed_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second, other = (weights(tiny_voice(seed, 2, True)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, second[name]) for name, one in first.items())
    assert not all(torch.equal(one, other[name]) for name, one in first.items())


def test_a_new_voice_begins_near_silence_with_flows_that_change_nothing():
    voice = tiny_voice(stochastic=True)
    assert speak(voice).abs().max() < 0.2
    latents, mask = torch.randn(1, 16, 9), torch.ones(1, 1, 9)
    assert torch.equal(voice.model.flow(latents, mask), latents)  # two flows, each turned around
    assert abs(voice.model.decoder.resblocks[0].convs1[0].weight.std() - 0.01) < 0.003


def test_characters_get_tokens_with_blanks_between():
    voice = new_voice(tiny_voice().model.config, "abc ", 0)
    assert voice.model.config.vocab_size == 6
    assert tokenize(voice, "Ab c") == [0, 2, 0, 3, 0, 5, 0, 4, 0]


def test_unknown_characters_are_named_and_left_out():
    voice = tiny_voice()
    assert unknown_characters(voice, "Casa, 3 €\n") == [",", "3", "€"]
    assert tokenize(voice, "casa, 3 €") == tokenize(voice, "casa")


@pytest.mark.parametrize("text, found", [("123 €!", "unknown: ! 1 2 3 €"), (" \n", "it is empty"), ("", "it is empty")])
def test_a_text_without_a_known_character_is_refused(text, found):
    with pytest.raises(UserError, match=f"no character of it .*{found}"):
        tokenize(tiny_voice(), text)


def test_words_that_name_special_tokens_are_plain_text():
    voice = tiny_voice()
    assert max(tokenize(voice, "<unk> <pad> a")) < voice.model.config.vocab_size


def test_new_speakers_begin_as_the_mean_and_leave_the_others_as_they_were():
    voice = tiny_voice(0, 2)
    more = with_speakers(voice, ["rui", "eva", "eva"])
    assert more.speakers == ["ana", "rui", "eva"] and more.model.config.num_speakers == 3
    rows = more.model.embed_speaker.weight
    assert torch.allclose(rows[2], voice.model.embed_speaker.weight.mean(0))
    assert torch.equal(speak(more, 1), speak(voice, 1)) and not torch.equal(speak(more, 2), speak(more, 1))


def test_a_voice_of_one_becomes_several_with_the_same_sound(tmp_path):
    voice = tiny_voice(stochastic=True)
    several = with_speakers(voice, ["ana", "rui"])
    assert several.speakers == ["ana", "rui"]
    assert torch.equal(speak(several, 0), speak(voice)) and torch.equal(speak(several, 1), speak(voice))
    assert abs(several.model.embed_speaker.weight.std() - 1) < 0.1
    save_voice(tmp_path, several)
    assert load_voice(str(tmp_path)).speakers == ["ana", "rui"]


def test_a_voice_that_knows_its_speakers_stays_as_it_is():
    one, two = tiny_voice(), tiny_voice(0, 2)
    assert with_speakers(one, ["ana"]) is one and with_speakers(one, []) is one and with_speakers(two, ["rui"]) is two


def test_a_mark_or_an_accent_that_a_voice_lacks_is_read_as_one_that_it_has():
    voice = tiny_voice()
    assert tokenize(voice, "CAFÉ – ñ ’oi’") == tokenize(voice, "café - n 'oi'")
    assert unknown_characters(voice, "“ñ” ☃") == ["“", "”", "☃"]


def test_letters_that_a_voice_leaves_out_are_named_with_their_number_but_not_its_marks():
    assert describe_unknown(tiny_voice(), ["日 casa, ü 5", "日!"]).endswith("does not know: 日 (2) 5 (1)")
    assert describe_unknown(tiny_voice(), ["Uma casa!"]) == ""


def test_a_voice_keeps_what_its_texts_are(tmp_path):
    voice = new_voice(tiny_voice().model.config, "abdɲˈ ", 0)
    note_reading(voice, "pt-br", "espeak")
    save_voice(tmp_path, with_speakers(voice, ["ana", "rui"]))
    found = load_voice(str(tmp_path))
    assert (read_phonemes(found), found.tokenizer.language, found.model.config.language) == ("espeak", "pt-br", "pt-br")
    assert read_aloud(found, ["banho,"]) == ["bˈɐ̃ɲʊ,"]
    assert read_aloud(tiny_voice(), ["banho,"]) == ["banho,"]
    note_reading(found, "pt-br", "gruut")
    with pytest.raises(UserError, match="phonemes of gruut"):
        read_aloud(found, ["a"])


def test_all_who_may_read_a_voices_config_may_read_its_weights(tmp_path):
    save_voice(tmp_path, tiny_voice())
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
