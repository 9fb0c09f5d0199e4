"""Preservation without class images: a LoRA keeps what the base model itself predicts of the subject's kind."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from families import diffusion, lora
from families.diffusion import Features
from families.names import FAMILIES
from training.batches import Batch
from training.gradients import Backward


@dataclass(frozen=True)
class Preservation:
    """What is predicted of each sample beside its own caption: the class prompt, from the same noisy latents.

    `weight` is that of a sample's distance in the loss of a step; the rest is what the step predicts with.
    """

    prompt: str
    weight: float
    family: str
    modules: dict[str, lora.Module]
    encode: Callable[[list[str]], list[Features]]
    autocast: Callable[[], AbstractContextManager]
    guidance: float | None
    scaler: torch.amp.GradScaler


def preserve(
    plan: Preservation, batch: Batch, noisy: torch.Tensor, weights: torch.Tensor | None, backward: Backward
) -> torch.Tensor:
    """Backward of the distance to the base model's own prediction; the distance of each sample, without the weight.

    A pass of its own, so that the memory holds the activations of one prediction at a time.
    """
    denoiser = plan.modules[FAMILIES[plan.family].DENOISER]

    def predict() -> torch.Tensor:
        with plan.autocast():
            texts = plan.encode([plan.prompt] * len(batch))
            return FAMILIES[plan.family].predict(denoiser, noisy, batch.times, texts, batch.time_ids, plan.guidance)

    with torch.no_grad(), lora.without_adapters(plan.modules.values()):
        own = predict()
    distances = diffusion.sample_losses(predict(), own, weights)
    backward(plan.scaler.scale(plan.weight * distances.sum()))
    return distances.detach()
