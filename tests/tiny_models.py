"""Pipelines of each family, far too small to draw anything, built from configs with the demo's tokenizer."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from families.diffusion import Diffusion
from families.models import DEMO_MODEL
from families.published import bytes_tokenizer, letters_tokenizer

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
DDPM = Diffusion(DDPMScheduler(**NOISE))


def text_config(width: int, **more) -> CLIPTextConfig:
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    ids = {"vocab_size": 663, "bos_token_id": 661, "eos_token_id": 662, "pad_token_id": 662}
    return CLIPTextConfig(**sizes, **ids, max_position_embeddings=32, **more)


def tiny_vae(**more) -> AutoencoderKL:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, **kinds, **more)


def tiny_z_image() -> ZImagePipeline:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    transformer = ZImageTransformer2DModel(
        dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4]
    )
    for name, weight in transformer.named_parameters():  # which begin as zeros
        if "pad_token" in name:
            torch.nn.init.normal_(weight)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),  # Turbo's
        vae=tiny_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Qwen3Model(Qwen3Config(vocab_size=259, max_position_embeddings=512, **sizes, **heads)),
        tokenizer=bytes_tokenizer(259, model_max_length=512),
        transformer=transformer,
    )


def tiny_flux2_klein(guidance_embeds: bool = False, distilled: bool = False) -> Flux2KleinPipeline:
    """Of the base model's kind, by default."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 28, "head_dim": 8}  # three of them count
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKLFlux2(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, **kinds)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(vocab_size=259, max_position_embeddings=512, **sizes, **heads)),
        tokenizer=bytes_tokenizer(259, model_max_length=512),
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ),
        is_distilled=distilled,
    )


def tiny_qwen_image() -> QwenImagePipeline:
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 1024}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}}
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=eyes))
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, -0.4],
            latents_std=[2.0, 1.5, 0.5, 3.0],
        ),
        text_encoder=encoder,
        tokenizer=bytes_tokenizer(259, model_max_length=1024),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def tiny_flux1(guidance_embeds: bool = True) -> FluxPipeline:
    """Of dev's kind, or without guidance of schnell's."""
    second = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        vae=tiny_vae(latent_channels=4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(text_config(16)),
        tokenizer=CLIPTokenizer.from_pretrained(DEMO_MODEL, subfolder="tokenizer"),
        text_encoder_2=T5EncoderModel(T5Config(**second, feed_forward_proj="gated-gelu", dropout_rate=0.0)),
        tokenizer_2=letters_tokenizer(100, model_max_length=512),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
    )


# Those of flow matching
OF_FLOW = {"z_image": tiny_z_image, "flux2_klein": tiny_flux2_klein, "qwen_image": tiny_qwen_image, "flux1": tiny_flux1}


def build_tiny(folder: Path, family: str) -> str:
    """A saved pipeline of `sd1`, `sd2` (predicting velocity), `sdxl`, or a family of OF_FLOW."""
    torch.manual_seed(0)
    if family in OF_FLOW:
        OF_FLOW[family]().save_pretrained(folder, safe_serialization=True)
        return str(folder)
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
        width = 1024 if family == "sd2" else 16  # by which the family is known
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
    if family in OF_FLOW:
        return smaller_flow(family)
    width = {"sd1": 32, "sd2": 1024, "sdxl": 48}[family]  # of all text features; by 1024 sd2 is known
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


def smaller_flow(family: str) -> dict:
    """The same of a family of flow matching."""
    vae = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    if family == "flux1":
        return smaller_flux1(vae)
    encoder = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 300}
    encoder |= {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8}
    transformer = {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    transformer |= {"cap_feat_dim": 16, "axes_dims": (8, 4, 4)}
    if family == "flux2_klein":
        encoder |= {"num_hidden_layers": 28}
        transformer = {"num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
        transformer |= {"joint_attention_dim": 48, "axes_dims_rope": (4, 4, 4, 4)}
    if family == "qwen_image":
        vae = {"base_dim": 8, "dim_mult": [1, 1, 1, 2], "num_res_blocks": 1}
        text = encoder | {"head_dim": 8, "max_position_embeddings": 1024}
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}}
        eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
        encoder = {"text_config": text, "vision_config": eyes}
        transformer = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
        transformer |= {"joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)}
    return {"vae/config.json": vae, "transformer/config.json": transformer, "text_encoder/config.json": encoder}


def smaller_flux1(vae: dict) -> dict:
    """The same of FLUX.1, with these changes of its VAE."""
    transformer = {"num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    transformer |= {"joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6)}
    clip = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    t5 = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 120}
    return {
        "vae/config.json": vae,
        "transformer/config.json": transformer,
        "text_encoder/config.json": clip | {"vocab_size": 700},
        "text_encoder_2/config.json": t5,
    }
