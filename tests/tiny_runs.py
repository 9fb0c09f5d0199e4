"""Runs of train_lora.py that last a second: on tiny pipelines and drawn shoes, here or in a process to be killed."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_lora
from utils import cli, metrics_log, runs

ROOT = Path(__file__).resolve().parent.parent
LORA = "pytorch_lora_weights.safetensors"


def flags(data: dict[str, Path], out: Path, *more, family: str = "sd1") -> list[str]:
    """A command line: 6 steps of 8 samples, 16 x 16 pixels, a loss in every line, no pictures; `more` wins."""
    short = "--resolution 16 --rank 4 --lora_alpha 8 --max_train_steps 6 --learning_rate 1e-2 --lr_warmup_steps 2"
    short += " --train_batch_size 8 --effective_batch_size 8 --validation_steps 0 --checkpointing_steps 3"
    short += " --logging_steps 1 --num_validation_images 0 --validation_inference_steps 3 --report_to none"
    words = [*short.split(), "--no-gradient_checkpointing", "--latent_cache_dir", data["cache"]]
    words += ["--pretrained_model_name_or_path", data[family], "--train_data_dir", data["prepared"]]
    return [str(word) for word in [*words, "--output_dir", out, *more]]


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


def column(folder: Path, name: str) -> list[float]:
    """A number of metrics.jsonl, in the order of its lines."""
    return [one[name] for one in metrics_log.read_metrics(folder / "metrics.jsonl") if name in one]


def _main(words: list[str], told: Path, dies_in: tuple[str, str, int] | None, sends: tuple[int, ...]) -> None:
    """What a process of `start` does: the user's command, with its words to stderr in a file."""
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
    sys.argv = ["train_lora.py", *words]
    cli.run(train_lora.main, train_lora.parse_args(words))


def start(words: list[str], told: Path, dies_in=None, sends: tuple[int, ...] = (signal.SIGKILL,)):
    """A process of its own that runs the command, forked where the libraries are loaded already.

    `dies_in` (module, function, n) sends it the signals `sends` as the n-th call begins.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny_runs"])
    process = context.Process(target=_main, args=(words, told, dies_in, sends), daemon=True)
    process.start()
    return process
