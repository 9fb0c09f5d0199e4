"""Stable Diffusion XL: two text encoders, a pooled text, and the sizes and crops of images as conditions."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from families.sd import token_ids
from utils.cli import UserError

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from families.diffusion import Text

LABELS = {"sdxl": "Stable Diffusion XL"}
CONFIGS = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}
SINGLE_FILE_OPTIONS: dict[str, Any] = {}
PIPELINE = "StableDiffusionXLPipeline"
PIPELINE_OPTIONS: dict[str, Any] = {}
TOKENIZERS = ("tokenizer", "tokenizer_2")
TEXT_ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
TEXT_WIDTHS = {"sdxl": 2048}
HAS_POOLED_TEXT = True
KOHYA_BASES = {"sdxl": "sdxl_base_v1-0"}
KOHYA_TEXT_ENCODERS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def is_mine(index: dict[str, Any]) -> bool:
    return "unet" in index and "text_encoder_2" in index


def find_version(unet_config: dict[str, Any]) -> str:
    return "sdxl"


def find_file_version(keys: Collection[str]) -> str | None:
    return "sdxl" if any(key.startswith("conditioner.embedders.1.") for key in keys) else None


def empty_prompt_is_zero(index: dict[str, Any]) -> bool:
    return index.get("force_zeros_for_empty_prompt", True)


def encode_text(
    tokenizers: list[CLIPTokenizer], encoders: list[CLIPTextModel], texts: list[str], empty_is_zero: bool = False
) -> Text:
    """The last layer but one of both encoders side by side, and the second one's pooled (n, width)."""
    import torch

    embeds, pooled = encode_tokens(encoders, token_ids(tokenizers, encoders, texts))
    if empty_is_zero:
        kept = torch.tensor([text != "" for text in texts], device=embeds.device)
        embeds, pooled = torch.where(kept[:, None, None], embeds, 0), torch.where(kept[:, None], pooled, 0)
    return embeds, pooled


def encode_tokens(encoders: list[CLIPTextModel], ids: list[torch.Tensor]) -> Text:
    import torch

    outputs = [encoder(one, output_hidden_states=True) for encoder, one in zip(encoders, ids)]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds


def build_pipeline(
    unet: UNet2DConditionModel | None, vae: AutoencoderKL | None, scheduler: SchedulerMixin, empty_is_zero: bool
) -> StableDiffusionXLPipeline:
    from diffusers import StableDiffusionXLPipeline

    missing = dict.fromkeys((*TEXT_ENCODERS, *TOKENIZERS, "feature_extractor"))
    return StableDiffusionXLPipeline(
        unet=unet, vae=vae, scheduler=scheduler, force_zeros_for_empty_prompt=empty_is_zero, **missing
    )


def kohya_layer(layer: str, layers_per_block: int) -> str:
    """kohya's format counts the blocks of SDXL as Stability AI's code does."""
    found = re.fullmatch(r"(down_blocks\.|up_blocks\.|mid_block)(\d*)\.attentions\.(\d+)\.(.+)", layer)
    if not found:
        raise UserError(
            f"--output_kohya_format: {layer} has no name in that format for SDXL; "
            "keep --lora_layers to the attention blocks"
        )
    side, block, index, rest = found.groups()
    number = int(block or 0) * (layers_per_block + 1) + int(index)
    places = {"down_blocks.": f"input_blocks_{number + 1}", "up_blocks.": f"output_blocks_{number}"}
    return f"{places.get(side, 'middle_block')}_1_{rest}"
