"""What a run's folder says of its training: settings, records, results; read, never written."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.cli import UserError
from utils.files import read_file, read_if_whole
from utils.metrics_log import Record, parse_metrics
from utils.runs import checkpoint_step, read_settings, read_summary

SILENT = 900.0  # seconds without a record; a copy on a drive comes minutes late
MOST_BESIDE = 50  # runs of a folder that one is compared with
WANTED = "give the folder of a run, such as runs/casual_shoes"


@dataclass(frozen=True)
class RunRecord:
    """`summary` is empty until the run has ended; `environment`: where it is trained, as environment.json has it.

    `unread`: the lines of metrics.jsonl that hold no record, without a last one that is still being written.
    """

    folder: Path
    settings: dict[str, Any]
    records: list[Record]
    summary: dict[str, Any]
    environment: dict[str, Any]
    unread: int = 0

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """The newest that is recorded; where no record is left, that of the end."""
        steps = self.summary.get("steps")
        return max((record["step"] for record in self.records), default=steps if isinstance(steps, int) else 0)

    @property
    def has_trained(self) -> bool:
        """Whether there is a result, also where no record is left."""
        saved = checkpoint_step(self.folder, "latest")
        return bool(self.step) or (self.folder / "best").is_dir() or saved > self.number("logging_steps")

    @property
    def has_ended(self) -> bool:
        return self.summary.get("steps") == self.step

    @property
    def last_step(self) -> float:
        """The step that the training is to end with; 0 where it is not known, as where epochs are counted."""
        return self.number("max_train_steps")

    @property
    def is_voice(self) -> bool:
        return "segment_frames" in self.settings

    @property
    def loss_name(self) -> str:
        """The loss that tells how good the result is: a voice's whole loss also has what its opponents say of it."""
        return "loss_mel" if self.is_voice else "loss"

    def number(self, setting: str) -> float:
        """A setting that is a number; 0 where it is none, such as what a recipe takes from the environment."""
        value = self.settings.get(setting)
        return value if is_number(value) else 0

    def pairs(self, name: str) -> list[tuple[int, float]]:
        """(step, number) of each record that has a finite number of this name, in the order of the steps."""
        found = [(record["step"], record[name]) for record in self.records if is_number(record.get(name))]
        return sorted(found, key=lambda pair: pair[0])

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.pairs(name)]


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_run(folder: Path) -> RunRecord:
    """The run in a folder, also of a copy that another machine writes; refuses a folder that holds no run."""
    if not folder.is_dir():
        raise UserError(f"--run {folder}: {'is a file' if folder.exists() else 'no such folder'}; {WANTED}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--run {folder}: has no config.yaml; {WANTED}")
    settings = read_settings(folder, "put back a whole copy of that file, or give the folder of another run")
    records, unread = read_records(folder / "metrics.jsonl")
    environment = read_if_whole(folder / "environment.json")
    return RunRecord(folder, settings, records, read_summary(folder), environment, unread)


def read_records(path: Path) -> tuple[list[Record], int]:
    """The records that have a step, and the number of the other lines but a last one that is still being written."""
    content = read_file(path) if path.exists() else b""
    records = [record for record in parse_metrics(content) if isinstance(record.get("step"), int)]
    lines = sum(bool(line.strip()) for line in content.splitlines())
    is_torn = bool(records) and not content.endswith(b"\n")
    return records, max(0, lines - len(records) - is_torn)


def changed_at(path: Path) -> float:
    """0 of what is not there, or not any more."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def seconds_silent(folder: Path) -> float:
    """Since the newest record of a run."""
    return time.time() - changed_at(folder / "metrics.jsonl")


def runs_beside(run: RunRecord) -> Iterator[RunRecord]:
    """The other runs of the same folder, the newest first, without damaged ones."""
    own = run.folder.resolve()
    found = [path.parent for path in own.parent.glob("*/metrics.jsonl") if path.parent != own]
    found = sorted(found, key=lambda folder: changed_at(folder / "metrics.jsonl"), reverse=True)
    for folder in found[:MOST_BESIDE]:
        try:
            yield _read_validations(folder, version_of(folder))
        except (UserError, OSError):
            continue


@lru_cache(maxsize=4 * MOST_BESIDE)
def _read_validations(folder: Path, version: tuple[float, ...]) -> RunRecord:
    """A run with those of its records that have a held-out loss, kept until its files change."""
    run = read_run(folder)
    return replace(run, records=[record for record in run.records if "val_loss" in record])


def version_of(folder: Path) -> tuple[float, ...]:
    """Changes with the files that a run is read from."""
    return tuple(
        changed_at(folder / name) for name in ("config.yaml", "metrics.jsonl", "environment.json", "summary.json")
    )


def read_evaluation(run: RunRecord) -> dict[str, Any]:
    """metrics.json of the run's evaluation, in the folder that the docs name or in the notebooks'; empty without."""
    return next((found for path in find_evaluations(run.folder) if (found := read_if_whole(path))), {})


def find_evaluations(folder: Path) -> list[Path]:
    """Where the metrics.json of an evaluation of the run in a folder may be."""
    own = folder.resolve()
    places = [own / "evaluation", own.with_name(f"{own.name}_evaluation"), own.parent / "evaluation"]
    return [place / "metrics.json" for place in places]
