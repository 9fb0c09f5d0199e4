"""The peak memory of train_lora.py for one step on few images and on many, first encoded and then cached.

python tests/benchmarks/encoding_memory.py
python tests/benchmarks/encoding_memory.py --num_images 600 12000 --size 64
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = (
    "--pretrained_model_name_or_path demo --max_train_steps 1 --validation_steps 0 --report_to none --overwrite"
).split()


def draw(folder: Path, count: int, size: int) -> None:
    """Images of noise, of which no two are alike, and captions."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(noise.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{number:06d}.png")
        (folder / f"{number:06d}.txt").write_text(f"a photo of shoe {number % 20}")


def peak_mib(data: Path, size: int) -> float:
    command = [sys.executable, "train_lora.py", *FLAGS, "--resolution", str(size), "--train_data_dir", str(data)]
    command += ["--output_dir", f"{data}-run", "--latent_cache_dir", f"{data}-cache"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: ended with status {status}")
    return usage.ru_maxrss / 1024


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        for count in args.num_images:
            data = Path(name) / str(count)
            draw(data, count, args.size)
            first, cached = peak_mib(data, args.size), peak_mib(data, args.size)
            print(f"{count:,} images: {first:.0f} MiB while they are encoded, {cached:.0f} MiB cached", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, nargs="+", default=[600, 6000], help="default: 600 6000")
    parser.add_argument("--size", type=int, default=64, help="side in pixels; default: 64")
    main(parser.parse_args())
