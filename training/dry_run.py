"""What --dry_run prints of a training: parameters, memory, steps, the size of the cache; no weights are read."""

from collections.abc import Callable

import torch

from families import models
from families.lora import Adapter
from families.models import read_config
from families.names import FAMILIES, LABELS
from training import memory

Rows = list[tuple[str, str]]  # label, text


def describe_model(model: str, family: str, adapter: Adapter | None, train_text_encoder: bool) -> Rows:
    """Family and parameters."""
    counts = memory.count_parameters(model, family, adapter, train_text_encoder)
    trained, total = (sum(getattr(count, kind) for count in counts.values()) for kind in ("trainable", "total"))
    frozen = total if adapter else total - trained
    shown = f"{trained:,} trainable, {frozen:,} frozen ({', '.join(counts)})"
    return [("family", LABELS[family]), ("parameters", shown)]


def describe_memory(phases: memory.Phases, shards: int) -> Rows:
    """The peak and the parts of every phase, on each device where weights are divided among several."""
    peak, size = memory.peak_phase(phases)
    each = f" on each of {shards} devices" if shards > 1 else ""
    rows = [("memory", f"{size / 2**20:,.0f} MiB{each} at the peak, in {peak}; Python and the device take more")]
    for phase, parts in phases.items():
        shown = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in parts.items() if size)
        rows.append(("", f"{phase}: {shown}"))
    return rows


def describe_length(examples: int, held_out: int, steps: int, effective: int) -> Rows:
    epoch = examples / effective
    return [
        ("data", f"{examples:,} images, {held_out:,} held out; an epoch is {epoch:,.1f} steps"),
        ("length", f"{steps:,} steps = {steps / epoch:,.1f} epochs, {steps * effective:,} samples"),
    ]


def describe_cache(
    model: str, family: str, shape: tuple[int, int], views: int, captions: int, dtype: torch.dtype
) -> Rows:
    """The cache's size on disk, if all images have this shape."""
    latents = views * latent_bytes(model, shape)
    texts = captions * caption_bytes(model, family, dtype)
    return [("cache", f"{latents / 2**20:,.0f} MiB of latents, {texts / 2**20:,.0f} MiB of captions, on disk")]


def latent_bytes(model: str, shape: tuple[int, int]) -> int:
    """An image's entry in the latent cache: mean and standard deviation in float32."""
    vae = read_config(model, "vae/config.json")
    width, height = (side // models.vae_step(vae) for side in shape)
    return 2 * 4 * vae.get("latent_channels", 4) * width * height


def caption_bytes(model: str, family: str, dtype: torch.dtype) -> int:
    """A caption's entry in the cache of encoded ones."""
    width = read_config(model, "unet/config.json")["cross_attention_dim"]
    length = read_config(model, "text_encoder/config.json")["max_position_embeddings"]
    pooled = 0
    if FAMILIES[family].HAS_POOLED_TEXT:
        pooled = read_config(model, f"{list(FAMILIES[family].TEXT_ENCODERS)[-1]}/config.json")["projection_dim"]
    return (length * width + pooled) * dtype.itemsize


def largest_batch(share: int, free: int, estimate: Callable[[int], memory.Phases]) -> int:
    """The largest divisor of `share` whose peak fits in the free bytes; memory grows evenly with the size."""
    first, second = (memory.peak_phase(estimate(micro))[1] for micro in (1, 2))
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    return max([size for size in sizes if first + (second - first) * (size - 1) <= 0.9 * free], default=1)
