"""A generated set's folder, of images or of speech: what a process makes, with which settings, and what is complete.

Several processes may work in one folder and none waits for another: each appends to files of its own, and the one that
finds the set complete merges them.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from utils import runs
from utils.cli import OF_ONE_PROCESS, UserError, counted
from utils.dataset import SetKind, index_of, read_parts
from utils.files import find_changed, lock_folder, locked_folder, note_written, read_manifest, write_text
from utils.images import is_whole_png
from utils.metrics_log import append_metrics
from utils.outputs import check_writable, claim_folder, foreign_files, remove_stale
from utils.storage import Place
from utils.sync import Sync, fetch_set, open_sync

logger = logging.getLogger(__name__)
IMAGES = SetKind("generate", "image", "prompt", "images", ".png", lambda path, record: is_whole_png(path))
MOST_SHARES = 100_000
OLD_SETTINGS = {"webdataset", "shard_size"}  # that config.yaml of earlier versions has


@dataclass(frozen=True)
class Share:
    """The items of one process: every `of`-th, from `number` on."""

    number: int
    of: int

    def indices(self, count: int) -> range:
        return range(self.number, count, self.of)

    @property
    def file_name(self) -> str:
        """The file of this share's records; that of the complete set where there is one share."""
        return "metadata.jsonl" if self.of == 1 else f"metadata.{self.number}-of-{self.of}.jsonl"


def add_shard_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--shard", default="0/1", metavar="I/N", help="make only the I-th (from 0) of N shares")


def check_shard(parser: argparse.ArgumentParser, shard: str) -> None:
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not (found and int(found[1]) < int(found[2]) <= MOST_SHARES):
        parser.error(f"--shard {shard}: expected I/N with I from 0 to N - 1, as 0/4, and N at most {MOST_SHARES:,}")


def find_share(shard: str, accelerator: Accelerator) -> Share:
    """The share of this process in --shard: an item belongs to one by its number, so processes need not communicate."""
    number, of = map(int, shard.split("/"))
    processes = accelerator.num_processes
    return Share(number * processes + accelerator.process_index, of * processes)


def enter_folder(
    folder: Path, kind: SetKind, settings: dict[str, Any], requests: Sequence[Any], free: set[str], share: Share
) -> int | None:
    """Make or enter the folder of these settings, and lock one share of it; None where its set is finished.

    Refuses a folder with items of other settings, and shows the difference. A request is a dataclass: a prompt, a text.
    """
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        runs.refuse_foreign(folder, kind.script)
        old = read_settings(folder)
        is_empty = not (read_parts(folder) or read_parts(folder / "rejected") or foreign_files(folder, kind.script))
        if is_empty and runs.training_changes(old, settings, free):
            refuse_busy(folder)
            old = {}
        grows = check_settings(folder, kind, old, settings, requests, free)
        remove_stale(folder)
        damaged = find_damaged(folder)
        if is_finished(folder, kind, len(requests)) and not damaged:
            return None
        claim_folder(folder, kind.script)
        if grows or not old:
            write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        forget_finish(folder, kind, damaged)
        return claim_share(folder, kind, share)


def refuse_busy(folder: Path) -> None:
    """An error where another process is writing a share of the set."""
    for records in folder.glob("metadata*.jsonl"):
        os.close(lock_folder(records, folder))


def fill_folder(
    folder: Path, kind: SetKind, place: Place, settings: dict[str, Any], free: set[str], shard: str
) -> Sync:
    """Fetch the items that others have made from the place that keeps this share (i/n) of the set too."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        runs.refuse_foreign(folder, kind.script)
        sync = open_sync(place, folder, kind.script, "" if shard == "0/1" else shard.replace("/", "-of-"))
        fetch_set(sync, kind, settings, free)
    return sync


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that the set was started with; those of an earlier version are converted."""
    settings = runs.read_settings(folder)
    if settings.get("webdataset"):
        raise UserError(
            f"--output_dir {folder}: its images are in tar shards, which this version neither writes nor reads; "
            "unpack shards/*.tar to use them, and give another folder for new images"
        )
    if "webdataset" in settings and settings.get("min_clip_score") is not None:  # then it was 100 x the cosine
        settings["min_clip_score"] = round(settings["min_clip_score"] / 100, 10)
    return {name: value for name, value in settings.items() if name not in OLD_SETTINGS}


