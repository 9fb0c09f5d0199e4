"""Trainings that are measured, with one set of settings each, a short one that does all, and what follows from them."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarking import costs, drawings
from benchmarking.search import Row, Trial, trial_of
from benchmarking.trainer import ROOT, lacks_memory, launch_words, run_trainer, why_failed
from utils.cli import UserError
from utils.console import Bar, show_progress
from utils.files import write_text
from utils.metrics_log import read_metrics
from utils.outputs import discard_folder

STEP_SECONDS = 4.0  # a step is measured whole up to so long; of a longer one, some of its micro-batches
WHOLE_SECONDS = 40.0  # of the short training that does all that a training does
VALIDATION_SECONDS = 60.0  # of each of its validations, for the images
LONGEST = 2000  # steps, after which a training that is measured ends by itself
MOST_IMAGES = 32  # of the data, for the trainings that are measured
# Of a training that is measured: nothing but steps, each in the log.
ONLY_STEPS: dict[str, Any] = {
    "gradient_accumulation_steps": None,
    "num_train_epochs": None,
    "validation_steps": 0,
    "validation_epochs": None,
    "early_stopping_patience": None,
    "discriminator_start": 0,
    "checkpointing_steps": 0,
    "logging_steps": 1,
    "report_to": "none",
    "report_every": 0,
    "push_to_hub": False,
    "hub_model_id": None,
    "sync_to": None,
    "overwrite": False,
    "resume_from_checkpoint": "latest",
}


@dataclass(frozen=True)
class Job:
    """What is measured: the trainer with the words of its command line, in the benchmark's folder.

    The last four are from --config_file; `drawn`: the images are our own.
    """

    script: str
    words: tuple[str, ...]
    out: Path
    random_family: str | None  # of a model with random weights
    drawn: bool
    config_file: Path | None = None
    processes: int = 1
    mixed_precision: str | None = None
    sharded: bool = False


def child_command(job: Job, settings: dict[str, Any]) -> list[str]:
    """The trainer's command line: all settings in a file, which it reads as a recipe."""
    path = job.out / "training.yaml"
    write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return [*launch_words(job.config_file), str(ROOT / job.script), "--config", str(path)]


def run_settings(job: Job, facts: dict[str, Any], trial: Trial, samples: int, steps: int) -> dict[str, Any]:
    """The settings of a training of `steps` steps with so many samples each."""
    settings = facts["settings"] | ONLY_STEPS | trial._asdict()
    settings |= {"train_batch_size": trial.micro_batch, "effective_batch_size": samples, "max_train_steps": steps}
    settings = {name: settings[name] for name in facts["settings"]}  # a voice has no --compile, and no `micro_batch`
    if facts["class_images"]:
        settings |= {"class_data_dir": str(job.out / "class_images"), "num_class_images": drawings.NUMBER}
    if "cache_latents" in settings and "max_train_samples" in settings:
        settings["max_train_samples"] = min(facts["recipe"]["examples"], MOST_IMAGES)
    return settings


def start_fresh(job: Job) -> Path:
    """The folder that a training is measured in, without what another one left there; its log."""
    place = job.out / "training"
    if place.exists():
        discard_folder(place, "train")
    return place / "metrics.jsonl"


def measure(job: Job, facts: dict[str, Any], trial: Trial, rows: list[Row], repeats: int) -> Row:
    """The row of a trial: its trainer runs until enough steps are measured, or it ends by itself."""
    recipe = facts["recipe"]
    effective, processes = recipe["effective_batch_size"], recipe["processes"]
    samples = processes * trial.micro_batch * rounds_to_measure(rows, trial.micro_batch * processes, effective)
    row: Row = trial._asdict() | {"estimated_gib": round(estimated(facts, trial) / 2**30, 3)}
    if why := too_large(facts, trial):
        return row | {"status": "not tried", "why": why}
    log, effort = start_fresh(job), costs.Effort(repeats)
    command = child_command(job, run_settings(job, facts, trial, samples, LONGEST))
    with show_progress(repeats, "steps", str(trial)) as bar:

        def has_enough() -> bool:
            records = read_metrics(log)
            show_steps(bar, min(len(costs.warm_steps(records)), repeats))
            return costs.is_enough(records, effort)

        ended = run_trainer(command, job.out / "training.log", has_enough)
    records = read_metrics(log)
    if not lacks_memory(ended.output) and not ended.code and costs.warm_steps(records):
        return row | costs.measured_row(records, samples, effective)
    status, why = why_failed(ended)
    return row | {"status": status, "why": why}


def show_steps(bar: Bar, done: int) -> None:
    """The rate is that of the steps after the first one, without the start of the trainer."""
    if done > bar.done:
        if not bar.done:
            bar.marks.clear()
        bar.update(done - bar.done)


