"""Checkpoints are whole or not there, and damaged ones are named and skipped."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from utils import checkpoints
from utils.cli import UserError

FILE = "pytorch_lora_weights.safetensors"
forked = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch")


def save(run, step, size=64, name=None):
    def write(partial):
        (partial / FILE).write_bytes(bytes([step % 256]) * size)

    folder = run / (name or f"checkpoint-{step}")
    checkpoints.save_checkpoint(folder, write, {"optimizer": {"0.step": torch.tensor(step)}}, {"step": step})
    return folder


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": (lambda f: os.truncate(f / FILE, 10), f"{FILE} has 10 bytes, its manifest says 64"),
    "bit-flipped": (lambda f: flip_bit(f / FILE), f"{FILE} has changed"),
    "state flipped": (lambda f: flip_bit(f / "state.json"), "state.json has changed"),
    "missing file": (lambda f: (f / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "missing manifest": (lambda f: (f / "MANIFEST.json").unlink(), "MANIFEST.json: No such file"),
    "torn manifest": (lambda f: os.truncate(f / "MANIFEST.json", 20), "MANIFEST.json can't be understood"),
    "foreign manifest": (lambda f: (f / "MANIFEST.json").write_text("[1]"), "MANIFEST.json can't be understood"),
    "garbage manifest": (lambda f: (f / "MANIFEST.json").write_bytes(b"\xff\xfe\x00"), "MANIFEST.json can't be"),
    "empty manifest": (lambda f: (f / "MANIFEST.json").write_text("{}"), "it holds no state.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_named_and_skipped(tmp_path, caplog, kind):
    save(tmp_path, 100), save(tmp_path, 1000)
    spoil, said = DAMAGE[kind]
    spoil(tmp_path / "checkpoint-1000")
    assert checkpoints.find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-100"
    assert f"{tmp_path / 'checkpoint-1000'} is skipped" in caplog.text and said in caplog.text
    with pytest.raises(UserError, match="--resume_from_checkpoint checkpoint-1000: damaged") as error:
        checkpoints.find_checkpoint(tmp_path, "checkpoint-1000")
    assert said in str(error.value)


def test_the_newest_is_by_number_and_nothing_else_counts(tmp_path):
    assert checkpoints.find_checkpoint(tmp_path, "latest") is None
    for step in (900, 1000, 20):
        save(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir(), (tmp_path / ".checkpoint-2000.partial").mkdir()
    (tmp_path / "checkpoint-3000").write_text("a file")
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [
        "checkpoint-1000",
        "checkpoint-900",
        "checkpoint-20",
    ]
    assert checkpoints.find_checkpoint(tmp_path, "latest").name == "checkpoint-1000"


def test_one_asked_for_by_name_is_that_one_or_an_error(tmp_path):
    folder = save(tmp_path / "run", 500)
    for name in ("checkpoint-500", str(folder)):
        assert checkpoints.find_checkpoint(tmp_path / "run", name) == folder
    with pytest.raises(UserError, match="--resume_from_checkpoint checkpoint-400: no such checkpoint.*checkpoint-500"):
        checkpoints.find_checkpoint(tmp_path / "run", "checkpoint-400")


def names(run):
    return sorted(path.name for path in run.iterdir())


def test_rotation_keeps_the_newest_and_best(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    save(tmp_path, 2, name="best")
    checkpoints.rotate_checkpoints(tmp_path, None)
    assert len(names(tmp_path)) == 5
    checkpoints.rotate_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["best", "checkpoint-10", "checkpoint-3"]
    checkpoints.rotate_checkpoints(tmp_path, 1)
    assert names(tmp_path) == ["best", "checkpoint-10"]


def test_rotation_never_deletes_the_newest_that_verifies(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    for step in (3, 4):
        flip_bit(tmp_path / f"checkpoint-{step}" / FILE)
    checkpoints.rotate_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert checkpoints.find_checkpoint(tmp_path, "latest").name == "checkpoint-2"


def test_rotation_deletes_only_what_the_manifest_of_a_checkpoint_lists(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "checkpoint-2/notes.txt").write_text("the best so far")
    checkpoints.rotate_checkpoints(tmp_path, 1)
    assert names(tmp_path)[0].startswith("checkpoint-2.replaced-2") and names(tmp_path)[1:] == ["checkpoint-3"]


def check_survivor(run, said):
    assert "--output_dir" in said and "can't be written" in said and "earlier checkpoints are intact" in said
    assert names(run) == ["checkpoint-1"] and checkpoints.checkpoint_damage(run / "checkpoint-1") is None


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_partial_one(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        save(tmp_path, 1, size=100_000)
        for _ in range(2):
            with pytest.raises(UserError, match="No space left") as error:
                save(tmp_path, 2, size=1_000_000)
            check_survivor(tmp_path, str(error.value))
        save(tmp_path, 3, size=100_000)  # there is room again
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@forked
def test_an_error_of_safetensors_own_writer_is_one_line(tmp_path):
    def write(partial):
        save_file({"a": torch.zeros(1)}, partial / "missing" / "a.safetensors")

    with pytest.raises(UserError, match="checkpoint-1 can't be written .*; earlier checkpoints are intact; free some"):
        checkpoints.save_checkpoint(tmp_path / "checkpoint-1", write, {}, {})
    assert not list(tmp_path.iterdir())


def test_a_failing_write_leaves_the_earlier_checkpoint_and_no_partial_one(tmp_path):
    save(tmp_path, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so a write beyond the limit is an OSError
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limit[1]))
        with pytest.raises(UserError) as error:
            save(tmp_path, 2, size=1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    check_survivor(tmp_path, str(error.value))


def save_for_ever(run):
    for step in range(1, 10_000):
        save(run, step, size=200_000)
        checkpoints.rotate_checkpoints(run, 2)


@forked
def test_a_kill_at_any_moment_of_saving_leaves_only_whole_checkpoints(tmp_path):
    context, chance, seen = multiprocessing.get_context("fork"), random.Random(0), 0
    for number in range(12):
        run = tmp_path / str(number % 3)  # each is used again, with what the kill before left there
        process = context.Process(target=save_for_ever, args=(run,))
        process.start()
        deadline = time.monotonic() + 20
        while len(checkpoints.list_checkpoints(run)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = checkpoints.list_checkpoints(run)
        assert found and all(checkpoints.checkpoint_damage(path) is None for path in found)
        seen += len(found)
    assert seen > 12


def two_networks():
    """A generator and a discriminator, each with its own optimizer, after a few steps."""
    torch.manual_seed(0)
    modules = {"generator": torch.nn.Linear(3, 4), "discriminator": torch.nn.Linear(4, 1)}
    optimizers = {
        "generator_optimizer": torch.optim.AdamW(modules["generator"].parameters(), 1e-2),
        "discriminator_optimizer": torch.optim.SGD(modules["discriminator"].parameters(), 1e-2, momentum=0.9),
    }
    return modules, optimizers


def adversarial_steps(modules, optimizers, steps):
    for step in steps:
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        modules["discriminator"](modules["generator"](inputs)).square().mean().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()


def test_two_networks_with_two_optimizers_are_restored_to_the_byte(tmp_path):
    whole, whole_optimizers = two_networks()
    adversarial_steps(whole, whole_optimizers, range(3))
    files, state = checkpoints.pack_optimizers(whole_optimizers)
    files |= {name: module.state_dict() for name, module in whole.items()}
    checkpoints.save_checkpoint(tmp_path / "checkpoint-3", lambda folder: None, files, state | {"step": 3})
    assert checkpoints.checkpoint_damage(tmp_path / "checkpoint-3") is None

    resumed, resumed_optimizers = two_networks()
    files, state = checkpoints.load_checkpoint(tmp_path / "checkpoint-3")
    assert state["step"] == 3
    for name, module in resumed.items():
        module.load_state_dict(files[name])
    checkpoints.restore_optimizers(resumed_optimizers, files, state)
    for modules, optimizers in ((whole, whole_optimizers), (resumed, resumed_optimizers)):
        adversarial_steps(modules, optimizers, range(3, 6))
    for name, module in whole.items():
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), resumed[name].parameters()))
    with pytest.raises(KeyError):
        checkpoints.restore_optimizers({"third": whole_optimizers["generator_optimizer"]}, files, state)
