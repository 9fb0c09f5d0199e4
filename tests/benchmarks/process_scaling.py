"""How the cost of a sample grows with the number of processes: one recipe of train_lora.py as 1, 2 and 4 processes.

Each process has one thread, and as many samples at once as any other; the more processes, the fewer accumulations, so
that all train the same. The cost is that of the steps alone, the difference of a long and a short run, in CPU seconds
of all processes: where they share cores, these say what they would take if each had its own. A further column has the
seconds that passed, times the cores in use. The losses are compared with those of one process.

    python tests/benchmarks/process_scaling.py --repeats 3
    python tests/benchmarks/process_scaling.py --processes 1 2 --train_batch_size 8 --effective_batch_size 32

Run it on a machine that does nothing else.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.benchmarks.lora_speed import make_data
from tests.benchmarks.side_by_side import count_cores, others_busy, setting, spread
from utils.metrics_log import read_metrics, series


class Run(NamedTuple):
    seconds: float  # of the launcher, from start to end
    cpu: float  # CPU seconds of the launcher and all that it started
    losses: list[float]


class Cost(NamedTuple):
    """Of one sample, in the steps alone."""

    cpu: float  # CPU seconds
    core: float  # seconds that passed, times the cores in use


def command(args: argparse.Namespace, processes: int, steps: int) -> list[str]:
    words = "-m accelerate.commands.launch "
    if processes == 1:
        words += "--config_file accelerate_configs/cpu.yaml"
    else:
        words += f"--config_file accelerate_configs/cpu_2proc.yaml --num_processes {processes} --main_process_port 0"
    words += " train_lora.py --config configs/demo_lora.yaml --validation_steps 0 --checkpointing_steps 0"
    words += f" --logging_steps 1 --train_batch_size {args.train_batch_size} --max_train_steps {steps}"
    words += f" --effective_batch_size {args.effective_batch_size} --report_to none"
    return [sys.executable, *words.split()]


def measure(words: list[str], data: Path, out: Path) -> Run:
    place = ["--train_data_dir", str(data), "--latent_cache_dir", str(data.parent / "cache"), "--output_dir", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    began = time.perf_counter()
    with open(out.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen([*words, *place], cwd=ROOT, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(out.with_suffix(".log").read_text(errors="replace")[-3000:])
    seconds = time.perf_counter() - began
    losses = series(read_metrics(out / "metrics.jsonl"), "loss")[1]
    return Run(seconds, usage.ru_utime + usage.ru_stime, list(losses))


def find_cost(args: argparse.Namespace, processes: int, data: Path, folder: Path) -> tuple[Cost, list[float]]:
    """The cost of a sample, and the losses of the long run."""
    short, long = (
        measure(command(args, processes, steps), data, folder / f"{processes}_{steps}")
        for steps in (args.warmup_steps, args.warmup_steps + args.steps)
    )
    samples = args.steps * args.effective_batch_size
    cores = min(processes, os.cpu_count() or 1)
    return Cost((long.cpu - short.cpu) / samples, cores * (long.seconds - short.seconds) / samples), long.losses


def furthest(losses: list[float], others: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / a for a, b in zip(losses, others, strict=True))


def print_table(costs: dict[int, list[Cost]], apart: dict[int, float]) -> None:
    first = costs[min(costs)]
    print("\n| processes | CPU ms a sample | against the first | core ms a sample | against the first | losses apart |")
    print("|---|---|---|---|---|---|")
    for processes, found in costs.items():
        cells = []
        for part in Cost._fields:
            own = [getattr(one, part) for one in found]
            cells.append(spread([1000 * value for value in own], 1))
            cells.append(spread([value / getattr(one, part) for value, one in zip(own, first)], 3))
        print(f"| {processes} | {' | '.join(cells)} | {apart[processes]:.1e} |")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--train_batch_size", type=int, default=4, help="samples at once in each process; default: 4")
    parser.add_argument("--effective_batch_size", type=int, default=16, help="default: 16")
    parser.add_argument("--steps", type=int, default=60, help="whose cost is measured; default: 60")
    parser.add_argument("--warmup_steps", type=int, default=5, help="of the short run; default: 5")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    costs: dict[int, list[Cost]] = {processes: [] for processes in args.processes}
    apart: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        data = make_data(Path(name), 128).resolve()
        measure(command(args, 1, 1), data, Path(name) / "first")  # fills the cache of latents
        cores, busy, began = [count_cores()], [], time.perf_counter()
        for turn in range(args.repeats):
            losses: dict[int, list[float]] = {}
            (folder := Path(name) / f"turn{turn}").mkdir()
            for processes in args.processes:
                before, start = others_busy(), time.perf_counter()
                cost, losses[processes] = find_cost(args, processes, data, folder)
                busy.append((others_busy() - before) / (time.perf_counter() - start))
                costs[processes].append(cost)
                one = losses[args.processes[0]]
                apart[processes] = max(apart.get(processes, 0), furthest(one, losses[processes]))
                print(f"{processes} processes: {cost}, others' load {busy[-1]:.2f}", flush=True)
        cores.append(count_cores())
    print(f"\n{setting(1)}; {args.effective_batch_size} samples a step, {args.train_batch_size} at once")
    print(
        f"{statistics.mean(cores):.1f} cores given; others' load: {spread(busy, 2)}; "
        f"{time.perf_counter() - began:.0f} s in all"
    )
    print_table(costs, apart)
    print(f"\n    {shlex.join(['python', *command(args, 2, args.steps + args.warmup_steps)[1:]])}")


if __name__ == "__main__":
    main(parse_args())