def rounds_to_measure(rows: list[Row], at_once: int, effective: int) -> int:
    """How many micro-batches a measured step has: all of them, unless that takes long, which the first row shows."""
    known = [row["samples_per_second"] for row in rows if row["status"] == "ok"]
    if not known:
        return 1
    wanted = int(STEP_SECONDS * known[-1] / at_once)
    return max(1, min(effective // at_once, wanted))


def estimated(facts: dict[str, Any], trial: Trial) -> float:
    """Bytes at the peak, as the dry run estimates them."""
    encoding, first, second = facts["estimates"][str(trial.gradient_checkpointing)]
    return max(encoding, first + (second - first) * (trial.micro_batch - 1))  # it grows evenly


def too_large(facts: dict[str, Any], trial: Trial) -> str:
    """Why a trial is not even tried: without a memory of its own, the device would make the machine swap."""
    machine, needed = facts["machine"], estimated(facts, trial) / 2**30
    if machine["type"] == "cuda" or needed * facts["recipe"]["processes"] <= 0.9 * machine["free_gib"]:
        return ""
    return f"estimated {needed:.1f} GiB, more than 90 % of the {machine['free_gib']:.1f} GiB that are free"


def train_briefly(job: Job, benchmark: dict[str, Any], facts: dict[str, Any], best: Row) -> dict[str, float]:
    """What each part of the training costs, from a short one that does all of it: encoding, validating, saving.

    Of many images, only some are encoded for it, and of slow validation images only some generated; the rest is added.
    """
    asked, effective = facts["settings"], benchmark["recipe"]["effective_batch_size"]
    settings = short_settings(job, benchmark, facts, best)
    if cache := settings.get("latent_cache_dir"):
        shutil.rmtree(cache, ignore_errors=True)
    log, command = start_fresh(job), child_command(job, settings)
    with show_progress(settings["max_train_steps"], "steps", "a short training") as bar:

        def watch() -> bool:
            show_steps(bar, len(costs.all_steps(read_metrics(log))))
            return False

        ended = run_trainer(command, job.out / "training.log", watch)
    if ended.code:
        raise UserError(f"the training with what is recommended failed: {why_failed(ended)[1]}")
    found = costs.costs_of(read_metrics(log), ended.seconds, effective / settings["effective_batch_size"])
    if "cache_latents" not in asked:  # a voice: all of its data was loaded, and all sounds were spoken
        return found
    left_out = asked["num_validation_images"] - settings["num_validation_images"]
    for name in ("first_validation", "validation"):
        found[name] += left_out * generation_seconds(benchmark, asked["num_validation_images"])
    images = benchmark["recipe"]["examples"]
    left_out = facts["views"] * (1 - (settings.get("max_train_samples") or images) / images) * asked["cache_latents"]
    found["loading"] += left_out / benchmark["rates"]["encoding_images_per_second"]
    found["class_images"] += facts["class_images"] * generation_seconds(benchmark, facts["class_images"])
    return found


def short_settings(job: Job, benchmark: dict[str, Any], facts: dict[str, Any], best: Row) -> dict[str, Any]:
    """The settings of a short training by the row that is recommended, which validates and saves as is asked for."""
    recipe, asked, trial = benchmark["recipe"], facts["settings"], trial_of(best)
    at_once = trial.micro_batch * recipe["processes"]
    samples = at_once * rounds_to_measure([best], at_once, recipe["effective_batch_size"])
    step = best["seconds_per_step"]["median"] * samples / recipe["effective_batch_size"]
    steps = max(4, min(100, int(WHOLE_SECONDS / step)))
    settings = run_settings(job, facts, trial, samples, steps) | {
        "validation_steps": steps if recipe["validation_steps"] else 0,
        "checkpointing_steps": max(1, steps // 2) if asked["checkpointing_steps"] else 0,
        "report_to": asked["report_to"],
    }
    if "cache_latents" not in asked:
        return settings
    each, images = generation_seconds(benchmark, asked["num_validation_images"]), asked["num_validation_images"]
    settings |= {
        "latent_cache_dir": str(job.out / "cache" / "whole"),
        "num_validation_images": min(images, max(1, int(VALIDATION_SECONDS / each))) if each else images,
    }
    if facts["views"] < WHOLE_SECONDS * benchmark["rates"]["encoding_images_per_second"]:
        settings |= {"max_train_samples": recipe["examples"]} if "max_train_samples" in settings else {}
    return settings


def generation_seconds(benchmark: dict[str, Any], images: int) -> float:
    """Seconds per image, generated as many at once as were measured and are needed; 0 where none was measured."""
    rows = [row for row in benchmark["generation"] if row["status"] == "ok" and row["batch_size"] <= max(1, images)]
    return rows[-1]["seconds_per_image"]["median"] if rows else 0.0


def settle(job: Job, benchmark: dict[str, Any], best: Row) -> None:
    """Write into the benchmark what is recommended, and the time that it takes."""
    recipe = benchmark["recipe"]
    trial, effective = trial_of(best), recipe["effective_batch_size"]
    rounds = effective // (trial.micro_batch * recipe["processes"])
    benchmark["recommended"] = {
        "train_batch_size": trial.micro_batch,
        "gradient_accumulation_steps": rounds,
        "gradient_checkpointing": trial.gradient_checkpointing,
        "compile": trial.compile,
        "command": training_command(job, benchmark, trial),
    }
    settings = benchmark["settings"]
    limit, saves = settings["checkpoints_total_limit"], settings["checkpointing_steps"]
    plan = costs.Plan(recipe["max_train_steps"], recipe["validation_steps"], saves, limit)
    parts = costs.estimate(benchmark["costs"], plan)
    benchmark["estimate"] = {"max_train_steps": plan.steps, "seconds": sum(parts.values()), **parts}


def training_command(job: Job, benchmark: dict[str, Any], trial: Trial) -> str:
    """The command line to paste."""
    model, recipe = str(job.out / "model"), benchmark["recipe"]
    words = [recipe["model"] if job.random_family and word == model else word for word in job.words]
    start = ["accelerate", "launch", "--config_file", str(job.config_file)] if job.config_file else ["python3"]
    switch = "--gradient_checkpointing" if trial.gradient_checkpointing else "--no-gradient_checkpointing"
    words += ["--train_batch_size", str(trial.micro_batch), switch, *["--compile"] * trial.compile]
    for name in ("effective_batch_size", "max_train_steps"):
        in_epochs = name == "max_train_steps" and benchmark["settings"]["num_train_epochs"]
        if f"--{name}" not in words and not in_epochs:
            words += [f"--{name}", str(recipe[name])]
    return shlex.join([*start, job.script, *words])
