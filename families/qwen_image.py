"""Qwen-Image: flow matching in patches of latents of a VAE of videos, beside what Qwen2.5-VL makes of a caption."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from families.z_image import (
    PATCH,
    empty_prompt_is_zero,
    find_file_version,
    latent_multiple,
    lora_targets,
    mu,
    native_latents,
)

if TYPE_CHECKING:
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    from families.diffusion import Features

# as in Z-Image
__all__ = ["empty_prompt_is_zero", "find_file_version", "latent_multiple", "lora_targets", "mu", "native_latents"]
LABELS = {"qwen_image": "Qwen-Image"}
DENOISER = "transformer"
MODULES = {"transformer": "QwenImageTransformer2DModel", "vae": "AutoencoderKLQwenImage"}
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SAMPLES_POSTERIOR = True  # of the VAE in training; otherwise it takes the mean
PIPELINE = "QwenImagePipeline"
PIPELINE_OPTIONS: dict[str, Any] = {}
CONFIGS: dict[str, str | None] = {"qwen_image": None}
TOKENIZERS = {"tokenizer": "Qwen2Tokenizer"}
TEXT_ENCODERS = {"text_encoder": "Qwen2_5_VLForConditionalGeneration"}
FEATURES = ("embeds",)  # of a caption: (length, width), as long as it is; a mask says where the shorter ones are padded
KOHYA_BASES: dict[str, tuple[str, str]] = {}
TEXT_WIDTHS: dict[str, int] = {}
MAX_SEQUENCE_LENGTH = 512  # tokens that the pipeline reads
PADS_CAPTIONS = False  # they are as long as their texts
SECOND_PROMPT_ABOVE = 1.0  # this guidance scale, the denoiser reads the negative prompt too
TRAINING_GUIDANCE: float | None = None  # none is read as a number
PIPELINE_GUIDANCE = "negative_prompt='', true_cfg_scale={:g}"  # the pipeline's arguments for a guidance scale


def is_mine(index: dict[str, Any]) -> bool:
    """Whether a model_index.json is one of this family; those that edit images have other pipelines."""
    return index.get("_class_name") == PIPELINE


def find_version(config: dict[str, Any]) -> str:
    return "qwen_image"


@functools.cache
def chat_of_a_caption() -> tuple[str, int]:
    """The pipeline's words around a caption, and how many tokens of them it leaves out at the front again."""
    from diffusers import QwenImagePipeline

    pipeline = QwenImagePipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=None)
    return pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx


def encode_text(
    tokenizers: list[Qwen2Tokenizer],
    encoders: list[Qwen2_5_VLForConditionalGeneration],
    texts: list[str],
    empty_is_zero: bool = False,
) -> list[Features]:
    """What the pipeline makes of each text: the last layer. Each by itself; padding would change nothing."""
    (tokenizer,), (encoder,) = tokenizers, encoders
    chat, front = chat_of_a_caption()
    made: list[Features] = []
    for text in texts:
        most = front + tokenizer.model_max_length
        ids = tokenizer(chat.format(text), max_length=most, truncation=True, return_tensors="pt").input_ids
        made += [{"embeds": one["embeds"][front:]} for one in encode_tokens([encoder], [ids.to(encoder.device)])]
    return made


def encode_tokens(encoders: list[Qwen2_5_VLForConditionalGeneration], ids: list[torch.Tensor]) -> list[Features]:
    language_model = encoders[0].model.language_model  # without the part that reads images, and a chat's head
    return [{"embeds": row} for row in language_model(ids[0], use_cache=False).last_hidden_state]


def caption_numbers(configs: Callable[[str], dict[str, Any]], length: int) -> int:
    """How many numbers the features of a caption of so many tokens have; `configs` reads one of the model's folder."""
    return length * configs("transformer/config.json")["joint_attention_dim"]


def default_sampling(configs: Callable[[str], dict[str, Any]]) -> tuple[int, float]:
    """Steps and guidance scale of images, where the user gives none."""
    return 50, 4.0


def has_guidance(configs: Callable[[str], dict[str, Any]]) -> bool:
    """Whether a guidance scale changes the images of the model with these configs."""
    return True


def pad(texts: list[Features]) -> tuple[torch.Tensor, torch.Tensor]:
    """The features of texts, as long as the longest, and which of them count."""
    from torch.nn.utils.rnn import pad_sequence

    embeds = pad_sequence([text["embeds"] for text in texts], batch_first=True)
    mask = pad_sequence([text["embeds"].new_ones(len(text["embeds"])) for text in texts], batch_first=True)
    return embeds, mask.bool()


def predict(
    transformer: QwenImageTransformer2DModel,
    noisy: torch.Tensor,
    times: torch.Tensor,
    texts: list[Features],
    time_ids: torch.Tensor | None = None,
    guidance: float | None = None,
) -> torch.Tensor:
    """The velocity."""
    from diffusers import QwenImagePipeline as Pipeline

    (height, width), (embeds, mask) = noisy.shape[2:], pad(texts)
    alike = len({len(text["embeds"]) for text in texts}) == 1
    found = transformer(
        hidden_states=Pipeline._pack_latents(noisy.to(transformer.dtype), *noisy.shape),
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=None if alike else mask,
        timestep=times * 1000 / 1000,  # as the pipeline has it, to the last bit
        img_shapes=[(1, height // PATCH, width // PATCH)] * len(noisy),
        return_dict=False,
    )[0]
    return Pipeline._unpack_latents(found, height, width, 1).squeeze(2)


def prompt_arguments(prompts: list[Features], negative: list[Features], guidance: float) -> dict[str, Any]:
    """What the pipeline takes for prompts that are already encoded, and for guidance."""
    embeds, mask = pad(prompts)
    given = {"prompt_embeds": embeds, "prompt_embeds_mask": mask, "true_cfg_scale": guidance}
    if guidance > SECOND_PROMPT_ABOVE:
        given["negative_prompt_embeds"], given["negative_prompt_embeds_mask"] = pad(negative)
    return given


def to_vae(vae: AutoencoderKLQwenImage, latents: torch.Tensor, side: int) -> torch.Tensor:
    """What the VAE decodes, of what the pipeline ends with; `side`: of an image's latents."""
    from diffusers import QwenImagePipeline

    from families.latents import unscale

    return unscale(vae, QwenImagePipeline._unpack_latents(latents, side, side, 1).squeeze(2))


def build_pipeline(
    transformer: QwenImageTransformer2DModel | None,
    vae: AutoencoderKLQwenImage | None,
    scheduler: FlowMatchEulerDiscreteScheduler,
    index: dict[str, Any],
) -> QwenImagePipeline:
    """For prompts that are already encoded."""
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(scheduler, vae, text_encoder=None, tokenizer=None, transformer=transformer)
