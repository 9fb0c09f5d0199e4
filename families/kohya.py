"""A LoRA and its word as A1111, ComfyUI and kohya's scripts read them: their names of layers, their metadata."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import LoKrConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save

from families.lora import ADAPTER, Module
from families.names import FAMILIES, LABELS
from families.tokens import Token
from utils.files import write_safetensors


def lora_name(run: str) -> str:
    return f"{run}_kohya.safetensors"


def word_name(run: str) -> str:
    """Of the file of a word; without its ending it is what these programs' prompts say for the word."""
    return f"{'_'.join(run.split())}_word.safetensors"


def find_obstacle(unet: Module, family: str) -> str | None:
    """Why these adapters can't be written in this format; None where they can."""
    if family not in FAMILIES[family].KOHYA_BASES:
        return f"it has no names for {LABELS[family]}"
    if getattr(unet.peft_config[ADAPTER], "use_dora", False):
        return "its readers compute a DoRA (--use_dora) in another way, and the images would change"
    layers = [name for name, layer in unet.named_modules() if isinstance(layer, BaseTunerLayer)]
    count = unet.config.layers_per_block
    nameless = next((name for name in layers if FAMILIES[family].kohya_layer(name, count) is None), None)
    return f"{nameless} (--lora_layers) has no name in it" if nameless else None


def kohya_tensors(
    state: dict[str, torch.Tensor], unet: Module, text_encoders: Iterable[Module], family: str
) -> dict[str, torch.Tensor]:
    """The weights by the names of A1111, ComfyUI and kohya's scripts, and the alpha of every layer as a tensor."""
    parts = {"unet": unet, **dict(zip(FAMILIES[family].TEXT_ENCODERS, text_encoders))}
    tensors: dict[str, torch.Tensor] = {}
    if unet.peft_config[ADAPTER].peft_type == "LOKR":
        state = _whole_factors(state, unet.peft_config[ADAPTER])
    for key, value in state.items():
        tensors[name := _tensor_name(key, family, unet)] = value
        config = parts[key.partition(".")[0]].peft_config[ADAPTER]
        tensors[f"{name.partition('.')[0]}.alpha"] = torch.tensor(_alpha(config), dtype=value.dtype)
    return tensors


def _whole_factors(state: dict[str, torch.Tensor], config: LoKrConfig) -> dict[str, torch.Tensor]:
    """The two factors of every layer of a LoKr as they multiply, with alpha in the first.

    Where a factor is a product, A1111 fails to read its rank; where neither is, no reader reads an alpha.
    """
    factors: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        if name == "lokr_w1":
            factors[key] = value * (config.alpha / config.r)
        elif name == "lokr_w2":
            factors[key] = value
        elif name == "lokr_w2_a":
            factors[f"{layer}.lokr_w2"] = value @ state[f"{layer}.lokr_w2_b"]
    return factors


def read_tensors(
    tensors: dict[str, torch.Tensor], keys: Iterable[str], unet: Module, family: str
) -> tuple[dict[str, torch.Tensor], set[float]]:
    """What `kohya_tensors` made, by these keys of diffusers as far as they fit, and all that it has as alpha."""
    names = {_tensor_name(key, family, unet): key for key in keys if ".lora_magnitude" not in key}
    alphas = {value.item() for name, value in tensors.items() if name.endswith(".alpha")}
    state = {names.get(name, name): value for name, value in tensors.items() if not name.endswith(".alpha")}
    return state, alphas


def save_kohya(
    path: Path,
    state: dict[str, torch.Tensor],
    unet: Module,
    text_encoders: Iterable[Module],
    family: str,
    facts: dict[str, str],
) -> Path:
    """Write a LoRA for A1111, ComfyUI and kohya's scripts; `facts`: see lora.describe_lora."""
    tensors = kohya_tensors(state, unet, text_encoders, family)
    about = _kohya_facts(path.stem, unet.peft_config[ADAPTER], tensors, family, facts)
    about |= model_spec(path.stem, "lora", tensors, family, facts)
    about["sshs_model_hash"] = about["modelspec.hash_sha256"].removeprefix("0x")
    write_safetensors(path, tensors, {"format": "pt", **facts, **about})
    return path


def save_word(path: Path, token: Token, family: str, facts: dict[str, str]) -> Path:
    """Write a word for A1111 and ComfyUI: the embeddings of all text encoders in one file."""
    vectors = [vector.detach().to("cpu", torch.float32, copy=True) for vector in token.vectors]
    tensors = dict(zip(FAMILIES[family].EMBEDDING_KEYS, vectors))
    about = model_spec(path.stem, "textual-inversion", tensors, family, facts)
    write_safetensors(path, tensors, {"format": "pt", **facts, **about})
    return path


