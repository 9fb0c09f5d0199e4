"""The sample plan: which image, crop, noise and timestep stand at each position, the same on any hardware.

Optimizer step s trains on the positions s*E … s*E+E-1 of one endless sequence, E being the effective batch. What a
position means is drawn on the CPU from (seed, position) alone. So neither micro-batches nor accumulation nor processes
change the training, and to resume, the step number is all that is needed.
"""

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from utils.devices import keyed_generator

Item = TypeVar("Item")
Shape = tuple[int, int]


class Draw(NamedTuple):
    """What one position of the plan means; `noise_key` gives the generator of all its noise."""

    index: int  # type: ignore[assignment]  # of the example; a tuple has a method of that name
    crop: float  # in [0, 1): which of the crops
    flip: bool
    drop_caption: bool
    time: float  # of the noise
    noise_key: tuple[Hashable, ...]
    caption: float = 0.0  # in [0, 1): which of several captions


@dataclass(frozen=True, eq=False)  # hashed by identity: the shapes of 100,000 images would take 2 ms each time
class SamplePlan:
    """What decides a position: `shapes` are those of the examples, `flip` and `dropout` are probabilities.

    `draw_time`: see families.diffusion.Diffusion and families.flow.Flow; None where nothing is denoised.
    """

    seed: Hashable
    shapes: tuple[Shape, ...]
    effective: int
    draw_time: Callable[[torch.Generator, Shape], float] | None = None
    flip: float = 0.0
    dropout: float = 0.0


@functools.lru_cache(maxsize=4)
def epoch_order(plan: SamplePlan, epoch: int) -> list[int]:
    """A permutation of the examples; where shapes differ, those of one shape come in runs of the effective batch."""
    generator = keyed_generator("order", plan.seed, epoch)
    order = torch.randperm(len(plan.shapes), generator=generator).tolist()
    by_shape = defaultdict(list)
    for index in order:
        by_shape[plan.shapes[index]].append(index)
    if len(by_shape) == 1:
        return order
    size = plan.effective
    runs = [members[start : start + size] for members in by_shape.values() for start in range(0, len(members), size)]
    shuffled = [runs[i] for i in torch.randperm(len(runs), generator=generator).tolist()]
    return [index for run in sorted(shuffled, key=len, reverse=True) for index in run]


def draw_position(plan: SamplePlan, position: int) -> Draw:
    """The meaning of one position."""
    epoch, place = divmod(position, len(plan.shapes))
    generator = keyed_generator("draw", plan.seed, position)
    u = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    index = epoch_order(plan, epoch)[place]
    time = plan.draw_time(generator, plan.shapes[index]) if plan.draw_time else 0.0
    caption = torch.rand((), generator=generator, dtype=torch.float64).item()
    return Draw(index, u[0], u[1] < plan.flip, u[2] < plan.dropout, time, ("noise", plan.seed, position), caption)


def draw_step(plan: SamplePlan, step: int) -> list[Draw]:
    """The positions of one step."""
    return [draw_position(plan, step * plan.effective + i) for i in range(plan.effective)]


def validation_draws(count: int, examples: int, time_at: Callable[[float], float]) -> list[Draw]:
    """Fixed positions for a loss that can be compared: times stratified, nothing depends on the run's seed."""
    order = torch.randperm(count, generator=keyed_generator("validation")).tolist()
    strata = [time_at((order[i] + 0.5) / count) for i in range(count)]
    return [Draw(i % examples, 0.0, False, False, strata[i], ("validation", i)) for i in range(count)]


def draw_noise(key: tuple[Hashable, ...], shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one position: the noise to be predicted, that of the autoencoder's sample, and one offset for each channel."""
    generator = keyed_generator(*key)
    noise, posterior = torch.randn(2, *shape, generator=generator)
    return noise, posterior, torch.randn(shape[0], 1, 1, generator=generator)


def split_step(
    draws: list[Draw], shapes: Sequence[Shape], micro_batch: int, rank: int, processes: int, equally: bool = False
) -> list[list[Draw]]:
    """One process's share of a step's draws, in micro-batches of one shape and at most `micro_batch` samples.

    `equally`: in as many as every other process has. Shapes may need more in one than in another; then those that have
    fewer halve their largest.
    """
    batches = split_share(draws, shapes, micro_batch, rank, processes)
    others = range(processes) if equally else ()
    most = max((len(split_share(draws, shapes, micro_batch, other, processes)) for other in others), default=0)
    while len(batches) < most:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        whole = batches[largest]
        batches[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return batches


def split_share(
    draws: list[Draw], shapes: Sequence[Shape], micro_batch: int, rank: int, processes: int
) -> list[list[Draw]]:
    """One process's share, in as few micro-batches as its shapes allow."""
    draws = sorted(draws, key=lambda draw: shapes[draw.index])  # stable: nothing moves where all are of one shape
    share = draws[len(draws) * rank // processes : len(draws) * (rank + 1) // processes]
    batches: list[list[Draw]] = []
    for draw in share:
        fits = batches and len(batches[-1]) < micro_batch
        if fits and shapes[batches[-1][0].index] == shapes[draw.index]:
            batches[-1].append(draw)
        else:
            batches.append([draw])
    return batches


def prefetch(items: Iterator[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The items of an iterator, made before they are needed by a thread that ends with this generator."""
    end: Any = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:  # also where the consumer stops early: what nobody waits for isn't made
        pool.shutdown(wait=True, cancel_futures=True)
