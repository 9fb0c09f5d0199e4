"""Does it learn? The loss at fixed positions of held-out images, and images of fixed seeds, each one checked."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import ModelMixin
from diffusers.training_utils import free_memory
from PIL import Image

from families import diffusion, models, sampler, shards
from families.flow import Noising
from families.latents import to_channels_last
from families.names import FAMILIES
from families.sampler import Execution, ImageRequest, Sampler, Sampling
from families.sampling import make_scheduler, reads_negative_prompt
from training.batches import Batch, Loader, held_out_loader, load_batch
from training.examples import Example
from training.sample_plan import split_step, validation_draws
from training.state import Training, averaged_weights
from utils import devices, images
from utils.console import Bar, show_progress
from utils.devices import Cores
from utils.files import replaced_file
from utils.image_checks import image_fault

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
BATCH = 8  # held-out samples at once
PART = 4  # of them for each core of a CPU


@dataclass(frozen=True)
class Checks:
    """What a validation computes: a loss of the held-out batches, and an image of each prompt from its own seed."""

    held_out: list[Batch]
    prompts: list[str]
    seeds: list[int]
    model: str
    family: str
    sampling: Sampling
    noising: Noising
    encode: Callable[[list[str]], list[diffusion.Features]]
    autocast: Callable[[], AbstractContextManager]
    vae: str | None = None  # None: the model's own
    guidance: float | None = None  # that a transformer reads for the loss, as in the training

    @property
    def passes_an_image(self) -> int:
        """Samples that go through the denoiser for one image."""
        return self.sampling.steps * (1 + reads_negative_prompt(self.family, self.sampling.guidance_scale))


def held_out_batches(examples: list[Example], count: int, noising: Noising, loader: Loader) -> list[Batch]:
    """The fixed samples that the held-out loss is measured on; none where no image is held out."""
    draws = validation_draws(count if examples else 0, len(examples), noising.time_at)
    parts = split_step(draws, [one.shape for one in examples], BATCH, 0, 1)
    fixed = held_out_loader(loader, examples)
    return [load_batch(part, fixed) for part in parts]


@torch.no_grad()
def batch_losses(denoiser: ModelMixin, checks: Checks, batch: Batch) -> torch.Tensor:
    """The mean squared error of each sample, every sample of one weight, whatever the run's own weighting is."""
    noisy = checks.noising.add_noise(batch.latents, batch.noise, batch.times)
    with checks.autocast():
        conditions = checks.encode(batch.texts), batch.time_ids, checks.guidance
        prediction = FAMILIES[checks.family].predict(denoiser, noisy, batch.times, *conditions)
    target = checks.noising.target(batch.latents, batch.noise, batch.times)
    return diffusion.sample_losses(prediction, target)


