"""Files that are whole or not there: checksums, and a folder replaced in one step."""

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.cli import UserError

logger = logging.getLogger(__name__)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside `path`, flushed and renamed into its place: no reader and no kill sees half of it.

    A full disk is an OSError that leaves nothing behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replaced_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_safetensors(path: Path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """Equal content is equal bytes: safetensors itself writes its metadata in an order that changes."""
    from safetensors.torch import save  # here: most of what needs files needs no torch

    data = save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors must begin at a multiple of 8
    with replaced_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(data)[8 + size :])


def list_files(folder: Path) -> dict[str, os.stat_result]:
    """Every file beneath a folder by its relative name (with `/`), sorted; hidden ones left out."""
    found = {}
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = os.path.join(base, name)
                with contextlib.suppress(OSError):  # a dangling link counts as missing
                    found[os.path.relpath(path, folder).replace(os.sep, "/")] = os.stat(path)
    return found


def write_manifest(folder: Path, known: dict[str, str] | None = None) -> None:
    """MANIFEST.json: size and sha256 of every other file; `known` spares reading those whose sum one has."""
    entries = {}
    for name, stat in list_files(folder).items():
        entries[name] = {"bytes": stat.st_size, "sha256": (known or {}).get(name) or file_sha256(folder / name)}
    write_json(folder / "MANIFEST.json", entries)


def swap_folders(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system can't (then neither has moved)."""
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    a, b = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        at_cwd, exchange = -100, 2
        return libc.renameat2(at_cwd, a, at_cwd, b, exchange) == 0
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return libc.renamex_np(a, b, 2) == 0
    return False


def _replace(new: Path, target: Path, old: Path) -> None:
    if not target.exists():
        os.rename(new, target)
    elif swap_folders(new, target):
        shutil.rmtree(new)
    else:
        # Two renames: a kill between them leaves `old`, which recover_folder puts back.
        os.rename(target, old)
        os.rename(new, target)
        shutil.rmtree(old)


def recover_folder(target: Path) -> None:
    """Finish what a kill between the two renames of `replaced_folder` left undone."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.rename(old, target)
    elif old.exists():
        shutil.rmtree(old)


def check_writable(target: Path) -> None:
    """That `target` can be made; by making a file, since permissions don't tell of /proc or a read-only disk."""
    try:
        place = next(folder for folder in target.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"--output_dir {target}: can't be made ({error.strerror}); name another folder") from None


def flush_folder(folder: Path) -> None:
    """Everything in it is on the disk when this returns."""
    paths = [os.path.join(base, name) for base, _, names in os.walk(folder) for name in (*names, "")]
    if len(paths) > 100:  # one by one, 2,845 images took 17 s; all at once includes what other programs write
        return os.sync()
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A hidden sibling to write into, which becomes `target` when the block ends well and is removed when it doesn't.

    Killed at any moment, `target` is what it was or what it was to be; the next run clears what a kill left behind.
    """
    check_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.partial")
    new.mkdir(exist_ok=True)
    lock = lock_folder(new, target)
    try:
        for entry in new.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield new
        flush_folder(new)  # the name must not reach the disk before the data does
        _replace(new, target, target.with_name(f".{target.name}.old"))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def lock_folder(folder: Path, meant: Path | None = None) -> int:
    """An exclusive lock that lasts until the descriptor is closed or the process ends, however it ends."""
    import fcntl

    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(
            f"--output_dir {meant or folder}: another process is writing it; wait for it, or name another"
        ) from None
    except OSError as error:  # a network drive, such as Colab's, may have no locks
        logger.warning("%s can't be locked (%s): take care that only one process writes it", folder, error.strerror)
    return lock
