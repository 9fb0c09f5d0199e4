"""Rows of numbers about files, computed once and cached on disk by each file's content (utils/shards.py)."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from utils.files import file_sha256
from utils.outputs import remove_stale
from utils.parallel import thread_map
from utils.shards import SHARD_SECONDS, list_shards, remove_damaged, write_shard


def content_keys(files: Sequence[Path], workers: int = 1) -> list[str]:
    return list(thread_map(file_sha256, files, workers))


def read_rows(folder: Path, size: int) -> dict[str, np.ndarray]:
    """{sha256 of a file: its row} of all undamaged shards, where the rows have this size."""
    known: dict[str, np.ndarray] = {}
    remove_damaged(folder, list_shards(folder))
    for path in list_shards(folder):
        with safe_open(path, framework="np") as shard:
            keys, rows = shard.get_tensor("keys"), shard.get_tensor("rows")
        if rows.shape[1] == size:
            known |= zip((bytes(key).hex() for key in keys), rows)
    return known


def write_rows(folder: Path, fresh: dict[str, np.ndarray]) -> None:
    """A new shard of {sha256 of a file: its row}."""
    keys = np.frombuffer(bytearray.fromhex("".join(fresh)), np.uint8).reshape(len(fresh), 32)
    rows = np.stack(list(fresh.values()))
    write_shard(folder, {"keys": torch.from_numpy(keys), "rows": torch.from_numpy(rows)}, fresh)


def cached_rows(
    folder: Path | None, keys: Sequence[str], size: int, compute: Callable[[list[int]], Iterable[np.ndarray]]
) -> np.ndarray:
    """A row of float32 for each key (a sha256), in their order.

    `compute` gets the places in `keys` of what is not known yet, each content once, and yields blocks of their rows.
    """
    if folder:
        remove_stale(folder)
    known = read_rows(folder, size) if folder else {}
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    missing = sorted(place for key, place in first.items() if key not in known)
    fresh: dict[str, np.ndarray] = {}
    done, began = 0, time.monotonic()
    for block in compute(missing) if missing else ():
        places = missing[done : done + len(block)]
        fresh |= {keys[place]: row for place, row in zip(places, np.asarray(block, np.float32))}
        done += len(block)
        if folder and (time.monotonic() - began > SHARD_SECONDS or done == len(missing)):
            write_rows(folder, fresh)
            known, fresh, began = known | fresh, {}, time.monotonic()
    known |= fresh
    return np.stack([known[key] for key in keys]) if len(keys) else np.empty((0, size), np.float32)
