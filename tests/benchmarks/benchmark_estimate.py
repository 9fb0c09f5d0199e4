"""How near the time that benchmark.py estimates for a training is to the time that the training takes.

By turns: benchmark.py from nothing, then the command that it recommends, on the demo's data and in a new folder; the
time is that of the whole process. It also shows whether the same settings are recommended each time.

    python tests/benchmarks/benchmark_estimate.py --repeats 3
    python tests/benchmarks/benchmark_estimate.py --train_data_dir runs/demo/dataset --max_train_steps 300

Run it on a machine that does nothing else.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.benchmarks.side_by_side import count_cores, others_busy

NEAR = 0.15  # of the real time
MAKE = (
    "demo/catalogue.py --output_dir {0}/catalogue --num_images 1800 --size 128 --seed 0",
    "prepare_dataset.py --config configs/demo_dataset.yaml --catalogue {0}/catalogue --output_dir {0}/data",
)


def run(words: list[str]) -> float:
    """The seconds of a script."""
    began = time.monotonic()
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def estimate_and_train(args: argparse.Namespace, data: Path, folder: Path) -> tuple[dict, float]:
    """What benchmark.py writes, and the seconds of the training that it recommends."""
    words = ["--recipe", str(args.recipe), "--train_data_dir", str(data), "--output_dir", str(folder / "benchmark")]
    run(["benchmark.py", *words, "--max_train_steps", str(args.max_train_steps), *shlex.split(args.benchmark_flags)])
    found = json.loads((folder / "benchmark/benchmark.json").read_text())
    command = shlex.split(found["recommended"]["command"])[1:]
    return found, run([*command, "--output_dir", str(folder / "run")])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("configs/demo_lora.yaml"))
    parser.add_argument("--train_data_dir", type=Path, help="default: what the demo makes")
    parser.add_argument("--max_train_steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--benchmark_flags", default="", help="more flags of benchmark.py, as one text")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    print(f"cores given: {count_cores():.2f}", flush=True)
    errors = []
    with tempfile.TemporaryDirectory() as name:
        data = args.train_data_dir or Path(name, "data")
        for words in MAKE if args.train_data_dir is None else ():
            run(shlex.split(words.format(shlex.quote(name))))
        for turn in range(args.repeats):
            before, began = others_busy(), time.monotonic()
            found, real = estimate_and_train(args, data.resolve(), Path(name, str(turn)))
            others = (others_busy() - before) / (time.monotonic() - began)
            estimated, best = found["estimate"]["seconds"], found["recommended"]
            errors.append(estimated / real - 1)
            settings = ", ".join(
                f"{key} {best[key]}" for key in ("train_batch_size", "gradient_checkpointing", "compile")
            )
            print(
                f"{estimated:.1f} s estimated, {real:.1f} s real: {errors[-1]:+.1%}; {settings}; others kept "
                f"{others:.2f} cores busy; {json.dumps(found['estimate'])}",
                flush=True,
            )
    near = sum(abs(error) <= NEAR for error in errors)
    print(f"cores given: {count_cores():.2f}")
    print(f"within {NEAR:.0%}: {near} of {len(errors)}; median {statistics.median(errors):+.1%}")
    sys.exit(near < len(errors))


if __name__ == "__main__":
    main(parse_args())
