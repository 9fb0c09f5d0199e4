"""synthesize.py from end to end: a seed for each text, every sound checked, never half a set."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

import synthesize
from generation.set_folder import IMAGES
from speech.audio import read_sound
from speech.dataset import read_utterances
from speech.voices import save_voice
from tests.speech.test_synthesis import loud_voice
from tests.tiny_voices import tiny_voice
from utils.cli import UserError

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["a casa azul", "o rio e a janela. a porta velha", "dez flores", "uma mesa perto da porta", "o rio"]


@pytest.fixture(scope="module")
def voice(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voices") / "two"
    save_voice(folder, loud_voice(2, stochastic=True))
    return folder


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    rows = [{"id": f"x{i}", "text": text, "speaker": ["ana", "rui", ""][i % 3]} for i, text in enumerate(TEXTS)]
    rows[2]["seed"] = 77
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def words(voice: Path, out: Path, *more: object) -> list[str]:
    return [str(one) for one in ("--pretrained_model_name_or_path", voice, "--output_dir", out, *more)]


def make(voice: Path, out: Path, *more: object) -> int:
    return synthesize.main(synthesize.parse_args(words(voice, out, *more)))


@pytest.fixture(scope="module")
def reference(voice, listed, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "reference"
    assert make(voice, out, "--text_file", listed) == 0
    return out


def content(folder: Path) -> dict[str, bytes]:
    files = [folder / "metadata.jsonl", folder / "texts.txt", *(folder / "audio").iterdir()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_set_is_a_dataset_with_a_seed_for_each_text(reference, listed):
    made = records(reference)
    assert [one["seed"] for one in made] == [0, 1, 77, 3, 4]
    assert [one["speaker"] for one in made] == ["ana", "rui", "ana", "ana", "rui"]
    assert [one["id"] for one in made] == [f"x{i}" for i in range(5)]
    train, _ = read_utterances(reference, "--train_data_dir")
    assert [one.text for one in train] == TEXTS
    report = json.loads((reference / "report.json").read_text())
    assert report["made"] == 5 and report["sampling_rate"] == 16_000
    assert 0 < report["real_time_factor"] < 1
    assert (reference / "texts.txt").read_text().splitlines() == TEXTS


def test_one_sentence_is_what_a_plain_pipeline_gives(reference, voice):
    speak = pipeline("text-to-speech", model=str(voice))
    torch.manual_seed(3)
    plain = speak(TEXTS[3], forward_params={"speaker_id": 0})
    made = read_sound(reference / "audio/000003.wav", "")
    assert len(made.samples) == len(plain["audio"])
    assert np.abs(made.samples - plain["audio"]).max() < 1e-4  # 16 bits


def test_sentences_are_spoken_one_by_one_with_a_pause(reference, voice, listed, tmp_path):
    assert make(voice, tmp_path, "--text_file", listed, "--sentence_pause", 1) == 0
    longer = [b["seconds"] - a["seconds"] for a, b in zip(records(reference), records(tmp_path))]
    assert longer == pytest.approx([0, 0.6, 0, 0, 0], abs=0.002)


@pytest.mark.parametrize("more", [("--num_workers", 1), ("--num_workers", 7)])
def test_the_number_of_threads_changes_no_bit(reference, voice, listed, tmp_path, more):
    assert make(voice, tmp_path, "--text_file", listed, *more) == 0
    assert content(tmp_path) == content(reference)


def test_shares_in_any_order_make_the_same_set(reference, voice, listed, tmp_path, capsys):
    assert make(voice, tmp_path, "--text_file", listed, "--shard", "1/2") == 0
    assert "other shares still have to speak 3 texts" in capsys.readouterr().out
    assert make(voice, tmp_path, "--text_file", listed, "--shard", "0/2") == 0
    assert content(tmp_path) == content(reference)


def test_what_is_missing_or_damaged_is_made_again(reference, voice, listed, tmp_path):
    assert make(voice, tmp_path, "--text_file", listed) == 0
    assert make(voice, tmp_path, "--text_file", listed) == 0
    kept = (tmp_path / "audio/000000.wav").stat().st_mtime_ns
    (tmp_path / "audio/000003.wav").unlink()
    damaged = bytearray((tmp_path / "audio/000001.wav").read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "audio/000001.wav").write_bytes(damaged)
    assert make(voice, tmp_path, "--text_file", listed) == 0
    assert content(tmp_path) == content(reference)
    assert (tmp_path / "audio/000000.wav").stat().st_mtime_ns == kept


def test_half_a_file_of_an_unfinished_set_does_not_count(reference, voice, listed, tmp_path):
    assert make(voice, tmp_path, "--text_file", listed, "--shard", "0/2") == 0
    (tmp_path / "audio/000002.wav").write_bytes(b"RIFF")
    assert make(voice, tmp_path, "--text_file", listed) == 0
    assert content(tmp_path) == content(reference)


@pytest.mark.parametrize("given", [["--speaking_rate", "1.5"], ["--speaker", "davi"], ["--pitch", "2.0"]])
def test_a_flag_of_speech_is_refused_where_there_is_only_a_file_to_export(given, capsys):
    export = ["--pretrained_model_name_or_path", "demo-voice", "--export_onnx", "voice.onnx", *given]
    with pytest.raises(SystemExit):
        synthesize.parse_args(export)
    assert f"error: {' '.join(given)}: does nothing without a text" in capsys.readouterr().err
    assert synthesize.parse_args([*export, "--text", "Oi"]).export_onnx.name == "voice.onnx"


def test_the_same_command_twice_does_nothing(reference, voice, listed, capsys):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    assert make(voice, reference, "--text_file", listed) == 0
    assert "this set is finished; nothing to do" in capsys.readouterr().out
    assert synthesize.main(synthesize.parse_args(["--config", str(reference / "config.yaml")])) == 0
    assert before == {path: path.stat().st_mtime_ns for path in reference.rglob("*")}


def test_other_texts_or_settings_are_refused_more_texts_continue_and_overwrite_begins_anew(voice, tmp_path):
    file, out = tmp_path / "a.txt", tmp_path / "set"
    file.write_text("o rio\na casa\n")
    assert make(voice, out, "--text_file", file) == 0
    with pytest.raises(UserError, match="holds utterances of other settings .*speaking_rate was 1.0, now 2.0"):
        make(voice, out, "--text_file", file, "--speaking_rate", 2)
    with pytest.raises(UserError, match="some of its 2 utterances would have another text.*, or --overwrite"):
        file.write_text("o rio\na janela\n")
        make(voice, out, "--text_file", file)
    first = (out / "audio/000000.wav").stat().st_mtime_ns
    file.write_text("o rio\na casa\na janela\n")
    assert make(voice, out, "--text_file", file) == 0
    assert len(records(out)) == 3 and (out / "audio/000000.wav").stat().st_mtime_ns == first
    (out / "mine.txt").write_text("mine")
    assert make(voice, out, "--text", "o rio", "--overwrite") == 0
    assert len(records(out)) == 1
    assert next(tmp_path.glob("set.replaced-*/mine.txt")).read_text() == "mine"


def test_a_silent_voice_is_rejected_with_every_seed(tmp_path):
    silent = tiny_voice()
    torch.nn.init.zeros_(silent.model.decoder.conv_post.weight)
    save_voice(tmp_path / "voice", silent)
    with pytest.raises(UserError, match=r"1 text rejected with each of 3 seeds: 000000 \(silence\); listen to"):
        make(tmp_path / "voice", tmp_path / "set", "--text", "a casa azul", "--max_retries", 2)
    rejected = [json.loads(line) for line in (tmp_path / "set/rejected/metadata.jsonl").read_text().splitlines()]
    assert [one["seed"] for one in rejected] == [0, 10**9, 2 * 10**9]
    assert {one["reason"] for one in rejected} == {"silence"}


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_other_formats_hold_the_same_sound(reference, voice, listed, tmp_path, suffix):
    assert make(voice, tmp_path, "--text_file", listed, "--format", suffix) == 0
    made, expected = (
        read_sound(one, "") for one in (tmp_path / f"audio/000000.{suffix}", reference / "audio/000000.wav")
    )
    assert made.rate == 16_000 and abs(len(made.samples) - len(expected.samples)) < 2500  # of MP3, padded
    assert suffix == "mp3" or np.abs(made.samples - expected.samples).max() < 1.1 / 2**15  # rounded otherwise


@pytest.mark.parametrize(
    "more, told",
    [
        (["--text", "😀"], "--text .*no character of it is in the voice's alphabet"),
        (["--text", "o rio", "--speaker", "eva"], "--speaker eva: the voice has no such speaker; it has ana, rui"),
        ([], "there is no text"),
    ],
)
def test_what_cannot_be_spoken_is_refused_before_any_work(voice, tmp_path, more, told):
    with pytest.raises(UserError, match=told):
        make(voice, tmp_path / "set", *more)
    assert not (tmp_path / "set").exists()


def test_a_row_of_an_unknown_speaker_is_named(voice, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "o rio"}\n{"text": "o rio", "speaker": "eva"}\n')
    with pytest.raises(UserError, match="texts.jsonl: text 000001: `speaker` is eva, the voice has ana, rui; correct"):
        make(voice, tmp_path / "set", "--text_file", tmp_path / "texts.jsonl")


def test_characters_that_are_left_out_are_named(voice, tmp_path, capsys):
    assert make(voice, tmp_path / "set", "--text", "o rio 世界", "--dry_run") == 0
    assert "the voice leaves out what it does not know: 世 (1) 界 (1)" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(voice, tmp_path, capsys):
    assert make(voice, tmp_path / "set", "--text", "São 10 horas. E 5.", "--dry_run") == 0
    assert "1 text, 2 sentences, read by the rules of pt-br" in capsys.readouterr().out
    assert not (tmp_path / "set").exists()


def test_a_place_keeps_the_set_and_another_machine_goes_on_from_there(reference, voice, listed, tmp_path):
    assert make(voice, tmp_path / "a", "--text_file", listed, "--sync_to", tmp_path / "place", "--shard", "0/2") == 0
    assert make(voice, tmp_path / "b", "--text_file", listed, "--sync_to", tmp_path / "place", "--shard", "1/2") == 0
    assert content(tmp_path / "b") == content(reference)


def test_sounds_and_images_go_by_other_names():
    assert IMAGES.name(7) == "images/000007.png" and IMAGES.grows == {"num_images", "prompts_sha256"}


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.very_slow
def test_two_processes_make_the_same_set(reference, voice, listed, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2proc.yaml"]
    command = words(voice, tmp_path / "set", "--text_file", listed)
    done = run(*launch, "--main_process_port", "0", "synthesize.py", *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert content(tmp_path / "set") == content(reference)


@pytest.mark.very_slow
@pytest.mark.parametrize("sent, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_killed_and_started_again_makes_the_same_set(voice, tmp_path, sent, code):
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"a casa do rio {'e a janela ' * (i % 20)}\n" for i in range(150)))
    assert make(voice, tmp_path / "whole", "--text_file", file) == 0
    command = [sys.executable, "synthesize.py", *words(voice, tmp_path / "set", "--text_file", file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "set/audio").glob("*.wav"))) < 20 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait() == code
    assert 20 <= len(list((tmp_path / "set/audio").glob("*.wav"))) < 150
    assert make(voice, tmp_path / "set", "--text_file", file) == 0
    assert content(tmp_path / "set") == content(tmp_path / "whole")
