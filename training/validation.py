"""Does it learn? The loss at fixed positions of held-out images, and images of fixed seeds, each one checked."""

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from PIL import Image

from families import diffusion, models
from families.sampling import build_pipeline, generate
from training import sample_plan
from training.batches import to_device
from training.examples import Example
from training.training import Training, averaged_weights
from utils import images
from utils.files import replaced_file
from utils.image_checks import image_fault

logger = logging.getLogger(__name__)


def held_out_batches(drawn: list[Example], count: int, timesteps: int, load: Callable) -> list[dict]:
    """The fixed samples that the held-out loss is measured on; none where no image is held out."""
    draws = sample_plan.validation_draws(count if drawn else 0, len(drawn), timesteps)
    parts = sample_plan.split_step(draws, [one.shape for one in drawn], 8, 0, 1)
    return [load(part, drawn, crops=1, sample_posterior=False) for part in parts]


@torch.no_grad()
def held_out_loss(unet, scheduler: DDPMScheduler, batches: list[dict], features: Callable, autocast: Callable) -> float:
    """Mean squared error, every sample of one weight, whatever the run's own weighting is."""
    losses = []
    for batch in (to_device(one, unet.device) for one in batches):
        with autocast():
            prediction, target = diffusion.predict(unet, scheduler, batch, *features(batch["texts"]))
        losses.append(diffusion.sample_losses(prediction, target))
    return torch.cat(losses).mean().item()


def validation_images(
    embeds: tuple[torch.Tensor, torch.Tensor | None],
    empty: tuple[torch.Tensor, torch.Tensor | None],
    *,
    model: str,
    family: str,
    unet,
    scheduler: DDPMScheduler,
    seeds: list[int],
    steps: int,
    guidance: float,
    size: int,
    autocast: Callable,
    stop: Callable[[], bool],
) -> list[Image.Image] | None:
    """One image a seed, as the pipeline with this LoRA would draw them; None where `stop` asked to leave."""
    device = embeds[0].device
    vae = models.load_vae(model).to(device)
    pipeline = build_pipeline(family, unet, vae, scheduler, models.empty_prompt_is_zero(model))
    drawn = []
    for i, seed in enumerate(seeds):
        if stop():
            return None
        given = {"prompt_embeds": embeds[0][i : i + 1], "negative_prompt_embeds": empty[0]}
        if family == "sdxl":
            given |= {"pooled_prompt_embeds": embeds[1][i : i + 1], "negative_pooled_prompt_embeds": empty[1]}
        with autocast():
            drawn += generate(pipeline, [seed], steps, guidance, size=size, **given)
    return drawn


def save_grid(path: Path, drawn: list[Image.Image], prompts: list[str], columns: int = 4) -> int:
    """The labelled grid as one file; how many of the images are invalid."""
    faults = [image_fault(image) for image in drawn]
    labels = [f"INVALID: {fault}" if fault else " ".join(prompt.split()) for fault, prompt in zip(faults, prompts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        images.make_grid(drawn, min(columns, len(drawn)), labels).save(file, "PNG")
    found = [fault for fault in faults if fault]
    if found:
        kinds = ", ".join(dict.fromkeys(found))
        logger.warning("%d of %d validation images are invalid: %s; see %s", len(found), len(faults), kinds, path)
    return len(found)


def validate(
    training: Training,
    scheduler: DDPMScheduler,
    held_out: list[dict],
    features: Callable,
    autocast: Callable,
    prompts: list[str],
    draw: Callable,
    grid: Path,
) -> dict | None:
    """The held-out loss, and the number of invalid images in the grid; None where drawing was broken off.

    `draw` makes images of (embeds, empty), as `validation_images` does.
    """
    found, modules = {}, [training.unet, *training.text_encoders]
    for module in modules:
        module.eval()
    with torch.no_grad(), averaged_weights(training):
        if held_out:
            found["val_loss"] = held_out_loss(training.unet, scheduler, held_out, features, autocast)
        if prompts:
            drawn = draw(features(prompts), features([""]))
            if drawn is None:
                return None
            found["validation/invalid_images"] = save_grid(grid, drawn, prompts)
    for module in modules:
        module.train()
    return found


def make_check(
    training: Training,
    scheduler: DDPMScheduler,
    held_out: list[dict],
    features: Callable,
    autocast: Callable,
    prompts: list[str],
    count: int,
    seed: int,
    **drawing,
) -> Callable[[Path], dict | None]:
    """What validates, given the grid's file: `count` images of the prompts in turn, each of its own seed.

    `drawing` are the further arguments of `validation_images`.
    """
    chosen = [prompts[i % len(prompts)] for i in range(count)]
    seeds = [seed + i for i in range(count)]
    draw = functools.partial(
        validation_images, unet=training.unet, scheduler=scheduler, seeds=seeds, autocast=autocast, **drawing
    )
    return functools.partial(validate, training, scheduler, held_out, features, autocast, chosen, draw)


def note_loss(progress: dict, loss: float | None) -> bool:
    """Note that this step is validated; whether its held-out loss is the best so far."""
    progress["validated"] = progress["step"]
    best = progress["best_loss"]
    if loss is None or not math.isfinite(loss) or (best is not None and not loss < best):
        progress["worse_in_a_row"] += loss is not None
        return False
    progress |= {"best_loss": loss, "best_step": progress["step"], "worse_in_a_row": 0}
    return True
