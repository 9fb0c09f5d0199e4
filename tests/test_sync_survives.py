"""--sync_to: a run that is kept elsewhere too, in S3 (a local server) or in a folder, as of a mounted drive."""

import random
import shutil
import signal

import pytest

from tests.tiny_runs import column, flags, same_bytes, start
from utils import storage

QUICK = {("utils.sync", "EVERY"): 0.1, ("utils.storage", "RENEWED"): 0.2, ("utils.storage", "EXPIRES"): 0.6}
LONG = ["--max_train_steps", 48, "--checkpointing_steps", 5, "--checkpoints_total_limit", 2, "--validation_steps", 12]
LONG += ["--use_ema", "--caption_dropout", 0.2, "--num_validation_samples", 8]


@pytest.fixture(params=["s3", "drive"])
def place(request, tmp_path):
    """The name of an empty place."""
    if request.param == "drive":
        return str(tmp_path / "drive")
    request.getfixturevalue("server")
    return f"s3://bucket/{tmp_path.name}"


def begin(data, out, place, server, told, *more):
    command = flags(data, out, *LONG, "--sync_to", place, *more)
    return start(command, told, environment=server.environment if server else {}, values=QUICK)


@pytest.fixture(scope="module")
def whole(trainer_data, tmp_path_factory):
    """The run without interruption and without a place."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(flags(trainer_data, folder / "run", *LONG), folder / "told")
    process.join(120)
    assert process.exitcode == 0, (folder / "told").read_text()
    return folder / "run"


def test_killed_and_started_elsewhere_it_ends_with_the_same_bytes(trainer_data, whole, place, server, tmp_path):
    told, moments, kills = tmp_path / "told", random.Random(7), 0
    for number in range(3):
        here = tmp_path / f"machine{number}" / "run"
        process = begin(trainer_data, here, place, server, told)
        process.join(moments.uniform(1, 2.5))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        shutil.rmtree(here.parent, ignore_errors=True)
    here = tmp_path / "last" / "run"
    process = begin(trainer_data, here, place, server, told)
    process.join(120)
    assert process.exitcode == 0 and kills, told.read_text()
    print(told.read_text())
    assert same_bytes(whole, here) and same_bytes(whole / "best", here / "best")
    assert column(here, "loss") == column(whole, "loss")
    there = storage.list_place(storage.open_place(place, "--sync_to"))
    print(there)
    assert {name.split("/")[0] for name in there if name.startswith("checkpoint")} == {"checkpoint-45", "checkpoint-40"}
    assert not any(name.startswith((".lease", "best.new")) for name in there)
