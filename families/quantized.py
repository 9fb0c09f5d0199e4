"""A frozen model with its weights in 4 or 8 bits, by bitsandbytes: QLoRA (Dettmers et al., 2023, arXiv 2305.14314).

The layers are replaced here, after LoRAs of the base are merged: diffusers' own quantisation does it as it reads the
files, and only where there is a GPU.
"""

from __future__ import annotations

from types import ModuleType

import torch

from families.shards import Module, find_blocks
from utils.cli import UserError

# Bytes of a weight: in nf4 with the scale of its block of 64, in 8 bits with scales of their own; in int8 without the
# scale of its row, which is little.
BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}


def load_bitsandbytes(flag: str, kind: str, instead: str = "") -> ModuleType:
    """The package; the flag that needs it is refused where it is missing or does not work.

    `instead`: what to do without the package, if not to leave the flag out.
    """
    try:
        import bitsandbytes
    except Exception as error:  # missing, or built for another CUDA: it may raise any error
        raise UserError(
            f"--{flag} {kind}: bitsandbytes can't be used ({' '.join(str(error).split())[:200]}); "
            f"pip install -r requirements-cuda.txt, or {instead or f'leave --{flag} out'}"
        ) from None
    return bitsandbytes


def find_layers(module: Module) -> dict[str, torch.nn.Linear]:
    """The frozen linear layers of its blocks by name: nearly all weights, without those that enter or leave.

    Nor those that its library keeps in float32: of T5, the ones that read their weights' dtype.
    """
    inner = {id(layer) for block in find_blocks(module) for layer in block.modules()}
    whole = set(module._keep_in_fp32_modules or ())
    return {
        name: layer
        for name, layer in module.named_modules()
        if id(layer) in inner
        and isinstance(layer, torch.nn.Linear)
        and not layer.weight.requires_grad
        and not whole & set(name.split("."))
    }


def quantize(module: Module, kind: str, dtype: torch.dtype) -> None:
    """Replace the layers of a frozen module; `dtype` is what they compute in. Moving it to a device rounds them."""
    from bitsandbytes import nn

    for name, layer in find_layers(module).items():
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        new: torch.nn.Linear
        if kind == "nf4":
            new = nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type=kind, device="meta")
            new.support_avx512bf16_for_cpu = False  # a validation would repack the weights, for inference alone
            new.weight = nn.Params4bit(layer.weight.data, requires_grad=False, quant_type=kind, module=new)
        else:
            new = nn.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
            new.weight = nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        new.bias = layer.bias
        module.set_submodule(name, new)


def saved_bytes(module: Module, kind: str) -> int:
    """What the layers take less, once they are rounded."""
    return sum(int(one.weight.nbytes - BYTES[kind] * one.weight.numel()) for one in find_layers(module).values())


def unpacked_bytes(module: Module) -> int:
    """The largest layer in the dtype that it computes in, which it is unpacked to."""
    return max((layer.weight.nbytes for layer in find_layers(module).values()), default=0)
