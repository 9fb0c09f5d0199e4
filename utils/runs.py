"""What a run leaves behind: the record of where and how it was made."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from utils.files import write_json

RECORDED = ("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "pillow")


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of this repository, with `+changes` where the files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def write_environment(path: Path, device: str, precision: str) -> None:
    """environment.json of a run: versions, device, precision and why, git commit, the exact command."""
    versions = {name: package_version(name) for name in RECORDED}
    environment = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "precision": precision,
        "packages": versions,
    }
    write_json(path, environment)
