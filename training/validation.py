"""Does it learn? The loss at fixed positions of held-out images, and images of fixed seeds, each one checked."""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image

from families import diffusion, models
from families.sampler import Sampling
from families.sampling import build_pipeline, generate
from training.batches import Batch, Loader, held_out_loader, load_batch
from training.examples import Example
from training.sample_plan import split_step, validation_draws
from training.state import Progress, Training, averaged_weights
from utils import images
from utils.files import replaced_file
from utils.image_checks import image_fault

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checks:
    """What a validation computes: a loss of the held-out batches, and an image of each prompt from its own seed."""

    held_out: list[Batch]
    prompts: list[str]
    seeds: list[int]
    model: str
    family: str
    sampling: Sampling
    scheduler: DDPMScheduler
    encode: Callable[[list[str]], diffusion.Text]
    autocast: Callable[[], AbstractContextManager]


def held_out_batches(examples: list[Example], count: int, timesteps: int, loader: Loader) -> list[Batch]:
    """The fixed samples that the held-out loss is measured on; none where no image is held out."""
    draws = validation_draws(count if examples else 0, len(examples), timesteps)
    parts = split_step(draws, [one.shape for one in examples], 8, 0, 1)
    fixed = held_out_loader(loader, examples)
    return [load_batch(part, fixed, sample_posterior=False) for part in parts]


def batch_losses(unet: UNet2DConditionModel, checks: Checks, batch: Batch) -> torch.Tensor:
    """The mean squared error of each sample, every sample of one weight, whatever the run's own weighting is."""
    noisy = checks.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    with checks.autocast():
        prediction = diffusion.predict(unet, noisy, batch.timesteps, checks.encode(batch.texts), batch.time_ids)
    target = diffusion.prediction_target(checks.scheduler, batch.latents, batch.noise, batch.timesteps)
    return diffusion.sample_losses(prediction, target)


@torch.no_grad()
def held_out_loss(unet: UNet2DConditionModel, checks: Checks) -> float:
    losses = [batch_losses(unet, checks, batch.to(unet.device)) for batch in checks.held_out]
    return torch.cat(losses).mean().item()


@torch.no_grad()
def generate_images(unet: UNet2DConditionModel, checks: Checks, signals: list[int]) -> list[Image.Image] | None:
    """One image for each prompt, as the pipeline with these weights would generate it; None once a signal has come."""
    how = checks.sampling
    (embeds, pooled), (empty, empty_pooled) = checks.encode(checks.prompts), checks.encode([""])
    vae = models.load_vae(checks.model).to(embeds.device)
    pipeline = build_pipeline(checks.family, unet, vae, checks.scheduler, models.empty_prompt_is_zero(checks.model))
    made: list[Image.Image] = []
    for i, seed in enumerate(checks.seeds):
        if signals:
            return None
        given: dict[str, Any] = {"prompt_embeds": embeds[i : i + 1], "negative_prompt_embeds": empty}
        if pooled is not None:
            given |= {"pooled_prompt_embeds": pooled[i : i + 1], "negative_pooled_prompt_embeds": empty_pooled}
        with checks.autocast():
            made += generate(pipeline, [seed], how.steps, how.guidance_scale, size=how.size, **given)
    return made


def save_grid(path: Path, made: list[Image.Image], prompts: list[str], columns: int = 4) -> int:
    """The labelled grid as one file; how many of the images are invalid."""
    faults = [image_fault(image) for image in made]
    labels = [f"INVALID: {fault}" if fault else " ".join(prompt.split()) for fault, prompt in zip(faults, prompts)]
    path.parent.mkdir(exist_ok=True)
    with replaced_file(path) as file:
        images.make_grid(made, min(columns, len(made)), labels).save(file, "PNG")
    invalid = [fault for fault in faults if fault]
    if invalid:
        kinds = ", ".join(dict.fromkeys(invalid))
        logger.warning("%d of %d validation images are invalid: %s; see %s", len(invalid), len(faults), kinds, path)
    return len(invalid)


def validate(training: Training, checks: Checks, grid: Path, signals: list[int]) -> dict[str, float] | None:
    """The held-out loss, and the number of invalid images in the grid; None where a signal came before its end.

    With an average of the weights they are of the average; then the loss of the weights themselves stands beside it.
    """
    figures: dict[str, float] = {}
    for module in training.modules.values():
        module.eval()
    made: list[Image.Image] | None = []
    if checks.held_out and training.average:
        figures["val_loss_without_ema"] = held_out_loss(training.unet, checks)
    with torch.no_grad(), averaged_weights(training):
        if checks.held_out:
            figures["val_loss"] = held_out_loss(training.unet, checks)
        if checks.prompts:
            made = generate_images(training.unet, checks, signals)
    for module in training.modules.values():
        module.train()
    if made is None:
        return None
    return figures | ({"validation/invalid_images": save_grid(grid, made, checks.prompts)} if made else {})


def note_loss(progress: Progress, loss: float | None) -> bool:
    """Note that this step is validated; whether its held-out loss is the best so far."""
    progress.validated = progress.step
    best = progress.best_loss
    if loss is None or not math.isfinite(loss) or (best is not None and not loss < best):
        progress.worse_in_a_row += loss is not None
        return False
    progress.best_loss, progress.best_step, progress.worse_in_a_row = loss, progress.step, 0
    return True
