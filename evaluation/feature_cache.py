"""Rows of numbers about files, computed once and cached on disk by each file's content.

A shard is written to a temporary file, renamed, and never changed: a kill loses what was not yet written, and two
processes may fill one folder. Each holds a checksum of its rows; a damaged one is ignored with a warning.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from utils.files import file_sha256, write_safetensors
from utils.outputs import remove_stale
from utils.parallel import thread_map

SHARD_SECONDS = 30  # of work that a kill may lose

logger = logging.getLogger(__name__)


def content_keys(files: Sequence[Path], workers: int = 1) -> list[str]:
    return list(thread_map(file_sha256, files, workers))


def _checksum(keys: np.ndarray, rows: np.ndarray) -> str:
    return hashlib.sha256(keys.tobytes() + rows.tobytes()).hexdigest()


def read_rows(folder: Path, size: int) -> dict[str, np.ndarray]:
    """{sha256 of a file: its row} of all undamaged shards."""
    from safetensors import SafetensorError, safe_open

    known: dict[str, np.ndarray] = {}
    damaged = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as shard:
                keys, rows = shard.get_tensor("keys"), shard.get_tensor("rows")
                if (shard.metadata() or {}).get("sha256") != _checksum(keys, rows) or rows.shape[1] != size:
                    raise SafetensorError("its checksum does not match")
            known |= zip((bytes(key).hex() for key in keys), rows)
        except (OSError, SafetensorError) as error:
            damaged.append(f"{path.name}: {error}")
    if damaged:
        logger.warning("%s: %d damaged, computed again as needed (%s)", folder, len(damaged), damaged[0])
    return known


def write_rows(folder: Path, fresh: dict[str, np.ndarray]) -> None:
    """A new shard of {sha256 of a file: its row}."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    keys = np.frombuffer(bytes.fromhex("".join(fresh)), np.uint8).reshape(len(fresh), 32)
    rows = np.stack(list(fresh.values()))
    name = hashlib.sha256("".join(sorted(fresh)).encode()).hexdigest()[:32]
    tensors = {"keys": torch.from_numpy(keys.copy()), "rows": torch.from_numpy(rows)}
    write_safetensors(folder / f"{name}.safetensors", tensors, {"sha256": _checksum(keys, rows)})


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
