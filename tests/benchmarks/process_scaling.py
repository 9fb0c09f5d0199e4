"""How the cost of a sample grows with the number of processes: one recipe of train_lora.py as 1, 2 and 4 processes.

Each process has one thread, and as many samples at once as any other; the more processes, the fewer accumulations, so
that all train the same. The cost is that of the steps alone, the difference of a long and a short run, in CPU seconds
of all processes: where they share cores, these say what they would take if each had its own. A further column has the
seconds that passed, times the cores in use. The losses are compared with those of one process.

What a machine takes for its own, since all its cores share caches and memory, is measured too: as many runs of one
process at once, that know nothing of each other and take the same steps with their share of the samples.

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
    """One command, or several at once."""

    seconds: float  # from start to end
    cpu: float  # CPU seconds of the launchers and all that they started
    losses: list[float]  # of the first


class Kind(NamedTuple):
    processes: int
    apart: bool  # as many runs, that know nothing of each other

    def __str__(self) -> str:
        return f"{self.processes} {'runs apart' if self.apart else 'of one run'}"


class Cost(NamedTuple):
    """Of one sample, in the steps alone."""

    cpu: float  # CPU seconds
    core: float  # seconds that passed, times the cores in use


def command(args: argparse.Namespace, processes: int, steps: int, samples: int) -> list[str]:
    """`samples`: a step."""
    words = "-m accelerate.commands.launch "
    if processes == 1:
        words += "--config_file accelerate_configs/cpu.yaml"
    else:
        words += f"--config_file accelerate_configs/cpu_2proc.yaml --num_processes {processes} --main_process_port 0"
    words += " train_lora.py --config configs/demo_lora.yaml --validation_steps 0 --checkpointing_steps 0"
    words += f" --logging_steps 1 --train_batch_size {args.train_batch_size} --max_train_steps {steps}"
    words += f" --effective_batch_size {samples} --report_to none"
    return [sys.executable, *words.split()]


def measure(commands: list[list[str]], data: Path, out: Path) -> Run:
    """All commands at once; each writes to a folder of its own below `out`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    began, started = time.perf_counter(), []
    out.mkdir()
    for number, words in enumerate(commands):
        folders = ["--latent_cache_dir", str(data.parent / "cache"), "--output_dir", str(out / str(number))]
        with open(out / f"{number}.log", "wb") as log:
            place = ["--train_data_dir", str(data), *folders]
            started.append(subprocess.Popen([*words, *place], cwd=ROOT, env=environment, stdout=log, stderr=log))
    cpu = 0.0
    for number, process in enumerate(started):
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit((out / f"{number}.log").read_text(errors="replace")[-3000:])
        cpu += usage.ru_utime + usage.ru_stime
    seconds = time.perf_counter() - began
    return Run(seconds, cpu, list(series(read_metrics(out / "0" / "metrics.jsonl"), "loss")[1]))


def find_cost(args: argparse.Namespace, kind: Kind, data: Path, folder: Path) -> tuple[Cost, list[float]]:
    """The cost of a sample, and the losses of the long run."""

    def run(steps: int) -> Run:
        samples = args.effective_batch_size
        commands = [command(args, kind.processes, steps, samples)]
        if kind.apart:
            commands = [command(args, 1, steps, samples // kind.processes)] * kind.processes
        return measure(commands, data, folder / f"{kind} {steps}")

    short, long = run(args.warmup_steps), run(args.warmup_steps + args.steps)
    samples = args.steps * args.effective_batch_size
    cores = min(kind.processes, os.cpu_count() or 1)
    return Cost((long.cpu - short.cpu) / samples, cores * (long.seconds - short.seconds) / samples), long.losses


def furthest(losses: list[float], others: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / a for a, b in zip(losses, others, strict=True))


def print_table(costs: dict[Kind, list[Cost]], apart: dict[Kind, float]) -> None:
    first = next(iter(costs.values()))
    print("\n| processes | CPU ms a sample | against the first | core ms a sample | against the first | losses apart |")
    print("|---|---|---|---|---|---|")
    for kind, found in costs.items():
        cells = []
        for part in Cost._fields:
            own = [getattr(one, part) for one in found]
            cells.append(spread([1000 * value for value in own], 1))
            cells.append(spread([value / getattr(one, part) for value, one in zip(own, first)], 3))
        print(f"| {kind} | {' | '.join(cells)} | {f'{apart[kind]:.1e}' if kind in apart else ''} |")


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
    kinds = [Kind(count, apart) for count in args.processes for apart in (False, True) if not apart or count > 1]
    costs: dict[Kind, list[Cost]] = {kind: [] for kind in kinds}
    apart: dict[Kind, float] = {}
    with tempfile.TemporaryDirectory() as name:
        data = make_data(Path(name), 128).resolve()
        measure([command(args, 1, 1, args.effective_batch_size)], data, Path(name) / "first")  # caches the latents
        cores, busy, began = [count_cores()], [], time.perf_counter()
        for turn in range(args.repeats):
            one: list[float] = []
            (folder := Path(name) / f"turn{turn}").mkdir()
            for kind in kinds:
                before, start = others_busy(), time.perf_counter()
                cost, losses = find_cost(args, kind, data, folder)
                busy.append((others_busy() - before) / (time.perf_counter() - start))
                costs[kind].append(cost)
                if not kind.apart:  # whose samples are others
                    one = one or losses
                    apart[kind] = max(apart.get(kind, 0), furthest(one, losses))
                print(f"{kind}: {cost}, others' load {busy[-1]:.2f}", flush=True)
        cores.append(count_cores())
    print(f"\n{setting(1)}; {args.effective_batch_size} samples a step, {args.train_batch_size} at once")
    print(
        f"{statistics.mean(cores):.1f} cores given; others' load: {spread(busy, 2)}; "
        f"{time.perf_counter() - began:.0f} s in all"
    )
    print_table(costs, apart)
    words = command(args, 2, args.steps + args.warmup_steps, args.effective_batch_size)
    print(f"\n    {shlex.join(['python', *words[1:]])}")


if __name__ == "__main__":
    main(parse_args())
