"""train_lora.py from end to end: exact on any division, honest about what goes wrong, and its result loads anywhere."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

import generate
import train_lora
from families import diffusion, init_lora, lora_mix, models, sampler, sd
from families.lora import Adapter, read_lora
from families.lora_mix import Lora, apply_loras
from tests.tiny_models import DDPM
from tests.tiny_runs import (
    LORA,
    ROOT,
    card_pipeline,
    cells,
    column,
    difference,
    drawn_by_diffusers,
    flags,
    forget_after,
    lora_of,
    same_bytes,
    snapshot,
    train,
)
from training import batches, sample_plan, validation
from utils import checkpoints, metrics_log
from utils.cli import UserError
from utils.dataset import read_split


@pytest.fixture(scope="module")
def reference(trainer_data, tmp_path_factory):
    """6 steps of 8 samples at once, with checkpoints at 3 and 6."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert train(trainer_data, out) == 0
    return out


@pytest.fixture
def copy(reference, tmp_path):
    """The reference run, to be continued or damaged."""
    return Path(shutil.copytree(reference, tmp_path / "run"))


@pytest.fixture
def halfway(copy):
    """The reference run as it was when the process ended after step 3."""
    forget_after(copy, 3)
    return copy


def divide(micro: int, accumulation: int) -> list:
    return ["--train_batch_size", micro, "--gradient_accumulation_steps", accumulation]


# Exactness


@pytest.mark.parametrize("micro, accumulation", [(4, 2), (2, 4)])
def test_any_division_of_a_batch_trains_the_same(trainer_data, reference, tmp_path, micro, accumulation):
    assert train(trainer_data, tmp_path / "run", *divide(micro, accumulation)) == 0
    assert np.allclose(column(tmp_path / "run", "loss"), column(reference, "loss"), rtol=1e-5)
    assert difference(reference, tmp_path / "run") < 1e-5


def test_two_processes_train_the_same(trainer_data, tmp_path):
    words = ["--train_text_encoder", "--max_train_steps", 4]
    assert train(trainer_data, tmp_path / "one", *words, family="sdxl") == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", "accelerate_configs/cpu_2proc.yaml", "--main_process_port", "0", "train_lora.py"]
    launch += flags(trainer_data, tmp_path / "two", *words, *divide(2, 2), family="sdxl")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8 a step = 2 at once x 2 accumulated x 2 processes" in done.stdout
    assert np.allclose(column(tmp_path / "two", "loss"), column(tmp_path / "one", "loss"), rtol=1e-5)
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5


