"""Phased loading: captions and pictures are encoded, once and kept on disk, and the encoders freed again."""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from utils import models
from utils.cache import ensure_cached
from utils.cli import UserError
from utils.pictures import Picture, View, describe, picture_tensor, view_key

logger = logging.getLogger(__name__)


def free_memory(device: torch.device) -> None:
    """Give what was freed back to the device: its allocator would keep it."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def report_long_captions(tokenizer, texts: list[str]) -> int:
    """Warn of captions that pass the tokenizer's limit, since what is beyond it is not seen."""
    limit = tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    long = [text for text, length in zip(texts, lengths) if length > limit]
    if long:
        logger.warning(
            "%d of %d captions are longer than the tokenizer's limit of %d tokens (up to %d): what is beyond is cut off, "
            "as in: %s", len(long), len(texts), limit, max(lengths), long[0]
        )  # fmt: skip
    return len(long)


@torch.no_grad()
def encode_captions(
    folder: Path, model: str, family: str, texts: list[str], dtype: torch.dtype, accelerator: Accelerator
) -> Callable[[list[str]], tuple[torch.Tensor, torch.Tensor | None]]:
    """Encode every caption, and the empty one, into the cache; what is returned reads (embeds, pooled) of texts."""
    tokenizers, encoders = models.load_text_encoders(model, family, dtype)
    report_long_captions(tokenizers[0], texts)
    for encoder in encoders:
        encoder.to(accelerator.device)
    zero = models.empty_prompt_is_zero(model)
    keys = {text: hashlib.sha256(text.encode()).hexdigest() for text in {*texts, ""}}
    by_key = {key: text for text, key in keys.items()}

    def compute(key: str) -> dict[str, torch.Tensor]:
        embeds, pooled = models.encode_prompts(tokenizers, encoders, [by_key[key]], zero)
        made = {key: embeds[0].cpu()} | ({} if pooled is None else {f"{key}.pooled": pooled[0].cpu()})
        if not all(tensor.isfinite().all() for tensor in made.values()):
            raise UserError(f"the text encoder makes NaN or infinity in {dtype} of: {by_key[key]!r}; use --mixed_precision no")
        return made

    made_by = "-".join(models.fingerprint(encoder)[:16] for encoder in encoders)
    index = ensure_cached(folder / f"captions-{made_by}", by_key, compute, "captions", accelerator)
    del encoders
    free_memory(accelerator.device)

    @functools.lru_cache(maxsize=4096)
    def read(text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        shard, key = index[keys[text]], keys[text]
        return shard.get_tensor(key), shard.get_tensor(f"{key}.pooled") if family == "sdxl" else None

    def features(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        embeds, pooled = zip(*(read(text) for text in texts))
        together = torch.stack(embeds), None if pooled[0] is None else torch.stack(pooled)
        return tuple(None if tensor is None else tensor.to(accelerator.device) for tensor in together)

    return features


@torch.no_grad()
def encode_picture(vae, picture: Picture, view: View, interpolation: str) -> torch.Tensor:
    """(2, channels, height, width): mean and standard deviation of a picture's latents, unscaled, in float32."""
    pixels = picture_tensor(picture, view, interpolation)[None].to(vae.device, vae.dtype)
    posterior = vae.encode(pixels).latent_dist
    moments = torch.cat([posterior.mean, posterior.std]).float().cpu()
    if not moments.isfinite().all():
        raise UserError(f"the latents of {describe(picture)} hold NaN or infinity; look at the picture, or remove it")
    return moments


def latent_reader(
    folder: Path,
    model: str,
    views: list[tuple[Picture, View]],
    interpolation: str,
    cached: bool,
    accelerator: Accelerator,
) -> Callable[[Picture, View], torch.Tensor]:
    """What gives the moments of a picture's latents: read from the cache, or with `cached` False encoded each time.

    The VAE is always in float32: in float16 it gives NaN.
    """
    vae = models.load_vae(model).to(accelerator.device)
    if not cached:
        return lambda picture, view: encode_picture(vae, picture, view, interpolation)
    wanted = {view_key(picture, view, interpolation): (picture, view) for picture, view in views}

    def compute(key: str) -> dict[str, torch.Tensor]:
        return {key: encode_picture(vae, *wanted[key], interpolation)}

    place = folder / f"latents-{models.fingerprint(vae)[:16]}"
    index = ensure_cached(place, wanted, compute, "pictures", accelerator)
    del vae
    free_memory(accelerator.device)

    def read(picture: Picture, view: View) -> torch.Tensor:
        key = view_key(picture, view, interpolation)
        moments = index[key].get_tensor(key)
        if not moments.isfinite().all():
            raise UserError(f"the cached latents of {describe(picture)} hold NaN; remove {place} and run again")
        return moments

    return read
