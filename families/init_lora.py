"""A LoRA to continue from: its weights by the names that a new adapter has, checked against the adapter's settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import diffusers
import torch

from families import kohya, lora, lora_mix, lycoris, tokens
from families.lora import Adapter, Module
from families.names import FAMILIES
from utils.cli import UserError


class Found(NamedTuple):
    """What a file holds: tensors by the keys of diffusers, the alphas of its layers, and the settings that it names."""

    state: dict[str, torch.Tensor]
    alphas: set[float]  # none: as large as the rank, as its readers take it
    settings: dict[str, Any]


def parse_init(spec: str) -> lora_mix.Lora:
    """The LoRA of --init_lora: a run, its best/, or a file, whole and without a learnt word."""
    one = lora_mix.parse_lora(spec, "--init_lora")
    if one.weight != 1 or one.word:
        raise UserError(f"--init_lora {spec}: takes neither a weight nor a word; give {one.path}")
    if word := tokens.learnt_word(one.path.parent):
        raise UserError(
            f"--init_lora {one.path}: comes with the word {word}, which can't be continued; give another LoRA"
        )
    return one


def load_init(one: lora_mix.Lora, adapter: Adapter, denoiser: Module, encoders: Iterable[Module], family: str) -> None:
    """Put its weights into new adapters; refused, with the flag to change, where these have other settings.

    Of modules on the meta device, it only checks.
    """
    encoders = list(encoders)
    wanted = lora.named_adapters(denoiser, encoders)
    found = read_found(one, list(wanted), denoiser, family)
    if problem := find_difference(found, adapter, set(wanted), bool(encoders)):
        raise UserError(f"--init_lora {one.path}: {problem}")
    lora.load_lora_state(found.state, denoiser, encoders)


def read_found(one: lora_mix.Lora, wanted: Iterable[str], denoiser: Module, family: str) -> Found:
    """What the file holds, whichever names its layers have: those of diffusers, or of a program that both know."""
    state, facts = lora.read_lora(one.path, flag=one.flag)
    settings, own_names = lycoris.read_settings(facts, denoiser), lycoris.has_own_names(state)
    if lora.adapter_kind(state) != "lora" and not (own_names and settings):
        raise UserError(f"--init_lora {one.path}: of another program; of a LoKr or LoHa give {lora.FILE_NAME} of a run")
    if FAMILIES[family].DENOISER != "unet" and not own_names:  # diffusers multiplies an alpha into the weights
        state = getattr(diffusers, FAMILIES[family].PIPELINE).lora_state_dict(dict(lora.fold_alphas(state)))
    elif any(key.startswith("lora_") for key in state):
        return Found(*kohya.read_tensors(state, wanted, denoiser, family), {})
    return Found(state, {settings.get("lora_alpha") or settings["alpha"]} if settings else set(), settings)


def find_difference(found: Found, adapter: Adapter, wanted: set[str], has_encoders: bool) -> str | None:
    """What the file has otherwise than the new adapters, with the flag that would make them the same."""
    keys, kind = set(found.state), lora.adapter_kind(found.state)
    if kind != adapter.kind:
        return f"a {lora.LABELS[kind]}, and --adapter is {adapter.kind}; give --adapter {kind}"
    if kind == "lora" and not any("lora_" in key for key in keys):
        return "holds no LoRA; give another file"
    if (factor := found.settings.get("decompose_factor", -1)) != adapter.factor:
        fitting = "leave --lokr_factor out" if factor == -1 else f"give --lokr_factor {factor}"
        return f"a LoKr that was made {'without' if factor == -1 else 'with another'} --lokr_factor; {fitting}"
    if (dora := lora.is_dora(keys)) != adapter.use_dora:
        return "a DoRA; add --use_dora" if dora else "not a DoRA; leave --use_dora out, or give --adapter lora"
    if lora_mix.has_text_layers(keys) != has_encoders:
        if has_encoders:
            return "has no layers of a text encoder; leave --train_text_encoder out"
        of_unet = any(key.startswith("unet.") for key in wanted)  # of the others, the text encoders are never trained
        return f"has layers of a text encoder; {'add --train_text_encoder' if of_unet else 'give another LoRA'}"
    if keys != wanted:
        first, how = (min(keys - wanted), "also has") if keys - wanted else (min(wanted - keys), "lacks")
        names = " ".join(map(str, found.settings.get("target_modules", ())))
        fitting = f"--lora_layers {names}" if names else "the --lora_layers that it was trained with"
        return f"its layers aren't those of --lora_layers: it {how} {first}; give {fitting}"
    ranks = {len(value) for key, value in found.state.items() if ".lora_A." in key} or {found.settings["r"]}
    if len(ranks) > 1 or len(found.alphas) > 1 or found.settings.get("alpha_pattern"):
        return "its layers have several ranks or alphas, and those of a new LoRA share one; give another LoRA"
    if ranks != {adapter.rank}:
        return f"of rank {min(ranks)}, and --rank is {adapter.rank}; give --rank {min(ranks)}"
    return find_other_scale(found, adapter)


def find_other_scale(found: Found, adapter: Adapter) -> str | None:
    """The same of alpha alone: rsLoRA's factor is alpha / sqrt(rank), the others' alpha / rank."""
    root = adapter.rank**0.5
    (alpha,) = found.alphas or {adapter.rank}
    theirs = alpha / (root if found.settings.get("use_rslora") else adapter.rank)
    divisor = root if adapter.use_rslora else adapter.rank
    if math.isclose(theirs, adapter.alpha / divisor, rel_tol=1e-6):
        return None
    ours = f"--lora_alpha {adapter.alpha:g} scales by {adapter.alpha / divisor:g}"
    return f"its output is scaled by {theirs:g}, and {ours}; give --lora_alpha {theirs * divisor:g}"
