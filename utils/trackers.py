"""Scalars, images and settings to tensorboard, wandb and mlflow; one that fails says so once and is dropped."""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image

from utils.cli import UserError
from utils.files import write_json
from utils.runs import mask_secrets, mask_text

logger = logging.getLogger(__name__)
NAMES = ("tensorboard", "wandb", "mlflow")
PROJECT = "finetune"  # where the trackers keep runs apart; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME win
# No server in two short tries is no server: mlflow itself would try for many minutes. A plain folder is enough here:
# the database that it prefers needs packages that mlflow-skinny leaves out.
MLFLOW_SETTINGS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
MLFLOW_SETTINGS |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


class Tracker(NamedTuple):  # what every backend can do
    scalars: Callable[[dict[str, float], int], None]
    images: Callable[[str, dict[str, Image.Image], int], None]
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


def start_trackers(names: list[str], logs: Path, run_name: str, config: dict, step: int = 0) -> dict[str, Tracker]:
    """Those that could be started, by name. What they keep locally is in `logs`; `step` > 0 where one resumes."""
    start = {"tensorboard": _start_tensorboard, "wandb": _start_wandb, "mlflow": _start_mlflow}
    trackers, config = {}, mask_secrets(config)
    for name in names:
        try:
            (logs / name).mkdir(parents=True, exist_ok=True)
            trackers[name] = start[name](logs, run_name, config, step)
        except Exception as error:  # whatever it is, it must not stop training
            _warn(name, error)
    return trackers


def log_scalars(trackers: dict[str, Tracker], values: dict[str, float | None], step: int) -> None:
    """Numbers of one step; a value of None is left out."""
    numbers = {name: float(value) for name, value in values.items() if value is not None}
    _with_each(trackers, lambda tracker: tracker.scalars(numbers, step))


def log_images(trackers: dict[str, Tracker], tag: str, images: Image.Image | dict[str, Image.Image], step: int) -> None:
    """One image (a grid, say) or several by caption."""
    named = images if isinstance(images, dict) else {"": images}
    _with_each(trackers, lambda tracker: tracker.images(tag, named, step))


def end_trackers(trackers: dict[str, Tracker]) -> None:
    """Flush and close; afterwards there is none left to log to."""
    _with_each(trackers, lambda tracker: tracker.end())
    trackers.clear()


def _with_each(trackers: dict[str, Tracker], act: Callable[[Tracker], None]) -> None:
    for name, tracker in list(trackers.items()):
        try:
            act(tracker)
        except Exception as error:  # as above
            del trackers[name]
            _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    reason = mask_text(" ".join(str(error).split())[:300]) or type(error).__name__
    logger.warning("--report_to %s: %s; training goes on without it", name, reason)


def _read_ids(logs: Path) -> dict[str, str]:
    """Which wandb and mlflow run this folder is; a resumed run continues it."""
    path = logs / "trackers.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write_id(logs: Path, name: str, value: str) -> None:
    write_json(logs / "trackers.json", _read_ids(logs) | {name: value})


def _start_tensorboard(logs: Path, run_name: str, config: dict, step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # Its thread keeps an error for the next call to raise, and prints a traceback besides.
    shown = threading.excepthook
    threading.excepthook = lambda hook: shown(hook) if "AsyncWriter" not in type(hook.thread).__name__ else None
    # The steps after `step` are made again: tensorboard then hides their first version.
    writer = SummaryWriter(logs / "tensorboard", purge_step=step + 1 if step else None)
    text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True)
    writer.add_text("config", "    " + text.replace("\n", "\n    "), step)
    writer.flush()  # a disk that takes nothing is found here

    def scalars(values, step):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def images(tag, drawn, step):
        for caption, image in drawn.items():
            pixels = np.asarray(image.convert("RGB"))
            writer.add_image(f"{tag}/{caption}" if caption else tag, pixels, step, dataformats="HWC")
        writer.flush()

    return Tracker(scalars, images, writer.close)


def _start_wandb(logs: Path, run_name: str, config: dict, step: int) -> Tracker:
    from requests.utils import get_netrc_auth

    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    login = os.environ.get("WANDB_API_KEY") or get_netrc_auth(base)
    mode = os.environ.get("WANDB_MODE") or ("online" if login else "offline")
    if not login and mode not in ("offline", "dryrun", "disabled"):  # wandb would ask on the terminal
        raise RuntimeError(f"WANDB_MODE={mode}, but there is no login; set WANDB_API_KEY or WANDB_MODE=offline")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    if not os.access(logs / "wandb", os.W_OK):  # wandb itself would write to /tmp instead
        raise PermissionError(f"{logs / 'wandb'} can't be written")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        name=run_name,
        config=config,
        dir=logs,
        id=_read_ids(logs).get("wandb"),
        resume="allow",
        mode=mode,
        # It neither asks nor waits for ever, and leaves the terminal to us.
        settings=wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout=120),
    )
    _write_id(logs, "wandb", run.id)

    def log(values, step):
        if step >= run.step:  # an earlier one was logged before the run was stopped, with the same values
            run.log(values, step=step)

    def images(tag, drawn, step):
        log({tag: [wandb.Image(image, caption=caption or None) for caption, image in drawn.items()]}, step)

    return Tracker(log, images, run.finish)


def _start_mlflow(logs: Path, run_name: str, config: dict, step: int) -> Tracker:
    os.environ.update(MLFLOW_SETTINGS | dict(os.environ))  # what the user has set wins
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # of the retries; the failure is reported
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (logs / "mlflow").resolve().as_uri()
    client = MlflowClient(tracking_uri=uri)
    store = f"mlflow {mask_text(uri)}"  # in another store it is another run
    run = _read_ids(logs).get(store)
    if run:
        client.update_run(run, status="RUNNING")
    else:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else client.create_experiment(title)
        run = client.create_run(number, run_name=run_name).info.run_id
        _write_id(logs, store, run)
        params = [Param(_plain(name), str(value)[:6000]) for name, value in config.items()]
        for start in range(0, len(params), 100):  # a server takes no more at once
            client.log_batch(run, params=params[start : start + 100])

    def scalars(values, step):
        now = int(time.time() * 1000)
        client.log_batch(run, metrics=[Metric(_plain(name), value, now, step) for name, value in values.items()])

    def images(tag, drawn, step):
        for caption, image in drawn.items():
            client.log_image(run, image, key=_plain(f"{tag}/{caption}" if caption else tag), step=step)

    return Tracker(scalars, images, lambda: client.set_terminated(run))


def _plain(name: str) -> str:  # mlflow allows few characters in a name
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:240]
