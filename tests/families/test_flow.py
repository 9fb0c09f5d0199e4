"""Times, weights and targets of flow matching against diffusers' own functions."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from families.flow import WEIGHTING_SCHEMES, Flow, Weighting, sigma_levels
from utils.devices import keyed_generator

SIZE = (512, 256)
STATIC = FlowMatchEulerDiscreteScheduler(shift=3.0)  # Z-Image-Turbo's
DYNAMIC = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)  # FLUX.1 dev's
STRETCHED = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)  # Qwen-Image's
SCHEDULERS = {"static": STATIC, "dynamic": DYNAMIC, "stretched": STRETCHED}


def flow_of(scheduler, shift="auto", **weighting):
    return Flow(scheduler, sigma_levels(scheduler, shift, mu), Weighting(**weighting))


def mu(size):
    return calculate_shift(size[0] // 16 * size[1] // 16)


@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_a_position_draws_what_diffusers_draws_from_its_generator(scheme):
    flow = flow_of(STATIC, weighting_scheme=scheme, logit_mean=0.4, logit_std=0.7, mode_scale=0.9)
    for position in range(20):
        u = compute_density_for_timestep_sampling(scheme, 1, 0.4, 0.7, 0.9, generator=keyed_generator(position))
        wanted = STATIC.sigmas[(u * 1000).long()]  # as diffusers' scripts look it up
        assert flow.draw_time(keyed_generator(position), SIZE) == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_losses_are_weighted_as_in_diffusers(scheme):
    times = torch.tensor([0.02, 0.3, 0.999, 1.0])
    weights = flow_of(STATIC, weighting_scheme=scheme).loss_weights(times)
    assert torch.equal(weights, compute_loss_weighting_for_sd3(scheme, times)) and weights.dtype == torch.float32


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_levels_lie_on_the_schedule_of_a_pipeline(kind):
    """Whatever its number of steps is; one that is stretched to a last level is as with the default of 50."""
    levels = sigma_levels(SCHEDULERS[kind], "auto", mu)(SIZE)
    assert len(levels) == 1000 and levels[0] == 1 and (levels.diff() < 0).all()
    for steps in (50,) if kind == "stretched" else (8, 20, 50, 1000):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(SCHEDULERS[kind].config)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu(SIZE))
        places = np.linspace(0, 999, 50) if kind == "stretched" else np.arange(0, 1000, 1000 // steps)
        found = np.interp(places, np.arange(1000), levels)
        assert np.allclose(found, scheduler.sigmas[:-1], atol=1e-5 if kind == "stretched" else 1e-6)
    assert kind != "stretched" or levels[-1] == pytest.approx(0.02)


def test_a_dynamic_shift_depends_on_the_size():
    small, large = (sigma_levels(DYNAMIC, "auto", mu)(size)[500].item() for size in ((256, 256), (1024, 1024)))
    assert large > small + 0.05
    assert len({sigma_levels(STATIC, "auto", mu)(size)[500].item() for size in ((256, 256), (1024, 1024))}) == 1


def test_a_shift_of_ones_own():
    even, shifted = (sigma_levels(DYNAMIC, shift, mu)(SIZE) for shift in ("none", 3.0))
    assert even.tolist() == pytest.approx([1 - i / 1000 for i in range(1000)])
    assert torch.allclose(shifted, STATIC.sigmas, atol=1e-6)
    by_size = sigma_levels(DYNAMIC, "auto", mu)(SIZE)
    assert torch.allclose(by_size, sigma_levels(DYNAMIC, math.exp(mu(SIZE)), mu)(SIZE), atol=1e-6)


def test_noise_and_target_by_hand():
    flow = flow_of(STATIC, "none")
    latents, noise = torch.full((2, 16, 2, 2), 2.0), torch.full((2, 16, 2, 2), 6.0)
    noisy = flow.add_noise(latents, noise, torch.tensor([0.25, 1.0]))
    assert noisy[0].unique().tolist() == [3.0] and noisy[1].unique().tolist() == [6.0]
    assert flow.target(latents, noise, torch.tensor([0.25, 1.0])).unique().tolist() == [4.0]
    scheduled = STATIC.scale_noise(latents, STATIC.timesteps[[300, 7]], noise)
    assert torch.allclose(flow.add_noise(latents, noise, STATIC.sigmas[[300, 7]]), scheduled)


def test_the_times_of_a_held_out_loss_lie_evenly_whatever_is_drawn():
    flow = flow_of(STATIC, weighting_scheme="logit_normal")
    assert [flow.time_at(share) for share in (0.25, 0.75)] == [0.25, 0.75] and flow.end == 1


def test_an_extreme_draw_stays_within_the_levels():
    flow = flow_of(STATIC, weighting_scheme="logit_normal", logit_mean=100.0)
    assert flow.draw_time(keyed_generator(0), SIZE) == pytest.approx(STATIC.sigmas[-1].item(), abs=1e-6)
