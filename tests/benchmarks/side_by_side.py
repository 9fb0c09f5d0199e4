"""Two training scripts by turns, each from nothing: the time of the whole process, its loop, and its peak memory."""

import argparse
import contextlib
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent


class Run(NamedTuple):
    seconds: float  # of the whole process
    rate: float  # samples/s over the whole process
    loop_rate: float  # samples/s after the first step
    memory: float  # MiB at the peak, of the process and its children
    others: float  # cores that everybody else kept busy
    cores: float  # how many this machine really had: the mean of before and after


def tree_memory(root: psutil.Process) -> int:
    """Resident bytes of the process and its children; with children each shared page counts in parts (Linux)."""
    try:
        processes = [root, *root.children(recursive=True)]
        if len(processes) == 1 or not psutil.LINUX:
            return sum(process.memory_info().rss for process in processes)
        return sum(process.memory_full_info().pss for process in processes)
    except psutil.Error:  # one of them has just ended
        return 0


def others_busy() -> float:
    """CPU seconds spent on this machine by anyone but the runs that have ended."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0) - sum(os.times()[2:4])


def count_cores() -> float:
    """How much more a loop on every core does than one alone: the host of a virtual machine may give it fewer."""
    loop = "import time; n, end = 0, time.monotonic() + 1\nwhile time.monotonic() < end: n += 1\nprint(n)"

    def turns(copies: int) -> int:
        running = [psutil.Popen([sys.executable, "-c", loop], stdout=subprocess.PIPE) for _ in range(copies)]
        return sum(int(one.communicate()[0]) for one in running)

    return turns(os.cpu_count()) / turns(1)


def read_progress(stream, steps: int, log: Path) -> list[tuple[float, int]]:
    """(when, steps done) at each change of the progress bar; everything goes to the log."""
    seen, tail, pattern = [], b"", re.compile(rb"\b(\d+)/%d\b" % steps)
    with open(log, "wb") as file:
        while block := stream.read1(1 << 16):
            file.write(block)
            tail = tail[-40:] + block
            found = [int(count) for count in pattern.findall(tail)]
            if found and found[-1] > (seen[-1][1] if seen else 0):
                seen.append((time.perf_counter(), found[-1]))
    return seen


def measure(command: list[str], environment: dict, samples: int, steps: int, log: Path) -> Run:
    cores = [count_cores()]
    before, start, seen, memory = others_busy(), time.perf_counter(), [], 0
    process = psutil.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    reader = threading.Thread(target=lambda: seen.extend(read_progress(process.stdout, steps, log)))
    reader.start()
    while process.poll() is None:
        memory = max(memory, tree_memory(process))
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.25)
    seconds = time.perf_counter() - start
    reader.join()
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {shlex.join(command)}\n{log.read_text(errors='replace')[-3000:]}")
    loop = math.nan  # where no progress was seen
    if len(seen) > 1:
        loop = (seen[-1][1] - seen[0][1]) / steps * samples / (seen[-1][0] - seen[0][0])
    others = max(0.0, others_busy() - before) / seconds
    cores.append(count_cores())
    return Run(seconds, samples / seconds, loop, memory / 2**20, others, statistics.mean(cores))


def spread(values: list[float], digits: int = 1) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def setting(threads: int) -> str:
    chip = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        chip = next(re.finditer(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()), [0, chip])[1]
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft"))
    return f"{chip}, {psutil.cpu_count()} cores, {threads} threads; commit {git.stdout.strip()}; {packages}"


def print_table(runs: dict[str, list[Run]], shown: dict[str, str], threads: int) -> None:
    print(f"\n{setting(threads)}")
    print("\n| | samples/s, whole run | seconds, whole run | samples/s, loop | peak MiB | cores given | others' load |")
    print("|---|---|---|---|---|---|---|")
    for who, done in runs.items():
        cells = [spread([run.rate for run in done], 2), spread([run.seconds for run in done])]
        cells += [spread([run.loop_rate for run in done]), spread([run.memory for run in done], 0)]
        cells += [spread([run.cores for run in done]), spread([run.others for run in done], 2)]
        print(f"| {who} | {' | '.join(cells)} |")
    if len(runs) == 2:
        pairs = list(zip(runs["ours"], runs["diffusers"]))
        rate = spread([ours.rate / theirs.rate for ours, theirs in pairs], 2)
        memory = spread([ours.memory / theirs.memory for ours, theirs in pairs], 2)
        print(f"\nours / diffusers, median of {len(pairs)}: {rate} of samples/s over the whole run, {memory} of memory")
    print("".join(f"\n    {command}" for command in shown.values()))


def make_parser(doc: str, baseline: str, values: dict) -> argparse.ArgumentParser:
    """`values` are the settings of both scripts, with their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help=f"diffusers' {baseline}")
    parser.add_argument("--baseline_path", type=Path, help="a folder for the baseline's PYTHONPATH")
    parser.add_argument("--baseline_flags", default="", help="more flags for the baseline, in one string")
    parser.add_argument("--ours_flags", default="", help="more flags for ours; {folder} is a new folder in each run")
    parser.add_argument("--only", choices=["diffusers", "ours"], help="no comparison, just this one's figures")
    for flag, value in {**values, "repeats": 1, "threads": os.cpu_count()}.items():
        parser.add_argument(f"--{flag}", type=type(value), default=value, help=f"default: {value}")
    return parser


def compare(
    args: argparse.Namespace,
    folder: Path,
    data: Path,
    commands: Callable[[Path], dict[str, list[str]]],
    samples: dict[str, int],
) -> None:
    """Run both as often as asked and print the table. `commands` of a new folder; `samples` are those trained."""
    runs, shown = {"diffusers": [], "ours": []}, {}
    for turn in range(args.repeats):
        for who in [args.only] if args.only else runs:
            place = folder / f"{who}{turn}"
            place.mkdir()
            command = commands(place)[who]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
            environment["HF_DATASETS_CACHE"] = str(place / "datasets")  # the baseline's cache is built anew too
            if who == "diffusers" and args.baseline_path:
                environment["PYTHONPATH"] = str(args.baseline_path.resolve())
            run = measure(command, environment, samples[who], args.max_train_steps, place / "output.txt")
            print(f"{who}: {run.seconds:.1f} s, {run.rate:.2f} samples/s, {run.cores:.1f} cores given", flush=True)
            runs[who].append(run)
            plain = shlex.join(["python", *command[1:]]).replace(str(place), "OUT").replace(str(data), "DATA")
            shown[who] = plain.replace(f"{args.baseline.parent}/", "").replace(f"{ROOT}/", "")
    print_table({who: done for who, done in runs.items() if done}, shown, args.threads)
