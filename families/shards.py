"""Weights, gradients and optimizer state divided among processes by FSDP2, and whole again where a file needs them.

Each process holds an equal part of every weight. What a block needs is gathered from all processes for the time that
the block computes, forward and back. So all processes take part in each pass through a divided module, and in each
function here that makes something whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

Module: TypeAlias = ModelMixin | PreTrainedModel  # a denoiser or a text encoder


def find_blocks(module: Module) -> list[torch.nn.Module]:
    """The innermost of the parts that the module's library never divides: their weights are gathered together."""
    names = set(module._no_split_modules or ())

    def within(part: torch.nn.Module) -> Iterator[torch.nn.Module]:
        return (one for one in part.modules() if one is not part and type(one).__name__ in names)

    return [one for one in within(module) if not any(True for _ in within(one))]


def shard_module(module: Module, device: torch.device, processes: int) -> None:
    """Divide all weights among the processes, each share on its device: block by block, never the whole there.

    The module has new parameters then. Gradients are summed over the processes, as those of undivided weights are.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for part in (*find_blocks(module), module):
        divided = fully_shard(part, mesh=mesh)
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    if isinstance(module, PreTrainedModel):
        _CAN_RECORD_REGISTRY[module] = module._can_record_outputs  # under its new class, or it gives no hidden states


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """A divided tensor as a whole one on the CPU, in the first process; the others get an empty one.

    Any other tensor as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor().detach()
    return whole.cpu() if tensor.device_mesh.get_rank() == 0 else whole.new_empty(0, device="cpu")


def divide(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, where `like` is of the same shape and divided."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    # Every process has read the whole from the same file, so none has to send it.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def is_divided(module: torch.nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def own_class(module: Module) -> type[Module]:
    """Its class as it was: a divided module has another."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def gather_module(module: Module) -> Module | None:
    """A divided module as a whole one on the CPU, in the first process, None in the others; any other as it is."""
    if not is_divided(module):
        return module
    state = {name: gather(tensor) for name, tensor in module.state_dict().items()}
    if torch.distributed.get_rank():
        return None
    kind = own_class(module)
    with init_empty_weights(include_buffers=False):
        whole = (kind.from_config if issubclass(kind, ModelMixin) else kind._from_config)(module.config)
    whole.load_state_dict(state, assign=True)
    return whole


def load_whole(module: Module, state: dict[str, torch.Tensor]) -> None:
    """Load a whole state into a module that may be divided."""
    own = module.state_dict()
    module.load_state_dict({name: divide(one, own[name]) if name in own else one for name, one in state.items()})


def local(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """This process's shares, to compute with element by element."""
    return [one.to_local() if isinstance(one, DTensor) else one for one in tensors]


def keep_state_whole(optimizer: torch.optim.Optimizer) -> None:
    """From here on its state_dict() is whole, in the first process, and load_state_dict() takes a whole one."""

    def changed(found: dict[str, Any], change: Callable[[torch.Tensor, int], torch.Tensor]) -> dict[str, Any]:
        def of_one(index: int, values: dict[str, Any]) -> dict[str, Any]:
            return {name: change(one, index) if torch.is_tensor(one) else one for name, one in values.items()}

        return found | {"state": {index: of_one(index, values) for index, values in found["state"].items()}}

    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    optimizer.register_state_dict_post_hook(lambda _, found: changed(found, lambda one, _: gather(one)))
    optimizer.register_load_state_dict_pre_hook(
        lambda _, found: changed(found, lambda one, index: divide(one, parameters[index]))
    )
