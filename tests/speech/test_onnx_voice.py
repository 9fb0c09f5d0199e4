"""speech/onnx_voice.py: onnxruntime speaks as torch does, from the file alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.vits.modeling_vits import VitsAttention, _unconstrained_rational_quadratic_spline

from speech.onnx_voice import AnyLength, export_onnx, invert_spline
from speech.synthesis import Speaking, speak
from speech.voices import Voice, tokenize, with_parts
from tests.speech.test_prosody import PARTS, learn
from tests.speech.test_synthesis import loud_voice
from tests.speech.test_vits2 import grown

PROSODY = np.array([[2, -1]], np.float32)  # 2 semitones and -3 dB, of a voice whose deviations are 1 and 3
ROOT = Path(__file__).resolve().parents[2]


def test_the_spline_is_transformers_own():
    draw = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(2, 1, 50, generator=draw)
    shapes = [torch.randn(2, 1, 50, count, generator=draw) for count in (10, 10, 9)]
    expected, _ = _unconstrained_rational_quadratic_spline(values, *shapes, reverse=True)
    assert (values.abs() > 5).any()
    assert torch.allclose(invert_spline(values, *shapes, 5.0), expected, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 5, 6, 40])
def test_the_attention_is_transformers_own(length):
    attention = loud_voice().model.text_encoder.encoder.layers[0].attention
    hidden = torch.randn(1, length, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = attention(hidden)[0]
        attention.__class__ = AnyLength
        assert torch.allclose(attention(hidden)[0], expected, atol=1e-6)
    assert type(loud_voice().model.text_encoder.encoder.layers[0].attention) is VitsAttention


def inputs_of(voice: Voice, text: str, seed: int, samples: int) -> dict[str, np.ndarray]:
    """The inputs of an exported voice, with the noise that `speak` draws."""
    model, draw = voice.model, torch.Generator().manual_seed(seed)
    ids = torch.tensor([tokenize(voice, text)])
    scales = [model.noise_scale, model.noise_scale_duration, model.speaking_rate]
    inputs = {"input_ids": ids.numpy(), "scales": np.array(scales, np.float32)}
    if model.config.use_stochastic_duration_prediction:
        inputs["duration_noise"] = torch.randn(1, 2, ids.shape[1], generator=draw).numpy()
    noise = torch.empty(1, samples // 256, model.config.flow_size).transpose(1, 2).normal_(generator=draw)
    inputs["noise"] = noise.transpose(1, 2).numpy()
    return inputs | ({"speaker": np.array([0])} if voice.speakers else {})


@pytest.mark.very_slow
@pytest.mark.parametrize("speakers, stochastic, prosody", [(0, False, True), (2, True, False)])
def test_onnxruntime_speaks_as_torch_does(tmp_path, speakers, stochastic, prosody):
    import onnxruntime

    voice = loud_voice(speakers, stochastic)
    if prosody:
        voice = with_parts(voice, PARTS, 0)
        learn(voice, 2e-3)  # at a higher rate its sound would clip
    else:
        voice = grown(voice, learnt=True)
    export_onnx(tmp_path / "voice.onnx", voice)
    session = onnxruntime.InferenceSession(tmp_path / "voice.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["vocab"]) == voice.tokenizer.get_vocab()
    assert (facts["sampling_rate"], facts["language"]) == ("16000", "por")
    assert json.loads(facts["speakers"]) == voice.speakers
    for text in ("a", "a casa azul", "a casa azul do rio tem uma janela " * 4):
        expected = speak(voice, text, 3, Speaking(pitch=2, energy=-3) if prosody else Speaking())
        inputs = inputs_of(voice, text, 3, len(expected)) | ({"prosody": PROSODY} if prosody else {})
        (made,) = session.run(None, inputs)[0]
        assert made.shape == expected.shape and np.abs(expected).max() > 0.01
        assert np.abs(made - expected).max() < 1e-4


@pytest.mark.very_slow
def test_the_example_of_the_docs_speaks_with_onnxruntime_alone(tmp_path):
    export_onnx(tmp_path / "voice.onnx", loud_voice(2, True))
    text = (ROOT / "docs/speech.md").read_text("utf-8")
    example = next(part.split("```")[0] for part in text.split("```python\n")[1:] if "onnxruntime" in part)
    assert "torch" not in example
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)
    assert (tmp_path / "voice.wav").stat().st_size > 1000
