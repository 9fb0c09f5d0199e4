"""train_tts.py from end to end: exact on any division, resumed to the byte, and its voice loads anywhere."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import VitsModel
from transformers.models.vits.modeling_vits import VitsPosteriorEncoder

import train_tts
from speech import adaptation
from speech.discriminators import new_discriminators, save_discriminators
from speech.phonemes import phonemise
from speech.vits import decode
from speech.voices import load_voice, note_reading, read_voice_config, save_voice
from tests.hub_server import pushed_files
from tests.tiny_runs import as_in_a_process, column, forget_after, launch
from tests.tiny_voices import CHARACTERS, DISCRIMINATORS, tiny_voice, write_speech
from training import memory
from training.model_card import files_to_push
from utils.cli import UserError

PARTS = ("model.safetensors", "discriminators.safetensors")
VITS2 = (*PARTS, "duration_discriminator.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders: sounds of two speakers, and a voice of them with its discriminators."""
    folder = tmp_path_factory.mktemp("made")
    write_speech(folder / "data", 10, 3, ("ana", "rui"))
    save_voice(folder / "voice", tiny_voice(speakers=2, stochastic=True))
    save_discriminators(folder / "voice", new_discriminators(DISCRIMINATORS, 0))
    return folder


def flags(made: Path, out: Path, *more) -> list[str]:
    """6 steps of 8 utterances, a loss in every line; `more` wins."""
    short = "--max_train_steps 6 --train_batch_size 8 --effective_batch_size 8 --segment_frames 16 --held_out 0.5"
    short += " --lr_warmup_steps 2 --learning_rate 1e-3 --validation_steps 0 --checkpointing_steps 3 --logging_steps 1"
    words = ["--pretrained_model_name_or_path", made / "voice", "--train_data_dir", made / "data/train"]
    return [str(word) for word in [*short.split(), "--report_to", "none", *words, "--output_dir", out, *more]]


def train(made: Path, out: Path, *more) -> int:
    with as_in_a_process():
        return train_tts.main(train_tts.parse_args(flags(made, out, *more)))


