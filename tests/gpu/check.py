"""Check and measure these scripts on an NVIDIA GPU or a Mac, in one command; writes gpu_check.json and a table.

Each step is a process of its own with a time limit. It passes, fails or is skipped, with the reason and a figure; one
that fails hides no other. Both files are written anew after each step. Nothing is downloaded: the models have random
weights, the photos are drawn. It needs requirements-training.txt and, for 8-bit AdamW, requirements-cuda.txt.

    python tests/gpu/check.py
    python tests/gpu/check.py --baseline ../diffusers --output_dir runs/gpu_check
    python tests/gpu/check.py --only resume generate_sd1
    python tests/gpu/check.py --device mps
    python tests/gpu/check.py --device cpu --tiny

With --baseline, diffusers' own scripts are run beside ours; they need torchvision. The last command tests the check
itself, with tiny models. docs/gpu_check.md and docs/mac.md say what each step looks at.
"""

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli, runs  # first: it says in one line which package is missing

# isort: split
from tests.gpu import report
from tests.gpu.commands import MODELS, Machine, Setup, environment, last_words
from tests.gpu.steps import Step, list_steps
from utils.cli import UserError
from utils.files import write_json

GIB = 2**30
RESULTS_GIB = 4  # of all steps together
LARGE = [f"weights_{model.family}" for model in MODELS if model.is_flow]
SOUGHT = {"cuda": "NVIDIA GPU", "mps": "Apple GPU", "cpu": "CPU"}
MEMORY_GIB = 24  # of a GPU, for each step that runs beside others
# Asked in a process of its own, which gives the GPU back.
ASK = """
import json, psutil, torch
from benchmarking.machine import processor_name
from utils import devices
device = devices.pick_device()
cuda = device.type == "cuda"
if cuda and (fault := devices.kernel_error(device)):
    raise SystemExit(f"this build of torch can't compute on this GPU ({fault}); run check_environment.py")
mps = device.type == "mps"
mac = f"{processor_name()}, {psutil.virtual_memory().total / 2**30:.0f} GB"
print(json.dumps({
    "device": device.type,
    "name": mac if mps else devices.describe_device(device),
    "half": "no" if mps else "bf16" if devices.has_real_bf16(device) else "fp16",
    "gpus": torch.cuda.device_count() if cuda else 0,
    "memory_gib": devices.device_memory(device)[0] / 2**30,
}))
"""


class Running(NamedTuple):
    """A step under way."""

    step: Step
    process: subprocess.Popen
    began: float


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to test the check itself")
    parser.add_argument("--baseline", type=Path, metavar="PATH", help="a checkout of diffusers, to compare with")
    parser.add_argument("--output_dir", type=Path, help="a new folder; default: runs/gpu_check-… or runs/mac_check-…")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps, and those that they need")
    parser.add_argument("--list", action="store_true", help="list the steps of --device, and run none")
    parser.add_argument("--jobs", type=int, metavar="N", help="steps at the same time, but for those that measure time")
    parser.add_argument("--time_limit", type=float, default=1800, metavar="SECONDS", help="of all; default: 1800")
    parser.add_argument(
        "--keep_files", action="store_true", help=f"all that is written, over {sum(one.disk for one in MODELS)} GiB"
    )
    args = parser.parse_args(argv)
    args.baseline = args.baseline.resolve() if args.baseline else None
    day = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    args.output_dir = args.output_dir or Path(f"runs/{'mac' if args.device == 'mps' else 'gpu'}_check-{day}")
    return args


