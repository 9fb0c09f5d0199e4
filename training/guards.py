"""What a training run does when numbers or memory give out: find the cause, and choose what to do."""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator

from families import diffusion
from training.batches import to_device

SKIPS_IN_A_ROW = 3
NO_ROOM = (
    "out of memory with one sample at once; keep --gradient_checkpointing and --cache_latents on, lower --resolution "
    "or --rank, or use --optimizer adamw8bit; --dry_run predicts what is needed"
)
ADVICE = "Look at these images, lower --learning_rate, or use --mixed_precision no; the last checkpoint is unharmed"


def nonfinite_action(policy: str, progress: dict, has_checkpoint: bool) -> str:
    """`skip`, `rollback` or `stop`, for a step whose loss or gradient is not finite."""
    if policy == "stop" or (policy == "skip" and progress["skipped_in_a_row"] < SKIPS_IN_A_ROW):
        return policy
    return "rollback" if has_checkpoint and not progress["rolled_back"] else "stop"


@contextlib.contextmanager
def watched_activations(module: torch.nn.Module) -> Iterator[dict[str, float]]:
    """{layer: largest absolute value of its output} of what runs within; inf where one is not finite."""
    largest = {}

    def watch(name: str) -> Callable:
        def hook(_module, _inputs, output):
            if torch.is_tensor(output) and output.is_floating_point() and output.numel():
                top = output.detach().abs().max().item()
                largest[name] = max(top if math.isfinite(top) else math.inf, largest.get(name, 0.0))

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def diagnose(unet, scheduler, parts: list[dict], features: Callable, device: torch.device, autocast: Callable) -> dict:
    """The samples of a step that went wrong, and the largest activation seen: the step is computed once more."""
    losses = []
    with watched_activations(unet) as largest:
        for part in (to_device(one, device) for one in parts):
            with autocast():
                prediction, target = diffusion.predict(unet, scheduler, part, *features(part["texts"]))
            losses += diffusion.sample_losses(prediction, target).tolist()
    samples = [name for part in parts for name in part["samples"]]
    bad = [name for name, loss in zip(samples, losses) if not math.isfinite(loss)]
    layer = max(largest, key=largest.get)
    return {"samples": bad or samples, "in_loss": bool(bad), "activation": largest[layer], "layer": layer}


def tell_nonfinite(step: int, norm: float, causes: list[dict]) -> str:
    """One line from the diagnoses of all processes."""
    worst = max(causes, key=lambda one: (one["in_loss"], one["activation"]))
    return (
        f"step {step}: {'the loss' if worst['in_loss'] else 'the gradient'} is not finite (gradient norm {norm:g}); "
        f"samples {', '.join(worst['samples'])}; largest activation {worst['activation']:g} in {worst['layer']}"
    )


def reduce_gradients(accelerator: Accelerator, parameters: list[torch.nn.Parameter]) -> None:
    """Sum gradients over the processes in place, in one message.

    By hand and not by DDP: processes may then differ in how they divide their share into micro-batches.
    """
    # SDXL takes its text encoders' last layer but one: adapters in the last one have no gradient, in any process.
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes == 1 or not grads:
        return
    total = accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "sum")
    for grad, part in zip(grads, total.split([grad.numel() for grad in grads])):
        grad.copy_(part.view_as(grad))


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process, so that all do the same."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item() > 0
