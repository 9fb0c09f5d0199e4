"""Targets, signal-to-noise weights and losses of denoising: pure functions of tensors."""

import math

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from utils.cli import UserError


def schedule_changes(prediction_type: str | None, zero_terminal_snr: bool) -> dict:
    """What a recipe changes in the config of the model's noise schedule."""
    changes = {"prediction_type": prediction_type} if prediction_type else {}
    # Images must begin where training ended, at pure noise; a schedule's `leading` steps begin after it.
    return changes | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_terminal_snr else {})


def training_scheduler(
    scheduler: DDPMScheduler, prediction_type: str | None = None, zero_terminal_snr: bool = False
) -> DDPMScheduler:
    """The model's own noise schedule, with what the recipe changes in it."""
    scheduler.register_to_config(**schedule_changes(prediction_type, zero_terminal_snr))
    if zero_terminal_snr:
        scheduler.betas = rescale_zero_terminal_snr(scheduler.betas)
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] == 0:
        raise UserError(
            "--zero_terminal_snr: the last step of such a noise schedule is pure noise, from which nothing is learnt "
            "by predicting epsilon (the noise itself); add --prediction_type v_prediction"
            + ("" if zero_terminal_snr else " (this model's own schedule is of that kind)")
        )
    return scheduler


def prediction_target(
    scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the model is to predict from the noisy latents."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    return scheduler.get_velocity(latents, noise, timesteps) if kind == "v_prediction" else latents


def predict(
    unet, scheduler: DDPMScheduler, batch: dict, embeds: torch.Tensor, pooled: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's prediction for a batch, and what it should have been."""
    noisy = scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    conditions = None if pooled is None else {"text_embeds": pooled, "time_ids": batch["time_ids"]}
    prediction = unet(noisy, batch["timesteps"], embeds, added_cond_kwargs=conditions).sample
    return prediction, prediction_target(scheduler, batch["latents"], batch["noise"], batch["timesteps"])


def snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float | None) -> torch.Tensor | None:
    """Min-SNR weight of each sample's squared error; pure noise (SNR 0) keeps weight 1 where v is predicted."""
    if gamma is None:
        return None
    prediction_type = scheduler.config.prediction_type
    # Looked up on the device: to bring the timesteps to the CPU would wait for it at every micro-batch.
    alpha = scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return clipped / snr
    if prediction_type == "v_prediction":
        return torch.where(snr == 0, 1.0, clipped / (snr + 1))
    return clipped  # the sample itself is predicted


def sample_losses(
    prediction: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean squared error of each sample in float32, times its weight.

    Within a mask (n, 1, height, width) the mean is weighted by it, so that a small subject counts as much as a large.
    """
    losses = F.mse_loss(prediction.float(), target.float(), reduction="none")
    if mask is None:
        losses = losses.mean((1, 2, 3))
    else:
        losses = (losses * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * losses.shape[1]).clamp(min=1e-3)
    return losses if weights is None else losses * weights


def mean_losses(samples: list[tuple[float, float]], timesteps: int) -> dict[str, float]:
    """Mean of (loss, timestep) pairs, over all and over each quarter of the timesteps: q1 has the least noise."""
    quarters = [[], [], [], []]
    for loss, timestep in samples:
        quarters[min(3, int(timestep * 4 / timesteps))].append(loss)
    means = {"loss": math.fsum(loss for loss, _ in samples) / len(samples)}
    return means | {f"loss_q{n}": math.fsum(part) / len(part) for n, part in enumerate(quarters, 1) if part}
