"""--shard: two processes that each hold half of all weights train what one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train_lora
from tests.tiny_runs import PRIOR, ROOT, column, difference, flags, launch, subject_flags, teach, train
from training import sample_plan
from training.sample_plan import Draw
from training.setup import settle_sharding
from utils.cli import UserError


def launch_fsdp(script: str, words: list[str]) -> str:
    """What two processes print that `accelerate launch` starts, as a user does."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/fsdp.yaml"]
    command += ["--main_process_port", "0", script, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_each_process_holds_half_of_weights_gradients_and_optimizer_state(trainer_data, tmp_path):
    said = launch("tests.held_shares", [str(trainer_data["sd1"])], tmp_path / "told")
    found = sorted(json.loads(line) for line in said.splitlines() if line.startswith("["))
    assert len(found) == 12
    for (name, first, *one), (same, second, *other) in zip(found[::2], found[1::2]):
        assert (name, first, second) == (same, 0, 1)
        (divided, half, whole), (_, rest, _) = one, other
        assert divided and half + rest == whole
        assert max(half, rest) <= 0.55 * whole  # an odd number of rows has a larger half


@pytest.mark.very_slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_two_processes_with_half_the_weights_each_train_the_same_lora(trainer_data, tmp_path, family):
    """Loss, checkpoints, average, best and result; images of all shapes; then one process goes on, and two again."""
    words = ["--train_data_dir", trainer_data["folder"], "--use_aspect_ratio_buckets", "--train_text_encoder"]
    words += ["--use_ema", "--held_out", 0.2, "--validation_steps", 2, "--checkpointing_steps", 2, "--resolution", 32]
    words += ["--num_validation_images", 1, "--num_validation_samples", 8, "--gradient_checkpointing"]
    words += ["--max_grad_norm", 0.05, "--mixed_precision", "no", "--lr_scheduler", "constant_with_warmup"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(trainer_data, one, *words, family=family) == 0

    def train_sharded(steps: int) -> str:
        more = ["--shard", "--train_batch_size", 4, "--max_train_steps", steps]
        return launch("train_lora", flags(trainer_data, two, *words, *more, family=family), tmp_path / "told")

    assert "all are divided among the processes" in train_sharded(2)
    assert train(trainer_data, two, *words, "--max_train_steps", 4, family=family) == 0
    assert "resuming from" in train_sharded(6)
    for name in ("loss", "val_loss", "grad_norm"):
        assert np.allclose(column(two, name), column(one, name), rtol=1e-5)
    for part in ("", "checkpoint-2", "checkpoint-4", "checkpoint-6", "best"):
        assert difference(one / part, two / part) < 1e-5
    for name in ("optimizer", "average"):
        wanted, found = (load_file(run / "checkpoint-6" / f"{name}.safetensors") for run in (one, two))
        assert all(torch.allclose(wanted[key], found[key], atol=1e-5) for key in wanted | found)


def assert_same_weights(one: Path, two: Path, checkpoint: str) -> None:
    """Of two runs: their results, and all that a checkpoint holds."""
    files = [*one.glob("*.safetensors"), *one.glob("*/*.safetensors"), *one.glob(f"{checkpoint}/**/*.safetensors")]
    assert len(files) >= 4
    for path in files:
        wanted, found = load_file(path), load_file(two / path.relative_to(one))
        assert wanted.keys() == found.keys()
        assert all(torch.allclose(wanted[key], found[key], atol=1e-5) for key in wanted), path


@pytest.mark.very_slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_divided_training_goes_on_with_three_processes_and_with_one(trainer_data, tmp_path, method):
    """Three divide 16 rows as 6, 6 and 4, and 4 rows as 2, 2 and none."""
    words = ["--method", method, "--train_text_encoder", "--use_ema", "--checkpointing_steps", 2]
    words += ["--mixed_precision", "no", "--learning_rate", 1e-3]
    one, many = tmp_path / "one/run", tmp_path / "many/run"  # a file for A1111 is named after its run
    for run, processes, steps in ((one, 1, 6), (many, 2, 2), (many, 3, 4), (many, 1, 6)):
        more = ["--shard", "--train_batch_size", 6 // processes, "--effective_batch_size", 6]
        command = subject_flags(trainer_data, run, *words, *more, "--max_train_steps", steps)
        said = launch("train_dreambooth", command, tmp_path / "told", processes)
    assert said.count("resuming from") == 2
    assert np.allclose(column(many, "loss"), column(one, "loss"), rtol=1e-5)
    assert_same_weights(one, many, "checkpoint-6")


@pytest.mark.very_slow
def test_two_processes_with_half_the_weights_each_train_all_weights_the_same(trainer_data, tmp_path):
    words = [*PRIOR, "--method", "full", "--train_text_encoder", "--use_ema", "--checkpointing_steps", 2]
    words += ["--mixed_precision", "no", "--lr_scheduler", "constant_with_warmup", "--learning_rate", 1e-3]
    one, two = tmp_path / "one", tmp_path / "two"
    assert teach(trainer_data, one, *words, "--max_train_steps", 4) == 0
    halves = ["--train_batch_size", 2, "--effective_batch_size", 8]
    launch_fsdp("train_dreambooth.py", subject_flags(trainer_data, two, *words, *halves, "--max_train_steps", 2))
    assert teach(trainer_data, two, *words, "--max_train_steps", 3) == 0
    launch_fsdp("train_dreambooth.py", subject_flags(trainer_data, two, *words, *halves, "--max_train_steps", 4))
    assert np.allclose(column(two, "loss"), column(one, "loss"), rtol=1e-5)
    assert_same_weights(one, two, "checkpoint-4")
    assert json.loads((two / "unet" / "config.json").read_text()) == json.loads(
        (one / "unet" / "config.json").read_text()
    )


@pytest.mark.very_slow
def test_divided_weights_train_on_after_images_of_the_first_validation(trainer_data, tmp_path):
    """Without held-out images, the first pass through the UNet is one that generates."""
    words = ["--train_data_dir", trainer_data["folder"], "--num_validation_images", 1, "--validation_steps", 2]
    words += ["--mixed_precision", "no", "--train_batch_size", 1, "--effective_batch_size", 2, "--max_train_steps", 2]
    launch_fsdp("train_lora.py", flags(trainer_data, tmp_path / "run", *words))
    assert len(column(tmp_path / "run", "loss")) == 2


def test_all_processes_divide_a_step_into_as_many_micro_batches():
    """Shapes would give one process more than another, which would wait for it forever."""
    shapes = [(1, 1)] * 5 + [(1, 2), (2, 1), (2, 2)]
    draws = [Draw(i, 0.0, False, False, 0, ()) for i in range(8)]
    parts = [sample_plan.split_step(draws, shapes, 4, rank, 2, equally=True) for rank in range(2)]
    assert [len(one) for one in parts] == [4, 4]
    assert sorted(draw.index for one in parts for part in one for draw in part) == list(range(8))
    assert [len(sample_plan.split_step(draws, shapes, 4, rank, 2)) for rank in range(2)] == [1, 4]


@pytest.mark.parametrize("words", [["--optimizer", "adafactor"], ["--train_token", "<sks>"]])
def test_what_needs_whole_weights_is_refused(trainer_data, tmp_path, words):
    with pytest.raises(UserError, match=f"^--shard: not with {words[0]} {words[1]}"):
        teach(trainer_data, tmp_path / "run", "--shard", *words)


def test_what_a_launch_config_divides_is_refused_in_its_name(trainer_data, tmp_path):
    words = flags(trainer_data, tmp_path / "run", "--optimizer", "adafactor")
    with pytest.raises(UserError, match=r"^--config_file of the launcher \(distributed_type: FSDP\): .*add --no-shard"):
        settle_sharding(train_lora.parse_args(words), 2, launched=True)
    assert not settle_sharding(train_lora.parse_args([*words, "--no-shard"]), 2, launched=True)


def test_one_process_is_warned_that_it_divides_nothing_and_its_setting_is_shown(trainer_data, tmp_path, caplog, capsys):
    assert train(trainer_data, tmp_path / "run", "--shard", "--dry_run") == 0
    assert "--shard: one process has all the weights" in caplog.text
    said = capsys.readouterr().out
    assert "shard: true\n" in said and "divided" not in said
