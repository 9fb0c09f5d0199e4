"""Stable Diffusion 1.x and 2.x: one text encoder, whose last layer the UNet reads.

Every family has a module with these names; families.names.FAMILIES lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from families.diffusion import Features

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
LABELS = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x"}
# Where the configs of a single file come from, which holds weights alone. Nothing for 2.x, whose files don't say
# whether the model predicts noise (2.1-base) or velocity (2.1), and the wrong one would ruin the training unnoticed.
CONFIGS = {"sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2": None}
SINGLE_FILE_OPTIONS = {"safety_checker": None, "feature_extractor": None}
DENOISER = "unet"
MODULES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
SCHEDULER = "DDPMScheduler"
SAMPLES_POSTERIOR = True  # of the VAE in training; otherwise it takes the mean
MAX_SEQUENCE_LENGTH = 77  # tokens of a text
PADS_CAPTIONS = True  # to so many tokens
PIPELINE = "StableDiffusionPipeline"
PIPELINE_OPTIONS = {"safety_checker": None, "requires_safety_checker": False}
TOKENIZERS = {"tokenizer": "CLIPTokenizer"}
TEXT_ENCODERS = {"text_encoder": "CLIPTextModel"}
TEXT_WIDTHS = {"sd1": 768, "sd2": 1024}  # of the text features that the attention layers read
FEATURES = ("embeds",)  # of a text: (length, width)
STEPS = 25  # by DPM-Solver++
SECOND_PROMPT_ABOVE = 1.0  # this guidance scale, the denoiser reads the negative prompt too
TRAINING_GUIDANCE: float | None = None  # none is read as a number
# In other programs, where it predicts noise and where it predicts velocity
KOHYA_BASES = {"sd1": ("sd_v1", "sd_v1_v"), "sd2": ("sd_v2", "sd_v2_v")}
ARCHITECTURES = {"sd1": ("stable-diffusion-v1",) * 2, "sd2": ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v")}
IMPLEMENTATION = "diffusers"  # whose names the layers of a LoRA have
KOHYA_TEXT_ENCODERS = {"text_encoder": "lora_te"}
EMBEDDING_KEYS = ("clip_l",)  # of a word's file


def is_mine(index: dict[str, Any]) -> bool:
    """Whether a model_index.json is one of this family."""
    return "unet" in index and "text_encoder_2" not in index


def find_version(unet_config: dict[str, Any]) -> str:
    return "sd2" if unet_config["cross_attention_dim"] == TEXT_WIDTHS["sd2"] else "sd1"


def find_file_version(keys: Collection[str]) -> str | None:
    """The version of a single file with tensors of these names; None: not of this family."""
    if not any(key.startswith("cond_stage_model.") for key in keys):
        return None
    return "sd2" if any(key.startswith("cond_stage_model.model.") for key in keys) else "sd1"


def empty_prompt_is_zero(index: dict[str, Any]) -> bool:
    """Whether the pipeline takes zeros for no prompt, and not what the encoders make of an empty text."""
    return False


def count_parts(length: int) -> int:
    """The parts of 75 tokens that a text of so many, with its begin and end, is encoded in."""
    return (length - 2) // (MAX_SEQUENCE_LENGTH - 2)


def joined_length(length: int, at_once: int) -> int:
    """`length` where so many tokens, and not MAX_SEQUENCE_LENGTH, are the most that are read at once."""
    return 2 + count_parts(length) * (min(MAX_SEQUENCE_LENGTH, at_once) - 2)


def token_ids(tokenizers: list[CLIPTokenizer], encoders: list[CLIPTextModel], texts: list[str]) -> list[torch.Tensor]:
    """(n, parts, length) for each encoder, on its device: padded, and cut off at the tokenizer's limit.

    Of a text that is longer than the encoder can read, each part has a begin and an end of its own.
    """
    import torch

    found = []
    for tokenizer, encoder in zip(tokenizers, encoders):
        most, inner = tokenizer.model_max_length - 2, _at_once(tokenizer, encoder) - 2
        words = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=most).input_ids
        parts = [[ids[start : start + inner] for start in range(0, most, inner)] for ids in words]
        first, last, empty = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        rows = [[[first, *part, last] + [empty] * (inner - len(part)) for part in text] for text in parts]
        found.append(torch.tensor(rows, device=encoder.device))
    return found


def _at_once(tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> int:
    """The most tokens that go through the encoder together."""
    return min(MAX_SEQUENCE_LENGTH, encoder.config.max_position_embeddings, tokenizer.model_max_length)


def join_parts(hidden: torch.Tensor, texts: int) -> torch.Tensor:
    """(texts, tokens, width) of what the parts give, one after the other: begin and end of the whole text alone."""
    import torch

    parts = hidden.unflatten(0, (texts, -1))
    return torch.cat([parts[:, 0, :1], parts[:, :, 1:-1].flatten(1, 2), parts[:, -1, -1:]], dim=1)


def encode_text(
    tokenizers: list[CLIPTokenizer],
    encoders: list[CLIPTextModel],
    texts: list[str],
    empty_is_zero: bool = False,
    clip_skip: int = 0,
) -> list[Features]:
    """What the pipeline computes from each text; gradients flow to the encoder if the caller wants."""
    return encode_tokens(encoders, token_ids(tokenizers, encoders, texts), clip_skip)


def encode_tokens(encoders: list[CLIPTextModel], ids: list[torch.Tensor], clip_skip: int = 0) -> list[Features]:
    """Of what `token_ids` gives; without the last `clip_skip` layers, but for the norm after them."""
    output = encoders[0](ids[0].flatten(0, 1), output_hidden_states=clip_skip > 0)
    hidden = output.last_hidden_state
    if clip_skip:
        hidden = encoders[0].final_layer_norm(output.hidden_states[-1 - clip_skip])
    return [{"embeds": row} for row in join_parts(hidden, len(ids[0]))]


def caption_numbers(configs: Callable[[str], dict[str, Any]], length: int) -> int:
    """How many numbers the features of a caption of so many tokens have; `configs` reads one of the model's folder."""
    at_once = configs("text_encoder/config.json")["max_position_embeddings"]
    return joined_length(length, at_once) * configs("unet/config.json")["cross_attention_dim"]


