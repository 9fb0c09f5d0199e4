"""What draws images of texts, one seed each: for generate.py, and for the class images of train_dreambooth.py."""

import copy
import inspect
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, PngImagePlugin

from families import conditions, lora_mix, models, sampling, tokens
from utils import devices, image_checks
from utils.cli import UserError, counted

logger = logging.getLogger(__name__)
RETRY_SEEDS = 1_000_000_000  # between the seeds of one image's tries; those of the set's images are neighbours


class Studio(NamedTuple):
    """What draws: the models on their device, and every text's features on the CPU."""

    unet: torch.nn.Module
    compiled: torch.nn.Module  # the same, for whole batches: each other shape would be compiled anew
    batch: int
    vae: torch.nn.Module
    controlnet: torch.nn.Module | None
    scheduler: object
    guidance: float
    features: dict[str, tuple[torch.Tensor, torch.Tensor | None]]
    dtype: torch.dtype
    device: torch.device
    cores: sampling.Cores | None  # on a CPU each takes a part of a batch


@torch.no_grad()
def open_studio(
    model: str,
    family: str,
    texts: list[str],
    dtype: torch.dtype,
    device: torch.device,
    scheduler: str,
    batch: int,
    guidance: float,
    loras: Sequence[lora_mix.Lora] = (),
    prediction_type: str | None = None,
    controlnet: str | None = None,
    economies: Sequence[str] = (),
    compiled: bool = False,
) -> Studio:
    """Every distinct text is encoded once, and the encoders are gone when this returns."""
    control = conditions.load_controlnet(controlnet, model, dtype) if controlnet else None
    whole = torch.float32 if loras else dtype  # a LoRA is fused before anything is rounded
    tokenizers, encoders = models.load_text_encoders(model, family, whole)
    unet = models.load_unet(model, whole)
    noise = models.load_noise_scheduler(model)
    if prediction_type:
        noise.register_to_config(prediction_type=prediction_type)
    if loras:
        pipeline = sampling.build_pipeline(family, unet, None, noise)
        names = ("text_encoder", "text_encoder_2")[: len(encoders)]
        pipeline.register_modules(**dict(zip(names, encoders)))
        lora_mix.apply_loras(pipeline, loras)
        for folder in dict.fromkeys(one.path.parent for one in loras):  # once, where two lie in one folder
            tokens.read_token(folder, tokenizers, encoders)
        pipeline = None
    features, zero = {}, models.empty_prompt_is_zero(model)
    for encoder in encoders:
        encoder.to(device, dtype)
    models.report_long_captions(tokenizers[0], texts, "prompts")
    for start in range(0, len(texts), 64):
        part = texts[start : start + 64]
        embeds, pooled = models.encode_prompts(tokenizers, encoders, part, zero)
        for i, text in enumerate(part):
            features[text] = embeds[i].cpu(), None if pooled is None else pooled[i].cpu()
    del encoders, encoder
    devices.free_memory(device)
    vae = models.load_vae(model)
    torch.nn.Module.to(unet, dtype)  # without the warning of diffusers, which holds for other models
    cores = sampling.share_cores(batch * (1 + (guidance > 1))) if device.type == "cpu" else None
    solver = sampling.make_scheduler(scheduler, noise)
    for module in filter(None, (unet, vae, control)):
        module.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    if guidance > 1:
        sampling.share_first_layers(unet)
    for name in economies:
        sampling.economise(unet, vae, control, name, device)
    # On a CPU the weights, laid out anew once, are half of the gain.
    options = {"freezing": True} if device.type == "cpu" else None
    quick = torch.compile(unet, dynamic=False, options=options) if compiled else unet
    return Studio(unet, quick, batch, vae, control, solver, guidance, features, dtype, device, cores)


