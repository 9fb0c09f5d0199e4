"""What this machine is: the facts that stand beside its figures."""

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from utils.devices import describe_device, device_memory
from utils.parallel import available_cores
from utils.runs import package_versions


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, its memory, cores, versions; `free_gib` is of this moment."""
    total, free = device_memory(device)
    return {
        "device": describe_device(device),
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "type": device.type,
        "devices": torch.cuda.device_count() if device.type == "cuda" else 1,
        "memory_gib": round(total / 2**30, 1),
        "free_gib": round(free / 2**30, 1),
        "cores": available_cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": nvidia_driver() if device.type == "cuda" else None,
        "packages": package_versions(),
    }


def processor_name() -> str:
    """The processor's name: `AMD EPYC …`, `Apple M2 Max`."""
    found = ""
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    elif platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return found or platform.processor() or platform.machine()


def nvidia_driver() -> str | None:
    """The version of NVIDIA's driver; None where nvidia-smi can't say."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None
