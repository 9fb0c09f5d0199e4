"""Pipelines of each family, far too small to draw anything, built from configs with the demo's tokenizer."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from families.models import DEMO_MODEL

BLOCKS = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}

NOISE = {
    "clip_sample": False,
    "steps_offset": 1,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def text_config(width: int, **more) -> CLIPTextConfig:
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    ids = {"vocab_size": 663, "bos_token_id": 661, "eos_token_id": 662, "pad_token_id": 662}
    return CLIPTextConfig(**sizes, **ids, max_position_embeddings=32, **more)


def tiny_vae() -> AutoencoderKL:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, **kinds)


def build_tiny(folder: Path, family: str) -> str:
    """A saved pipeline of `sd1`, `sd2` (predicting velocity) or `sdxl`."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(DEMO_MODEL, subfolder="tokenizer")
    parts = {"vae": tiny_vae(), "tokenizer": tokenizer}
    if family == "sdxl":
        unet = UNet2DConditionModel(
            cross_attention_dim=40,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 20,
            **BLOCKS,
        )
        pipeline = StableDiffusionXLPipeline(
            unet=unet,
            text_encoder=CLIPTextModel(text_config(16)),
            text_encoder_2=CLIPTextModelWithProjection(text_config(24, projection_dim=20, hidden_act="gelu")),
            tokenizer_2=tokenizer,
            scheduler=DDPMScheduler(**NOISE),
            **parts,
        )
    else:
        width = 1024 if family == "sd2" else 16  # by which the family is told
        pipeline = StableDiffusionPipeline(
            unet=UNet2DConditionModel(cross_attention_dim=width, attention_head_dim=4, **BLOCKS),
            text_encoder=CLIPTextModel(text_config(width)),
            scheduler=DDPMScheduler(prediction_type="v_prediction" if family == "sd2" else "epsilon", **NOISE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return str(folder)


def smaller(family: str) -> dict:
    """Changes that make the published configs of a family (families/published.py) a model of its kind, quickly made."""
    width = {"sd1": 32, "sd2": 1024, "sdxl": 48}[family]  # of all text features; 1024 is what tells sd2
    sizes = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 700}
    unet = BLOCKS | {"attention_head_dim": 4, "cross_attention_dim": width}
    changes = {
        "unet/config.json": unet,
        "vae/config.json": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1},
        "text_encoder/config.json": sizes | {"hidden_size": width},
    }
    if family == "sdxl":
        unet |= {"transformer_layers_per_block": (1, 2), "addition_time_embed_dim": 8}
        unet |= {"projection_class_embeddings_input_dim": 6 * 8 + 20}
        changes["text_encoder/config.json"] = sizes | {"hidden_size": 16}
        changes["text_encoder_2/config.json"] = sizes | {"hidden_size": 32, "projection_dim": 20}
    return changes
