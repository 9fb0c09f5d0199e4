"""Layers that add nothing at first, so that a voice begins with the sound that it has."""

import torch


def zero_(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)


def silence(layer: torch.nn.Module) -> None:
    """Make what a layer adds zero; of a weight with its norm apart the direction stays, so that it can be trained."""
    for name, parameter in layer.named_parameters():
        if not name.endswith("original1"):
            torch.nn.init.zeros_(parameter)
