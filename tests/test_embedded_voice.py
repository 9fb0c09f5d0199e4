"""`demo-voice`: what is embedded is what its scripts make, it is understood, and every script of speech takes it."""

import argparse
import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train_tts
from demo import measure_voice
from demo.adapt_voice import SPEAKER, summarise
from demo.espeak import RATE, say
from demo.pretrain_voice import ALWAYS, TRAINING, VOICE, VOICE_CHARACTERS, calibrate
from demo.voice_corpus import HELD_BACK, JUDGED, TRAINED, read_sentences
from evaluation.report.spoken_page import read_spoken
from evaluation.report.spoken_verdict import find_figure
from speech.audio import trim_silence
from speech.discriminators import load_discriminators
from speech.distances import count_edits
from speech.normalise import plain_text
from speech.recogniser import load_recogniser
from speech.synthesis import Speaking, speak
from speech.voices import DEMO_VOICE, Voice, load_voice
from tests.tiny_runs import ROOT, as_in_a_process
from utils.cli import UserError

SOUNDS_AND_WEIGHTS = (".safetensors", ".wav", ".flac")


@pytest.fixture(scope="module")
def voice() -> Voice:
    return load_voice("demo-voice")


def test_it_is_of_the_sizes_characters_and_speakers_that_its_script_trains(voice):
    found = voice.model.config.to_dict()
    free = {"vocab_size", "num_speakers", "speaking_rate", "noise_scale", "transformers_version"}  # the rest are sizes
    assert all(found[name] == value for name, value in VOICE.to_diff_dict().items() if name not in free)
    assert voice.speakers == list(TRAINED)
    known = "".join(sorted(set("".join(one.text for one in read_sentences("train")).lower())))
    assert known == VOICE_CHARACTERS == "".join(sorted(one for one in voice.tokenizer.encoder if len(one) == 1))


def test_its_weights_are_in_half_precision_and_its_discriminators_lie_beside_them():
    files = sorted(DEMO_VOICE.glob("*.safetensors"))
    assert [path.name for path in files] == ["discriminators.safetensors", "model.safetensors"]
    for path in files:
        assert {one.dtype for one in load_file(path).values()} == {torch.float16}
    assert sum(path.stat().st_size for path in files) < 8e6
    assert load_discriminators(str(DEMO_VOICE))


@pytest.mark.parametrize("speaker", TRAINED)
def test_the_recogniser_reads_back_sentences_with_unknown_words(voice, speaker):
    texts = [read_sentences("unseen")[index].text for index in JUDGED[:6]]
    sounds = [speak(voice, text, seed, Speaking(speaker=speaker)) for seed, text in enumerate(texts)]
    heard = [found.text for found in load_recogniser("demo", "cpu", "pt-br")(sounds)]
    said = [plain_text(text, "pt-br") for text in texts]
    assert sum(map(count_edits, heard, said)) < 0.15 * sum(map(len, said)), list(zip(said, heard))


@pytest.mark.parametrize("speaker", TRAINED)
def test_it_speaks_about_as_long_as_the_recordings(voice, speaker):
    pytest.importorskip("espeakng_loader")
    texts = [read_sentences("unseen")[index].text for index in JUDGED[:5]]
    spoken = sum(len(trim_silence(speak(voice, text, 0, Speaking(speaker=speaker)), RATE)) for text in texts)
    recorded = sum(len(trim_silence(say(text, TRAINED[speaker]).samples, RATE)) for text in texts)
    assert spoken == pytest.approx(recorded, rel=0.08)


def test_its_card_is_not_written_of_another_voice():
    with pytest.raises(UserError, match="^--write: the card is that of demo-voice"):
        measure_voice.main(argparse.Namespace(write=True, pretrained_model_name_or_path="runs/voice"))


def test_the_card_says_how_it_was_trained_and_what_was_measured():
    card = (ROOT / "demo/voice/README.md").read_text("utf-8")
    for words in (*TRAINING, ALWAYS):
        assert " ".join(words.split()) in card
    assert card.count("| Characters heard wrong |") == 3  # in each of its voices, and in one that it learnt


def test_a_training_begins_with_it_and_adds_a_speaker(tmp_path, capsys):
    recipe = ROOT / "configs/demo_voice.yaml"
    words = ["--config", str(recipe), "--train_data_dir", str(HELD_BACK / "train"), "--mixed_precision", "no"]
    args = train_tts.parse_args([*words, "--output_dir", str(tmp_path / "run"), "--dry_run"])
    with as_in_a_process():
        assert train_tts.main(args) == 0
    said, stated = capsys.readouterr().out, re.search(r"estimates ([\d.]+) GiB", recipe.read_text())
    mebibytes = re.search(r"([\d,]+) MiB at the peak", said)
    assert int(mebibytes[1].replace(",", "")) / 1024 == pytest.approx(float(stated[1]), rel=0.1), said
    given = train_tts.read_voice_config("demo-voice")
    assert train_tts.open_voice(args, given, train_tts.read_data(args)[0], None).speakers == [*TRAINED, SPEAKER]


@pytest.mark.very_slow
def test_it_speaks_at_the_rate_and_with_the_noise_that_calibration_chooses(voice):
    pytest.importorskip("espeakng_loader")
    other = load_voice("demo-voice")
    other.model.config.speaking_rate = other.model.config.noise_scale = 0.0
    calibrate(other)
    assert other.model.config.speaking_rate == pytest.approx(voice.model.config.speaking_rate, abs=0.011)
    assert other.model.config.noise_scale == voice.model.config.noise_scale


@pytest.mark.very_slow
def test_it_is_exported_for_onnxruntime_and_measured_by_the_benchmark(tmp_path):
    name, onnx = ["--pretrained_model_name_or_path", "demo-voice"], tmp_path / "voice.onnx"
    for script, words in (
        ("synthesize.py", ["--export_onnx", str(onnx)]),
        ("benchmark.py", ["--trainer", "train_tts.py", "--dry_run", "--output_dir", str(tmp_path / "benchmark")]),
    ):
        done = subprocess.run([sys.executable, script, *name, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    facts = importlib.import_module("onnxruntime").InferenceSession(onnx).get_modelmeta().custom_metadata_map
    assert json.loads(facts["speakers"]) == list(TRAINED)


@pytest.mark.very_slow
def test_the_demo_teaches_it_a_speaker_that_it_has_never_heard(tmp_path):
    """The same command again makes nothing anew."""
    out, made = tmp_path / "demo", []
    for _ in range(2):
        command = [sys.executable, "demo/adapt_voice.py", "--output_dir", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append({path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in SOUNDS_AND_WEIGHTS})
    assert made[0] and made[0] == made[1]
    before, after = (read_spoken(out / name) for name in ("before", "after"))
    values = {
        name: [find_figure(metrics, name)["value"] for metrics in (before, after)]
        for name in ("cer", "similarity", "mcd")
    }
    assert values["mcd"][1] < 0.9 * values["mcd"][0] and values["similarity"][1] > values["similarity"][0] + 0.2
    assert values["cer"][1] < 0.12
    assert len(summarise(out)) == 5 and np.isfinite(list(values.values())).all()
