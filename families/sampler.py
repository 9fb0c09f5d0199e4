"""A model loaded to generate many images: each distinct prompt is encoded once, each image has its own seed.

For generate.py, and for the class images of train_dreambooth.py.
"""

import copy
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ControlNetModel, ModelMixin, SchedulerMixin
from diffusers.training_utils import free_memory
from einops import rearrange, repeat
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from families import lora_mix, models, quantized, sampling, tokens
from families.diffusion import Features, schedule_changes, size_conditions, stack
from families.feature_file import FeatureFile
from families.latents import to_channels_last, unscale
from families.models import PLAIN_READING, TextReading
from families.names import FAMILIES
from utils import devices, image_checks
from utils.cli import OF_ONE_PROCESS, UserError, counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplerParts:
    """What a sampler is made of."""

    model: str  # a folder or hub id
    family: str
    loras: tuple[lora_mix.Lora, ...] = ()
    controlnet: str | None = None
    prediction_type: str | None = None  # None: as the model says
    zero_terminal_snr: bool = False
    vae: str | None = None  # None: the model's own
    reading: TextReading = PLAIN_READING


def check_parts(parts: SamplerParts, name: str, allow_other_base: bool) -> None:
    """Refuse a model, LoRAs and their settings that do not go together; `name`: what the user calls the model."""
    models.check_reading(parts.model, parts.family, parts.reading)
    words = lora_mix.learnt_words(parts.loras)
    for lora in parts.loras:
        lora_mix.check_lora(lora, name, parts.model, parts.family)
        if not allow_other_base:
            lora_mix.check_noise(lora, parts.model, parts.prediction_type, parts.zero_terminal_snr)
            lora_mix.check_reading(lora, parts.reading)
    tokenizer = models.load_tokenizers(parts.model, parts.family)[0] if words else None
    for folder, word in words.items():
        tokens.check_unknown(tokenizer, word, f"--lora {folder}:word=")


@dataclass(frozen=True)
class Sampling:
    """How every image is sampled."""

    steps: int
    guidance_scale: float  # as the family's pipeline has it
    size: int  # the side in pixels
    scheduler: str = "dpm++"
    negative_prompt: str = ""
    strength: float = 1.0  # how much of an init image is changed
    conditioning_scale: float = 1.0  # of the ControlNet


@dataclass(frozen=True)
class Execution:
    """The device, the dtype and the batch size; they change images only by rounding."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    memory_savers: tuple[str, ...] = ()
    compiled: bool = False
    autocast: Callable[[], AbstractContextManager] = nullcontext  # of a model in training


@dataclass(frozen=True)
class ImageRequest:
    """One image to generate."""

    prompt: str
    seed: int
    init_image: Image.Image | None = None
    control_image: Image.Image | None = None


class GeneratedImage(NamedTuple):
    image: Image.Image
    is_finite: bool  # whether its latents held no NaN and no infinity


@dataclass
class Sampler:
    """The loaded models. Batch size and unused savers change when memory runs out."""

    settings: Sampling
    execution: Execution
    family: str
    denoiser: ModelMixin
    compiled_denoiser: Callable[..., Any]  # the same, for full batches: each other shape would be compiled again
    vae: ModelMixin
    controlnet: ControlNetModel | None
    scheduler: SchedulerMixin
    index: dict[str, Any]  # the model's model_index.json
    features: dict[str, Features] | FeatureFile  # by prompt, on the CPU or on the disk
    cores: devices.Cores | None  # on a CPU each takes a part of a batch
    batch_size: int
    unused_savers: list[str]
    advice: str = "lower --resolution"  # where none is left
    on_step: Callable[[int, int], None] | None = None  # after each step of some of a batch's images, with their number


@dataclass
class Base:
    """The parts of a model that LoRAs change."""

    denoiser: Any  # a ModelMixin; None: not loaded yet
    tokenizers: list[PreTrainedTokenizerBase]
    encoders: list[PreTrainedModel]
    schedule: SchedulerMixin


def load_sampler(parts: SamplerParts, settings: Sampling, execution: Execution, prompts: list[str]) -> Sampler:
    """The models on their device, with the features of these prompts; the text encoders are freed again."""
    controlnet = models.load_controlnet(parts.controlnet, parts.model, execution.dtype) if parts.controlnet else None
    # A LoRA is fused before anything is rounded.
    exact = torch.float32 if parts.loras else execution.dtype
    if FAMILIES[parts.family].DENOISER == "unet" or any(map(lora_mix.adapts_texts, parts.loras)):
        base = load_base(parts, exact)
        add_loras(parts, base, execution)
    else:  # the text encoders of a transformer are gone before it is loaded: both together may be too large
        base = Base(None, *load_texts(parts, execution.dtype), load_schedule(parts))
        move_encoders(parts, base, execution)
    prompts = list(dict.fromkeys([*prompts, settings.negative_prompt]))
    models.report_long_captions(base.tokenizers[-1], prompts, "prompts")
    features = FeatureFile()
    for prompt, found in encode_prompts(parts, base, prompts):
        features.add(prompt, found)
    base.encoders.clear()
    free_memory()
    if base.denoiser is None:
        base.denoiser = models.load_denoiser(parts.model, exact)
        add_loras(parts, base, execution)
    vae = models.load_vae(parts.model, vae=parts.vae)
    sampler = build_sampler(parts, base, vae, settings, execution)
    sampler.features = features
    if controlnet is not None:
        sampler.controlnet = to_channels_last(controlnet.eval().requires_grad_(False).to(execution.device))
    for name in execution.memory_savers:
        sampling.enable_memory_saver(name, sampler.denoiser, vae, controlnet, execution.device)
    return sampler


def load_base(parts: SamplerParts, dtype: torch.dtype) -> Base:
    """The model's own parts, in this dtype, on the CPU."""
    denoiser = models.load_denoiser(parts.model, dtype)
    return Base(denoiser, *load_texts(parts, dtype), load_schedule(parts))


