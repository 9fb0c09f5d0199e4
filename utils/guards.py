"""What a training run does when numbers or memory give out: find the cause, and choose what to do."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size

SKIPS_IN_A_ROW = 3


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and should_reduce_batch_size(error)
    )


def nonfinite_action(policy: str, in_a_row: int, rolled_back: bool) -> str:
    """`skip`, `rollback` or `stop`, for the n-th step in a row whose loss or gradient is not finite."""
    if policy == "stop" or (policy == "skip" and in_a_row <= SKIPS_IN_A_ROW):
        return policy
    return "stop" if rolled_back else "rollback"


@contextlib.contextmanager
def watched_activations(module: torch.nn.Module) -> Iterator[dict[str, float]]:
    """{layer: largest absolute value of its output} of what runs within; inf where one is not finite."""
    largest = {}

    def watch(name: str) -> Callable:
        def hook(_module, _inputs, output):
            if torch.is_tensor(output) and output.numel():
                top = output.detach().abs().max().float().nan_to_num(float("inf")).item()
                largest[name] = max(top, largest.get(name, 0.0))

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


def reduce_gradients(accelerator: Accelerator, parameters: list[torch.nn.Parameter]) -> None:
    """Sum gradients over the processes in place, in one message.

    By hand and not by DDP: processes may then differ in how they divide their share into micro-batches.
    """
    if accelerator.num_processes == 1:
        return
    total = accelerator.reduce(torch.cat([parameter.grad.flatten() for parameter in parameters]), "sum")
    for parameter, grad in zip(parameters, total.split([parameter.numel() for parameter in parameters])):
        parameter.grad.copy_(grad.view_as(parameter))


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process, so that all do the same."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item() > 0