def test_a_run_resumed_on_another_division_trains_the_same(trainer_data, reference, halfway):
    assert train(trainer_data, halfway, *divide(2, 4)) == 0
    assert difference(reference, halfway) < 1e-5 and not same_bytes(reference, halfway)


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(trainer_data, reference, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        assert train(trainer_data, tmp_path / name, "--seed", seed) == 0
    assert same_bytes(reference, tmp_path / "same")
    assert column(reference, "loss") == column(tmp_path / "same", "loss")
    assert difference(reference, tmp_path / "other") > 1e-2


def test_what_saves_memory_changes_nothing(trainer_data, reference, tmp_path):
    assert train(trainer_data, tmp_path / "uncached", "--no-cache_latents", "--dataloader_num_workers", 0) == 0
    assert same_bytes(reference, tmp_path / "uncached")
    assert train(trainer_data, tmp_path / "checkpointing", "--gradient_checkpointing") == 0
    assert difference(reference, tmp_path / "checkpointing") < 1e-5


def by_hand(model: Path, data: Path, steps: int, effective: int = 8) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training in plain diffusers and peft; only what is drawn for each position is taken from the plan."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet").requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    )
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
    encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=1e-2)
    records, losses = read_split(data, "train"), []
    plan = sample_plan.SamplePlan(0, ((16, 16),) * len(records), effective, DDPM.draw_time)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, step / 2)
        total = 0
        for position in range(step * effective, (step + 1) * effective):
            draw = sample_plan.draw_position(plan, position)
            noise, posterior, _ = sample_plan.draw_noise(draw.noise_key, (4, 8, 8))
            record = records[draw.index]
            image = Image.open(record["path"]).resize((16, 16), Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
            ids = tokenizer(record["text"], padding="max_length", truncation=True, return_tensors="pt").input_ids
            with torch.no_grad():
                moments = vae.encode(pixels).latent_dist
                text = encoder(ids)[0]
            latents = (moments.mean + moments.std * posterior) * vae.config.scaling_factor
            timestep = torch.tensor([draw.time])
            noisy = scheduler.add_noise(latents, noise[None], timestep)
            total = total + F.mse_loss(unet(noisy, timestep, text).sample, noise[None]) / effective
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    named = {
        f"unet.{name.replace('.default', '')}": p.detach() for name, p in unet.named_parameters() if p.requires_grad
    }
    return losses, named


def test_a_step_is_what_diffusers_and_peft_do_by_hand(trainer_data, reference):
    losses, expected = by_hand(trainer_data["sd1"], trainer_data["prepared"], 3)
    assert np.allclose(column(reference, "loss")[:3], losses, rtol=1e-6)
    found = lora_of(reference / "checkpoint-3")
    assert found.keys() == expected.keys()
    apart = sum((found[key] - expected[key]).square().sum() for key in found).sqrt()
    assert apart < 1e-5 * sum(value.square().sum() for value in expected.values()).sqrt()


EVERYTHING = (
    "--use_ema --ema_decay 0.9 --caption_dropout 0.3 --random_flip --no-center_crop --use_aspect_ratio_buckets "
)
EVERYTHING += "--lora_dropout 0.1 --lr_scheduler cosine --noise_offset 0.1 --optimizer prodigy --learning_rate 1"


@pytest.mark.parametrize("words", [EVERYTHING, "--optimizer adafactor --use_ema"])
def test_resumed_equals_uninterrupted_with_all_that_has_a_state(trainer_data, tmp_path, words):
    words = [*words.split(), "--train_data_dir", trainer_data["folder"], *divide(4, 2), "--logging_steps", 2]
    assert train(trainer_data, tmp_path / "whole", *words) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    forget_after(tmp_path / "broken", 3)
    assert train(trainer_data, tmp_path / "broken", *words) == 0
    assert same_bytes(tmp_path / "whole", tmp_path / "broken")
    for name in ("loss", "loss_smooth"):  # the second line is of step 3, too, which was trained before the end
        assert column(tmp_path / "whole", name) == column(tmp_path / "broken", name)
    before = json.loads((tmp_path / "broken/checkpoint-3/state.json").read_text())["progress"]["seconds"]["step"]
    assert column(tmp_path / "broken", "seconds_step")[1] > before > 0
    plain = lora_of(tmp_path / "whole" / "checkpoint-6")
    assert any(not torch.equal(value, plain[key]) for key, value in lora_of(tmp_path / "whole").items())  # the average


def test_a_schedule_free_average_is_what_is_judged_and_saved_and_changes_no_step(trainer_data, tmp_path):
    """A checkpoint holds the weights in training, exactly, however often the average was looked at."""
    words = ["--optimizer", "AdamWScheduleFree", "--learning_rate", 3e-2, "--held_out", 0.2]
    words += ["--train_data_dir", trainer_data["folder"], "--max_train_steps", 4, "--checkpointing_steps", 2]
    words += ["--num_validation_samples", 8]
    assert train(trainer_data, tmp_path / "whole", *words) == 0
    assert train(trainer_data, tmp_path / "broken", *words, "--validation_steps", 1) == 0
    forget_after(tmp_path / "broken", 2)
    assert train(trainer_data, tmp_path / "broken", *words, "--validation_steps", 1) == 0
    assert same_bytes(tmp_path / "whole", tmp_path / "broken")
    average, trained = lora_of(tmp_path / "whole"), lora_of(tmp_path / "whole" / "checkpoint-4")
    state = load_file(tmp_path / "whole" / "checkpoint-4" / "optimizer.safetensors")
    steps = [value for name, value in state.items() if name.endswith(".z")]
    for key, value in trained.items():  # it lies between the average and where the steps have led
        led = (value - 0.9 * average[key]) / 0.1
        assert any(led.shape == one.shape and torch.allclose(led, one, atol=1e-4) for one in steps)
    assert any(not torch.allclose(value, average[key], atol=1e-3) for key, value in trained.items())


# Numbers and memory that give out


def test_a_huge_gradient_is_clipped(trainer_data, tmp_path, monkeypatch):
    """Adam's step doesn't depend on a gradient's size; with a huge epsilon it is proportional to it."""
    words = ["--adam_epsilon", 1, "--max_grad_norm", 1e-3, "--adam_weight_decay", 0, "--max_train_steps", 3]
    assert train(trainer_data, tmp_path / "small", *words) == 0
    whole = diffusion.sample_losses
    monkeypatch.setattr(diffusion, "sample_losses", lambda *args: whole(*args) * 1e6)
    assert train(trainer_data, tmp_path / "huge", *words) == 0
    assert train(trainer_data, tmp_path / "free", *words, "--max_grad_norm", 1e9) == 0
    assert min(column(tmp_path / "huge", "grad_norm")) > 1e3 > 1 > max(column(tmp_path / "small", "grad_norm")) > 1e-3
    moved = [
        sum(value.square().sum() for key, value in lora_of(tmp_path / name).items() if "lora_B" in key).sqrt().item()
        for name in ("small", "huge", "free")
    ]
    assert moved[0] == pytest.approx(moved[1], rel=1e-4) and moved[1] <= 3 * 1e-2 * 1e-3 and moved[2] > 100 * moved[1]


def test_an_overflow_of_the_loss_scale_repeats_the_step_at_half_the_scale(trainer_data, tmp_path, monkeypatch):
    losses = diffusion.sample_losses
    monkeypatch.setattr(diffusion, "sample_losses", lambda *args: losses(*args) * 1e3)
    AcceleratorState._reset_state(True)  # it keeps the first precision of a process
    try:
        assert train(trainer_data, tmp_path / "run", "--mixed_precision", "fp16") == 0
    finally:
        AcceleratorState._reset_state(True)
    saved = json.loads((tmp_path / "run" / "checkpoint-3" / "state.json").read_text())
    assert 0 < saved["scaler"]["scale"] < 65536 and saved["progress"]["skipped"] == []
    assert column(tmp_path / "run", "step") == [1, 2, 3, 4, 5, 6]  # no step was lost
    assert all(value.isfinite().all() for value in lora_of(tmp_path / "run").values())


def fail_beyond(limit: int, monkeypatch) -> None:
    predict = sd.predict

    def out_of_memory(unet, noisy, *args):
        if torch.is_grad_enabled() and len(noisy) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(unet, noisy, *args)

    monkeypatch.setattr(sd, "predict", out_of_memory)


def test_memory_that_is_free_is_used(trainer_data, tmp_path, caplog, capsys):
    words = ["--memory", "auto", "--gradient_checkpointing", "--dry_run"]
    command = [word for word in flags(trainer_data, tmp_path / "run", *words) if word != "--no-gradient_checkpointing"]
    at = command.index("--train_batch_size")
    del command[at : at + 2]
    assert train_lora.main(train_lora.parse_args(command)) == 0
    assert "gradient checkpointing is off" in caplog.text and "8 at once x 1 accumulated" in capsys.readouterr().out


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    trainer_data, reference, tmp_path, monkeypatch, caplog
):
    fail_beyond(2, monkeypatch)
    assert train(trainer_data, tmp_path / "run", "--train_batch_size", "auto") == 0
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert ["4 samples" in said[0], "2 samples" in said[1], len(said)] == [True, True, 2]
    assert np.allclose(column(tmp_path / "run", "loss"), column(reference, "loss"), rtol=1e-5)
    assert difference(reference, tmp_path / "run") < 1e-5


def test_where_not_even_one_sample_fits_the_run_ends(trainer_data, tmp_path, monkeypatch):
    fail_beyond(0, monkeypatch)
    with pytest.raises(UserError, match="^out of memory with one sample at once; .*--resolution"):
        train(trainer_data, tmp_path / "run")


def spoil(monkeypatch, sick) -> None:
    """NaN in the latents of the samples of which sick(sample, position) is true."""
    load = batches.load_batch

    def spoilt(draws, *args, **kwargs):
        batch = load(draws, *args, **kwargs)
        for i, draw in enumerate(draws):
            if draw.noise_key[0] == "noise" and sick(batch.samples[i], draw.noise_key[2]):
                batch.latents[i] = math.nan
        return batch

    monkeypatch.setattr(batches, "load_batch", spoilt)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_an_image_that_makes_nan_costs_its_steps_and_is_named(trainer_data, tmp_path, monkeypatch, caplog, precision):
    sick = read_split(trainer_data["prepared"], "train")[0]["id"]
    spoil(monkeypatch, lambda sample, position: sample == sick and position < 24)
    AcceleratorState._reset_state(True)  # it keeps the first precision of a process
    try:
        assert train(trainer_data, tmp_path / "run", "--mixed_precision", precision) == 0
    finally:
        AcceleratorState._reset_state(True)
    said = [record.getMessage() for record in caplog.records if "not finite" in record.getMessage()]
    assert said and all(f"samples {sick};" in one and "largest activation" in one for one in said)
    assert 1 <= len(said) <= 3 and all(value.isfinite().all() for value in lora_of(tmp_path / "run").values())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_steps"] == len(said)
    assert column(tmp_path / "run", "skipped_steps")[-1] == len(said)
    assert len(column(tmp_path / "run", "loss")) == 6 - len(said)  # a skipped step is no trained one


