"""Scalars, images, audio and settings to several trackers; one that fails warns once and is dropped."""

import contextlib
import json
import logging
import os
import re
import sqlite3
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from utils.cli import UserError, mask_secrets, mask_text
from utils.files import note_written, write_json, write_text

logger = logging.getLogger(__name__)
NAMES = ("tensorboard", "wandb", "comet_ml", "mlflow")
PROJECT = "finetune"  # groups the runs in a tracker; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME take precedence
# A server that does not answer two short requests is given up: mlflow itself would try for many minutes. Its store is
# a plain folder: the database that it prefers needs packages that mlflow-skinny leaves out.
MLFLOW_SETTINGS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
MLFLOW_SETTINGS |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


class Tracker(NamedTuple):
    """What each tracker can log: numbers by name, images by caption, mono samples with their rate; all with a step."""

    scalars: Callable[[dict[str, float], int], None]
    images: Callable[[str, dict[str, Image.Image], int], None]
    audio: Callable[[str, np.ndarray, int, int], None]
    end: Callable[[], None]


def tracker_names(report_to: str) -> list[str]:
    """--report_to as names: one, several with commas between, `all` that are installed, or `none`."""
    words = [word.strip() for word in report_to.split(",") if word.strip()]
    unknown = [word for word in words if word not in (*NAMES, "all", "none")]
    if unknown or not words or ("none" in words and len(words) > 1):
        raise UserError(f"--report_to {report_to}: give {', '.join(NAMES)}, several with commas between, all or none")
    if "all" in words:
        return [name for name in NAMES if find_spec(name)]
    return [name for name in NAMES if name in words]


def start_trackers(
    names: list[str], logs: Path, run_name: str, config: dict[str, Any], step: int = 0
) -> dict[str, Tracker]:
    """The trackers that could be started, by name; their files are in `logs`. A resumed run gives its `step`."""
    start = {
        "tensorboard": _start_tensorboard,
        "wandb": _start_wandb,
        "comet_ml": _start_comet_ml,
        "mlflow": _start_mlflow,
    }
    trackers, config = {}, mask_secrets(config)
    for name in names:
        try:
            is_new = not (logs / name).exists()
            (logs / name).mkdir(parents=True, exist_ok=True)
            if is_new:
                note_written(logs / name, is_folder=True)
            trackers[name] = start[name](logs, run_name, config, step)
        except Exception as error:  # no fault of a tracker stops the training
            _warn(name, error)
    return trackers


def log_scalars(trackers: dict[str, Tracker], values: dict[str, float | None], step: int) -> None:
    """Log the numbers of one step; a value of None is left out."""
    numbers = {name: float(value) for name, value in values.items() if value is not None}
    _with_each(trackers, lambda tracker: tracker.scalars(numbers, step))


def log_images(trackers: dict[str, Tracker], tag: str, images: Image.Image | dict[str, Image.Image], step: int) -> None:
    """Log one image (a grid, for example) or several by caption."""
    named = images if isinstance(images, dict) else {"": images}
    _with_each(trackers, lambda tracker: tracker.images(tag, named, step))


def log_audio(trackers: dict[str, Tracker], name: str, samples: np.ndarray, rate: int, step: int) -> None:
    """Log mono audio: samples in -1 … 1, other values are clipped; `rate` is samples per second."""
    mono = np.clip(np.asarray(samples, np.float32).reshape(-1), -1, 1)
    _with_each(trackers, lambda tracker: tracker.audio(name, mono, rate, step))


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    """A mono file of 16 bits from samples in -1 … 1."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def end_trackers(trackers: dict[str, Tracker]) -> None:
    """Flush and close all trackers, and remove them from the dict."""
    _with_each(trackers, lambda tracker: tracker.end())
    trackers.clear()


def _with_each(trackers: dict[str, Tracker], act: Callable[[Tracker], None]) -> None:
    for name, tracker in list(trackers.items()):
        try:
            act(tracker)
        except Exception as error:  # no fault of a tracker stops the training
            del trackers[name]
            _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    reason = mask_text(" ".join(str(error).split())[:300]) or type(error).__name__
    logger.warning("--report_to %s: %s; training continues without it", name, reason)


def _read_ids(logs: Path) -> dict[str, str]:
    """The ids of this folder's wandb and mlflow runs, which a resumed run continues."""
    path = logs / "trackers.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write_id(logs: Path, name: str, value: str) -> None:
    write_json(logs / "trackers.json", _read_ids(logs) | {name: value})


