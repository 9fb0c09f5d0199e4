"""FLUX.1 dev and schnell: flow matching in patches of latents, beside what T5 and CLIP make of a caption."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from families.z_image import PATCH, empty_prompt_is_zero, find_file_version, latent_multiple, mu, native_latents

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    from families.diffusion import Features

# as in Z-Image
__all__ = ["empty_prompt_is_zero", "find_file_version", "latent_multiple", "mu", "native_latents"]
LABELS = {"flux1": "FLUX.1"}
DENOISER = "transformer"
MODULES = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"}
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SAMPLES_POSTERIOR = True  # of the VAE in training; otherwise it takes the mean
PIPELINE = "FluxPipeline"
PIPELINE_OPTIONS: dict[str, Any] = {}
CONFIGS: dict[str, str | None] = {"flux1": None}
TOKENIZERS = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5Tokenizer"}
TEXT_ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}
# Of a caption: T5's (512, width), of schnell (256, width), with those of its padding, and CLIP's pooled (width,)
FEATURES = ("embeds", "pooled")
KOHYA_BASES: dict[str, tuple[str, str]] = {}
TEXT_WIDTHS: dict[str, int] = {}
MAX_SEQUENCE_LENGTH = 512  # tokens that the pipeline reads; schnell's own tokenizer stops at 256
PADS_CAPTIONS = True  # to so many tokens
TRAINING_GUIDANCE = 3.5  # what dev reads, by default, as in diffusers' script and in its pipeline
SECOND_PROMPT_ABOVE = None  # a negative prompt is not supported here: dev reads the scale as a number
PIPELINE_GUIDANCE = "guidance_scale={:g}"  # the pipeline's arguments for a guidance scale


def is_mine(index: dict[str, Any]) -> bool:
    """Whether a model_index.json is one of this family; Kontext, Fill and those with controls have other pipelines."""
    return index.get("_class_name") == PIPELINE


def find_version(config: dict[str, Any]) -> str:
    return "flux1"


def lora_targets(config: dict[str, Any]) -> tuple[str, ...]:
    """The layers that a LoRA has by default: as in diffusers' script, the feed-forward layers of double blocks too."""
    image, text = ("to_k", "to_q", "to_v", "to_out.0"), ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
    return (
        *(f"attn.{layer}" for layer in (*image, *text)),
        *(f"{part}.{layer}" for part in ("ff", "ff_context") for layer in ("net.0.proj", "net.2")),
    )


def encode_text(
    tokenizers: list[CLIPTokenizer | T5Tokenizer],
    encoders: list[CLIPTextModel | T5EncoderModel],
    texts: list[str],
    empty_is_zero: bool = False,
) -> list[Features]:
    """What the pipeline makes of each text; a limit of tokens is T5's, and CLIP reads what it can."""
    limits = (encoders[0].config.max_position_embeddings, tokenizers[1].model_max_length)
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = [
        tokenizer(texts, max_length=limit, **options).input_ids.to(encoder.device)
        for tokenizer, encoder, limit in zip(tokenizers, encoders, limits)
    ]
    return encode_tokens(encoders, ids)


def encode_tokens(encoders: list[CLIPTextModel | T5EncoderModel], ids: list[torch.Tensor]) -> list[Features]:
    pooled, embeds = encoders[0](ids[0]).pooler_output, encoders[1](ids[1]).last_hidden_state
    return [{"embeds": row, "pooled": of_row} for row, of_row in zip(embeds, pooled)]


def caption_numbers(configs: Callable[[str], dict[str, Any]], length: int) -> int:
    """How many numbers the features of a caption have, padded to so many tokens; `configs` reads one of the folder."""
    config = configs("transformer/config.json")
    return length * config["joint_attention_dim"] + config["pooled_projection_dim"]


def default_sampling(configs: Callable[[str], dict[str, Any]]) -> tuple[int, float]:
    """Steps and guidance scale of images, where the user gives none: schnell, of a fixed shift, takes 4 without."""
    steps = 28 if configs("scheduler/scheduler_config.json").get("use_dynamic_shifting") else 4
    return steps, TRAINING_GUIDANCE if has_guidance(configs) else 0.0


def has_guidance(configs: Callable[[str], dict[str, Any]]) -> bool:
    """Whether a guidance scale changes the images of the model with these configs: dev's."""
    return bool(configs("transformer/config.json").get("guidance_embeds"))


def predict(
    transformer: FluxTransformer2DModel,
    noisy: torch.Tensor,
    times: torch.Tensor,
    texts: list[Features],
    time_ids: torch.Tensor | None = None,
    guidance: float | None = TRAINING_GUIDANCE,
) -> torch.Tensor:
    """The velocity; only dev reads the guidance."""
    from diffusers import FluxPipeline as Pipeline

    from families.diffusion import stack

    (height, width), embeds = noisy.shape[2:], stack(texts, "embeds")
    places = {"device": noisy.device, "dtype": embeds.dtype}
    found = transformer(
        hidden_states=Pipeline._pack_latents(noisy.to(transformer.dtype), *noisy.shape),
        timestep=times * 1000 / 1000,  # as the pipeline has it, to the last bit
        guidance=times.new_full(times.shape, guidance) if transformer.config.guidance_embeds else None,
        pooled_projections=stack(texts, "pooled"),
        encoder_hidden_states=embeds,
        txt_ids=embeds.new_zeros(embeds.shape[1], 3),
        img_ids=Pipeline._prepare_latent_image_ids(len(noisy), height // PATCH, width // PATCH, **places),
        return_dict=False,
    )[0]
    return Pipeline._unpack_latents(found, height, width, 1)


def prompt_arguments(prompts: list[Features], negative: list[Features], guidance: float) -> dict[str, Any]:
    """What the pipeline takes for prompts that are already encoded, and for guidance; no negative ones."""
    from families.diffusion import stack

    embeds, pooled = (stack(prompts, name) for name in FEATURES)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "guidance_scale": guidance}


def to_vae(vae: AutoencoderKL, latents: torch.Tensor, side: int) -> torch.Tensor:
    """What the VAE decodes, of what the pipeline ends with; `side`: of an image's latents."""
    from diffusers import FluxPipeline

    from families.latents import unscale

    return unscale(vae, FluxPipeline._unpack_latents(latents, side, side, 1))


def build_pipeline(
    transformer: FluxTransformer2DModel | None,
    vae: AutoencoderKL | None,
    scheduler: FlowMatchEulerDiscreteScheduler,
    index: dict[str, Any],
) -> FluxPipeline:
    """For prompts that are already encoded."""
    from diffusers import FluxPipeline

    missing = dict.fromkeys((*TEXT_ENCODERS, *TOKENIZERS))
    return FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **missing)
