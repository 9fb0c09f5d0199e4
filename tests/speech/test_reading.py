"""What a voice and a dataset say of their texts: letters or phonemes."""

import json
from pathlib import Path

import pytest

from speech.dataset import FORMAT, read_language
from speech.voices import load_voice, note_reading, save_voice
from tests.tiny_voices import tiny_voice
from train_tts import match_reading, parse_args
from utils.cli import UserError


def prepared(folder: Path, **options: object) -> Path:
    folder.mkdir()
    facts = {"format": FORMAT, "options": options, "counts": {}, "speakers": [], "fingerprint": ""}
    (folder / "metadata.json").write_text(json.dumps(facts))
    return folder


def test_a_dataset_says_whether_its_texts_are_phonemes(tmp_path):
    assert read_language(tmp_path, "--x") is None
    assert read_language(prepared(tmp_path / "a", language="en", phonemes="espeak"), "--x") == ("en", "espeak")
    assert read_language(prepared(tmp_path / "b", language="pt-br", phonemes=None), "--x") == ("pt-br", "")


def test_a_voice_of_letters_learns_no_phonemes_but_a_new_one_does(tmp_path):
    data = prepared(tmp_path / "data", language="pt-br", phonemes="espeak")
    voice = tiny_voice()
    argv = ["--train_data_dir", str(data), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="reads letters, but the texts of .* are phonemes; .* without --phonemes"):
        match_reading(parse_args(argv), voice)
    match_reading(parse_args([*argv, "--random_weights"]), voice)
    save_voice(tmp_path / "voice", voice)
    assert load_voice(str(tmp_path / "voice")).model.config.phonemes == "espeak"
    match_reading(parse_args(argv), voice)


def test_a_voice_of_phonemes_learns_no_letters(tmp_path):
    data = prepared(tmp_path / "data", language="pt-br", phonemes=None)
    voice = tiny_voice()
    note_reading(voice, "pt-br", "espeak")
    with pytest.raises(UserError, match="reads phonemes, but the texts of .* are letters; .* with --phonemes"):
        match_reading(parse_args(["--train_data_dir", str(data), "--output_dir", str(tmp_path / "run")]), voice)
