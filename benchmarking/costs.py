"""From what trainings logged to the seconds of a step, with their spread, and to how long another training takes."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

WARM_UP = 2  # steps whose time does not count; one where a step takes longer than SLOW seconds
SLOW = 15.0
Record = dict[str, Any]  # a line of metrics.jsonl


@dataclass(frozen=True)
class Effort:
    """How long a measurement goes on: `repeats` steps and at least `shortest` seconds, but not beyond `longest`."""

    repeats: int
    shortest: float = 5.0
    longest: float = 120.0


def spread(values: list[float]) -> dict[str, float]:
    """{median, low, high, repeats}."""
    middle, low, high = (float(f"{value:.4g}") for value in (statistics.median(values), min(values), max(values)))
    return {"median": middle, "low": low, "high": high, "repeats": len(values)}


def all_steps(records: list[Record]) -> list[float]:
    """The seconds of each step, with those of its data, of a training that logs every step."""
    return [record["seconds_step"] + record["seconds_data"] for record in records if "seconds_step" in record]


def warm_steps(records: list[Record]) -> list[float]:
    """The seconds of the steps after the first ones, which also compile, choose kernels and fill caches."""
    seconds = all_steps(records)
    return seconds[1 if len(seconds) > 1 and seconds[1] > SLOW else WARM_UP :]


def is_enough(records: list[Record], effort: Effort) -> bool:
    """Whether the steps so far are a measurement."""
    seconds = warm_steps(records)
    if len(seconds) < effort.repeats:
        return bool(seconds) and sum(seconds) >= effort.longest
    return sum(seconds) >= min(effort.shortest, effort.longest)


def measured_row(records: list[Record], samples: int, effective: int) -> Record:
    """What a row of benchmark.json says of a training with `samples` a step, for steps of `effective` samples."""
    rounds, seconds = effective / samples, warm_steps(records)
    step = spread([rounds * one for one in seconds])
    first = all_steps(records)[: -len(seconds)]
    return {
        "status": "ok",
        "why": "",
        "seconds_per_step": step,
        "samples_per_second": effective / step["median"],
        "memory_gib": round(max(record["memory_gib"] for record in records if "memory_gib" in record), 3),
        "warm_up_seconds": round(max(0.0, sum(first) - len(first) * statistics.median(seconds)), 3),
    }


@dataclass(frozen=True)
class Plan:
    """When a training validates and saves: every so many steps, 0 for never; `limit`: checkpoints that are kept."""

    steps: int
    validation_steps: int
    checkpointing_steps: int
    limit: int | None


def count_validations(plan: Plan) -> int:
    """Before the first step, every so many steps, and after the last."""
    return 1 + math.ceil(plan.steps / plan.validation_steps) if plan.validation_steps else 0


def count_checkpoints(plan: Plan) -> int:
    """Every so many steps, and after the last where the limit leaves room for one more."""
    if not plan.checkpointing_steps:
        return 0
    count, rest = divmod(plan.steps, plan.checkpointing_steps)
    return count + bool(rest and (plan.limit is None or count < plan.limit))


def seconds_of(records: list[Record], activity: str) -> list[float]:
    """What each line says of an activity: validation, checkpoint, loading, class_images."""
    return [record[f"seconds_{activity}"] for record in records if f"seconds_{activity}" in record]


def costs_of(records: list[Record], whole: float, rounds: float) -> dict[str, float]:
    """What each part of a training costs, from a short one that did all of it and took `whole` seconds.

    `rounds`: how many of its steps make one of the training. What is in no line of its own is start and end.
    """
    step = statistics.mean(warm_steps(records))
    first, *later = seconds_of(records, "validation") or [0.0]
    checkpoints = seconds_of(records, "checkpoint")
    once = {name: sum(seconds_of(records, name)) for name in ("loading", "class_images")}
    named = sum(once.values()) + first + sum(later) + sum(checkpoints) + step * len(all_steps(records))
    return {
        "start_and_end": max(0.0, whole - named),
        **once,
        "step": rounds * step,
        "first_validation": first,
        "validation": statistics.mean(later or [first]),
        "checkpoint": statistics.mean(checkpoints or [0.0]),
    }


def estimate(costs: dict[str, float], plan: Plan) -> dict[str, float]:
    """The seconds of each part of a training by this plan."""
    validations = count_validations(plan)
    first = costs["first_validation"] if validations else 0.0
    return {
        "start_and_end": costs["start_and_end"],
        "loading": costs["loading"],
        "class_images": costs["class_images"],
        "steps": plan.steps * costs["step"],
        "validations": first + max(0, validations - 1) * costs["validation"],
        "checkpoints": count_checkpoints(plan) * costs["checkpoint"],
    }
