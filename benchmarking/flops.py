"""How much of a device's computing power a training uses: the operations of a step, and the peaks of known devices."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.flop_counter import FlopCounterMode


class Peak(NamedTuple):
    """Dense TFLOP/s by precision; None: the chip does not compute in it, or its maker gives no figure."""

    float32: float  # in TF32 where the chip has it: torch's convolutions use it by default
    float16: float | None  # with sums in float32, as torch asks for
    bfloat16: float | None


# As the makers publish them, in data sheets and white papers; a figure with sparsity is halved. The key matches the
# whole name that torch gives: neither a part of a GPU (MIG) nor a variant (Ti, D, Laptop) gets another one's figure.
PEAKS = {
    r"Tesla P100-PCIE-\d+GB": Peak(9.3, 18.7, None),
    r"Tesla P100-SXM2-\d+GB": Peak(10.6, 21.2, None),
    r"Tesla V100-PCIE-\d+GB": Peak(14, 112, None),
    r"Tesla V100-(SXM2|SXM3)-\d+GB(-\w+)?": Peak(15.7, 125, None),
    r"Tesla V100S-PCIE-\d+GB": Peak(16.4, 130, None),
    r"Tesla T4": Peak(8.1, 65, None),
    r"NVIDIA GeForce RTX 3090": Peak(35.6, 71, 71),
    r"NVIDIA GeForce RTX 4080": Peak(48.7, 97.5, 97.5),
    r"NVIDIA GeForce RTX 4090": Peak(82.6, 165.2, 165.2),
    r"NVIDIA GeForce RTX 5080": Peak(56.3, 112.6, 112.6),
    r"NVIDIA GeForce RTX 5090": Peak(104.8, 209.5, 209.5),
    r"NVIDIA A10": Peak(62.5, 125, 125),
    r"NVIDIA A10G": Peak(35, 70, 70),
    r"NVIDIA RTX A6000": Peak(77.4, 154.8, 154.8),
    r"NVIDIA A40": Peak(74.8, 149.7, 149.7),
    r"NVIDIA A100(-SXM4-\d+GB|-PCIE-\d+GB| \d+GB PCIe)": Peak(156, 312, 312),
    r"NVIDIA L4": Peak(60, 121, 121),
    r"NVIDIA L40S": Peak(183, 362, 362),
    r"NVIDIA H100 PCIe": Peak(378, 756, 756),
    r"NVIDIA H100 NVL": Peak(417.5, 835.5, 835.5),
    r"NVIDIA (H100 80GB HBM3|GH200 \d+GB)": Peak(494.7, 989.4, 989.4),
    r"NVIDIA H200": Peak(494.7, 989.4, 989.4),
    r"NVIDIA H200 NVL": Peak(417.5, 835.5, 835.5),
    r"NVIDIA B200": Peak(1125, 2250, 2250),
    r"Apple M1": Peak(2.6, None, None),  # with 8 GPU cores; of later chips Apple gives no figure
}
PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}  # as accelerate calls them


def count_flops(run: Callable[[], object]) -> int:
    """The floating-point operations of matrix products and convolutions in what `run` computes; an addition is one.

    Attention counts as its two products and their gradients: what a fused kernel computes twice is work once. Run it on
    the meta device, without gradient checkpointing, for the same reason.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_flops(machine: dict[str, Any], mixed_precision: str) -> float | None:
    """FLOP/s of a machine (see `describe_machine`) at its best, as its maker gives them; None if that is not known."""
    if machine["type"] == "cpu":  # its name may be that of a chip that has a GPU too
        return None
    for name, peak in PEAKS.items():
        if re.fullmatch(name, machine["name"]):
            found = getattr(peak, PRECISIONS[mixed_precision])
            return found and found * 1e12
    return None


def flops_utilisation(flops: int, samples_per_second: float, peak: float | None) -> float | None:
    """The share of the peak that so many operations an image make: MFU (Chowdhery et al. 2022, arXiv 2204.02311)."""
    return flops * samples_per_second / peak if peak else None
