"""Images with their texts in tar shards (key.png, key.json), as webdataset and datasets' `webdataset` read them."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.cli import UserError


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[tuple[str, Path | bytes, dict]]) -> None:
    """One shard of (key, PNG, {"text", "attributes", …}): whole or not there, on the disk when this returns.

    The same samples give the same bytes: no times, owners or modes of this machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for key, image, record in samples:
                    if "." in key or "/" in key:  # readers take what follows the first dot for the kind of file
                        raise ValueError(f"{key!r}: a key of a webdataset holds no dot and no slash")
                    _add(tar, f"{key}.png", image if isinstance(image, bytes) else image.read_bytes())
                    _add(tar, f"{key}.json", json.dumps(record, ensure_ascii=False, sort_keys=True).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # its defaults: time 0, owner 0, mode 644
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def shard_keys(path: Path) -> list[str]:
    """The keys in a shard, whose samples are all there; nothing else in it is read."""
    try:
        with tarfile.open(path, "r:") as tar:
            names = tar.getnames()
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: no whole tar file ({error}); remove it, and it is made again") from None
    keys = [name.removesuffix(".png") for name in names[::2]]
    if names != [name for key in keys for name in (f"{key}.png", f"{key}.json")]:
        raise UserError(f"{path}: expected pairs of key.png and key.json; remove it, and it is made again")
    return keys


def read_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Key and PNG of each sample."""
    with tarfile.open(path, "r:") as tar:
        for name in tar.getnames()[::2]:
            yield name.removesuffix(".png"), tar.extractfile(name).read()


def is_whole(path: Path) -> bool:
    try:
        return bool(shard_keys(path))
    except UserError:
        return False
