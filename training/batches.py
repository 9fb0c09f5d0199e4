"""A step's samples as tensors, and the arithmetic of batches."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from training.examples import Example, View, choose_view, time_ids
from training.sample_plan import Draw, draw_noise, split_step
from utils.cli import UserError


class BatchPlan(NamedTuple):
    """`micro` samples at once on each of `processes`, `effective` a step."""

    micro: int
    processes: int
    effective: int

    def __str__(self) -> str:
        rounds = math.ceil(self.effective / self.processes / self.micro)
        return f"{self.effective} a step = {self.micro} at once x {rounds} accumulated x {self.processes} processes"


def plan_batch(micro: int | str, accumulation: int | None, effective: int | None, processes: int) -> BatchPlan:
    """From the flags; where the numbers don't fit together, they are in the message."""
    if effective is None:
        effective = (2 if micro == "auto" else micro * processes) * (accumulation or 8)
    elif micro == "auto" and accumulation:
        raise UserError(
            f"--gradient_accumulation_steps {accumulation}: with --train_batch_size auto it follows from "
            f"--effective_batch_size {effective}; leave one of them out"
        )
    elif micro != "auto" and accumulation and micro * accumulation * processes != effective:
        raise UserError(
            f"--train_batch_size {micro} x --gradient_accumulation_steps {accumulation} x {processes} processes is "
            f"{micro * accumulation * processes}, not --effective_batch_size {effective}; leave one of them out"
        )
    if effective % processes:
        raise UserError(
            f"--effective_batch_size {effective} can't be divided among {processes} processes; choose another"
        )
    share = effective // processes
    if micro != "auto" and micro > share:
        raise UserError(
            f"--train_batch_size {micro} is more than the {share} samples a step that --effective_batch_size "
            f"{effective} leaves each of {processes} processes; choose at most {share}"
        )
    return BatchPlan(share if micro == "auto" else micro, processes, effective)


def count_steps(
    examples: int, effective: int, steps: int, epochs: int | None, every: int, every_epochs: int | None
) -> tuple[int, int]:
    """The steps of a training, and those from one validation to the next; epochs count where they are given."""
    epoch = examples / effective
    return math.ceil(epochs * epoch) if epochs else steps, math.ceil(every_epochs * epoch) if every_epochs else every


def load_steps(
    steps: range,
    plan: BatchPlan,
    rank: int,
    examples: list[Example],
    draw: Callable[[int], list[Draw]],
    load: Callable[[list[Draw], list[Example]], dict],
) -> Iterator[list[dict]]:
    """One process's micro-batches of every step, by the sample plan: what a position means depends on it alone.

    `draw` gives the samples of a position: one, or several that are trained together.
    """
    shapes = [one.shape for one in examples]
    for step in steps:
        found = [draw(position) for position in range(step * plan.effective, (step + 1) * plan.effective)]
        each, draws = len(found[0]), [one for several in found for one in several]
        yield [load(part, examples) for part in split_step(draws, shapes, plan.micro * each, rank, plan.processes)]


def load_batch(
    draws: list[Draw],
    examples: list[Example],
    moments: Callable[[Example, View], torch.Tensor],
    crops: int,
    scaling: float,
    noise_offset: float = 0.0,
    sample_posterior: bool = True,
    masks: Callable[[Example, View, tuple[int, int]], torch.Tensor] | None = None,
) -> dict:
    """The tensors of some draws, on the CPU. `scaling` is the VAE's factor from its latents to those of the UNet.

    `masks` says how much each place of an image counts, in the size of its latents.
    """
    latents, noises, ids, counted = [], [], [], []
    for draw in draws:
        example = examples[draw.index]
        view = choose_view(example, draw.crop, crops, draw.flip)
        mean, deviation = moments(example, view)
        noise, posterior, offset = draw_noise(draw.noise_key, mean.shape)
        latents.append((mean + deviation * posterior if sample_posterior else mean) * scaling)
        noises.append(noise + noise_offset * offset if noise_offset else noise)
        ids.append(time_ids(example, view))
        if masks:
            counted.append(masks(example, view, tuple(mean.shape[1:])))
    return ({"mask": torch.stack(counted)} if masks else {}) | {
        "latents": torch.stack(latents),
        "noise": torch.stack(noises),
        "timesteps": torch.tensor([draw.timestep for draw in draws]),
        "time_ids": torch.tensor(ids, dtype=torch.float32),
        "texts": ["" if draw.drop_caption else examples[draw.index].text for draw in draws],
        "index": torch.tensor([draw.index for draw in draws]),
        "samples": [examples[draw.index].id for draw in draws],
    }


def to_device(batch: dict, device: torch.device) -> dict:
    """Asynchronously where the device allows it."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    return {name: move(value) if torch.is_tensor(value) else value for name, value in batch.items()}


def split_batch(batch: dict, size: int) -> list[dict]:
    """The batch in parts of at most `size` samples."""
    count = len(batch["samples"])
    return [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, count, size)]
