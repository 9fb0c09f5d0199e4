"""Parameters and memory of a training, estimated from the model's configs: nothing is loaded, nothing computed.

A whole training step is run on the meta device, where tensors have shapes and no content: forward, recomputation of
checkpointed blocks, backward. A ledger books each storage when it appears and when it is freed, so that temporary
tensors count as well as what autograd keeps. Weights, their gradients, optimizer and EMA are added by their sizes.

Checked against the growth of resident memory in a real step of the demo UNet: CPU, float32, batch 64, glibc set to
give memory back (MALLOC_MMAP_THRESHOLD_=65536). Estimated 601 MB, and 216 with gradient checkpointing; measured 594 and
211 (864 and 618 with glibc as it comes). Half precision on CUDA follows autocast's rules and was not measured.
Not in it: the context of the device (some 0.5 GiB on CUDA), the scratch space of convolutions, fragmentation.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from families import offloading, quantized
from families.diffusion import Features
from families.latents import decode_pixels, encode_pixels
from families.lora import TEXT_TARGETS, Adapter, Module, choose_parameters
from families.models import build_part, latent_channels, read_config, token_limit, tune_denoiser, vae_step
from families.names import FAMILIES
from families.sampler import Sampling
from families.sampling import reads_negative_prompt
from families.sd import count_parts
from families.shards import find_blocks
from utils.devices import checkpoint_options

Phases = dict[str, dict[str, int]]  # bytes by part of each phase of a training
# Bytes of state for each trained weight. Adafactor keeps a row and a column of a matrix.
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "adafactor": 0.5, "adamwschedulefree": 8, "muon": 4}


class Count(NamedTuple):
    trainable: int
    total: int  # without the adapter's


def count_parameters(model: str, family: str, adapter: Adapter | None, train_text_encoder: bool) -> dict[str, Count]:
    """Trained weights and all weights of every part; without an adapter all weights of a part are trained."""
    counts = {}
    denoiser = FAMILIES[family].DENOISER
    for part in (denoiser, *FAMILIES[family].TEXT_ENCODERS, "vae"):
        module = build_part(model, part)
        total = _count(module.parameters())
        is_trained = part == denoiser or (train_text_encoder and part != "vae")
        trained = (
            _count(choose_parameters(module, adapter, None if part == denoiser else TEXT_TARGETS)) if is_trained else 0
        )
        counts[part] = Count(trained, total)
    return counts


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _bytes(module: Module) -> int:
    """What the frozen weights take."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if not p.requires_grad)


