"""FLUX.2 Klein, 4B and 9B: flow matching in patches of latents, beside what three layers of Qwen3 make of a caption."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from families.z_image import PATCH, empty_prompt_is_zero, find_file_version, latent_multiple, native_latents, read_turn

if TYPE_CHECKING:
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

    from families.diffusion import Features

# as in Z-Image
__all__ = ["empty_prompt_is_zero", "find_file_version", "latent_multiple", "native_latents"]
LABELS = {"flux2_klein": "FLUX.2 Klein"}
DENOISER = "transformer"
MODULES = {"transformer": "Flux2Transformer2DModel", "vae": "AutoencoderKLFlux2"}
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SAMPLES_POSTERIOR = False  # of the VAE in training: it takes the mean
PIPELINE = "Flux2KleinPipeline"
PIPELINE_OPTIONS: dict[str, Any] = {}
CONFIGS: dict[str, str | None] = {"flux2_klein": None}
TOKENIZERS = {"tokenizer": "Qwen2Tokenizer"}
TEXT_ENCODERS = {"text_encoder": "Qwen3ForCausalLM"}
FEATURES = ("embeds",)  # of a caption: (512, three widths), with those of its padding, which the transformer reads too
LAYERS = (9, 18, 27)  # of the text encoder
KOHYA_BASES: dict[str, tuple[str, str]] = {}
TEXT_WIDTHS: dict[str, int] = {}
MAX_SEQUENCE_LENGTH = 512  # tokens that the pipeline reads
PADS_CAPTIONS = True  # to so many tokens
SECOND_PROMPT_ABOVE = 1.0  # this guidance scale, the denoiser reads the negative prompt too
# What a transformer with `guidance_embeds` reads in training, by default, as in diffusers' script
TRAINING_GUIDANCE = 3.5
PIPELINE_GUIDANCE = "guidance_scale={:g}"  # the pipeline's arguments for a guidance scale


def is_mine(index: dict[str, Any]) -> bool:
    """Whether a model_index.json is one of this family; FLUX.2 dev has another text encoder."""
    parts = (*index.get("transformer", ()), *index.get("text_encoder", ()))
    return "Flux2Transformer2DModel" in parts and "Qwen3ForCausalLM" in parts


def find_version(config: dict[str, Any]) -> str:
    return "flux2_klein"


def lora_targets(config: dict[str, Any]) -> tuple[str, ...]:
    """The layers that a LoRA has by default: attention, in the single blocks with the layers that are one with it."""
    single = (f"single_transformer_blocks.{n}.attn.to_out" for n in range(config["num_single_layers"]))
    return ("to_k", "to_q", "to_v", "to_out.0", "to_qkv_mlp_proj", *single)


def encode_text(
    tokenizers: list[Qwen2Tokenizer], encoders: list[Qwen3ForCausalLM], texts: list[str], empty_is_zero: bool = False
) -> list[Features]:
    """What the pipeline makes of each text: three layers side by side, of a user's turn in a chat, padded."""
    (tokenizer,), (encoder,) = tokenizers, encoders
    made: list[Features] = []
    for text in texts:
        found = read_turn(tokenizer, text, thinking=False, padding="max_length").to(encoder.device)
        made += encode_tokens([encoder], [found.input_ids], found.attention_mask)
    return made


def encode_tokens(
    encoders: list[Qwen3ForCausalLM], ids: list[torch.Tensor], mask: torch.Tensor | None = None
) -> list[Features]:
    import torch

    text_model = encoders[0].model  # without the head, which only a chat needs
    layers = text_model(ids[0], attention_mask=mask, output_hidden_states=True).hidden_states
    return [{"embeds": row} for row in torch.cat([layers[n] for n in LAYERS], dim=-1)]


def caption_numbers(configs: Callable[[str], dict[str, Any]], length: int) -> int:
    """How many numbers the features of a caption have, padded to so many tokens; `configs` reads one of the folder."""
    return length * configs("transformer/config.json")["joint_attention_dim"]


def default_sampling(configs: Callable[[str], dict[str, Any]]) -> tuple[int, float]:
    """Steps and guidance scale of images, where the user gives none: a distilled model takes 4 without guidance."""
    return (4, 1.0) if configs("model_index.json").get("is_distilled") else (50, 4.0)


def has_guidance(configs: Callable[[str], dict[str, Any]]) -> bool:
    """Whether a guidance scale changes the images of the model with these configs; a distilled one has none."""
    return not configs("model_index.json").get("is_distilled")


def mu(config: dict[str, Any], width: int, height: int) -> float:
    """What the pipeline gives a scheduler for a size in latents, for its default number of steps."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    from families.flow import STEPS

    return compute_empirical_mu((width // PATCH) * (height // PATCH), STEPS)


def predict(
    transformer: Flux2Transformer2DModel,
    noisy: torch.Tensor,
    times: torch.Tensor,
    texts: list[Features],
    time_ids: torch.Tensor | None = None,
    guidance: float | None = TRAINING_GUIDANCE,
) -> torch.Tensor:
    """The velocity; the pipeline gives no guidance, even to a transformer with `guidance_embeds`."""
    from diffusers import Flux2KleinPipeline as Pipeline

    from families.diffusion import stack

    patches, embeds = Pipeline._patchify_latents(noisy.to(transformer.dtype)), stack(texts, "embeds")
    found = transformer(
        hidden_states=Pipeline._pack_latents(patches),
        timestep=times * 1000 / 1000,  # as the pipeline has it, to the last bit
        guidance=times.new_full(times.shape, guidance) if transformer.config.guidance_embeds else None,
        encoder_hidden_states=embeds,
        txt_ids=Pipeline._prepare_text_ids(embeds).to(noisy.device),
        img_ids=Pipeline._prepare_latent_ids(patches).to(noisy.device),
        return_dict=False,
    )[0]
    return Pipeline._unpatchify_latents(found.transpose(1, 2).reshape(patches.shape))


def prompt_arguments(prompts: list[Features], negative: list[Features], guidance: float) -> dict[str, Any]:
    """What the pipeline takes for prompts that are already encoded, and for guidance."""
    from families.diffusion import stack

    embeds, others = (stack(texts, "embeds") for texts in (prompts, negative))
    return {"prompt_embeds": embeds, "negative_prompt_embeds": others, "guidance_scale": guidance}


def to_vae(vae: AutoencoderKLFlux2, latents: torch.Tensor, side: int) -> torch.Tensor:
    """What the VAE decodes, of what the pipeline ends with: the same."""
    return latents.to(vae.dtype)


def build_pipeline(
    transformer: Flux2Transformer2DModel | None,
    vae: AutoencoderKLFlux2 | None,
    scheduler: FlowMatchEulerDiscreteScheduler,
    index: dict[str, Any],
) -> Flux2KleinPipeline:
    """For prompts that are already encoded; one of a distilled model has no guidance."""
    from diffusers import Flux2KleinPipeline

    distilled = index.get("is_distilled", False)
    return Flux2KleinPipeline(scheduler, vae, None, None, transformer, distilled)
