"""An output folder that is kept elsewhere too: sent in the background while a script works, fetched at its start.

A checkpoint's manifest is sent after its other files, so that there, too, it is whole or doesn't count. What could not
be sent is sent later: each round compares the folder with what is known to be there.
"""

import argparse
import contextlib
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from utils import runs, storage
from utils.checkpoints import checkpoint_damage, list_checkpoints
from utils.cli import UserError, counted, name_some
from utils.dataset import SetKind
from utils.files import MANIFEST, list_files, read_manifest, read_written, written_list
from utils.outputs import check_apart, flush_folder, partial_folder, put_in_place
from utils.parallel import thread_map
from utils.storage import Lease, Place

logger = logging.getLogger(__name__)
EVERY, SLOWEST = 10.0, 60.0  # seconds from one round to the next; after faults they grow
PATIENCE, GRACE = 120.0, 20.0  # seconds for which the end of a script tries to send the rest; after a signal or fault
Stamp = tuple[int, int]  # a file's size and time of change
CHECKPOINT = re.compile(r"checkpoint-(\d+)/")
UNIT = re.compile(r"(checkpoint-\d+|best)/")  # folders that are sent as a whole, their manifest last
NEW_BEST = "best.new"  # where best/ is written first, so that a whole one is there at any moment
TAKEN_OVER = "another process has taken the place over"
_open: list["Sync"] = []  # those whose place this process has taken


@dataclass
class Sync:
    """An output folder and its place elsewhere. `sent`: size and time of what is known to be there; `left`: what could
    not be sent, with the reason.

    `kind`: of the script that writes the folder; `limit`: the number of checkpoints that are kept there.
    """

    place: Place
    folder: Path
    kind: str
    lease: Lease
    limit: int | None = None
    sent: dict[str, Stamp] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


def add_sync_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sync_to",
        metavar="PLACE",
        help="keep the output folder there too, and continue from there: s3://bucket/folder, gs://bucket/folder, or a "
        "folder, such as one on a mounted drive",
    )


def own_files(folder: Path, kind: str) -> dict[str, Stamp]:
    """{name: (size, time)} of what the script wrote, with the list of it: what anybody else put there is not sent.

    A checkpoint that appears meanwhile is left out: what comes before it, as best/, may have been looked at already.
    """
    saved = {path.parent.name for path in folder.glob(f"checkpoint-*/{MANIFEST}")}
    listed = read_written(folder, kind)
    folders = tuple(name for name in listed if name.endswith("/"))
    found = {name: one for name, one in list_files(folder).items() if name in listed or name.startswith(folders)}
    with contextlib.suppress(FileNotFoundError):
        found[written_list(folder, kind).name] = os.stat(written_list(folder, kind))
    return {
        name: stamp(one) for name, one in found.items() if not CHECKPOINT.match(name) or name.partition("/")[0] in saved
    }


def stamp(found: os.stat_result) -> Stamp:
    return found.st_size, found.st_mtime_ns


# Sending


def start_sending(sync: Sync) -> None:
    """From now on a thread sends what changes."""
    sync.thread = threading.Thread(target=_send_on, args=[sync], daemon=True, name="sync")
    sync.thread.start()


def _send_on(sync: Sync) -> None:
    pause = EVERY
    while not sync.ended.wait(pause):
        before = bool(sync.left)
        if bool(send_changes(sync)) != before:
            state = f"{_describe_left(sync)} not sent yet; tried again" if sync.left else "all is sent again"
            logger.warning("%s: %s", sync.place.given, state)
        pause = min(2 * pause, SLOWEST) if sync.left else EVERY


def send_rest(sync: Sync, patience: float = PATIENCE) -> None:
    """Send in this thread, and for so many seconds after a fault too, what is not sent yet."""
    sync.ended.set()
    if sync.thread:
        sync.thread.join()
    end, pause = time.monotonic() + patience, 1.0
    while send_changes(sync) and time.monotonic() < end and not sync.lease.lost.is_set():
        time.sleep(pause)
        pause = min(2 * pause, 30)


