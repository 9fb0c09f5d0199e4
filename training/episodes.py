"""Meta-learning of the first order: weights from which a few steps on one group of the data lead far (Reptile).

An episode is a few optimizer steps on one group, such as a speaker. After it the start, which all episodes share, moves
a part of the way to the weights that were reached (Nichol et al., 2018, arXiv 1803.02999, algorithm 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training import sample_plan
from training.sample_plan import Draw, SamplePlan, epoch_order
from training.state import Training


@dataclass(frozen=True)
class Episodes:
    """Which samples each episode has, and how it moves the start, which is the training's `average`.

    `order` has a shape for each group, `plans` the sample plan of each one's `members`. Where the model has a `table`
    with a row for each group, the drawn group begins as a new one: at the mean of the other rows.
    """

    steps: int
    rate: float
    order: SamplePlan
    plans: list[SamplePlan]
    members: list[list[int]]
    table: torch.Tensor | None
    rows: list[int]


def plan_episodes(
    groups: Sequence[str],
    steps: int,
    rate: float,
    seed: int,
    effective: int,
    table: torch.Tensor | None,
    names: list[str],
) -> Episodes:
    """`groups`: that of each example; `names`: those of the table's rows."""
    found = sorted(set(groups))
    members = [[i for i, group in enumerate(groups) if group == one] for one in found]
    plans = [SamplePlan((seed, one), ((0, 0),) * len(own), effective) for one, own in zip(found, members)]
    order = SamplePlan((seed, "episodes"), ((0, 0),) * len(found), 1)
    rows = [] if table is None else [names.index(one) for one in found]
    return Episodes(steps, rate, order, plans, members, table, rows)


def find_group(episodes: Episodes, step: int) -> tuple[int, int]:
    """The number of the group that a step is of, and how many episodes of it were before: each has one in turn."""
    visit, place = divmod(step // episodes.steps, len(episodes.members))
    return epoch_order(episodes.order, visit)[place], visit


def draw_episode_step(episodes: Episodes, step: int) -> list[Draw]:
    """The samples of a step, all of its episode's group; an episode goes on where the group's last one ended."""
    group, visit = find_group(episodes, step)
    draws = sample_plan.draw_step(episodes.plans[group], visit * episodes.steps + step % episodes.steps)
    return [draw._replace(index=episodes.members[group][draw.index]) for draw in draws]


@torch.no_grad()
def begin_episode(episodes: Episodes, step: int) -> None:
    """Forget the row of the group that the step's episode is of."""
    if episodes.table is not None:
        row = episodes.rows[find_group(episodes, step)[0]]
        others = torch.cat([episodes.table[:row], episodes.table[row + 1 :]])
        episodes.table[row] = others.mean(0)


@torch.no_grad()
def end_step(episodes: Episodes, training: Training) -> None:
    """After the last step of an episode, move the start, and begin the next one there."""
    if training.progress.step % episodes.steps or training.average is None:
        return
    for start, weight in zip(training.average, training.parameters, strict=True):
        start.lerp_(weight, episodes.rate)
        weight.copy_(start)
    begin_episode(episodes, training.progress.step)
