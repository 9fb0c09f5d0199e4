"""What --dry_run prints of a training: parameters, memory, steps, the size of the cache; no weights are read."""

import logging
from collections.abc import Callable

import torch

from families import models, offloading
from families.lora import Adapter
from families.models import read_config
from families.names import FAMILIES, LABELS
from training import memory
from utils.cli import counted

logger = logging.getLogger(__name__)
Rows = list[tuple[str, str]]  # label, text
# What needs less memory at another result, by the phase that needs the most
ADVICE = {
    "text encoding": "--quantize_text_encoder nf4, a lower --max_sequence_length",
    "VAE encoding": "a lower --resolution",
    "training": "--quantize_base nf4, --optimizer adamw8bit, a lower --resolution or --max_sequence_length",
    "validation": "--num_validation_images 0, --quantize_base nf4, a lower --resolution",
}


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


def describe_kept(model: str, family: str, count: int, dtype: torch.dtype) -> Rows:
    """What the blocks that are kept in the CPU's memory take there."""
    if not count:
        return []
    sizes = offloading.block_bytes(models.build_part(model, FAMILIES[family].DENOISER, dtype))
    taken = offloading.kept_bytes(sizes, count) / 2**20
    return [("", f"in the CPU's memory: {taken:,.0f} MiB of weights, of {count} of the {len(sizes)} blocks")]


def describe_length(
    examples: int, held_out: int, steps: int, effective: int, noun: str = "image", samples: int | None = None
) -> Rows:
    """`samples`: those of an epoch, where examples repeat."""
    epoch = (samples or examples) / effective
    repeated = f", {samples:,} with repeats" if samples not in (None, examples) else ""
    return [
        ("data", f"{counted(examples, noun)}{repeated}, {held_out:,} held out; an epoch is {epoch:,.1f} steps"),
        ("length", f"{steps:,} steps = {steps / epoch:,.1f} epochs, {steps * effective:,} samples"),
    ]


def describe_cache(
    model: str,
    family: str,
    shape: tuple[int, int],
    views: int,
    captions: int,
    text_length: int | None,
    dtype: torch.dtype,
) -> Rows:
    """The cache's size on disk, if all images have this shape, and all captions so many tokens (None: the most)."""
    latents = views * latent_bytes(model, shape)
    texts = captions * models.caption_bytes(model, family, text_length, dtype)
    most = "" if FAMILIES[family].PADS_CAPTIONS else "at most "
    return [("cache", f"{latents / 2**20:,.0f} MiB of latents, {most}{texts / 2**20:,.0f} MiB of captions, on disk")]


def latent_bytes(model: str, shape: tuple[int, int]) -> int:
    """An image's entry in the latent cache: mean and standard deviation in float32."""
    vae = read_config(model, "vae/config.json")
    width, height = (side // models.vae_step(vae) for side in shape)
    return 2 * 4 * models.latent_channels(vae) * width * height


def choose_savers(free: int, sizes: list[int], estimate: Callable[[bool], memory.Phases]) -> tuple[bool, int]:
    """What a step needs to fit in the free bytes: gradient checkpointing or not, and how many blocks on the CPU.

    `sizes`: bytes of those that may be kept there; `estimate` takes whether gradient checkpointing is on. Warns where
    the step does not fit with both either.
    """
    if memory.peak_phase(estimate(False))[1] <= 0.9 * free:
        return False, 0
    phases = estimate(True)
    needs = [memory.peak_phase(memory.keep_blocks(phases, sizes, count))[1] for count in range(len(sizes) + 1)]
    kept = next((count for count, size in enumerate(needs) if size <= 0.9 * free), needs.index(min(needs)))
    phase, size = memory.peak_phase(memory.keep_blocks(phases, sizes, kept))
    if size > 0.9 * free:
        logger.warning(
            "--memory auto: %s needs some %.1f GiB and %.1f are free; what saves more changes the result: %s",
            *(phase, size / 2**30, free / 2**30, ADVICE[phase]),
        )
    return True, kept


def largest_batch(share: int, free: int, estimate: Callable[[int], memory.Phases]) -> int:
    """The largest divisor of `share` that fits in the free bytes; what a phase needs grows evenly with the size."""
    needs = [[sum(parts.values()) for parts in estimate(micro).values()] for micro in (1, 2)]

    def fits(size: int) -> bool:
        return all(first + (second - first) * (size - 1) <= 0.9 * free for first, second in zip(*needs))

    return max([size for size in range(1, share + 1) if share % size == 0 and fits(size)], default=1)
