"""One process's part of a training run: where it resumes, what it logs, when it validates, saves and ends."""

import math
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from PIL import Image
from scipy.io import wavfile

from training import model_card
from training.gradients import ADVICE, any_process
from training.state import (
    Progress,
    Training,
    averaged_weights,
    note_loss,
    restore_training,
    save_best,
    save_training,
    take_snapshot,
)
from utils import checkpoints, devices, metrics_log, runs, trackers
from utils.cli import UserError
from utils.console import Bar, print_table, show_progress
from utils.parallel import in_main_process
from utils.sync import GRACE, PATIENCE, Sync, finish_all
from utils.trackers import Tracker

Result = TypeVar("Result")
# A validation: it writes what it shows under names that begin with the path (None: in a process that only takes part),
# asks whether it is stopped, and returns its figures, the held-out loss as "val_loss"; None where it was stopped.
Check = Callable[[Path | None, Callable[[], bool]], dict[str, float] | None]


@dataclass(frozen=True)
class Run:
    """What a process of a run writes to, and what it has received.

    `seconds`: time per activity since the last log line; `signals`: those received; `saved`: the last checkpoint, if
    there is one; `trackers` and `syncs` (what keeps the folder elsewhere too): empty but in the main process.
    """

    accelerator: Accelerator
    folder: Path
    seconds: dict[str, float]
    trackers: dict[str, Tracker] = field(default_factory=dict)
    signals: list[int] = field(default_factory=list)
    saved: list[Path] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process


@dataclass(frozen=True)
class Tracking:
    """Which trackers a run reports to, the name of their folder in the run's, and the settings that they show."""

    names: list[str]
    logging_dir: str
    settings: dict[str, Any]


def start_run(
    accelerator: Accelerator,
    folder: Path,
    training: Training,
    resume: str,
    tracking: Tracking,
    precision: str,
    syncs: list[Sync],
    seconds: dict[str, float],
) -> Run:
    """Resume where the folder's run stands, and start what it logs to; from here on signals are only noted."""
    saved = checkpoints.find_checkpoint(folder, resume)
    if saved:
        restore_training(saved, training)
        accelerator.print(f"resuming from {saved}")
        for name, spent in training.progress.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
    training.progress.seconds = seconds  # the same dict as the run's: checkpoints hold what is not logged yet
    training.progress.began = training.progress.began or time.time()
    started: dict[str, Tracker] = {}
    if accelerator.is_main_process:
        step = training.progress.step
        metrics_log.cut_metrics(folder / "metrics.jsonl", step if saved else -1)
        device = devices.describe_device(accelerator.device)
        runs.write_environment(folder / "environment.json", device, precision, dataset=training.identity["data"])
        logs = folder / tracking.logging_dir
        started = trackers.start_trackers(tracking.names, logs, folder.name, tracking.settings, step)
    return Run(accelerator, folder, seconds, started, runs.catch_signals(), [saved] if saved else [], syncs)


def with_shards(run: Run, training: Training, work: Callable[[], Result]) -> Result | None:
    """What `work` returns in the main process; it runs in all of them where the weights are divided among them."""
    return work() if run.is_main or training.sharded else None


def log(run: Run, record: dict[str, Any], activities: list[str]) -> None:
    """A line of metrics.jsonl and for the trackers, with the seconds spent on activities since their last line."""
    record |= {f"seconds_{name}": round(run.seconds.pop(name), 3) for name in activities}
    if run.is_main:
        metrics_log.append_metrics(run.folder / "metrics.jsonl", record)
        trackers.log_scalars(run.trackers, record, record["step"])


def log_step(run: Run, progress: Progress, losses: dict[str, float], rate: float, norm: float, samples: int) -> None:
    """The line of the steps since the last one: `losses` are their means, over `samples` samples."""
    progress.add_loss(losses["loss"])
    record = {"step": progress.step, **losses, "loss_smooth": progress.loss_smooth, "lr": rate, "grad_norm": norm}
    record["samples_per_second"] = samples / (run.seconds["data"] + run.seconds["step"])
    record["memory_gib"] = devices.peak_memory_gib(run.accelerator.device)
    log(run, record | {"skipped_steps": len(progress.skipped)}, list(run.seconds))


def progress_bar(run: Run, progress: Progress, last: int) -> AbstractContextManager[Bar]:
    return show_progress(last, "steps", "training", progress.step, shown=run.is_main)


def is_finished(progress: Progress, last: int, patience: int | None) -> bool:
    """Whether the last step is trained, or the held-out loss has not fallen for `patience` validations."""
    return progress.step >= last or progress.worse_in_a_row >= (patience or math.inf)


def stop_requested(run: Run) -> bool:
    """Whether any process has received a signal, so that all stop at the same step."""
    return any_process(run.accelerator, bool(run.signals))


def validate(run: Run, training: Training, check: Check, shown: Path) -> dict[str, float] | None:
    """The figures of a validation in the main process; None where a signal came."""

    def compute(stopped: Callable[[], bool]) -> dict[str, float] | None:
        return check(shown if run.is_main else None, stopped)

    if not training.sharded:
        return in_main_process(run.accelerator, lambda: compute(lambda: bool(run.signals)))
    figures = compute(lambda: stop_requested(run))  # in all processes, as each pass through the weights takes all
    return in_main_process(run.accelerator, lambda: figures)