def draw_images(
    studio: Studio, texts: list[str], negative: str, seeds: list[int], steps: int, size: int,
    starts: torch.Tensor | None = None, strength: float = 1.0,
    control: torch.Tensor | None = None, control_scale: float = 1.0
) -> tuple[torch.Tensor, list[bool]]:  # fmt: skip
    """The pixels (n, size, size, 3) of one batch, and which of them came from finite latents."""
    unet = studio.compiled if len(texts) == studio.batch else studio.unet

    def draw(rows: slice) -> tuple[torch.Tensor, list[bool]]:
        given = [None if one is None else one[rows] for one in (starts, control)]
        return _draw_part(
            studio, unet, texts[rows], negative, seeds[rows], steps, size, *given, strength, control_scale
        )

    # Each core of a CPU draws its part from start to end: none waits for another at every step.
    pixels, finite = zip(*sampling.on_cores(studio.cores, draw, len(texts)))
    return torch.cat(pixels), [one for part in finite for one in part]


@torch.inference_mode()
def _draw_part(
    studio: Studio, unet: torch.nn.Module, texts: list[str], negative: str, seeds: list[int], steps: int, size: int,
    starts: torch.Tensor | None, control: torch.Tensor | None, strength: float, control_scale: float
) -> tuple[torch.Tensor, list[bool]]:  # fmt: skip
    vae, device, scheduler = studio.vae, studio.device, copy.deepcopy(studio.scheduler)  # it remembers steps
    # Whatever is drawn for an image is drawn on the CPU by its own generator: no other image changes it.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    guided = studio.guidance > 1
    wanted = [negative] * len(texts) * guided + texts
    embeds = torch.stack([studio.features[text][0] for text in wanted]).to(device)
    more = {}
    if studio.features[texts[0]][1] is not None:
        pooled = torch.stack([studio.features[text][1] for text in wanted]).to(device)
        ids = torch.tensor([[size, size, 0, 0, size, size]] * len(wanted), dtype=studio.dtype, device=device)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    if control is not None:
        control = control.repeat(1 + guided, 1, 1, 1).to(device, studio.dtype)

    scheduler.set_timesteps(steps, device=device)
    timesteps, side = scheduler.timesteps, size // models.vae_step(vae.config)
    shape = (1, vae.config.latent_channels, side, side)
    if starts is None:
        latents = torch.cat([torch.randn(shape, generator=one) for one in generators])
        latents = (latents * scheduler.init_noise_sigma).to(device)
    else:
        latents, timesteps = sampling.start_from(vae, scheduler, starts.to(device), generators, steps, strength)
    step_options = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_options["generator"] = generators

    for time_step in timesteps:
        # One denoising step, the negative half of the batch beside the other where there is guidance.
        given = scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), time_step).to(studio.dtype)
        residuals = {}
        if control is not None:
            down, middle = studio.controlnet(
                given, time_step, embeds, control, conditioning_scale=control_scale, return_dict=False, **more
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted = unet(given, time_step, embeds, return_dict=False, **more, **residuals)[0].float()
        if guided:
            without, towards = predicted.chunk(2)
            predicted = without + studio.guidance * (towards - without)
        latents = scheduler.step(predicted, time_step, latents, return_dict=False, **step_options)[0]
    return sampling.decode_pixels(vae, latents), image_checks.finite_images(latents)


def relieve_memory(studio: Studio, batch: int, left: list[str]) -> int:
    """What to do where memory ran out, the cheapest first; the batch from here on."""
    devices.free_memory(studio.device)
    if batch > 1:
        logger.warning("out of memory: %s at once from here on", counted(math.ceil(batch / 2), "image"))
        return math.ceil(batch / 2)
    if not left:
        raise UserError("out of memory, one image at once and with every economy; lower --resolution, or free memory")
    sampling.economise(studio.unet, studio.vae, studio.controlnet, left[0], studio.device)
    logger.warning("out of memory with one image at once: --enable_%s from here on", left.pop(0))
    return 1


def image_seed(seed: int, index: int, retry: int) -> int:
    return seed + index + retry * RETRY_SEEDS


def write_image(path: Path, image: Image.Image, facts: dict[str, str] | None = None) -> None:
    """A PNG that is whole or not there, with the facts in its header."""
    info = PngImagePlugin.PngInfo()
    for name, value in (facts or {}).items():
        info.add_itxt(name, value)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    image.save(partial, "PNG", compress_level=4, pnginfo=info)
    os.replace(partial, path)
