"""A step's samples as tensors, and batch sizes that fit together."""

from pathlib import Path

import pytest
import torch

from tests.tiny_models import DDPM
from training import batches
from training.batches import BatchPlan, Loader
from training.examples import Example, View, time_ids
from training.sample_plan import SamplePlan, draw_noise, draw_position, validation_draws
from utils.cli import UserError

IMAGES = [Example(f"p{i}", Path(f"p{i}.png"), f"shoe {i}", f"{i:064d}", (90, 64), (64, 64)) for i in range(3)]
PLAN = SamplePlan(0, ((64, 64),) * 3, 4, DDPM.draw_time, flip=0.5, dropout=0.5)


def half(latents):
    return latents * 0.5


def moments(example, view):
    base = torch.full((4, 8, 8), float(int(example.sha256)) + 100 * view.flip)
    return torch.stack([base, torch.full_like(base, 0.5)])


@pytest.mark.parametrize(
    "given,plan",
    [
        ((2, 1, None, 1), BatchPlan(2, 1, 2)),
        ((2, 4, None, 3), BatchPlan(2, 3, 24)),
        ((2, None, 16, 2), BatchPlan(2, 2, 16)),
        ((2, 4, 16, 2), BatchPlan(2, 2, 16)),
        ((8, None, 8, 2), BatchPlan(4, 2, 8)),
        (("auto", None, 16, 2), BatchPlan(8, 2, 16)),
        ((4, None, 10, 1), BatchPlan(4, 1, 10)),  # 4 + 4 + 2
    ],
)
def test_a_batch_plan_from_flags(given, plan):
    assert batches.plan_batch(*given) == plan


def test_a_plan_shows_its_arithmetic():
    assert str(BatchPlan(2, 2, 16)) == "16 a step = 2 at once x 4 accumulated x 2 processes"
    assert "x 3 accumulated" in str(BatchPlan(4, 1, 10))


@pytest.mark.parametrize(
    "given,problem",
    [
        ((2, 8, 12, 1), "--train_batch_size 2 x --gradient_accumulation_steps 8 x 1 processes is 16, not .* 12"),
        ((2, None, 9, 2), "--effective_batch_size 9 can't be divided among 2"),
        ((4096, 17, None, 1), "--train_batch_size 4096: .* 69,632 samples a step; expected at most 65,536"),
        ((16, None, 8, 2), "--train_batch_size 16 is more than the 8"),
        (("auto", 4, 16, 1), "--gradient_accumulation_steps 4: with --train_batch_size auto"),
    ],
)
def test_numbers_that_do_not_fit_are_in_the_message(given, problem):
    with pytest.raises(UserError, match=problem):
        batches.plan_batch(*given)


def load(positions, **more):
    draws = [draw_position(PLAN, position) for position in positions]
    return draws, batches.load_batch(draws, Loader(IMAGES, moments, half, 4, **more))


def test_a_batch_holds_what_its_draws_say():
    draws, batch = load(range(20))
    for i, draw in enumerate(draws):
        noise, posterior, _ = draw_noise(draw.noise_key, (4, 8, 8))
        expected = (draw.index + 100 * draw.flip + 0.5 * posterior) * 0.5
        assert torch.equal(batch.latents[i], expected) and torch.equal(batch.noise[i], noise)
        assert batch.times[i] == draw.time and batch.samples[i] == f"p{draw.index}"
        assert batch.texts[i] == ("" if draw.drop_caption else f"shoe {draw.index}") and batch.index[i] == draw.index
    assert len(batch) == 20 and batch.mask is None
    assert {one.flip for one in draws} == {one.drop_caption for one in draws} == {True, False}


def test_each_position_draws_one_of_several_captions():
    texts = ("boots", "red boots", "boots, red")
    several = [one._replace(captions=texts) for one in IMAGES]
    draws = [draw_position(PLAN, p) for p in range(60)]
    drawn = batches.load_batch(draws, Loader(several, moments, half)).texts
    kept = [text for text, draw in zip(drawn, draws) if not draw.drop_caption]
    assert kept == [texts[int(3 * draw.caption)] for draw in draws if not draw.drop_caption]
    assert all(kept.count(text) > 3 for text in texts)
    held_out = batches.load_batch(validation_draws(3, 3, DDPM.time_at), Loader(several, moments, half))
    assert held_out.texts == ["boots"] * 3


