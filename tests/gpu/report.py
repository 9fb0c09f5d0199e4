"""What a check has found, as JSON and as a Markdown table for docs/hardware.md."""

import datetime
from typing import NamedTuple

from tests.gpu.commands import Setup
from utils import runs
from utils.files import write_json, write_text

RESULTS, TABLE = "gpu_check.json", "gpu_check.md"


class Row(NamedTuple):
    """A step that has ended. `status`: pass, fail or skipped."""

    name: str
    title: str
    status: str
    figure: str
    reason: str
    seconds: float


def describe_row(row: Row, number: int, of: int) -> str:
    """`[ 3/22] lora_bf16: pass, 21 s: 8 losses finite`."""
    said = row.figure if row.status == "pass" else row.reason
    return f"[{number:2}/{of}] {row.name}: {row.status}, {row.seconds:.0f} s: {said}"


def cell(text: str) -> str:
    """In a cell of a Markdown table: one line, without what ends a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def make_table(machine: str, rows: list[Row]) -> str:
    """Machine, step, result and figure, a line each."""
    lines = ["| machine | step | result | figure |", "|---|---|---|---|"]
    for row in rows:
        result = "pass" if row.status == "pass" else f"{row.status}: {cell(row.reason)}"
        lines.append(f"| {cell(machine)} | {cell(row.title)} | {result} | {cell(row.figure)} |")
    return "\n".join(lines) + "\n"


def write_report(setup: Setup, rows: list[Row], seconds: float) -> None:
    """Both files, of the steps that have ended."""
    made = runs.describe_making(setup.machine.name, seconds)
    machine = setup.machine._asdict()
    found = {"version": 1, "made": made, "machine": machine, "tiny": setup.tiny}
    write_json(setup.folder / RESULTS, found | {"steps": [row._asdict() for row in rows]})
    day = datetime.date.today().isoformat()
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "diffusers"))
    said = (
        f"`{made['command']}`, commit {(made['commit'] or 'unknown')[:12]}, {day}, {seconds:.0f} s in all, {versions}"
    )
    tiny = " With tiny models: nothing here says how fast this machine is." if setup.tiny else ""
    write_text(setup.folder / TABLE, f"{said}.{tiny}\n\n{make_table(setup.machine.name, rows)}")
