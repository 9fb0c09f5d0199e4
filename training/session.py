"""One process of a training run: where it computes, what it writes down, when it validates and saves."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from tqdm import tqdm

from training import guards, model_card, validation
from training.training import (
    Training,
    averaged_weights,
    restore_training,
    save_best,
    save_training,
    write_kohya,
    write_result,
)
from utils import checkpoints, cli, devices, metrics_log, runs, trackers
from utils.cli import UserError


class Session(NamedTuple):
    """`seconds` collects how long what took until it is logged; `received` are the signals that came."""

    accelerator: Accelerator
    folder: Path
    training: Training
    identity: dict  # what a run that goes on must have in common with this one
    facts: dict[str, str]  # what the files say of themselves
    seconds: dict[str, float]
    received: list[int]
    followers: dict[str, trackers.Tracker]
    saved: list[Path]  # the last checkpoint, once there is one


def open_session(
    accelerator: Accelerator,
    folder: Path,
    training: Training,
    identity: dict,
    facts: dict[str, str],
    seconds: dict[str, float],
    resume: str,
    precision: str,
    tracked: tuple[list[str], str, dict],
) -> Session:
    """Take up the folder's run where it stands. `tracked`: the trackers' names, their folder, the settings to note."""
    saved = checkpoints.find_checkpoint(folder, resume)
    if saved:
        restore_training(saved, training, identity)
        accelerator.print(f"resuming from {saved}")
    followers, step = {}, training.progress["step"]
    if accelerator.is_main_process:
        metrics_log.cut_metrics(folder / "metrics.jsonl", step if saved else -1)
        device = devices.describe_device(accelerator.device)
        runs.write_environment(folder / "environment.json", device, precision, dataset=identity["data"])
        names, logs, settings = tracked
        followers = trackers.start_trackers(names, folder / logs, folder.name, settings, step)
    received = runs.catch_signals()
    return Session(
        accelerator, folder, training, identity, facts, seconds, received, followers, [saved] if saved else []
    )


def note(session: Session, record: dict) -> None:
    """A line of metrics.jsonl, with the seconds spent since the last one, and the same to the trackers."""
    seconds = session.seconds
    record |= {f"seconds_{name}": round(seconds.pop(name), 3) for name in list(seconds)}
    if session.accelerator.is_main_process:
        metrics_log.append_metrics(session.folder / "metrics.jsonl", record)
        trackers.log_scalars(session.followers, record, record["step"])


def note_step(session: Session, losses: dict[str, float], rate: float, norm: float, samples: int) -> None:
    """The line of the steps since the last one: `losses` are their means, over `samples` samples."""
    progress, seconds = session.training.progress, session.seconds
    progress["loss_smooth"] = 0.9 * (progress["loss_smooth"] or losses["loss"]) + 0.1 * losses["loss"]
    note(session, {
        "step": progress["step"], **losses, "loss_smooth": progress["loss_smooth"], "lr": rate, "grad_norm": norm,
        "samples_per_second": samples / (seconds["data"] + seconds["step"]),
        "memory_gib": devices.peak_memory_gib(session.accelerator.device), "skipped_steps": len(progress["skipped"]),
    })  # fmt: skip


def validate(session: Session, check: Callable[[Path], dict | None], done: bool, images: int) -> None:
    """Held-out loss and images of this step, in the main process; the weights of the best loss are kept.

    `check` gives the figures and writes the grid; None where a signal broke it off.
    """
    training, is_main = session.training, session.accelerator.is_main_process
    step = training.progress["step"]
    with runs.timed(session.seconds, "validation"):
        grid = session.folder / "validation" / f"step-{step:06d}.png"
        found = [check(grid) if is_main else None]
        broadcast_object_list(found)
    if not found[0]:
        return
    loss = found[0].get("val_loss")
    if validation.note_loss(training.progress, loss) and is_main:
        save_best(session.folder / "best", training, session.facts)
    note(session, {"step": step, **found[0]})
    if done and not math.isfinite(loss or 0):
        raise UserError(f"step {step}: the held-out loss is not finite, and nothing is written. {guards.ADVICE}")
    if is_main and images:
        trackers.log_images(session.followers, "validation", Image.open(grid), step)


def save_if_due(session: Session, every: int, limit: int | None, done: bool, stopping: bool) -> None:
    """A checkpoint every so many steps, at the end, and before a signal is obeyed."""
    progress, step = session.training.progress, session.training.progress["step"]
    path = session.folder / f"checkpoint-{step}"
    due = every and (step % every == 0 or done)
    due = due and (done or not progress["skipped_in_a_row"])  # a roll-back wants weights from before the trouble
    if not step or path in session.saved or not (due or stopping):
        return
    with runs.timed(session.seconds, "checkpoint"):
        if session.accelerator.is_main_process:
            save_training(path, session.training, session.identity, session.facts)
            checkpoints.rotate_checkpoints(session.folder, limit)
        session.accelerator.wait_for_everyone()
    session.saved[:] = [path]


def each_step(
    session: Session,
    steps: Iterator[list[dict]],
    last: int,
    every: int,
    check: Callable[[Path], dict | None],
    images: int,
    patience: int | None,
    kept: tuple[int, int | None],
) -> Iterator[list[dict]]:
    """The micro-batches of a step at a time, to the end or a signal; before each, what is due: validation, checkpoint.

    `every`, `check`, `images`: see `validate`; `kept`: checkpoints, how often and how many.
    """
    progress = session.training.progress
    bar = tqdm(
        total=last, initial=progress["step"], unit=" steps", smoothing=0.05,
        **cli.progress(session.accelerator.is_main_process)
    )  # fmt: skip
    with contextlib.closing(steps), bar:
        while True:
            step = progress["step"]
            if every and progress["validated"] < step and (step % every == 0 or step >= last):
                validate(session, check, step >= last, images)
            done = is_done(progress, last, patience)
            stopping = guards.any_process(session.accelerator, bool(session.received))
            save_if_due(session, *kept, done, stopping)
            if done and progress["skipped_in_a_row"]:
                raise UserError(f"the run ends amid steps that were not finite; nothing is written. {guards.ADVICE}")
            if done or stopping:
                return
            with runs.timed(session.seconds, "data"):
                parts = next(steps)
            yield parts
            bar.update()
            if progress["loss_smooth"] is not None:
                bar.set_postfix(loss=f"{progress['loss_smooth']:.4f}", refresh=False)


def is_done(progress: dict, last: int, patience: int | None) -> bool:
    """Whether a training has come to its last step, or has not got better for too long."""
    return progress["step"] >= last or progress["worse_in_a_row"] >= (patience or math.inf)


def finish(session: Session, card: dict, effective: int, asked: list, kohya_family: str | None = None) -> None:
    """What the run made, its other format, the loss curve, the card, the summary.

    `card`: see model_card.write_card; `asked`: the length that was asked for.
    """
    training, folder = session.training, session.folder
    with averaged_weights(training):
        write_result(folder, training, session.facts)
        if kohya_family:
            write_kohya(folder, training, session.facts, kohya_family)
    steps, skipped = training.progress["step"], len(training.progress["skipped"])
    counts = {"steps": steps, "samples": steps * effective, "skipped_steps": skipped}
    results = model_card.write_results(folder, session.facts | card, counts, asked)
    print(f"\n{results}\n{'the pipeline' if training.whole else 'the LoRA'} is in {folder}")


def close_session(session: Session, done: bool) -> int:
    """The exit code: 0, or as a shell says that a signal ended it."""
    trackers.end_trackers(session.followers)
    if not done:
        saved = f"{session.saved[-1]} is saved" if session.saved else "nothing is trained yet"
        session.accelerator.print(f"stopped; {saved}; the same command goes on")
    return 0 if done else 128 + (session.received or [signal.SIGTERM])[0]
