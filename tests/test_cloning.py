"""A voice that listens to recordings, by the scripts: trained exactly, resumed, spoken with, evaluated."""

from pathlib import Path

import pytest
import soundfile
from safetensors.torch import load_file

import evaluate_speech
import synthesize
import train_tts
from speech.discriminators import new_discriminators, save_discriminators
from speech.voices import save_voice
from tests.tiny_runs import as_in_a_process, column, forget_after
from tests.tiny_voices import DISCRIMINATORS, tiny_voice, write_speech
from utils.cli import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sounds of two speakers, and a voice with a table of two."""
    folder = tmp_path_factory.mktemp("made")
    write_speech(folder / "data", 8, 3, ("ana", "rui"))
    save_voice(folder / "voice", tiny_voice(speakers=2))
    save_discriminators(folder / "voice", new_discriminators(DISCRIMINATORS, 0))
    return folder


def train(made: Path, out: Path, *more: object) -> int:
    short = "--max_train_steps 4 --train_batch_size 8 --effective_batch_size 8 --segment_frames 16 --held_out 0.5"
    short += " --lr_warmup_steps 2 --learning_rate 1e-3 --validation_steps 4 --num_validation_sounds 1 --report_to none"
    short += " --checkpointing_steps 2 --logging_steps 1 --speaker_encoder demo"
    words = ["--pretrained_model_name_or_path", made / "voice", "--train_data_dir", made / "data/train"]
    with as_in_a_process():
        return train_tts.main(train_tts.parse_args([*short.split(), *map(str, [*words, "--output_dir", out, *more])]))


@pytest.fixture(scope="module")
def clone(made):
    out = made / "runs/clone"
    assert train(made, out) == 0
    return out


@pytest.mark.slow
def test_any_division_trains_the_same_and_a_resumed_run_to_the_byte_without_listening_again(
    made, clone, tmp_path, monkeypatch
):
    assert train(made, tmp_path / "runs/divided", "--train_batch_size", 2, "--gradient_accumulation_steps", 4) == 0
    one, other = (load_file(path / "model.safetensors") for path in (clone, tmp_path / "runs/divided"))
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-4
    assert one["read_speaker.weight"].abs().max() > 1e-4  # it has learnt

    before = {name: (clone / name).read_bytes() for name in ("model.safetensors", "discriminators.safetensors")}
    losses = column(clone, "loss"), column(clone, "val_loss")
    forget_after(clone, 2)
    for name in before:
        (clone / name).unlink()
    with monkeypatch.context() as patch, pytest.raises(UserError, match="since then the speaker encoder has changed"):
        patch.setattr(train_tts, "encoder_key", lambda name: "other")
        train(made, clone)
    monkeypatch.setattr(train_tts, "load_speaker_encoder", None)
    assert train(made, clone) == 0
    assert before == {name: (clone / name).read_bytes() for name in before}
    assert losses == (column(clone, "loss"), column(clone, "val_loss"))
    with soundfile.SoundFile(clone / "validation/step-000004_1.wav") as sound:
        assert sound.comment == "synthetic speech"
    assert "**Consent.**" in (clone / "README.md").read_text("utf-8")


def test_a_voice_goes_on_with_its_own_encoder_and_no_other(made, clone, tmp_path, capsys):
    words = "--pretrained_model_name_or_path", clone, "--max_train_steps", 1
    with pytest.raises(UserError, match="--speaker_encoder a/b: the voice .* listens by demo, and can't change"):
        train(made, tmp_path / "run", *words, "--speaker_encoder", "a/b", "--dry_run")
    assert train(made, tmp_path / "run", *words, "--speaker_encoder", "", "--dry_run") == 0
    model = load_file(clone / "model.safetensors")
    size = sum(one.numel() for name, one in model.items() if name != "known_speakers")
    assert f"{size:,} of the voice" in capsys.readouterr().out
    for name, kind in (("nobody", "folder"), ("nobody.pt", "file")):
        with pytest.raises(UserError, match=f"--speaker_encoder {name}: no such {kind}"):
            train(made, tmp_path / "run", "--speaker_encoder", name, "--dry_run")


def test_a_reference_is_spoken_like_and_every_sound_says_that_it_is_synthetic(made, clone, tmp_path):
    recordings = sorted((made / "data/train/audio").iterdir())
    references = recordings[:4], recordings[4:]

    def speak(ending: str, *more: object) -> bytes:
        words = ["--pretrained_model_name_or_path", clone, "--text", "a casa azul", "--format", ending]
        words += ["--output_dir", tmp_path / ending, *more]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("speech.streaming.find_fault", lambda *_: "")  # a tiny voice only hums
            assert synthesize.main(synthesize.parse_args([str(one) for one in words])) == 0
        path = tmp_path / ending / f"audio/000000.{ending}"
        with soundfile.SoundFile(path) as sound:
            assert sound.comment == "synthetic speech"
        return path.read_bytes()

    for ending in ("wav", "flac", "mp3"):
        first = speak(ending, "--reference", *references[0])
        assert speak(ending, "--reference", *references[0], "--overwrite") == first
    with pytest.raises(UserError, match="reference was .*000000.flac.*, now .*000004.flac"):
        speak("wav", "--reference", *references[1])
    assert speak("wav", "--reference", *references[1], "--overwrite") != speak("wav", "--overwrite")


def test_each_sentence_is_evaluated_by_the_other_recordings_of_its_speaker(made, clone, tmp_path):
    def evaluate(real: Path) -> int:
        words = ["--pretrained_model_name_or_path", clone, "--asr", "none", "--speaker_encoder", "demo", "--real", real]
        words += ["--output_dir", tmp_path / real.name, "--resamples", 20]
        return evaluate_speech.main(evaluate_speech.parse_args([str(one) for one in words]))

    assert evaluate(made / "data/train") == 0
    with pytest.raises(UserError, match="one recording of speaker 'rui' is to be evaluated.*; add one"):
        evaluate(made / "data/val")


@pytest.mark.parametrize("flag", [("--speaker", "ana"), ("--export_onnx", "x.onnx")])
def test_a_reference_beside_what_it_excludes_is_refused(flag, capsys):
    with pytest.raises(SystemExit):
        synthesize.parse_args(["--reference", "a.wav", *flag])
    assert flag[0] in capsys.readouterr().err
