"""What a model reads of many prompts, on the disk: of FLUX.2 Klein 8 to 13 MB each."""

from __future__ import annotations

import os
import tempfile
from typing import NamedTuple

import torch

from families.diffusion import Features


class Place(NamedTuple):
    """Of a tensor in the file."""

    start: int
    shape: torch.Size
    dtype: torch.dtype


class FeatureFile:
    """Features by their text, in a file of the system's temporary folder that has no name and ends with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as this
        self._places: dict[str, dict[str, Place]] = {}

    def add(self, text: str, features: Features) -> None:
        """Append what lies on the CPU."""
        places = {}
        for name, tensor in features.items():
            places[name] = Place(self._file.seek(0, os.SEEK_END), tensor.shape, tensor.dtype)
            self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._file.flush()
        self._places[text] = places

    def __getitem__(self, text: str) -> Features:
        """On the CPU; several threads may read at the same time."""
        return {name: self._read(place) for name, place in self._places[text].items()}

    def _read(self, place: Place) -> torch.Tensor:
        size = place.shape.numel() * place.dtype.itemsize
        read = bytearray(os.pread(self._file.fileno(), size, place.start))
        return torch.frombuffer(read, dtype=place.dtype).reshape(place.shape)
