"""Install the pinned packages with uv, pip-tools and pip, each in a fresh environment, and see whether they work there.

    make check-install
    python tests/check_install.py requirements-training.txt requirements-cuda.txt

Run it before a release, not with the tests: on Linux each environment takes 6 GB, since torch has the CUDA libraries.
They lie in a temporary folder (TMPDIR), one at a time, and are removed.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ["requirements-training.txt", "requirements-cloud.txt"]
MULTIPLY = """
import torch
product = torch.arange(6.0).reshape(2, 3) @ torch.ones(3, 2)
assert product.tolist() == [[3.0, 3.0], [12.0, 12.0]], product
print("torch", torch.__version__, "multiplies, built for CUDA", torch.version.cuda)
"""
# What the README.md of an experiment shows, with small numbers.
ON_THE_DEMO = (
    "demo/catalogue --output_dir data/drawn --num_images 40 --size 128",
    "prepare_dataset --catalogue data/drawn --output_dir data/demo --resolution 128 --tokenizer demo",
    "train_lora --config repository/configs/demo_lora.yaml --train_data_dir data/demo --output_dir runs/demo "
    "--max_train_steps 3 --validation_steps 0 --num_validation_images 0",
)


def run(*words: str | Path, folder: Path = ROOT) -> None:
    subprocess.run(words, cwd=folder, check=True)


def install(tool: str, python: Path, files: list[str]) -> None:
    """Make the environment of this `python` and fill it with what the files pin."""
    folder = python.parent.parent
    options = [word for file in files for word in ("-r", file)]
    if tool == "uv":
        run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, folder)
        run(sys.executable, "-m", "uv", "pip", "sync", "--quiet", "--python", python, *files)
    else:
        run(sys.executable, "-m", "venv", folder)
        if tool == "pip-tools":
            run(sys.executable, "-m", "piptools", "sync", "--quiet", "--python-executable", python, *files)
        else:
            run(python, "-m", "pip", "install", "--quiet", *options)


def check(python: Path) -> None:
    """Every package finds those that it requires; torch computes; the environment's own check passes."""
    run(sys.executable, "-m", "uv", "pip", "check", "--quiet", "--python", python)
    run(python, "-c", MULTIPLY)
    run(python, "check_environment.py")


def check_experiment(python: Path, folder: Path) -> None:
    """An experiment of one's own, installed beside the packages of this `python`, trains on the demo by its command."""
    run(sys.executable, "new_experiment/create.py", "--name", "my_check", "--output_dir", folder)
    run(sys.executable, *"-m uv pip install --quiet --no-deps --python".split(), python, "--editable", folder)
    for step in ON_THE_DEMO:
        run(python.parent / "my-check", *step.split(), folder=folder)
    run(python, "-m", "my_check.data", "data/demo", folder=folder)


def main() -> None:
    for tool in ("uv", "pip-tools", "pip"):
        with tempfile.TemporaryDirectory(prefix="check_install_") as folder:
            python, start = Path(folder, "env", "bin", "python"), time.perf_counter()
            install(tool, python, sys.argv[1:] or FILES)
            seconds = time.perf_counter() - start
            check(python)
            check_experiment(python, Path(folder, "experiment"))
            print(f"{tool}: the environment works; installed in {seconds:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
