"""What a benchmark recommends, and the time that a training takes with it."""

import shlex
from typing import Any

from benchmarking import costs
from benchmarking.measuring import Job
from benchmarking.search import Row, Trial, trial_of


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
        if f"--{name}" not in words:
            words += [f"--{name}", str(recipe[name])]
    return shlex.join([*start, job.script, *words])


def describe_row(row: Row) -> str:
    """`4 at once: 0.52 s a step (0.50 to 0.55), 15.4 images/s, 3.1 GiB (estimated 2.8)`."""
    name, estimated = trial_of(row), f"estimated {row['estimated_gib']:.3g} GiB"
    if row["status"] != "ok":
        return f"{name}: {row['status']}: {row['why']}"
    step = row["seconds_per_step"]
    took = f"{step['median']:.3g} s a step ({step['low']:.3g} to {step['high']:.3g})"
    return f"{name}: {took}, {row['images_per_second']:.3g} images/s, {row['memory_gib']:.3g} GiB ({estimated})"
