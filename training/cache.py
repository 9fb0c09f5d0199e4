"""Tensors that are computed once and kept on disk by key, in safetensors shards that runs share.

Every shard is written beside its place and renamed into it, and none is ever changed: two runs may fill one cache at
the same time, and a kill loses only what was not yet written. A key names all that a tensor depends on.
"""

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open

from utils.cli import UserError
from utils.console import track
from utils.files import remove_stale, write_safetensors
from utils.parallel import thread_map

SHARD_BYTES, SHARD_SECONDS = 256 << 20, 30

logger = logging.getLogger(__name__)
Index = dict[str, safe_open]  # the open shard that holds each key


def read_index(folder: Path) -> Index:
    """The open shard that holds each key; a damaged shard is skipped, so that what it held is computed again."""
    index: Index = {}
    damaged = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            shard = safe_open(path, framework="pt")
            index |= dict.fromkeys(shard.keys(), shard)
        except (OSError, SafetensorError) as error:
            damaged.append(f"{path.name}: {error}")
    if damaged:
        logger.warning(
            "%s: %d of its files are damaged and computed again as needed (%s …)", folder, len(damaged), damaged[0]
        )
    return index


def write_shard(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Named by the keys that it holds."""
    name = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:32]
    write_safetensors(folder / f"{name}.safetensors", tensors)


def fill_cache(folder: Path, items: Iterable[dict[str, torch.Tensor]], total: int, unit: str) -> None:
    """Write computed items in shards, each at most half a minute's work."""
    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, torch.Tensor] = {}
    size, began = 0, time.monotonic()
    for item in track(items, total, unit, "encoding"):
        shard |= item
        size += sum(tensor.nbytes for tensor in item.values())
        if size > SHARD_BYTES or time.monotonic() - began > SHARD_SECONDS:
            write_shard(folder, shard)
            shard, size, began = {}, 0, time.monotonic()
    if shard:
        write_shard(folder, shard)


def _compute_all(
    compute: Callable[[str], dict[str, torch.Tensor]], keys: list[str], workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    if workers == 1:
        return map(compute, keys)
    begin = functools.partial(torch.set_num_threads, max(1, torch.get_num_threads() // workers))
    return thread_map(compute, keys, workers, begin)


def ensure_cached(
    folder: Path,
    keys: Iterable[str],
    compute: Callable[[str], dict[str, torch.Tensor]],
    unit: str,
    accelerator: Accelerator,
    workers: int = 1,
) -> Index:
    """The index of a cache that holds every key: what is missing is computed, the processes taking turns.

    Each item by itself: so its bytes never depend on what else was missing. `compute` gives {key: tensor}, and may add
    tensors of other names; `workers` threads do it, each with its share of the cores.
    """
    remove_stale(folder)
    keys = set(keys)
    missing = sorted(keys - read_index(folder).keys())
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    if mine:
        try:
            fill_cache(folder, _compute_all(compute, mine, workers), len(mine), unit)
        except OSError as error:
            raise UserError(
                f"--latent_cache_dir: {folder} can't be written ({error.strerror}); make room, or name another"
            ) from None
    accelerator.wait_for_everyone()
    return read_index(folder)