def test_endless_nan_is_skipped_three_times_and_then_stops(trainer_data, tmp_path, monkeypatch, caplog):
    spoil(monkeypatch, lambda sample, position: position >= 4 * 8)
    with pytest.raises(
        UserError, match=r"^step 7: the loss is not finite.*samples .*largest activation (inf|nan) in"
    ) as caught:
        train(trainer_data, tmp_path / "run", "--max_train_steps", 30)
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records if "not finite" in record.getMessage()]
    assert said == ["skip"] * 3
    assert "skipped before: [4, 5, 6]" in str(caught.value)
    (newest,) = checkpoints.list_checkpoints(tmp_path / "run")
    assert newest.name == "checkpoint-3" and all(value.isfinite().all() for value in lora_of(newest).values())
    assert not (tmp_path / "run" / LORA).exists()


def test_on_nonfinite_stop_ends_the_run_at_once(trainer_data, halfway, monkeypatch):
    spoil(monkeypatch, lambda sample, position: position // 8 == 4)
    with pytest.raises(UserError, match="^step 4: the loss is not finite"):
        train(trainer_data, halfway, "--on_nonfinite", "stop")


# Where a folder's run stands


def test_a_finished_run_does_nothing_and_more_steps_continue_it(trainer_data, reference, copy, tmp_path, capsys):
    before = snapshot(copy)
    assert train(trainer_data, copy, "--logging_steps", 2) == 0  # of no consequence for the training, and so no error
    assert ": finished with 6 steps; nothing was changed" in capsys.readouterr().out
    with pytest.raises(UserError, match="--max_train_steps 4: .* already has 6 steps"):
        train(trainer_data, copy, "--max_train_steps", 4)
    assert snapshot(copy) == before
    flipped = bytearray((copy / LORA).read_bytes())
    flipped[-9] ^= 1
    (copy / LORA).write_bytes(flipped)
    assert train(trainer_data, copy) == 0  # the result is written anew from the checkpoint
    assert same_bytes(copy, reference) and column(copy, "loss") == column(reference, "loss")
    assert train(trainer_data, copy, "--max_train_steps", 8) == 0
    assert "resuming from" in capsys.readouterr().out
    assert train(trainer_data, tmp_path / "eight", "--max_train_steps", 8) == 0
    assert same_bytes(copy, tmp_path / "eight") and column(copy, "loss") == column(tmp_path / "eight", "loss")
    assert train(trainer_data, copy, "--overwrite", "--seed", 1, "--max_train_steps", 1) == 0
    assert [path.name for path in checkpoints.list_checkpoints(copy)] == ["checkpoint-1"]
    assert not list(tmp_path.glob("run.*"))  # all of it was the run's own, and is deleted


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 100)])
def test_a_damaged_result_without_a_checkpoint_is_an_error(trainer_data, copy, damage):
    damage(copy / LORA)
    for path in checkpoints.list_checkpoints(copy):
        shutil.rmtree(path)
    with pytest.raises(UserError, match=f"{LORA} is missing or damaged, and there is no checkpoint"):
        train(trainer_data, copy)


def test_settings_that_change_the_training_are_an_error_that_shows_them(trainer_data, copy):
    with pytest.raises(UserError, match=r"other settings \(rank was 4, now 8\)"):
        train(trainer_data, copy, "--rank", 8)
    with pytest.raises(UserError, match="seed was 0, now 5"):
        train(trainer_data, copy, "--seed", 5)


def test_changed_data_is_an_error(trainer_data, tmp_path):
    folder = Path(shutil.copytree(trainer_data["folder"], tmp_path / "images"))
    words = ["--train_data_dir", folder, "--max_train_steps"]
    assert train(trainer_data, tmp_path / "run", *words, 1) == 0
    (folder / "3.txt").write_text("something else")
    with pytest.raises(UserError, match="the data has changed"):
        train(trainer_data, tmp_path / "run", *words, 2)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "manifest"])
