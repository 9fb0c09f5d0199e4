"""train_lora.py when its process is killed, interrupted, or not alone: nothing lost, nothing trained twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT, column, flags, same_bytes, start, train
from utils import checkpoints
from utils.cli import UserError


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def finish(process) -> int:
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def words():
    """A run of some seconds with all that a checkpoint holds."""
    text = "--max_train_steps 48 --checkpointing_steps 5 --checkpoints_total_limit 2 --validation_steps 12 --use_ema"
    return [*text.split(), "--caption_dropout", 0.2, "--random_flip", "--num_validation_samples", 8]


@pytest.fixture(scope="module")
def whole(trainer_data, words, tmp_path_factory):
    """That run, uninterrupted, in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start(flags(trainer_data, folder / "run", *words), folder / "told")) == 0
    return folder / "run"


@pytest.mark.very_slow
def test_killed_again_and_again_the_same_command_ends_with_the_same_bytes(trainer_data, words, whole, tmp_path):
    run, told = tmp_path / "run", tmp_path / "told"
    command = flags(trainer_data, run, *words, "--latent_cache_dir", tmp_path / "cache")
    inside = [
        ("utils.shards", "write_safetensors", 1),  # the captions are encoded, and lost
        ("utils.shards", "write_safetensors", 2),  # the captions are kept, the latents lost
        ("utils.checkpoints", "write_manifest", 2),  # a checkpoint that has all but its manifest (best/ comes first)
        ("utils.outputs", "put_in_place", 2),  # one that is whole and has not its name yet
        ("utils.checkpoints", "rotate_checkpoints", 2),  # one too many
    ]
    for moment in inside:
        assert finish(start(command, told, moment)) == -signal.SIGKILL, told.read_text()[-2000:]
    assert checkpoints.find_checkpoint(run, "latest")
    moments, kills = random.Random(4), len(inside)
    for _ in range(4):
        process = start(command, told)
        process.join(moments.uniform(0.3, 1.6))
        process.kill()
        kills += finish(process) == -signal.SIGKILL
    assert finish(start(command, told)) == 0, told.read_text()[-2000:]
    assert kills >= 7
    assert same_bytes(whole, run) and same_bytes(whole / "best", run / "best")
    assert same_bytes(whole / "checkpoint-45", run / "checkpoint-45")
    for name in ("loss", "val_loss"):
        assert column(run, name) == column(whole, name)
    assert [path.name for path in checkpoints.list_checkpoints(run)] == ["checkpoint-45", "checkpoint-40"]
    assert not list(run.glob(".checkpoint*"))


def test_the_user_s_command_answers_sigterm_with_143_and_goes_on(trainer_data, words, whole, tmp_path):
    command = flags(trainer_data, tmp_path / "run", *words)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "told", "w") as told:
        process = subprocess.Popen(
            [sys.executable, "train_lora.py", *command], cwd=ROOT, env=environment, stdout=told, stderr=told
        )
        wait_for(tmp_path / "run" / "checkpoint-5")
        process.terminate()
        assert process.wait(60) == 143, (tmp_path / "told").read_text()[-2000:]
    assert "SIGTERM: saving a checkpoint" in (tmp_path / "told").read_text()
    newest = checkpoints.list_checkpoints(tmp_path / "run")[0]
    assert 5 <= int(newest.name.split("-")[1]) < 48 and checkpoints.checkpoint_damage(newest) is None
    assert finish(start(command, tmp_path / "told")) == 0
    assert f"resuming from {newest}" in (tmp_path / "told").read_text() and same_bytes(whole, tmp_path / "run")


def test_one_interrupt_saves_and_two_end_the_process_at_once(trainer_data, words, tmp_path):
    command = flags(trainer_data, tmp_path / "run", *words)
    process = start(command, tmp_path / "told", ("families.diffusion", "sample_losses", 13), (signal.SIGINT,))
    assert finish(process) == 130
    there = checkpoints.list_checkpoints(tmp_path / "run")
    assert there[0].name == "checkpoint-11"  # the first two calls were of the validation at step 0
    process = start(command, tmp_path / "told", ("utils.checkpoints", "pack_optimizer", 1), (signal.SIGINT,) * 2)
    assert finish(process) == 130
    assert checkpoints.list_checkpoints(tmp_path / "run") == there
    told = (tmp_path / "told").read_text()
    assert "Traceback" not in told and "train_lora.py: interrupted" in told


def test_two_runs_share_a_cache_but_not_a_folder(trainer_data, words, whole, tmp_path):
    shared = ["--latent_cache_dir", tmp_path / "cache"]
    commands = [flags(trainer_data, tmp_path / name, *words, *shared) for name in ("one", "two")]
    processes = [start(command, tmp_path / f"told{i}") for i, command in enumerate(commands)]
    wait_for(tmp_path / "one" / "checkpoint-5")
    with pytest.raises(UserError, match="--output_dir .*one: another process is writing it"):
        train(trainer_data, tmp_path / "one", *words, *shared)
    assert [finish(process) for process in processes] == [0, 0]
    assert same_bytes(whole, tmp_path / "one") and same_bytes(whole, tmp_path / "two")


def test_a_run_whose_folder_is_moved_while_it_trains_ends_with_an_error(trainer_data, words, tmp_path):
    process = start(flags(trainer_data, tmp_path / "run", *words, "--validation_steps", 0), tmp_path / "told")
    wait_for(tmp_path / "run" / "checkpoint-5")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert finish(process) == 1 and not (tmp_path / "run").exists()
    assert "run: was removed or moved meanwhile" in (tmp_path / "told").read_text()


def test_a_mistake_is_one_line_and_exit_code_1(trainer_data, tmp_path):
    command = flags(trainer_data, tmp_path / "run", "--train_data_dir", tmp_path / "nowhere")
    assert finish(start(command, tmp_path / "told")) == 1
    told = (tmp_path / "told").read_text()
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("train_lora.py: error: --train_data_dir") and "nowhere" in told