@pytest.fixture(scope="module")
def reference(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    assert train(made, out, "--use_ema") == 0
    return out


def difference(one: Path, other: Path) -> float:
    """The largest difference of the weights of two results."""
    pairs = [(load_file(one / name), load_file(other / name)) for name in PARTS]
    return max((a[key] - b[key]).abs().max().item() for a, b in pairs for key in a)


def same_bytes(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in PARTS)


def test_all_that_loads_a_voice_is_kept_and_pushed(reference):
    needed = {"config.json", "vocab.json", "tokenizer_config.json", *PARTS}
    assert needed <= set(json.loads((reference / "summary.json").read_text())["files"])
    assert {*needed, "README.md"} <= set(files_to_push(reference))


def test_a_voice_is_pushed_with_its_card_and_all_that_loads_it(made, hub, tmp_path):
    out = tmp_path / "run"
    assert train(made, out, "--max_train_steps", 1, "--push_to_hub", "--hub_model_id", "me/voz") == 0
    sent = pushed_files(hub)
    assert {"config.json", "vocab.json", "README.md", *PARTS} <= sent.keys() and sorted(sent) == files_to_push(out)
    assert all(content == (out / name).read_bytes() for name, content in sent.items())
    assert b"me/voz" in sent["README.md"]


def test_a_voice_that_is_kept_elsewhere_too_goes_on_from_there(made, reference, tmp_path):
    first, drive, words = tmp_path / "first", tmp_path / "drive", ["--use_ema", "--sync_to", tmp_path / "drive"]
    shutil.copytree(reference, first)
    assert train(made, first, *words) == 0
    forget_after(drive, 3)
    for name in PARTS:
        (drive / name).unlink()
    shutil.rmtree(first)
    assert train(made, tmp_path / "second", *words) == 0
    assert same_bytes(reference, tmp_path / "second") and same_bytes(reference, drive)
    assert column(tmp_path / "second", "loss") == column(reference, "loss")


def test_without_discriminators_for_a_time_only_the_voice_steps(made, tmp_path):
    assert train(made, tmp_path / "run", "--discriminator_start", 3, "--max_train_steps", 4) == 0
    before, after = ((load_file(path / "discriminators.safetensors")) for path in (made / "voice", tmp_path / "run"))
    half = load_file(tmp_path / "run/checkpoint-3/discriminators.safetensors")
    assert all(torch.equal(before[name], half[name]) for name in before)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert column(tmp_path / "run", "loss_adversarial")[:3] == [0, 0, 0]


def test_any_division_of_a_batch_trains_the_same(made, reference, tmp_path):
    assert train(made, tmp_path / "run", "--use_ema", "--train_batch_size", 2, "--gradient_accumulation_steps", 4) == 0
    for loss in train_tts.LOSSES:
        assert np.allclose(column(tmp_path / "run", loss), column(reference, loss), rtol=1e-4), loss
    assert np.allclose(column(tmp_path / "run", "loss"), column(reference, "loss"), rtol=1e-5)
    assert difference(reference, tmp_path / "run") < 1e-4


@pytest.mark.very_slow
def test_two_processes_train_the_same(made, reference, tmp_path):
    launch("train_tts", flags(made, tmp_path / "run", "--use_ema", "--train_batch_size", 2), tmp_path / "told")
    assert np.allclose(column(tmp_path / "run", "loss"), column(reference, "loss"), rtol=1e-5)
    assert difference(reference, tmp_path / "run") < 1e-4


def test_resumed_equals_uninterrupted_to_the_byte_and_another_seed_differs(made, reference, tmp_path):
    resumed = Path(shutil.copytree(reference, tmp_path / "run"))
    forget_after(resumed, 3)
    for name in PARTS:
        (resumed / name).unlink()
    assert train(made, resumed, "--use_ema") == 0
    assert same_bytes(reference, resumed) and column(resumed, "loss") == column(reference, "loss")
    assert train(made, tmp_path / "other", "--use_ema", "--seed", 1) == 0
    assert difference(reference, tmp_path / "other") > 1e-3


def test_the_same_command_again_changes_nothing(made, reference, capsys):
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    assert train(made, reference, "--use_ema") == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())


def test_out_of_memory_halves_what_is_trained_at_once(made, reference, tmp_path, monkeypatch, caplog):
    whole = VitsPosteriorEncoder.forward

    def forward(self, inputs, *args):
        if len(inputs) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, inputs, *args)

    monkeypatch.setattr(VitsPosteriorEncoder, "forward", forward)
    assert train(made, tmp_path / "run", "--use_ema") == 0
    assert "4 samples at once from here on" in caplog.text
    assert difference(reference, tmp_path / "run") < 1e-4


def test_a_loss_that_is_not_finite_stops_or_is_skipped_and_names_its_utterances(made, tmp_path):
    shutil.copytree(made / "voice", tmp_path / "voice")
    voice = load_voice(str(tmp_path / "voice"))
    with torch.no_grad():
        voice.model.embed_speaker.weight[1] = math.nan  # of rui, whose utterances have odd numbers
    save_voice(tmp_path / "voice", voice)
    with pytest.raises(UserError, match="step 0: the loss is not finite.*samples 0000.*; largest activation") as error:
        train(made, tmp_path / "run", "--pretrained_model_name_or_path", tmp_path / "voice", "--on_nonfinite", "stop")
    named = str(error.value).split("samples ")[1].split(";")[0].split(", ")
    assert all(int(name) % 2 for name in named)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(made, tmp_path, capsys):
    assert train(made, tmp_path / "run", "--dry_run") == 0
    said, found = capsys.readouterr().out, load_voice(str(made / "voice")).model
    assert f"{sum(one.numel() for one in found.parameters()):,} of the voice" in said
    assert "MiB at the peak" in said and "utterances" in said and not list(tmp_path.iterdir())