def test_a_damaged_checkpoint_is_named_and_passed_over(trainer_data, reference, copy, caplog, damage):
    forget_after(copy, 6)
    path = copy / "checkpoint-6" / ("MANIFEST.json" if damage == "manifest" else "optimizer.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-9])
    with pytest.raises(UserError, match="--resume_from_checkpoint checkpoint-6: damaged"):
        train(trainer_data, copy, "--resume_from_checkpoint", "checkpoint-6")
    if damage == "flipped":
        assert train(trainer_data, copy) == 0
        assert "checkpoint-6 is skipped: optimizer.safetensors has changed" in caplog.text
        assert same_bytes(reference, copy)


def test_a_checkpoint_that_is_asked_for_and_missing_is_an_error(trainer_data, copy):
    (copy / "summary.json").unlink()
    with pytest.raises(
        UserError, match="checkpoint-5: no such checkpoint; in .* there are: checkpoint-6, checkpoint-3"
    ):
        train(trainer_data, copy, "--resume_from_checkpoint", "checkpoint-5")
    before = snapshot(copy)
    for wanted, said in (("checkpoint-5", "no such"), (str(copy / "checkpoint-3"), "--overwrite would remove it")):
        with pytest.raises(UserError, match=said):
            train(trainer_data, copy, "--overwrite", "--resume_from_checkpoint", wanted)
    assert snapshot(copy) == before


def test_the_limit_of_checkpoints_keeps_the_newest_and_best(trainer_data, tmp_path):
    words = ["--checkpointing_steps", 2, "--checkpoints_total_limit", 2, "--validation_steps", 2]
    assert train(trainer_data, tmp_path / "run", *words, "--max_train_steps", 7) == 0
    # The last step's own takes the place of none that diffusers keeps.
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-6", "checkpoint-4"]
    assert (tmp_path / "run" / LORA).is_file()
    assert (tmp_path / "run" / "best" / LORA).is_file()


# Signals, in this process; others are in test_train_lora_survives.py


def send_in(monkeypatch, module, name: str, call: int, number: int, times: int = 1) -> None:
    """The signal arrives as the n-th call of a function begins."""
    function, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        for _ in range(times if len(calls) == call else 0):
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on(
    trainer_data, reference, tmp_path, monkeypatch, number, code
):
    with monkeypatch.context() as patch:
        send_in(patch, sd, "predict", 5, number)
        assert train(trainer_data, tmp_path / "run") == code
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-5", "checkpoint-3"]
    assert not (tmp_path / "run" / LORA).exists()
    assert train(trainer_data, tmp_path / "run") == 0
    assert same_bytes(reference, tmp_path / "run")
    assert column(reference, "loss") == column(tmp_path / "run", "loss")


def test_a_signal_during_validation_too_and_the_validation_is_done_again(trainer_data, tmp_path, monkeypatch):
    words = ["--validation_steps", 2, "--num_validation_images", 2]
    assert train(trainer_data, tmp_path / "whole", *words) == 0
    with monkeypatch.context() as patch:
        send_in(patch, sampler, "generate_images", 3, signal.SIGTERM)
        assert train(trainer_data, tmp_path / "run", *words) == 143
    assert not (tmp_path / "run/validation/step-000002.png").exists()
    assert train(trainer_data, tmp_path / "run", *words) == 0
    assert same_bytes(tmp_path / "whole", tmp_path / "run")
    for name in ("step-000000.png", "step-000002.png", "step-000006.png"):
        grids = [(tmp_path / run / "validation" / name).read_bytes() for run in ("whole", "run")]
        assert grids[0] == grids[1]
    assert column(tmp_path / "whole", "val_loss") == column(tmp_path / "run", "val_loss")


def test_a_second_interrupt_stops_at_once(trainer_data, tmp_path, monkeypatch):
    send_in(monkeypatch, sd, "predict", 5, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(trainer_data, tmp_path / "run")
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-3"]


# Files that fail


def test_an_image_that_vanishes_during_the_run_is_named(trainer_data, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(trainer_data["folder"], tmp_path / "images"))
    rotate = checkpoints.rotate_checkpoints

    def then_lose(*args):
        rotate(*args)
        for path in folder.glob("*.png"):
            path.unlink()

    monkeypatch.setattr(checkpoints, "rotate_checkpoints", then_lose)
    with pytest.raises((UserError, OSError), match=r"images/\d+\.png"):
        train(trainer_data, tmp_path / "run", "--train_data_dir", folder, "--no-cache_latents")
    assert checkpoints.find_checkpoint(tmp_path / "run", "latest").name == "checkpoint-3"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_is_whole(trainer_data, small_disk, reference):
    words = ["--checkpointing_steps", 1]
    with pytest.raises((UserError, OSError), match=r"checkpoint-\d+ can't be written \(No space left on device\)"):
        train(trainer_data, small_disk / "run", *words, "--max_train_steps", 40)
    last = checkpoints.find_checkpoint(small_disk / "run", "latest")
    assert last and checkpoints.checkpoint_damage(last) is None
    assert not list((small_disk / "run").glob(".*partial"))
    shutil.rmtree(checkpoints.list_checkpoints(small_disk / "run")[-1])
    shutil.rmtree(checkpoints.list_checkpoints(small_disk / "run")[-1])
    more = int(last.name.rpartition("-")[2]) + 1
    assert train(trainer_data, small_disk / "run", "--max_train_steps", more) == 0
    assert checkpoints.find_checkpoint(small_disk / "run", "latest") is not None


def test_a_folder_that_becomes_read_only_ends_the_run_in_one_line(trainer_data, small_disk, monkeypatch):
    rotate = checkpoints.rotate_checkpoints

    def then_lock(*args):
        rotate(*args)
        subprocess.run(["mount", "-o", "remount,ro,size=1500k", small_disk], check=True)

    monkeypatch.setattr(checkpoints, "rotate_checkpoints", then_lock)
    with pytest.raises((UserError, OSError), match="(?i)read-only file system"):
        train(trainer_data, small_disk / "run")
    assert checkpoints.find_checkpoint(small_disk / "run", "latest").name == "checkpoint-3"
    with pytest.raises(UserError, match="--output_dir .*(?i:read-only file system)"):
        train(trainer_data, small_disk / "other")


# The result


def with_lora(model: Path, lora: Path, **name) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.load_lora_weights(lora, **name)
    return pipeline


@pytest.mark.parametrize(
    "family, words",
    [
        ("sd1", "--use_ema --ema_decay 0.5"),
        ("sd2", "--use_rslora --train_text_encoder --text_encoder_lr 3e-3 --snr_gamma 5"),
        ("sdxl", "--use_dora --train_text_encoder --caption_dropout 0.5"),
    ],
)
def test_every_family_trains_resumes_and_gives_its_images_in_diffusers(trainer_data, tmp_path, family, words, caplog):
    prompts = ["a photo of red boots", "a photo of blue shoes"]
    words = [*words.split(), "--max_train_steps", 4, "--checkpointing_steps", 2, "--validation_steps", 4]
    words += ["--num_validation_images", 2, "--validation_prompt", prompts[0], "--validation_prompt", prompts[1]]
    out = tmp_path / "whole"
    assert train(trainer_data, out, *words, family=family) == 0
    shutil.copytree(out, tmp_path / "broken")
    forget_after(tmp_path / "broken", 2)
    assert train(trainer_data, tmp_path / "broken", *words, family=family) == 0
    assert same_bytes(out, tmp_path / "broken")
    text = any("text_encoder" in key for key in lora_of(out))
    assert text == ("--train_text_encoder" in words)
    unused = "text_encoder.text_model.encoder.layers.2." if family == "sdxl" else "none"  # it takes the layer before
    assert all(value.abs().max() > 0 for key, value in lora_of(out).items() if not key.startswith(unused))

    expected = cells(out / "validation/step-000004.png", 2, 16)
    assert np.abs(expected - cells(out / "validation/step-000000.png", 2, 16)).max() > 3  # it has an effect
    assert np.abs(drawn_by_diffusers(with_lora(trainer_data[family], out), prompts, 16) - expected).max() <= 1
    kohya, best = out / "whole_kohya.safetensors", out / "best/whole_best_kohya.safetensors"
    assert kohya.exists() == best.exists() == ("--use_dora" not in words)
    assert ("no file for A1111 and ComfyUI (--output_kohya_format) is written" in caplog.text) == (not kohya.exists())
    if kohya.exists():
        pipeline = with_lora(trainer_data[family], out, weight_name=kohya.name)
        assert np.abs(drawn_by_diffusers(pipeline, prompts, 16) - expected).max() <= 1
        facts = read_lora(kohya)[1]
        assert facts["modelspec.prediction_type"] == ("v" if family == "sd2" else "epsilon")
        began = json.loads((tmp_path / "broken/checkpoint-4/state.json").read_text())["progress"]["began"]
        assert began == float(facts["ss_training_started_at"]) == pytest.approx(time.time(), abs=1000)


def add_as_comfyui_does(pipeline: DiffusionPipeline, path: Path) -> None:
    """A LoKr or LoHa of kohya's format added to the weights: alpha counts only where a factor is a product."""
    state, unet = load_file(path), pipeline.unet
    layers = {f"lora_unet_{name.replace('.', '_')}": layer for name, layer in unet.named_modules()}
    for name in {key.partition(".")[0] for key in state}:
        of = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")}
        if "lokr_w1" in of:
            first = of["lokr_w1"][..., None, None] if of["lokr_w2"].ndim == 4 else of["lokr_w1"]
            delta = torch.kron(first, of["lokr_w2"].contiguous())
        else:
            delta = (of["hada_w1_a"] @ of["hada_w1_b"]) * (of["hada_w2_a"] @ of["hada_w2_b"])
            delta *= of["alpha"] / of["hada_w1_b"].shape[0]
        layers[name].weight.data += delta.reshape(layers[name].weight.shape)


LOHA = pytest.param("--adapter loha --lora_alpha 40", marks=pytest.mark.very_slow)


@pytest.mark.parametrize("words", ["--adapter lokr --lokr_factor 2", LOHA])
def test_a_lokr_and_a_loha_resume_and_give_their_images_in_diffusers_peft_and_comfyui(trainer_data, tmp_path, words):
    prompts, out = ["a photo of red boots", "a photo of blue shoes"], tmp_path / "whole"
    words = [*words.split(), "--lora_layers", "to_q", "to_k", "to_out.0", "conv1", "--learning_rate", 3e-2]
    words += ["--checkpointing_steps", 2, "--max_train_steps", 4, "--validation_steps", 4, "--validation_prompt"]
    words += [prompts[0], "--validation_prompt", prompts[1], "--num_validation_images", 2]
    assert train(trainer_data, out, *words) == 0
    shutil.copytree(out, tmp_path / "broken")
    forget_after(tmp_path / "broken", 2)
    assert train(trainer_data, tmp_path / "broken", *words) == 0
    assert same_bytes(out, tmp_path / "broken")
    expected = cells(out / "validation/step-000004.png", 2, 16)
    assert np.abs(expected - cells(out / "validation/step-000000.png", 2, 16)).max() > 3  # it has an effect

    by_hand, ours = (DiffusionPipeline.from_pretrained(trainer_data["sd1"], safety_checker=None) for _ in range(2))
    add_as_comfyui_does(by_hand, out / "whole_kohya.safetensors")
    apply_loras(ours, [Lora(out / LORA, 0.75), Lora(out / LORA, 0.25)])  # as generate.py does
    for pipeline in (card_pipeline(out), by_hand, ours):
        assert np.abs(drawn_by_diffusers(pipeline, prompts, 16) - expected).max() <= 1
    again = tmp_path / "again"
    assert train(trainer_data, again, *words, "--init_lora", out, "--max_train_steps", 1, "--validation_steps", 0) == 0
    assert tensors_equal(again, out)
    with pytest.raises(
        UserError, match=r"--init_lora .*: a Lo(Kr|Ha), and --adapter is lora; give --adapter lo(kr|ha)"
    ):
        train(trainer_data, tmp_path / "other", "--init_lora", out)
    save_file({"lora_unet_conv_in.dora_scale": torch.ones(1)}, tmp_path / "dora.safetensors")  # as kohya's are
    with pytest.raises(UserError, match=r"a Lo(Kr|Ha) is not mixed with a DoRA, .*/dora.safetensors; give one"):
        apply_loras(ours, [Lora(out / LORA, 1), Lora(tmp_path / "dora.safetensors", 1)])


def test_the_file_says_what_it_is_and_the_card_too(trainer_data, reference):
    with safe_open(reference / LORA, framework="pt") as file:
        facts = file.metadata()
    settings = json.loads(facts["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"]) == (4, 8) and (facts["rank"], facts["alpha"]) == (
        "4",
        "8.0",
    )
    assert facts["base_model"] == str(trainer_data["sd1"])
    fingerprint = json.loads((reference / "environment.json").read_text())["dataset"]
    assert facts["data_fingerprint"] == fingerprint and len(fingerprint) == 64
    card = (reference / "README.md").read_text()
    assert fingerprint in card and f"| `{LORA}` | diffusers" in card and "| `run_kohya.safetensors` | ComfyUI" in card
    assert (facts["resolution"], facts["prediction_type"]) == ("16", "epsilon") and int(facts["images"]) > 0
    assert (reference / "loss_curve.png").stat().st_size > 5000


# Does it learn


def test_best_is_the_step_of_the_lowest_held_out_loss_and_training_stops_early(
    trainer_data, tmp_path, monkeypatch, capsys
):
    given = iter([5.0, 4.0, 4.5, 4.2, 4.3])
    monkeypatch.setattr(validation, "held_out_loss", lambda *args: next(given))
    words = ["--validation_steps", 1, "--early_stopping_patience", 2, "--checkpointing_steps", 1]
    assert train(trainer_data, tmp_path / "run", *words, "--max_train_steps", 20) == 0
    assert column(tmp_path / "run", "val_loss") == [5.0, 4.0, 4.5, 4.2]
    best = tmp_path / "run/best"
    assert json.loads((best / "state.json").read_text()) == {"step": 1, "val_loss": 4.0}
    assert same_bytes(best, tmp_path / "run/checkpoint-1") and not same_bytes(best, tmp_path / "run/checkpoint-3")
    summary, why = json.loads((tmp_path / "run/summary.json").read_text()), "no better held-out loss in 2 validations"
    assert summary["steps"] == 3 and summary["stopped_early"] == f"{why}; the best was 4 at step 1"
    assert why in capsys.readouterr().out and why in (tmp_path / "run/README.md").read_text()
    assert train(trainer_data, tmp_path / "run", *words, "--max_train_steps", 20) == 0
    said = capsys.readouterr().out
    assert why in said and "To train longer, give a larger --early_stopping_patience, or none" in said
    words[3] = 3  # the hint holds
    assert train(trainer_data, tmp_path / "run", *words, "--max_train_steps", 20) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 4


def test_another_vae_encodes_and_decodes_and_one_that_does_not_fit_is_refused(trainer_data, reference, tmp_path):
    vae = Path(shutil.copytree(trainer_data["sd1"] / "vae", tmp_path / "vae"))
    (file,) = vae.glob("*.safetensors")
    save_file({name: weight * 1.1 for name, weight in load_file(file).items()}, file, {"format": "pt"})
    words = ["--max_train_steps", 1, "--validation_steps", 1, "--num_validation_images", 1]
    words += ["--validation_prompt", "boots", "--pretrained_vae_model_name_or_path"]
    assert train(trainer_data, tmp_path / "run", *words, vae) == 0
    assert column(tmp_path / "run", "loss") != column(reference, "loss")[:1]
    shown = cells(tmp_path / "run/validation/step-000000.png", 1, 16)  # the LoRA has no effect yet
    pipeline = DiffusionPipeline.from_pretrained(trainer_data["sd1"], vae=AutoencoderKL.from_pretrained(vae))
    assert np.abs(drawn_by_diffusers(pipeline, ["boots"], 16) - shown).max() <= 1
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"latent_channels": 8}))
    for wrong, message in [(tmp_path / "nowhere", "no such folder"), (vae, "its latents are not those of")]:
        with pytest.raises(UserError, match=f"^--pretrained_vae_model_name_or_path {wrong}: {message}"):
            train(trainer_data, tmp_path / "refused", *words, wrong, "--dry_run")


