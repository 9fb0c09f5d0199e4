"""--sync_to of the trainers: a run that is kept elsewhere too, in S3 (a local server) or in a folder, as of a drive."""

import re
import shutil
import signal

import pytest

from tests.tiny_runs import PRIOR, QUICK, column, flags, same_bytes, start, teach, train
from training import run as training_run
from utils import checkpoints, storage
from utils.cli import UserError

LONG = ["--max_train_steps", 36, "--checkpointing_steps", 3, "--checkpoints_total_limit", 2, "--validation_steps", 18]
LONG += ["--use_ema", "--caption_dropout", 0.2, "--num_validation_samples", 4]


def run(data, out, place, server, told, *dies):
    """The exit code of the command in a process of its own."""
    process = start(
        flags(data, out, *LONG, "--sync_to", place), told, *dies, environment=server.environment, values=QUICK
    )
    process.join(120)
    return process.exitcode


def steps_there(place):
    return [
        int(found[1]) for found in (re.search(r"checkpoint-(\d+)/MANIFEST", name) for name in names(place)) if found
    ]


def names(place):
    return storage.list_place(storage.open_place(place, "--sync_to"))


@pytest.fixture(scope="module")
def whole(trainer_data, tmp_path_factory):
    """The run without interruption and without a place."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(trainer_data, folder, *LONG) == 0
    return folder


def test_killed_stopped_and_started_elsewhere_it_ends_with_the_same_bytes(
    trainer_data, whole, place_name, server, tmp_path
):
    place, told = place_name, tmp_path / "told"
    one, two, last = (tmp_path / name / "run" for name in ("one", "two", "three"))
    killed = run(trainer_data, one, place, server, told, ("utils.sync", "_rotate", 2))  # checkpoints are there
    assert killed == -signal.SIGKILL, told.read_text()
    shutil.rmtree(one.parent)
    stop = ("utils.checkpoints", "write_manifest", 1), (signal.SIGTERM,)
    assert run(trainer_data, two, place, server, told, *stop) == 128 + signal.SIGTERM, told.read_text()
    stopped = checkpoints.list_checkpoints(two)[0].name
    shutil.rmtree(two.parent)
    assert run(trainer_data, last, place, server, told) == 0, told.read_text()
    assert re.findall("resuming from (.*)", told.read_text())[1:] == [f"{last}/{stopped}"]
    assert same_bytes(whole, last) and same_bytes(whole / "best", last / "best")
    assert column(last, "loss") == column(whole, "loss")
    assert sorted(steps_there(place)) == [33, 36]
    assert not any(name.startswith((".lease", "best.new")) for name in names(place))


def test_a_place_that_refuses_in_the_middle_of_a_run_does_not_stop_it(
    trainer_data, server, in_s3, tmp_path, monkeypatch, caplog
):
    """What is missing there is listed, the exit code says it, and the same command, finished by now, sends it."""
    synced = ["--sync_to", in_s3]
    monkeypatch.setattr(training_run, "PATIENCE", 0)

    def refuse(part):
        server.fault = lambda request: (
            403 if request["REQUEST_METHOD"] == "PUT" and part in request["PATH_INFO"] else None
        )

    refuse(".train.written")
    with pytest.raises(UserError, match="--sync_to .*Access Denied; give the credentials"):  # from the start on
        train(trainer_data, tmp_path / "run", *synced)
    refuse("/checkpoint-6/")
    assert train(trainer_data, tmp_path / "run", *synced) == 1
    assert (
        "checkpoint-3/, checkpoint-6/ (Access Denied) not sent; the same command sends the rest" in caplog.messages[-1]
    )
    assert server.environment["AWS_SECRET_ACCESS_KEY"] not in caplog.text
    server.fault = lambda request: None
    assert not steps_there(in_s3) and "summary.json" in names(in_s3)
    server.requests.clear()
    assert train(trainer_data, tmp_path / "run", *synced, "--dry_run") == 0
    assert server.requests and not any(one.startswith(("PUT", "POST", "DELETE")) for one in server.requests)
    assert train(trainer_data, tmp_path / "run", *synced) == 0
    assert sorted(steps_there(in_s3)) == [3, 6] and "summary.json" in names(in_s3)


def test_a_whole_pipeline_and_its_class_images_elsewhere(trainer_data, tmp_path):
    """Class images are no part of the run's folder."""
    place, words = tmp_path / "drive", ["--method", "full", *PRIOR, "--sync_to", tmp_path / "drive"]
    assert teach(trainer_data, tmp_path / "run", *words) == 0
    finished = names(str(place))
    assert {
        "unet/diffusion_pytorch_model.safetensors",
        "model_index.json",
        "checkpoint-6/unet/config.json",
    } <= finished.keys()
    shutil.rmtree(tmp_path / "run")
    assert teach(trainer_data, tmp_path / "elsewhere", *words) == 0
    for name in finished:
        if not name.startswith((".", "checkpoint-3/")):  # the older one is not needed
            assert (tmp_path / "elsewhere" / name).read_bytes() == (place / name).read_bytes()
    assert names(str(place)).keys() == finished.keys()