def tensorboard(run: Path):
    """What the run gave to TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((run / "logs").rglob("events*")).parent), {"audio": 0, "images": 0})
    events.Reload()
    return events


@pytest.mark.parametrize("checkpointing", [False, True])
def test_half_precision_is_estimated_to_need_half_for_the_decoder(made, checkpointing):
    model = VitsModel(read_voice_config(str(made / "voice"))).to("meta")
    latents = torch.empty(4, model.config.flow_size, 400, device="meta")

    def run() -> None:
        decode(model.decoder, latents, None, checkpointing).sum().backward()
        model.zero_grad()

    run()  # what torch loads the first time counts for nothing
    full, half = (memory.most_live_bytes(run, dtype) for dtype in (None, torch.float16))
    assert 0.4 < half / full < 0.65


def test_a_validation_speaks_draws_and_keeps_the_best(made, tmp_path):
    words = "--max_train_steps 4 --validation_steps 2 --num_validation_sounds 2 --report_to tensorboard"
    assert train(made, tmp_path / "run", *words.split(), "--logging_dir", "logs") == 0
    names = {path.name for path in (tmp_path / "run/validation").iterdir()}
    assert {"step-000002.png", "step-000004_1.wav", "step-000000_1_real.wav"} <= names
    assert all(map(math.isfinite, column(tmp_path / "run", "val_loss")))
    assert len(column(tmp_path / "run", "val_duration_error")) == 3
    best = json.loads((tmp_path / "run/best/state.json").read_text())
    assert best["val_loss"] == min(column(tmp_path / "run", "val_loss"))
    VitsModel.from_pretrained(tmp_path / "run/best")
    assert "validation_1" in tensorboard(tmp_path / "run").Tags()["audio"]


def test_with_nothing_held_out_sentences_of_the_training_are_spoken(made, tmp_path):
    words = "--max_train_steps 1 --validation_steps 1 --num_validation_sounds 2 --report_to tensorboard --held_out 0"
    assert train(made, tmp_path / "run", *words.split(), "--logging_dir", "logs") == 0
    names = {path.name for path in (tmp_path / "run/validation").iterdir()}
    assert names == {f"step-00000{step}_{i}.wav" for step in (0, 1) for i in (1, 2)} | {
        f"step-000000_{i}_real.wav" for i in (1, 2)
    }
    assert "validation_2" in tensorboard(tmp_path / "run").Tags()["audio"]


def test_validation_texts_are_read_as_synthesize_reads_them(made, tmp_path, capsys):
    voice = load_voice(str(made / "voice"))
    assert train_tts.read_validation_texts(voice, ["São 2 casas. A flor!"]) == ["São duas casas. A flor!"]
    note_reading(voice, "pt-br", "espeak")
    assert train_tts.read_validation_texts(voice, ["São 2 casas."]) == phonemise(["São duas casas."], "pt-br")
    with pytest.raises(UserError, match="--validation_text '世界': no character of it is in the voice's alphabet"):
        train(made, tmp_path / "run", "--max_train_steps", 1, "--validation_text", "世界")


def test_a_voice_from_nothing_learns_the_letters_of_its_data(made, tmp_path):
    assert train(made, tmp_path / "run", "--random_weights", "--max_train_steps", 1) == 0
    voice, texts = load_voice(str(tmp_path / "run")), (made / "data/train/metadata.jsonl").read_text("utf-8")
    known = set(voice.tokenizer.encoder) - {"<pad>", "<unk>"}
    assert known == {one for line in texts.splitlines() for one in json.loads(line)["text"]} < set(CHARACTERS)
    assert voice.speakers == ["ana", "rui"]


def test_new_speakers_are_added_and_a_text_without_one_is_refused(made, tmp_path):
    write_speech(tmp_path / "more", 6, 1, ("eva",))
    assert train(made, tmp_path / "run", "--train_data_dir", tmp_path / "more/train", "--max_train_steps", 1) == 0
    assert load_voice(str(tmp_path / "run")).speakers == ["ana", "rui", "eva"]
    write_speech(tmp_path / "none", 6, 1)
    with pytest.raises(UserError, match="2 speakers, but utterances of --train_data_dir .*name none"):
        train(made, tmp_path / "other", "--train_data_dir", tmp_path / "none/train", "--dry_run")
    assert not (tmp_path / "other").exists()


def test_a_plan_is_refused_where_there_is_no_voice(made, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "clip"}')
    reasons = {made / "data": "config.json is missing", tmp_path / "other": "its config.json is not of a VITS"}
    for folder, reason in reasons.items():
        with pytest.raises(UserError, match=f"does not contain a complete VITS voice .{reason}"):
            train(made, tmp_path / "run", "--pretrained_model_name_or_path", folder, "--dry_run")


@pytest.mark.parametrize("name", ["tokenizer_config.json", *PARTS])
def test_a_plan_is_refused_where_a_file_of_the_voice_is_cut(made, tmp_path, name):
    voice = Path(shutil.copytree(made / "voice", tmp_path / "voice"))
    (voice / name).write_bytes((voice / name).read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        train(made, tmp_path / "run", "--pretrained_model_name_or_path", voice, "--dry_run")


def test_what_cannot_be_trained_on_is_one_line(made, tmp_path):
    rows = [json.loads(line) for line in (made / "data/train/metadata.jsonl").read_text("utf-8").splitlines()]

    def refuse(expected: str, row: dict, *more) -> None:
        folder = Path(shutil.copytree(made / "data/train", tmp_path / "data", dirs_exist_ok=True))
        lines = [json.dumps(one) for one in [row, *rows[1:]]]
        (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
        with pytest.raises(UserError, match=expected) as error:
            train(made, tmp_path / "run", "--train_data_dir", folder, "--overwrite", *more)
        assert "\n" not in str(error.value)

    refuse("too short for its text 'aaaa", rows[0] | {"text": "a" * 200})
    refuse("no character of it is in the voice's alphabet", rows[0] | {"text": "日本"})
    refuse("nope.flac", rows[0] | {"file_name": "audio/nope.flac"})
    refuse(
        "--early_stopping_patience 2",
        rows[0],
        "--held_out",
        0,
        *"--early_stopping_patience 2 --validation_steps 2".split(),
    )
    other = tmp_path / "voice"
    shutil.copytree(made / "voice", other)
    config = json.loads((other / "config.json").read_text()) | {"sampling_rate": 22_050}
    (other / "config.json").write_text(json.dumps(config))
    refuse("prepare the data with --sampling_rate 22050", rows[0], "--pretrained_model_name_or_path", other)


@pytest.mark.slow
def test_a_voice_is_reported_on_by_its_mel_loss_and_its_sounds(made, tmp_path):
    out = tmp_path / "run"
    words = "--max_train_steps 10 --validation_steps 5 --num_validation_sounds 1 --report_every 5 --lang en"
    assert train(made, out, *words.split()) == 0
    report = (out / "report.md").read_text()
    assert "The training has ended, after 10 steps" in report and "held-out sentences are off by" in report
    assert "of the newest validation" in report and column(out, "estimated_memory_gib")[0] > 0


@pytest.fixture(scope="module")
def with_vits2(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("vits2") / "run"
    assert train(made, out, "--vits2", "all", "--discriminator_start", 2) == 0
    return out


def test_the_parts_of_vits2_are_trained_and_go_on_to_the_byte(made, reference, with_vits2, tmp_path):
    resumed = Path(shutil.copytree(with_vits2, tmp_path / "run"))
    forget_after(resumed, 3)
    for name in VITS2:
        (resumed / name).unlink()
    assert train(made, resumed, "--vits2", "all", "--discriminator_start", 2) == 0
    assert all((with_vits2 / name).read_bytes() == (resumed / name).read_bytes() for name in VITS2)
    assert column(with_vits2, "loss_duration_discriminator")[:2] == [0, 0] != column(with_vits2, "loss")[:2]
    assert column(with_vits2, "loss_duration_discriminator")[2] > 0 < column(with_vits2, "loss_duration_adversarial")[2]
    weights, plain = (load_file(run / "model.safetensors") for run in (with_vits2, reference))
    new = [name for name in weights if name not in plain]
    assert "text_speaker.weight" in new and all(weights[name].any() for name in new if "output" in name)
    assert "vits_with_parts" in (with_vits2 / "config.json").read_text()
    assert "flow_attention" in (with_vits2 / "README.md").read_text()


def test_any_division_of_a_batch_trains_the_parts_of_vits2_the_same(made, with_vits2, tmp_path):
    words = ["--vits2", "all", "--discriminator_start", 2, "--train_batch_size", 2, "--gradient_accumulation_steps", 4]
    assert train(made, tmp_path / "run", *words) == 0
    for loss in (*train_tts.LOSSES, *train_tts.MORE_LOSSES):
        assert np.allclose(column(tmp_path / "run", loss), column(with_vits2, loss), rtol=1e-3), loss


def test_what_the_parts_of_vits2_cannot_be_given_is_one_line(made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_tts.parse_args(flags(made, tmp_path / "run", "--mas_noise", 0.1))
    assert "--mas_noise 0.1: needs --vits2 mas_noise" in capsys.readouterr().err
    write_speech(tmp_path / "alone", 10, 3)
    save_voice(tmp_path / "voice", tiny_voice())
    words = ["--train_data_dir", tmp_path / "alone/train", "--pretrained_model_name_or_path", tmp_path / "voice"]
    with pytest.raises(UserError, match="--vits2 text_speaker: voice and --train_data_dir .* have one speaker"):
        train(made, tmp_path / "run", *words, "--vits2", "text_speaker")
    assert train(made, tmp_path / "run", *words, "--vits2", "all", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "of the duration discriminator" in shown


@pytest.mark.slow
def test_pitch_energy_and_styles_train_the_same_on_any_division_and_resumed(made, tmp_path, capsys):
    parts = ("--prosody", "--style_tokens", 3, "--style_adaptive_norm", "--logging_steps", 2)
    assert train(made, tmp_path / "dry", *parts, "--dry_run") == 0
    whole = tmp_path / "whole"
    assert train(made, whole, *parts) == 0
    sizes = sum(one.numel() for one in load_voice(str(whole)).model.parameters())
    assert f"{sizes:,} of the voice" in capsys.readouterr().out
    assert train(made, tmp_path / "parts", *parts, "--train_batch_size", 2, "--gradient_accumulation_steps", 4) == 0
    assert difference(whole, tmp_path / "parts") < 1e-4
    resumed = Path(shutil.copytree(whole, tmp_path / "resumed"))
    forget_after(resumed, 3)
    assert train(made, resumed, *parts) == 0 and same_bytes(whole, resumed)
    assert column(whole, "loss") == column(resumed, "loss")  # step 3 is in the second line
    with pytest.raises(UserError, match="style_tokens"):
        train(made, resumed, *parts, "--style_tokens", 4)
    more = ("--pretrained_model_name_or_path", whole, "--max_train_steps", 1)
    assert train(made, tmp_path / "more", *more) == 0  # with its parts, though nothing asks for them
    assert load_voice(str(tmp_path / "more")).model.config.parts == load_voice(str(whole)).model.config.parts
    with pytest.raises(UserError, match="--style_tokens 4: the voice has 3"):
        train(made, tmp_path / "other", *more, "--style_tokens", 4)


def test_adaptive_norms_of_a_voice_of_one_need_something_to_adapt_to(made, tmp_path):
    save_voice(tmp_path / "voice", tiny_voice())
    words = (
        "--pretrained_model_name_or_path",
        tmp_path / "voice",
        "--train_data_dir",
        write_speech(tmp_path / "data", 4),
    )
    with pytest.raises(UserError, match="--style_adaptive_norm: nothing tells the utterances .*; add --style_tokens"):
        train(made, tmp_path / "run", *words, "--style_adaptive_norm")


META = "--meta first-order --meta_steps 2 --adapt decoder --held_out 0".split()


@pytest.fixture(scope="module")
def start(made, tmp_path_factory):
    """Three episodes of two steps; checkpoint-3 lies in the middle of the second."""
    out = tmp_path_factory.mktemp("start") / "run"
    assert train(made, out, *META) == 0
    return out


def test_only_what_adapt_names_is_trained_optimised_and_averaged(made, tmp_path, capsys):
    words = "--adapt speaker --use_ema --max_train_steps 2 --checkpointing_steps 2".split()
    assert train(made, tmp_path / "run", *words, "--dry_run") == 0
    said = capsys.readouterr().out
    assert train(made, tmp_path / "run", *words) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (made / "voice", tmp_path / "run"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("cond" in name or name == "embed_speaker.weight" for name in changed)
    sizes = {id(one): one.numel() for one in adaptation.freeze_others(load_voice(str(made / "voice")).model, "speaker")}
    files = {
        name: load_file(tmp_path / f"run/checkpoint-2/{name}.safetensors") for name in ("average", "voice_optimizer")
    }
    assert sum(one.numel() for one in files["average"].values()) == sum(sizes.values())
    assert len([name for name in files["voice_optimizer"] if name.endswith("exp_avg")]) == len(sizes)
    assert f"{sum(sizes.values()):,} of the voice's are trained" in said


def test_meta_keeps_the_start_and_resumes_within_an_episode_to_the_byte(made, start, tmp_path):
    resumed = Path(shutil.copytree(start, tmp_path / "run"))
    forget_after(resumed, 3)
    assert train(made, resumed, *META) == 0
    assert same_bytes(start, resumed) and column(resumed, "loss") == column(start, "loss")
    kept, name = load_file(start / "model.safetensors"), "decoder.conv_post.weight"
    half, end = (load_file(start / f"checkpoint-{step}/voice.safetensors") for step in (3, 6))
    begun = load_file(start / "checkpoint-3/average.safetensors").values()
    assert torch.equal(end[name], kept[name]) and not any(torch.equal(half[name], one) for one in begun)


def test_meta_is_the_same_in_any_division_of_a_batch(made, start, tmp_path):
    assert train(made, tmp_path / "run", *META, "--train_batch_size", 2, "--gradient_accumulation_steps", 4) == 0
    assert np.allclose(column(tmp_path / "run", "loss"), column(start, "loss"), rtol=1e-5)
    assert difference(start, tmp_path / "run") < 1e-4


@pytest.mark.very_slow
def test_meta_is_the_same_in_two_processes(made, start, tmp_path):
    launch("train_tts", flags(made, tmp_path / "run", *META, "--train_batch_size", 2), tmp_path / "told")
    assert np.allclose(column(tmp_path / "run", "loss"), column(start, "loss"), rtol=1e-5)
    assert difference(start, tmp_path / "run") < 1e-4


def test_few_sentences_are_refused_in_one_line_where_nothing_can_come_of_them(made, tmp_path, capsys):
    write_speech(tmp_path / "one", 6, 1, ("eva",))
    with pytest.raises(UserError, match="--meta first-order: all utterances of .* are of eva; prepare"):
        train(made, tmp_path / "run", *META, "--train_data_dir", tmp_path / "one/train")
    with pytest.raises(UserError, match="--max_train_steps: 6 steps end within .* 4; give --max_train_steps 8"):
        train(made, tmp_path / "run", *META, "--meta_steps", 4)
    for expected, words in {
        "--use_ema: not with --meta first-order": "--meta first-order --use_ema",
        "--meta_steps 3: does nothing without --meta first-order": "--meta_steps 3",
        "--adapt speaker: not with --random_weights": "--adapt speaker --random_weights",
    }.items():
        with pytest.raises(SystemExit):
            train_tts.parse_args(words.split())
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_voice_learns_from_five_sentences_and_stops_by_the_one_that_is_held_out(made, tmp_path):
    write_speech(tmp_path / "few", 5, 1, ("eva",))
    words = "--held_out 0.01 --adapt speaker --early_stopping_patience 1 --validation_steps 1 --num_validation_sounds 0"
    more = ["--train_data_dir", tmp_path / "few/train", "--learning_rate", 5, "--max_train_steps", 8]
    assert train(made, tmp_path / "run", *words.split(), *more) == 0
    losses = column(tmp_path / "run", "val_loss")
    assert len(losses) < 9 and min(losses) == losses[-2]
    assert "4 utterances, 1 held out" in (tmp_path / "run/README.md").read_text()
