"""Runs of a trainer that last a second: on tiny pipelines and drawn shoes, here or in a process to be killed."""

import contextlib
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import time
from multiprocessing import connection
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file

import generate
import train_dreambooth
import train_lora
from utils import checkpoints, cli, metrics_log, runs

ROOT = Path(__file__).resolve().parent.parent
LORA = "pytorch_lora_weights.safetensors"


def flags(data: dict[str, Path], out: Path, *more, family: str = "sd1") -> list[str]:
    """A command line of train_lora.py: 6 steps of 8 samples, 16 x 16 pixels, a loss in every line, no images.

    `more` wins.
    """
    return short_flags(data, out, *SMALL, "--train_data_dir", data["prepared"], *more, family=family)


def short_flags(data: dict[str, Path], out: Path, *more, family: str) -> list[str]:
    short = "--resolution 16 --learning_rate 1e-2 --lr_warmup_steps 2"
    short += " --max_train_steps 6" * ("--num_train_epochs" not in more)  # beside which steps would win
    short += " --train_batch_size 8 --effective_batch_size 8 --validation_steps 0 --checkpointing_steps 3"
    short += " --logging_steps 1 --num_validation_images 0 --validation_inference_steps 3 --report_to none"
    words = [*short.split(), "--no-gradient_checkpointing", "--latent_cache_dir", data["cache"]]
    words += ["--pretrained_model_name_or_path", data[family], "--output_dir", out]
    return [str(word) for word in [*words, *more]]


def subject_flags(data: dict[str, Path], out: Path, *more, family: str = "sd1") -> list[str]:
    """The same of train_dreambooth.py, with 5 photos that share a prompt."""
    words = ["--instance_data_dir", data["subject"], "--instance_prompt", "a photo of <sks> shoes"]
    words += ["--lr_scheduler", "constant_with_warmup"]
    words += ["--class_data_dir", data["class"]] if PRIOR[0] in more else []
    words += [] if "full" in more else SMALL
    return short_flags(data, out, *words, *more, family=family)


SMALL = ("--rank", 4, "--lora_alpha", 8)
PRIOR = ("--with_prior_preservation", "--class_prompt", "a photo of shoes", "--num_class_images", 5)
# Constants of --sync_to for runs of a second: rounds and leases are shorter, as the runs are.
QUICK = {("utils.sync", "EVERY"): 0.1, ("utils.storage", "RENEWED"): 0.2, ("utils.storage", "EXPIRES"): 0.6}


@contextlib.contextmanager
def as_in_a_process():
    """Undo what the end of a process would: signal handlers, and the lock on the run's folder."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    locks, lock = [], runs.lock_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "lock_folder", lambda *args: locks.append(lock(*args)))
        try:
            yield
        finally:
            for one in locks:
                os.close(one)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def train(data: dict[str, Path], out: Path, *more, family: str = "sd1") -> int:
    """The command of `flags`, here; its exit code."""
    with as_in_a_process():
        return train_lora.main(train_lora.parse_args(flags(data, out, *more, family=family)))


def teach(data: dict[str, Path], out: Path, *more, family: str = "sd1") -> int:
    """The command of `subject_flags`, here; its exit code."""
    with as_in_a_process():
        return train_dreambooth.main(train_dreambooth.parse_args(subject_flags(data, out, *more, family=family)))


def make_images(*words: object) -> int:
    """A command of generate.py, here; its exit code."""
    try:
        with as_in_a_process():
            return generate.main(generate.parse_args([str(word) for word in words]))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the first precision that it was given


def forget_after(run: Path, step: int) -> None:
    """Leave the run as it was when the process ended after this step."""
    for path in checkpoints.list_checkpoints(run):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    for name in (LORA, "summary.json", "README.md", "loss_curve.png"):
        (run / name).unlink(missing_ok=True)


def cells(path: Path, count: int, side: int) -> np.ndarray:
    """The images of a grid of one row."""
    grid = Image.open(path)
    return np.stack(
        [np.asarray(grid.crop((i * (side + 4), 0, i * (side + 4) + side, side)), int) for i in range(count)]
    )


def card_pipeline(run: Path) -> DiffusionPipeline:
    """The pipeline of the code in a run's card, without its last line, which generates an image."""
    code = re.search(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)[1]
    found: dict = {}
    exec(code.rstrip().rpartition("\n")[0], found)
    return found["pipeline"]