def _predicts_velocity(facts: dict[str, str]) -> bool:
    return facts.get("prediction_type") == "v_prediction"


def _trigger(facts: dict[str, str]) -> str | None:
    return facts.get("instance_prompt") or facts.get("trigger_word")


def _kohya_facts(
    title: str, config: PeftConfig, tensors: dict[str, torch.Tensor], family: str, facts: dict[str, str]
) -> dict[str, str]:
    """The metadata that kohya's scripts write and other programs show; what is not known is left out."""
    alpha, trigger = str(_alpha(config)), _trigger(facts)
    has_convolutions = any(value.ndim == 4 and value.shape[-1] > 1 for value in tensors.values())
    more = {"conv_dim": str(config.r), "conv_alpha": alpha} if has_convolutions else {}
    more |= {"dropout": str(config.lora_dropout)} if getattr(config, "lora_dropout", 0) else {}
    if config.peft_type != "LORA":
        more |= {"algo": str(config.peft_type).lower()}
        more |= {"factor": str(config.decompose_factor)} if config.peft_type == "LOKR" else {}
    about = {
        "ss_network_module": "networks.lora" if config.peft_type == "LORA" else "lycoris.kohya",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(more),
        "ss_base_model_version": FAMILIES[family].KOHYA_BASES[family][_predicts_velocity(facts)],
        "ss_v2": str(family == "sd2"),
        "ss_output_name": title,
    }
    if base := facts.get("base_model"):
        about["ss_sd_model_name"] = Path(base).name if Path(base).exists() else base
    if side := facts.get("resolution"):
        about["ss_resolution"] = f"({side}, {side})"
    if images := facts.get("images"):
        about["ss_num_train_images"] = images
        # {folder of the images: {tag: how many images have it}}; A1111 offers these tags
        about |= {"ss_tag_frequency": json.dumps({f"1_{trigger}": {trigger: int(images)}})} if trigger else {}
    if skip := facts.get("clip_skip"):
        about["ss_clip_skip"] = str(int(skip) + 1)
    if length := facts.get("max_sequence_length"):
        about["ss_max_token_length"] = str(int(length) - 2)
    if started := facts.get("training_started_at"):
        about["ss_training_started_at"] = started
    return about


def model_spec(
    title: str, kind: str, tensors: dict[str, torch.Tensor], family: str, facts: dict[str, str]
) -> dict[str, str]:
    """Metadata by https://github.com/Stability-AI/ModelSpec, version 1.0.0.

    Of a whole model `kind` is empty, and so are `tensors`: a checksum would take the memory of all of them once more.
    """
    module, velocity = FAMILIES[family], _predicts_velocity(facts)
    about = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{module.ARCHITECTURES[family][velocity]}/{kind}".rstrip("/"),
        "implementation": module.IMPLEMENTATION,
        "title": title,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "prediction_type": "v" if velocity else facts.get("prediction_type", "epsilon"),
    }
    if tensors:
        about["hash_sha256"] = f"0x{_content_sha256(tensors)}"
    if side := facts.get("resolution"):
        about["resolution"] = f"{side}x{side}"
    if trigger := _trigger(facts):
        about["trigger_phrase"] = trigger
    return {f"modelspec.{name}": value for name, value in about.items()}


def _content_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Of all that follows the header of a safetensors file, so that other metadata don't change it."""
    data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    return hashlib.sha256(memoryview(data)[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _alpha(config: PeftConfig) -> float:
    """There a layer's output is scaled by alpha / rank, always; rsLoRA scales by alpha / sqrt(rank)."""
    if config.peft_type != "LORA":
        return float(config.alpha)
    return float(config.lora_alpha * config.r**0.5 if config.use_rslora else config.lora_alpha)


def _tensor_name(key: str, family: str, unet: Module) -> str:
    """The name of a tensor of a diffusers file."""
    part, layer, tensor = re.fullmatch(r"(\w+)\.(.+)\.(lora_[AB]\.weight|(?:lokr|hada)_\w+)", key).groups()
    tensor = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}.get(tensor, tensor)
    return f"{_layer_name(part, layer, family, unet.config.layers_per_block)}.{tensor}"


def _layer_name(part: str, layer: str, family: str, layers_per_block: int) -> str:
    """`unet.mid_block.attentions.0.proj_in` as `lora_unet_mid_block_attentions_0_proj_in`; SDXL counts its own way."""
    module = FAMILIES[family]
    if part == "unet":
        prefix, layer = "lora_unet", module.kohya_layer(layer, layers_per_block)
    else:
        prefix = module.KOHYA_TEXT_ENCODERS[part]
    return f"{prefix}_{layer.replace('.', '_')}"
