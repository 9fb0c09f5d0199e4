"""Read, measure, resample, trim, level and write the recordings, in several processes; what is done stays done."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from speech.audio import BadSound, Sound, decode_sound, encode_sound, level_loudness, resample, trim_silence
from speech.sound_measures import Fault, Measures, measure_sound
from utils.console import track
from utils.files import parse_json, read_file, replaced_file
from utils.parallel import parallel_map

VERSION = 1  # of what is made of a sound: another one makes all sounds anew


@dataclass(frozen=True)
class Handling:
    """What a recording becomes."""

    rate: int
    ending: str  # .flac or .wav
    trim: bool
    loudness: float | None  # dB of the speech; None: as it is


class Job(NamedTuple):
    id: str
    source: Path | bytes
    span: tuple[float, float] | None


@dataclass(frozen=True)
class SoundFacts:
    """The facts about a recording: its fault, or what was measured and written."""

    fault: Fault | None = None
    measures: Measures | None = None
    digest: str = ""  # of the samples before they are levelled
    sha256: str = ""  # of the file
    seconds: float = 0.0  # of the file

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "SoundFacts":
        measures, fault = saved.pop("measures"), saved.pop("fault")
        return cls(fault and tuple(fault), measures and Measures(**measures), **saved)


def work_folder(output_dir: Path, handling: Handling) -> Path:
    """Where the sounds for an output folder lie until all are done, to go on with after a kill."""
    place = hashlib.sha256(str(output_dir.resolve()).encode()).hexdigest()[:12]
    key = hashlib.sha256(json.dumps([VERSION, asdict(handling)]).encode()).hexdigest()[:12]
    return output_dir.parent / "cache" / f"speech-{place}" / key


def remove_work(work: Path) -> None:
    """Remove a work folder, and the cache around it unless something else is in it."""
    shutil.rmtree(work.parent)
    with contextlib.suppress(OSError):
        work.parent.parent.rmdir()


def process_recordings(
    jobs: Iterable[Job], total: int, handling: Handling, folder: Path, workers: int
) -> list[SoundFacts]:
    """The facts about each, in order; a good one is in `folder` as `sound_file` names it."""
    folder.mkdir(parents=True, exist_ok=True)
    results = parallel_map(partial(process_recording, handling=handling, folder=folder), jobs, workers)
    return list(track(results, total, "recordings", "reading"))


def sound_file(folder: Path, job_id: str, handling: Handling) -> Path:
    return folder / f"{job_id}{handling.ending}"


def process_recording(job: Job, handling: Handling, folder: Path) -> SoundFacts:
    """The facts about one recording, which is written to `folder`, its facts beside it. Runs in a worker process."""
    path, facts_file = sound_file(folder, job.id, handling), folder / f"{job.id}.json"
    key = source_key(job)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of an earlier run: whole, or made anew
        saved = parse_json(read_file(facts_file))
        if saved.pop("key") == key and (saved["fault"] or path.stat().st_size == saved.pop("bytes")):
            saved.pop("bytes", None)
            return SoundFacts.of(saved)
    try:
        facts, content = make_sound(decode_sound(job.source, job.span), handling)
    except BadSound as error:
        facts, content = SoundFacts((error.reason, error.detail)), b""
    if content:
        with replaced_file(path, flush=False) as file:
            file.write(content)
    with replaced_file(facts_file, flush=False) as file:
        file.write(json.dumps({"key": key, "bytes": len(content), **asdict(facts)}).encode())
    return facts


def source_key(job: Job) -> list[Any]:
    """What tells whether a recording is the one that was read before."""
    if isinstance(job.source, bytes):
        return [hashlib.sha256(job.source).hexdigest(), job.span and [*job.span]]
    with contextlib.suppress(OSError):
        stat = job.source.stat()
        return [str(job.source), stat.st_size, stat.st_mtime_ns, job.span and [*job.span]]
    return [str(job.source)]


def make_sound(recorded: Sound, handling: Handling) -> tuple[SoundFacts, bytes]:
    """The facts about a recording, and the content of its file."""
    samples = resample(*recorded, handling.rate)
    trimmed = trim_silence(samples, handling.rate)
    measures = measure_sound(recorded, trimmed, handling.rate)
    kept = trimmed if handling.trim else samples
    digest = hashlib.sha256((kept * 32767).round().astype("<i2").tobytes()).hexdigest()
    levelled = kept if handling.loudness is None else level_loudness(kept, handling.rate, handling.loudness)
    content = encode_sound(levelled, handling.rate, handling.ending)
    seconds = round(len(kept) / handling.rate, 3)
    return SoundFacts(None, measures, digest, hashlib.sha256(content).hexdigest(), seconds), content