def load_texts(parts: SamplerParts, dtype: torch.dtype) -> tuple[list[PreTrainedTokenizerBase], list[PreTrainedModel]]:
    return models.load_text_encoders(parts.model, parts.family, dtype, parts.reading.length)


def load_schedule(parts: SamplerParts) -> SchedulerMixin:
    schedule = models.load_noise_scheduler(parts.model)
    schedule.register_to_config(**schedule_changes(parts.prediction_type, parts.zero_terminal_snr))
    return schedule


@torch.no_grad()
def add_loras(parts: SamplerParts, base: Base, execution: Execution) -> None:
    """Fuse the LoRAs into denoiser and text encoders, add the words they were trained with, and move the encoders."""
    if parts.loras:
        index = models.read_config(parts.model, "model_index.json")
        pipeline = sampling.build_pipeline(parts.family, base.denoiser, None, base.schedule, index)
        pipeline.register_modules(**dict(zip(("text_encoder", "text_encoder_2"), base.encoders)))
        lora_mix.apply_loras(pipeline, parts.loras)
        for folder, word in lora_mix.learnt_words(parts.loras).items():
            tokens.read_token(folder, word, base.tokenizers, base.encoders)
    move_encoders(parts, base, execution)


def move_encoders(parts: SamplerParts, base: Base, execution: Execution) -> None:
    """Round the text encoders as they are to be, and bring them to the device."""
    for encoder in base.encoders:
        torch.nn.Module.to(encoder, execution.dtype)
        if parts.reading.quantized:
            quantized.quantize(encoder, parts.reading.quantized, execution.dtype)
        encoder.to(execution.device)


@torch.no_grad()
def encode_prompts(parts: SamplerParts, base: Base, prompts: list[str]) -> Iterator[tuple[str, Features]]:
    """Each prompt and its features, on the CPU; the encoders are on the device."""
    zero = models.empty_prompt_is_zero(parts.model)
    encode = models.choose_encode(parts.family, parts.reading.clip_skip)
    at_once = 64 if FAMILIES[parts.family].DENOISER == "unet" else 4  # those of a transformer are large
    for start in range(0, len(prompts), at_once):
        batch = prompts[start : start + at_once]
        found = encode(base.tokenizers, base.encoders, batch, zero)
        yield from ((prompt, {name: t.cpu() for name, t in one.items()}) for prompt, one in zip(batch, found))


