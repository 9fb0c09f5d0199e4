"""Read a dataset of speech again and check every file."""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from speech.audio import BadSound, decode_sound
from speech.dataset import TABLE, read_metadata, read_records
from utils.cli import UserError
from utils.console import track
from utils.dataset import SPLITS, verify_sums
from utils.files import MANIFEST, list_files, read_file, read_manifest, read_text
from utils.parallel import parallel_map

FLAG = "--verify"


class SoundJob(NamedTuple):
    path: Path
    sha256: str
    rate: int
    seconds: float


def verify_dataset(folder: Path, workers: int) -> tuple[int, list[str]]:
    """How many recordings a dataset has, and what is wrong with it."""
    metadata = read_metadata(folder, FLAG)
    sums = {name: entry["sha256"] for name, entry in read_manifest(folder).items()}
    broken = verify_files(folder, sums, metadata)
    rate, column = metadata["options"]["sampling_rate"], metadata["options"]["disjoint"] or "text"
    jobs: dict[str, SoundJob] = {}
    owners: dict[str, dict[str, str]] = defaultdict(dict)  # {text or value of --disjoint: {split: id}}
    for split in SPLITS:
        try:
            rows = [record for _, record in read_records(folder / split / TABLE, FLAG)]
            broken += verify_rows(folder, split, rows, metadata)
            for row in rows:
                name = f"{split}/{row['file_name']}"
                jobs[name] = SoundJob(folder / name, sums.get(name, ""), rate, row["seconds"])
                owners[row[column].casefold()].setdefault(split, row["id"])
        except (UserError, KeyError, TypeError, AttributeError) as error:
            broken.append(f"{split}/{TABLE}: {error if isinstance(error, UserError) else f'a row lacks {error}'}")
    faults = track(parallel_map(check_sound, jobs.values(), workers), len(jobs), "recordings", "verifying")
    broken += [f"{name}: {fault}" for name, fault in zip(jobs, faults, strict=True) if fault]
    broken += [
        f"in two splits: {' and '.join(f'{split}/{one}' for split, one in places.items())} ({shared[:60]})"
        for shared, places in owners.items()
        if len(places) > 1
    ]
    return len(jobs), broken


def verify_files(folder: Path, sums: dict[str, str], metadata: dict[str, Any]) -> list[str]:
    """What differs from the manifest, but for the sounds' content."""
    if not sums:
        return [f"{MANIFEST}: is missing or damaged"]
    return verify_sums(folder, sums, metadata["fingerprint"], lambda name: "/audio/" in name)


def verify_rows(folder: Path, split: str, rows: list[dict[str, Any]], metadata: dict[str, Any]) -> list[str]:
    """What is wrong in one split, whose tables, sounds and counts must agree."""
    broken = []
    named = {f"{split}/{row['file_name']}" for row in rows}
    there = {f"{split}/{name}" for name in list_files(folder / split) if name.startswith("audio/")}
    if named != there:
        broken.append(f"{split}: {TABLE} and audio/ do not agree ({min(named ^ there)})")
    if read_text(folder / split / "ids.txt").split() != [row["id"] for row in rows]:
        broken.append(f"{split}: {TABLE} and ids.txt do not agree")
    if len(rows) != metadata["counts"][split]:
        broken.append(f"{split}: {len(rows)} rows, metadata.json says {metadata['counts'][split]}")
    return broken + [f"{split}/{TABLE}: {row['id']}: empty text" for row in rows if not row["text"].strip()]


def check_sound(job: SoundJob) -> str:
    """The fault of one file, empty if it has none. Runs in a worker process."""
    try:
        content = read_file(job.path)
        if hashlib.sha256(content).hexdigest() != job.sha256:
            return "the file has changed (its sha256 is not the manifest's)"
        samples, rate = decode_sound(content)
    except (OSError, BadSound) as error:
        return f"cannot be read ({error})"
    if rate != job.rate or abs(len(samples) / rate - job.seconds) > 0.001:
        return f"{len(samples) / rate:.3f} s at {rate:,} Hz, expected {job.seconds:.3f} s at {job.rate:,} Hz"
    return ""
