"""report.md of a run as it is trained, by a thread of the main process: no fault of a report reaches the training."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.memory import Phases, peak_phase
from training.run import Run, log
from utils.cli import mask_text
from utils.files import note_written, write_text

logger = logging.getLogger(__name__)
NAME = "report.md"
PATIENCE = 30.0  # seconds that the end of a training waits for a report


@dataclass
class Reporter:
    """Reports on a run every so many steps, 0 for never; `write`: from the run's folder to the text."""

    run: Run
    every: int
    write: Callable[[Path], str]
    newest: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        return bool(self.every) and self.run.is_main


def report_if_due(reporter: Reporter, step: int) -> None:
    """Start a report every so many steps; none while the last one is still being written."""
    is_writing = reporter.newest is not None and reporter.newest.is_alive()
    if reporter.is_on and step % reporter.every == 0 and not is_writing:
        start_report(reporter)


def report_last(reporter: Reporter) -> None:
    """The report on the finished run."""
    if not reporter.is_on:
        return
    wait(reporter)
    start_report(reporter)
    wait(reporter)


def wait(reporter: Reporter) -> None:
    if reporter.newest:
        reporter.newest.join(PATIENCE)


def start_report(reporter: Reporter) -> None:
    folder = reporter.run.folder

    def report() -> None:
        try:
            write_text(folder / NAME, reporter.write(folder))
        except Exception as error:  # no fault of a report stops the training
            warn(reporter, error)

    try:
        note_written(folder / NAME)  # here: the list of what is written belongs to this thread
        thread = threading.Thread(target=report, daemon=True)  # which keeps no process alive
        thread.start()
    except Exception as error:
        warn(reporter, error)
    else:
        reporter.newest = thread


def note_estimate(reporter: Reporter, step: int, estimate: Callable[[], Phases]) -> None:
    """Record the memory that a dry run would state, so that a report can compare it with the peak."""
    if not reporter.is_on:
        return
    try:
        peak = peak_phase(estimate())[1] / 2**30
    except Exception as error:
        warn(reporter, error)
    else:
        log(reporter.run, {"step": step, "estimated_memory_gib": peak}, [])


def warn(reporter: Reporter, error: Exception) -> None:
    reason = mask_text(" ".join(str(error).split())[:300]) or type(error).__name__
    logger.warning("--report_every %d: %s; training continues without this report", reporter.every, reason)
