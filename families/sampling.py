"""Images from a pipeline, one seed each, decoded outside it since the VAE may need another precision."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import diffusers
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
)
from PIL import Image

from families.models import read_config, vae_step
from utils.cli import UserError
from utils.parallel import available_cores

SCHEDULERS = {  # by the names that people know them by: the class, and its settings
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


# What saves memory, the cheapest in time first.
ECONOMIES = ("vae_slicing", "attention_slicing", "vae_tiling", "cpu_offload")
DECODED_AT_ONCE = 4  # images: the VAE needs far more memory for one than the UNet, and no more of them to be fast


def native_size(model: str) -> int:
    """The side of the images that the model was trained on."""
    vae, unet = (read_config(model, f"{part}/config.json") for part in ("vae", "unet"))
    if not isinstance(side := unet.get("sample_size"), int):
        raise UserError(f"--resolution: {model} names no one side that it was trained at; give it in pixels")
    return side * vae_step(vae)


def economise(unet, vae, controlnet, name: str, device: torch.device) -> None:
    """Switch on one of ECONOMIES."""
    if name == "vae_slicing":
        vae.enable_slicing()
    elif name == "vae_tiling":
        vae.enable_tiling()
    elif name == "attention_slicing":
        for module in filter(None, (unet, controlnet)):
            module.set_attention_slice("auto")
    else:
        from accelerate import cpu_offload

        for module in filter(None, (unet, vae, controlnet)):
            cpu_offload(module.to("cpu"), device)


def make_scheduler(name: str, noise: SchedulerMixin) -> SchedulerMixin:
    """A solver on the noise schedule that the model was trained with."""
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(noise.config, **options)


def build_pipeline(family: str, unet, vae, scheduler: SchedulerMixin, empty_is_zero: bool = False) -> DiffusionPipeline:
    """A pipeline around parts in hand, for prompts that are already encoded; DPM-Solver++ on their noise schedule."""
    solver = DPMSolverMultistepScheduler.from_config(scheduler.config)
    parts = {"unet": unet, "vae": vae, "scheduler": solver, "text_encoder": None, "tokenizer": None}
    parts |= {"feature_extractor": None}
    if family == "sdxl":
        parts |= {"text_encoder_2": None, "tokenizer_2": None, "force_zeros_for_empty_prompt": empty_is_zero}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        pipeline = diffusers.StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def generate(
    pipeline: DiffusionPipeline, seeds: list[int], steps=20, guidance=3.0, batch=8, size: int | None = None, **prompts
) -> list[Image.Image]:
    """One image a seed. `prompts` are the pipeline's arguments that hold one item an image: texts, or embeddings."""
    images = []
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        # Drawn on the CPU: the same noise on every device.
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
        images += decode_latents(pipeline, latents)
    return images


def decode_latents(pipeline: DiffusionPipeline, latents: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(pixels.numpy()) for pixels in decode_pixels(pipeline.vae, latents)]


def start_from(
    vae, scheduler, pixels: torch.Tensor, generators: list[torch.Generator], steps: int, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of given images (0..1), noised for a variation of this strength, and the time steps that are left."""
    posterior = vae.encode(pixels.to(vae.dtype) * 2 - 1).latent_dist
    draws = [torch.randn((1, *posterior.mean.shape[1:]), generator=one) for one in generators]
    latents = posterior.mean + posterior.std * torch.cat(draws).to(pixels.device)
    latents = latents.float() * vae.config.scaling_factor
    first = (steps - int(steps * strength)) * scheduler.order
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    noise = torch.cat([torch.randn((1, *latents.shape[1:]), generator=one) for one in generators])
    return scheduler.add_noise(latents, noise.to(pixels.device), timesteps[:1].repeat(len(latents))), timesteps


class Cores(NamedTuple):
    """Threads that each take a part of a batch."""

    pool: ThreadPoolExecutor
    parts: int


def share_cores(rows: int, most: int | None = None) -> Cores | None:
    """A CPU's cores, `most` of them, divided among parts of a batch of `rows`; None where one part is all.

    Two threads of one core each draw a quarter more than one of two: small layers leave the second core idle.
    """
    cores = min(available_cores(), most or available_cores())
    parts = min(cores, rows // 4)
    if parts < 2:
        return None
    return Cores(ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(cores // parts,)), parts)


def on_cores(cores: Cores | None, work: Callable[[slice], object], rows: int) -> list:
    """What `work` makes of each core's part of a batch, in order."""
    size = math.ceil(rows / cores.parts) if cores else rows
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return list(cores.pool.map(work, parts)) if cores else [work(parts[0])]


def share_first_layers(unet: torch.nn.Module) -> None:
    """Let guidance's two halves of a batch share the layers before the first that sees the text: they hold the same.

    Models without such layers (SDXL's time embedding holds the text) stay as they are.
    """
    first = unet.down_blocks[0]
    attention = getattr(first, "attentions", [None])[0]
    if unet.config.addition_embed_type or unet.config.only_cross_attention:
        return
    if not hasattr(attention, "transformer_blocks"):
        return
    inner = attention.transformer_blocks[0]
    for layer in (unet.conv_in, first.resnets[0], attention.norm, attention.proj_in, inner.norm1, inner.attn1):
        layer.forward = partial(_on_one_half, layer.forward)


def _on_one_half(forward: Callable, *given, **options) -> torch.Tensor:
    half = forward(*(one.chunk(2)[0] if isinstance(one, torch.Tensor) else one for one in given), **options)
    return torch.cat([half, half])


@torch.inference_mode()
def decode_pixels(vae, latents: torch.Tensor) -> torch.Tensor:
    """(n, height, width, 3) in 0..255 on the CPU, by the VAE in its own dtype; black where latents are not finite."""
    latents = latents.to(vae.dtype) / vae.config.scaling_factor
    with torch.autocast(latents.device.type, enabled=False):  # else a VAE would run in float16, and give NaN
        pixels = torch.cat([vae.decode(part, return_dict=False)[0] for part in latents.split(DECODED_AT_ONCE)])
    pixels = (pixels.float().nan_to_num(-1, 1, -1) / 2 + 0.5).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
