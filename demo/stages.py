"""The training loop of the demo's stages: resumable, with the same weights as if it had never stopped."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from utils.cli import UserError

StepLoss = Callable[[torch.nn.Module, int, np.random.Generator], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """Optimizer steps, examples in a batch, and the highest learning rate."""

    steps: int
    batch: int
    peak: float


@dataclass(frozen=True)
class Stage:
    """What is trained: its name, which its files have, its plan, and what keys its random numbers beside the step."""

    name: str
    plan: Plan
    key: tuple[int, ...]


def train(
    stage: Stage, work: Path, model: torch.nn.Module, step_loss: StepLoss, device: str, average: float = 0.0
) -> torch.nn.Module:
    """Warm-up, cosine decay, clipping, a state to resume from every 200 steps; `average` > 0 returns the weights' EMA.

    `step_loss(model, step, rng)` takes its batch from `rng`, which depends on the stage and the step alone.
    """
    plan = stage.plan
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.peak, weight_decay=0.01, betas=(0.9, 0.99))
    shadow = {key: value.detach().clone() for key, value in model.state_dict().items()} if average else None
    state_path, log_path = work / f"{stage.name}.pt", work / f"{stage.name}.jsonl"
    first, seconds = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        if state["plan"] != asdict(plan):
            raise UserError(f"{state_path} is of {state['plan']}, the plan is now {plan}; remove it to start again")
        first, seconds = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        shadow = state["shadow"]
    began, losses = time.monotonic() - seconds, []
    for step in range(first, plan.steps):
        rate = plan.peak * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / plan.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = step_loss(model, step, np.random.default_rng([*stage.key, step]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise UserError(f"{stage.name}: loss {losses[-1]} at step {step}; the last good state is {state_path}")
        if shadow is not None:
            keep = min(average, (step + 1) / (step + 10))
            for key, value in model.state_dict().items():
                shadow[key].lerp_(value, 1 - keep)
        if (step + 1) % 200 == 0 or step + 1 == plan.steps:
            seconds = time.monotonic() - began
            line = {"step": step + 1, "loss": round(float(np.mean(losses)), 5), "seconds": round(seconds)}
            print(f"{stage.name} {line}", flush=True)
            with open(log_path, "a") as log:
                log.write(json.dumps(line) + "\n")
            losses.clear()
            state = {
                "step": step + 1,
                "seconds": seconds,
                "plan": asdict(plan),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**state, "shadow": shadow}, state_path.with_suffix(".tmp"))
            os.replace(state_path.with_suffix(".tmp"), state_path)
    if shadow is not None:
        model.load_state_dict(shadow)
    return model.eval().requires_grad_(False)