def build_sampler(
    parts: SamplerParts, base: Base, vae: ModelMixin, settings: Sampling, execution: Execution
) -> Sampler:
    """A sampler around the denoiser and a VAE, on the device; it knows no prompt yet."""
    device, dtype = execution.device, execution.dtype
    torch.nn.Module.to(base.denoiser, dtype)  # diffusers' own `to` warns, for reasons that don't hold here
    first = torch.device("cpu") if "cpu_offload" in execution.memory_savers else device  # they may be too large
    for module in (base.denoiser, vae):
        to_channels_last(module.eval().requires_grad_(False).to(first))
    on_cpu = device.type == "cpu"
    rows = execution.batch_size * (1 + sampling.reads_negative_prompt(parts.family, settings.guidance_scale))
    # On a CPU half of the gain is that frozen weights are laid out once for its kernels.
    options: dict[str, Any] | None = {"freezing": True} if on_cpu else None
    savers = [] if on_cpu else sampling.memory_savers(base.denoiser)
    compiled = torch.compile(base.denoiser, dynamic=False, options=options) if execution.compiled else base.denoiser
    return Sampler(
        settings=settings,
        execution=execution,
        family=parts.family,
        denoiser=base.denoiser,
        compiled_denoiser=compiled,
        vae=vae,
        controlnet=None,
        scheduler=sampling.make_scheduler(settings.scheduler, base.schedule),
        index=models.read_config(parts.model, "model_index.json"),
        features={},
        cores=devices.share_cores(rows) if on_cpu else None,
        batch_size=execution.batch_size,
        unused_savers=[name for name in savers if name not in execution.memory_savers],
    )


def generate_images(sampler: Sampler, requests: list[ImageRequest]) -> list[GeneratedImage]:
    """The images of these requests, in their order; when memory runs out, fewer at once from here on."""
    images: list[GeneratedImage] = []
    while len(images) < len(requests):
        batch = requests[len(images) :][: sampler.batch_size]
        made = []
        with devices.suppress_out_of_memory():
            made = _generate_batch(sampler, batch)
        if not made:
            _use_less_memory(sampler, len(batch))
        images += made
    return images


def _generate_batch(sampler: Sampler, requests: list[ImageRequest]) -> list[GeneratedImage]:
    """One batch. Each core of a CPU generates its part from start to end: none waits for another at every step."""
    denoiser = sampler.compiled_denoiser if len(requests) == sampler.execution.batch_size else sampler.denoiser
    parts = sampling.on_cores(sampler.cores, lambda rows: _generate(sampler, denoiser, requests[rows]), len(requests))
    return [image for part in parts for image in part]


@torch.no_grad()  # not inference_mode: a divided model keeps the buffers of its first pass, and trains with them
def _generate(sampler: Sampler, denoiser: Callable[..., Any], requests: list[ImageRequest]) -> list[GeneratedImage]:
    # All random numbers of an image come from its own generator on the CPU: no other image changes it.
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    if FAMILIES[sampler.family].DENOISER == "unet":
        latents = unscale(sampler.vae, _denoise(sampler, denoiser, requests, generators))
    else:
        latents = _sample_by_pipeline(sampler, requests, generators)
    images = sampling.decode(sampler.vae, latents)
    return [GeneratedImage(*one) for one in zip(images, image_checks.finite_images(latents))]


