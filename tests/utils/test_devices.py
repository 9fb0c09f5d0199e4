import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from check_environment import suggest_batch, suggest_config
from utils import devices
from utils.cli import UserError

CPU, MPS, CUDA = (torch.device(name) for name in ("cpu", "mps", "cuda"))


def test_half_precision_on_this_cpu_agrees_with_float32():
    for dtype in (torch.float16, torch.bfloat16):
        errors = devices.probe_dtype(CPU, dtype)
        assert set(errors) == {"attention", "group_norm", "vae_decode"}
        assert all(0 < error < devices.TOLERANCE[dtype] for error in errors.values())  # 0 would be float32 after all
        assert devices.probe_failure(CPU, dtype) is None


@pytest.mark.parametrize(("broken", "message"), [(float("nan"), "NaN or infinity"), (1.3, "is off by 30")])
def test_probe_names_the_operation_that_is_wrong(monkeypatch, broken, message):
    attention = F.scaled_dot_product_attention

    def wrong(q, k, v, **options):
        return attention(q, k, v, **options) * (broken if q.dtype == torch.float16 else 1)

    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    failure = devices.probe_failure(CPU, torch.float16)
    assert failure.startswith("attention") and message in failure


def test_probes_leave_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    devices.probe_dtype(CPU, torch.float16)
    assert torch.equal(before, torch.get_rng_state())


def test_mps_trains_in_float32_and_so_does_a_cpu():
    for device in (MPS, CPU):
        assert devices.choose_precision(device)[:2] == ("no", torch.float32)
    assert "black images" in devices.choose_precision(MPS).reason


@pytest.mark.parametrize(("real", "choice"), [(True, "bf16"), (False, "fp16")])
def test_cuda_takes_bf16_where_the_chip_has_it_and_else_fp16(monkeypatch, real, choice):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: real or including_emulation)
    monkeypatch.setattr(devices, "probe_failure", lambda device, dtype: None)
    assert devices.choose_precision(CUDA).mixed_precision == choice


def test_a_failed_probe_means_float32_with_the_reason(monkeypatch):
    monkeypatch.setattr(devices, "probe_failure", lambda device, dtype: "group_norm gives NaN or infinity")
    for device, wanted in ((MPS, "fp16"), (CPU, "bf16")):
        precision = devices.choose_precision(device, wanted)
        assert precision.mixed_precision == "no" and "group_norm gives NaN" in precision.reason


def test_what_was_asked_for_is_followed_where_the_probe_passes():
    assert devices.choose_precision(CPU, "bf16")[:2] == ("bf16", torch.bfloat16)
    assert devices.choose_precision(CPU, "no")[:2] == ("no", torch.float32)


def test_a_device_without_kernels_is_detected(monkeypatch):
    assert devices.kernel_error(CPU) is None

    def no_kernels(self, other):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.Tensor, "__matmul__", no_kernels)
    assert devices.kernel_error(CPU) == "CUDA error: no kernel image is available for execution on the device"


def test_seed_repeats_every_generator():
    values = []
    for _ in range(2):
        devices.seed_everything(2**40 + 1)
        values.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert values[0] == values[1]


def test_the_cpu_is_used_where_a_launch_config_asks_for_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.pick_device() == CUDA
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.pick_device() == CPU


def test_an_intel_gpu_is_refused_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)  # a build and a GPU that aren't here
    with pytest.raises(UserError, match="XPU.* not supported; set ACCELERATE_USE_CPU=true"):
        devices.pick_device()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.pick_device() == CPU


def test_rocm_is_used_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "AMD Instinct MI300X")
    assert devices.describe_device(CUDA) == "AMD Instinct MI300X (ROCm 7.1)"
    devices.start_accelerator("no")
    assert "ROCm is not tested" in caplog.text


def test_memory_of_this_machine_is_plausible():
    total, free = devices.device_memory(CPU)
    assert total > 2**30 and 0 < free <= total


@pytest.mark.parametrize(
    ("kind", "memory", "effective", "batch"),
    [
        ("mps", 24, 16, 2),
        ("cpu", 8, 16, 2),
        ("cuda", 16, 16, 16),
        ("cuda", 22, 64, 16),
        ("cuda", 39.4, 64, 32),
        ("cuda", 8, 16, 4),
        ("cuda", 4, 16, 1),
        ("cuda", 80, 6, 6),
    ],
)
def test_suggested_batch_divides_the_effective_one(kind, memory, effective, batch):
    assert suggest_batch(kind, memory, effective) == batch


@pytest.mark.parametrize(
    ("gpu", "memory", "real_bf16", "config"),
    [
        ("Tesla T4", 14.6, False, "t4"),
        ("NVIDIA T400 4GB", 3.8, False, "t4"),
        ("NVIDIA GeForce GTX 1080", 7.9, False, "t4"),
        ("Tesla V100-SXM2-16GB", 15.8, False, "v100"),
        ("Tesla P100-PCIE-16GB", 15.9, False, "p100"),
        ("NVIDIA L4", 22.0, True, "l4"),
        ("NVIDIA A10G", 22.1, True, "rtx_4090"),
        ("NVIDIA GeForce RTX 3090", 23.7, True, "rtx_4090"),
        ("NVIDIA GeForce RTX 4090", 23.5, True, "rtx_4090"),
        ("NVIDIA GeForce RTX 5090", 31.4, True, "rtx_4090"),
        ("NVIDIA A100-SXM4-40GB", 39.4, True, "a100_40gb"),
        ("NVIDIA L40S", 44.4, True, "a100_40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.2, True, "a100"),
        ("NVIDIA B200", 178.4, True, "a100"),
        ("NVIDIA H100 80GB HBM3", 79.1, True, "h100"),
        ("NVIDIA GH200 480GB", 95.0, True, "h100"),
        ("NVIDIA H200", 139.8, True, "h100"),
    ],
)
def test_suggested_config_fits_the_gpu(monkeypatch, gpu, memory, real_bf16, config):
    monkeypatch.setattr(devices, "has_real_bf16", lambda device: real_bf16)
    assert suggest_config("cuda", gpu, memory, 1) == f"accelerate_configs/{config}.yaml"
    assert suggest_config("cuda", gpu, memory, 8) == "accelerate_configs/multi_gpu.yaml"