def drawn_by_diffusers(pipeline: DiffusionPipeline, prompts: list[str], side: int, **more) -> np.ndarray:
    """What diffusers draws as a validation does: seeds from 0 on, 3 steps."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    found = []
    for seed, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": 3, "guidance_scale": 7.5, "height": side, "width": side, **more}
        found.append(np.asarray(pipeline(prompt, generator=generator, **options).images[0], int))
    return np.stack(found)


def lora_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / LORA)


def difference(first: Path, second: Path) -> float:
    """Between two LoRAs, over all tensors together, relative to the size of the first."""
    a, b = lora_of(first), lora_of(second)
    assert a.keys() == b.keys()
    flat = [torch.cat([state[key].double().flatten() for key in a]) for state in (a, b)]
    return ((flat[0] - flat[1]).norm() / flat[0].norm()).item()


def same_bytes(first: Path, second: Path) -> bool:
    a, b = lora_of(first), lora_of(second)
    return a.keys() == b.keys() and all(a[key].numpy().tobytes() == b[key].numpy().tobytes() for key in a)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is in a folder, and when it was written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def column(folder: Path, name: str) -> list[float]:
    """A number of metrics.jsonl, in the order of its lines."""
    return [one[name] for one in metrics_log.read_metrics(folder / "metrics.jsonl") if name in one]


def _main(
    script: str,
    words: list[str],
    told: Path,
    dies_in: tuple[str, str, int] | None,
    sends: tuple[int, ...],
    environment: dict[str, str],
    values: dict[tuple[str, str], float],
) -> None:
    """What a process of `start` does: the user's command, with its words to stderr in a file."""
    os.environ.update(environment)
    for (module, name), value in values.items():
        setattr(importlib.import_module(module), name, value)
    with open(told, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if dies_in:
        module, name, count = dies_in
        module, calls = importlib.import_module(module), []
        function = getattr(module, name)

        def counted(*args, **kwargs):
            calls.append(1)
            for number in sends if len(calls) == count else ():
                os.kill(os.getpid(), number)
            return function(*args, **kwargs)

        setattr(module, name, counted)
    sys.argv = [f"{script}.py", *words]
    trainer = importlib.import_module(script)
    cli.run(trainer.main, trainer.parse_args(words))


def start(
    words: list[str],
    told: Path,
    dies_in=None,
    sends: tuple[int, ...] = (signal.SIGKILL,),
    environment: dict[str, str] | None = None,
    values: dict[tuple[str, str], float] | None = None,
    script: str = "train_lora",
):
    """A process of its own that runs the command, forked where the libraries are loaded already.

    `dies_in` (module, function, n) sends it the signals `sends` as the n-th call begins; `environment`: more variables;
    `values`: of constants, {(module, name): value}.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny_runs"])
    process = context.Process(
        target=_main, args=(script, words, told, dies_in, sends, environment or {}, values or {}), daemon=True
    )
    process.start()
    return process


def end_together(processes: list, seconds: float) -> None:
    """Wait until all have ended, as a launcher does: where one fails, the others end soon, too."""
    until = time.monotonic() + seconds
    while (running := [one for one in processes if one.is_alive()]) and time.monotonic() < until:
        if any(one.exitcode for one in processes):
            until = min(until, time.monotonic() + 5)  # in which they may say why
        connection.wait([one.sentinel for one in running], max(0, until - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()


def launch(script: str, words: list[str], told: Path, processes: int = 2) -> str:
    """What a script says to the file `told` in several processes, which are as `accelerate launch` would start them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = [shared | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]
    started = [start(words, told, environment=rank, script=script) for rank in ranks]
    end_together(started, 500)
    assert [process.exitcode for process in started] == [0] * processes, told.read_text()[-3000:]
    return told.read_text()
