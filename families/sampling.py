"""Pieces of sampling: schedulers, memory savers, pipelines around loaded parts, decoding, the cores of a CPU."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import ControlNetModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin, SchedulerMixin
from einops import rearrange
from PIL import Image

from families.latents import decode_pixels, unscale
from families.models import denoiser_config, model_family, read_config, training_shapes, vae_step
from families.names import FAMILIES, LABELS
from utils.cli import UserError
from utils.devices import Cores

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # the usual name: diffusers' class, and its settings
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
FLOW_SCHEDULER = "flow_match_euler"  # diffusers' FlowMatchEulerDiscreteScheduler, the model's own
MEMORY_SAVERS = ("vae_slicing", "attention_slicing", "vae_tiling", "cpu_offload")  # the cheapest in time first
DECODED_AT_ONCE = 4  # images: for each the VAE needs far more memory than the denoiser, and more are not faster


def native_size(model: str) -> int:
    """The side of the images that the model was trained on."""
    vae, module = read_config(model, "vae/config.json"), FAMILIES[model_family(model)]
    if (side := module.native_latents(denoiser_config(model))) is None:
        raise UserError(f"--resolution: {model} names no one side that it was trained at; give it in pixels")
    return side * vae_step(vae)


def choose_size(model: str, asked: int | None) -> int:
    """The side that is asked for, or the model's own; refuses one that the model can't make."""
    size = asked or native_size(model)
    training_shapes(model, size, buckets=False)
    return size


def default_sampling(model: str) -> tuple[int, float]:
    """Steps and guidance scale of the model's images, where the user gives none."""
    return FAMILIES[model_family(model)].default_sampling(functools.partial(read_config, model))


def choose_steps(model: str, family: str, flag: str, value: int | None) -> int:
    """The steps that are asked for, or the model's default; refuses one where a stretched schedule gives NaN for it."""
    if value == 1 and read_config(model, "scheduler/scheduler_config.json").get("shift_terminal"):
        raise UserError(f"--{flag} 1: {LABELS[family]} makes no image in one step; give 2 or more")
    return value or default_sampling(model)[0]


def has_guidance(model: str) -> bool:
    """Whether a guidance scale changes the model's images."""
    return FAMILIES[model_family(model)].has_guidance(functools.partial(read_config, model))


def choose_guidance(model: str, family: str, flag: str, value: float | None, recipe_keys: frozenset[str]) -> float:
    """The guidance scale that is asked for, or the model's default; refuses one that would change no image.

    Where it comes from a recipe, which may serve several models, this only warns, and takes the default.
    """
    default = default_sampling(model)[1]
    if value in (None, default) or has_guidance(model):
        return default if value is None else value
    if flag not in recipe_keys:
        raise UserError(f"--{flag} {value:g}: {guidance_problem(family)}")
    logger.warning("--config: `%s: %g` %s", flag, value, guidance_problem(family))
    return default


def guidance_problem(family: str) -> str:
    """Why a model without guidance takes no guidance scale, and what to do."""
    return f"does nothing for a {LABELS[family]} without guidance; leave it out"


def takes_negative_prompt(family: str, with_guidance: bool) -> bool:
    """Whether the model reads one at some guidance scale; `with_guidance`: see `has_guidance`."""
    return with_guidance and FAMILIES[family].SECOND_PROMPT_ABOVE is not None


def reads_negative_prompt(family: str, guidance: float) -> bool:
    """Whether the denoiser computes each image twice at this guidance scale, with the negative prompt too."""
    above = FAMILIES[family].SECOND_PROMPT_ABOVE
    return above is not None and guidance > above


def negative_prompt_problem(family: str, with_guidance: bool, guidance: float) -> str:
    """Why no negative prompt is read at this guidance scale, and what to do; `with_guidance`: see `has_guidance`."""
    if FAMILIES[family].SECOND_PROMPT_ABOVE is None:
        return f"not supported here for {LABELS[family]}; leave it out"
    if not with_guidance:
        return guidance_problem(family)
    return f"does nothing at a guidance scale of {guidance:g}; give a higher one, or leave it out"


def choose_scheduler(family: str, asked: str | None) -> str:
    """The one that is asked for, or the family's default; refuses one of the other kind of noise."""
    known = list(SCHEDULERS) if FAMILIES[family].SCHEDULER == "DDPMScheduler" else [FLOW_SCHEDULER]
    if asked and asked not in known:
        raise UserError(f"--scheduler {asked}: not for {LABELS[family]}; choose from {', '.join(known)}")
    return asked or known[0]


