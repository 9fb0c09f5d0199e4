"""What a run's folder says of its training: settings, records, results; read, never written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import UserError
from utils.files import parse_json, read_text
from utils.metrics_log import Record, read_metrics, series
from utils.runs import read_settings, read_summary


@dataclass(frozen=True)
class RunRecord:
    """`summary` is empty until the run has ended; `environment`: where it is trained, as environment.json has it."""

    folder: Path
    settings: dict[str, Any]
    records: list[Record]
    summary: dict[str, Any]
    environment: dict[str, Any]

    @property
    def step(self) -> int:
        return max((record.get("step", 0) for record in self.records), default=0)

    @property
    def has_ended(self) -> bool:
        return self.summary.get("steps") == self.step

    def values(self, name: str) -> list[float]:
        """What was recorded under a name, in the order of the steps."""
        return series(self.records, name)[1]


def read_run(folder: Path) -> RunRecord:
    """The run in a folder, also of a copy that another machine writes; refuses a folder that holds no run."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--run {folder}: has no config.yaml; give the folder of a run, such as runs/casual_shoes")
    return RunRecord(
        folder,
        read_settings(folder),
        read_metrics(folder / "metrics.jsonl"),
        read_summary(folder),
        read_object_if_whole(folder / "environment.json"),
    )


def read_object_if_whole(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none or where it is damaged."""
    try:
        found = parse_json(read_text(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
