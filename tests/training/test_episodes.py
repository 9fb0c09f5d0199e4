"""Which samples an episode has, and how it moves the start."""

from types import SimpleNamespace

import pytest
import torch

from training.episodes import begin_episode, draw_episode_step, end_step, find_group, plan_episodes

GROUPS = ["ana", "rui", "ana", "eva", "ana", "rui"]


def plan(table: torch.Tensor | None = None, rate: float = 0.5, seed: int = 0):
    return plan_episodes(GROUPS, 3, rate, seed, 4, table, ["rui", "ana", "eva"] if table is not None else [])


def test_every_step_of_an_episode_is_of_its_group_and_each_group_has_its_turn():
    episodes, names = plan(), sorted(set(GROUPS))
    drawn = [draw_episode_step(episodes, step) for step in range(18)]
    groups = [{GROUPS[draw.index] for draw in draws} for draws in drawn]
    assert all(len(group) == 1 for group in groups) and all(len(draws) == 4 for draws in drawn)
    for first in (0, 9):
        assert groups[first] == groups[first + 2] == {names[find_group(episodes, first)[0]]}
        assert set.union(*groups[first : first + 9]) == set(GROUPS)


def test_a_group_goes_on_where_its_last_episode_ended():
    """In 24 draws each of its three recordings is drawn 8 times, with other noise each time."""
    episodes = plan()
    draws = [draw for step in range(18) for draw in draw_episode_step(episodes, step) if GROUPS[draw.index] == "ana"]
    assert sorted(draw.index for draw in draws) == [0] * 8 + [2] * 8 + [4] * 8
    keys = {draw.noise_key for step in range(18) for draw in draw_episode_step(episodes, step)}
    assert len(keys) == 72 and keys != {
        draw.noise_key for step in range(18) for draw in draw_episode_step(plan(seed=1), step)
    }


def test_only_after_an_episode_the_start_moves_towards_its_end():
    start, weight = torch.zeros(2), torch.nn.Parameter(torch.tensor([4.0, 8.0]))
    training = SimpleNamespace(parameters=[weight], average=[start], progress=SimpleNamespace(step=2))
    end_step(plan(rate=0.25), training)
    assert start.tolist() == [0, 0] and weight.tolist() == [4, 8]
    training.progress.step = 3
    end_step(plan(rate=0.25), training)
    assert start.tolist() == weight.tolist() == [1, 2]


@pytest.mark.parametrize("step", [0, 3, 6])
def test_the_group_of_an_episode_begins_as_one_that_the_table_lacks(step):
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 4.0]])
    before, episodes = table.clone(), plan(table)
    begin_episode(episodes, step)
    row = episodes.rows[find_group(episodes, step)[0]]
    others = [i for i in range(3) if i != row]
    assert torch.equal(table[row], before[others].mean(0)) and torch.equal(table[others], before[others])
