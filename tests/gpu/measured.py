"""Run a Python script as it is, and record its optimizer steps and its peak memory: ours and a peer's alike.

    python tests/gpu/measured.py --record FILE.json train_lora.py --max_train_steps 8

The rest of the command line is the script's own. The other flags put the script into the situation that a step of
check.py looks at: killed, with little free memory, with deterministic kernels, on a model with random weights.
"""

import argparse
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, metavar="FILE.json", help="what was measured")
    parser.add_argument("--kill_after", type=int, metavar="N", help="SIGKILL right after the N-th optimizer step")
    parser.add_argument("--leave_gib", type=float, metavar="GIB", help="occupy the device's memory but for this much")
    parser.add_argument("--refuse_samples", type=int, metavar="N", help="as if the memory were full with more")
    parser.add_argument("--deterministic", action="store_true", help="torch's deterministic kernels")
    parser.add_argument("--keep_noise", action="store_true", help="accept images that random weights draw")
    parser.add_argument("script", type=Path)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    return parser.parse_args()


def mps_gib() -> float:
    """What Metal holds for this process; MPS records no peak."""
    import torch

    return torch.mps.driver_allocated_memory() / 2**30 if torch.backends.mps.is_available() else 0.0


def record_steps(steps: list[float], held: list[float], kill_after: int | None) -> None:
    """Note when each optimizer step ended, whatever the optimizer, and what Metal held then."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def note(*_: object) -> None:
        steps.append(time.perf_counter())
        held.append(mps_gib())
        if len(steps) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(note)


def occupy(leave_gib: float) -> object:
    """Memory of the GPU that belongs to nobody until the process ends, so that the script really runs out of it."""
    import torch

    free = torch.cuda.mem_get_info()[0]
    return torch.empty(max(0, free - int(leave_gib * 2**30)), dtype=torch.uint8, device="cuda")


def refuse_samples(most: int) -> None:
    """Report full memory whenever a UNet gets more samples: on a CPU, where nothing else can be filled safely."""
    import torch
    from diffusers import UNet2DConditionModel

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, UNet2DConditionModel) and len(inputs[0]) > most:
            raise torch.OutOfMemoryError(f"out of memory, as if: {len(inputs[0])} samples")

    torch.nn.modules.module.register_module_forward_pre_hook(refuse)


def be_deterministic() -> None:
    """Kernels that give the same bytes each time; an error where torch has none."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA starts
    import torch

    torch.use_deterministic_algorithms(True)  # with warn_only, attention's backward pass would not be among them
    torch.backends.cudnn.benchmark = False


def keep_noise() -> None:
    """Check images as always, but keep those that random weights draw: noise, or of one colour."""
    from utils import image_checks

    find_fault = image_checks.find_fault

    def find_nan(image: object, finite: bool = True) -> str | None:
        fault = find_fault(image, finite)
        return None if finite else fault

    image_checks.find_fault = find_nan


def read_peaks(held: list[float]) -> dict[str, float]:
    """GiB: on a GPU what torch reserved and what tensors held of it, on a CPU the process's resident memory.

    On MPS the most that Metal held after a step or holds now.
    """
    import torch

    sys.path.insert(0, str(ROOT))
    from utils.devices import peak_memory_gib

    if not torch.cuda.is_initialized():
        return {"reserved": max(*held, mps_gib(), 0.0) or peak_memory_gib(torch.device("cpu"))}
    device = torch.device("cuda")
    return {"reserved": peak_memory_gib(device), "allocated": torch.cuda.max_memory_allocated() / 2**30}


def main(args: argparse.Namespace) -> None:
    sys.path[0] = str(args.script.resolve().parent)  # as Python itself would
    sys.argv = [str(args.script), *args.words]
    steps: list[float] = []
    held: list[float] = []
    started = time.perf_counter()
    if args.deterministic:
        be_deterministic()
    record_steps(steps, held, args.kill_after)
    if args.keep_noise:
        keep_noise()
    if args.refuse_samples:
        refuse_samples(args.refuse_samples)
    ballast = occupy(args.leave_gib) if args.leave_gib else None
    try:
        runpy.run_path(str(args.script), run_name="__main__")
    finally:
        del ballast
        seconds = time.perf_counter() - started
        record = {"seconds": seconds, "steps": [at - started for at in steps], "peak_gib": read_peaks(held)}
        args.record.write_text(json.dumps(record))


if __name__ == "__main__":
    main(parse_args())
