"""The device and the precision to compute in, tested by small computations on the device itself; memory; seeds."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import random
import re
import sys
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from utils.cli import UserError
from utils.parallel import available_cores, end_with_launcher

if TYPE_CHECKING:  # imported only where it is needed: check_environment.py must work without it
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The largest relative error of a half-precision result that is accepted: about 8 times what rounding explains.
TOLERANCE = {torch.float16: 0.01, torch.bfloat16: 0.06}
RETRY_SEEDS = 10**9  # between the seeds of one item's tries
HIGHEST_SEED = RETRY_SEEDS - 1  # of an item's first try


class Precision(NamedTuple):
    """A precision to train in: accelerate's name for it, the dtype of frozen weights, and the reason for the log."""

    mixed_precision: str
    dtype: torch.dtype
    reason: str


def pick_device() -> torch.device:
    """The best device that this torch build offers: CUDA (or ROCm), then MPS, then CPU; an Intel GPU is refused.

    `accelerate launch --cpu` and `use_cpu: true` in its config set ACCELERATE_USE_CPU, which is followed.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if torch.xpu.is_available():
        raise UserError("Intel GPUs (XPU) are not supported; set ACCELERATE_USE_CPU=true to compute on the CPU")
    return torch.device("cpu")


def describe_device(device: torch.device) -> str:
    """The device's name, for the log and environment.json."""
    if device.type == "mps":
        return "Apple GPU (MPS)"
    if device.type != "cuda":
        return f"CPU with {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device)
    if torch.version.hip:
        return f"{name} (ROCm {torch.version.hip})"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{name} (sm_{major}{minor})"


def kernel_error(device: torch.device) -> str | None:
    """The error of a small computation on the device; None if its result is right.

    A GPU that is too old for the wheel (a P100 or V100 under CUDA 13) counts as available, but has no kernels.
    """
    try:
        x = torch.arange(64, dtype=torch.float32).reshape(8, 8)
        same = torch.allclose((x.to(device) @ x.to(device)).cpu(), x @ x)
    except RuntimeError as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None if same else "a matrix product on this device is wrong"


def working_device() -> torch.device:
    """The best device, or the CPU if that one fails to compute; check_environment.py reports why."""
    device = pick_device()
    return torch.device("cpu") if kernel_error(device) else device


def has_real_bf16(device: torch.device) -> bool:
    """False if bfloat16 is only emulated, as on a T4: correct, but slower than float32."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _probe_inputs(generator: torch.Generator) -> dict[str, torch.Tensor]:
    # Magnitudes as in a real UNet: logits in the tens, activations in the hundreds.
    return {
        "attention": torch.randn(3, 2, 4, 256, 64, generator=generator) * 3,
        "group_norm": torch.randn(2, 64, 32, 32, generator=generator) * 200 + 300,
        "vae_decode": torch.randn(1, 4, 8, 8, generator=generator),
    }


def _small_decoder() -> torch.nn.Module:
    from diffusers import AutoencoderKL  # here: check_environment.py must work without it

    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    ).decoder.eval()


@torch.no_grad()
def probe_dtype(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of attention, GroupNorm and a VAE decode against float32 on the CPU; may be NaN or infinite."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = _small_decoder()
    inputs = _probe_inputs(torch.Generator().manual_seed(0))
    compute: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "attention": lambda x: F.scaled_dot_product_attention(*x),
        "group_norm": lambda x: F.group_norm(x, 8),
        "vae_decode": decoder,
    }
    errors = {}
    for name, x in inputs.items():
        decoder.to("cpu", torch.float32)
        expected = compute[name](x)
        decoder.to(device, dtype)
        got = compute[name](x.to(device, dtype)).float().cpu()
        errors[name] = ((got - expected).norm() / expected.norm()).item()
    return errors


def probe_failure(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this dtype must not be used on this device; None if the probe passed."""
    try:
        errors = probe_dtype(device, dtype)
    except RuntimeError as error:
        return f"it fails with: {' '.join(str(error).split())}"
    for name, off in errors.items():
        if not off <= TOLERANCE[dtype]:  # `not <=` catches NaN too
            what = f"is off by {off:.1%}" if np.isfinite(off) else "gives NaN or infinity"
            return f"{name} {what}"
    return None


def choose_precision(device: torch.device, wanted: str | None = None) -> Precision:
    """The precision to train in; `wanted` ("no", "bf16", "fp16") is followed if a probe on this device passes."""
    if wanted == "no":
        return Precision("no", torch.float32, "float32, as requested")
    if wanted is None and device.type == "mps":
        return Precision("no", torch.float32, "float32, always on MPS: float16 there gives NaN and black images")
    if wanted is None and device.type == "cpu":
        return Precision("no", torch.float32, "float32 on a CPU")
    choice = wanted or ("bf16" if has_real_bf16(device) else "fp16")
    if failure := probe_failure(device, DTYPES[choice]):
        return Precision("no", torch.float32, f"float32 will be used, because in {choice} {failure}")
    if wanted:
        reason = f"{wanted}, as requested; the probe on this device passed"
    else:
        reason = "bf16: this GPU has it in hardware" if choice == "bf16" else "fp16: this GPU only emulates bf16"
    return Precision(choice, DTYPES[choice], reason)


