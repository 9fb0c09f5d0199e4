"""A base model that stays loaded, and the mixes of LoRAs that requests ask for."""

import copy
import logging
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from diffusers import ModelMixin
from diffusers.training_utils import free_memory

from families import models
from families.diffusion import Features
from families.lora_mix import Lora
from families.sampler import (
    Base,
    Execution,
    GeneratedImage,
    ImageRequest,
    Sampler,
    SamplerParts,
    Sampling,
    add_loras,
    build_sampler,
    encode_prompts,
    generate_images,
    load_base,
)
from service.image_queue import OnStep, Settings
from utils.cli import UserError

logger = logging.getLogger(__name__)
MOST_PROMPTS = 32  # whose features are kept of each mix

LoraWeights = tuple[tuple[str, float], ...]


@dataclass
class Mix:
    """The model with some LoRAs, each with its weight, on the device."""

    parts: SamplerParts
    base: Base
    sampler: Sampler
    features: OrderedDict[tuple[str, str], dict[str, Features]]  # of a prompt and a negative one


class ImageModel:
    """Makes images as generate.py does. One thread at a time may use it.

    With LoRAs, a copy of the weights stays in the machine's memory, in float32: each mix begins as a copy of it.
    """

    def __init__(
        self, parts: SamplerParts, loras: dict[str, Lora], defaults: Sampling, execution: Execution, most_mixes: int
    ):
        self._parts, self._loras, self._defaults, self._execution = parts, loras, defaults, execution
        self._most_mixes = most_mixes
        self._base = load_base(parts, torch.float32 if loras else execution.dtype)
        self._tokenizer = copy.deepcopy(self._base.tokenizers[0])  # for another thread than the one that encodes
        self._vae: ModelMixin = models.load_vae(parts.model, vae=parts.vae)
        self._mixes: OrderedDict[LoraWeights, Mix] = OrderedDict()

    def make(
        self, settings: Settings, requests: list[ImageRequest], on_step: OnStep | None = None
    ) -> list[GeneratedImage]:
        """One image for each request."""
        mix = self._find_mix(settings.loras)
        features: dict[str, Features] = {}
        for one in requests:
            features |= self._encode(mix, one.prompt, settings.sampling.negative_prompt)
        sampler = replace(mix.sampler, settings=settings.sampling, features=features, on_step=on_step)
        try:
            return generate_images(sampler, requests)
        finally:
            mix.sampler.batch_size = sampler.batch_size  # which is smaller once memory has run out

    def warm_up(self, settings: Settings) -> None:
        """Make one image of two steps; refuses a precision in which the model gives NaN."""
        quick = replace(settings, sampling=replace(settings.sampling, steps=2))
        (made,) = self.make(quick, [ImageRequest("", 0)])
        if not made.is_finite:
            name = str(self._execution.dtype).removeprefix("torch.")
            advice = "add --mixed_precision no" if self._execution.dtype != torch.float32 else "check the model"
            raise UserError(f"the first image is invalid (NaN) in {name}; {advice}")

    def is_cut(self, prompt: str) -> bool:
        """Whether the model's tokenizer cuts the prompt off."""
        return bool(models.too_long([prompt], self._tokenizer)[0])

    def _find_mix(self, weights: LoraWeights) -> Mix:
        if weights not in self._mixes:
            while len(self._mixes) >= self._most_mixes:
                self._mixes.popitem(last=False)
                free_memory()
            self._mixes[weights] = self._load_mix(weights)
        self._mixes.move_to_end(weights)
        return self._mixes[weights]

    def _load_mix(self, weights: LoraWeights) -> Mix:
        loras = tuple(self._loras[name]._replace(weight=weight) for name, weight in weights)
        parts = replace(self._parts, loras=loras)
        base = copy.deepcopy(self._base) if self._loras else self._base
        add_loras(parts, base, self._execution)
        sampler = build_sampler(parts, base, self._vae, self._defaults, self._execution)
        return Mix(parts, base, sampler, OrderedDict())

    def _encode(self, mix: Mix, prompt: str, negative: str) -> dict[str, Features]:
        """Each prompt with its negative one alone, as generate.py does for one prompt."""
        key = prompt, negative
        if key not in mix.features:
            mix.features[key] = dict(encode_prompts(mix.parts, mix.base, list(dict.fromkeys(key))))
            if len(mix.features) > MOST_PROMPTS:
                mix.features.popitem(last=False)
        mix.features.move_to_end(key)
        return mix.features[key]