def finish_sending(sync: Sync, patience: float = PATIENCE) -> bool:
    """Send the rest (see `send_rest`), and give the place back; whether all of it is there."""
    send_rest(sync, patience)
    give_back(sync)
    if sync.left:
        logger.error("%s: %s not sent; the same command sends the rest", sync.place.given, _describe_left(sync))
    return not sync.left


def finish_all(syncs: list[Sync], patience: float = PATIENCE) -> bool:
    """The same for each of them; whether all of it is there."""
    return all([finish_sending(one, patience) for one in syncs])  # a list, so that none is left out


def give_back(sync: Sync) -> None:
    """Leave the place to the next process."""
    storage.give_back(sync.lease)
    _open.remove(sync)


def _describe_left(sync: Sync) -> str:
    units = dict.fromkeys(found[0] for found in map(UNIT.match, sync.left) if found)
    names, reason = [*units, *(name for name in sync.left if not UNIT.match(name))], next(iter(sync.left.values()))
    return f"{name_some(names)} ({reason})"


@contextlib.contextmanager
def sent_after_fault() -> Iterator[None]:
    """If the block fails, what was written until then is sent first, and every place given back.

    What was never begun to be sent stays here: the folder or the place may have been refused.
    """
    try:
        yield
    except Exception:
        for sync in [*_open]:
            if sync.thread:
                finish_sending(sync, GRACE)
            else:
                give_back(sync)
        raise


def send_changes(sync: Sync) -> dict[str, str]:
    """Send what has changed since it was sent; {name: reason} of what could not be."""
    try:
        fault = _send_round(sync) if storage.holds(sync.lease) else TAKEN_OVER
    except Exception as error:  # of many libraries, at any request
        fault = storage.describe(error)
    sync.left = dict.fromkeys(_changed(sync, own_files(sync.folder, sync.kind)), fault) if fault else {}
    return sync.left


def _changed(sync: Sync, now: dict[str, Stamp]) -> list[str]:
    return [name for name, one in now.items() if sync.sent.get(name) != one]


def _send_round(sync: Sync) -> str:
    """Send each change, in an order in which nothing is there before what it needs; the reason if one could not be.

    The list of the files comes first, then records and settings, best/, the checkpoints from the newest on, the rest.
    """
    now, at_end = own_files(sync.folder, sync.kind), sync.ended.is_set()
    changed = _changed(sync, now)
    units = sorted({name.partition("/")[0] for name in changed if UNIT.match(name)}, key=_newest_first)
    plain = {name: (sync.folder / name, name, now[name]) for name in changed if not UNIT.match(name)}
    first = {name: one for name, one in plain.items() if name.endswith(".written")}
    second = {name: one for name, one in plain.items() if name.endswith((".jsonl", ".yaml"))}
    if fault := _send_files(sync, first) or _send_files(sync, second):
        return fault
    fault = next((fault for unit in units if (fault := _send_unit(sync, unit))), "")  # none past one that failed
    fault = _send_files(sync, {name: one for name, one in plain.items() if name not in {*first, *second}}) or fault
    if fault:
        return fault
    if sync.limit and (units or at_end):
        _rotate(sync.place, sync.limit)
    if at_end and written_list(sync.folder, sync.kind).name in now:  # else all of the folder is gone, by the user
        storage.remove_files(sync.place, [name for name in sync.sent if name not in now and not UNIT.match(name)])
    sync.sent = {name: one for name, one in sync.sent.items() if name in now}
    return ""


def _newest_first(unit: str) -> int:
    """A key to sort by: best/, then the checkpoints from the last one on."""
    return -int(unit.rpartition("-")[2]) if unit != "best" else -sys.maxsize


