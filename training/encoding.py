"""Phased loading: captions and images are encoded once and kept on disk, and the encoders are freed again."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.training_utils import free_memory
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from families import models, quantized
from families.diffusion import Features
from families.latents import encode_pixels
from families.models import PLAIN_READING, TextReading, choose_encode, report_long_captions
from families.names import FAMILIES
from training.cache import Compute, Index, ensure_cached
from training.examples import Example, View, Views, describe, example_tensor, view_key
from utils.cli import UserError
from utils.files import CHECKSUMS, kept_sha256

logger = logging.getLogger(__name__)
KEPT_BYTES = 1 << 30  # of captions in memory: one of SDXL is 0.6 MB, of FLUX.2 Klein 8 or more
MOST_AT_ONCE = 4  # images: the VAE takes more than 1 GB for one of 512x512


def _tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """A checksum of all that decides which tokens a text becomes."""
    facts = [tokenizer.backend_tokenizer.to_str(), tokenizer.pad_token_id, tokenizer.model_max_length]
    facts += [tokenizer.chat_template] if tokenizer.chat_template else []
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _parts_sha256(parts: list[tuple[str, str]], folder: Path, accelerator: Accelerator) -> list[str]:
    """A checksum of each (model, part) as it lies on disk; the first process of a machine reads the weights alone."""
    sha256 = functools.partial(kept_sha256, table=folder / CHECKSUMS)
    with accelerator.local_main_process_first():
        return [models.part_sha256(model, part, sha256) for model, part in parts]


def _cache_captions(
    folder: Path,
    model: str,
    family: str,
    texts: dict[str, str],
    dtype: torch.dtype,
    accelerator: Accelerator,
    reading: TextReading,
) -> Index:
    """The index of a cache that holds {key: text}; the encoders are loaded if one is missing, and gone at the end."""
    tokenizers = models.load_tokenizers(model, family, reading.length)
    report_long_captions(tokenizers[-1], list(texts.values()))
    zero = models.empty_prompt_is_zero(model)

    def load() -> Compute:
        _, encoders = models.load_text_encoders(model, family, dtype, reading.length)
        for encoder in encoders:
            if reading.quantized:
                quantized.quantize(encoder, reading.quantized, dtype)
            encoder.to(accelerator.device)
        return functools.partial(compute, encoders)

    @torch.no_grad()
    def compute(encoders: list[PreTrainedModel], key: str) -> dict[str, torch.Tensor]:
        (found,) = choose_encode(family, reading.clip_skip)(tokenizers, encoders, [texts[key]], zero)
        made = {place: found[name].cpu() for name, place in _places(family, key).items()}
        if not all(tensor.isfinite().all() for tensor in made.values()):
            raise UserError(f"the text encoder gives NaN in {dtype} for {texts[key]!r}; use --mixed_precision no")
        return made

    encoders = [(model, part) for part in FAMILIES[family].TEXT_ENCODERS]
    parts = [_tokenizer_sha256(one) for one in tokenizers] + _parts_sha256(encoders, folder, accelerator)
    parts += [family, str(dtype), str(reading.quantized), str(zero)]
    parts += [f"clip_skip {reading.clip_skip}"] if reading.clip_skip else []
    made_by = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    return ensure_cached(folder / f"captions-{made_by}", texts, load, "captions", accelerator)


def _places(family: str, key: str) -> dict[str, str]:
    """{feature: the name that the cache has for it} of a text; the first one has the text's own."""
    first, *others = FAMILIES[family].FEATURES
    return {first: key} | {name: f"{key}.{name}" for name in others}


def encode_captions(
    folder: Path,
    model: str,
    family: str,
    texts: list[str],
    dtype: torch.dtype,
    accelerator: Accelerator,
    reading: TextReading = PLAIN_READING,
) -> Callable[[list[str]], list[Features]]:
    """Encode every text, and the empty one, into the cache; the function that is returned reads them from there."""
    keys = {text: hashlib.sha256(text.encode()).hexdigest() for text in {*texts, ""}}
    by_key = {key: text for text, key in keys.items()}
    index = _cache_captions(folder, model, family, by_key, dtype, accelerator, reading)
    free_memory()

    most = min(256, KEPT_BYTES // models.caption_bytes(model, family, reading.length, dtype))  # captions

    @functools.lru_cache(maxsize=most)
    def read(text: str) -> Features:
        key = keys[text]
        return {name: index[key].get_tensor(place) for name, place in _places(family, key).items()}

    def encode(texts: list[str]) -> list[Features]:
        device = accelerator.device
        return [{name: one.to(device) for name, one in read(text).items()} for text in texts]

    return functools.partial(encode_distinct, encode)


def encode_distinct(encode: Callable[[list[str]], list[Features]], texts: list[str]) -> list[Features]:
    """What `encode` makes of texts, each of them encoded once: a batch of photos often shares one prompt."""
    distinct = list(dict.fromkeys(texts))
    found = dict(zip(distinct, encode(distinct)))
    return [found[text] for text in texts]


@torch.no_grad()
def encode_example(vae: ModelMixin, example: Example, view: View, interpolation: str) -> torch.Tensor:
    """(2, channels, height, width): mean and standard deviation of an image's latents, unscaled, in float32."""
    pixels = example_tensor(example, view, interpolation)[None].to(vae.device, vae.dtype)
    with torch.autocast(vae.device.type, enabled=False):  # never in float16, whoever calls this
        moments = torch.cat(encode_pixels(vae, pixels)).float().cpu()
    if not moments.isfinite().all():
        raise UserError(f"the latents of {describe(example)} hold NaN or infinity; look at the image, or remove it")
    return moments


def encoded_at_once(device: torch.device) -> int:
    """How many images; on a CPU in parallel, since the VAE's small layers leave a second core idle."""
    return min(MOST_AT_ONCE, torch.get_num_threads()) if device.type == "cpu" else 1


def _cache_latents(
    folder: Path,
    model: str,
    views: dict[str, tuple[Example, View]],
    interpolation: str,
    accelerator: Accelerator,
    vae_name: str | None,
) -> Index:
    """The index of a cache that holds the moments of {key: view}; the VAE is loaded if one is missing, then freed."""

    def load() -> Compute:
        vae = models.load_vae(model, vae=vae_name).to(accelerator.device)
        return lambda key: {key: encode_example(vae, *views[key], interpolation)}

    (made_by,) = _parts_sha256([(vae_name, "") if vae_name else (model, "vae")], folder, accelerator)
    place = folder / f"latents-{made_by[:16]}"
    return ensure_cached(place, views, load, "images", accelerator, encoded_at_once(accelerator.device))


def latent_reader(
    folder: Path,
    model: str,
    wanted: list[tuple[Example, View]],
    views: Views,
    cached: bool,
    accelerator: Accelerator,
    vae_name: str | None = None,
) -> Callable[[Example, View], torch.Tensor]:
    """A function that returns the moments of an image's latents, from the cache or (`cached` False) encoded each time.

    The VAE, the model's own or the one named, is always in float32: in float16 it gives NaN.
    """
    filter = views.interpolation
    if not cached:
        vae = models.load_vae(model, vae=vae_name).to(accelerator.device)
        return lambda example, view: encode_example(vae, example, view, filter)
    keys = {view_key(example, view, filter): (example, view) for example, view in wanted}
    index = _cache_latents(folder, model, keys, filter, accelerator, vae_name)
    free_memory()

    def read(example: Example, view: View) -> torch.Tensor:
        key = view_key(example, view, filter)
        return index[key].get_tensor(key)

    return read
