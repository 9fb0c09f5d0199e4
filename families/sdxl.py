"""Stable Diffusion XL: two text encoders, a pooled text, and the sizes and crops of images as conditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from families import sd
from families.sd import (
    SECOND_PROMPT_ABOVE,
    TRAINING_GUIDANCE,
    default_sampling,
    has_guidance,
    join_parts,
    latent_multiple,
    lora_targets,
    native_latents,
    predict,
    token_ids,
)

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from families.diffusion import Features

# as in Stable Diffusion 1.x and 2.x
__all__ = [
    "SECOND_PROMPT_ABOVE",
    "TRAINING_GUIDANCE",
    "default_sampling",
    "has_guidance",
    "latent_multiple",
    "lora_targets",
    "native_latents",
    "predict",
    "token_ids",
]
LABELS = {"sdxl": "Stable Diffusion XL"}
CONFIGS = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}
SINGLE_FILE_OPTIONS: dict[str, Any] = {}
DENOISER = "unet"
MODULES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
SCHEDULER = "DDPMScheduler"
SAMPLES_POSTERIOR = True
MAX_SEQUENCE_LENGTH = 77  # tokens of a text
PADS_CAPTIONS = True  # to so many tokens
PIPELINE = "StableDiffusionXLPipeline"
PIPELINE_OPTIONS: dict[str, Any] = {}
TOKENIZERS = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
TEXT_ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
TEXT_WIDTHS = {"sdxl": 2048}
FEATURES = ("embeds", "pooled")  # of a text: (length, width) and (width,)
KOHYA_BASES = {"sdxl": ("sdxl_base_v1-0",) * 2}
ARCHITECTURES = {"sdxl": ("stable-diffusion-xl-v1-base",) * 2}
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
KOHYA_TEXT_ENCODERS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
EMBEDDING_KEYS = ("clip_l", "clip_g")
# Stability AI's names of the layers outside the blocks, and of those in a residual block
OUTER_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESIDUAL_LAYERS = {
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
# The place of a part within a block there; all blocks that end in an upsampler have attention before it.
PLACES = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}


def is_mine(index: dict[str, Any]) -> bool:
    return "unet" in index and "text_encoder_2" in index


def find_version(unet_config: dict[str, Any]) -> str:
    return "sdxl"


def find_file_version(keys: Collection[str]) -> str | None:
    return "sdxl" if any(key.startswith("conditioner.embedders.1.") for key in keys) else None


def empty_prompt_is_zero(index: dict[str, Any]) -> bool:
    return index.get("force_zeros_for_empty_prompt", True)


def encode_text(
    tokenizers: list[CLIPTokenizer],
    encoders: list[CLIPTextModel],
    texts: list[str],
    empty_is_zero: bool = False,
    clip_skip: int = 0,
) -> list[Features]:
    """The last layer but one of both encoders side by side, and what the second one has pooled."""
    import torch

    made = encode_tokens(encoders, token_ids(tokenizers, encoders, texts), clip_skip)
    return [
        {name: torch.zeros_like(one) for name, one in found.items()} if empty_is_zero and text == "" else found
        for text, found in zip(texts, made)
    ]


def encode_tokens(encoders: list[CLIPTextModel], ids: list[torch.Tensor], clip_skip: int = 0) -> list[Features]:
    """Of what `token_ids` gives, `clip_skip` layers earlier; what is pooled is of a text's first part."""
    import torch

    outputs = [encoder(one.flatten(0, 1), output_hidden_states=True) for encoder, one in zip(encoders, ids)]
    embeds = torch.cat([join_parts(one.hidden_states[-2 - clip_skip], len(ids[0])) for one in outputs], dim=-1)
    pooled = outputs[-1].text_embeds.unflatten(0, (len(ids[0]), -1))[:, 0]
    return [{"embeds": row, "pooled": of_row} for row, of_row in zip(embeds, pooled)]


def caption_numbers(configs: Callable[[str], dict[str, Any]], length: int) -> int:
    """How many numbers the features of a caption have, its pooled ones too."""
    return sd.caption_numbers(configs, length) + configs("text_encoder_2/config.json")["projection_dim"]


def build_pipeline(
    unet: UNet2DConditionModel | None, vae: AutoencoderKL | None, scheduler: SchedulerMixin, index: dict[str, Any]
) -> StableDiffusionXLPipeline:
    from diffusers import StableDiffusionXLPipeline

    missing = dict.fromkeys((*TEXT_ENCODERS, *TOKENIZERS, "feature_extractor"))
    return StableDiffusionXLPipeline(unet=unet, vae=vae, scheduler=scheduler, **missing)


def kohya_layer(layer: str, layers_per_block: int) -> str | None:
    """The name of a layer of the UNet in kohya's format, which is Stability AI's; None where it has none."""
    if layer in OUTER_LAYERS:
        return OUTER_LAYERS[layer]
    found = re.fullmatch(r"(down|mid|up)_blocks?\.?(\d*)\.(\w+)\.(\d+)\.(.+)", layer)
    if not found or found[3] not in PLACES:
        return None
    side, block, kind, index, rest = found.groups()
    place = PLACES[kind]
    if kind != "attentions":
        rest = "op" if kind == "downsamplers" else RESIDUAL_LAYERS.get(rest, rest)
    if side == "mid":  # a residual block, attention, a residual block
        return f"middle_block.{place or 2 * int(index)}.{rest}"
    # There the blocks of one size follow those of another without a level of their own.
    number = int(block) * (layers_per_block + 1) + int(index) + ("samplers" in kind) * layers_per_block
    return f"input_blocks.{number + 1}.{place}.{rest}" if side == "down" else f"output_blocks.{number}.{place}.{rest}"
