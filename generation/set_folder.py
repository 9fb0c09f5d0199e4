"""A generation folder: which images a process makes, with which settings, and which are complete.

Several processes may work in one folder and none waits for another: each appends to files of its own, and the one that
finds the set complete merges them.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from generation.prompts import Prompt
from utils import runs
from utils.cli import UserError, counted
from utils.dataset import image_name, index_of, read_parts
from utils.files import find_changed, lock_folder, locked_folder, note_written, read_manifest, write_text
from utils.images import is_whole_png
from utils.metrics_log import append_metrics
from utils.outputs import check_writable, claim_folder, foreign_files, remove_stale
from utils.storage import Place
from utils.sync import Sync, fetch_set, open_sync

logger = logging.getLogger(__name__)
OLD_SETTINGS = {"webdataset", "shard_size"}  # that config.yaml of earlier versions has


@dataclass(frozen=True)
class Share:
    """The images of one process: every `of`-th, from `number` on."""

    number: int
    of: int

    def indices(self, count: int) -> range:
        return range(self.number, count, self.of)

    @property
    def file_name(self) -> str:
        """The file of this share's records; that of the complete set where there is one share."""
        return "metadata.jsonl" if self.of == 1 else f"metadata.{self.number}-of-{self.of}.jsonl"


def enter_folder(
    folder: Path, settings: dict[str, Any], prompts: list[Prompt], free: set[str], share: Share
) -> int | None:
    """Make or enter the folder of these settings, and lock one share of it; None where its set is finished.

    Refuses a folder with images of other settings, and shows the difference.
    """
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        runs.refuse_foreign(folder, "generate")
        old = read_settings(folder)
        is_empty = not (read_parts(folder) or read_parts(folder / "rejected") or foreign_files(folder, "generate"))
        if is_empty and runs.training_changes(old, settings, free):
            for records in folder.glob("metadata*.jsonl"):
                os.close(lock_folder(records, folder))  # an error where another process has just begun
            old = {}
        grows = check_settings(folder, old, settings, prompts, free)
        remove_stale(folder)
        damaged = find_damaged(folder)
        if is_finished(folder, len(prompts)) and not damaged:
            return None
        claim_folder(folder, "generate")
        if grows or not old:
            write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        forget_finish(folder, damaged)
        return claim_share(folder, share)


def fill_folder(folder: Path, place: Place, settings: dict[str, Any], free: set[str], shard: str) -> Sync:
    """Fetch the images that others have made from the place that keeps this share (i/n) of the set too."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        runs.refuse_foreign(folder, "generate")
        sync = open_sync(place, folder, "generate", "" if shard == "0/1" else shard.replace("/", "-of-"))
        fetch_set(sync, settings, free)
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
    folder: Path, old: dict[str, Any], settings: dict[str, Any], prompts: list[Prompt], free: set[str]
) -> bool:
    """Whether the set becomes larger; refuses settings that would change its images."""
    number, before = len(prompts), old.get("num_images", len(prompts))
    changes = runs.training_changes(old, settings, {*free, "num_images", "prompts_sha256"}) if old else []
    if number < before:
        changes.append(f"num_images was {before}, now {number}: a set can't be made smaller")
    elif old and not changes and prompts_digest(prompts[:before]) != old.get("prompts_sha256"):
        more = f", because shares are balanced over {number:,}, or because the prompts have changed"
        changes.append(f"some of its {counted(before, 'image')} would have another prompt{more * (number > before)}")
    if changes:
        raise UserError(
            f"--output_dir {folder} holds images of other settings ({'; '.join(changes)}); "
            "give another folder, or those settings"
        )
    return number > before


def prompts_digest(prompts: list[Prompt]) -> str:
    return hashlib.sha256(json.dumps([vars(one) for one in prompts], sort_keys=True).encode()).hexdigest()[:16]


def claim_share(folder: Path, share: Share) -> int:
    """The lock of one share, until this process ends: the same command started twice is an error, not a race."""
    for name in ("images", "rejected"):
        (folder / name).mkdir(exist_ok=True)
    note_written(folder / share.file_name)
    (folder / share.file_name).touch()
    return lock_folder(folder / share.file_name, folder)


def done_indices(folder: Path) -> set[int]:
    """The images that have a record and a complete file."""
    return {i for i in map(index_of, read_parts(folder)) if is_whole_png(folder / image_name(i))}


def count_rejected(folder: Path, precision: str) -> Counter[int]:
    """{index: how many seeds of it have been rejected} in this precision."""
    records = read_parts(folder / "rejected").items()
    return Counter(index_of(name) for name, record in records if record["precision"] == precision)


def is_finished(folder: Path, count: int) -> bool:
    """Whether all images are there, and what describes them; a damaged MANIFEST.json is written again."""
    return bool(read_manifest(folder)) and len(done_indices(folder)) == count


def find_damaged(folder: Path) -> list[str]:
    """The files of a finished set that are missing, or that have changed since; train/ has hard links to images/."""
    return find_changed(folder, {name: one["sha256"] for name, one in read_manifest(folder).items()})


def forget_finish(folder: Path, damaged: list[str]) -> None:
    """Begin to finish the set again, without its damaged images."""
    images = [name for name in damaged if name.startswith("images/")]
    if damaged:
        logger.warning("%s: missing or damaged, made again: %s", folder, ", ".join((images or damaged)[:5]))
    for name in (*images, "MANIFEST.json", "report.json"):
        (folder / name).unlink(missing_ok=True)


@dataclass
class Session:
    """What one process has made since it was started; report.json adds the sessions up."""

    folder: Path
    share: Share
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    start: float = field(default_factory=time.monotonic)
    made: int = 0
    written: float = -math.inf  # the time of the last line in sessions.jsonl


def record_image(session: Session, record: dict[str, Any]) -> None:
    """Write the record of an image that was saved or, where it has a reason, rejected."""
    place = session.folder / "rejected" if "reason" in record else session.folder
    append_metrics(place / session.share.file_name, record)
    session.made += "reason" not in record
    if time.monotonic() - session.written > 5:  # now and then: a kill leaves no time for it
        record_session(session)


def record_session(session: Session) -> None:
    session.written = time.monotonic()
    seconds = round(session.written - session.start, 3)
    line = {"share": session.share.number, "began": session.began, "made": session.made, "seconds": seconds}
    append_metrics(session.folder / "sessions.jsonl", line)
