"""Folders that lie elsewhere: in S3, in Google Cloud Storage, or on a mounted drive, which is a folder like any other.

A file is there whole or not at all. Only one process at a time may write to a place: the one that holds its lease.
What is only read is fetched into a cache, once, and verified.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from utils.cli import ADVICE, OF_ONE_PROCESS, UserError, counted, is_remote, mask_text, note_copy
from utils.console import track
from utils.dataset import SPLITS
from utils.files import (
    MANIFEST,
    file_sha256,
    link_or_copy,
    locked_folder,
    parse_json,
    parse_manifest,
    read_text,
    replaced_file,
    write_text,
)
from utils.outputs import remove_stale
from utils.parallel import thread_map

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Entry = dict[str, Any]  # of a file: its "bytes", and "sha256" or, where nobody has noted that, the bucket's "version"
EXPECTED = "expected s3://bucket/folder, gs://bucket/folder or a folder, such as one on a drive"
AT_ONCE = 8  # files that are transferred at the same time
PARTS, PART_BYTES = 4, 16 << 20  # of a large file, sent at the same time: all together, half a GiB of memory at most
PATIENCE = 120.0  # seconds for which a place may be out of reach at the start
S3_OPTIONS: dict[str, Any] = {"max_concurrency": PARTS, "config_kwargs": {"retries": {"total_max_attempts": 2}}}
RENEWED, EXPIRES = 60.0, 180.0  # seconds from one renewal of a lease to the next, and to its end
LEASE = re.compile(r"\.lease(-\d+-of-\d+)?\.json")
DAMAGED = "its size or sha256 is not that of its MANIFEST.json or summary.json"


@dataclass(frozen=True)
class Place:
    """A folder that lies elsewhere; `given`: the flag and its value, for messages."""

    fs: AbstractFileSystem
    root: str
    given: str

    @property
    def is_folder(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def within(self, folder: str) -> "Place":
        return replace(self, root=self.path(folder))


def open_place(name: str, flag: str) -> Place:
    """The place that a flag names, in a bucket or on a drive."""
    given = mask_text(f"{flag} {name.strip() or repr(name)}")
    (_check_address if "://" in name else _check_folder)(name, given)
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else each request asks for the bucket's kind
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it would show a traceback for each of its tries
    options = S3_OPTIONS if name.startswith("s3://") else {}
    try:
        fs, root = url_to_fs(name.rstrip("/"), skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        raise UserError(f"{given}: {error}; pip install -r requirements-cloud.txt") from None
    if options:
        fs.retries = 1  # else five times two, of 15 s each where nobody answers
    return Place(fs, str(root), given)


def _check_address(name: str, given: str) -> None:
    if not is_remote(name):
        raise UserError(f"{given}: {EXPECTED}")
    if not re.match(r"\w+://[^/]+/+[^/]", name):
        raise UserError(f"{given}: expected a folder in a bucket, as {name.partition(':')[0]}://bucket/folder")
    if not re.match(r"\w+://[\w.:-]+/", name) or ".." in name.split("/"):
        characters = "letters, digits, `-` and `.` in a bucket's name, no `..`, and no password: that is for .env"
        raise UserError(f"{given}: expected {characters}")


def _check_folder(name: str, given: str) -> None:
    """Refuse a folder whose parent is missing, too: the drive that it is on is then not mounted."""
    if not name.strip() or re.match(r"\w+:/", name):
        raise UserError(f"{given}: {EXPECTED}")
    path = Path(name).absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"{given}: is a file; give a folder")
    if not path.parent.is_dir():
        raise UserError(f"{given}: {path.parent} does not exist; mount the drive, or make that folder")


# Faults


def _repair(place: Place, error: Exception) -> str | None:
    """What the user can do about a missing bucket, credentials or rights; None for a fault that may pass."""
    if "bucket does not exist" in str(error):
        return "correct the name, or create it"
    is_refused = isinstance(error, (PermissionError, NotADirectoryError)) or getattr(error, "code", None) in (401, 403)
    if not is_refused and "Credential" not in type(error).__name__:
        return None
    if place.is_folder:
        return "give a folder that can be written"
    return "give the credentials of an account that may use it (docs/cloud.md)"


def describe(error: BaseException) -> str:
    """One line without secrets, of an error of any library."""
    return mask_text(" ".join(str(error).split()))[:200] or type(error).__name__


def patiently(place: Place, act: Callable[[], Result]) -> Result:
    """What `act` returns; while the place is out of reach, again with growing pauses. A file that is missing raises."""
    end, pause = time.monotonic() + PATIENCE, 1.0
    while True:
        try:
            return act()
        except (FileExistsError, UserError):
            raise
        except Exception as error:  # botocore, aiohttp and gcsfs each have their own
            if repair := _repair(place, error):
                raise UserError(f"{place.given}: {describe(error)}; {repair}") from error
            if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) in ADVICE:  # as of a full disk
                raise
            if time.monotonic() > end:
                what = f"can't be reached ({describe(error)})"
                raise UserError(f"{place.given}: {what}; check the connection, then give the command again") from error
            logger.warning("%s: %s; trying again in %.0f s", place.given, describe(error), pause, extra=OF_ONE_PROCESS)
        time.sleep(pause)
        pause = min(2 * pause, 30)


# Files


def list_place(place: Place) -> dict[str, int]:
    """{name: bytes} of all that is there, but for what is half-written, and names that lead out of the folder."""
    return {name: entry["size"] for name, entry in list_details(place).items()}


def list_details(place: Place) -> dict[str, dict[str, Any]]:
    """{name: what the library tells of it} of the same."""
    found = place.fs.find(place.root, detail=True)
    names = {path.removeprefix(f"{place.root}/"): entry for path, entry in found.items()}
    return {name: entry for name, entry in sorted(names.items()) if is_kept(name)}


def is_kept(name: str) -> bool:
    """Whether a name counts: not that of a half-written file, nor of the empty `folder/` that a bucket's page makes."""
    return bool(name) and not (name.endswith((".partial", "/")) or ".." in name.split("/"))