def memory_savers(denoiser: torch.nn.Module) -> list[str]:
    """Those of MEMORY_SAVERS that it has."""
    return [name for name in MEMORY_SAVERS if name != "attention_slicing" or hasattr(denoiser, "set_attention_slice")]


def enable_memory_saver(
    name: str, denoiser: ModelMixin, vae: ModelMixin, controlnet: ControlNetModel | None, device: torch.device
) -> None:
    """Switch on one of MEMORY_SAVERS."""
    if name == "vae_slicing":
        vae.enable_slicing()
    elif name == "vae_tiling":
        vae.enable_tiling()
    elif name == "attention_slicing":
        for module in filter(None, (denoiser, controlnet)):
            module.set_attention_slice("auto")
    else:
        from accelerate import cpu_offload

        for module in filter(None, (denoiser, vae, controlnet)):
            cpu_offload(module.to("cpu"), device)


def disable_memory_saver(name: str, denoiser: ModelMixin, vae: ModelMixin, device: torch.device) -> None:
    """Undo `enable_memory_saver`, without a ControlNet."""
    if name == "vae_slicing":
        vae.disable_slicing()
    elif name == "vae_tiling":
        vae.disable_tiling()
    elif name == "attention_slicing":
        denoiser.set_attention_slice(None)
    else:
        from accelerate.hooks import remove_hook_from_module

        for module in (denoiser, vae):
            remove_hook_from_module(module, recurse=True).to(device)


def make_scheduler(name: str, noise_schedule: SchedulerMixin) -> SchedulerMixin:
    """A scheduler on the noise schedule that the model was trained with; of flow matching there is one alone."""
    if isinstance(noise_schedule, FlowMatchEulerDiscreteScheduler):
        return noise_schedule
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(noise_schedule.config, **options)


def build_pipeline(
    family: str, denoiser: ModelMixin | None, vae: ModelMixin | None, scheduler: SchedulerMixin, index: dict[str, Any]
) -> DiffusionPipeline:
    """A pipeline around loaded parts, for prompts that are already encoded; DPM-Solver++ on their noise schedule.

    `index`: what the model's model_index.json says, parts and settings.
    """
    pipeline = FAMILIES[family].build_pipeline(denoiser, vae, make_scheduler("dpm++", scheduler), index)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def generate(
    pipeline: DiffusionPipeline,
    seeds: list[int],
    steps: int = 20,
    guidance: float = 3.0,
    batch: int = 8,
    size: int | None = None,
    **prompts: Any,
) -> list[Image.Image]:
    """One image for each seed. `prompts` are the pipeline's arguments with one item per image: texts or embeddings."""
    images = []
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        # Noise from the CPU: the same on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        latents = pipeline(
            **{name: values[part] for name, values in prompts.items()},
            generator=generators,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            output_type="latent",
        ).images
        images += decode_latents(pipeline.vae, latents)
    return images


def decode_latents(vae: ModelMixin, latents: torch.Tensor) -> list[Image.Image]:
    """The images of latents as a denoiser sees them; black where they are not finite."""
    return decode(vae, unscale(vae, latents))


@torch.inference_mode()
def decode(vae: ModelMixin, latents: torch.Tensor) -> list[Image.Image]:
    """The images of the VAE's own latents, in its dtype; black where they are not finite."""
    with torch.autocast(latents.device.type, enabled=False):  # else a VAE would run in float16, and give NaN
        pixels = torch.cat([decode_pixels(vae, part) for part in latents.split(DECODED_AT_ONCE)])
    pixels = (pixels.float().nan_to_num(-1, 1, -1) / 2 + 0.5).clamp(0, 1)
    levels = rearrange((pixels * 255).round().to(torch.uint8), "n c h w -> n h w c").contiguous().cpu()
    return [Image.fromarray(one.numpy()) for one in levels]


def on_cores(cores: Cores | None, work: Callable[[slice], Result], rows: int) -> list[Result]:
    """The results of `work` for each core's part of a batch, in order."""
    size = math.ceil(rows / cores.parts) if cores else rows
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return list(cores.pool.map(work, parts)) if cores else [work(parts[0])]
