"""Flow matching: latents become noise along straight lines, and the model predicts the velocity (arXiv 2210.02747).

A time is σ, the share of noise: noisy = (1 - σ) · latents + σ · noise. How σ is drawn and how losses are weighted is
what diffusers' training scripts do, by its own functions (Esser et al., 2024, arXiv 2403.03206).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from families.diffusion import Diffusion

Noising: TypeAlias = "Diffusion | Flow"  # how a model's latents become noise, and what it predicts of them
STEPS = 50  # of a pipeline by default; some schedules depend on their number
WEIGHTING_SCHEMES = ("none", "sigma_sqrt", "logit_normal", "mode", "cosmap")
Shift = Literal["auto", "none"] | float


@dataclass(frozen=True)
class Weighting:
    """Which times are drawn more often (logit_normal, mode), or count more (sigma_sqrt, cosmap); the others evenly."""

    weighting_scheme: str = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29


@dataclass(frozen=True)
class Flow:
    """The noise of a model that was trained by flow matching, with the scheduler that its pipeline samples by.

    `sigmas`: of an image's size in pixels, the levels that are drawn from, pure noise first.
    """

    scheduler: FlowMatchEulerDiscreteScheduler
    sigmas: Callable[[tuple[int, int]], torch.Tensor]
    weighting: Weighting = Weighting()
    end: float = 1.0  # the time of pure noise

    def draw_time(self, generator: torch.Generator, size: tuple[int, int]) -> float:
        """A random level of an image of this size."""
        how = self.weighting
        u = compute_density_for_timestep_sampling(
            how.weighting_scheme, 1, how.logit_mean, how.logit_std, how.mode_scale, generator=generator
        )
        levels = self.sigmas(size)
        return levels[min(int(u * len(levels)), len(levels) - 1)].item()  # u may round to 1

    def time_at(self, share: float) -> float:
        """The time that lies at a share of all times; the same whatever is drawn more often."""
        return share

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        sigmas = times.view(-1, *[1] * (latents.ndim - 1))
        return (1.0 - sigmas) * latents + sigmas * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The velocity, which is the same at all times."""
        return noise - latents

    def loss_weights(self, times: torch.Tensor) -> torch.Tensor:
        """The weight of each sample's squared error."""
        return compute_loss_weighting_for_sd3(self.weighting.weighting_scheme, times)


def sigma_levels(
    scheduler: FlowMatchEulerDiscreteScheduler, shift: Shift, mu: Callable[[tuple[int, int]], float]
) -> Callable[[tuple[int, int]], torch.Tensor]:
    """What gives the levels of noise of an image's size, as many as the scheduler was trained with.

    `shift`: auto is what the model's pipeline does at this size, a number moves as many levels towards noise, and none
    leaves them even. `mu`: what the pipeline gives its scheduler for it. A schedule that is stretched, so that the
    last step has a given level, is that of the pipeline's default number of steps.
    """
    count = scheduler.config.num_train_timesteps
    even = np.linspace(1, 1 / count, count)

    @functools.cache
    def levels(size: tuple[int, int]) -> torch.Tensor:
        if shift == "auto":
            own = copy.deepcopy(scheduler)
            last = 1 / (STEPS if scheduler.config.shift_terminal else count)
            own.set_timesteps(sigmas=np.linspace(1, last, count), mu=mu(size))
            return own.sigmas[:-1]  # behind them it has the end, 0
        factor = 1.0 if shift == "none" else shift
        return torch.from_numpy(factor * even / (1 + (factor - 1) * even)).float()

    return levels