def test_validation_at_step_0_and_every_n_goes_into_grids_metrics_and_tensorboard(trainer_data, tmp_path, capsys):
    words = [
        "--validation_steps",
        2,
        "--num_validation_images",
        3,
        "--report_to",
        "tensorboard",
        "--checkpointing_steps",
        1,
    ]
    out = tmp_path / "run"
    assert train(trainer_data, out, *words, "--max_train_steps", 3, "--learning_rate", 1) == 0
    shown = capsys.readouterr().err  # 64 held-out samples, and 3 images of 3 guided steps
    assert all(f"validation of step {step}: 82/82 passes (100 %)" in shown for step in (0, 2, 3))
    grids = sorted(path.name for path in (out / "validation").iterdir())
    assert grids == ["step-000000.png", "step-000002.png", "step-000003.png"]
    records = metrics_log.read_metrics(out / "metrics.jsonl")
    wanted = {"step", "loss", "loss_smooth", "lr", "grad_norm", "samples_per_second", "memory_gib", "seconds_data"}
    assert all(wanted <= one.keys() for one in records if "loss" in one)
    assert any(f"loss_q{n}" in one for one in records for n in (1, 2, 3, 4))
    assert {"seconds_step", "seconds_validation", "seconds_checkpoint"} <= set().union(*records)
    assert column(out, "validation/invalid_images") == [0, 0, 0] and len(set(column(out, "val_loss"))) == 3
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((out / "logs").rglob("events*")).parent)).Reload()
    assert [one.step for one in events.Scalars("val_loss")] == [0, 2, 3] and events.Tags()["images"]


