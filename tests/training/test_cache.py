"""The cache on disk: never a stale entry, never a torn one, safe for two runs, kept through a kill."""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from training import cache
from utils.cli import UserError

forked = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch")


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def value(key):
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(seed))


def recorder(made, seconds=0.0):
    def compute(key):
        time.sleep(seconds)
        made.append(key)
        return {key: value(key), f"{key}.pooled": value(key)[0, 0]}

    return compute


def check(index, keys):
    for key in keys:
        assert torch.equal(index[key].get_tensor(key), value(key))
        assert torch.equal(index[key].get_tensor(f"{key}.pooled"), value(key)[0, 0])


def fill(folder, keys, accelerator, seconds=0.0, workers=1):
    made = []
    index = cache.ensure_cached(folder, keys, lambda: recorder(made, seconds), "things", accelerator, workers)
    check(index, keys)
    return made


def test_what_is_there_is_not_made_again(tmp_path, accelerator):
    assert sorted(fill(tmp_path / "c", ["a", "b", "b"], accelerator)) == ["a", "b"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    assert fill(tmp_path / "c", ["b", "a"], accelerator) == []
    assert sorted(fill(tmp_path / "c", ["a", "b", "c"], accelerator)) == ["c"]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())  # no shard is ever changed


def test_several_workers_fill_a_cache_with_the_same_bytes(tmp_path, accelerator, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # each worker has one, however many there are
    assert sorted(fill(tmp_path / "many", "abcdefgh", accelerator, 0.01, workers=3)) == list("abcdefgh")
    monkeypatch.undo()
    fill(tmp_path / "one", "abcdefgh", accelerator)
    (many,), (one,) = ([path.read_bytes() for path in (tmp_path / name).iterdir()] for name in ("many", "one"))
    assert many == one and torch.get_num_threads() == threads


@pytest.mark.parametrize("spoil", ["truncated", "emptied", "header", "data", "no checksum"])
def test_a_damaged_shard_is_named_and_made_again(tmp_path, accelerator, caplog, spoil):
    fill(tmp_path, ["a", "b"], accelerator)
    fill(tmp_path, ["c"], accelerator)
    (shard,) = (path for path in tmp_path.iterdir() if "a" in cache.read_index(tmp_path) and path.stat().st_size > 1500)
    if spoil in ("header", "data"):
        content = bytearray(shard.read_bytes())
        content[3 if spoil == "header" else -1] ^= 0x40
        shard.write_bytes(content)
    elif spoil == "no checksum":  # of an earlier version
        save_file(load_file(shard), shard)
    else:
        os.truncate(shard, 700 if spoil == "truncated" else 0)
    assert sorted(fill(tmp_path, ["a", "b", "c"], accelerator)) == ["a", "b"]
    assert "1 damaged, computed again" in caplog.text and shard.name in caplog.text
    caplog.clear()
    assert fill(tmp_path, ["a", "b", "c"], accelerator) == [] and not caplog.records  # the damaged one is replaced


def test_shards_are_closed_when_they_are_large_or_old(tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 3000)
    fill(tmp_path / "size", "abcdefgh", accelerator)
    assert len(list((tmp_path / "size").iterdir())) == 3  # 1056 bytes an item: 3 + 3 + 2
    monkeypatch.setattr(cache, "SHARD_BYTES", 1 << 30)
    monkeypatch.setattr(cache, "SHARD_SECONDS", 0.05)
    fill(tmp_path / "time", "abcdefgh", accelerator, seconds=0.02)
    assert 2 <= len(list((tmp_path / "time").iterdir())) <= 4


def test_an_error_in_the_middle_keeps_whole_shards(tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 0)

    def compute(key):
        if key == "c":
            raise UserError("c.png holds NaN")
        return {key: value(key), f"{key}.pooled": value(key)[0, 0]}

    with pytest.raises(UserError, match="c.png"):
        cache.ensure_cached(tmp_path, "abcd", lambda: compute, "things", accelerator)
    assert sorted(fill(tmp_path, "abcd", accelerator)) == ["c", "d"]


def fill_alone(folder, keys, accelerator, shard_seconds):
    cache.SHARD_SECONDS = shard_seconds
    fill(folder, keys, accelerator, seconds=0.004)


@forked
def test_two_processes_fill_one_cache_at_once(tmp_path, accelerator):
    context = multiprocessing.get_context("fork")
    sets = [[f"k{i}" for i in range(0, 40)], [f"k{i}" for i in range(20, 60)]]
    running = [context.Process(target=fill_alone, args=(tmp_path, keys, accelerator, 0.02)) for keys in sets]
    for process in running:
        process.start()
    for process in running:
        process.join(30)
    assert [process.exitcode for process in running] == [0, 0]
    assert fill(tmp_path, sets[0] + sets[1], accelerator) == []
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())  # nothing half-written is left


@forked
def test_a_kill_leaves_no_torn_shard_and_what_was_written_stays(tmp_path, accelerator, caplog):
    context, chance, keys = multiprocessing.get_context("fork"), random.Random(1), [f"k{i}" for i in range(400)]
    held = 0
    for _ in range(8):
        process = context.Process(target=fill_alone, args=(tmp_path, keys, accelerator, 0.01))
        process.start()
        deadline = time.monotonic() + 20
        while len(cache.read_index(tmp_path)) <= held and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.03)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        index = cache.read_index(tmp_path)
        check(index, [key for key in index if not key.endswith(".pooled")])
        assert len(index) > held  # each start goes on from there
        held = len(index)
    assert not caplog.records