def check_settings(
    folder: Path, kind: SetKind, old: dict[str, Any], settings: dict[str, Any], requests: Sequence[Any], free: set[str]
) -> bool:
    """Whether the set becomes larger; refuses settings that would change its items."""
    number, before = len(requests), old.get(kind.count, len(requests))
    changes = runs.training_changes(old, settings, {*free, *kind.grows}) if old else []
    if number < before:
        changes.append(f"{kind.count} was {before}, now {number}: a set can't be made smaller")
    elif old and not changes and items_digest(requests[:before]) != old.get(kind.digest):
        others = f"some of its {counted(before, kind.item)} would have another {kind.request}"
        balanced = f"shares are balanced over {number:,}, or because " * (kind is IMAGES)
        more = f", because {balanced}the {kind.request}s have changed"
        changes.append(others + more * (number > before))
    if changes:
        way = "" if kind is IMAGES else ", or --overwrite to begin anew"  # which generate.py doesn't have
        raise UserError(
            f"--output_dir {folder} holds {kind.item}s of other settings ({'; '.join(changes)}); "
            f"give another folder, or those settings{way}"
        )
    return number > before


def items_digest(requests: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([vars(one) for one in requests], sort_keys=True).encode()).hexdigest()[:16]


def claim_share(folder: Path, kind: SetKind, share: Share) -> int:
    """The lock of one share, until this process ends: the same command started twice is an error, not a race."""
    for name in (kind.folder, "rejected"):
        (folder / name).mkdir(exist_ok=True)
    note_written(folder / share.file_name)
    (folder / share.file_name).touch()
    return lock_folder(folder / share.file_name, folder)


def done_indices(folder: Path, kind: SetKind) -> set[int]:
    """The items that have a record and a complete file."""
    records = read_parts(folder).items()
    return {index_of(name) for name, record in records if kind.is_whole(folder / name, record)}


def count_rejected(folder: Path, precision: str) -> Counter[int]:
    """{index: how many seeds of it have been rejected} in this precision."""
    records = read_parts(folder / "rejected").items()
    return Counter(index_of(name) for name, record in records if record["precision"] == precision)


@dataclass(frozen=True)
class Job:
    """An item to make with one of its seeds; `retry` is 0 for the first one."""

    index: int
    retry: int


def find_missing(
    folder: Path, kind: SetKind, mine: range, precision: str, max_retries: int
) -> tuple[deque[Job], dict[int, str]]:
    """What is not there of these items, each with its next seed; {index: reason} of those without a good seed."""
    done, tried = done_indices(folder, kind), count_rejected(folder, precision)
    missing = [i for i in mine if i not in done]
    failed = {i: "rejected before" for i in missing if tried[i] > max_retries}
    return deque(Job(i, tried[i]) for i in missing if i not in failed), failed


def is_finished(folder: Path, kind: SetKind, count: int) -> bool:
    """Whether all items are there, and what describes them; a damaged MANIFEST.json is written again."""
    return bool(read_manifest(folder)) and len(done_indices(folder, kind)) == count


def find_damaged(folder: Path) -> list[str]:
    """The files of a finished set that are missing, or that have changed since; train/ has hard links to images/."""
    return find_changed(folder, {name: one["sha256"] for name, one in read_manifest(folder).items()})


def forget_finish(folder: Path, kind: SetKind, damaged: list[str]) -> None:
    """Begin to finish the set again, without its damaged items."""
    items = [name for name in damaged if name.startswith(f"{kind.folder}/")]
    if damaged:
        named = ", ".join((items or damaged)[:5])
        logger.warning("%s: missing or damaged, made again: %s", folder, named, extra=OF_ONE_PROCESS)
    for name in (*items, "MANIFEST.json", "report.json"):
        (folder / name).unlink(missing_ok=True)


@dataclass
class Session:
    """What one process has made since it was started; report.json adds the sessions up."""

    folder: Path
    share: Share
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    start: float = field(default_factory=time.monotonic)
    made: int = 0
    amounts: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # of what else is added up
    written: float = -math.inf  # the time of the last line in sessions.jsonl


def record_item(session: Session, record: dict[str, Any]) -> None:
    """Write the record of an item that was saved or, where it has a reason, rejected."""
    place = session.folder / "rejected" if "reason" in record else session.folder
    append_metrics(place / session.share.file_name, record)
    session.made += "reason" not in record
    if time.monotonic() - session.written > 5:  # now and then: a kill leaves no time for it
        record_session(session)


def record_session(session: Session) -> None:
    session.written = time.monotonic()
    seconds = round(session.written - session.start, 3)
    line = {"share": session.share.number, "began": session.began, "made": session.made, "seconds": seconds}
    line |= {name: round(amount, 3) for name, amount in session.amounts.items()}
    append_metrics(session.folder / "sessions.jsonl", line)
