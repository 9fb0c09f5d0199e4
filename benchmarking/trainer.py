"""A trainer as a process of its own: started as a user would, watched by what it logs, and stopped at any time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from utils.cli import UserError
from utils.console import last_words
from utils.devices import NO_MEMORY
from utils.files import read_text
from utils.parallel import ENDS_WITH_STDIN

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.25  # seconds


class Ended(NamedTuple):
    """How a trainer ended: `code` None if it was stopped because enough was known."""

    code: int | None
    seconds: float
    output: str


def launch_words(config_file: Path | None) -> list[str]:
    """How Python is started: by accelerate where a launch config is given."""
    if config_file is None:
        return [sys.executable]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file)]


def read_launch_config(path: Path | None) -> dict[str, Any]:
    """The keys of a launch config; refuses one for several machines."""
    if path is None:
        return {}
    try:
        config = yaml.safe_load(read_text(path))
    except OSError as error:
        raise UserError(f"--config_file {path}: {error.strerror}; give a file of accelerate_configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config_file {path}: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(config, dict):
        raise UserError(f"--config_file {path}: expected the keys of accelerate's config, found none")
    if int(config.get("num_machines") or 1) > 1:
        raise UserError(f"--config_file {path}: is for {config['num_machines']} machines; one can be measured here")
    return config


@contextlib.contextmanager
def _started(command: list[str], output: Path) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, all of which is gone at the end of the block, or after a kill -9 of this one."""
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            env=os.environ | {ENDS_WITH_STDIN: "1"},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_trainer(command: list[str], output: Path, has_enough: Callable[[], bool]) -> Ended:
    """Run a trainer until it ends or `has_enough`; what it prints goes to the file `output`.

    `has_enough` is called again and again. After that, after Ctrl-C and after an error nothing of the trainer runs on.
    A trainer whose memory is full would go on with fewer samples at once: it is stopped.
    """
    began = time.monotonic()
    with _started(command, output) as process:
        code: int | None = None
        while code is None and not has_enough() and not lacks_memory(_text(output)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL)
    return Ended(code, time.monotonic() - began, _text(output))


def _text(output: Path) -> str:
    return output.read_text("utf-8", errors="replace")


def lacks_memory(output: str) -> bool:
    """Whether what a trainer printed reports that a memory is full."""
    return any(words in output.lower() for words in NO_MEMORY)


def why_failed(ended: Ended) -> tuple[str, str]:
    """The state of a row whose trainer did not get far enough, and the reason."""
    if lacks_memory(ended.output):
        return "out of memory", "the device's memory is full"
    if ended.code in (-signal.SIGKILL, 128 + signal.SIGKILL) or "SIGKILL" in ended.output:
        return "out of memory", "the system killed the trainer, probably for lack of memory"
    said = last_words(ended.output)[:500]
    return "failed", said or f"it ended with exit code {ended.code} and printed nothing"