def test_a_sample_is_the_same_whatever_comes_with_it():
    whole = load(range(8), noise_offset=0.1)[1]
    for p in range(8):
        alone = load([p], noise_offset=0.1)[1]
        for name in ("latents", "noise", "time_ids"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[p])


def test_noise_offset_moves_each_channel_as_a_whole():
    plain, moved = load(range(3))[1].noise, load(range(3), noise_offset=0.1)[1].noise
    shift = (moved - plain).flatten(2)
    assert shift.std(-1).max() < 1e-6 and shift.mean(-1).unique().numel() == 12
    assert shift.abs().max() < 0.5


def marks(example, view, shape):
    """A mask that shows of which view it is."""
    return torch.full((1, *shape), int(example.sha256) + 0.5 * view.flip)


def test_held_out_samples_are_the_mean_of_the_posterior_in_the_centre():
    fixed = validation_draws(3, 3, DDPM.time_at)
    loader = batches.held_out_loader(Loader([], moments, half, 4, noise_offset=0.1, masks=marks), IMAGES)
    batch = batches.load_batch(fixed, loader)
    assert [one.unique().tolist() for one in batch.latents] == [[0.0], [0.5], [1.0]]
    assert batch.time_ids.tolist() == [time_ids(one, View()) for one in IMAGES]
    noises = [draw_noise(one.noise_key, (4, 8, 8))[0] for one in fixed]
    assert torch.equal(batch.noise, torch.stack(noises)) and batch.mask is None


def test_a_mask_is_that_of_its_own_sample():
    draws, batch = load(range(8), masks=marks)
    assert batch.mask.shape == (8, 1, 8, 8)
    assert [one.unique().tolist() for one in batch.mask] == [[draw.index + 0.5 * draw.flip] for draw in draws]


@pytest.mark.parametrize("more", [{}, {"masks": marks}])
def test_parts_of_a_batch_are_the_batch(more):
    batch = load(range(5), **more)[1]
    parts = batch.split(2)
    assert [len(part) for part in parts] == [2, 2, 1]
    for name, value in vars(batch).items():
        if value is None:
            assert all(getattr(part, name) is None for part in parts)
            continue
        joined = [one for part in parts for one in getattr(part, name)]
        assert len(joined) == 5
        assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(joined, value))
    assert len(batch.split(8)) == 1


def test_moving_a_batch_changes_no_value():
    batch = load(range(3))[1]
    moved = batch.to(torch.device("cpu"))
    assert moved.texts == batch.texts and moved.samples == batch.samples and moved.mask is None
    tensors = [name for name, value in vars(batch).items() if torch.is_tensor(value)]
    assert len(tensors) == 5 and all(torch.equal(getattr(moved, name), getattr(batch, name)) for name in tensors)


@pytest.mark.parametrize("micro, processes", [(8, 1), (3, 1), (2, 2), (4, 2)])
def test_steps_hold_the_samples_of_their_positions_however_they_are_divided(micro, processes):
    plan, loader = BatchPlan(micro, processes, 8), Loader(IMAGES, moments, half, 4)
    expected = {p: batches.load_batch([draw_position(PLAN, p)], loader) for p in range(8, 24)}
    found = [
        list(batches.load_steps(range(1, 3), plan, rank, lambda p: [draw_position(PLAN, p)], loader))
        for rank in range(processes)
    ]
    for number in range(2):
        step = [batch for steps in found for batch in steps[number]]
        assert all(len(batch) <= micro for batch in step) and sum(map(len, step)) == 8
        latents = torch.cat([batch.latents for batch in step])
        assert torch.equal(latents, torch.cat([expected[8 * (number + 1) + i].latents for i in range(8)]))


def test_samples_that_are_trained_together_stay_in_one_micro_batch():
    def draw(position):  # a photo and a class image, as in prior preservation
        return [draw_position(PLAN, position), draw_position(PLAN, position)._replace(index=2, drop_caption=False)]

    (step,) = batches.load_steps([0], BatchPlan(2, 1, 4), 0, draw, Loader(IMAGES, moments, half, 4))
    assert [len(batch) for batch in step] == [4, 4]
    assert all(batch.samples[1::2] == ["p2", "p2"] for batch in step)
