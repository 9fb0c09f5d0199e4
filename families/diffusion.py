"""Noise schedules, targets, weights and losses of denoising: functions of tensors, nothing loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from utils.cli import UserError

LOSSES = ("l2", "huber", "smooth_l1")
HUBER_C = 0.1
Features = dict[str, torch.Tensor]  # what a denoiser reads of one text, by the names in its family's FEATURES


@dataclass(frozen=True)
class Diffusion:
    """DDPM's noise, whose times are whole steps of the model's schedule; the same methods as families.flow.Flow."""

    scheduler: DDPMScheduler
    snr_gamma: float | None = None  # min-SNR weighting; None: all weights are 1

    @property
    def end(self) -> float:
        """The end of the times, behind that of the most noise."""
        return self.scheduler.config.num_train_timesteps

    def draw_time(self, generator: torch.Generator, size: tuple[int, int]) -> float:
        """A random time; all are equally likely, for an image of any size."""
        return self.time_at(torch.rand((), generator=generator, dtype=torch.float64).item())

    def time_at(self, share: float) -> float:
        return int(share * self.end)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(latents, noise, times)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return prediction_target(self.scheduler, latents, noise, times)

    def loss_weights(self, times: torch.Tensor) -> torch.Tensor | None:
        return snr_weights(self.scheduler, times, self.snr_gamma)


def schedule_changes(prediction_type: str | None, zero_terminal_snr: bool) -> dict[str, str | bool]:
    """What the flags change in the config of the model's noise schedule."""
    changes: dict[str, str | bool] = {"prediction_type": prediction_type} if prediction_type else {}
    # Sampling must start where training ended, at pure noise; `leading` steps start after it.
    return changes | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_terminal_snr else {})


def training_scheduler(
    scheduler: DDPMScheduler, prediction_type: str | None = None, zero_terminal_snr: bool = False
) -> DDPMScheduler:
    """The model's own noise schedule with the changes that the flags ask for.

    Zero terminal SNR: Lin et al., 2023, arXiv 2305.08891, algorithm 1.
    """
    scheduler.register_to_config(**schedule_changes(prediction_type, zero_terminal_snr))
    if zero_terminal_snr:
        scheduler.betas = rescale_zero_terminal_snr(scheduler.betas)
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] == 0:
        raise UserError(
            "--zero_terminal_snr: the last step of such a noise schedule is pure noise, where predicting epsilon (the "
            "noise itself) teaches nothing; add --prediction_type v_prediction"
            + ("" if zero_terminal_snr else " (this model's own schedule is of that kind)")
        )
    return scheduler


def prediction_target(
    scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the model should predict from the noisy latents."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    return scheduler.get_velocity(latents, noise, timesteps) if kind == "v_prediction" else latents


def size_conditions(texts: list[Features], time_ids: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """The further arguments that SDXL's UNet takes; none for other families."""
    if "pooled" not in texts[0]:
        return {}
    return {"added_cond_kwargs": {"text_embeds": stack(texts, "pooled"), "time_ids": time_ids}}


def stack(texts: list[Features], name: str) -> torch.Tensor:
    """One of the features of all texts, which are equally long."""
    return torch.stack([text[name] for text in texts])


def snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float | None) -> torch.Tensor | None:
    """The min-SNR weight of each sample's squared error (Hang et al., 2023, arXiv 2303.09556); None without gamma.

    Pure noise (SNR 0) keeps weight 1 where v is predicted.
    """
    if gamma is None:
        return None
    # Looked up on the device (diffusers' compute_snr would wait for it): one wait a step is enough.
    alpha = scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=gamma)
    if scheduler.config.prediction_type == "epsilon":
        return clipped / snr
    if scheduler.config.prediction_type == "v_prediction":
        return torch.where(snr == 0, 1.0, clipped / (snr + 1))
    return clipped  # the sample itself is predicted


def element_losses(
    prediction: torch.Tensor, target: torch.Tensor, kind: str | None, huber_c: float | None
) -> torch.Tensor:
    """The loss of each number: its squared error, or the pseudo-Huber loss, as diffusers and kohya have it.

    With c the same at all times: about the squared error where that is small, c times 2 |error| where it is large
    (huber), or the same divided by c (smooth_l1).
    """
    if kind in (None, "l2"):
        return F.mse_loss(prediction, target, reduction="none")
    c = huber_c or HUBER_C
    return 2 * (c if kind == "huber" else 1) * (((prediction - target) ** 2 + c**2).sqrt() - c)


def sample_losses(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    kind: str | None = None,
    huber_c: float | None = None,
) -> torch.Tensor:
    """The mean loss of each sample in float32, times its weight; see `element_losses` for kind and c.

    Within a mask (n, 1, height, width) the mean is weighted by it, so that a small subject counts as much as a large.
    """
    losses = element_losses(prediction.float(), target.float(), kind, huber_c)
    if mask is None:
        losses = losses.mean((1, 2, 3))
    else:
        losses = (losses * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * losses.shape[1]).clamp(min=1e-3)
    return losses if weights is None else losses * weights


def mean_of_last(rows: Sequence[Sequence[float]]) -> float:
    return math.fsum(row[-1] for row in rows) / len(rows)


def mean_losses(rows: Sequence[Sequence[float]], end: float) -> dict[str, float]:
    """Mean loss of rows that begin with loss and time, over all and over each quarter of the times up to `end`.

    The first quarter, q1, has the least noise.
    """
    quarters: list[list[float]] = [[], [], [], []]
    for loss, time, *_ in rows:
        quarters[min(3, int(time * 4 / end))].append(loss)
    means = {"loss": math.fsum(row[0] for row in rows) / len(rows)}
    return means | {f"loss_q{n}": math.fsum(part) / len(part) for n, part in enumerate(quarters, 1) if part}
