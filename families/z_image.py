"""Z-Image and Z-Image-Turbo: flow matching by one transformer over image and caption, which Qwen3 has read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from families.sd import ATTENTION

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import BatchEncoding, Qwen2Tokenizer, Qwen3Model

    from families.diffusion import Features

LABELS = {"z_image": "Z-Image"}
DENOISER = "transformer"
MODULES = {"transformer": "ZImageTransformer2DModel", "vae": "AutoencoderKL"}
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SAMPLES_POSTERIOR = False  # of the VAE in training: it takes the mean
PIPELINE = "ZImagePipeline"
PIPELINE_OPTIONS: dict[str, Any] = {}
CONFIGS: dict[str, str | None] = {"z_image": None}
TOKENIZERS = {"tokenizer": "Qwen2Tokenizer"}
TEXT_ENCODERS = {"text_encoder": "Qwen3Model"}
FEATURES = ("embeds",)  # of a caption: (length, width), as long as it is
KOHYA_BASES: dict[str, tuple[str, str]] = {}
TEXT_WIDTHS: dict[str, int] = {}
MAX_SEQUENCE_LENGTH = 512  # tokens that the pipeline reads
PADS_CAPTIONS = False  # they are as long as their texts
PATCH = 2  # latents that are one token, along a side
TURBO_SHIFT = 3.0  # of the noise of Turbo, by which it is known; the base model has 6
SECOND_PROMPT_ABOVE = 0.0  # this guidance scale, the denoiser reads the negative prompt too
TRAINING_GUIDANCE: float | None = None  # none is read as a number
PIPELINE_GUIDANCE = "guidance_scale={:g}"  # the pipeline's arguments for a guidance scale


def is_mine(index: dict[str, Any]) -> bool:
    """Whether a model_index.json is one of this family."""
    return "ZImageTransformer2DModel" in index.get("transformer", ())


def find_version(config: dict[str, Any]) -> str:
    return "z_image"


def find_file_version(keys: Collection[str]) -> str | None:
    """None: a single file of it can't be read yet."""
    return None


def lora_targets(config: dict[str, Any]) -> tuple[str, ...]:
    """The layers that a LoRA has by default: attention, as in diffusers' script."""
    return ATTENTION


def latent_multiple(config: dict[str, Any]) -> int:
    """What the sides of latents must be multiples of."""
    return PATCH


def native_latents(config: dict[str, Any]) -> int:
    """The side of the latents of 1024 pixels, which the pipeline draws by default."""
    return 128


def empty_prompt_is_zero(index: dict[str, Any]) -> bool:
    return False


def read_turn(tokenizer: Qwen2Tokenizer, text: str, thinking: bool, **options: Any) -> BatchEncoding:
    """The tokens of a user's turn in a chat, cut off at the tokenizer's limit."""
    turn = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    return tokenizer(chat, max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt", **options)


def encode_text(
    tokenizers: list[Qwen2Tokenizer], encoders: list[Qwen3Model], texts: list[str], empty_is_zero: bool = False
) -> list[Features]:
    """What the pipeline makes of each text: the last layer but one, of a user's turn in a chat.

    Each text by itself: the pipeline pads them, and leaves out again what it made of the padding.
    """
    (tokenizer,), (encoder,) = tokenizers, encoders
    made: list[Features] = []
    for text in texts:
        made += encode_tokens([encoder], [read_turn(tokenizer, text, thinking=True).input_ids.to(encoder.device)])
    return made


def encode_tokens(encoders: list[Qwen3Model], ids: list[torch.Tensor]) -> list[Features]:
    hidden = encoders[0](ids[0], output_hidden_states=True).hidden_states
    return [{"embeds": row} for row in hidden[-2]]


def caption_numbers(configs: Callable[[str], dict[str, Any]], length: int) -> int:
    """How many numbers the features of a caption of so many tokens have; `configs` reads one of the model's folder."""
    return length * configs("transformer/config.json")["cap_feat_dim"]


def default_sampling(configs: Callable[[str], dict[str, Any]]) -> tuple[int, float]:
    """Steps and guidance scale of images, where the user gives none: Turbo was distilled to 8 without guidance."""
    config = configs("scheduler/scheduler_config.json")
    return (8, 0.0) if config.get("shift") == TURBO_SHIFT else (28, 4.0)


def has_guidance(configs: Callable[[str], dict[str, Any]]) -> bool:
    """Whether a guidance scale changes the images of the model with these configs."""
    return True


def mu(config: dict[str, Any], width: int, height: int) -> float:
    """What the pipeline gives a scheduler of this config for a size in latents; one of a fixed shift ignores it."""
    from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift

    limits = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift((width // PATCH) * (height // PATCH), *(config[name] for name in limits))


def predict(
    transformer: ZImageTransformer2DModel,
    noisy: torch.Tensor,
    times: torch.Tensor,
    texts: list[Features],
    time_ids: torch.Tensor | None = None,
    guidance: float | None = None,
) -> torch.Tensor:
    """The velocity. The model reads the share of the image, 1 - σ, and returns the velocity's negative."""
    import torch

    images = list(noisy.to(transformer.dtype).unsqueeze(2).unbind())  # each one a video of one frame
    done = (1000 - times * 1000) / 1000  # as the pipeline has it, to the last bit
    found = transformer(images, done, [text["embeds"] for text in texts], return_dict=False)[0]
    return -torch.stack(found).squeeze(2)


def prompt_arguments(prompts: list[Features], negative: list[Features], guidance: float) -> dict[str, Any]:
    """What the pipeline takes for prompts that are already encoded, and for guidance."""
    return {
        "guidance_scale": guidance,
        "prompt_embeds": [one["embeds"] for one in prompts],
        "negative_prompt_embeds": [one["embeds"] for one in negative],
    }


def to_vae(vae: AutoencoderKL, latents: torch.Tensor, side: int) -> torch.Tensor:
    """What the VAE decodes, of what the pipeline ends with; `side`: of an image's latents."""
    from families.latents import unscale

    return unscale(vae, latents)


def build_pipeline(
    transformer: ZImageTransformer2DModel | None,
    vae: AutoencoderKL | None,
    scheduler: FlowMatchEulerDiscreteScheduler,
    index: dict[str, Any],
) -> ZImagePipeline:
    """For prompts that are already encoded."""
    from diffusers import ZImagePipeline

    return ZImagePipeline(scheduler, vae, text_encoder=None, tokenizer=None, transformer=transformer)
