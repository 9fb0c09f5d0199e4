"""--shard: two processes that each hold half of all weights train what one process trains."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_runs import PRIOR, ROOT, column, difference, flags, subject_flags, teach, train
from training import sample_plan
from training.sample_plan import Draw
from utils.cli import UserError

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/fsdp.yaml"]
LAUNCH += ["--main_process_port", "0"]
# What each of two processes holds, by build_training itself.
PROBE = """
import json, sys
import torch
from torch.distributed.tensor import DTensor
from families import lora
from training.build import Recipe, build_training
from training.optimizers import OptimizerSettings
from utils import devices

accelerator, precision = devices.start_accelerator("no")
optimizer = OptimizerSettings("adamw", (0.9, 0.999), 0.01, 1e-8)
for adapter in (lora.Adapter(4, 8), None):
    recipe = Recipe(adapter, 1e-3, 1e-3, optimizer, 0, shards=accelerator.num_processes)
    training = build_training(sys.argv[1], "sd1", recipe, precision, accelerator.device, ["a shoe"], {}, {}).training
    unet = training.unet
    text = torch.ones(1, 77, unet.config.cross_attention_dim)
    unet(torch.ones(1, 4, 8, 8), torch.tensor([1]), text).sample.sum().backward()
    training.optimizer.step()
    states = [one for values in training.optimizer.state.values() for name, one in values.items() if name != "step"]
    gradients = [one.grad for one in training.parameters]
    for name, tensors in {"weights": [*unet.parameters()], "gradients": gradients, "optimizer": states}.items():
        divided = all(isinstance(one, DTensor) for one in tensors)
        own, whole = sum(one.to_local().numel() for one in tensors), sum(one.numel() for one in tensors)
        kind = "full" if adapter is None else "lora"
        line = json.dumps([f"{kind} {name}", accelerator.process_index, divided, own, whole])
        print(line + "\\n", end="", flush=True)  # in one piece: two processes write to one pipe
"""


def launch(script: str, words: list[str]) -> str:
    """What two processes say."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*LAUNCH, script, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_each_process_holds_half_of_weights_gradients_and_optimizer_state(trainer_data, tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    said = launch(str(tmp_path / "probe.py"), [str(trainer_data["sd1"])])
    found = sorted(json.loads(line) for line in said.splitlines() if line.startswith("["))
    assert len(found) == 12
    for (name, first, *one), (same, second, *other) in zip(found[::2], found[1::2]):
        assert (name, first, second) == (same, 0, 1)
        (divided, half, whole), (_, rest, _) = one, other
        assert divided and half + rest == whole
        assert max(half, rest) <= 0.55 * whole  # an odd number of rows has a larger half


@pytest.mark.slow
def test_two_processes_with_half_the_weights_each_train_the_same_lora(trainer_data, tmp_path):
    """Loss, checkpoints, average, best and result; images of all shapes; then one process goes on, and two again."""
    words = ["--train_data_dir", trainer_data["folder"], "--use_aspect_ratio_buckets", "--train_text_encoder"]
    words += ["--use_ema", "--held_out", 0.2, "--validation_steps", 2, "--checkpointing_steps", 2, "--resolution", 32]
    words += ["--num_validation_images", 1, "--gradient_checkpointing", "--max_grad_norm", 0.05]
    words += ["--mixed_precision", "no", "--lr_scheduler", "constant_with_warmup"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(trainer_data, one, *words, family="sdxl") == 0

    def train_sharded(steps: int) -> str:
        more = ["--train_batch_size", 4, "--effective_batch_size", 8, "--max_train_steps", steps]
        return launch("train_lora.py", flags(trainer_data, two, *words, *more, family="sdxl"))

    assert "all are divided among the processes" in train_sharded(2)
    assert train(trainer_data, two, *words, "--max_train_steps", 4, family="sdxl") == 0
    assert "resuming from" in train_sharded(6)
    for name in ("loss", "val_loss", "grad_norm"):
        assert np.allclose(column(two, name), column(one, name), rtol=1e-5)
    for part in ("", "checkpoint-2", "checkpoint-4", "checkpoint-6", "best"):
        assert difference(one / part, two / part) < 1e-5
    for name in ("optimizer", "average"):
        wanted, found = (load_file(run / "checkpoint-6" / f"{name}.safetensors") for run in (one, two))
        assert all(torch.allclose(wanted[key], found[key], atol=1e-5) for key in wanted | found)


@pytest.mark.very_slow
def test_two_processes_with_half_the_weights_each_train_all_weights_the_same(trainer_data, tmp_path):
    words = [*PRIOR, "--method", "full", "--train_text_encoder", "--use_ema", "--checkpointing_steps", 2]
    words += ["--mixed_precision", "no", "--lr_scheduler", "constant_with_warmup", "--learning_rate", 1e-3]
    one, two = tmp_path / "one", tmp_path / "two"
    assert teach(trainer_data, one, *words, "--max_train_steps", 4) == 0
    halves = ["--train_batch_size", 2, "--effective_batch_size", 8]
    launch("train_dreambooth.py", subject_flags(trainer_data, two, *words, *halves, "--max_train_steps", 2))
    assert teach(trainer_data, two, *words, "--max_train_steps", 3) == 0
    launch("train_dreambooth.py", subject_flags(trainer_data, two, *words, *halves, "--max_train_steps", 4))
    assert np.allclose(column(two, "loss"), column(one, "loss"), rtol=1e-5)
    for path in [*one.glob("*/*.safetensors"), *one.glob("checkpoint-4/**/*.safetensors")]:
        wanted, found = load_file(path), load_file(two / path.relative_to(one))
        assert wanted.keys() == found.keys() and all(
            torch.allclose(wanted[key], found[key], atol=1e-5) for key in wanted
        )
    assert json.loads((two / "unet" / "config.json").read_text()) == json.loads(
        (one / "unet" / "config.json").read_text()
    )


@pytest.mark.slow
def test_divided_weights_train_on_after_images_of_the_first_validation(trainer_data, tmp_path):
    """Without held-out images, the first pass through the UNet is one that generates."""
    words = ["--train_data_dir", trainer_data["folder"], "--num_validation_images", 1, "--validation_steps", 2]
    words += ["--mixed_precision", "no", "--train_batch_size", 1, "--effective_batch_size", 2, "--max_train_steps", 2]
    launch("train_lora.py", flags(trainer_data, tmp_path / "run", *words))
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


def test_one_process_is_warned_that_it_divides_nothing(trainer_data, tmp_path, caplog):
    assert train(trainer_data, tmp_path / "run", "--shard", "--dry_run") == 0
    assert "--shard: one process has all the weights" in caplog.text