def test_the_speed_counts_the_steps_before_a_validation_too(trainer_data, tmp_path):
    words = ["--validation_steps", 2, "--num_validation_images", 1, "--logging_steps", 3, "--max_train_steps", 3]
    assert train(trainer_data, tmp_path / "run", *words) == 0
    records = metrics_log.read_metrics(tmp_path / "run/metrics.jsonl")
    (steps,) = [one for one in records if "loss" in one]
    assert [one["step"] for one in records if "seconds_step" in one] == [3]
    seconds = steps["seconds_step"] + steps["seconds_data"]
    assert 3 * 8 / steps["samples_per_second"] == pytest.approx(seconds, abs=0.002)  # both are rounded to 1 ms


def test_black_images_are_counted_and_reported(trainer_data, tmp_path, monkeypatch, caplog):
    decode = AutoencoderKL.decode

    def nan(self, *args, **kwargs):
        output = decode(self, *args, **kwargs)
        output[0].fill_(math.nan)
        return output

    monkeypatch.setattr(AutoencoderKL, "decode", nan)
    words = ["--validation_steps", 1, "--num_validation_images", 2, "--max_train_steps", 1]
    assert train(trainer_data, tmp_path / "run", *words) == 0
    assert column(tmp_path / "run", "validation/invalid_images") == [2, 2]
    assert "2 of 2" in caplog.text and "black" in caplog.text


def test_what_changes_the_objective_changes_the_loss(trainer_data, reference, tmp_path):
    last = column(reference, "loss")[0]
    velocity = "--prediction_type v_prediction"
    for words in (
        "--loss_type huber",
        "--snr_gamma 1",
        "--noise_offset 0.5",
        velocity,
        f"{velocity} --zero_terminal_snr",
    ):
        out = tmp_path / words.replace(" ", "")
        assert train(trainer_data, out, *words.split(), "--max_train_steps", 1) == 0
        assert abs(column(out, "loss")[0] / last - 1) > 1e-4
        last = column(out, "loss")[0]
    assert read_lora(out, facts_only=True)[1]["zero_terminal_snr"] == "True"  # which generate.py asks for


@pytest.mark.parametrize("more", [[], ["--train_text_encoder"]])
def test_a_clip_skip_holds_in_training_and_validation_and_is_asked_for_in_generation(trainer_data, tmp_path, more):
    out, model = tmp_path / "run", trainer_data["sdxl"]
    words = ["--clip_skip", 1, "--max_sequence_length", 77, "--validation_prompt", "red boots", *more]
    words += ["--num_validation_images", 1, "--validation_steps", 2, "--max_train_steps", 2]
    assert train(trainer_data, out, *words, family="sdxl") == 0
    shown = cells(out / "validation/step-000002.png", 1, 16)
    assert np.abs(drawn_by_diffusers(with_lora(model, out), ["red boots"], 16, clip_skip=1) - shown).max() <= 1
    assert np.abs(drawn_by_diffusers(with_lora(model, out), ["red boots"], 16) - shown).max() > 1
    assert 'pipeline(prompt="red boots", clip_skip=1)' in (out / "README.md").read_text()
    facts = read_lora(out / "run_kohya.safetensors", facts_only=True)[1]
    assert [facts[f"ss_{name}"] for name in ("clip_skip", "max_token_length")] == ["2", "75"]  # as kohya counts
    asked = ["--lora", str(out), "--prompt", "red boots", "--num_images", "1"]
    with pytest.raises(UserError, match="trained with --clip_skip 1; add it here, too"):
        generate.find_parts(generate.parse_args(asked))
    assert generate.find_parts(generate.parse_args([*asked, "--clip_skip", "1"])).reading.clip_skip == 1


