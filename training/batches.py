"""A step's samples as tensors, and the arithmetic of batches."""

import dataclasses
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from training.examples import Example, View, choose_view, time_ids
from training.sample_plan import Draw, draw_noise, split_step
from utils.cli import UserError
from utils.devices import Rows

MOST_A_STEP = 65_536  # samples


class BatchPlan(NamedTuple):
    """`micro` samples at once on each of `processes`, `effective` a step."""

    micro: int
    processes: int
    effective: int

    def __str__(self) -> str:
        rounds = math.ceil(self.effective / self.processes / self.micro)
        return f"{self.effective} a step = {self.micro} at once x {rounds} accumulated x {self.processes} processes"


def plan_batch(micro: int | str, accumulation: int | None, effective: int | None, processes: int) -> BatchPlan:
    """From the flags: `effective` is divided among the processes; without it the others count on each process.

    Where the numbers don't fit together, they are in the message.
    """
    given = micro if isinstance(micro, int) else None  # None: auto
    if effective is None:
        effective = (given or 1) * (accumulation or 1) * processes
    elif accumulation:
        check_accumulation(given, accumulation, effective, processes)
    if effective > MOST_A_STEP:
        raise UserError(
            f"--train_batch_size {micro}: by accumulation and {processes} processes {effective:,} samples a step; "
            f"expected at most {MOST_A_STEP:,}"
        )
    if effective % processes:
        raise UserError(
            f"--effective_batch_size {effective} can't be divided among {processes} processes; give a multiple of "
            f"{processes}, or --train_batch_size N, which counts on each process"
        )
    if given and given > effective:
        raise UserError(
            f"--train_batch_size {given} is more than the {effective} samples a step of --effective_batch_size; "
            "give no more than that"
        )
    share = effective // processes
    return BatchPlan(min(given or share, share), processes, effective)


def check_accumulation(given: int | None, accumulation: int, effective: int, processes: int) -> None:
    """Refuse --gradient_accumulation_steps that contradicts --effective_batch_size; `given`: None for auto."""
    if given is None:
        raise UserError(
            f"--gradient_accumulation_steps {accumulation}: with --train_batch_size auto it follows from "
            f"--effective_batch_size {effective}; leave one of them out"
        )
    if given * accumulation * processes != effective:
        raise UserError(
            f"--train_batch_size {given} x --gradient_accumulation_steps {accumulation} x {processes} processes is "
            f"{given * accumulation * processes}, not --effective_batch_size {effective}; leave one of them out"
        )


@dataclass(frozen=True)
class Batch(Rows):
    """Images that are trained together; their `samples` are the examples' names."""

    latents: torch.Tensor
    noise: torch.Tensor
    times: torch.Tensor  # of the noise
    time_ids: torch.Tensor  # SDXL's sizes and crops
    texts: list[str]
    index: torch.Tensor  # of the examples
    mask: torch.Tensor | None = None  # how much each place counts


@dataclass(frozen=True)
class Loader:
    """Where a batch's tensors come from. `moments` gives mean and deviation of a view's latents, as the VAE has them.

    `to_latents` makes the VAE's latents those of the denoiser; they are a sample of what the VAE gives, or without
    `sample_posterior` its mean. `masks` says how much each place of an image counts, in the
    size of its latents.
    """

    examples: list[Example]
    moments: Callable[[Example, View], torch.Tensor]
    to_latents: Callable[[torch.Tensor], torch.Tensor]
    crops: int = 1
    noise_offset: float = 0.0
    masks: Callable[[Example, View, tuple[int, int]], torch.Tensor] | None = None
    sample_posterior: bool = True


def load_batch(draws: list[Draw], loader: Loader) -> Batch:
    """The samples of some draws, on the CPU."""
    latents, noises, ids, masks = [], [], [], []
    for draw in draws:
        example = loader.examples[draw.index]
        view = choose_view(example, draw.crop, loader.crops, draw.flip)
        mean, deviation = loader.moments(example, view)
        noise, posterior, offset = draw_noise(draw.noise_key, mean.shape)
        latents.append(loader.to_latents(mean + deviation * posterior if loader.sample_posterior else mean))
        noises.append(noise + loader.noise_offset * offset if loader.noise_offset else noise)
        ids.append(time_ids(example, view))
        if loader.masks:
            masks.append(loader.masks(example, view, tuple(mean.shape[1:])))
    return Batch(
        latents=torch.stack(latents),
        noise=torch.stack(noises),
        times=torch.tensor([draw.time for draw in draws]),
        time_ids=torch.tensor(ids, dtype=torch.float32),
        texts=["" if draw.drop_caption else loader.examples[draw.index].caption_at(draw.caption) for draw in draws],
        samples=[loader.examples[draw.index].id for draw in draws],
        index=torch.tensor([draw.index for draw in draws]),
        mask=torch.stack(masks) if masks else None,
    )


def held_out_loader(loader: Loader, examples: list[Example]) -> Loader:
    """For a loss that can be compared: the centre of each image, the mean, no offset, no mask."""
    return dataclasses.replace(loader, examples=examples, crops=1, noise_offset=0.0, masks=None, sample_posterior=False)


def load_steps(
    steps: Iterable[int],
    plan: BatchPlan,
    rank: int,
    draw: Callable[[int], list[Draw]],
    loader: Loader,
    equally: bool = False,
) -> Generator[list[Batch], None, None]:
    """One process's micro-batches of every step, by the sample plan: what a position means depends on it alone.

    `draw` gives the samples of a position: one, or several that are trained together; `equally`: see `split_step`.
    """
    shapes = [one.shape for one in loader.examples]
    for step in steps:
        by_position = [draw(position) for position in range(step * plan.effective, (step + 1) * plan.effective)]
        together, draws = len(by_position[0]), [one for several in by_position for one in several]
        parts = split_step(draws, shapes, plan.micro * together, rank, plan.processes, equally)
        yield [load_batch(part, loader) for part in parts]