def find_machine(device: str) -> Machine:
    """What the scripts will compute on; refuses a machine without the device."""
    asked = Setup(Path(), device, False, None, None)
    words = [sys.executable, "-c", ASK]
    done = subprocess.run(words, cwd=ROOT, env=environment(asked), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--device {device}: {last_words(done.stderr)}")
    facts = json.loads(done.stdout.splitlines()[-1])
    if (found := facts.pop("device")) != device:
        raise UserError(
            f"--device {device}: torch finds no {SOUGHT[device]} here, only {found}; check_environment.py says why, "
            "and --device cpu --tiny tests the check itself"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(**facts, cores=cores, packages=runs.package_versions())


def choose_steps(steps: list[Step], only: list[str] | None) -> list[Step]:
    """Those asked for and those that they need, in order; refuses a name that there is not."""
    names = {step.name: step for step in steps}
    if unknown := [name for name in only or () if name not in names]:
        raise UserError(
            f"--only {unknown[0]}: no such step{cli.suggest(unknown[0], names)}; --list shows those of --device"
        )
    wanted: set[str] = set()

    def add(name: str) -> None:
        wanted.add(name)
        for need in names[name].needs:
            add(need)

    for name in only or names:
        add(name)
    return [step for step in steps if step.name in wanted]


def count_jobs(setup: Setup) -> int:
    """How many steps at the same time this machine has memory and cores for."""
    if setup.device != "cuda":  # a Mac's GPU shares its memory with the CPU
        return 1
    return max(1, min(4, setup.machine.cores // 4, int(setup.machine.memory_gib / MEMORY_GIB)))


def lacking(step: Step, status: dict[str, str]) -> list[str]:
    """The steps that it needs and that have ended without passing."""
    return [need for need in step.needs if status.get(need, "pass") != "pass"]


def next_step(todo: list[Step], running: list[Step], passed: set[str], jobs: int) -> Step | None:
    """The first step that may start now. None is started before an earlier one that has to be alone."""
    if len(running) >= jobs or any(step.alone for step in running):
        return None
    for step in todo:
        if step.alone:
            return step if not running and passed.issuperset(step.needs) else None
        if passed.issuperset(step.needs):
            return step
    return None


def step_command(setup: Setup, step: Step) -> list[str]:
    return [sys.executable, str(ROOT / "tests/gpu/steps.py"), "--folder", str(setup.folder), "--step", step.name]


def begin(setup: Setup, step: Step, words: list[str]) -> Running:
    """Start the step, in a session of its own, so that its end can be that of all that it has started."""
    with open(setup.folder / "logs" / f"step-{step.name}.txt", "wb") as log:
        process = subprocess.Popen(
            words, env=environment(setup), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return Running(step, process, time.monotonic())


def kill(one: Running) -> None:
    """End a step and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.process.pid, signal.SIGKILL)
    one.process.wait()


def result_of(setup: Setup, one: Running, late: bool) -> report.Row:
    """What an ended step has found; `late`: it was killed at its time limit."""
    path = setup.folder / "results" / f"{one.step.name}.json"
    if late:
        found = {"status": "fail", "figure": "", "reason": f"not done after its time limit of {one.step.limit} s"}
    elif path.exists():
        found = json.loads(path.read_text("utf-8"))
    else:
        log = (setup.folder / "logs" / f"step-{one.step.name}.txt").read_text("utf-8", "replace")
        reason = f"its process ended with exit code {one.process.returncode}: {last_words(log)}"
        found = {"status": "fail", "figure": "", "reason": reason}
    return report.Row(one.step.name, one.step.title, **found, seconds=round(time.monotonic() - one.began, 1))


def skip(step: Step, reason: str) -> report.Row:
    return report.Row(step.name, step.title, "skipped", "", reason, 0.0)


def has_ended(one: Running) -> bool:
    return one.process.poll() is not None or time.monotonic() - one.began > one.step.limit


@dataclass
class Check:
    """Where the check stands."""

    setup: Setup
    steps: list[Step]
    began: float
    todo: list[Step]
    running: list[Running] = field(default_factory=list)
    rows: list[report.Row] = field(default_factory=list)
    keep_files: bool = False

    def add(self, row: report.Row) -> None:
        """Print a step's row, and write both files anew."""
        self.rows.append(row)
        print(report.describe_row(row, len(self.rows), len(self.steps)), flush=True)
        order = [step.name for step in self.steps]
        rows = sorted(self.rows, key=lambda one: order.index(one.name))
        report.write_report(self.setup, rows, time.monotonic() - self.began)


def run_all(
    setup: Setup,
    steps: list[Step],
    jobs: int,
    time_limit: float,
    command: Callable[[Setup, Step], list[str]] = step_command,
    keep_files: bool = False,
) -> list[report.Row]:
    """What each step has found. Both files are written after each; Ctrl-C, too, leaves them complete."""
    check = Check(setup, steps, time.monotonic(), list(steps), keep_files=keep_files)
    reason = "interrupted"
    try:
        while check.todo or check.running:
            if time.monotonic() - check.began > time_limit:
                reason = f"the check's --time_limit of {time_limit:g} s was over"
                break
            skip_lacking(check)
            start_steps(check, jobs, command)
            end_steps(check)
            time.sleep(0.05)
    finally:
        for one in check.running:
            kill(one)
        for step in [one.step for one in check.running] + check.todo:
            check.add(skip(step, reason))
    return check.rows


def skip_lacking(check: Check) -> None:
    """Skip the steps that need one which has ended without passing."""
    status = {row.name: row.status for row in check.rows}
    for step in [one for one in check.todo if lacking(one, status)]:
        check.todo.remove(step)
        check.add(skip(step, f"it needs {lacking(step, status)[0]}"))


def start_steps(check: Check, jobs: int, command: Callable[[Setup, Step], list[str]]) -> None:
    """Start as many steps as may run now."""
    passed = {row.name for row in check.rows if row.status == "pass"}
    while step := next_step(check.todo, [one.step for one in check.running], passed, jobs):
        check.todo.remove(step)
        check.running.append(begin(check.setup, step, command(check.setup, step)))


def end_steps(check: Check) -> None:
    """Add what the steps have found that have ended, and end those that are late."""
    for one in [one for one in check.running if has_ended(one)]:
        late = one.process.poll() is None
        kill(one)  # also what it may have left behind
        check.running.remove(one)
        check.add(result_of(check.setup, one, late))
        delete_unneeded(check)


def needed_gib(steps: list[Step]) -> int:
    """The most that they take on the disk at once: of the large models, one after the other, the largest alone."""
    large = [step.disk for step in steps if step.name in LARGE]
    return RESULTS_GIB + sum(step.disk for step in steps) - sum(large) + max(large, default=0)


def delete_unneeded(check: Check) -> None:
    """Delete the weights of each large model that no later step needs."""
    needed = {name for step in check.todo + [one.step for one in check.running] for name in (step.name, *step.needs)}
    for folder in (check.setup.folder / "models").glob("*"):
        name = f"weights_{folder.name}"
        if name in LARGE and name not in needed and not check.keep_files:
            shutil.rmtree(folder)


def prepare(args: argparse.Namespace, steps: list[Step]) -> Setup:
    """The folder of the check, new, with what its steps read."""
    if args.device == "cpu" and not args.tiny:
        raise UserError("--device cpu: the published sizes would take hours; add --tiny, which tests the check itself")
    if args.baseline and not (args.baseline / "examples").is_dir():
        raise UserError(f"--baseline {args.baseline}: has no examples/; give a checkout of diffusers")
    folder = args.output_dir.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output_dir {args.output_dir}: is not empty; give a new folder")
    machine = find_machine(args.device)
    for name in ("logs", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free / GIB, needed_gib(steps)
    if not args.tiny and free < needed:
        raise UserError(
            f"--output_dir {args.output_dir}: {free:.0f} GiB free there; {needed} are needed, less with --only"
        )
    setup = Setup(folder, args.device, args.tiny, args.baseline, machine)
    write_json(
        folder / "setup.json",
        {
            "device": args.device,
            "tiny": args.tiny,
            "baseline": str(args.baseline) if args.baseline else None,
            "machine": machine._asdict(),
        },
    )
    return setup


def main(args: argparse.Namespace) -> int:
    if args.list:
        for step in list_steps("bf16", args.device):
            print(f"{step.name:20} {step.title} (at most {step.limit} s)")
        return 0
    setup = prepare(args, choose_steps(list_steps("bf16", args.device), args.only))
    steps = choose_steps(list_steps(setup.machine.half, args.device), args.only)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    jobs = args.jobs or count_jobs(setup)
    print(f"{setup.machine.name}: {len(steps)} steps, up to {jobs} at a time; in {args.output_dir}", flush=True)
    try:
        rows = run_all(setup, steps, jobs, args.time_limit, keep_files=args.keep_files)
        code = int(any(row.status == "fail" for row in rows))
    except KeyboardInterrupt:
        code = 130
    if not args.keep_files:
        for name in ("models", "runs", "data"):
            shutil.rmtree(setup.folder / name, ignore_errors=True)
    print(f"\n{(setup.folder / report.TABLE).read_text('utf-8')}\n{setup.folder / report.TABLE}")
    return code


if __name__ == "__main__":
    arguments = parse_args()
    try:
        sys.exit(main(arguments))
    except UserError as error:
        sys.exit(f"check.py: error: {error}")
