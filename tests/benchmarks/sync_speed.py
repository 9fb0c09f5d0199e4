"""How much slower a training is with --sync_to: the same command with and without, by turns.

The trainer has one core to itself (--core), on which its sending threads compete with the training, as on a machine
whose cores are all busy; the server is a process on the other cores, so that its work is not the trainer's. Shown are
the seconds that the steps, validations and checkpoints of the training took (seconds_* of metrics.jsonl, without the
loading and without the rest that is sent after the last step), those of the whole process, and its CPU seconds.

Such times vary by several per cent from run to run. So the sending is also done alone, with nothing else in the
process: its CPU seconds are what it can take from a training whose cores are all busy.

    python tests/benchmarks/sync_speed.py --rounds 5
    python tests/benchmarks/sync_speed.py --rounds 5 --method full        # checkpoints of 68 MB
    python tests/benchmarks/sync_speed.py --rounds 5 --method full --place folder
    python tests/benchmarks/sync_speed.py --rounds 1 --large 500          # the sending alone, also of 500 MB

Run it on a machine that does nothing else, with two cores or more.
"""

import argparse
import contextlib
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.benchmarks.side_by_side import others_busy
from utils import runs, storage, sync
from utils.checkpoints import list_checkpoints, save_checkpoint
from utils.files import note_written, start_list
from utils.metrics_log import TIMED, append_metrics, read_metrics, series

SERVER = """
import time
from tests.s3_server import s3_server
with s3_server() as server:
    print(server.url, flush=True)
    while True:
        time.sleep(60)
"""


class Run(NamedTuple):
    training: float  # seconds of steps, validations and checkpoints
    whole: float  # seconds of the process
    cpu: float  # seconds of all its threads
    others: float  # cores that everybody else kept busy, the server included