def losses_in_memory(denoiser: ModelMixin, checks: Checks, batch: Batch) -> torch.Tensor:
    """The same of a batch on the CPU; half of its samples at once where the device's memory is full.

    Not where weights are divided: all processes would have to halve it.
    """
    may_halve = len(batch) > 1 and not shards.is_divided(denoiser)
    with devices.suppress_out_of_memory() if may_halve else nullcontext():
        return batch_losses(denoiser, checks, batch.to(denoiser.device))
    free_memory()
    return torch.cat([losses_in_memory(denoiser, checks, half) for half in batch.split((len(batch) + 1) // 2)])


def share_cores(denoiser: ModelMixin, rows: int) -> Cores | None:
    """Those of a CPU. Small layers on all cores at once wait for each other at every operation, where any is busy."""
    return devices.share_cores(rows) if denoiser.device.type == "cpu" and not shards.is_divided(denoiser) else None


def on_each(cores: Cores | None, work: Callable[[Item], Result], items: list[Item]) -> Iterator[Result]:
    """The results of `work`, in order, several at a time."""
    return cores.pool.map(work, items) if cores else map(work, items)


def held_out_loss(denoiser: ModelMixin, checks: Checks, bar: Bar | None = None) -> float:
    """The mean over all held-out samples."""
    cores = share_cores(denoiser, BATCH)
    parts = [part for batch in checks.held_out for part in batch.split(PART if cores else BATCH)]
    losses = []
    for found in on_each(cores, lambda part: losses_in_memory(denoiser, checks, part), parts):
        losses.append(found)
        if bar:
            bar.update(len(found))
    return torch.cat(losses).mean().item()


def wrap_denoiser(denoiser: ModelMixin, checks: Checks) -> Sampler:
    """What generates an image of each prompt by the model in training, as generate.py does.

    On a GPU it goes on with VAE tiling when memory runs out; not where weights are divided, since all processes would
    have to repeat the image. The other memory savers do nothing for one image, or change the model in training.
    """
    texts = [*checks.prompts, ""]
    may_repeat = denoiser.device.type != "cpu" and not shards.is_divided(denoiser)
    return Sampler(
        settings=checks.sampling,
        execution=Execution(denoiser.device, torch.float32, 1, autocast=checks.autocast),
        family=checks.family,
        denoiser=denoiser,
        compiled_denoiser=denoiser,
        vae=to_channels_last(models.load_vae(checks.model, vae=checks.vae).to(denoiser.device)),
        controlnet=None,
        scheduler=make_scheduler(checks.sampling.scheduler, checks.noising.scheduler),
        index=models.read_config(checks.model, "model_index.json"),
        features=dict(zip(texts, checks.encode(texts))),
        cores=None,
        batch_size=1,
        unused_savers=["vae_tiling"] if may_repeat else [],
        advice="give --num_validation_images 0, lower --resolution",
    )


@torch.no_grad()
def generate_images(
    denoiser: ModelMixin, checks: Checks, stopped: Callable[[], bool], bar: Bar | None = None
) -> list[Image.Image] | None:
    """One image for each prompt, as the pipeline with these weights would generate it; None once it is stopped."""
    wrapped = wrap_denoiser(denoiser, checks)
    requests = [ImageRequest(prompt, seed) for prompt, seed in zip(checks.prompts, checks.seeds)]

    def make(request: ImageRequest) -> Image.Image | None:
        return None if stopped() else sampler.generate_images(wrapped, [request])[0].image

    made: list[Image.Image] = []
    for image in on_each(share_cores(denoiser, PART * len(requests)), make, requests):
        if image is None:
            return None
        made.append(image)
        if bar:
            bar.update(checks.passes_an_image)
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


def validate(
    training: Training, checks: Checks, shown: Path | None, stopped: Callable[[], bool]
) -> dict[str, float] | None:
    """The held-out loss, and the number of invalid images in the grid; None where it was stopped before its end.

    With an average of the weights they are of the average; then the loss of the weights themselves stands beside it.
    Without `shown`, the grid's path but for its suffix, as in processes that only take part, nothing is written.
    """
    figures: dict[str, float] = {}
    denoiser = training.modules[FAMILIES[checks.family].DENOISER]
    grid = shown and shown.with_suffix(".png")
    for module in training.modules.values():
        module.eval()
    made: list[Image.Image] | None = []
    total = sum(map(len, checks.held_out)) * (2 if training.average else 1)
    total += len(checks.prompts) * checks.passes_an_image
    with show_progress(
        total, "passes", f"validation of step {training.progress.step:,}", shown=bool(grid and total)
    ) as bar:
        if checks.held_out and training.average:
            figures["val_loss_without_ema"] = held_out_loss(denoiser, checks, bar)
        with averaged_weights(training):
            if checks.held_out:
                figures["val_loss"] = held_out_loss(denoiser, checks, bar)
            if checks.prompts:
                made = generate_images(denoiser, checks, stopped, bar)
    for module in training.modules.values():
        module.train()
    if made is None:
        return None
    return figures | ({"validation/invalid_images": save_grid(grid, made, checks.prompts)} if grid and made else {})
