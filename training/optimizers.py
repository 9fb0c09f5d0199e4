"""Optimizers by name, and the learning rate as a function of the step."""

import argparse
import ast
import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from families.quantized import load_bitsandbytes
from utils.cli import Range, UserError

logger = logging.getLogger(__name__)
LIMITS = {"momentum": Range(0, 1, below=True), "ns_steps": Range(1, 99, int)}  # of Muon's arguments


@dataclass(frozen=True)
class OptimizerSettings:
    name: str
    betas: tuple[float, float]
    weight_decay: float
    epsilon: float
    options: tuple[tuple[str, Any], ...] = ()  # further arguments of the optimizer


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
    check_options(settings)
    if settings.name == "prodigy":
        _check_prodigy([group["lr"] for group in groups])
    if settings.name == "muon":
        check_matrices(parameter for group in groups for parameter in group["params"])
    fused = {"fused": device.type in ("cuda", "cpu", "mps")} if settings.name == "adamw" else {}
    options = {**_own_options(settings), **fused, **dict(settings.options)}
    make = functools.partial(optimizer_class(settings.name), **options)
    try:
        if settings.options:
            _try_a_step(make, groups[0]["lr"], device)
        optimizer = make(groups)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        if not settings.options:
            raise
        given = " ".join(f"{name}={value}" for name, value in settings.options)
        raise UserError(f"--optimizer_args {given}: {' '.join(str(error).split())}; change or leave it out") from error
    return start_training(optimizer)


def _try_a_step(make: Callable[..., torch.optim.Optimizer], rate: float, device: torch.device) -> None:
    """Fails where an option that is only read in a step is wrong."""
    weight = torch.nn.Parameter(torch.ones(2, 2, device=device))
    weight.grad = torch.ones_like(weight)
    start_training(make([{"params": [weight], "lr": rate}])).step()


def start_training(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer, ready for steps, where it distinguishes them from what `averages` looks at."""
    if averages(optimizer):
        optimizer.train()
    return optimizer


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    if name == "adamw8bit":
        return load_adamw8bit()
    if name == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy
    if name == "adamwschedulefree":
        from schedulefree import AdamWScheduleFree

        return AdamWScheduleFree
    return {"adafactor": torch.optim.Adafactor, "muon": torch.optim.Muon}.get(name, torch.optim.AdamW)


def _own_options(settings: OptimizerSettings) -> dict[str, Any]:
    """What the flags that other optimizers share mean for this one."""
    decay = {"weight_decay": settings.weight_decay}
    if settings.name == "adafactor":
        return decay
    if settings.name == "muon":  # a step as long as AdamW's, whose rates then fit (arXiv 2502.16982)
        return decay if "adjust_lr_fn" in dict(settings.options) else decay | {"adjust_lr_fn": "match_rms_adamw"}
    more = {"use_bias_correction": True, "safeguard_warmup": True} if settings.name == "prodigy" else {}
    return decay | {"betas": settings.betas, "eps": settings.epsilon} | more


def averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it trains other weights than those that it gives: see training.state.averaged_weights."""
    return hasattr(optimizer, "eval")


def read_option(text: str) -> tuple[str, Any]:
    """`ns_steps=6` as (ns_steps, 6); what is no Python literal stays text."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def check_options(settings: OptimizerSettings) -> None:
    """Refuse an argument that the optimizer can't have: unknown, given twice or by a flag, or with a wrong value."""
    taken = {"lr": "--learning_rate", "weight_decay": "--adam_weight_decay", "eps": "--adam_epsilon"}
    taken |= {"betas": "--adam_beta1 and --adam_beta2", "params": "--lora_layers"}
    own = {"params", "lr", *_own_options(settings)} - {"adjust_lr_fn"}
    known = inspect.signature(optimizer_class(settings.name)).parameters if settings.options else {}
    free = sorted(set(known) - own - {"fused"})
    names = [name for name, _ in settings.options]
    for name, value in settings.options:
        start = f"--optimizer_args {name}={value}:"
        if names.count(name) > 1:
            raise UserError(f"{start} {name} is given twice; give it once")
        if name in own:
            raise UserError(
                f"{start} {f'use {taken[name]}' if name in taken else 'it is always set here; leave it out'}"
            )
        if name not in free:
            raise UserError(f"{start} --optimizer {settings.name} has no such argument; it has {', '.join(free)}")
        default = known[name].default
        if isinstance(default, (bool, int, float, str)) and not _is_like(value, default):
            raise UserError(f"{start} expected something like {default!r}, its default")
        try:
            LIMITS.get(name, str)(str(value))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--optimizer_args {name}={error}") from None


def _is_like(value: Any, default: bool | int | float | str) -> bool:
    """Whether it is of the same kind, where a whole number may stand for any."""
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)


def check_matrices(parameters: Iterable[torch.Tensor]) -> None:
    """Refuse what Muon can't train."""
    if other := next((tuple(one.shape) for one in parameters if one.ndim != 2), None):
        raise UserError(
            f"--optimizer muon: trains matrices alone, and one of what is trained has shape {other}; leave out "
            "--method full, a DoRA, or convolutions in --lora_layers, or use adamw"
        )


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