class _Ledger(TorchDispatchMode):
    """Books the bytes of every storage that comes into being, and the most there were at once."""

    def __init__(self):
        super().__init__()
        self.known, self.live, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._book(tensor, 0)  # what comes from outside is no cost of what runs inside
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._book(tensor, tensor.untyped_storage().nbytes())
        return result

    def _book(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self._free, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


class _FusedAttention(torch.autograd.Function):
    """The memory of the fused kernels, which keep no matrix of attention weights; the meta device has none of them."""

    @staticmethod
    def forward(ctx, query, key, value):
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Kernels(TorchFunctionMode):
    """Fused attention, and autocast's choice of dtypes: autocast itself passes over the meta device."""

    def __init__(self, autocast: torch.dtype | None):
        super().__init__()
        half = [F.scaled_dot_product_attention, F.linear, torch.matmul, torch.bmm, torch.baddbmm]
        half += [F.conv1d, F.conv2d, F.conv_transpose1d]
        full = (F.group_norm, F.layer_norm, F.mse_loss)
        self.casts = {**dict.fromkeys(half, autocast), **dict.fromkeys(full, torch.float32)} if autocast else {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if dtype := self.casts.get(function):
            args, kwargs = tree_map(lambda value: _cast(value, dtype), (args, kwargs))
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*(args[:3] or [kwargs[name] for name in ("query", "key", "value")]))
        return function(*args, **kwargs)


def _cast(value, dtype: torch.dtype):
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def most_live_bytes(run: Callable[[], object], autocast: torch.dtype | None = None) -> int:
    """The most bytes that `run` holds at once, beyond those that were there before."""
    with _Ledger() as ledger, _Kernels(autocast):
        run()
    return ledger.peak


@dataclass(frozen=True)
class Load:
    """What decides the memory of a training.

    `dtype` is that of the frozen weights, `autocast` the one that a step computes in where it is another; `vae_batch`
    is how many images are encoded at once.
    """

    adapter: Adapter | None  # None: all weights are trained
    micro_batch: int
    height: int
    width: int
    train_text_encoder: bool = False
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    gradient_checkpointing: bool = True
    optimizer: str = "adamw"
    amsgrad: bool = False  # which keeps the largest squares beside their mean
    ema: bool = False
    quantized: str | None = None  # how the denoiser's frozen weights are kept: nf4 or int8
    quantized_texts: str | None = None  # the same of the text encoders, where they are not trained
    text_length: int | None = None  # tokens of each; None: the most that the family reads
    vae_batch: int = 1
    sampling: Sampling | None = None  # of validation images; None: there are none
    shards: int = 1  # the processes that weights and all that belongs to them are divided among
    blocks_on_cpu: int = 0  # whose frozen weights are brought to the device one block at a time


class Step(NamedTuple):
    """A training step on the meta device: what runs it, the models in it, and their trained weights."""

    run: Callable[[], None]
    parts: list[Module]
    trained: list[torch.nn.Parameter]


def build_step(model: str, family: str, load: Load, encoders: list[Module] | None = None) -> Step:
    """Forward and backward of a micro-batch, from the model's configs alone; texts are encoded in it if trained.

    `encoders`: the model's, where they are built already.
    """
    encoders = encoders or _build_encoders(model, family, load)
    encoded = (
        None if load.train_text_encoder else _encode_text(model, family, encoders, load.micro_batch, load.text_length)
    )
    denoiser = build_part(model, FAMILIES[family].DENOISER, load.dtype).train()
    trained, parts = choose_parameters(denoiser, load.adapter), [denoiser]
    if load.train_text_encoder:
        for encoder in encoders:
            trained += choose_parameters(encoder.train(), load.adapter, TEXT_TARGETS)
        parts += encoders
    if load.gradient_checkpointing:
        options = checkpoint_options(torch.device("meta"))
        tune_denoiser(denoiser, options, xformers=False, compiled=False)
        for encoder in parts[1:]:
            encoder.activation_checkpointing_enable(options)
    vae = read_config(model, "vae/config.json")
    latents = [side // vae_step(vae) for side in (load.height, load.width)]

    def run() -> None:
        texts = encoded or _encode_text(model, family, encoders, load.micro_batch, load.text_length)
        predicted = _predict(family, denoiser, texts, (load.micro_batch, latent_channels(vae), *latents))
        torch.autograd.backward(F.mse_loss(predicted, torch.empty_like(predicted)))

    return Step(run, parts, trained)


def _predict(family: str, denoiser: Module, texts: list[Features], shape: tuple[int, ...]) -> torch.Tensor:
    noisy, times = _meta(denoiser, *shape), torch.empty(shape[0], dtype=torch.long, device="meta")
    return FAMILIES[family].predict(denoiser, noisy, times, texts, _meta(denoiser, shape[0], 6)).float()


@torch.no_grad()
def _image_bytes(
    family: str, load: Load, sampling: Sampling, denoiser: Module, vae: Module, texts: list[Features]
) -> int:
    """The most that a validation image takes beside weights: as it is denoised (guided, of two texts), or decoded."""
    side = sampling.size // vae_step(vae.config)
    together = 1 + reads_negative_prompt(family, sampling.guidance_scale)
    shape = together, latent_channels(vae.config), side, side
    denoised = most_live_bytes(lambda: _predict(family, denoiser, texts[:together], shape), load.autocast)
    return max(denoised, most_live_bytes(lambda: decode_pixels(vae, _meta(vae, 1, *shape[1:]))))


@functools.cache
def estimate_memory(model: str, family: str, load: Load) -> Phases:
    """Bytes of each phase by part; a phase needs the sum of its parts, and the run the most that any phase needs."""
    encoders, vae = _build_encoders(model, family, load), build_part(model, "vae")
    with torch.no_grad():
        texts = most_live_bytes(lambda: _encode_text(model, family, encoders, 1, load.text_length))
        two = _encode_text(model, family, encoders, 2, load.text_length)
        images = most_live_bytes(lambda: encode_pixels(vae, _meta(vae, load.vae_batch, 3, load.height, load.width)))
    step = build_step(model, family, load, encoders)
    for parameter in step.trained:  # they are there from the second micro-batch on, and have a line of their own
        parameter.grad = torch.empty_like(parameter)
    kind = load.quantized_texts
    of_texts = sum(quantized.saved_bytes(encoder, kind) for encoder in encoders) if kind else 0
    floats = 4 * _count(step.trained)
    saved = quantized.saved_bytes(step.parts[0], load.quantized) if load.quantized else 0
    kept = {
        "frozen weights": sum(map(_bytes, step.parts)) - saved,
        "trained weights": floats,
        "gradients": floats,
        "optimizer": int((OPTIMIZER_BYTES[load.optimizer] + 4 * load.amsgrad) * _count(step.trained)),
        "EMA": floats if load.ema else 0,
    }
    shared = {
        **{name: size // load.shards for name, size in kept.items()},
        "unpacked weights": quantized.unpacked_bytes(step.parts[0]) if load.quantized else 0,
        "brought weights": 0,
        "gathered weights": sum(map(_gathered_bytes, step.parts)) if load.shards > 1 else 0,
    }
    phases = {
        "text encoding": {"weights": sum(map(_bytes, encoders)) - of_texts, "activations": texts},
        "VAE encoding": {"weights": _bytes(vae), "activations": images},
        "training": {**shared, "activations": most_live_bytes(step.run, load.autocast)},
    }
    if load.sampling:
        made = _image_bytes(family, load, load.sampling, step.parts[0].eval(), vae, two)
        phases["validation"] = {**shared, "gradients": 0, "weights of the VAE": _bytes(vae), "activations": made}
    return keep_blocks(phases, offloading.block_bytes(step.parts[0]), load.blocks_on_cpu)


def keep_blocks(phases: Phases, sizes: list[int], count: int) -> Phases:
    """The phases where so many blocks, of these sizes, stay in the CPU's memory (see families/offloading.py)."""
    kept, brought = offloading.kept_bytes(sizes, count), offloading.brought_bytes(sizes, count)
    return {
        name: parts | {"frozen weights": parts["frozen weights"] - kept, "brought weights": brought}
        if "frozen weights" in parts
        else parts
        for name, parts in phases.items()
    }


def _build_encoders(model: str, family: str, load: Load) -> list[Module]:
    return [build_part(model, part, load.dtype) for part in FAMILIES[family].TEXT_ENCODERS]


def _gathered_bytes(module: Module) -> int:
    """What a divided module holds whole at once: what lies in no block, two blocks, and the gradients of one."""
    blocks = [list(block.parameters()) for block in find_blocks(module)]
    sizes = [sum(one.nbytes for one in block) for block in blocks]
    gradients = [sum(one.nbytes for one in block if one.requires_grad) for block in blocks]
    outside = sum(one.nbytes for one in module.parameters()) - sum(sizes)
    return outside + 2 * max(sizes, default=0) + max(gradients, default=0)


def _meta(module: Module, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=module.dtype, device="meta")


def _encode_text(model: str, family: str, encoders: list[Module], batch: int, length: int | None) -> list[Features]:
    most = token_limit(model, family, length)
    configs = [encoder.config.get_text_config() for encoder in encoders]
    lead = (batch, count_parts(most)) if FAMILIES[family].DENOISER == "unet" else (batch,)
    sizes = [(*lead, min(most, getattr(config, "max_position_embeddings", most))) for config in configs]
    ids = [torch.empty(size, dtype=torch.long, device="meta") for size in sizes]
    return FAMILIES[family].encode_tokens(encoders, ids)


def peak_phase(phases: Phases) -> tuple[str, int]:
    """The phase that needs the most, and how many bytes that is."""
    needs = {name: sum(parts.values()) for name, parts in phases.items()}
    return max(needs.items(), key=lambda need: need[1])