def _start_tensorboard(logs: Path, run_name: str, config: dict[str, Any], step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # Its thread keeps an error for the next call to raise; the traceback that it also prints is left out.
    shown = threading.excepthook
    threading.excepthook = lambda hook: shown(hook) if "AsyncWriter" not in type(hook.thread).__name__ else None
    # The steps after `step` are trained again: tensorboard then hides their first version.
    writer = SummaryWriter(logs / "tensorboard", purge_step=step + 1 if step else 0)
    text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True)
    writer.add_text("config", "    " + text.replace("\n", "\n    "), step)
    writer.flush()  # so that a full disk is found here

    def scalars(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def images(tag: str, captioned: dict[str, Image.Image], step: int) -> None:
        for caption, image in captioned.items():
            pixels = np.asarray(image.convert("RGB"))
            writer.add_image(f"{tag}/{caption}" if caption else tag, pixels, step, dataformats="HWC")
        writer.flush()

    def audio(name: str, samples: np.ndarray, rate: int, step: int) -> None:
        writer.add_audio(name, samples, step, rate)
        writer.flush()

    return Tracker(scalars, images, audio, writer.close)


def _wandb_mode(logs: Path) -> Any:
    """WANDB_MODE, or else online where there is a login; refuses to be online without one."""
    from requests.utils import get_netrc_auth

    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    login = os.environ.get("WANDB_API_KEY") or get_netrc_auth(base)
    mode = os.environ.get("WANDB_MODE") or ("online" if login else "offline")
    if not login and mode not in ("offline", "dryrun", "disabled"):  # wandb would ask on the terminal
        raise RuntimeError(f"WANDB_MODE={mode}, but there is no login; set WANDB_API_KEY or WANDB_MODE=offline")
    if not login and "WANDB_MODE" not in os.environ:
        place = f"it is kept in {logs / 'wandb'}, and `wandb sync` uploads it"
        logger.warning("--report_to wandb: no login, so the run is offline: %s; set WANDB_API_KEY to log online", place)
    return mode


def _start_wandb(logs: Path, run_name: str, config: dict[str, Any], step: int) -> Tracker:
    mode = _wandb_mode(logs)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    if not os.access(logs / "wandb", os.W_OK):  # wandb itself would write to /tmp instead
        raise PermissionError(f"{logs / 'wandb'} can't be written")
    command, sys.argv = sys.argv, sys.argv[:1]  # it would record the words, which may hold a secret; config has them
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run_name,
            config=config,
            dir=logs,
            id=_read_ids(logs).get("wandb"),
            resume="allow",
            mode=mode,
            # No questions, no endless waiting, nothing on the terminal, no links, by which a copy has all of it twice.
            settings=wandb.Settings(silent=True, console="off", symlink=False, init_timeout=30, finish_timeout=120),
        )
    finally:
        sys.argv = command
    _write_id(logs, "wandb", run.id)

    def log(values: dict[str, Any], step: int) -> None:
        if step >= run.step:  # an earlier step was logged before the run was stopped, with the same values
            run.log(values, step=step)

    def images(tag: str, captioned: dict[str, Image.Image], step: int) -> None:
        log({tag: [wandb.Image(image, caption=caption or None) for caption, image in captioned.items()]}, step)

    def audio(name: str, samples: np.ndarray, rate: int, step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:  # from an array, wandb would need the package soundfile
            write_wav(Path(folder) / "audio.wav", samples, rate)
            log({name: wandb.Audio(Path(folder) / "audio.wav")}, step)

    return Tracker(log, images, audio, run.finish)


def _start_comet_ml(logs: Path, run_name: str, config: dict[str, Any], step: int) -> Tracker:
    import comet_ml  # not among the requirements: pip install comet_ml
    from accelerate.tracking import CometMLTracker

    online = comet_ml.get_config("comet.api_key") is not None
    if not online:
        logger.warning("--report_to comet_ml: no COMET_API_KEY, so the run is kept offline in %s", logs / "comet_ml")
    how = comet_ml.ExperimentConfig(
        name=run_name,
        offline_directory=str(logs / "comet_ml"),
        log_code=False,
        log_git_patch=False,
        auto_output_logging=False,
        display_summary_level=0,
    )
    project = os.environ.get("COMET_PROJECT_NAME") or PROJECT
    started = CometMLTracker(
        project, online=online, experiment_key=_read_ids(logs).get("comet_ml"), experiment_config=how
    )
    started.start()
    started.store_init_configuration(config)
    run = started.tracker
    _write_id(logs, "comet_ml", run.get_key())

    def images(tag: str, captioned: dict[str, Image.Image], step: int) -> None:
        for caption, image in captioned.items():
            run.log_image(image, name=f"{tag}/{caption}" if caption else tag, step=step)

    def audio(name: str, samples: np.ndarray, rate: int, step: int) -> None:
        run.log_audio(samples, sample_rate=rate, file_name=name, step=step)

    return Tracker(started.log, images, audio, started.finish)


def _mlflow_database(uri: str) -> Path | None:
    """The file of a sqlite store, if the address names one; its folder is made, or mlflow would retry for minutes."""
    if uri.partition(":")[0].partition("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql"):
        return None
    if not find_spec("sqlalchemy"):
        what = "a database needs the full mlflow: pip install -r requirements-cloud.txt"
        raise RuntimeError(f"MLFLOW_TRACKING_URI={uri}: {what}")
    from sqlalchemy import make_url

    place = make_url(uri)
    if not place.drivername.startswith("sqlite") or not place.database:
        return None
    path = Path(place.database).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    note_written(path)
    note_written(path.parent / "mlruns", is_folder=True)
    return path


def _mlflow_experiment(client: Any, store: Path | None) -> str:
    """The experiment's id. `store`: the folder that keeps its images too, or the database that has them beside it.

    They record absolute places: one that was moved is given the new ones.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path

    title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    known = client.get_experiment_by_name(title)
    beside = store.parent / "mlruns" if store and not store.is_dir() else None
    if known is None:
        place = (beside / _plain(title).replace("/", "_")).as_uri() if beside else None
        return client.create_experiment(title, artifact_location=place)
    was = known.artifact_location.rpartition("/")[0]
    if store and not beside and was != store.as_uri():
        _replace_places(store, was, store.as_uri())
    if store and beside and was.startswith("file:") and not os.path.exists(local_file_uri_to_path(was)):
        _replace_places(store, was, beside.as_uri())
    return known.experiment_id


def _replace_places(store: Path, was: str, now: str) -> None:
    if store.is_dir():
        for path in (*store.glob("*/meta.yaml"), *store.glob("*/*/meta.yaml")):
            write_text(path, path.read_text("utf-8").replace(f"{was}/", f"{now}/"))
        return
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (f"{was}/", f"{now}/"))


def _resume_mlflow(client: Any, run: str | None) -> bool:
    """Whether the store still has this run, which goes on then."""
    from mlflow.exceptions import MlflowException

    try:
        if run:
            client.update_run(run, status="RUNNING")
        return run is not None
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # unknown, deleted
            raise
        logger.warning("--report_to mlflow: the store has no run %s any more; a new one begins", run)
        return False


def _start_mlflow(logs: Path, run_name: str, config: dict[str, Any], step: int) -> Tracker:
    os.environ.update(MLFLOW_SETTINGS | dict(os.environ))  # the user's own settings take precedence
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    store = _mlflow_database(uri) if uri else (logs / "mlflow").resolve()
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it would warn of each retry
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it would report each table
    client = MlflowClient(tracking_uri=uri or store.as_uri())
    # Each store has a run of its own; one in the run's folder keeps it where the folder is moved.
    key = f"mlflow {mask_text(uri)}".replace(str(logs.resolve()), "") if uri else "mlflow"
    experiment, run, logged = _mlflow_experiment(client, store), _read_ids(logs).get(key), {}
    if _resume_mlflow(client, run):
        names = client.get_run(run).data.metrics
        logged = {name: max(one.step for one in client.get_metric_history(run, name)) for name in names}
    else:
        run = client.create_run(experiment, run_name=run_name).info.run_id
        _write_id(logs, key, run)
        params = [Param(_plain(name), str(value)[:6000]) for name, value in config.items()]
        for start in range(0, len(params), 100):  # a server takes no more at once
            client.log_batch(run, params=params[start : start + 100])

    # What was logged before the run was stopped has the same values.

    def scalars(values: dict[str, float], step: int) -> None:
        now, new = int(time.time() * 1000), {_plain(name): value for name, value in values.items()}
        new = {name: value for name, value in new.items() if step > logged.get(name, -1)}
        client.log_batch(run, metrics=[Metric(name, value, now, step) for name, value in new.items()])

    def images(tag: str, captioned: dict[str, Image.Image], step: int) -> None:
        if step < max(logged.values(), default=0):
            return
        for caption, image in captioned.items():
            client.log_image(run, image, key=_plain(f"{tag}/{caption}" if caption else tag), step=step)

    def audio(name: str, samples: np.ndarray, rate: int, step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{_plain(name).replace('/', '+')}+step+{step}.wav"  # as mlflow names images
            write_wav(path, samples, rate)
            client.log_artifact(run, str(path), "audio")

    return Tracker(scalars, images, audio, lambda: client.set_terminated(run))


def _plain(name: str) -> str:
    """A name in the characters that mlflow allows."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:240]
