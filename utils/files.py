"""Files and folders that are complete or absent, never half-written; checksums and locks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from utils.cli import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replaced_file(path: Path, flush: bool = True) -> Iterator[BinaryIO]:
    """A file to write next to `path`, flushed to the disk and then renamed to it: a reader never sees half of it.

    An OSError, such as a full disk, leaves nothing behind. Without `flush` only a power cut can lose the content.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replaced_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_object(path: Path, expected: str, flag: str = "") -> dict[str, Any]:
    """The object in a JSON file; the error names the flag, the file and what was `expected`."""
    name = f"{flag} {path}".strip()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; expected {expected}") from None
    except ValueError as error:
        raise UserError(f"{name}: damaged ({error}); expected {expected}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: expected {expected}")
    return value


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors so that equal content gives equal bytes: safetensors' own order of the metadata varies."""
    from safetensors.torch import save  # here: most users of this module need no torch

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
    """{relative name with `/`: stat} of every file in a folder and its subfolders, sorted, without hidden ones."""
    found: dict[str, os.stat_result] = {}
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = os.path.join(base, name)
                with contextlib.suppress(OSError):  # a dangling link counts as missing
                    found[os.path.relpath(path, folder).replace(os.sep, "/")] = os.stat(path)
    return found


def write_manifest(folder: Path, known: dict[str, str] | None = None) -> None:
    """Write MANIFEST.json: size and sha256 of every other file. `known` has sums that need not be computed again."""
    entries = {}
    for name, stat in list_files(folder).items():
        entries[name] = {"bytes": stat.st_size, "sha256": (known or {}).get(name) or file_sha256(folder / name)}
    write_json(folder / "MANIFEST.json", entries)


def _replace(new: Path, target: Path) -> None:
    if not target.exists():
        os.rename(new, target)
        return
    old = target.with_name(f".{target.name}.old")
    os.rename(target, old)  # a kill between the two renames leaves `old`, which recover_folder puts back
    os.rename(new, target)
    shutil.rmtree(old)


def recover_folder(target: Path) -> None:
    """Put the old folder back if a kill between the two renames of `replaced_folder` left `target` missing."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.rename(old, target)
    elif old.exists():
        shutil.rmtree(old)


def check_writable(target: Path) -> None:
    """Refuse a `target` that can't be created. A file is written: permissions do not show /proc or a read-only disk."""
    try:
        place = next(folder for folder in target.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"--output_dir {target}: can't be created ({error.strerror}); give another folder") from None


def flush_folder(folder: Path) -> None:
    """Return when everything in the folder is on the disk."""
    paths = [os.path.join(base, name) for base, _, names in os.walk(folder) for name in (*names, "")]
    if len(paths) > 100:  # one by one, 2,845 images took 17 s; sync also waits for other programs' files
        return os.sync()
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A hidden sibling to write into; it becomes `target` if the block succeeds and is removed if it fails.

    Killed at any moment, nothing is lost: the next run removes a half-written sibling and puts a moved folder back.
    """
    check_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.partial")
    new.mkdir(exist_ok=True)
    lock = lock_folder(new, target)
    try:
        recover_folder(target)
        for entry in new.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield new
        flush_folder(new)  # the data must reach the disk before the name does
        _replace(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _lock(descriptor: int, wait: bool) -> None:
    import fcntl  # here: Windows has none, and the scripts refuse to start there (utils.cli.make_parser)

    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_folder(path: Path, output_dir: Path | None = None) -> int:
    """Lock a folder or file until the returned descriptor is closed or the process ends, however it ends.

    If another process holds it, that is an error which names `output_dir` (by default `path`).
    """
    lock = os.open(path, os.O_RDONLY)
    try:
        _lock(lock, wait=False)
    except BlockingIOError:
        os.close(lock)
        raise UserError(
            f"--output_dir {output_dir or path}: another process is writing it; wait for it, or give another folder"
        ) from None
    except OSError as error:  # a network drive, such as Colab's, may have no locks
        logger.warning("%s can't be locked (%s): make sure that only one process writes it", path, error.strerror)
    return lock


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Hold the folder's lock during the block, after waiting for any other process that holds it.

    On a drive without locks the block runs without one.
    """
    lock = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            _lock(lock, wait=True)
        yield
    finally:
        os.close(lock)
