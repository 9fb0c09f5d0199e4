"""A LoKr or a LoHa of ours, built again by peft and added to the weights: of the pipelines, few load one themselves."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import torch
from peft.tuners.lycoris_utils import LycorisLayer

from families import lora
from families.lora import ADAPTER, Adapter, Module


def read_settings(facts: dict[str, str], denoiser: Module) -> dict[str, Any]:
    """What a file says of its adapter; nothing where another program has written it."""
    prefix = f"{lora.prefix_of(denoiser)}."
    named = json.loads(facts.get(lora.SETTINGS_KEY, "{}"))
    return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}


def has_own_names(keys: Collection[str]) -> bool:
    """Whether these are the tensors of a LoKr or a LoHa by the names that we write: those of a model's layers."""
    return lora.adapter_kind(keys) != "lora" and all(key.startswith(("unet.", "transformer.")) for key in keys)


@torch.no_grad()
def merge(denoiser: Module, state: dict[str, torch.Tensor], settings: dict[str, Any], weight: float) -> None:
    """Add it to the weights of its layers, so many times."""
    targets, factor = tuple(settings["target_modules"]), settings.get("decompose_factor", -1)
    kind = lora.adapter_kind(state)
    lora.attach_lora(denoiser, Adapter(settings["r"], settings["alpha"], targets=targets, kind=kind, factor=factor))
    lora.load_lora_state(state, denoiser)
    layers = {name: layer for name, layer in denoiser.named_modules() if isinstance(layer, LycorisLayer)}
    for name, layer in layers.items():
        layer.set_scale(ADAPTER, weight)
        layer.merge()
        denoiser.set_submodule(name, layer.get_base_layer())
    del denoiser.peft_config
    denoiser._hf_peft_config_loaded = False