def _sample_by_pipeline(
    sampler: Sampler, requests: list[ImageRequest], generators: list[torch.Generator]
) -> torch.Tensor:
    """What the VAE decodes, of the latents that the family's own pipeline ends with."""
    settings, module = sampler.settings, FAMILIES[sampler.family]
    scheduler = copy.deepcopy(sampler.scheduler)  # it counts its steps
    pipeline = sampling.build_pipeline(sampler.family, sampler.denoiser, sampler.vae, scheduler, sampler.index)
    prompts = _read_features(sampler, [request.prompt for request in requests])
    negative = _read_features(sampler, [settings.negative_prompt] * len(requests))
    options: dict[str, Any] = {}
    if on_step := sampler.on_step:
        options["callback_on_step_end"] = lambda pipe, i, time, kept: on_step(i + 1, settings.steps) or kept
    with sampler.execution.autocast():
        latents = pipeline(
            **module.prompt_arguments(prompts, negative, settings.guidance_scale),
            height=settings.size,
            width=settings.size,
            num_inference_steps=settings.steps,
            generator=generators,
            output_type="latent",
            **options,
        ).images
    return module.to_vae(sampler.vae, latents, settings.size // models.vae_step(sampler.vae.config))


def _denoise(
    sampler: Sampler, denoiser: Callable[..., Any], requests: list[ImageRequest], generators: list[torch.Generator]
) -> torch.Tensor:
    """The latents that a UNet ends with."""
    settings, device, dtype = sampler.settings, sampler.execution.device, sampler.execution.dtype
    guided = sampling.reads_negative_prompt(sampler.family, settings.guidance_scale)
    prompts = [settings.negative_prompt] * len(requests) * guided + [request.prompt for request in requests]
    embeds, added = _stack_features(sampler, prompts)
    control = None
    if sampler.controlnet is not None:
        control = _to_tensor([request.control_image for request in requests])
        control = repeat(control, "n c h w -> (halves n) c h w", halves=1 + guided).to(device, dtype)
    scheduler = copy.deepcopy(sampler.scheduler)  # it keeps what it needs from earlier steps
    scheduler.set_timesteps(settings.steps, device=device)
    latents, timesteps = _first_latents(sampler, scheduler, requests, generators)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generators} if takes_generator else {}

    for done, time in enumerate(timesteps, 1):
        noisy = scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), time).to(dtype)
        residuals = {}
        if control is not None:
            down, middle = sampler.controlnet(
                noisy, time, embeds, control, conditioning_scale=settings.conditioning_scale, return_dict=False, **added
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        with sampler.execution.autocast():
            predicted = denoiser(noisy, time, embeds, return_dict=False, **added, **residuals)[0].float()
        if guided:  # classifier-free guidance (Ho and Salimans, 2022, arXiv 2207.12598)
            negative, positive = predicted.chunk(2)
            predicted = negative + settings.guidance_scale * (positive - negative)
        latents = scheduler.step(predicted, time, latents, return_dict=False, **options)[0]
        if sampler.on_step:
            sampler.on_step(done, len(timesteps))
    return latents


def _read_features(sampler: Sampler, prompts: list[str]) -> list[Features]:
    """Those of prompts, on the device; what several images share is read once."""
    device = sampler.execution.device
    found = {prompt: {name: one.to(device) for name, one in sampler.features[prompt].items()} for prompt in {*prompts}}
    return [found[prompt] for prompt in prompts]


def _stack_features(sampler: Sampler, prompts: list[str]) -> tuple[torch.Tensor, dict[str, Any]]:
    """The prompts' embeddings, and the further arguments that SDXL's UNet takes."""
    device, dtype, size = sampler.execution.device, sampler.execution.dtype, sampler.settings.size
    texts = _read_features(sampler, prompts)
    ids = torch.tensor([[size, size, 0, 0, size, size]] * len(texts), dtype=dtype, device=device)
    return stack(texts, "embeds"), size_conditions(texts, ids)


def _first_latents(
    sampler: Sampler, scheduler: SchedulerMixin, requests: list[ImageRequest], generators: list[torch.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, or the init images' latents with as much noise as the strength says; and the time steps to go through."""
    vae, settings, device = sampler.vae, sampler.settings, sampler.execution.device
    side = settings.size // models.vae_step(vae.config)

    def draw_noise() -> torch.Tensor:
        shape = (1, vae.config.latent_channels, side, side)
        return torch.cat([torch.randn(shape, generator=one) for one in generators])

    if requests[0].init_image is None:
        return (draw_noise() * scheduler.init_noise_sigma).to(device), scheduler.timesteps
    pixels = _to_tensor([request.init_image for request in requests]).to(device, vae.dtype)
    posterior = vae.encode(pixels * 2 - 1).latent_dist
    latents = posterior.mean + posterior.std * draw_noise().to(device)
    latents = latents.float() * vae.config.scaling_factor
    first = (settings.steps - int(settings.steps * settings.strength)) * scheduler.order
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.add_noise(latents, draw_noise().to(device), timesteps[:1].repeat(len(latents))), timesteps


def _to_tensor(images: list[Image.Image | None]) -> torch.Tensor:
    """(n, 3, height, width) in 0..1."""
    return torch.from_numpy(rearrange([np.asarray(one) for one in images], "n h w c -> n c h w")).float() / 255


def _use_less_memory(sampler: Sampler, batch_size: int) -> None:
    """Halve the batch, or at one image switch on the memory saver that costs the least time."""
    free_memory()
    if batch_size > 1:
        sampler.batch_size = math.ceil(batch_size / 2)
        size = counted(sampler.batch_size, "image")
        logger.warning("out of memory: %s at once from here on", size, extra=OF_ONE_PROCESS)
        return
    if not sampler.unused_savers:
        raise UserError(f"out of memory at one image, and no memory saver is left; {sampler.advice}, or free memory")
    name = sampler.unused_savers.pop(0)
    sampling.enable_memory_saver(name, sampler.denoiser, sampler.vae, sampler.controlnet, sampler.execution.device)
    said = name.replace("_", " ").replace("vae", "VAE").replace("cpu", "CPU")
    logger.warning("out of memory with one image at once: with %s from here on", said, extra=OF_ONE_PROCESS)
