"""A base model that stays loaded, and the mixes of LoRAs that requests ask for."""

import copy
import logging
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from diffusers import ModelMixin
from diffusers.training_utils import free_memory

from families import models, sampling
from families.diffusion import Features
from families.lora_mix import Lora, length_tokenizer
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
from utils.devices import suppress_out_of_memory

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
        self._tokenizer = length_tokenizer(
            self._base.tokenizers, list(loras.values())
        )  # not for the thread that encodes
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
        unused = list(mix.sampler.unused_savers)
        sampler = replace(
            mix.sampler, settings=settings.sampling, features=features, on_step=on_step, unused_savers=unused
        )
        try:
            return generate_images(sampler, requests)
        finally:  # where memory ran out, for these images alone
            for name in mix.sampler.unused_savers[: len(mix.sampler.unused_savers) - len(unused)]:
                sampling.disable_memory_saver(name, sampler.denoiser, sampler.vae, self._execution.device)

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
            self._drop_mixes(self._most_mixes - 1)
            mix = None
            with suppress_out_of_memory():
                mix = self._load_mix(weights)
            if mix is None:
                logger.warning("out of memory at a mix of LoRAs: all others leave the device")
                self._drop_mixes(0)
                mix = self._load_mix(weights)
            self._mixes[weights] = mix
        self._mixes.move_to_end(weights)
        return self._mixes[weights]

    def _drop_mixes(self, most: int) -> None:
        """Keep this many, those that were used last."""
        while len(self._mixes) > most:
            self._mixes.popitem(last=False)
        free_memory()

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
