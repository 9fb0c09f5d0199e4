"""Tensors that were computed once, kept on disk in safetensors shards with checksums.

A shard is written beside its place, renamed into it, and never changed: two processes may fill one folder at the same
time, and a kill loses only what was not yet written. One whose checksum does not match is removed and computed again.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from utils.cli import OF_ONE_PROCESS
from utils.files import write_safetensors
from utils.parallel import thread_map

SHARD_SECONDS = 30  # of work that a kill may lose
SHARDS = "[0-9a-f]" * 32 + ".safetensors"  # any other file is not ours

logger = logging.getLogger(__name__)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for key, tensor in tensors:
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def write_shard(folder: Path, tensors: dict[str, torch.Tensor], items: Iterable[str]) -> None:
    """A new shard, named by the items that it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256("\n".join(sorted(items)).encode()).hexdigest()[:32]
    write_safetensors(folder / f"{name}.safetensors", tensors, {"sha256": _checksum(sorted(tensors.items()))})


def list_shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(SHARDS))


def _find_damage(path: Path, wanted: set[str] | None) -> str | None:
    try:
        shard = safe_open(path, framework="pt")
        keys = sorted(shard.keys())
        if wanted is not None and wanted.isdisjoint(keys):
            return None
        expected = (shard.metadata() or {}).get("sha256")
        if expected is None:
            return "it is of an earlier version, which wrote no checksum"
        found = _checksum((key, shard.get_tensor(key)) for key in keys)
        return None if found == expected else "its checksum does not match"
    except (OSError, SafetensorError) as error:
        return str(error)


def remove_damaged(folder: Path, shards: Sequence[Path], wanted: set[str] | None = None) -> None:
    """Remove the shards whose content is not what was written, with a warning that names them.

    Of `wanted` tensors: a shard that holds none of them is not read.
    """
    faults = thread_map(lambda path: _find_damage(path, wanted), shards, torch.get_num_threads())
    damaged = {path: fault for path, fault in zip(shards, faults) if fault}
    for path in damaged:
        path.unlink(missing_ok=True)
    if damaged:
        named = "; ".join(f"{path.name}: {fault}" for path, fault in list(damaged.items())[:3])
        more = " …" if len(damaged) > 3 else ""
        message = "%s: %d damaged, computed again as needed (%s%s)"
        logger.warning(message, folder, len(damaged), named, more, extra=OF_ONE_PROCESS)
