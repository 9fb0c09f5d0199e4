"""Files that are complete or absent, never half-written; the list of those that a script wrote; checksums and locks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from utils.cli import UserError
from utils.parallel import available_cores, thread_map

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
MANIFEST = "MANIFEST.json"  # size and sha256 of every other file of a folder
CHECKSUMS = "checksums.json"  # in a cache: what kept_sha256 keeps
SETTLED_SECONDS = 2  # a file that was changed later may change again within one tick of its disk's clock
MOST_BYTES = 1 << 30  # of a file that is read at once: a table, an image
# The list in each output folder of this process, and the names in it: whatever function writes a file there adds to it.
_lists: dict[Path, set[str]] = {}


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def kept_sha256(path: Path, table: Path) -> str:
    """The sha256 of a large file, which the table keeps until the file is another one or changes."""
    path = path.resolve()
    found = os.stat(path)
    stamp = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    known = read_if_whole(table).get(str(path))
    if isinstance(known, dict) and known.get("stamp") == stamp:
        return str(known["sha256"])
    sha256 = file_sha256(path)
    if time.time() - found.st_mtime > SETTLED_SECONDS:
        try:
            table.parent.mkdir(parents=True, exist_ok=True)
            write_json(table, read_if_whole(table) | {str(path): {"stamp": stamp, "sha256": sha256}})
        except OSError as error:  # a cache that can only be read
            logger.info("%s can't be written (%s); the next start reads %s again", table, error.strerror, path)
    return sha256


def read_if_whole(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none or where it is damaged."""
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def replaced_file(path: Path, flush: bool = True) -> Iterator[BinaryIO]:
    """A file to write next to `path`, flushed to the disk and then renamed to it: a reader never sees half of it.

    An OSError, such as a full disk, leaves nothing behind. Without `flush` only a power cut can lose the content.
    """
    note_written(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            with contextlib.suppress(OSError):  # a drive without locks
                flock(file.fileno(), wait=False)
            yield file
            file.flush()
            if flush:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replaced_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """A .jsonl file."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def open_regular(path: Path) -> BinaryIO:
    """A file that a user named, to be read; OSError for a pipe or a device, which may have no end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # of a folder, open says so itself
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return open(path, "rb")


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file that a user named; OSError also for one with more than `most` bytes."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"Larger than {most:,} bytes", str(path))
        return file.read()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    return read_file(path).decode(encoding)


def parse_json(text: str | bytes) -> Any:
    """As json.loads; a ValueError also where lists or objects are nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path, expected: str, flag: str = "") -> dict[str, Any]:
    """The object in a JSON file; the error names the flag, the file and what was `expected`."""
    name = f"{flag} {path}".strip()
    try:
        value = parse_json(read_text(path))
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


def save_model(model: Any, folder: Path, **options: Any) -> None:
    """As `save_pretrained`, whose weights only their owner can read: here all who can read the config beside them."""
    model.save_pretrained(folder, **options)
    for path in folder.rglob("*.safetensors"):
        shutil.copymode(path.with_name("config.json"), path)


def list_files(folder: Path) -> dict[str, os.stat_result]:
    """{relative name with `/`: stat} of every file in a folder and its subfolders, sorted, without hidden ones.

    Links are followed, but not back into a folder that was walked before: one may lead to a folder above it.
    """
    found: dict[str, os.stat_result] = {}
    seen: set[str] = set()
    for base, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(base))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(base, name)) not in seen]
        for name in sorted(names):
            if not name.startswith("."):
                path = os.path.join(base, name)
                with contextlib.suppress(OSError):  # a dangling link counts as missing
                    found[os.path.relpath(path, folder).replace(os.sep, "/")] = os.stat(path)
    return found


def write_manifest(folder: Path, known: dict[str, str] | None = None, names: Iterable[str] | None = None) -> None:
    """Write MANIFEST.json: size and sha256 of every other file, or of these; `known`: sums that need no computing."""
    entries = {}
    for name, found in list_files(folder).items():
        if name != MANIFEST and (names is None or name in names):
            entries[name] = {"bytes": found.st_size, "sha256": (known or {}).get(name) or file_sha256(folder / name)}
    write_json(folder / MANIFEST, entries)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: {"bytes", "sha256"}} of MANIFEST.json; empty where there is none, or where it is damaged."""
    try:
        return parse_manifest(read_file(folder / MANIFEST))
    except OSError:
        return {}


def parse_manifest(content: bytes) -> dict[str, dict[str, Any]]:
    """The entries of a manifest; empty where it is damaged."""
    try:
        entries = parse_json(content)
        return {name: {"bytes": int(one["bytes"]), "sha256": str(one["sha256"])} for name, one in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a drive without hard links
        shutil.copyfile(source, target)


def find_changed(folder: Path, sums: dict[str, str]) -> list[str]:
    """Those files of {name: sha256} that are missing or have other content; hard links to one are read once."""
    there = {name: os.stat(folder / name).st_ino for name in sums if (folder / name).is_file()}
    first = {inode: name for name, inode in there.items()}
    found = dict(zip(first, thread_map(lambda name: file_sha256(folder / name), first.values(), available_cores())))
    return [name for name in sums if name not in there or found[there[name]] != sums[name]]


def written_list(folder: Path, kind: str) -> Path:
    """The list of what scripts of a kind (train, generate …) wrote in an output folder: a file or folder/ a line."""
    return folder / f".{kind}.written"


def read_written(folder: Path, kind: str) -> set[str]:
    path = written_list(folder, kind)
    return set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()


def start_list(folder: Path, kind: str) -> None:
    """From now on this process adds what it writes in an output folder to its list there."""
    path = written_list(folder.resolve(), kind)
    path.touch()
    _lists[path] = read_written(folder, kind)


def lists_above(path: Path) -> list[tuple[Path, str]]:
    """(list of this process, the path's name in it); an error where such a folder was removed or moved meanwhile."""
    place = path.parent.resolve() / path.name
    found = [one for one in _lists if place.is_relative_to(one.parent)]
    for one in found:
        if not one.exists():
            raise UserError(f"--output_dir {one.parent}: was removed or moved meanwhile; nothing more is written there")
    return [(one, place.relative_to(one.parent).as_posix()) for one in found]


def note_written(path: Path, is_folder: bool = False) -> None:
    """Add a file, or all that will ever be in a folder, to the list of the output folder in which it lies, if any."""
    for written, name in lists_above(path):
        name += "/" * is_folder
        if name not in _lists[written] and not re.search(r"(^|/)\.", name):
            with open(written, "a", encoding="utf-8") as file:
                file.write(f"{name}\n")
            _lists[written].add(name)


def listed_in(folder: Path) -> set[str]:
    """What the lists of this process name, relative to a resolved folder; a folder's name ends in `/`."""
    return {
        os.path.relpath(written.parent / name, folder) + "/" * name.endswith("/")
        for written, names in _lists.items()
        if folder.is_relative_to(written.parent)
        for name in names
    }


def flock(descriptor: int, wait: bool) -> None:
    import fcntl  # here: Windows has none, and the scripts refuse to start there (utils.cli.make_parser)

    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_folder(path: Path, output_dir: Path | None = None) -> int:
    """Lock a folder or file until the returned descriptor is closed or the process ends, however it ends.

    If another process holds it, that is an error which names `output_dir` (by default `path`).
    """
    lock = os.open(path, os.O_RDONLY)
    try:
        flock(lock, wait=False)
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
            flock(lock, wait=True)
        yield
    finally:
        os.close(lock)
