"""Recognisers: what they write and how sure they are, by tiny models of transformers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from speech.recogniser import RATE, Transcript, in_parts, load_recogniser, split_long
from tests.tiny_recognisers import save_ctc, save_whisper
from utils.cli import UserError


def sounds() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(0, 0.1, size).astype(np.float32) for size in (RATE, RATE // 2, 40)]


@pytest.mark.parametrize("save", [save_whisper, save_ctc])
def test_a_sound_gets_the_same_transcript_alone_and_beside_others(tmp_path, save):
    recognise = load_recogniser(save(tmp_path / "model"), "cpu", "pt-br")
    together, alone = recognise(sounds()), [recognise([one])[0] for one in sounds()]
    assert [one.text for one in together] == [one.text for one in alone] and any(one.text for one in together)
    assert [one.confidence for one in together] == pytest.approx([one.confidence for one in alone], rel=1e-4)
    assert recognise([]) == []


def test_whispers_confidence_is_the_mean_probability_of_its_tokens(tmp_path):
    """Computed once more by a single pass over what was written."""
    place = save_whisper(tmp_path / "model")
    (found,) = load_recogniser(place, "cpu", "pt")(sounds()[:1])
    model = WhisperForConditionalGeneration.from_pretrained(place)
    tokenizer = WhisperTokenizer.from_pretrained(place)
    prefix = [f"<|{mark}|>" for mark in ("startoftranscript", "pt", "transcribe", "notimestamps")]
    tokens = tokenizer.convert_tokens_to_ids([*prefix, *found.text])
    mels = WhisperFeatureExtractor.from_pretrained(place)(sounds()[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        logits = model(mels.input_features, decoder_input_ids=torch.tensor([tokens])).logits[0]
    each = logits.log_softmax(-1)[range(3, len(tokens) - 1), tokens[4:]]
    assert len(found.text) > 4 and found.confidence == pytest.approx(float(each.mean().exp()), rel=1e-4)


def test_a_ctc_models_text_has_its_double_letters_and_the_probability_of_its_letters(tmp_path):
    """A head that names one letter whatever it hears: repeats are one letter, its probability is the head's."""
    place = tmp_path / "model"
    save_ctc(place)
    weights = load_file(place / "model.safetensors")
    weights["lm_head.weight"].zero_()
    weights["lm_head.bias"].zero_()[5] = 3
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    (found,) = load_recogniser(str(place), "cpu", "pt")(sounds()[:1])
    assert found.text == "a" and found.confidence == pytest.approx(np.exp(3) / (np.exp(3) + 30), rel=1e-4)
    weights["lm_head.bias"][0] = 5  # the blank
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    assert load_recogniser(str(place), "cpu", "pt")(sounds()[:1]) == [("", 0)]


def test_a_long_sound_is_cut_where_it_is_quiet_and_its_parts_are_joined():
    sound = np.random.default_rng(0).normal(0, 0.1, 70 * RATE).astype(np.float32)
    for second in (25, 50):
        sound[second * RATE : (second + 1) * RATE] = 0
    pieces = list(split_long(sound))
    assert np.array_equal(np.concatenate(pieces), sound)
    assert [round(len(piece) / RATE) for piece in pieces] == [25, 25, 20]
    confidences = iter([0.9, 0.6])

    def recognise(parts):
        return [Transcript("a" * (len(one) // RATE // 10), next(confidences)) for one in parts]

    (found,) = in_parts(recognise)([sound[: 45 * RATE]])
    assert found.text == "aa a" and found.confidence == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("save", "options", "language", "said"),
    [
        (save_whisper, {}, "xx", "it doesn't know --language xx"),
        (save_whisper, {"is_multilingual": False}, "pt-br", "it knows English only, not --language pt-br"),
        (save_ctc, {"rate": 8000}, "pt", "it hears sounds of 8,000 Hz; expected 16,000"),
        (save_ctc, {"add_adapter": False, "adapter_attn_dim": 4}, "pt", "an adapter for each language"),
    ],
)
def test_a_recogniser_that_can_not_be_used_is_refused(tmp_path, save, options, language, said):
    place = save(tmp_path / "model", **options)
    with pytest.raises(UserError, match=f"--asr .*{said}.*give the hub id or folder of a Whisper or CTC model"):
        load_recogniser(place, "cpu", language)


def test_what_is_no_recogniser_or_lacks_weights_is_refused(tmp_path):
    place = save_ctc(tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    del weights["lm_head.bias"]
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"--asr .*: .*its files lack 1 of the weights of a Wav2Vec2ForCTC"):
        load_recogniser(place, "cpu", "pt")
    (tmp_path / "model/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="its config.json is of a bert"):
        load_recogniser(place, "cpu", "pt")
    with pytest.raises(UserError, match="--asr whisper: no such folder, and not a hub id"):
        load_recogniser("whisper", "cpu", "pt")
