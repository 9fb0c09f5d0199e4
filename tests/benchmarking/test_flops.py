"""The operations of a step beside published counts, and which devices have a known peak."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.flops import count_flops, flops_utilisation, peak_flops
from families import models
from families.lora import Adapter
from families.published import write_configs
from training import memory
from training.memory import Load

LORA = Load(Adapter(8, 16), micro_batch=1, height=512, width=512, gradient_checkpointing=False)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return str(write_configs("sd1", tmp_path_factory.mktemp("sd15")))


def run_unet(model: str) -> None:
    """The UNet of SD 1.5 forward, for an image of 512x512."""
    unet = models.build_part(model, "unet")
    shapes = (1, 4, 64, 64), (1,), (1, 77, 768)
    with torch.no_grad():
        unet(*(torch.empty(shape, device="meta") for shape in shapes))


def test_the_unet_of_sd15_has_the_published_operations(sd15):
    """339 GMACs are published (arXiv 2312.00858 among others), by counters that miss attention's two products."""
    with FlopCounterMode(display=False) as counter:
        run_unet(sd15)
    counts = counter.get_flop_counts()["Global"]
    attention = counts.pop(torch.ops.aten.bmm)
    assert sum(counts.values()) / 2 == pytest.approx(339e9, rel=0.005)
    # A product of n x n weights for each of n queries, twice; self-attention over 4096 tokens is most of it.
    tokens = {4096: (320, 5), 1024: (640, 5), 256: (1280, 5), 64: (1280, 1)}
    expected = sum(2 * n * (n + 77) * width * layers for n, (width, layers) in tokens.items())
    assert attention / 2 == pytest.approx(expected, rel=0.001)
    assert count_flops(lambda: run_unet(sd15)) == attention + sum(counts.values())


def test_a_step_of_all_weights_takes_three_times_the_forward_pass_and_of_a_lora_little_more_than_twice(sd15):
    forward = count_flops(lambda: run_unet(sd15))
    lora = count_flops(memory.build_step(sd15, "sd1", LORA).run)
    full = count_flops(memory.build_step(sd15, "sd1", dataclasses.replace(LORA, adapter=None)).run)
    assert 2 < lora / forward < 2.2  # frozen weights have no gradients
    assert full / forward == pytest.approx(3, rel=0.01)  # the first layer's input has none


def test_twice_the_batch_is_twice_the_operations_in_any_precision():
    demo = str(models.DEMO_MODEL)
    small = Load(Adapter(8, 16), micro_batch=1, height=128, width=128, gradient_checkpointing=False)
    once = count_flops(memory.build_step(demo, "sd1", small).run)
    half = dataclasses.replace(small, micro_batch=2, dtype=torch.bfloat16)
    assert count_flops(memory.build_step(demo, "sd1", half).run) == 2 * once


@pytest.mark.parametrize(
    ("device", "mixed_precision", "tera"),
    [
        ("Tesla T4", "fp16", 65),
        ("Tesla T4", "no", 8.1),
        ("Tesla T4", "bf16", None),
        ("Tesla P100-PCIE-16GB", "fp16", 18.7),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "no", 156),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Apple M1", "no", 2.6),
        ("Apple M2 Max", "no", None),
    ],
)
def test_a_device_has_the_peak_of_its_maker_or_none(device, mixed_precision, tera):
    kind = "mps" if device.startswith("Apple") else "cuda"
    assert peak_flops({"name": device, "type": kind}, mixed_precision) == (tera and pytest.approx(tera * 1e12))
    assert peak_flops({"name": device, "type": "cpu"}, mixed_precision) is None


def test_the_utilisation_is_the_share_of_the_peak():
    assert flops_utilisation(2 * 10**12, 16.25, 65e12) == pytest.approx(0.5)
    assert flops_utilisation(10**12, 1, None) is None
