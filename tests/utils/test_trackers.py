"""Each tracker is really run, offline, and what it kept is read back."""

import io
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
import wave
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny_runs
from utils.cli import UserError, mask_secrets, mask_text, read_env_file
from utils.files import list_files
from utils.trackers import NAMES, end_trackers, log_audio, log_images, log_scalars, start_trackers, tracker_names

ROOT = Path(__file__).resolve().parent.parent.parent
TONE = np.sin(np.arange(800) / 8)  # 0.1 s at a rate of 8,000
SECRET = "correct-horse-battery"
CONFIG = {"rank": 8, "wandb_api_key": "abc123", "output_dir": Path("runs/x"), "prompt": "ein Schuh, größer"}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def track(folder: Path, names, steps, start: int = 0) -> dict:
    trackers = start_trackers(names, folder / "logs", "shoes", CONFIG, start)
    for step in steps:
        log_scalars(trackers, {"loss": 1 / step, "val_loss": None}, step)
    log_images(trackers, "validation", Image.new("RGB", (8, 8), "red"), steps[-1])
    log_images(trackers, "validation", {"red shoe, seed 1": Image.new("RGB", (8, 8), "blue")}, steps[-1])
    log_audio(trackers, "validation/speech", TONE, 8000, steps[-1])
    kept = dict(trackers)
    end_trackers(trackers)
    assert not trackers
    return kept


def is_tone(file) -> bool:
    """Whether a WAV file (its path or itself) holds TONE."""
    with wave.open(file) as audio:
        samples = np.frombuffer(audio.readframes(audio.getnframes()), "<i2") / 32767
        assert (audio.getnchannels(), audio.getframerate()) == (1, 8000)
    return samples.shape == TONE.shape and bool(np.abs(samples - TONE).max() < 1e-3)