def _send_files(sync: Sync, files: dict[str, tuple[Path, str, Stamp]]) -> str:
    """Send {name: (file, name there, stamp)}, several at once; the reason if one could not be.

    After several faults the others wait for the next round: nobody answers.
    """
    faults: list[str] = []

    def send(name: str) -> None:
        path, there, one = files[name]
        try:
            if len(faults) < storage.AT_ONCE and not sync.lease.lost.is_set():
                storage.send_file(sync.place, there, path)
                sync.sent[name] = one
        except Exception as error:  # of many libraries; the next round tries again
            faults.append(storage.describe(error))

    for _ in thread_map(send, files, storage.AT_ONCE):
        pass
    return faults[0] if faults else TAKEN_OVER * sync.lease.lost.is_set()


def _send_unit(sync: Sync, unit: str) -> str:
    """Send a checkpoint or best/, its manifest last; the reason if a file could not be sent."""
    place, target = sync.place, NEW_BEST if unit == "best" else unit
    with _held(sync.folder / unit) as copy:
        if copy is None:
            return ""
        manifest, names = (copy / MANIFEST).read_bytes(), [*read_manifest(copy), MANIFEST]
        own = {f"{unit}/{name}": stamp(os.stat(copy / name)) for name in names}
        if manifest != storage.read_bytes(place, f"{unit}/{MANIFEST}"):
            files = {
                name: (copy / name.removeprefix(f"{unit}/"), name.replace(unit, target, 1), one)
                for name, one in own.items()
                if sync.sent.get(name) != one and not name.endswith(f"/{MANIFEST}")
            }
            if fault := _send_whole(sync, files, target, manifest):
                return fault
            if target != unit:
                storage.replace_folder(place, target, unit)
        elif target != unit:  # what a kill left of replacing it
            storage.remove_files(place, [name for name in storage.list_place(place) if name.startswith(f"{target}/")])
    sync.sent |= own
    return ""


def _send_whole(sync: Sync, files: dict[str, tuple[Path, str, Stamp]], target: str, manifest: bytes) -> str:
    """Send files, and then their folder's manifest; the reason if a file could not be sent."""
    name = f"{target}/{MANIFEST}"
    if storage.read_bytes(sync.place, name) not in (None, manifest):
        storage.remove_files(sync.place, [name])  # of another version, whose files are replaced now
    if fault := _send_files(sync, files):
        return fault
    storage.send_bytes(sync.place, name, manifest)
    return ""


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[Path | None]:
    """Hard links to a folder's files, so that they stay while they are sent; None if the folder is not whole."""
    copy = folder.with_name(f".{folder.name}.sent.partial")
    shutil.rmtree(copy, ignore_errors=True)
    try:
        first = os.stat(folder).st_ino
        try:
            shutil.copytree(folder, copy, copy_function=os.link)
        except OSError:  # a drive without hard links
            shutil.rmtree(copy, ignore_errors=True)
            copy = folder
        sizes = {name: entry["bytes"] for name, entry in read_manifest(copy).items()}
        is_whole = sizes and all(os.stat(copy / name).st_size == size for name, size in sizes.items())
        held = copy if is_whole and os.stat(folder).st_ino == first else None  # another: replaced meanwhile
    except OSError:  # removed meanwhile, as the oldest checkpoint is
        held = None
    try:
        yield held
    finally:
        shutil.rmtree(folder.with_name(f".{folder.name}.sent.partial"), ignore_errors=True)


def _rotate(place: Place, limit: int) -> None:
    """Keep the newest checkpoints there that are whole; what is left of older ones goes too."""
    there = storage.list_place(place)
    whole = whole_checkpoints(there)[:limit]
    steps = {name: checkpoint_step(name) for name in there if CHECKPOINT.match(name)}
    storage.remove_files(place, [name for name, step in steps.items() if whole and step < whole[-1]])


def checkpoint_step(name: str) -> int:
    return int(CHECKPOINT.match(name)[1])


def whole_checkpoints(there: Iterable[str]) -> list[int]:
    """The steps of the checkpoints that have a manifest, the newest first."""
    return sorted(
        (checkpoint_step(name) for name in there if name.endswith(f"/{MANIFEST}") and CHECKPOINT.match(name)),
        reverse=True,
    )


