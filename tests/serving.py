"""A serve.py in a process of its own, as its users have it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Served(NamedTuple):
    url: str
    process: subprocess.Popen
    log: Path


@contextlib.contextmanager
def served(folder: Path, *flags: object, **environment: str) -> Iterator[Served]:
    """Started on a free port, ready; what it prints goes to a file in the folder. Stopped at the end."""
    log = folder / "serve.log"
    command = [sys.executable, "serve.py", "--port", "0", *map(str, flags)]
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    try:
        yield Served(wait_until_ready(process, log), process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_until_ready(process: subprocess.Popen, log: Path) -> str:
    """The server's address."""
    for _ in range(1200):
        if found := re.search(r"serving at (http://\S+)\n", log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"not ready after 2 minutes: {log.read_text()}")
