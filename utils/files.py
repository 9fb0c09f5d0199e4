"""Files and folders that are complete or absent, never half-written; what a script may delete; checksums and locks."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from utils.cli import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
MOST_BYTES = 1 << 30  # of a file that is read at once: a table, an image
PARTIAL = re.compile(r"\..+\.(\d+)\.partial")  # a file while it is written, with the number of the process
LEFT_FOLDER = re.compile(r"\..+\.(partial|removed)")  # a folder while it is written or removed
_claimed: dict[Path, set[str]] = {}  # the lists of this process's output folders, and the names in them


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
                _lock(file.fileno(), wait=False)
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


def open_regular(path: Path) -> BinaryIO:
    """A file that a user named, to be read; OSError for a pipe or a device, which may wait or go on for ever."""
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
    """As json.loads; a ValueError also where lists or objects are nested beyond all sense."""
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


def write_manifest(folder: Path, known: dict[str, str] | None = None, names: Iterable[str] | None = None) -> None:
    """Write MANIFEST.json: size and sha256 of every other file, or of these; `known`: sums that need no computing."""
    entries = {}
    for name, found in list_files(folder).items():
        if name != "MANIFEST.json" and (names is None or name in names):
            entries[name] = {"bytes": found.st_size, "sha256": (known or {}).get(name) or file_sha256(folder / name)}
    write_json(folder / "MANIFEST.json", entries)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: {"bytes", "sha256"}} of MANIFEST.json; empty where there is none, or where it is damaged."""
    try:
        entries = parse_json(read_text(folder / "MANIFEST.json"))
        return {name: {"bytes": entry["bytes"], "sha256": entry["sha256"]} for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def written_list(folder: Path, kind: str) -> Path:
    """The list of what scripts of a kind (train, generate …) wrote in an output folder: a file or folder/ a line."""
    return folder / f".{kind}.written"


def read_written(folder: Path, kind: str) -> set[str]:
    path = written_list(folder, kind)
    return set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()


def claim_folder(folder: Path, kind: str) -> None:
    """From now on this process adds what it writes in an output folder to its list there.

    What killed processes left half-written is removed, and what they had moved is put back.
    """
    remove_stale(folder)
    written_list(folder, kind).touch()
    _claimed[written_list(folder.resolve(), kind)] = read_written(folder, kind)
    for old in folder.glob(".*.old"):
        if old.is_dir():
            recover_folder(folder / old.name[1:-4])


def _claims_on(path: Path) -> list[tuple[Path, str]]:
    """(list of a claimed folder, name in it) of a path; an error where such a folder was removed or moved meanwhile."""
    place = path.parent.resolve() / path.name
    lists = [one for one in _claimed if place.is_relative_to(one.parent)]
    for one in lists:
        if not one.exists():
            raise UserError(f"--output_dir {one.parent}: was removed or moved meanwhile; nothing more is written there")
    return [(one, place.relative_to(one.parent).as_posix()) for one in lists]


def note_written(path: Path, is_folder: bool = False) -> None:
    """Add a file, or all that will ever be in a folder, to the list of the claimed folder in which it lies, if any."""
    for written, name in _claims_on(path):
        name += "/" * is_folder
        if name not in _claimed[written] and not re.search(r"(^|/)\.", name):
            with open(written, "a", encoding="utf-8") as file:
                file.write(f"{name}\n")
            _claimed[written].add(name)


def remove_written(path: Path) -> None:
    """Delete a file in a claimed folder if it is on the list of what was written there; any other stays."""
    if any(name in _claimed[written] for written, name in _claims_on(path)):
        path.unlink(missing_ok=True)


def foreign_files(folder: Path, kind: str = "", place: Path | None = None) -> list[str]:
    """What a folder holds that is not listed as written by a script: links, and files of another size, too.

    The lists are the folder's MANIFEST.json, that of this kind of script, and those of the folders that this process
    has claimed, which know the folder by the path `place`.
    """
    sizes = {name: entry["bytes"] for name, entry in read_manifest(folder).items()}
    own = {*sizes, *(["MANIFEST.json"] if sizes else []), written_list(folder, kind).name, *read_written(folder, kind)}
    place = (place or folder).resolve()
    for written, names in _claimed.items():
        if place.is_relative_to(written.parent):
            own |= {os.path.relpath(written.parent / name, place) + "/" * name.endswith("/") for name in names}
    own_folders = tuple(name for name in own if name.endswith("/"))
    found = []
    for base, folders, files in os.walk(folder):
        for path in (Path(base, name) for name in (*folders, *files)):
            name = path.relative_to(folder).as_posix()
            if (path.is_dir() and not path.is_symlink()) or path.name == ".DS_Store":
                continue
            is_own = (name in own or name.startswith(own_folders)) and not path.is_symlink()
            if not is_own or path.stat().st_size != sizes.get(name, path.stat().st_size):
                found.append(name)
    return sorted(found)


def set_aside(path: Path, target: Path | None = None) -> Path:
    """Rename a file or folder to `<target>.replaced-<date>` (by default its own name), which is returned."""
    target = target or path
    date = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    aside = target.with_name(f"{target.name}.replaced-{date}")
    while os.path.lexists(aside):
        aside = aside.with_name(f"{aside.name}x")
    os.rename(path, aside)
    return aside


def discard_folder(folder: Path, kind: str = "", target: Path | None = None) -> None:
    """Delete a folder that holds nothing but what its script wrote; any other becomes `<target>.replaced-<date>`.

    `kind`: see `foreign_files`. A link is kept too.
    """
    target = target or folder
    remove_stale(folder)
    if extra := [folder.name] if folder.is_symlink() else foreign_files(folder, kind, target):
        aside = set_aside(folder, target)
        logger.warning("%s held what no script wrote (%s), so all of it is kept in %s", target, extra[0], aside)
        return
    removed = target.with_name(f".{target.name}.removed")
    if removed.exists():  # by a process that was killed
        shutil.rmtree(removed)
    os.rename(folder, removed)  # first, so that a kill leaves no half of it
    shutil.rmtree(removed)


def check_movable(folder: Path) -> None:
    """Refuse to delete or move a folder that holds the current one, the user's home or this repository."""
    own = {"current": Path.cwd(), "home": Path(os.path.expanduser("~")), "program's": Path(__file__).parent.parent}
    for what, place in own.items():
        if place.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--output_dir {folder}: is or holds the {what} folder, {place}; give another folder")


def check_apart(output: Path, data: dict[str, Any], models: dict[str, Any] | None = None) -> None:
    """Refuse an output folder that is, holds or lies in what is read. `data` and `models`: {flag: path or paths}.

    Links are resolved first. A new folder, or one that a script wrote, may lie in that of a model: runs/x/images.
    """
    out = output.resolve()
    nested = not out.is_dir() or any(out.glob(".*.written")) or not any(out.iterdir())
    for flag, value in {**data, **(models or {})}.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            place = Path(one or "").resolve()
            if not one or not place.exists():  # a hub id
                continue
            inside = out.is_relative_to(place) and (flag in data or not nested or out == place)
            if inside or place.is_relative_to(out):
                where = "is the same as" if out == place else "is inside" if inside else "contains"
                raise UserError(f"--output_dir {output}: {where} --{flag} {one}; give a folder outside it")


def remove_stale(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder, and never what a living one writes."""
    for base, folders, names in os.walk(folder):
        left = [name for name in folders if LEFT_FOLDER.fullmatch(name)]
        folders[:] = [name for name in folders if name not in left]
        for name in (*left, *filter(PARTIAL.fullmatch, names)):
            _remove_left(Path(base, name))


def _remove_left(path: Path) -> None:
    """Remove a file or folder, unless the process in its name lives, or any holds its lock, here or elsewhere."""
    if number := PARTIAL.fullmatch(path.name):
        try:
            os.kill(int(number[1]), 0)
            return
        except ProcessLookupError:
            pass
        except (PermissionError, OverflowError):  # another user's; no number of a process, so no name of ours
            return
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # another process has just removed it
        return
    try:
        _lock(lock, wait=False)
    except OSError:  # held, or a drive without locks, where nobody can say
        pass
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def put_in_place(new: Path, target: Path) -> None:
    """Rename a complete file or folder to `target`; a folder that is there goes as in `discard_folder`."""
    old = target.with_name(f".{target.name}.old")
    if target.is_dir():
        os.rename(target, old)
    os.rename(new, target)  # a kill before this leaves `old`, which recover_folder puts back
    if old.exists():
        discard_folder(old, target=target)
    for path in [target / name for name in list_files(target)] if target.is_dir() else [target]:
        note_written(path)


def recover_folder(target: Path) -> None:
    """Put the old folder back if a kill between the two renames of `put_in_place` left `target` missing.

    Else what is left of the old one goes, as `put_in_place` would have done it.
    """
    target = target.resolve()
    old, removed = (target.with_name(f".{target.name}.{state}") for state in ("old", "removed"))
    if old.exists() and not target.exists():
        os.rename(old, target)
    elif old.exists():
        discard_folder(old, target=target)
    if removed.exists():
        shutil.rmtree(removed)


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
def partial_folder(target: Path) -> Iterator[Path]:
    """A hidden sibling of `target` to write into, empty and locked, and removed at the end."""
    check_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.partial")
    new.mkdir(exist_ok=True)
    lock = lock_folder(new, target)
    try:
        for entry in new.iterdir():  # left by a process that was killed
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` if the block succeeds; a link to a folder stays one.

    Killed at any moment, nothing is lost: the next run removes a half-written folder and puts a moved one back.
    """
    target = target.resolve()
    _claims_on(target)
    with partial_folder(target) as new:
        recover_folder(target)
        yield new
        flush_folder(new)  # the data must reach the disk before the name does
        put_in_place(new, target)


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