def autocast(device: torch.device, precision: Precision) -> Callable[[], torch.autocast]:
    """A function that returns the context to train in. Accelerate's own does nothing in float16 on a CPU."""
    return functools.partial(torch.autocast, device.type, precision.dtype, precision.mixed_precision != "no")


def seed_everything(seed: int) -> None:
    """Seed every random generator. Not accelerate's set_seed: ours are keys of 64 bits, numpy takes 32."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def _random_again(state: torch.Tensor) -> Iterator[None]:
    now = torch.mps.get_rng_state()
    torch.mps.set_rng_state(state)
    try:
        yield
    finally:
        torch.mps.set_rng_state(now)


@contextlib.contextmanager
def _in_modes(modes: list[TorchFunctionMode]) -> Iterator[None]:
    with contextlib.ExitStack() as entered:
        for one in modes:
            entered.enter_context(one)
        yield


def checkpoint_options(device: torch.device) -> dict[str, Any]:
    """Options for torch's checkpoint: what is computed again in the backward pass is computed as in the forward pass.

    On MPS, torch keeps no random state for that (its issue 127676): the gradients would be of another dropout. On the
    meta device, the backward pass leaves the modes that choose dtypes there, in place of autocast.
    """
    again = {
        "mps": lambda: _random_again(torch.mps.get_rng_state()),
        "meta": lambda: _in_modes(_get_current_function_mode_stack()),
    }

    def contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        return contextlib.nullcontext(), again[device.type]()

    return {"use_reentrant": False} | ({"context_fn": contexts} if device.type in again else {})


def device_memory(device: torch.device) -> tuple[int, int]:
    """Total and free bytes of the device's memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    import psutil  # here: check_environment.py must work without it

    memory = psutil.virtual_memory()
    if device.type == "mps":  # shared with the CPU; Metal gives one process about three quarters of it
        total = torch.mps.recommended_max_memory()
        return total, min(memory.available, total - torch.mps.driver_allocated_memory())
    return memory.total, memory.available


def start_accelerator(wanted: str | None = None) -> tuple[Accelerator, Precision]:
    """Accelerate on this machine's device, in the precision that works there.

    `wanted`, or else the choice of an accelerate config, is followed if its probe passes.
    """
    from accelerate import Accelerator

    device = pick_device()
    if failure := kernel_error(device):
        raise UserError(
            f"this build of torch can't compute on this GPU ({failure}); check_environment.py says what to "
            'install, or set CUDA_VISIBLE_DEVICES="" to train on the CPU'
        )
    if torch.version.hip:
        logger.warning("ROCm is not tested with these scripts; compare the first results with those of a CPU")
    end_with_launcher()
    precision = choose_precision(device, wanted or os.environ.get("ACCELERATE_MIXED_PRECISION"))
    # cpu=True explicitly: a launch config for several GPUs would fail on a machine without any.
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision.mixed_precision), precision


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this process has held: the GPU's, or on a CPU the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    if sys.platform == "linux":  # not ru_maxrss, which a process inherits from the one that started it
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 2**20
    import resource  # here: Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def key_seed(*key: Hashable) -> int:
    """A seed of 64 bits that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")


def keyed_generator(*key: Hashable) -> torch.Generator:
    """A CPU generator that depends on the key alone."""
    return torch.Generator().manual_seed(key_seed(*key))


def nth_seed(seed: int, index: int, retry: int) -> int:
    """The seed of one item of a set: neighbours have neighbouring ones, each further try another one."""
    return seed + index + retry * RETRY_SEEDS


# How CUDA, its libraries, MPS and the CPU's allocators report it; only CUDA's own allocator has an exception for it.
# accelerate's should_reduce_batch_size knows three of these seven messages (tests/training/test_guards.py).
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")


@contextlib.contextmanager
def suppress_out_of_memory() -> Iterator[None]:
    """Leave the block where the device's memory is full; what it holds is free only after it."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise


@dataclass(frozen=True)
class Rows:
    """Samples that are computed together: one row each of every field, which is a tensor, a list or None."""

    samples: list[str]  # their names, for messages

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> Self:
        """On the device, asynchronously where it can."""

        def move(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)

        return replace(self, **{name: move(value) for name, value in vars(self).items()})

    def split(self, size: int) -> list[Self]:
        """In parts of at most `size` samples."""

        def take(start: int) -> dict[str, Any]:
            return {name: None if value is None else value[start : start + size] for name, value in vars(self).items()}

        return [replace(self, **take(start)) for start in range(0, len(self), size)]


class Cores(NamedTuple):
    """Threads that each compute a part of a batch."""

    pool: ThreadPoolExecutor
    parts: int


def use_torch_threads(count: int) -> None:
    """How many threads torch computes with where this thread calls it, whatever others set later."""
    torch.get_num_threads()  # torch's first use in a thread takes what any thread has set last, so it comes before
    torch.set_num_threads(count)


def share_cores(rows: int) -> Cores | None:
    """A CPU's cores, as many as torch may use, divided among parts of a batch of `rows`; None where one part is all.

    Two threads of one core each compute a quarter more than one of two: small layers leave the second core idle.
    """
    threads = min(available_cores(), torch.get_num_threads())
    parts = min(threads, rows // 4)
    if parts < 2:
        return None
    return Cores(ThreadPoolExecutor(parts, initializer=use_torch_threads, initargs=(threads // parts,)), parts)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that the device's memory is full."""
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in NO_MEMORY)