def wandb_records(path: Path) -> list:
    """A .wandb file: a header of 7 bytes, then records in blocks of 32 KiB, a long one in several pieces."""
    from wandb.proto import wandb_internal_pb2

    data, at, records, whole = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def wandb_history(folder: Path) -> dict[int, dict]:
    history = {}
    for path in sorted(folder.glob("logs/wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                row = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                row = {name: json.loads(value) for name, value in row.items()}
                history.setdefault(int(row["_step"]), {}).update(row)
    return history


def test_tensorboard_keeps_scalars_images_audio_and_config(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert set(track(tmp_path, ["tensorboard"], [1, 2, 4])) == {"tensorboard"}
    events = EventAccumulator(str(tmp_path / "logs/tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert events.Images("validation")[0].step == 4
    assert events.Images("validation/red shoe, seed 1")[0].width == 8
    (heard,) = events.Audio("validation/speech")
    assert heard.step == 4 and heard.sample_rate == 8000 and is_tone(io.BytesIO(heard.encoded_audio_string))
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "rank: 8" in text and "größer" in text and "abc123" not in text


def test_a_resumed_tensorboard_has_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(tmp_path, ["tensorboard"], [1, 2, 3, 4])
    time.sleep(1.1)  # event files are told apart, and ordered, by the second
    track(tmp_path, ["tensorboard"], [3, 4, 5], start=2)
    events = EventAccumulator(str(tmp_path / "logs/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]


def test_wandb_without_login_keeps_all_offline_and_continues_its_run(tmp_path, caplog):
    import wandb

    assert set(track(tmp_path, ["wandb"], [1, 2, 4])) == {"wandb"}
    assert "--report_to wandb: no login, so the run is offline" in caplog.text
    assert track(tmp_path, ["wandb"], [3, 4, 5], start=2)
    wandb.teardown()  # its service, another process, may still be writing
    history = wandb_history(tmp_path)
    assert {step: row["loss"] for step, row in history.items() if "loss" in row} == {
        1: 1.0,
        2: 0.5,
        3: 1 / 3,
        4: 0.25,
        5: 0.2,
    }
    assert any("validation" in name for name in history[4])
    assert len(list(tmp_path.glob("logs/wandb/offline-run-*/files/media/images/*.png"))) == 4
    sounds = list(tmp_path.glob("logs/wandb/offline-run-*/files/media/audio/**/*.wav"))
    assert len(sounds) == 2 and all(is_tone(str(path)) for path in sounds)
    assert any("validation/speech" in name for name in history[5])
    runs = [
        record.run
        for path in sorted(tmp_path.glob("logs/wandb/offline-run-*/*.wandb"))
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "run"
    ]
    assert len({run.run_id for run in runs}) == 1 and runs[0].display_name == "shoes"
    config = {item.key: item.value_json for item in runs[0].config.update}
    assert config["rank"] == "8" and config["wandb_api_key"] == '"***"'
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(b"abc123" in path.read_bytes() for path in files)


def test_mlflow_keeps_all_in_the_run_folder_and_continues_its_run(tmp_path):
    from mlflow import MlflowClient

    assert set(track(tmp_path, ["mlflow"], [1, 2])) == {"mlflow"}
    track(tmp_path, ["mlflow"], [3, 4], start=2)
    client = MlflowClient(tracking_uri=(tmp_path / "logs/mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("finetune").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(item.step, item.value) for item in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert run.info.run_name == "shoes" and run.info.status == "FINISHED"
    assert run.data.params["rank"] == "8" and run.data.params["wandb_api_key"] == "***"
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images") if item.path.endswith(".png")]
    assert len(images) == 4
    path = next(tmp_path.glob("logs/mlflow/*/*/artifacts/images/validation+step+4*.png"))
    assert np.asarray(Image.open(path))[0, 0].tolist() == [255, 0, 0]
    (path,) = tmp_path.glob("logs/mlflow/*/*/artifacts/audio/validation+speech+step+4.wav")
    assert is_tone(str(path))


@pytest.fixture
def as_on_another_machine(monkeypatch):
    """Forget, as the end of a process does, where mlflow keeps the images of a run."""
    from mlflow.tracking._tracking_service import utils

    return lambda: utils._artifact_repos_cache.clear()


def mlflow_run(client):
    """The one run that the store has, and its numbers as {name: [steps]}; each of its images can be opened."""
    (run,) = client.search_runs([client.get_experiment_by_name("finetune").experiment_id])
    steps = {name: [one.step for one in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
    for image in client.list_artifacts(run.info.run_id, "images"):
        if image.path.endswith(".png"):
            Image.open(client.download_artifacts(run.info.run_id, image.path)).load()
    return run, steps


def test_an_mlflow_run_goes_on_in_a_folder_that_was_moved_with_each_step_once(tmp_path, as_on_another_machine):
    from mlflow import MlflowClient

    first, second = tmp_path / "one machine/shoes", tmp_path / "another/größer"
    track(first, ["mlflow"], [1, 2, 3])
    second.parent.mkdir()
    first.rename(second)
    as_on_another_machine()
    assert list(track(second, ["mlflow"], [2, 3, 4], start=1)) == ["mlflow"]
    client = MlflowClient(tracking_uri=(second / "logs/mlflow").as_uri())
    run, steps = mlflow_run(client)
    assert steps == {"loss": [1, 2, 3, 4]} and not first.exists()
    images = [path.name.split("+step+")[1][0] for path in second.rglob("artifacts/images/*.png")]
    assert sorted(images) == ["3", "3", "4", "4"]  # with and without a caption
    place = second / "logs/mlflow" / run.info.experiment_id / run.info.run_id / "artifacts"
    assert run.info.artifact_uri == place.as_uri()


def test_an_mlflow_run_that_was_deleted_is_begun_anew(tmp_path, caplog):
    from mlflow import MlflowClient

    track(tmp_path, ["mlflow"], [1])
    client = MlflowClient(tracking_uri=(tmp_path / "logs/mlflow").as_uri())
    client.delete_run(mlflow_run(client)[0].info.run_id)
    track(tmp_path, ["mlflow"], [2], start=1)
    assert mlflow_run(client)[1] == {"loss": [2]}
    assert "a new one begins" in caplog.text


def test_a_database_for_mlflow_without_its_packages_is_one_line_with_what_to_install(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    assert list(track(tmp_path, ["mlflow", "tensorboard"], [1])) == ["tensorboard"]
    (record,) = [record for record in caplog.records if record.name == "utils.trackers"]
    assert record.getMessage() == (
        f"--report_to mlflow: MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/mlflow.db: a database needs the full mlflow: "
        "pip install -r requirements-cloud.txt; training continues without it"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("", "mlflow"),
        pytest.param("sqlite:///{}/logs/mlflow.db", "mlflow sqlite:////mlflow.db", marks=pytest.mark.very_slow),
    ],
)
def test_a_training_moved_to_another_machine_goes_on_in_every_tracker_and_shows_no_secret(
    trainer_data, tmp_path, monkeypatch, caplog, capfd, as_on_another_machine, address, key
):
    """With validation images, MLflow's run in a folder or a database within the run's, a secret of .env in a prompt."""
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MY_SECRET", "")
    monkeypatch.delenv("MY_SECRET")
    monkeypatch.delenv("PYTHON_DOTENV_DISABLED")
    (tmp_path / ".env").write_text(f"MY_SECRET='{SECRET}'")
    read_env_file(tmp_path / ".env")

    first, second, drive = tmp_path / "here" / "shoes", tmp_path / "there" / "shoes", tmp_path / "drive"

    def train_in(out: Path) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(out))
        words = ["--report_to", "tensorboard,wandb,mlflow", "--max_train_steps", 4, "--checkpointing_steps", 2]
        words += ["--validation_steps", 2, "--num_validation_images", 1, "--validation_prompt", f"a shoe, {SECRET}"]
        words += ["--sync_to", drive]
        monkeypatch.setattr(sys, "argv", ["train_lora.py", *map(str, words)])
        assert tiny_runs.train(trainer_data, out, *words) == 0

    train_in(first)
    before = json.loads((first / "logs/trackers.json").read_text())
    shutil.rmtree(first)
    as_on_another_machine()
    tiny_runs.forget_after(drive, 2)
    with open(next(drive.glob("logs/tensorboard/events*")), "r+b") as file:
        file.truncate(file.seek(0, 2) - 3)  # copied while it was written
    train_in(second)
    assert json.loads((second / "logs/trackers.json").read_text()) == before and not first.exists()

    events = EventAccumulator(str(second / "logs/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("validation")] == [0, 2, 4]
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "rank: 4" in config and "a shoe, ***" in config

    run, steps = mlflow_run(MlflowClient(tracking_uri=address.format(second) or f"{second}/logs/mlflow"))
    assert run.info.run_id == before[key] and run.data.params["rank"] == "4"
    assert steps["loss"] == [1, 2, 3, 4] and steps["val_loss"] == [0, 2, 4]
    kept = [path.name.split("+")[2] for path in second.glob("logs/ml*/**/images/*.png")]
    assert {*kept} == {"0", "2", "4"}

    import wandb

    wandb.teardown()  # its service, another process, may still be writing
    history = wandb_history(second)
    assert [step for step, row in sorted(history.items()) if "loss" in row] == [1, 2, 3, 4]
    assert [step for step, row in sorted(history.items()) if "val_loss" in row] == [0, 2, 4]
    assert any("validation" in name for name in history[0])
    assert {path.name.rpartition("-")[2] for path in second.glob("logs/wandb/offline-run-*")} == {before["wandb"]}

    kept, sent = ({name for name in list_files(one) if name.startswith("logs/")} for one in (second, drive))
    assert kept == sent
    files = [path for folder in (second, drive) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 40 and [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert b"a shoe, ***" in b"".join(path.read_bytes() for path in second.rglob("*.wandb"))
    shown = capfd.readouterr()
    assert SECRET not in caplog.text + shown.out + shown.err


@pytest.mark.very_slow
@pytest.mark.parametrize("address", ["", "sqlite:///{}/logs/mlflow.db"])
def test_after_a_kill_another_machine_goes_on_with_each_step_once(trainer_data, tmp_path, monkeypatch, address):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    words = ["--report_to", "tensorboard,wandb,mlflow", "--max_train_steps", 9, "--checkpointing_steps", 3]
    words += ["--validation_steps", 3, "--num_validation_images", 1, "--sync_to", tmp_path / "drive"]
    told, ids = tmp_path / "told", []
    for number, dies_in in enumerate([("train_lora", "log_step", 8), ("train_lora", "log_step", 2), None]):
        out = tmp_path / f"machine{number}" / "shoes"
        command = tiny_runs.flags(trainer_data, out, *words)
        environment = {"MLFLOW_TRACKING_URI": address.format(out), "WANDB_MODE": "offline"}
        process = tiny_runs.start(command, told, dies_in, environment=environment, values=tiny_runs.QUICK)
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if dies_in else 0), told.read_text()
        ids.append((tmp_path / "drive/logs/trackers.json").read_text())
        if dies_in:
            shutil.rmtree(out)
    assert len({*ids}) == 1 and "training continues without" not in told.read_text()
    events = EventAccumulator(str(out / "logs/tensorboard")).Reload()
    _, steps = mlflow_run(MlflowClient(tracking_uri=address.format(out) or f"{out}/logs/mlflow"))
    assert [event.step for event in events.Scalars("loss")] == steps["loss"] == list(range(1, 10))


def test_another_mlflow_store_gets_a_run_of_its_own(tmp_path, monkeypatch):
    track(tmp_path, ["mlflow"], [1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "other").as_uri())
    assert track(tmp_path, ["mlflow"], [2], start=1)
    ids = json.loads((tmp_path / "logs/trackers.json").read_text())
    assert len(set(ids.values())) == 2
    for run in ids.values():
        assert len(list(tmp_path.glob(f"**/{run}/metrics/loss"))) == 1


@pytest.mark.parametrize("broken", NAMES)
def test_one_that_cannot_start_warns_once_and_the_others_go_on(tmp_path, caplog, monkeypatch, broken):
    others = [name for name in ("tensorboard", "mlflow") if name != broken]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / broken).write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="utils.trackers"):
        assert list(track(tmp_path, [broken, *others], [1, 2, 3])) == others
    (record,) = [record for record in caplog.records if record.name == "utils.trackers"]
    assert f"--report_to {broken}: " in record.getMessage() and "\n" not in record.getMessage()
    assert "File exists" in record.getMessage()


def test_an_mlflow_server_that_is_not_there_is_given_up_soon(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:pass1word@127.0.0.1:9")
    begin = time.monotonic()
    assert list(track(tmp_path, ["mlflow", "tensorboard"], [1])) == ["tensorboard"]
    assert time.monotonic() - begin < 30
    (record,) = [record for record in caplog.records if record.name == "utils.trackers"]
    assert "127.0.0.1" in record.getMessage() and "pass1word" not in caplog.text


def test_wandb_online_without_login_asks_no_questions(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    assert list(track(tmp_path, ["wandb", "tensorboard"], [1])) == ["tensorboard"]
    assert "there is no login" in caplog.text


def test_a_disk_that_fills_up_warns_once_a_tracker_and_training_goes_on(tmp_path):
    """A limit on file size stands for the disk; in a process of its own, since it holds for all that it writes."""
    code = """
import resource, sys
from pathlib import Path
from utils.trackers import start_trackers, log_scalars, end_trackers
trackers = start_trackers(["tensorboard", "mlflow"], Path(sys.argv[1]) / "logs", "shoes", {})
started = list(trackers)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for step in range(60):
    log_scalars(trackers, {f"loss{n}": 0.5 for n in range(5)} , step)
left = list(trackers)
end_trackers(trackers)
print(started, left, step)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[-2] == "['tensorboard', 'mlflow'] [] 59", done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == ["--report_to mlflow", "--report_to tensorboard"], lines
    assert all("File too large" in line for line in lines)


def test_names():
    assert tracker_names("none") == [] and tracker_names("wandb, tensorboard") == ["tensorboard", "wandb"]
    has_comet = find_spec("comet_ml") is not None  # it is not among the requirements
    assert tracker_names("all") == [name for name in NAMES if name != "comet_ml" or has_comet]
    for wrong in ("comet", "", "none,wandb"):
        with pytest.raises(UserError, match="--report_to"):
            tracker_names(wrong)


def test_secrets_are_masked_and_nothing_else():
    settings = {"hub_token": "x", "HF_TOKEN": "y", "deep": {"api_key": "z", "password": None}, "urls": ["s://u:p@h"]}
    plain = {"max_tokens": 3, "tokenizer_name": "clip", "prompt": "a token of a secret garden"}
    assert (
        mask_secrets(settings | plain)
        == {"hub_token": "***", "HF_TOKEN": "***", "deep": {"api_key": "***", "password": None}, "urls": ["s://***@h"]}
        | plain
    )
    command = f"HF_TOKEN=abc train.py --hub_token abc --api-key='a b' --rank 8 hf_{'abc' * 10}"
    assert mask_text(command) == "HF_TOKEN=*** train.py --hub_token *** --api-key=*** --rank 8 ***"
    kept = ("--max_tokens 77 --tokenizer_name clip", "--instance_prompt 'a secret garden'")
    for text in (*kept, "--train_token '<sks>' --initializer_token=shoes"):
        assert mask_text(text) == text


def test_comet_keeps_an_offline_run_that_a_resumed_one_continues(tmp_path, monkeypatch, caplog):
    pytest.importorskip("comet_ml")
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    for start in (0, 2):
        assert list(track(tmp_path, ["comet_ml"], (start + 1, start + 2), start)) == ["comet_ml"]
    assert "no COMET_API_KEY, so the run is kept offline" in caplog.text
    key = json.loads((tmp_path / "logs/trackers.json").read_text())["comet_ml"]
    kept = sorted((tmp_path / "logs/comet_ml").glob(f"{key}*.zip"))
    messages = [zipfile.ZipFile(path).read("messages.json").decode() for path in kept]
    assert len(messages) == 2 and all('"loss"' in one for one in messages) and "abc123" not in str(messages)
