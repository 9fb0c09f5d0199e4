"""How fast train_lora.py is against diffusers' train_text_to_image_lora.py: same data, batch, steps and precision.

Both run by turns, each from nothing: the time is that of the whole process, from the start of Python to its exit, with
imports, loading, our cache of latents and the final save.

    python tests/benchmarks/lora_speed.py --baseline PATH/train_text_to_image_lora.py --repeats 3
    python tests/benchmarks/lora_speed.py --baseline PATH/train_text_to_image_lora.py --baseline_path STAND_IN

The baseline is in examples/text_to_image of huggingface/diffusers. It imports torchvision; where that is missing,
--baseline_path is a folder with a stand-in. Run it on a machine that does nothing else.
"""

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
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from utils.models import resolve_model


class Run(NamedTuple):
    seconds: float  # of the whole process
    rate: float  # samples/s over the whole process
    loop_rate: float  # samples/s after the first step
    memory: float  # MiB at the peak, of the process and its children
    others: float  # cores that everybody else kept busy


def make_data(folder: Path, resolution: int) -> Path:
    """The demo's casual shoes, as demo/run.py makes them; the folder of the training pictures."""
    for command in (
        f"demo/catalogue.py --output_dir {folder}/catalogue --num_images 600 --size 256 --seed 0",
        f'prepare_dataset.py --catalogue {folder}/catalogue --category "Casual Shoes" --output_dir {folder}/data '
        f"--resolution {resolution} --tokenizer demo",
    ):
        subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return folder / "data/train"


def count_samples(steps: int, batch: int, images: int, short: bool) -> int:
    """Samples trained; the baseline ends each epoch with the batch that is left over, ours goes on into the next."""
    epochs, rest = divmod(steps, math.ceil(images / batch))
    return epochs * images + rest * batch if short else steps * batch


def commands(args: argparse.Namespace, data: Path, folder: Path) -> dict[str, list[str]]:
    """The baseline has no validation by default, no gradient checkpointing, and alpha = rank."""
    quoted = {"data": shlex.quote(str(data)), "folder": shlex.quote(str(folder))}
    shared = (
        f"--train_data_dir {quoted['data']} --output_dir {quoted['folder']}/run --resolution {args.resolution} "
        f"--rank {args.rank} --learning_rate 1e-4 --lr_scheduler constant --train_batch_size {args.train_batch_size} "
        f"--gradient_accumulation_steps 1 --max_train_steps {args.max_train_steps} --seed 0 --report_to tensorboard "
        f"--mixed_precision {args.mixed_precision} --dataloader_num_workers {args.dataloader_num_workers} "
    )
    theirs = f"--caption_column text --checkpointing_steps {10**9} {args.baseline_flags}"
    ours = f"--lora_alpha {args.rank} --no-gradient_checkpointing --validation_steps 0 --checkpointing_steps 0 "
    words = {"diffusers": shared + theirs, "ours": shared + ours + args.ours_flags.format(**quoted)}
    model = args.pretrained_model_name_or_path
    start = {"diffusers": (args.baseline, resolve_model(model)), "ours": (ROOT / "train_lora.py", model)}
    for who, (script, name) in start.items():
        start[who] = [sys.executable, str(script), "--pretrained_model_name_or_path", name, *shlex.split(words[who])]
    return start


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
    return Run(seconds, samples / seconds, loop, memory / 2**20, max(0.0, others_busy() - before) / seconds)


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
    print("\n| | samples/s, whole run | seconds, whole run | samples/s, loop | peak MiB | others' load, cores |")
    print("|---|---|---|---|---|---|")
    for who, done in runs.items():
        cells = [spread([run.rate for run in done], 2), spread([run.seconds for run in done])]
        cells += [spread([run.loop_rate for run in done]), spread([run.memory for run in done], 0)]
        print(f"| {who} | {' | '.join(cells)} | {spread([run.others for run in done], 2)} |")
    if len(runs) == 2:
        pairs = list(zip(runs["ours"], runs["diffusers"]))
        rate = spread([ours.rate / theirs.rate for ours, theirs in pairs], 2)
        memory = spread([ours.memory / theirs.memory for ours, theirs in pairs], 2)
        print(f"\nours / diffusers, median of {len(pairs)}: {rate} of samples/s over the whole run, {memory} of memory")
    print("".join(f"\n    {command}" for command in shown.values()))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help="diffusers' train_text_to_image_lora.py")
    parser.add_argument("--baseline_path", type=Path, help="a folder for the baseline's PYTHONPATH")
    parser.add_argument("--baseline_flags", default="", help="more flags for the baseline, in one string")
    parser.add_argument("--ours_flags", default="", help="more flags for ours; {folder} is a new folder in each run")
    parser.add_argument("--only", choices=["diffusers", "ours"], help="no comparison, just this one's figures")
    parser.add_argument("--train_data_dir", type=Path, help="an imagefolder (default: the demo's casual shoes)")
    values = {"pretrained_model_name_or_path": "demo", "mixed_precision": "no", "resolution": 128, "rank": 8}
    values |= {"train_batch_size": 8, "max_train_steps": 300, "dataloader_num_workers": 0}
    for flag, value in {**values, "repeats": 1, "threads": os.cpu_count()}.items():
        parser.add_argument(f"--{flag}", type=type(value), default=value, help=f"default: {value}")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    runs, shown = {"diffusers": [], "ours": []}, {}
    with tempfile.TemporaryDirectory() as name:
        data = (args.train_data_dir or make_data(Path(name), args.resolution)).resolve()
        images = len((data / "metadata.jsonl").read_text("utf-8").splitlines())
        for turn in range(args.repeats):
            for who in [args.only] if args.only else runs:
                folder = Path(name) / f"{who}{turn}"
                folder.mkdir()
                command = commands(args, data, folder)[who]
                environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
                environment["HF_DATASETS_CACHE"] = str(folder / "datasets")  # the baseline's cache is built anew too
                if who == "diffusers" and args.baseline_path:
                    environment["PYTHONPATH"] = str(args.baseline_path.resolve())
                samples = count_samples(args.max_train_steps, args.train_batch_size, images, short=who == "diffusers")
                run = measure(command, environment, samples, args.max_train_steps, folder / "output.txt")
                print(f"{who}: {run.seconds:.1f} s, {run.rate:.2f} samples/s", flush=True)
                runs[who].append(run)
                plain = shlex.join(["python", *command[1:]]).replace(str(folder), "OUT").replace(str(data), "DATA")
                shown[who] = plain.replace(f"{args.baseline.parent}/", "").replace(f"{ROOT}/", "")
    print_table({who: done for who, done in runs.items() if done}, shown, args.threads)


if __name__ == "__main__":
    main(parse_args())