def send_bytes(place: Place, name: str, content: bytes) -> None:
    if place.is_folder:
        _make_parent(place, name)
        with replaced_file(Path(place.path(name))) as file:
            file.write(content)
    else:
        place.fs.pipe_file(place.path(name), content)


def send_file(place: Place, name: str, source: Path) -> None:
    if place.is_folder:
        _make_parent(place, name)
        with replaced_file(Path(place.path(name))) as file, open(source, "rb") as content:
            shutil.copyfileobj(content, file, 1 << 20)
    else:
        place.fs.put_file(str(source), place.path(name), chunksize=PART_BYTES)


def replace_folder(place: Place, source: str, target: str) -> None:
    """Put a folder of a place, whose manifest is whole, in the place of another; one of them is whole at any moment."""
    there = list_place(place)
    new, old = ([name for name in there if name.startswith(f"{folder}/")] for folder in (source, target))
    if place.is_folder:
        shutil.rmtree(place.path(target), ignore_errors=True)
        os.rename(place.path(source), place.path(target))
        return
    kept = {name: name.replace(source, target, 1) for name in sorted(new, key=lambda name: name.endswith(MANIFEST))}
    for name in kept:  # in the bucket: their content does not come here
        place.fs.cp_file(place.path(name), place.path(kept[name]))
    remove_files(place, [*new, *(name for name in old if name not in kept.values())])


def _make_parent(place: Place, name: str) -> None:
    """The folder that a file goes into; an error where the place is gone, as when its drive is unmounted."""
    if not os.path.isdir(place.root):
        raise FileNotFoundError(f"{place.root} is gone: its drive is not mounted, or it was removed")
    os.makedirs(os.path.dirname(place.path(name)), exist_ok=True)


