"""The sample plan: a position means the same on any hardware, and every image has its turn."""

import threading
import time
from collections import Counter

import pytest
import torch

from tests.tiny_models import DDPM
from training import sample_plan
from training.sample_plan import SamplePlan

SQUARE = ((64, 64),) * 10
MIXED = ((64, 64), (48, 96), (96, 48)) * 7 + ((64, 64),) * 4  # 11, 7 and 7 of a shape


def draws(positions, seed=0, shapes=SQUARE, effective=4, **chances):
    plan = SamplePlan(seed, shapes, effective, DDPM.draw_time, **chances)
    return [sample_plan.draw_position(plan, position) for position in positions]


@pytest.mark.parametrize("shapes", [SQUARE, MIXED])
def test_a_draw_depends_on_seed_and_position_alone(shapes):
    chances = {"flip": 0.5, "dropout": 0.5, "shapes": shapes}
    forwards = draws(range(60), **chances)
    sample_plan.epoch_order.cache_clear()
    torch.manual_seed(7)  # the global generator has no part in it
    assert draws(reversed(range(60)), **chances)[::-1] == forwards
    assert draws(range(60), **{**chances, "shapes": tuple(list(shapes))}) == forwards
    assert draws(range(60), seed=1, **chances) != forwards


def test_a_remembered_order_is_that_of_its_own_plan():
    for count in range(5, 40):  # plans that come and go: a new one may lie where an old one was
        plan = SamplePlan(0, tuple((64, 64) for _ in range(count)), 4, DDPM.draw_time)
        assert sorted(sample_plan.epoch_order(plan, 0)) == list(range(count))
    assert sample_plan.epoch_order.cache_info().currsize <= 4


@pytest.mark.parametrize("shapes", [SQUARE, MIXED])
def test_an_epoch_sees_each_image_once_and_the_next_in_another_order(shapes):
    epochs = [
        [one.index for one in draws(range(e * len(shapes), (e + 1) * len(shapes)), shapes=shapes)] for e in (0, 1)
    ]
    assert all(sorted(epoch) == list(range(len(shapes))) for epoch in epochs) and epochs[0] != epochs[1]


def test_buckets_come_in_runs_of_one_shape():
    order = sample_plan.epoch_order(SamplePlan(0, MIXED, 4, DDPM.draw_time), 0)
    runs = [{MIXED[i] for i in order[start : start + 4]} for start in range(0, 16, 4)]
    assert all(len(run) == 1 for run in runs)  # 11 = 4+4+3, 7 = 4+3: the four whole runs come first


def test_chances_are_what_was_asked_for():
    many = draws(range(4000), flip=0.5, dropout=0.1)
    assert 0.46 < sum(one.flip for one in many) / 4000 < 0.54
    assert 0.08 < sum(one.drop_caption for one in many) / 4000 < 0.12
    assert Counter(one.time // 250 for one in many).keys() == {0, 1, 2, 3}
    assert min(one.time for one in many) == 0 and max(one.time for one in many) == 999
    assert abs(sum(one.crop for one in many) / 4000 - 0.5) < 0.02
    assert not any(one.flip or one.drop_caption for one in draws(range(100)))
    assert len({one.noise_key for one in many}) == 4000


@pytest.mark.parametrize("shapes", [SQUARE, MIXED])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 2, 5, 12])
def test_a_step_is_divided_without_loss(shapes, processes, micro):
    step = draws(range(12), shapes=shapes, effective=12)
    shares = [sample_plan.split_step(step, shapes, micro, rank, processes) for rank in range(processes)]
    assert sorted(one for share in shares for batch in share for one in batch) == sorted(step)
    for share in shares:
        assert sum(map(len, share)) == 12 // processes
        assert all(len(batch) <= micro and len({shapes[one.index] for one in batch}) == 1 for batch in share)


def test_images_of_one_shape_keep_their_order():
    step = draws(range(8))
    assert sample_plan.split_step(step, SQUARE, 2, 0, 1) == [step[i : i + 2] for i in range(0, 8, 2)]


def test_noise_is_of_the_key_alone_and_no_two_are_equal():
    first, again = (sample_plan.draw_noise(("noise", 0, 3), (4, 8, 8)) for _ in range(2))
    other = sample_plan.draw_noise(("noise", 0, 4), (4, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other)) and not torch.equal(first[0], first[1])
    assert [tuple(one.shape) for one in first] == [(4, 8, 8), (4, 8, 8), (4, 1, 1)]


def test_validation_draws_cover_all_timesteps_evenly_and_know_no_seed():
    fixed = sample_plan.validation_draws(8, 3, DDPM.time_at)
    assert sorted(one.time for one in fixed) == [62, 187, 312, 437, 562, 687, 812, 937]
    assert Counter(one.index for one in fixed) == {0: 3, 1: 3, 2: 2}
    assert not any(one.flip or one.drop_caption or one.crop for one in fixed)
    torch.manual_seed(9)
    assert sample_plan.validation_draws(8, 3, DDPM.time_at) == fixed
    assert len({one.noise_key for one in fixed}) == 8 and not {one.noise_key for one in fixed} & {
        one.noise_key for one in draws(range(50))
    }
    assert sample_plan.validation_draws(0, 0, DDPM.time_at) == []


def threads():
    return [one for one in threading.enumerate() if one.name.startswith("prefetch")]


def test_prefetch_keeps_the_order_and_works_ahead():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    ahead = sample_plan.prefetch(items())
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [0, 1, 2]  # two beyond what was taken, and no more
    assert list(ahead) == list(range(1, 20)) and not threads()


def test_prefetch_passes_an_exception_on_in_its_place():
    def items():
        yield 1
        yield 2
        raise ValueError("at the third")

    ahead = sample_plan.prefetch(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="at the third"):
        next(ahead)
    assert not threads()


@pytest.mark.parametrize("how", ["close", "forget"])
def test_a_consumer_that_stops_early_leaves_no_thread_and_no_work(how):
    made = []

    def items():
        for i in range(100):
            time.sleep(0.05)
            made.append(i)
            yield i

    ahead = sample_plan.prefetch(items())
    assert next(ahead) == 0 and threads()
    if how == "close":
        ahead.close()
    del ahead
    assert not threads() and len(made) <= 2  # the one in hand is ended, the one in waiting not begun
