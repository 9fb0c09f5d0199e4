"""Output folders: what a script may replace, move aside or delete in them, and how a folder is replaced as a whole."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.cli import UserError, is_remote
from utils.files import (
    MANIFEST,
    flock,
    list_files,
    listed_in,
    lists_above,
    lock_folder,
    note_written,
    read_manifest,
    read_written,
    start_list,
    written_list,
)
from utils.hub import DEMO

logger = logging.getLogger(__name__)
PARTIAL = re.compile(r"\..+\.(\d+)\.partial")  # a file while it is written, with the number of the process
IGNORED = re.compile(r"\.DS_Store|\.lease.*\.json")  # of a Mac; who keeps the folder elsewhere (utils/storage.py)
LEFT_FOLDER = re.compile(r"\..+\.(partial|removed)")  # a folder while it is written or removed


def claim_folder(folder: Path, kind: str) -> None:
    """From now on this process adds what it writes in an output folder to its list there.

    What killed processes had moved is put back; what they left half-written goes by `remove_stale`, which comes first.
    """
    start_list(folder, kind)
    for old in folder.glob(".*.old"):
        if old.is_dir():
            recover_folder(folder / old.name[1:-4])


def remove_written(path: Path) -> None:
    """Delete a file in a claimed folder if it is on the list of what was written there; any other stays."""
    if path.name in listed_in(path.parent.resolve()):
        path.unlink(missing_ok=True)


def foreign_files(folder: Path, kind: str = "", place: Path | None = None) -> list[str]:
    """What a folder holds that is not listed as written by a script: links, and files of another size, too.

    The lists are the folder's MANIFEST.json, that of this kind of script, and those of the folders that this process
    has claimed, which know the folder by the path `place`.
    """
    sizes = {name: entry["bytes"] for name, entry in read_manifest(folder).items()}
    own = {*sizes, *([MANIFEST] if sizes else []), written_list(folder, kind).name, *read_written(folder, kind)}
    own |= listed_in((place or folder).resolve())
    own_folders = tuple(name for name in own if name.endswith("/"))
    found = []
    for base, folders, files in os.walk(folder):
        for path in (Path(base, name) for name in (*folders, *files)):
            name = path.relative_to(folder).as_posix()
            if (path.is_dir() and not path.is_symlink()) or IGNORED.fullmatch(path.name):
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
    Data may be a folder that is still to be made, a model `demo` or a hub id.
    """
    out = output.resolve()
    nested = not out.is_dir() or any(out.glob(".*.written")) or not any(out.iterdir())
    for flag, value in {**data, **(models or {})}.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            place = DEMO / "model" if one == "demo" and flag not in data else Path(os.path.realpath(one or ""))
            if not one or is_remote(str(one)) or (flag not in data and not place.exists()):
                continue
            inside = out.is_relative_to(place) and (flag in data or not nested or out == place)
            if inside or place.is_relative_to(out):
                where = "is the same as" if out == place else "is inside" if inside else "contains"
                raise UserError(f"--output_dir {output}: {where} --{flag} {one}; give a folder outside it")


def check_writable(target: Path) -> None:
    """Refuse a `target` that can't be created. A file is written: permissions do not show /proc or a read-only disk."""
    try:
        place = next(folder for folder in target.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"--output_dir {target}: can't be created ({error.strerror}); give another folder") from None


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
        flock(lock, wait=False)
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
    if lists_above(target):
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
    lists_above(target)
    with partial_folder(target) as new:
        recover_folder(target)
        yield new
        flush_folder(new)  # the data must reach the disk before the name does
        put_in_place(new, target)