# Fetching


def find_place(name: str | None, folder: Path) -> list[Place]:
    """The place of --sync_to, if it is given: another than the folder, its parents and what is in it."""
    if name is None:
        return []
    place = storage.open_place(name, "--sync_to")
    if place.is_folder:
        check_apart(folder, {"sync_to": name})
    return [place]


def open_sync(place: Place, folder: Path, kind: str, share: str = "", limit: int | None = None) -> Sync:
    """Take the place for a folder that this process has locked; `share`: i-of-n where several processes write to it.

    Refused: a place with files that no script of this kind wrote.
    """
    listed = written_list(folder, kind).name
    there = storage.patiently(place, lambda: storage.list_place(place))
    if listed not in there and (other := [name for name in there if not name.startswith(".")]):
        raise UserError(f"{place.given}: holds files that this script did not write ({other[0]}); give another place")
    lease = storage.take_lease(place, f".lease-{share}.json" if share else ".lease.json", folder)
    if listed not in there:  # before any other file: a kill leaves none that nobody knows
        storage.patiently(place, lambda: storage.send_bytes(place, listed, b""))
    sync = Sync(place, folder, kind, lease, limit)
    _open.append(sync)
    return sync


def erase(sync: Sync) -> None:
    """Remove what the script wrote there; anything else stays."""
    place, listed = sync.place, written_list(sync.folder, sync.kind).name
    own = set((storage.patiently(place, lambda: storage.read_bytes(place, listed)) or b"").decode().splitlines())
    folders = (f"{NEW_BEST}/", *(name for name in own if name.endswith("/")))
    there = storage.patiently(place, lambda: storage.list_place(place))
    names = [name for name in there if name in own or name.startswith(folders)]
    storage.patiently(place, lambda: storage.remove_files(place, names))


def fetch_run(sync: Sync, settings: dict[str, Any], free: Iterable[str], wanted: str = "latest") -> None:
    """Where the run there is further than the one here, continue that one, from its newest checkpoint that verifies.

    `wanted`: the checkpoint to resume from (--resume_from_checkpoint). Refused: a run of other settings.
    """
    place, folder = sync.place, sync.folder
    there = storage.patiently(place, lambda: storage.list_place(place))
    steps, finished = whole_checkpoints(there), read_steps(place)
    if not steps and not finished:
        return
    refuse_changes(place, settings, free)
    here = steps_here(folder)
    wanted_steps = [step for step in steps if (step > here if wanted == "latest" else f"checkpoint-{step}" == wanted)]
    fetched = next((step for step in wanted_steps if _fetch_unit(place, f"checkpoint-{step}", folder, there)), None)
    if fetched is None and finished <= here:
        print(f"{place.given}: nothing there is further than step {here:,} of {folder}, which goes on")
        return
    any(_fetch_unit(place, name, folder, there) for name in (NEW_BEST, "best"))
    _fetch_plain(sync, [name for name in there if _is_plain(name)])
    what = f"the finished run of {finished:,} steps" if fetched is None else f"checkpoint-{fetched}"
    print(f"{place.given}: {what} is further than {folder} (step {here:,}), and is fetched")


def fetch_set(sync: Sync, kind: SetKind, settings: dict[str, Any], free: Iterable[str]) -> None:
    """Fetch the items of a generated set that are not here, and their records. Refused: a set of other settings."""
    place, folder = sync.place, sync.folder
    there = storage.patiently(place, lambda: storage.list_place(place))
    if "config.yaml" in there:
        refuse_changes(place, settings, {*free, *kind.grows})
    here = {name: one.st_size for name, one in list_files(folder).items()}
    ends = {MANIFEST, "report.json"} if (folder / "config.yaml").exists() else set()  # a set here may have grown since
    missing = [name for name in there if _is_plain(name) and name not in here and name not in ends]
    longer = [name for name in there if name.endswith(".jsonl") and name in here and there[name] > here[name]]
    _fetch_plain(sync, missing + longer)
    _note_sent(sync, [name for name, size in there.items() if name.endswith(kind.suffix) and here.get(name) == size])
    if items := [name for name in missing if name.startswith(f"{kind.folder}/")]:
        print(f"{place.given}: {counted(len(items), kind.item)} fetched into {folder}")


