"""How fast prepare_dataset.py is, against a plain single-process Pillow loop that does the same work; and its memory.

    python tests/benchmarks/prepare_speed.py                       # all three; about 5 minutes on 2 cores
    python tests/benchmarks/prepare_speed.py --only images --num_images 96

Run it on a machine that does nothing else.
"""

import argparse
import csv
import io
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from demo.catalogue import COLUMNS, product, write_catalogue
from demo.shoes import KINDS
from utils import images
from utils.parallel import available_cores

ROWS, TORN = 44_446, 22  # those of the full Fashion Product Images catalogue


def run_script(*words: object) -> tuple[float, str]:
    """Seconds from the command to its end, imports and start of the workers included; and what it printed."""
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "prepare_dataset.py"), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return time.perf_counter() - start, result.stdout


def plain_loop(catalogue: Path, output: Path) -> float:
    """The same work as a plain loop: decode, turn, check, fit, hash, save."""
    start = time.perf_counter()
    output.mkdir()
    for path in sorted((catalogue / "images").iterdir()):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        if images.is_blank(image):
            continue
        square = images.fit_square(image, 512)
        images.perceptual_hash(square), images.colour_thumb(square)
        square.save(output / f"{path.stem}.png")
    return time.perf_counter() - start


def measure_images(folder: Path, count: int, workers: int) -> None:
    raw = folder / "raw"
    write_catalogue(raw, count, (1800, 2400), 0, list(KINDS), damage=False)
    size = sum(path.stat().st_size for path in (raw / "images").iterdir()) / count / 1024
    print(f"{count} JPEGs of 1800x2400, {size:.0f} KiB each on average")
    # Twice each, in turns, and the faster one counts: the first run also warms the disk's cache.
    ours, plain = [], []
    for turn in range(2):
        plain.append(plain_loop(raw, folder / f"plain{turn}"))
        words = ["--catalogue", raw, "--output_dir", folder / f"ours{turn}", "--num_workers", workers]
        ours.append(run_script(*words)[0])
    rates = [count / min(seconds) for seconds in (plain, ours)]
    print(f"plain loop, one process:          {rates[0]:6.1f} images/s")
    print(
        f"prepare_dataset.py, {workers} workers:     {rates[1]:6.1f} images/s, the whole command with start and report"
    )
    print(f"ratio: {rates[1] / rates[0]:.2f} (promised: 1.7)")


def write_table(folder: Path) -> None:
    """styles.csv in the size of the full catalogue, with its torn rows."""
    torn = set(random.Random(0).sample(range(ROWS), TORN))
    with open(folder / "styles.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for index in range(ROWS):
            row = list(product(0, index, list(KINDS)).values())
            if index in torn:
                file.write(",".join([*row[:-1], "Rook Shoes, red, wide"]) + "\n")
            else:
                writer.writerow(row)


def write_tiny(index: int, folder: Path) -> None:
    pixels = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(file, "JPEG")
    (folder / f"{10000 + index}.jpg").write_bytes(file.getvalue())


def measure_table(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    write_table(folder)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(write_tiny, folder=folder / "images"), range(ROWS), chunksize=500))
    words = ["--catalogue", folder, "--output_dir", folder.parent / "none", "--dry_run"]
    seconds, printed = min(run_script(*words) for _ in range(2))
    print(next(line for line in printed.splitlines() if line.startswith("torn")).partition("(")[0])
    print(f"table of {ROWS:,} rows, the whole command with --dry_run: {seconds:.2f} s (promised: under 5)")


def measure_memory(folder: Path, output: Path, workers: int) -> None:
    """The main process's peak when every image of the table is read and written; it holds none of them."""
    words = ["--catalogue", folder, "--output_dir", output, "--num_workers", workers, "--resolution", 64]
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import prepare_dataset as p\n"
        "if __name__ == '__main__':\n"
        "    p.main(p.parse_args(sys.argv[2:]))\n"
        "    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    script = folder.parent / "peak.py"  # a file: workers that are spawned import the main module again
    script.write_text(code)
    start = time.perf_counter()
    result = subprocess.run([sys.executable, script, str(ROOT), *map(str, words)], capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    seconds = time.perf_counter() - start
    unit = 1024**2 if sys.platform == "darwin" else 1024
    peak = int(result.stdout.split()[-1]) / unit
    print(f"main process at {ROWS:,} images: {peak:.0f} MiB at its peak (promised: under 1 GB), {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=200, help="of 1800x2400 pixels to draw (default: 200)")
    parser.add_argument("--num_workers", type=int, default=available_cores(), help="default: all cores")
    parser.add_argument("--only", choices=["images", "table", "memory"], help="default: all three")
    args = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, Pillow {Image.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.only in (None, "images"):
            measure_images(folder, args.num_images, args.num_workers)
        if args.only != "images":
            measure_table(folder / "table")
        if args.only in (None, "memory"):
            measure_memory(folder / "table", folder / "large", args.num_workers)


if __name__ == "__main__":
    main()
