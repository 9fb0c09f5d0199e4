"""Tensors that are computed once and kept on disk by key, in safetensors shards that runs share.

Every shard is written beside its place and renamed into it, and none is ever changed: two runs may fill one cache at
the same time, and a kill loses only what was not yet written. A key names all that a tensor depends on. A shard holds a
checksum of its tensors; one that does not match is removed, and what it held is computed again.
"""

import functools
import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open

from utils.cli import UserError
from utils.console import track
from utils.files import write_safetensors
from utils.outputs import remove_stale
from utils.parallel import thread_map

SHARD_BYTES, SHARD_SECONDS = 64 << 20, 30
SHARDS = "[0-9a-f]" * 32 + ".safetensors"  # any other file is not ours

logger = logging.getLogger(__name__)
Index = dict[str, safe_open]  # the open shard that holds each key


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for key, tensor in tensors:
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_as_bytes(tensor))
    return digest.hexdigest()


def read_index(folder: Path) -> Index:
    """The open shard that holds each key."""
    index: Index = {}
    for path in sorted(folder.glob(SHARDS)):
        shard = safe_open(path, framework="pt")
        index |= dict.fromkeys(shard.keys(), shard)
    return index


def _find_damage(path: Path, wanted: set[str]) -> str | None:
    """What is wrong with a shard; one that holds nothing wanted is not read."""
    try:
        shard = safe_open(path, framework="pt")
        keys = sorted(shard.keys())
        if wanted.isdisjoint(keys):
            return None
        expected = (shard.metadata() or {}).get("sha256")
        if expected is None:
            return "it is of an earlier version, which wrote no checksum"
        found = _checksum((key, shard.get_tensor(key)) for key in keys)
        return None if found == expected else "its checksum does not match"
    except (OSError, SafetensorError) as error:
        return str(error)


def remove_damaged(folder: Path, paths: list[Path], wanted: set[str]) -> None:
    """Remove the shards whose content is not what was written, with a warning that names them."""
    faults = thread_map(lambda path: _find_damage(path, wanted), paths, torch.get_num_threads())
    damaged = {path: fault for path, fault in zip(paths, faults) if fault}
    for path in damaged:
        path.unlink(missing_ok=True)
    if damaged:
        named = "; ".join(f"{path.name}: {fault}" for path, fault in list(damaged.items())[:3])
        more = " …" if len(damaged) > 3 else ""
        logger.warning("%s: %d damaged, computed again as needed (%s%s)", folder, len(damaged), named, more)


def write_shard(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Named by the keys that it holds."""
    name = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:32]
    write_safetensors(folder / f"{name}.safetensors", tensors, {"sha256": _checksum(sorted(tensors.items()))})


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
    folder.mkdir(parents=True, exist_ok=True)
    block, places, began = io.BytesIO(), {}, time.monotonic()
    for item in track(items, total, unit, "encoding"):
        for key, tensor in item.items():
            places[key] = block.tell(), tensor.dtype, tensor.shape
            block.write(_as_bytes(tensor))
            block.write(bytes(-block.tell() % 8))  # a tensor begins at a multiple of the size of its numbers
        if block.tell() > SHARD_BYTES or time.monotonic() - began > SHARD_SECONDS:
            write_shard(folder, _unpack(block, places))
            block, places, began = io.BytesIO(), {}, time.monotonic()
    if places:
        write_shard(folder, _unpack(block, places))


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
    keys, place = set(keys), slice(accelerator.process_index, None, accelerator.num_processes)
    remove_damaged(folder, sorted(folder.glob(SHARDS))[place], keys)
    accelerator.wait_for_everyone()
    missing = sorted(keys - read_index(folder).keys())
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    mine = missing[place]
    if mine:
        try:
            fill_cache(folder, _compute_all(compute, mine, workers), len(mine), unit)
        except OSError as error:
            raise UserError(
                f"--latent_cache_dir: {folder} can't be written ({error.strerror}); make room, or name another"
            ) from None
    accelerator.wait_for_everyone()
    return read_index(folder)
