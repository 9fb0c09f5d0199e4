"""Optimizers by name, and the learning rate as a function of the step."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from families.quantized import load_bitsandbytes
from utils.cli import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimizerSettings:
    name: str
    betas: tuple[float, float]
    weight_decay: float
    epsilon: float


@dataclass(frozen=True)
class Schedule:
    """One of diffusers' learning-rate schedules; `cycles` and `power` are read by one of them each."""

    name: str
    warmup: int
    cycles: int
    power: float


def make_optimizer(
    settings: OptimizerSettings, groups: list[dict[str, Any]], device: torch.device
) -> torch.optim.Optimizer:
    """`groups` are {"params", "lr"}; AdamW in one fused kernel where the device has one."""
    adam: dict[str, Any] = {"betas": settings.betas, "weight_decay": settings.weight_decay, "eps": settings.epsilon}
    if settings.name == "adamw8bit":
        return load_adamw8bit()(groups, **adam)
    if settings.name == "prodigy":
        from prodigyopt import Prodigy

        _check_prodigy([group["lr"] for group in groups])
        return Prodigy(groups, **adam, use_bias_correction=True, safeguard_warmup=True)
    if settings.name == "adafactor":
        return torch.optim.Adafactor(groups, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, **adam, fused=device.type in ("cuda", "cpu", "mps"))


def load_adamw8bit() -> type[torch.optim.Optimizer]:
    """The class; refused where its package is missing or does not work."""
    return load_bitsandbytes("optimizer", "adamw8bit", "use --optimizer adamw").optim.AdamW8bit


def _check_prodigy(rates: list[float]) -> None:
    """Prodigy (Mishchenko and Defazio, 2023, arXiv 2306.06101) finds one rate, which the given one multiplies."""
    if len(set(rates)) > 1:
        raise UserError(
            "--optimizer prodigy: finds one rate for all that is trained; leave out --text_encoder_lr, "
            "or use --optimizer adamw"
        )
    if rates[0] < 0.1:
        logger.warning(
            "--optimizer prodigy: --learning_rate %g multiplies the rate that it finds; 1 is usual, and with so little "
            "nothing may be learnt",
            rates[0],
        )


def rate_schedule(schedule: Schedule, rates: list[float], steps: int) -> Callable[[int], list[float]]:
    """The rate of each group at a step: a function of the step, so that there is nothing to resume."""
    # A throw-away optimizer: the polynomial schedule reads the first rate from it, and every group falls in proportion.
    dummy = torch.optim.SGD([torch.zeros(1)], lr=rates[0])
    options = {"num_cycles": schedule.cycles, "power": schedule.power}
    try:
        scheduler = get_scheduler(
            schedule.name, dummy, num_warmup_steps=schedule.warmup, num_training_steps=steps, **options
        )
    except ValueError as error:  # of the polynomial one, which ends at 1e-7
        raise UserError(
            f"--lr_scheduler {schedule.name}: --learning_rate {rates[0]:g} is too low for it ({error})"
        ) from None
    (factor,) = scheduler.lr_lambdas
    return lambda step: [rate * factor(step) for rate in rates]


def set_rates(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
