"""Gradients of one step: of micro-batches, of all processes, and what to do where they are not finite."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor

from training.state import Progress
from utils.cli import OF_ONE_PROCESS, UserError
from utils.devices import Cores, Rows

logger = logging.getLogger(__name__)
Part = TypeVar("Part", bound=Rows)
Backward = Callable[..., None]  # of a loss, as torch.Tensor.backward: by default of all parameters
Row = list[float]  # what a trainer records of a sample, its loss first

SKIPS_IN_A_ROW = 3
OUT_OF_MEMORY = (
    "out of memory with one sample at once; keep --gradient_checkpointing and --cache_latents on, lower --resolution, "
    "or use --quantize_base or --blocks_on_cpu for a LoRA of a transformer, --optimizer adamw8bit for all weights "
    "(docs/memory.md); --dry_run estimates what is needed"
)
ADVICE = "Look at these images, lower --learning_rate, or use --mixed_precision no; the last checkpoint is unharmed"


def add_gradients(
    forward_backward: Callable[[Part, int, Backward], torch.Tensor],
    batch: Part,
    number: int,
    parameters: list[torch.nn.Parameter],
    cores: Cores | None,
) -> torch.Tensor:
    """`forward_backward` the step's n-th micro-batch: its gradients are added to the parameters', its rows returned.

    On a CPU, each core takes a part of it. The gradients of the parts are added in order, so that equal runs are equal
    to the byte.
    """
    if cores is None or len(batch) < 2 * cores.parts:
        return forward_backward(batch, number, torch.Tensor.backward)

    def gradients_of(part: Part) -> tuple[torch.Tensor, list[tuple[torch.nn.Parameter, torch.Tensor | None]]]:
        gradients: list[tuple[torch.nn.Parameter, torch.Tensor | None]] = []

        def backward(
            loss: torch.Tensor, *, inputs: list[torch.nn.Parameter] = parameters, retain_graph: bool = False
        ) -> None:
            found = torch.autograd.grad(loss, inputs, retain_graph=retain_graph, allow_unused=True)
            gradients.extend(zip(inputs, found))

        return forward_backward(part, number, backward), gradients

    parts = batch.split(math.ceil(len(batch) / cores.parts))
    rows, all_gradients = zip(*cores.pool.map(gradients_of, parts))
    for gradients in all_gradients:
        for parameter, gradient in gradients:
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return torch.cat(rows)


def sum_gradients(accelerator: Accelerator, parameters: list[torch.nn.Parameter]) -> None:
    """Sum gradients over the processes in place, in one message.

    Not by DDP, which accelerator.prepare would use: processes may then differ in how they divide their share into
    micro-batches.
    """
    # SDXL takes its text encoders' last layer but one: adapters in the last one have no gradient, in any process.
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes == 1 or not gradients or isinstance(gradients[0], DTensor):  # FSDP has summed them
        return
    total = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
    for gradient, part in zip(gradients, total.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))


def clip_gradients(parameters: list[torch.nn.Parameter], most: float) -> torch.Tensor:
    """Scale the gradients down where their norm, over all shards, is more than `most`; the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gather_rows(accelerator: Accelerator, rows: torch.Tensor, norm: torch.Tensor) -> tuple[list[Row], float]:
    """The rows of all processes and the gradient's norm as numbers: the step's only wait for the device."""
    table = accelerator.gather(rows)
    width = table.shape[1]
    *flat, size = torch.cat([table.flatten(), norm.reshape(1)]).tolist()
    return [flat[i : i + width] for i in range(0, len(flat), width)], size


def all_finite(rows: list[Row], norm: float = 0.0) -> bool:
    return math.isfinite(norm) and all(math.isfinite(row[0]) for row in rows)


def overflowed(scaler: torch.amp.GradScaler, rows: list[Row], norm: float) -> bool:
    """Whether only the scale of the loss was too large for float16; half the scale, and the step can be repeated."""
    return scaler.is_enabled() and scaler.get_scale() > 1 and all_finite(rows) and not math.isfinite(norm)


def smaller_micro_batch(samples: int, sharded: bool) -> int:
    """Half as many samples at once, after the device's memory was full; refused where others take part in each pass."""
    if samples == 1:
        raise UserError(OUT_OF_MEMORY)
    if sharded:
        raise UserError(
            f"out of memory with {samples} samples at once; with --shard a step can't be repeated with fewer: give a "
            "smaller --train_batch_size with the same --effective_batch_size, or start more processes"
        )
    half = math.ceil(samples / 2)
    message = "out of memory: %d samples at once from here on, as many a step as before"
    logger.warning(message, half, extra=OF_ONE_PROCESS)
    return half


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process, so that all do the same."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item() > 0


@contextlib.contextmanager
def watch_activations(module: torch.nn.Module) -> Iterator[dict[str, float]]:
    """{layer: largest absolute value of its output} of what runs within; inf where one is not finite."""
    largest: dict[str, float] = {}

    def watch(name: str) -> Callable[[torch.nn.Module, object, object], None]:
        def hook(_module: torch.nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel():
                top = output.detach().abs().max().item()
                largest[name] = max(top if math.isfinite(top) else math.inf, largest.get(name, 0.0))

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Diagnosis:
    """Why a step is not finite: its samples (only the bad ones where the loss shows them), the largest activation."""

    samples: list[str]
    in_loss: bool
    activation: float
    layer: str


@torch.no_grad()
def diagnose(
    module: torch.nn.Module, losses_of: Callable[[Part], torch.Tensor], batches: list[Part], device: torch.device
) -> Diagnosis:
    """Compute a step's losses once more, and watch every layer."""
    with watch_activations(module) as largest:
        losses = [loss for batch in batches for loss in losses_of(batch.to(device)).tolist()]
    names = [name for batch in batches for name in batch.samples]
    bad = [name for name, loss in zip(names, losses) if not math.isfinite(loss)]
    layer = max(largest, key=lambda name: largest[name])
    return Diagnosis(bad or names, bool(bad), largest[layer], layer)


def skip_step(progress: Progress, policy: str, norm: float, own: Diagnosis) -> None:
    """Report a step that is not finite, from the diagnoses of all processes, and count it; or end the run.

    It ends with the policy `stop`, or where three steps before were skipped in a row.
    """
    worst = max(gather_object([own]), key=lambda one: (one.in_loss, one.activation))
    message = (
        f"step {progress.step}: {'the loss' if worst.in_loss else 'the gradient'} is not finite (gradient norm "
        f"{norm:g}); samples {', '.join(worst.samples)}; largest activation {worst.activation:g} in {worst.layer}"
    )
    if policy == "stop" or progress.skipped_in_a_row >= SKIPS_IN_A_ROW:
        raise UserError(f"{message}; skipped before: {progress.skipped or 'none'}. {ADVICE}")
    logger.warning("%s: skip", message)
    progress.skipped.append(progress.step)
    progress.skipped_in_a_row += 1