@contextlib.contextmanager
def serve(cores: set[int]) -> Iterator[dict[str, str]]:
    """A local S3 server in a process of its own on these cores; the environment to reach it."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, cores)
    try:
        keys = {"AWS_ACCESS_KEY_ID": "a" * 20, "AWS_SECRET_ACCESS_KEY": "b" * 40, "AWS_DEFAULT_REGION": "us-east-1"}
        environment = {"AWS_ENDPOINT_URL": process.stdout.readline().strip(), **keys}
        os.environ.update(environment)
        storage.open_place("s3://bucket/x", "--sync_to").fs.mkdir("bucket")
        yield environment
    finally:
        process.kill()


def make_data(folder: Path) -> None:
    for command in (
        f"demo/catalogue.py --output_dir {folder}/catalogue --num_images 300 --size 128 --seed 0",
        f'prepare_dataset.py --catalogue {folder}/catalogue --category "Casual Shoes" --output_dir {folder}/data '
        "--resolution 128 --tokenizer demo",
        f"demo/subject.py --output_dir {folder}/subject",
    ):
        subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def command(args: argparse.Namespace, folder: Path) -> list[str]:
    if args.method == "full":
        words = f"train_dreambooth.py --method full --use_ema --instance_data_dir {folder}/subject"
        words += ' --instance_prompt "a photo of sks shoes"'
    else:
        words = f"train_lora.py --config configs/demo_lora.yaml --train_data_dir {folder}/data"
    words += f" --pretrained_model_name_or_path demo --resolution 128 --train_batch_size {args.train_batch_size}"
    words += (
        " --gradient_accumulation_steps 1 --no-gradient_checkpointing --logging_steps 5 --checkpoints_total_limit 2"
    )
    words += f" --max_train_steps {args.max_train_steps} --validation_steps 0 --latent_cache_dir {folder}/cache"
    words += f" --checkpointing_steps {args.checkpointing_steps}"
    return [sys.executable, *shlex.split(words)]


def measure(words: list[str], run: Path, core: int) -> Run:
    shutil.rmtree(run, ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began, busy = time.monotonic(), others_busy()
    with open(run.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [*words, "--output_dir", str(run)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, run.with_suffix(".log").read_text()[-2000:]
    whole, cpu = time.monotonic() - began, usage.ru_utime + usage.ru_stime
    records = read_metrics(run / "metrics.jsonl")
    training = sum(sum(series(records, f"seconds_{name}")[1]) for name in TIMED)
    return Run(training, whole, cpu, (others_busy() - busy - cpu) / whole)


def send_alone(run: Path, name: str, large: int) -> None:
    """Print the CPU milliseconds of what is done every 10 seconds, and of sending each checkpoint."""
    one = sync.open_sync(storage.open_place(name, "--sync_to"), run, "train")
    saved = {unit: sum(path.stat().st_size for path in unit.iterdir()) for unit in list_checkpoints(run)}
    sync.send_changes(one)

    def cost(count: int, change: Callable[[], object]) -> float:
        spent = []
        for _ in range(count):
            change()
            began = time.process_time()
            assert not sync.send_changes(one)
            spent.append(1000 * (time.process_time() - began))
        return statistics.median(spent)

    def add_checkpoint() -> None:
        unit = run / f"checkpoint-{1000 + len(list_checkpoints(run))}"
        save_checkpoint(unit, lambda new: shutil.copytree(newest, new, dirs_exist_ok=True), {}, {})
        for path in unit.iterdir():
            note_written(path)

    def add_large() -> None:
        (run / "large.safetensors").write_bytes(os.urandom(1_000_000) * large)
        note_written(run / "large.safetensors")

    newest, size = max(saved.items())
    start_list(run, "train")
    every = sync.EVERY * 1000
    for what, spent in {
        "nothing has changed": cost(20, lambda: None),
        "metrics.jsonl has a new line": cost(20, lambda: append_metrics(run / "metrics.jsonl", {"step": 10**6})),
    }.items():
        print(f"alone, {what}: {spent:.1f} ms, every {sync.EVERY:.0f} s: {spent / every:.2%} of a core")
    print(f"alone, a checkpoint of {size / 1e6:.1f} MB: {cost(5, add_checkpoint):.0f} ms")
    if large:
        print(f"alone, a file of {large} MB: {cost(3, add_large):.0f} ms")
    sync.finish_sending(one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--place", choices=["s3", "folder"], default="s3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max_train_steps", type=int, default=200)
    parser.add_argument("--checkpointing_steps", type=int, default=50)
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--large", type=int, default=0, metavar="MB", help="send a file of that size alone, too")
    parser.add_argument("--core", type=int, default=0, help="of the trainer; the server has the others")
    args = parser.parse_args()
    others = os.sched_getaffinity(0) - {args.core}
    with tempfile.TemporaryDirectory() as name, serve(others):
        folder = Path(name)
        make_data(folder)
        words = command(args, folder)
        measure([*words, "--max_train_steps", "2"], folder / "first", args.core)  # fills the cache
        pairs: list[tuple[Run, Run]] = []
        print(f"commit {runs.git_commit()}, {platform.platform()}, {os.cpu_count()} cores; {' '.join(words[1:3])} …")
        for number in range(args.rounds):
            place = f"s3://bucket/run{number}" if args.place == "s3" else f"{folder}/drive{number}"
            kinds = {"without": [], "with": ["--sync_to", place]}
            order = list(kinds) if number % 2 == 0 else list(kinds)[::-1]
            found = {kind: measure([*words, *kinds[kind]], folder / f"run_{kind}", args.core) for kind in order}
            pairs.append((found["without"], found["with"]))
            for kind, one in found.items():
                print(f"{kind:8}", "  ".join(f"{key} {value:6.2f}" for key, value in one._asdict().items()), flush=True)
        there = storage.list_place(storage.open_place(place, "--sync_to"))
        print(f"at the place in the end: {len(there)} files, {sum(there.values()) / 1e6:.1f} MB")
        for part in ("training", "whole", "cpu"):
            ratios = sorted(getattr(b, part) / getattr(a, part) - 1 for a, b in pairs)
            print(f"{part}: {statistics.median(ratios):+.2%} (from {ratios[0]:+.2%} to {ratios[-1]:+.2%})")
        send_alone(folder / "run_with", f"{place}_alone", args.large)


if __name__ == "__main__":
    main()