def lora_targets(unet_config: dict[str, Any]) -> tuple[str, ...]:
    """The layers of the denoiser that a LoRA has by default."""
    return ATTENTION


def latent_multiple(unet_config: dict[str, Any]) -> int:
    """What the sides of latents must be multiples of, so that every level of the UNet can halve them."""
    levels = unet_config.get("block_out_channels", (320, 640, 1280, 1280))  # a config may leave out diffusers' defaults
    return 2 ** (len(levels) - 1)


def native_latents(unet_config: dict[str, Any]) -> int | None:
    """The side of the latents that the model was trained on; None where its config names no one side."""
    side = unet_config.get("sample_size")
    return side if isinstance(side, int) else None


def default_sampling(configs: Callable[[str], dict[str, Any]]) -> tuple[int, float]:
    """Steps and guidance scale of images, where the user gives none."""
    return STEPS, 7.5


def has_guidance(configs: Callable[[str], dict[str, Any]]) -> bool:
    """Whether a guidance scale changes the images of the model with these configs."""
    return True


def predict(
    unet: UNet2DConditionModel,
    noisy: torch.Tensor,
    times: torch.Tensor,
    texts: list[Features],
    time_ids: torch.Tensor,
    guidance: float | None = None,
) -> torch.Tensor:
    """The UNet's prediction; `time_ids` are SDXL's sizes and crops, `guidance` FLUX's: others do not see them."""
    from families.diffusion import size_conditions, stack

    return unet(noisy, times, stack(texts, "embeds"), **size_conditions(texts, time_ids)).sample


def build_pipeline(
    unet: UNet2DConditionModel | None, vae: AutoencoderKL | None, scheduler: SchedulerMixin, index: dict[str, Any]
) -> StableDiffusionPipeline:
    """For prompts that are already encoded."""
    from diffusers import StableDiffusionPipeline

    missing = dict.fromkeys((*TEXT_ENCODERS, *TOKENIZERS, "feature_extractor"))
    return StableDiffusionPipeline(unet=unet, vae=vae, scheduler=scheduler, **missing, **PIPELINE_OPTIONS)


def kohya_layer(layer: str, layers_per_block: int) -> str | None:
    """The name of a layer of the UNet in kohya's format; None where it has none."""
    return layer