def read_bytes(place: Place, name: str) -> bytes | None:
    """The content of a small file; None if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return place.fs.cat_file(place.path(name))
    return None


def read_json(place: Place, name: str) -> dict[str, Any]:
    """An object in a small file; empty if it is not there or damaged."""
    with contextlib.suppress(ValueError):
        value = parse_json(read_bytes(place, name) or b"")
        return value if isinstance(value, dict) else {}
    return {}


def fetch_files(place: Place, names: Sequence[str], folder: Path, expected: Mapping[str, Entry] | None = None) -> None:
    """Copy files of a place into a folder, each whole or not at all.

    `expected`: what is known of them. A file that isn't so is fetched once more, then refused.
    """

    def get(name: str) -> None:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            for _ in range(2):
                patiently(place, lambda: place.fs.get_file(place.path(name), str(partial)))
                if expected is None or is_as(partial, expected[name]):
                    os.replace(partial, target)
                    return
            raise UserError(f"{place.given}: {name} there is damaged: {DAMAGED}; upload it again")
        except FileNotFoundError:
            if expected is not None:  # else it was removed since it was listed
                raise UserError(f"{place.given}: {name} is missing there; upload it again") from None
        finally:
            partial.unlink(missing_ok=True)

    for _ in track(thread_map(get, names, AT_ONCE), len(names), "files", "fetching", shown=expected is not None):
        pass


def is_as(path: Path, entry: Entry) -> bool:
    """Whether a file has the size, and the sha256 if one is known, of its entry."""
    return path.stat().st_size == entry["bytes"] and entry.get("sha256") in (None, file_sha256(path))


def remove_files(place: Place, names: Iterable[str]) -> None:
    """Remove files, what vouches for others first: a folder half removed then counts as nothing."""
    for name in sorted(names, key=lambda name: (not name.endswith(MANIFEST), name)):
        with contextlib.suppress(FileNotFoundError):
            place.fs.rm_file(place.path(name))
        if place.is_folder and "/" in name:
            with contextlib.suppress(OSError):  # not empty yet
                os.rmdir(os.path.dirname(place.path(name)))


# What a flag names, to be read


@functools.cache  # a script asks for one name several times
def fetch(name: str | Path, cache: Path, flag: str, wanted: tuple[str, ...] = ()) -> Path:
    """The path of what a flag names; what lies in a bucket is fetched into `cache`/fetched, unless it is there already.

    Each file is verified before it gets its name. What has changed there since is another copy: no process finds its
    data changed. `wanted`: those files of a folder that are of use, the others are left.
    """
    if isinstance(name, Path) or not is_remote(name):
        return Path(name)
    place, files, named = _find_files(open_place(name, flag), wanted)
    _check_names(place, files)
    key = hashlib.sha256(json.dumps([place.root, files], sort_keys=True).encode()).hexdigest()[:12]
    home = cache / "fetched" / key
    folder = home / place.root
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(home):  # several processes fetch it once
        _fetch_missing(place, files, folder)
    note_copy(flag, folder / named, name)
    return folder / named


def _check_names(place: Place, files: Iterable[str]) -> None:
    """Refuse names that would lead out of the cache."""
    for name in (place.root, *files):
        if ".." in name.split("/") or name.startswith("/") or "\0" in name:
            raise UserError(f"{place.given}: holds a file of the name {name!r}, which leads elsewhere; remove it there")


def _find_files(place: Place, wanted: tuple[str, ...]) -> tuple[Place, dict[str, Entry], str]:
    """The folder to fetch from, {name: entry} of what to fetch, and what of it was named (empty: the folder)."""
    parent, _, last = place.root.rpartition("/")
    above = replace(place, root=parent)
    if last in SPLITS:  # is read with the metadata of its dataset
        files = _read_manifest(above)
        if any(name.startswith(f"{last}/") for name in files):
            own = (f"{last}/", "metadata.json", MANIFEST)
            return above, {name: entry for name, entry in files.items() if name.startswith(own)}, last
    files = _read_manifest(place) or _list_entries(place)
    if place.root in files:
        return above, {last: files[place.root]}, last
    files = {name: entry for name, entry in files.items() if not wanted or name in wanted}
    if not files:
        what = f"holds none of {', '.join(wanted)}" if wanted else "no such file or folder"
        raise UserError(f"{place.given}: {what}; check the names of bucket and folder")
    return place, files, ""


def _read_manifest(place: Place) -> dict[str, Entry]:
    """The entries of the MANIFEST.json there, and its own; empty if it has none."""
    content = patiently(place, lambda: read_bytes(place, MANIFEST)) or b""
    own = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return entries | {MANIFEST: own} if (entries := parse_manifest(content)) else {}


def _list_entries(place: Place) -> dict[str, Entry]:
    """What is there, without hidden files; the files of a finished training have their sha256 in its summary.json."""
    entries = {}
    for name, one in patiently(place, lambda: list_details(place)).items():
        if not any(part.startswith(".") for part in name.split("/")):
            version = one.get("ETag") or one.get("etag") or one.get("mtime")
            entries[name] = {"bytes": one["size"], "version": str(version)}
    if "summary.json" in entries:
        sums = patiently(place, lambda: read_json(place, "summary.json")).get("files")
        for name in sums.keys() & entries.keys() if isinstance(sums, dict) else ():
            entries[name]["sha256"] = str(sums[name])
    return entries


def _fetch_missing(place: Place, files: dict[str, Entry], folder: Path) -> None:
    """Fetch what is not in the folder yet, each content once: a generated set names its images twice."""

    def is_there(name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(folder / name).st_size == files[name]["bytes"]
        return False

    missing = {name for name in files if not is_there(name)}
    if not missing:
        return
    remove_stale(folder)
    first: dict[str, str] = {}  # the file of each content, one that is there before one that is missing
    for name in sorted(files, key=lambda name: name in missing):
        first.setdefault(files[name].get("sha256", name), name)
    if names := [name for name in first.values() if name in missing]:
        size = sum(files[name]["bytes"] for name in names)
        _check_room(place, size, folder)
        print(f"{place.given}: fetching {counted(len(names), 'file')}, {size / 1e6:,.1f} MB, into {folder}", flush=True)
        if not any("sha256" in files[name] for name in names):
            logger.warning("%s: no MANIFEST.json there, so nothing but sizes can be verified", place.given)
        fetch_files(place, names, folder, files)
    for name in missing.difference(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        link_or_copy(folder / first[files[name]["sha256"]], folder / name)


def _check_room(place: Place, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        room = f"{size / 1e6:,.1f} MB to fetch, and {folder} has room for {free / 1e6:,.1f} MB"
        raise UserError(f"{place.given}: {room}; make room, or let a link lead to a larger disk from there")


# The lease


@dataclass(frozen=True)
class Lease:
    """That this process alone writes to a place (or a share of it, by the lease's name); `lost` if another took it."""

    place: Place
    name: str
    owner: str
    ended: threading.Event
    lost: threading.Event
    writing: threading.Lock

    def content(self) -> bytes:
        now = datetime.datetime.now(datetime.UTC).isoformat()
        return json.dumps({"owner": self.owner, "host": socket.gethostname(), "renewed": now}).encode()


def take_lease(place: Place, name: str, folder: Path) -> Lease:
    """Take the lease of a place, and renew it from now on; refused while another process renews it.

    One that was not renewed for three minutes is a dead machine's and is taken over; so is one of this folder, which
    this process has locked.
    """
    if place.is_folder:
        patiently(place, lambda: Path(place.root).mkdir(exist_ok=True))
    kept = folder / name
    owner = read_text(kept) if kept.is_file() else uuid.uuid4().hex
    write_text(kept, owner)
    lease = Lease(place, name, owner, threading.Event(), threading.Event(), threading.Lock())
    if not patiently(place, lambda: _create(lease)):
        _wait_for_end(lease)
        patiently(place, lambda: send_bytes(place, name, lease.content()))
        time.sleep(min(2.0, EXPIRES / 10))  # another process may have seen its end at the same moment
        if not patiently(place, lambda: _is_ours(lease)):
            raise UserError(f"{place.given}: another process has just begun to write there; give another place")
    threading.Thread(target=_renew, args=[lease], daemon=True, name="lease").start()
    return lease


def _create(lease: Lease) -> bool:
    """Whether the lease could be created: nobody had it."""
    place = lease.place
    try:
        place.fs.pipe_file(place.path(lease.name), lease.content(), mode="create")
    except FileExistsError:
        return _is_ours(lease)
    return True


def _is_ours(lease: Lease) -> bool:
    return read_json(lease.place, lease.name).get("owner") == lease.owner


def _wait_for_end(lease: Lease) -> None:
    """Return once another's lease has ended, and refuse as soon as it is renewed."""
    place = lease.place
    first = patiently(place, lambda: read_json(place, lease.name))
    left = EXPIRES - patiently(place, lambda: _age(lease))
    who = f"another process, on {first.get('host', 'an unknown machine')},"
    if left > 0:
        logger.warning(
            "%s: %s may be writing there; waiting up to %.0f s to see whether it lives", place.given, who, left
        )
    while left > 0:
        time.sleep(min(left, EXPIRES / 60))
        left -= EXPIRES / 60
        now = patiently(place, lambda: read_json(place, lease.name))
        if not now:  # given back
            return
        if now != first:
            raise UserError(f"{place.given}: {who} writes there; wait for its end, or give another place")


def _age(lease: Lease) -> float:
    """Seconds since the lease was renewed, by the clock of the place."""
    place, probe = lease.place, f".clock-{lease.owner}"
    try:
        send_bytes(place, probe, b"")
        return (place.fs.modified(place.path(probe)) - place.fs.modified(place.path(lease.name))).total_seconds()
    except FileNotFoundError:  # given back meanwhile
        return EXPIRES
    finally:
        remove_files(place, [probe])


def holds(lease: Lease) -> bool:
    """Whether the place is still this process's: after minutes out of reach, another may have taken it over.

    An error where there is no lease any more: the drive is not mounted, or somebody has removed what was there.
    """
    owner = read_json(lease.place, lease.name).get("owner")
    if owner is None:
        raise FileNotFoundError(f"{lease.name} is gone there: the drive is not mounted, or the folder was removed")
    if owner != lease.owner and not lease.lost.is_set():
        lease.lost.set()
        logger.error("%s: another process has taken it over; nothing more is sent there", lease.place.given)
    return not lease.lost.is_set()


def _renew(lease: Lease) -> None:
    while not (lease.ended.wait(RENEWED) or lease.lost.is_set()):
        with lease.writing:
            try:
                if not lease.ended.is_set() and holds(lease):
                    send_bytes(lease.place, lease.name, lease.content())
            except Exception as error:  # of many libraries; the next renewal may succeed
                logger.info("%s: its lease could not be renewed (%s)", lease.place.given, describe(error))


def give_back(lease: Lease) -> None:
    """End the lease, so that the next process need not wait for it."""
    with lease.writing:  # a renewal at the same moment would write it once more
        lease.ended.set()
        try:
            if holds(lease):
                remove_files(lease.place, [lease.name])
        except Exception as error:  # of many libraries; the lease then ends by itself
            logger.warning("%s: its lease could not be given back (%s)", lease.place.given, describe(error))
