"""Each Python with this folder on its PYTHONPATH reports the GPUs of SIMULATED_DEVICE, and computes on the CPU.

    SIMULATED_DEVICE=cuda:2 PYTHONPATH=tests/simulated_device accelerate launch …     # two NVIDIA GPUs; mps:1 a Mac's

Python imports a module of this name at its start, and so in the launcher and in every process that it starts.
"""

import os
from typing import Any

import torch

kind, count = os.environ["SIMULATED_DEVICE"].split(":")
to, init_process_group = torch.Tensor.to, torch.distributed.init_process_group


def stay(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Tensor.to that takes the dtype and leaves the device."""
    return to(tensor, *(one for one in args if not isinstance(one, torch.device)), **kwargs)


def use_gloo(backend: str, **kwargs: Any) -> None:
    assert backend == "nccl", backend  # which Accelerate chose
    init_process_group("gloo", **kwargs)


torch.Tensor.to = stay  # type: ignore[method-assign,assignment]
if kind == "mps":
    torch.backends.mps.is_available = torch.backends.mps.is_built = lambda: True
else:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: int(count)
    torch.cuda.set_device = lambda device: None
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # bitsandbytes imports it where there is a GPU
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.distributed.is_nccl_available = lambda: True
    torch.distributed.init_process_group = use_gloo
