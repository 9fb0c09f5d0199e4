"""What serve.py does under load, with the demo's model and voice on this machine's CPU.

`batching`: images/s of 8 clients whose requests are made in batches, against one client after whose image the next
one begins, on a server without batches; by turns. `load`: requests for images and speech by many clients at once, each
answered or, after a 429, sent again when Retry-After says; memory after each tenth. `kill`: the same, with the server
killed by SIGKILL in the middle and started again on the same port; clients send again what failed.

    python tests/benchmarks/serve_load.py batching --images 48 --repeats 3
    python tests/benchmarks/serve_load.py load --requests 1000 --clients 32
    python tests/benchmarks/serve_load.py kill --requests 400 --clients 32
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from tests.benchmarks.side_by_side import others_busy, setting
from tests.serving import Served, served

MODEL = ("--pretrained_model_name_or_path", "demo")


class Answer(NamedTuple):
    kind: str  # image, speech
    seconds: float  # of the try that succeeded
    refused: int  # 429
    failed: Counter[str]  # connections that were refused or cut, and 5xx


def post(port: int, path: str, body: dict) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def image_body(number: int, steps: int, size: int) -> dict:
    body = {"prompt": f"a product photo of {('red', 'blue', 'green')[number % 3]} boots", "seed": number}
    return body | {"steps": steps, "size": f"{size}x{size}", "response_format": "b64_json"}


def port_of(server: Served) -> int:
    return int(server.url.rpartition(":")[2])


def measure(server: Served, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(rf"^accelerate_serve_{name} (\S+)$", text, re.MULTILINE)[1])


# Batching


def images_per_second(args: argparse.Namespace, batch_size: int, clients: int) -> float:
    flags = [*MODEL, "--batch_size", batch_size]
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), *flags) as server:
        port = port_of(server)

        def make(number: int) -> None:
            status, content, _ = post(port, "/v1/images/generations", image_body(number, args.steps, args.size))
            assert status == 200, content

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(make, range(clients)))  # what is done once
            began = time.perf_counter()
            list(pool.map(make, range(args.images)))
            return args.images / (time.perf_counter() - began)


def compare_batching(args: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {"8 clients, batches of 8": [], "one after another": []}
    for turn in range(args.repeats):
        for who in sorted(rates, reverse=turn % 2 == 1):
            rates[who].append(images_per_second(args, *((8, 8) if who.startswith("8") else (1, 1))))
            print(f"{who}: {rates[who][-1]:.3f} images/s", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(*rates.values())]
    print(f"ratio: {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), of {args.repeats} turns")


# Load


def ask_until_answered(args: argparse.Namespace, port: int, number: int) -> Answer:
    """One request, sent again after a 429 or a failure, until it is answered by its image or its sound."""
    kind = "speech" if number % 2 else "image"
    path, body = "/v1/images/generations", image_body(number, args.steps, args.size)
    if kind == "speech":
        path, body = "/v1/audio/speech", {"input": f"Frase número {number}.", "voice": "demo-voice/davi"}
    refused, failed = 0, Counter[str]()
    for _ in range(1000):
        began = time.perf_counter()
        try:
            status, content, headers = post(port, path, body)
        except (OSError, http.client.HTTPException) as error:
            failed[type(error).__name__] += 1
            time.sleep(0.5)
            continue
        if status == 200:
            assert len(content) > 500
            return Answer(kind, time.perf_counter() - began, refused, failed)
        if status == 429:
            refused += 1
            time.sleep(int(headers["Retry-After"]))
            continue
        assert status == 503, (status, content)
        failed[json.loads(content)["error"]["code"]] += 1
        time.sleep(0.5)
    raise AssertionError(f"request {number} was never answered")


def load_flags(args: argparse.Namespace) -> list[object]:
    return [*MODEL, "--voice", "demo-voice", "--max_waiting", args.max_waiting]


def describe(answers: list[Answer], seconds: float) -> None:
    print(f"{len(answers):,} answered in {seconds:.1f} s: {dict(Counter(one.kind for one in answers))}")
    print(f"429, each of which a retry got through: {sum(one.refused for one in answers):,}")
    print(f"failures that a retry got through: {dict(sum((one.failed for one in answers), Counter()))}")
    for kind in ("image", "speech"):
        p50, p99 = np.percentile([one.seconds for one in answers if one.kind == kind], [50, 99])
        print(f"{kind}: p50 {p50:.2f} s, p99 {p99:.2f} s")


def put_load(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), *load_flags(args)) as server:
        port, memory = port_of(server), []
        with ThreadPoolExecutor(args.clients) as pool:
            began, answers = time.perf_counter(), []
            for start in range(0, args.requests, max(1, args.requests // 10)):
                part = range(start, min(args.requests, start + max(1, args.requests // 10)))
                answers += pool.map(lambda number: ask_until_answered(args, port, number), part)
                memory.append(measure(server, "memory_bytes") / 2**20)
            seconds = time.perf_counter() - began
        describe(answers, seconds)
        print(f"memory after each tenth, MiB: {' '.join(f'{one:.0f}' for one in memory)}")
        assert memory[-1] < 1.2 * memory[len(memory) // 2], "memory still grows in the second half"


@contextlib.contextmanager
def killed_once(folder: Path, flags: list[object], is_due: threading.Event) -> Iterator[Served]:
    """A server that is killed when it is due, and started again on its port."""
    with served(folder, *flags) as first:
        again: list[subprocess.Popen] = []

        def kill_and_start() -> None:
            is_due.wait()
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            command = [sys.executable, "serve.py", *map(str, flags), "--port", str(port_of(first))]
            with open(folder / "again.log", "w") as log:
                again.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))

        with ThreadPoolExecutor(1) as pool:
            killing = pool.submit(kill_and_start)
            yield first
            killing.result()
        again[0].terminate()
        again[0].wait(60)
        said = (folder / "again.log").read_text()
        assert "serving at" in said and "Traceback" not in said, said


def kill_under_load(args: argparse.Namespace) -> None:
    is_due, done = threading.Event(), []
    with tempfile.TemporaryDirectory() as name, killed_once(Path(name), load_flags(args), is_due) as server:
        port = port_of(server)

        def ask(number: int) -> Answer:
            answer = ask_until_answered(args, port, number)
            done.append(number)
            if len(done) > args.requests / 2:
                is_due.set()
            return answer

        with ThreadPoolExecutor(args.clients) as pool:
            began = time.perf_counter()
            answers = list(pool.map(ask, range(args.requests)))
            describe(answers, time.perf_counter() - began)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["batching", "load", "kill"])
    values = {"images": 48, "repeats": 3, "requests": 1000, "clients": 32, "size": 128, "steps": 25, "max_waiting": 16}
    for flag, value in values.items():
        parser.add_argument(f"--{flag}", type=int, default=value, help=f"default: {value}")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    busy, began = others_busy(), time.perf_counter()
    {"batching": compare_batching, "load": put_load, "kill": kill_under_load}[args.what](args)
    others = max(0.0, others_busy() - busy) / (time.perf_counter() - began)
    print(f"{setting(os.cpu_count())}; others kept {others:.2f} cores busy")


if __name__ == "__main__":
    main(parse_args())
