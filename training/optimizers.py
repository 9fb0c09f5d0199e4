"""Optimizers by name, and the learning rate as a function of the step."""

import logging
from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler

from utils.cli import UserError

logger = logging.getLogger(__name__)


def make_optimizer(
    name: str, groups: list[dict], betas: tuple[float, float], weight_decay: float, epsilon: float, device: torch.device
) -> torch.optim.Optimizer:
    """`groups` are {"params", "lr"}; AdamW in one fused kernel where the device has one."""
    adam = {"betas": betas, "weight_decay": weight_decay, "eps": epsilon}
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except Exception as error:  # missing, or built for another CUDA: it raises what it likes
            raise UserError(
                f"--optimizer adamw8bit: bitsandbytes can't be used ({' '.join(str(error).split())[:200]}); "
                "pip install -r requirements-cuda.txt, or take --optimizer adamw"
            ) from None
        return AdamW8bit(groups, **adam)
    if name == "prodigy":
        from prodigyopt import Prodigy

        if len({group["lr"] for group in groups}) > 1:
            raise UserError(
                "--optimizer prodigy: finds one rate for all that is trained; leave out --text_encoder_lr, "
                "or take --optimizer adamw"
            )
        if groups[0]["lr"] < 0.1:
            logger.warning(
                "--optimizer prodigy: --learning_rate %g multiplies the rate that it finds; 1 is usual, and with so "
                "little nothing may be learnt", groups[0]["lr"]
            )  # fmt: skip
        return Prodigy(groups, **adam, use_bias_correction=True, safeguard_warmup=True)
    if name == "adafactor":
        return torch.optim.Adafactor(groups, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, **adam, fused=device.type in ("cuda", "cpu", "mps"))


def rate_schedule(
    name: str, rates: list[float], warmup: int, steps: int, cycles: int, power: float
) -> Callable[[int], list[float]]:
    """The rate of each group at a step, from diffusers' schedules: a function of the step, so nothing to resume."""
    # A throw-away optimizer: the polynomial schedule reads the first rate from it, and every group falls in proportion.
    dummy = torch.optim.SGD([torch.zeros(1)], lr=rates[0])
    try:
        schedule = get_scheduler(
            name, dummy, num_warmup_steps=warmup, num_training_steps=steps, num_cycles=cycles, power=power
        )
    except ValueError as error:  # of the polynomial one, which ends at 1e-7
        raise UserError(f"--lr_scheduler {name}: --learning_rate {rates[0]:g} is too low for it ({error})") from None
    (factor,) = schedule.lr_lambdas
    return lambda step: [rate * factor(step) for rate in rates]


def set_rates(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
