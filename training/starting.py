"""What the start of every trainer has in common: processes, precision, batch, the run's folder, the length."""

import argparse
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from training.batches import BatchPlan, plan_batch
from training.model_card import push_run
from training.optimizers import OptimizerSettings, Schedule, read_option
from training.run import Tracking
from utils import checkpoints, cli, devices, runs, sync
from utils.cli import UserError
from utils.devices import Precision
from utils.outputs import check_apart
from utils.parallel import in_main_process
from utils.storage import Place
from utils.sync import Sync
from utils.trackers import tracker_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a trainer has before it looks at model and data. `places`: that of --sync_to, if it is given."""

    accelerator: Accelerator
    precision: Precision
    plan: BatchPlan
    places: list[Place]


def begin(args: argparse.Namespace, data: dict[str, Any], models: dict[str, Any]) -> Start:
    """Start accelerate, and plan the batch. The folders of `data` and `models`, by their flags, are not written to."""
    check_apart(args.output_dir, data, models)
    places = sync.find_place(args.sync_to, args.output_dir)
    if args.overwrite and args.resume_from_checkpoint != "latest":
        check_kept(args.output_dir, args.resume_from_checkpoint)
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    plan = plan_batch(
        args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size, accelerator.num_processes
    )
    return Start(accelerator, precision, plan, places)


def announce(args: argparse.Namespace, start: Start, trained: str) -> Tracking:
    """Print the settings and what they come to, once they are settled; what the trackers shall show."""
    batch = describe_batch(start.plan, args.effective_batch_size)
    args.effective_batch_size = start.plan.effective
    if start.accelerator.is_main_process:
        cli.show_settings(args)
        device = devices.describe_device(start.accelerator.device)
        print(f"device: {device}; precision: {start.precision.reason}; batch: {batch}; trained: {trained}")
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    return Tracking(tracker_names(args.report_to), args.logging_dir, cli.settings_of(args))


def describe_batch(plan: BatchPlan, effective: int | None) -> str:
    """`effective`: --effective_batch_size, if it is given."""
    if plan.processes == 1:
        return str(plan)
    return f"{plan} ({'the effective batch is divided among them' if effective else 'each its own batch'})"


def check_kept(output: Path, resume: str) -> None:
    """Refuse, before --overwrite removes anything, a checkpoint that it would remove, or that is not there."""
    found = checkpoints.find_checkpoint(output, resume)
    if found and found.resolve().is_relative_to(output.resolve()):
        raise UserError(
            f"--resume_from_checkpoint {resume}: --overwrite would remove it with the run in {output}; leave "
            "--overwrite out, or give another --output_dir"
        )


def describe_start(start: Start, plan: BatchPlan, run: str) -> list[tuple[str, str]]:
    """What a dry run says first; `run`: the state of the run folder."""
    rows = [("precision", start.precision.reason), ("batch", str(plan)), ("run", run)]
    return rows + sync.describe_places(start.places)


def open_folder(
    args: argparse.Namespace, start: Start, tracking: Tracking, free: set[str], describe_end: Callable[[], str | None]
) -> list[Sync] | None:
    """Open --output_dir, filled from --sync_to where that is further; None if no step is left to train.

    Returned, in the main process: what keeps the folder elsewhere too, if anything does. `free`: the settings that a
    resumed run may change.
    """
    settings, syncs = tracking.settings, []

    def fill(folder: Path) -> None:
        for place in start.places:
            syncs.append(sync.open_sync(place, folder, "train", limit=args.checkpoints_total_limit))
            if args.overwrite:
                sync.erase(syncs[0])
            sync.fetch_run(syncs[0], settings, free, args.resume_from_checkpoint)

    def open_here() -> str | None:
        return runs.open_run(args.output_dir, settings, free, args.overwrite, describe_end, fill=fill)

    message = in_main_process(start.accelerator, open_here)
    if not message:
        for one in syncs:
            sync.start_sending(one)
        return syncs
    start.accelerator.print(message)
    if not sync.finish_all(syncs):
        raise UserError(f"--sync_to {args.sync_to}: not all of it is there; give the same command again")
    if args.push_to_hub and start.accelerator.is_main_process:
        push_run(args.output_dir, args.hub_model_id)
    return None


def read_optimizer(args: argparse.Namespace) -> OptimizerSettings:
    betas = args.adam_beta1, args.adam_beta2
    options = tuple(map(read_option, args.optimizer_args))
    return OptimizerSettings(args.optimizer, betas, args.adam_weight_decay, args.adam_epsilon, options)


def read_schedule(args: argparse.Namespace) -> Schedule:
    return Schedule(args.lr_scheduler, args.lr_warmup_steps, args.lr_num_cycles, args.lr_power)


def asked_length(args: argparse.Namespace) -> list[int | None]:
    """What decides when a training ends."""
    return [args.max_train_steps, args.num_train_epochs, args.early_stopping_patience]


def count_steps(args: argparse.Namespace, examples: int) -> tuple[int, int]:
    """The steps of the training, and those from one validation to the next; epochs count where they are given."""
    epoch = examples / args.effective_batch_size
    last = math.ceil(args.num_train_epochs * epoch) if args.num_train_epochs else args.max_train_steps
    return last, math.ceil(args.validation_epochs * epoch) if args.validation_epochs else args.validation_steps


def describe_end(args: argparse.Namespace, count_examples: Callable[[], int], lacks: bool = False) -> str | None:
    """What to say where the run in --output_dir has no step left to train, else None (see runs.describe_end).

    The examples are counted only where epochs are asked for. `lacks`: a file that is asked for is still to be written.
    """

    def count_asked() -> int:
        return count_steps(args, count_examples() if args.num_train_epochs else 0)[0]

    early = "stopped_early" in runs.read_summary(args.output_dir)
    if early:
        longer = "give a larger --early_stopping_patience, or none"
    elif args.lr_scheduler.startswith("constant"):
        longer = f"give more {'--num_train_epochs' if args.num_train_epochs else '--max_train_steps'}"
    else:
        longer = f"give another --output_dir: --lr_scheduler {args.lr_scheduler} ends with the length it began with"
    return runs.describe_end(
        args.output_dir, asked_length(args), args.resume_from_checkpoint, count_asked, lacks, longer=longer
    )
