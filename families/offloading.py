"""Blocks of a frozen transformer that stay in the CPU's memory, and come to the device only while each computes.

Every pass through such a block takes copies of its frozen weights and drops them at its end. So does the pass that
gradient checkpointing repeats, whose copies live until the block's backward pass has used them. Without checkpointing
autograd would keep them all. Not by diffusers' group offloading: it exchanges the data of weights that autograd holds.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from families.shards import Module, find_blocks

One = TypeVar("One")
Weights = dict[int, torch.Tensor]  # on the device, by the ids of those that they are copies of


def spread(blocks: Sequence[One], count: int) -> list[One]:
    """So many of the blocks, evenly spread: while others compute, the next one's weights arrive."""
    return [blocks[number * len(blocks) // count] for number in range(count)]


def frozen(block: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [one for one in block.parameters() if not one.requires_grad]


def block_bytes(module: Module) -> list[int]:
    """What the frozen weights of each block take."""
    return [sum(one.nbytes for one in frozen(block)) for block in find_blocks(module)]


def kept_bytes(sizes: list[int], count: int) -> int:
    """What so many blocks of these sizes take in the CPU's memory."""
    return sum(spread(sizes, count))


def brought_bytes(sizes: list[int], count: int) -> int:
    """The most that is on the device of them at once: a block that computes, and the next one."""
    return min(2, count) * max(spread(sizes, count), default=0)


class _Kept:
    """The frozen weights of some blocks. On a GPU the next block's are copied while this one computes."""

    def __init__(self, blocks: list[torch.nn.Module], device: torch.device):
        self.weights, self.device = [frozen(block) for block in blocks], device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead: dict[int, Weights] = {}  # of the block that is expected next
        self.last = 0

    def bring(self, number: int) -> Weights:
        """Copies of the weights of the n-th block."""
        if self.stream is None:
            return {id(one): one.to(self.device, copy=True) for one in self.weights[number]}
        found = self.ahead.pop(number, None) or self._begin(number)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        following = number + (1 if number > self.last else -1)  # forward, or back
        self.ahead = {following: self._begin(following)} if 0 <= following < len(self.weights) else {}
        self.last = number
        return found

    def _begin(self, number: int) -> Weights:
        """Copies that are whole once the stream is done; their memory is the current stream's, as all other."""
        made = {id(one): torch.empty_like(one, device=self.device) for one in self.weights[number]}
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # which may still read what was there before
        with torch.cuda.stream(self.stream):
            for one in self.weights[number]:
                made[id(one)].copy_(one, non_blocking=True)
        return made


def keep_on_cpu(module: Module, count: int, device: torch.device) -> None:
    """Bring a module to the device, but for the frozen weights of so many of its blocks."""
    blocks = spread(find_blocks(module), count)
    kept = _Kept(blocks, device)
    staying = {id(one) for weights in kept.weights for one in weights}
    module._apply(lambda one: one if id(one) in staying else one.to(device))
    for weights in kept.weights if device.type == "cuda" else ():
        for one in weights:  # so that it is copied while the GPU computes
            one.data = one.data.pin_memory()
    for number, block in enumerate(blocks):
        block.forward = functools.partial(_compute, block, kept, number)


def _compute(block: torch.nn.Module, kept: _Kept, number: int, *args: Any, **kwargs: Any) -> Any:
    return type(block).forward(_with_weights(block, kept.bring(number)), *args, **kwargs)


def _with_weights(module: torch.nn.Module, weights: Weights) -> torch.nn.Module:
    """The module with copies in the place of its weights; itself it stays as it is, for other threads."""
    twin: Any = copy.copy(module)
    own: dict[str, Any] = module._parameters
    twin._parameters = {name: weights.get(id(one), one) for name, one in own.items()}
    twin._modules = {name: one and _with_weights(one, weights) for name, one in module._modules.items()}
    return twin
