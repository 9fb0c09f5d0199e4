"""Whether a run with --sync_to that is killed again and again ends with the bytes of one that nobody killed.

A tiny run is killed at random moments, its folder deleted, and the same command started on another "machine" (an empty
folder), until it has ended: by turns with its place in S3 (a local server, over HTTP, that loses one upload in five and
hangs up or answers 503 instead) and in a folder.

    python tests/benchmarks/sync_kills.py --kills 20
"""

import argparse
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.tiny_runs import QUICK, column, flags, same_bytes, start
from utils import runs, storage

LONG = "--max_train_steps 200 --checkpointing_steps 4 --checkpoints_total_limit 2 --validation_steps 24 --use_ema"
LONG += " --caption_dropout 0.2 --num_validation_samples 8"


def make_data(root: Path) -> dict[str, Path]:
    """A tiny pipeline, and a prepared dataset of drawn shoes."""
    import prepare_dataset  # here: each process that is killed imports this module anew
    from demo.catalogue import write_catalogue
    from tests.tiny_models import build_tiny

    data = {name: root / name for name in ("sd1", "raw", "prepared", "cache")}
    build_tiny(data["sd1"], "sd1")
    write_catalogue(data["raw"], 32, (48, 64), 0, ["Casual Shoes", "Boots"], damage=False)
    words = f"--catalogue {data['raw']} --output_dir {data['prepared']} --resolution 32 --num_workers 1"
    prepare_dataset.main(prepare_dataset.parse_args(words.split()))
    return data


class Lossy:
    """A fault of the server: one upload in five is answered with 503, or by hanging up."""

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.uploads, self.lost = draw, 0, 0

    def __call__(self, request: dict[str, Any]) -> int | None:
        if request["REQUEST_METHOD"] != "PUT":
            return None
        self.uploads += 1
        if self.draw.random() >= 0.2:
            return None
        self.lost += 1
        return self.draw.choice((503, -1))


def run_killed(
    data: dict[str, Path], root: Path, place: str, environment: dict[str, str], kills: int, moment: Callable[[], float]
) -> tuple[Path, list[int]]:
    """One run, killed so many times unless it has ended before; its last folder, and the steps it resumed from."""
    told, number = root / "told", 0
    while True:
        here = root / f"machine{number}" / "run"
        process = start(
            flags(data, here, *LONG.split(), "--sync_to", place), told, environment=environment, values=QUICK
        )
        process.join(moment() if number < kills else 600)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0, told.read_text()
            return here, [int(step) for step in re.findall(r"resuming from .*checkpoint-(\d+)", told.read_text())]
        shutil.rmtree(here.parent, ignore_errors=True)
        number += 1


def main() -> None:
    from tests.s3_server import s3_server  # here, too

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="at least so many")
    parser.add_argument("--each", type=int, default=6, help="most kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, kills, number = random.Random(args.seed), 0, 0
    print(f"commit {runs.git_commit()}, {platform.platform()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name, s3_server() as server:
        root, lossy = Path(name), Lossy(draw)
        data = make_data(root)
        for name in ("first", "whole"):  # the first also loads the libraries that the others share
            began, whole = time.monotonic(), root / name / "run"
            process = start(flags(data, whole, *LONG.split()), root / "told")
            process.join()
            assert process.exitcode == 0, (root / "told").read_text()
        seconds = time.monotonic() - began
        os.environ.update(server.environment)
        storage.open_place("s3://bucket/x", "--sync_to").fs.mkdir("bucket")
        server.fault = lossy
        print(f"nobody kills it: {seconds:.1f} s")

        def moment() -> float:
            """Seconds until a kill."""
            return draw.uniform(0.4, 1.0) * seconds

        while kills < args.kills:
            folder = root / f"run{number}"
            folder.mkdir()
            place = f"s3://bucket/run{number}" if number % 2 == 0 else str(folder / "drive")
            here, resumed = run_killed(
                data, folder, place, server.environment, min(args.each, args.kills - kills), moment
            )
            here_kills = int(here.parent.name.removeprefix("machine"))
            same = same_bytes(whole, here) and same_bytes(whole / "best", here / "best")
            same = same and all(column(whole, one) == column(here, one) for one in ("loss", "val_loss"))
            kind = "folder" if number % 2 else "S3"
            verdict = "the same bytes" if same else "OTHER BYTES"
            print(f"{kind}: {here_kills} kills, resumed from {resumed}: {verdict}", flush=True)
            assert same
            kills, number = kills + here_kills, number + 1
        print(
            f"{kills} kills, {number} runs, {lossy.lost:,} of {lossy.uploads:,} uploads to S3 lost, "
            f"{time.monotonic() - began:.0f} s: every run ended with the bytes of the one that nobody killed"
        )


if __name__ == "__main__":
    main()
