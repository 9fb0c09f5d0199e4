"""What each of several processes holds of a tiny model's weights, gradients and optimizer state, in lines of JSON.

`launch("tests.held_shares", [model], …)` of tests/tiny_runs.py starts it; the training is build_training's own.
"""

import argparse
import json

import torch
from torch.distributed.tensor import DTensor

from families import lora
from training.build import Recipe, build_training
from training.optimizers import OptimizerSettings
from utils import devices


def parse_args(words: list[str]) -> argparse.Namespace:
    return argparse.Namespace(model=words[0], verbose=False, debug=False)


def main(args: argparse.Namespace) -> None:
    accelerator, precision = devices.start_accelerator("no")
    optimizer = OptimizerSettings("adamw", (0.9, 0.999), 0.01, 1e-8)
    for kind, adapter in (("lora", lora.Adapter(4, 8)), ("full", None)):
        recipe = Recipe(adapter, 1e-3, 1e-3, optimizer, 0, shards=accelerator.num_processes)
        training = build_training(args.model, "sd1", recipe, precision, accelerator.device, ["a"], {}, {}).training
        unet = training.modules["unet"]
        text = torch.ones(1, 77, unet.config.cross_attention_dim)
        unet(torch.ones(1, 4, 8, 8), torch.tensor([1]), text).sample.sum().backward()
        (steps,) = training.optimizers.values()
        steps.step()
        states = [one for values in steps.state.values() for name, one in values.items() if name != "step"]
        gradients = [one.grad for one in training.parameters]
        for name, tensors in {"weights": [*unet.parameters()], "gradients": gradients, "optimizer": states}.items():
            divided = all(isinstance(one, DTensor) for one in tensors)
            own, whole = sum(one.to_local().numel() for one in tensors), sum(one.numel() for one in tensors)
            line = json.dumps([f"{kind} {name}", accelerator.process_index, divided, own, whole])
            print(line + "\n", end="", flush=True)  # in one piece: two processes write to one file
