"""One optimizer step around a script's own forward and backward: when memory gives out, or numbers are not finite."""

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from families.sampling import Cores, share_cores
from training import batches, guards
from training.session import Session
from training.training import Training, skip_step
from utils import devices
from utils.cli import UserError

logger = logging.getLogger(__name__)


class Gradients(NamedTuple):
    """What a step's samples gave: `rows` are what the script notes of each sample, its loss first."""

    parts: list[dict]
    rows: list[list[float]]
    norm: float
    micro: int  # samples at once: fewer where memory ran out

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm) and all(math.isfinite(row[0]) for row in self.rows)


def train_cores(device: torch.device, rows: int) -> Cores | None:
    """A CPU's cores, each to take a part of a micro-batch; None elsewhere, or where torch is held to one thread."""
    return share_cores(rows, torch.get_num_threads()) if device.type == "cpu" else None


def go_backward(
    learn: Callable, part: dict, number: int, parameters: list[torch.nn.Parameter], cores: Cores | None
) -> torch.Tensor:
    """`learn` from a micro-batch, its gradients added to what is there; the rows of its samples."""
    count = len(part["samples"])
    if cores is None or count < 2 * cores.parts:
        return learn(part, number, torch.Tensor.backward)

    def work(piece: dict) -> tuple[list, torch.Tensor]:
        grads = []  # apart from those of the other threads

        def backward(loss: torch.Tensor) -> None:
            grads.extend(torch.autograd.grad(loss, parameters, allow_unused=True))

        rows = learn(piece, number, backward)
        return grads, rows

    pieces = batches.split_batch(part, math.ceil(count / cores.parts))
    found = list(cores.pool.map(work, pieces))
    for grads, _ in found:  # in order, so that equal runs are equal to the byte
        for parameter, grad in zip(parameters, grads):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
    return torch.cat([rows for _, rows in found])


def compute_gradients(
    training: Training,
    parts: list[dict],
    micro: int,
    learn: Callable[[dict, int, Callable], torch.Tensor],
    accelerator: Accelerator,
    max_norm: float,
    cores: Cores | None = None,
) -> Gradients:
    """Forward and backward of all parts, the gradients summed over the processes and clipped.

    `learn(part, number, backward)` goes forward with one micro-batch and calls `backward` with its loss; what it gives
    back are rows, one a sample. It is called again for the same samples where memory ran out (half as many at once) or
    a float16 gradient overflowed (at half the scale).
    """
    optimizer, scaler = training.optimizer, training.scaler
    while True:
        parts = [half for part in parts for half in batches.split_batch(part, micro)]
        rows = None
        try:
            there = (batches.to_device(part, accelerator.device) for part in parts)
            rows = [go_backward(learn, part, i, training.parameters, cores) for i, part in enumerate(there)]
        except RuntimeError as error:
            if not devices.out_of_memory(error):
                raise
            if micro == 1:
                raise UserError(guards.NO_ROOM) from error
        if rows is None:  # told here, where the error and the tensors that it holds are gone
            micro = math.ceil(micro / 2)
            optimizer.zero_grad()
            devices.free_memory(accelerator.device)
            logger.warning("out of memory: %d samples at once from here on, as many a step as before", micro)
            continue
        guards.reduce_gradients(accelerator, training.parameters)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(training.parameters, max_norm)
        table = accelerator.gather(torch.cat(rows))
        width = table.shape[1]
        *flat, norm = torch.cat([table.flatten(), norm.reshape(1)]).tolist()  # the step's only wait for the device
        found = Gradients(parts, [flat[i : i + width] for i in range(0, len(flat), width)], norm, micro)
        overflow = scaler.is_enabled() and scaler.get_scale() > 1 and not math.isfinite(norm)
        if not (overflow and all(math.isfinite(row[0]) for row in found.rows)):
            return found
        scaler.update()  # to half the scale
        optimizer.zero_grad()


def end_step(training: Training) -> None:
    training.scaler.update()  # after a skipped step too: it refuses to unscale twice without
    training.optimizer.zero_grad()
    training.progress["step"] += 1


def follow_weights(training: Training, decay: float) -> None:
    """After the optimizer's step: the average follows the weights, and the step is done."""
    if training.average is not None:
        torch._foreach_lerp_(training.average, training.parameters, 1 - decay)
    training.progress["skipped_in_a_row"] = 0
    end_step(training)


def skip_nonfinite(
    session: Session, found: Gradients, policy: str, scheduler, features: Callable, autocast: Callable
) -> None:
    """A step that is not finite changes nothing; its cause is looked for in every process, and told."""
    training, device = session.training, session.accelerator.device
    cause = guards.diagnose(training.unet, scheduler, found.parts, features, device, autocast)
    story = guards.tell_nonfinite(training.progress["step"], found.norm, gather_object([cause]))
    skip_step(policy, story, training, session.saved[-1] if session.saved else None, session.identity)
    end_step(training)
