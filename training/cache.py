"""Tensors that are computed once and kept on disk by key, in shards that runs share (utils/shards.py).

A key names all that a tensor depends on.
"""

import functools
import io
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open

from utils.cli import UserError
from utils.console import track
from utils.outputs import remove_stale
from utils.parallel import thread_map
from utils.shards import SHARD_SECONDS, as_bytes, list_shards, remove_damaged, write_shard

SHARD_BYTES = 64 << 20

Index = dict[str, safe_open]  # the open shard that holds each key
Compute = Callable[[str], dict[str, torch.Tensor]]


def read_index(folder: Path) -> Index:
    """The open shard that holds each key."""
    index: Index = {}
    for path in list_shards(folder):
        shard = safe_open(path, framework="pt")
        index |= dict.fromkeys(shard.keys(), shard)
    return index


def _unpack(block: io.BytesIO, places: dict[str, tuple[int, torch.dtype, torch.Size]]) -> dict[str, torch.Tensor]:
    """The tensors that lie in a block of memory, not copied."""
    data = block.getbuffer()
    return {
        key: torch.frombuffer(data, dtype=dtype, count=shape.numel(), offset=start).reshape(shape)
        for key, (start, dtype, shape) in places.items()
    }


def fill_cache(folder: Path, items: Iterable[dict[str, torch.Tensor]], total: int, unit: str) -> None:
    """Write computed items in shards, each at most half a minute's work.

    Until then they lie in one block: kept one by one, they would leave gaps in the heap, and memory would grow with
    the number of images.
    """
    block, places, began = io.BytesIO(), {}, time.monotonic()
    for item in track(items, total, unit, "encoding"):
        for key, tensor in item.items():
            places[key] = block.tell(), tensor.dtype, tensor.shape
            block.write(as_bytes(tensor))
            block.write(bytes(-block.tell() % 8))  # a tensor begins at a multiple of the size of its numbers
        if block.tell() > SHARD_BYTES or time.monotonic() - began > SHARD_SECONDS:
            write_shard(folder, _unpack(block, places), places)
            block, places, began = io.BytesIO(), {}, time.monotonic()
    if places:
        write_shard(folder, _unpack(block, places), places)


def _compute_all(compute: Compute, keys: list[str], workers: int) -> Iterator[dict[str, torch.Tensor]]:
    if workers == 1:
        return map(compute, keys)
    begin = functools.partial(torch.set_num_threads, max(1, torch.get_num_threads() // workers))
    return thread_map(compute, keys, workers, begin)


def ensure_cached(
    folder: Path,
    keys: Iterable[str],
    load: Callable[[], Compute],
    unit: str,
    accelerator: Accelerator,
    workers: int = 1,
    flag: str = "--latent_cache_dir",
) -> Index:
    """The index of a cache that holds every key: what is missing is computed, the processes taking turns.

    Each item by itself: so its bytes never depend on what else was missing. `load` is called only if one is missing;
    what it returns gives {key: tensor} for a key, and may add tensors of other names; `workers` threads do it, each
    with its share of the cores. `flag` says where the cache lies.
    """
    remove_stale(folder)
    keys, place = set(keys), slice(accelerator.process_index, None, accelerator.num_processes)
    remove_damaged(folder, list_shards(folder)[place], keys)
    accelerator.wait_for_everyone()
    missing = sorted(keys - read_index(folder).keys())
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    mine = missing[place]
    if mine:
        try:
            fill_cache(folder, _compute_all(load(), mine, workers), len(mine), unit)
        except OSError as error:
            raise UserError(
                f"{flag}: {folder} can't be written ({error.strerror}); make room, or name another"
            ) from None
    accelerator.wait_for_everyone()
    return read_index(folder)