def test_captions_beyond_77_tokens_are_trained_on(trainer_data, tmp_path, caplog):
    losses, data = [], Path(shutil.copytree(trainer_data["folder"], tmp_path / "data"))
    for caption in data.glob("*.txt"):
        caption.write_text("red leather boots with a low heel " * 3 + caption.read_text())
    for words in ([], ["--max_sequence_length", 152]):
        out = tmp_path / f"run{len(words)}"
        assert train(trainer_data, out, "--train_data_dir", data, "--max_train_steps", 1, *words) == 0
        losses += column(out, "loss")
    assert losses[0] != losses[1] and "limit of 32 tokens" in caplog.text and "limit of 62 tokens" not in caplog.text
    lora = lora_mix.parse_lora(str(out))
    lora_mix.check_reading(lora, models.TextReading(152))
    assert "trained with" not in caplog.text
    lora_mix.check_reading(lora, models.TextReading())
    assert "trained with --max_sequence_length 152; images differ" in caplog.text
    with pytest.raises(UserError, match="--lora .*: trained without --clip_skip; leave it out here, too"):
        lora_mix.check_reading(lora, models.TextReading(152, clip_skip=1))


@pytest.mark.slow
def test_several_data_sets_train_resume_and_stand_on_the_card_with_their_repeats(trainer_data, tmp_path, capsys):
    sets = ["--train_data_dir", trainer_data["prepared"], f"{trainer_data['folder']}:2", "--held_out", 0.2]
    sets += ["--caption_prefix", "", "in a shop,", "--validation_steps", 3, "--shuffle_tags", 2]
    whole, run, masks = tmp_path / "whole", tmp_path / "run", tmp_path / "masks"
    assert train(trainer_data, whole, *sets) == 0
    masks.mkdir()
    for path in trainer_data["folder"].glob("*.png"):
        mask = Image.new("L", Image.open(path).size, 255)
        mask.paste(0, (0, 0, mask.width // 2, mask.height))
        mask.save(masks / path.name)
    masked = [*sets, "--mask_loss", "none", masks, "--max_train_steps", 1]
    assert train(trainer_data, tmp_path / "masked", *masked) == 0
    assert column(tmp_path / "masked", "loss")[0] != pytest.approx(column(whole, "loss")[0], rel=1e-4)
    assert "mask loss | none, " in (tmp_path / "masked/README.md").read_text()
    shutil.copytree(whole, run)
    forget_after(run, 3)
    assert train(trainer_data, run, *sets) == 0 and same_bytes(whole, run)
    assert f"{trainer_data['prepared']}, {trainer_data['folder']}:2" in (run / "README.md").read_text()
    images = int(read_lora(run, facts_only=True)[1]["images"])
    held_out = re.search(r"(\d+) training, (\d+) held-out", (run / "README.md").read_text())
    folder = 14 - (int(held_out[2]) - len(read_split(trainer_data["prepared"], "val")))
    capsys.readouterr()
    assert train(trainer_data, tmp_path / "dry", *sets, "--dry_run") == 0
    assert f"{images} images, {images + folder} with repeats, {held_out[2]} held out" in capsys.readouterr().out
    with pytest.raises(UserError, match="train_data_dir was .*:2.*now "):
        train(trainer_data, run, *sets, "--train_data_dir", trainer_data["prepared"], trainer_data["folder"])


def test_a_command_line_for_the_diffusers_script_runs_unchanged(trainer_data, tmp_path, monkeypatch):
    words = (
        f"--pretrained_model_name_or_path={trainer_data['sd1']} --train_data_dir={trainer_data['folder']} "
        "--caption_column=text --dataloader_num_workers=8 --resolution=16 --center_crop --random_flip "
        "--train_batch_size=1 --gradient_accumulation_steps=4 --max_train_steps=3 --learning_rate=1e-04 "
        f"--max_grad_norm=1 --lr_scheduler=cosine --lr_warmup_steps=0 --output_dir={tmp_path / 'run'} "
        "--report_to=tensorboard --checkpointing_steps=500 --validation_prompt=boots --seed=1337 --rank=4 "
        "--mixed_precision=no --num_validation_images=1 --validation_epochs=1 --gradient_checkpointing "
        "--resume_from_checkpoint=latest --logging_dir=tracked --snr_gamma=5.0 --adam_weight_decay=1e-2"
    )
    from tests.tiny_runs import as_in_a_process

    with as_in_a_process():
        assert train_lora.main(train_lora.parse_args(words.split())) == 0
    assert list((tmp_path / "run" / "tracked").rglob("events*")) and (tmp_path / "run" / LORA).is_file()


# What a user does wrong


@pytest.mark.parametrize(
    "words, said",
    [
        ("--train_data_dir {tmp}/nowhere", "--train_data_dir .*nowhere: no such folder"),
        ("--train_data_dir {tmp}/empty", "--train_data_dir .*empty"),
        ("--train_data_dir {tmp}/silent", "2 of 2 images have no caption.*--caption_column"),
        ("--train_data_dir {tmp}/broken", r"broken/1\.png"),
        ("--resolution 18", "--resolution 18: this model takes multiples of 4, such as 16"),
        ("--pretrained_model_name_or_path {tmp}/empty", "--pretrained_model_name_or_path .*empty: no model_index.json"),
        ("--pretrained_model_name_or_path ./nothing", "--pretrained_model_name_or_path ./nothing: no such folder"),
        ("--lora_layers to_k to_x", "--lora_layers to_x: .* no layer of that name"),
        ("--report_to paper", "--report_to paper: give tensorboard"),
        ("--output_dir {tmp}/silent", "--output_dir .*silent: holds files that no script wrote"),
        (
            "--effective_batch_size 12 --gradient_accumulation_steps 1",
            "--train_batch_size 8 .* not --effective_batch_size 12",
        ),
        ("--validation_steps 1 --early_stopping_patience 2 --train_data_dir {folder}", "--early_stopping_patience 2"),
    ],
)
def test_a_mistake_is_told_by_the_name_of_its_flag(trainer_data, tmp_path, words, said):
    for name in ("empty", "silent", "broken"):
        (tmp_path / name).mkdir()
    for name in ("silent", "broken"):
        for i in (1, 2):
            shutil.copy(trainer_data["folder"] / f"{i}.png", tmp_path / name)
    (tmp_path / "broken/1.txt").write_text("boots")
    (tmp_path / "broken/2.txt").write_text("boots")
    (tmp_path / "broken/1.png").write_bytes(b"no image")
    words = words.format(tmp=tmp_path, folder=trainer_data["folder"]).split()
    with pytest.raises(UserError, match=said) as caught:
        train(trainer_data, tmp_path / "run", *words)
    assert "\n" not in str(caught.value).strip()


def test_a_missing_package_is_noticed_by_a_dry_run(trainer_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="--optimizer adamw8bit: bitsandbytes can't be used .*requirements-cuda.txt"):
        train(trainer_data, tmp_path / "run", "--use_8bit_adam", "--dry_run")


def test_a_mistyped_flag_can_be_mended_and_the_command_run_again(trainer_data, tmp_path):
    with pytest.raises(UserError):
        train(trainer_data, tmp_path / "run", "--train_data_dir", tmp_path / "nowhere")
    assert train(trainer_data, tmp_path / "run", "--max_train_steps", 1) == 0


@pytest.mark.parametrize(
    "words, said",
    [
        ("--rank 0", "--rank"),
        ("--learning_rate -1", "--learning_rate"),
        ("--reslution 16", "--reslution"),
        ("--hub_token x", "HF_TOKEN"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_in_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        train_lora.parse_args(words.split())
    told = capsys.readouterr().err
    assert caught.value.code == 2 and said in told and told.count("\n") == 1


def test_reports_in_words_change_no_byte_of_the_training_even_where_they_fail(
    trainer_data, reference, tmp_path, monkeypatch, caplog
):
    out = tmp_path / "run"
    assert train(trainer_data, out, "--report_every", 2, "--lang", "pt", "--max_train_steps", 3) == 0
    assert "O treino terminou, após 3 passos" in (out / "report.md").read_text()
    assert column(out, "estimated_memory_gib")[0] > 0
    monkeypatch.setattr("train_lora.write_report", lambda folder, language: 1 / 0)
    assert train(trainer_data, out, "--report_every", 1) == 0  # resumed, with other settings of the report
    assert same_bytes(out, reference)
    assert "--report_every 1: division by zero; training continues" in caplog.text


def test_a_language_without_a_report_is_an_error(trainer_data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_lora.parse_args(flags(trainer_data, tmp_path, "--lang", "pt"))
    assert "--lang pt: does nothing without --report_every" in capsys.readouterr().err


# A LoRA to continue from


def tensors_equal(one: Path, other: Path) -> bool:
    first, second = load_file(one / LORA), load_file(other / LORA)
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_run_begins_as_the_lora_that_is_given_and_refuses_to_resume_with_another(trainer_data, reference, tmp_path):
    """The rate of the first step of a warm-up is 0, so what is saved after it is what the run began with."""
    for number, given in enumerate((reference, reference / f"{reference.name}_kohya.safetensors")):
        first = tmp_path / f"first{number}"
        assert train(trainer_data, first, "--init_lora", given, "--max_train_steps", 1) == 0
        assert tensors_equal(first, reference) and column(first, "loss") != column(reference, "loss")[:1]
    given = Path(shutil.copy(reference / LORA, tmp_path / "given.safetensors"))
    assert train(trainer_data, tmp_path / "whole", "--init_lora", given) == 0
    assert re.search(rf"{given} \(sha256 [0-9a-f]{{16}}\)", read_lora(tmp_path / "whole")[1]["init_lora"])
    assert f"| init lora | {given}" in (tmp_path / "whole" / "README.md").read_text()
    broken = Path(shutil.copytree(tmp_path / "whole", tmp_path / "broken"))
    forget_after(broken, 3)
    assert train(trainer_data, broken, "--init_lora", given) == 0
    assert same_bytes(tmp_path / "whole", broken)
    forget_after(broken, 3)
    save_file({key: value * 2 for key, value in load_file(given).items()}, given, safe_open(given, "pt").metadata())
    with pytest.raises(UserError, match="since then the init_lora has changed"):
        train(trainer_data, broken, "--init_lora", given)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--rank", 2], "of rank 4, and --rank is 2; give --rank 4"),
        (["--lora_alpha", 4], "scaled by 2, and --lora_alpha 4 scales by 1; give --lora_alpha 8"),
        (["--use_rslora"], "scaled by 2, and --lora_alpha 8 scales by 4; give --lora_alpha 4"),
        (["--use_dora"], "not a DoRA; leave --use_dora out"),
        (["--train_text_encoder"], "has no layers of a text encoder; leave --train_text_encoder out"),
        (["--lora_layers", "to_q"], "it also has unet.*; give --lora_layers to_k to_out.0 to_q to_v"),
        (["--pretrained_model_name_or_path", "demo"], "trained on .*sd1, and --pretrained.* is demo"),
    ],
)
def test_a_lora_to_continue_from_with_other_settings_names_the_flag(trainer_data, reference, tmp_path, words, said):
    with pytest.raises(UserError, match=f"^--init_lora {reference}/{LORA}: .*{said}"):
        train(trainer_data, tmp_path / "run", "--init_lora", reference, *words)
    assert not (tmp_path / "run").exists()


def test_a_lora_to_continue_from_whose_scales_or_settings_are_unknown_is_refused(trainer_data, reference, tmp_path):
    given, (state, facts) = tmp_path / "given.safetensors", read_lora(reference)
    settings = json.loads(facts["lora_adapter_metadata"]) | {"unet.alpha_pattern": {"to_q": 2}}  # as diffusers writes
    save_file(state, given, facts | {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(UserError, match=f"^--init_lora {given}: its layers have several ranks or alphas"):
        train(trainer_data, tmp_path / "run", "--init_lora", given)
    save_file({key.replace(".lora_A.weight", ".lokr_w1"): state[key] for key in state if "lora_A" in key}, given)
    with pytest.raises(UserError, match=f"^--init_lora {given}: of another program; of a LoKr or LoHa give {LORA}"):
        train(trainer_data, tmp_path / "run", "--init_lora", given, "--adapter", "lokr")
    found = init_lora.Found({"text_encoder.text_model.q.lora_A.weight": torch.ones(4, 4)}, set(), {})
    assert "text encoder; give another" in init_lora.find_difference(found, Adapter(4, 4), {"transformer.q"}, False)
    whole = init_lora.Found({"unet.conv_in.bias": torch.ones(4)}, set(), {})
    assert init_lora.find_difference(whole, Adapter(4, 4), {"unet.q"}, False) == "holds no LoRA; give another file"
    assert "add --train_text_encoder" in init_lora.find_difference(found, Adapter(4, 4), {"unet.q"}, False)