def validate_if_due(run: Run, training: Training, check: Check, every: int, last: int, bar: Bar) -> None:
    """Every so many steps and at the end: held-out loss and samples, in the main process; the best weights are kept.

    The bar's rate leaves out the time that this takes, and its time left includes what is still to come of it.
    """
    progress = training.progress
    step = progress.step
    if not every or progress.validated >= step or (step % every and step < last):
        return
    shown = run.folder / "validation" / f"step-{step:06d}"
    began = time.monotonic()
    with runs.timed(run.seconds, "validation"), bar.paused():
        figures = validate(run, training, check, shown)
    if figures is None:  # a signal came: the resumed run validates this step
        return
    bar.later = (time.monotonic() - began) * math.ceil((last - step) / every)
    loss = figures.get("val_loss")
    if note_loss(progress, loss):
        with averaged_weights(training):
            weights = with_shards(run, training, training.files.gather)
            in_main_process(run.accelerator, lambda: save_best(run.folder / "best", training, weights))
    # Those of the steps stay for the next log_step, which divides its samples by them.
    log(run, {"step": step, **figures}, [name for name in run.seconds if name not in ("data", "step")])
    if step >= last and not math.isfinite(loss or 0):
        raise UserError(f"step {step}: the held-out loss is not finite, and nothing is written. {ADVICE}")
    if run.is_main:
        log_shown(run, shown, step)


def log_shown(run: Run, shown: Path, step: int) -> None:
    """For the trackers, the images and sounds that a validation has written: their names begin with `shown`."""
    for path in sorted(shown.parent.glob(f"{shown.name}[._]*")):
        name = "validation" + path.stem.removeprefix(shown.name)
        if path.suffix == ".png":
            trackers.log_images(run.trackers, name, Image.open(path), step)
        elif path.suffix == ".wav":
            rate, samples = wavfile.read(path)
            trackers.log_audio(run.trackers, name, samples / 32768, rate, step)


def save_if_due(run: Run, training: Training, every: int, limit: int | None) -> None:
    """A checkpoint every so many steps."""
    # None between skipped steps: a resumed run must meet them again.
    if every and training.progress.step % every == 0 and not training.progress.skipped_in_a_row:
        save_now(run, training, limit)


def save_last(run: Run, training: Training, every: int, limit: int | None, finished: bool) -> None:
    """A checkpoint of the last step, also with --checkpointing_steps 0 if the run was stopped.

    That of a finished run takes no other's place: what lies on a multiple of --checkpointing_steps stays.
    """

    def has_room() -> bool:
        return not limit or len(checkpoints.list_checkpoints(run.folder)) < limit

    if not finished or (every and in_main_process(run.accelerator, has_room)):
        save_now(run, training, limit)


def save_now(run: Run, training: Training, limit: int | None) -> None:
    """A checkpoint; none twice, and none of a run that has not begun."""
    path = run.folder / f"checkpoint-{training.progress.step}"
    if not training.progress.step or path in run.saved:
        return

    def save() -> None:
        save_training(path, training, snapshot)
        checkpoints.rotate_checkpoints(run.folder, limit)

    with runs.timed(run.seconds, "checkpoint"):
        snapshot = with_shards(run, training, lambda: take_snapshot(training))
        in_main_process(run.accelerator, save)
    run.saved[:] = [path]


def write_results(
    run: Run,
    training: Training,
    write_card: Callable[[Path, dict[str, str]], None],
    effective: int,
    asked: list[int | None],
    last: int,
) -> None:
    """The run's result, the loss curve, the card and the summary, in the main process.

    `write_card` gets the folder and the results by label; `asked`: the length that was asked for, `last` in steps.
    """
    progress = training.progress
    if progress.skipped_in_a_row:
        raise UserError(f"the run ends with steps that were not finite; nothing is written. {ADVICE}")
    with averaged_weights(training):
        weights = with_shards(run, training, training.files.gather)
        if run.is_main:
            training.files.write_result(run.folder, weights, run.folder.resolve().name, progress.began)
    if not run.is_main:
        return
    counts: dict[str, Any] = {"steps": progress.step, "samples": progress.step * effective}
    counts["skipped_steps"] = len(progress.skipped)
    if progress.step < last:
        counts["stopped_early"] = (
            f"no better held-out loss in {progress.worse_in_a_row} validations; "
            f"the best was {progress.best_loss:.4g} at step {progress.best_step:,}"
        )
    results = model_card.write_results(run.folder, write_card, counts, asked)
    print_table(results.items())
    print(f"{training.files.noun} is in {run.folder}")


def end_run(run: Run, finished: bool) -> int:
    """End the trackers, and send the rest of the folder; the exit code, after a signal as a shell gives it."""
    trackers.end_trackers(run.trackers)
    if not finished:
        saved = f"{run.saved[-1]} is saved" if run.saved else "nothing is trained yet"
        run.accelerator.print(f"stopped; {saved}; the same command resumes")
    all_sent = finish_all(run.syncs, PATIENCE if finished else GRACE)
    if finished:
        return 0 if all_sent else 1
    return 128 + (run.signals or [signal.SIGTERM])[0]