def read_steps(place: Place) -> int:
    """The steps of the finished run there; 0 if there is none."""
    steps = storage.patiently(place, lambda: storage.read_json(place, "summary.json")).get("steps", 0)
    return steps if isinstance(steps, int) else 0


def steps_here(folder: Path) -> int:
    """The steps of the newest checkpoint that verifies, or of the finished run; 0 if there is neither."""
    whole = (path for path in list_checkpoints(folder) if checkpoint_damage(path) is None)
    saved = next((int(path.name.rpartition("-")[2]) for path in whole), 0)
    return max(saved, runs.read_summary(folder).get("steps", 0))


def describe_places(places: list[Place]) -> list[tuple[str, str]]:
    """What a dry run says of the place of --sync_to, if it is given."""
    rows = []
    for place in places:
        steps = whole_checkpoints(storage.patiently(place, partial(storage.list_place, place)))
        done = read_steps(place)
        what = f"a finished run of {done:,} steps" if done else f"checkpoint-{steps[0]}" if steps else "no checkpoint"
        rows.append(("kept in", f"{place.given.partition(' ')[2]}, where there is {what}"))
    return rows


def refuse_changes(place: Place, settings: dict[str, Any], free: Iterable[str]) -> None:
    """Refuse a place whose config.yaml has other settings."""
    text = storage.patiently(place, lambda: storage.read_bytes(place, "config.yaml"))
    try:
        old = dict(yaml.safe_load(text or b"{}"))
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{place.given}: its config.yaml is damaged ({storage.describe(error)}); remove it") from None
    if changes := runs.training_changes(old, settings, free) if old else []:
        raise UserError(
            f"{place.given}: was made with other settings ({'; '.join(changes)}); give another place, or those settings"
        )


def _is_plain(name: str) -> bool:
    """Whether a file there is one of the folder's own, outside of checkpoints and best/."""
    return not (UNIT.match(name) or name.startswith((f"{NEW_BEST}/", ".clock-")) or storage.LEASE.fullmatch(name))


def _fetch_unit(place: Place, unit: str, folder: Path, there: dict[str, int]) -> bool:
    """Fetch a checkpoint or best/ if it is whole there; whether it was."""
    names = [name.removeprefix(f"{unit}/") for name in there if name.startswith(f"{unit}/")]
    if MANIFEST not in names:
        return False
    target = folder / unit.replace(NEW_BEST, "best")
    with partial_folder(target) as new:
        storage.fetch_files(place.within(unit), names, new)
        if damage := checkpoint_damage(new):
            logger.warning("%s/%s is skipped: %s", place.given, unit, damage)
            return False
        flush_folder(new)
        put_in_place(new, target)
    return True


def _fetch_plain(sync: Sync, names: list[str]) -> None:
    """Fetch files: first the list of them, which is joined with the one here, and what vouches for others last."""
    listed = written_list(sync.folder, sync.kind)
    content = storage.patiently(sync.place, lambda: storage.read_bytes(sync.place, listed.name)) or b""
    if new := set(content.decode().splitlines()) - read_written(sync.folder, sync.kind):
        with open(listed, "a", encoding="utf-8") as file:  # another process may add to it at the same time
            file.writelines(f"{name}\n" for name in sorted(new))
    names = [name for name in names if name != listed.name]
    storage.fetch_files(sync.place, sorted(names, key=lambda name: name in ("summary.json", MANIFEST)), sync.folder)
    _note_sent(sync, names)


def _note_sent(sync: Sync, names: list[str]) -> None:
    now = own_files(sync.folder, sync.kind)
    sync.sent |= {name: now[name] for name in names if name in now}
