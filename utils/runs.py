"""A run's folder: which process may write it, with which settings, and the record of where and how it was made."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from utils.cli import UserError, mask_text
from utils.files import lock_folder, recover_folder, write_json, write_text

RECORDED = ("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "pillow")
RUN_FILES = re.compile(
    r"checkpoint-\d+|best|validation|logs|trackers|metrics\.jsonl|loss_curve\.png|README\.md|(summary|environment)\.json|"
    r"config\.yaml|[^/]+\.safetensors|results\.jsonl?|curves\.png|model_index\.json|unet|vae|text_encoder(_2)?|"
    r"tokenizer(_2)?|scheduler|feature_extractor"
)


def git_commit() -> str | None:
    """The commit of this repository, with `+changes` if files differ from it; None outside a git checkout."""

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> str:
    """The command that this process was started with, its secrets masked."""
    return mask_text(shlex.join([Path(sys.executable).name, *sys.argv]))


def package_versions() -> dict[str, str | None]:
    """{package: version} of the packages that decide a result; None for one that is not installed."""
    versions: dict[str, str | None] = dict.fromkeys(RECORDED)
    for name in RECORDED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def write_environment(path: Path, device: str, precision: str, **facts: Any) -> None:
    """Write environment.json: command, commit, versions, device, precision with its reason, and other facts."""
    environment = {
        "command": command_line(),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "precision": precision,
        "packages": package_versions(),
        **facts,
    }
    write_json(path, environment)


def describe_making(hardware: str, seconds: float) -> dict[str, Any]:
    """How results were made, as metrics.json and results.json have it under `made`."""
    return {
        "command": command_line(),
        "commit": git_commit(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "hardware": hardware,
        "versions": package_versions(),
    }


def training_changes(old: dict[str, Any], new: dict[str, Any], free: Iterable[str]) -> list[str]:
    """The differences between two settings, except for the `free` keys, which do not change the training.

    Empty old settings differ in nothing: a user who empties config.yaml says that the folder fits. Neither does a
    setting that is off now and that the old ones lack, from before there was its flag; nor one that is now taken from
    the environment, where the value there is the old one.
    """

    def is_same(key: str) -> bool:
        before, now = old.get(key), new.get(key)
        if key not in old and key.endswith("_sha256"):
            key = key.removesuffix("_sha256")  # judged by the value itself
            return _expand(new.get(key)) != str(new.get(key))
        return before == now or (key not in old and not now) or str(before) == _expand(now)

    free = {*free, *(f"{key}_sha256" for key in free)}
    return [
        f"what --{key.removesuffix('_sha256')} gives has changed"
        if key.endswith("_sha256")
        else f"{key} was {old.get(key)}, now {new.get(key)}"
        for key in sorted({*old, *new} - free if old else [])
        if not is_same(key)
    ]


def _expand(setting: Any) -> str:
    """A setting with the environment's values in place of its interpolations."""
    return re.sub(r"\$\{oc\.env:(\w+)\}", lambda found: os.environ.get(found[1], found[0]), str(setting))


def _empty_folder(folder: Path, logs: str | None) -> None:
    """Remove what a run writes, and refuse a folder with anything else; `logs` is the run's folder of logs.

    config.yaml goes last, so that a folder whose removal was interrupted is still known as a run's.
    """
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    foreign = [entry.name for entry in entries if entry.name != logs and not RUN_FILES.fullmatch(entry.name)]
    if foreign:
        raise UserError(
            f"--output_dir {folder}: contains files that do not belong to a run ({foreign[0]}); give another folder"
        )
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "config.yaml"):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds files but no config.yaml."""
    # A kill during the first write of config.yaml leaves part of it under a hidden name.
    foreign = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".config.yaml.")]
    if foreign and not (folder / "config.yaml").is_file():
        raise UserError(
            f"--output_dir {folder}: holds other files ({foreign[0]}) and no config.yaml; give another folder, or, "
            "if this command made them, put a config.yaml with `{}` into the folder"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that the folder was started with, from its config.yaml; a damaged one is an error."""
    path = folder / "config.yaml"
    try:
        settings = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())}); put `{{}}` in it to continue with the settings of "
            "this command, or give another folder"
        ) from None
    if isinstance(buckets := settings.get("aspect_ratio_buckets"), bool):  # before it had diffusers' meaning, a list
        settings |= {"use_aspect_ratio_buckets": buckets, "aspect_ratio_buckets": None}
    if settings.get("num_train_epochs"):  # the steps beside it, of earlier versions, were a default that did not count
        settings["max_train_steps"] = None
    return settings


def has_begun(folder: Path) -> bool:
    """Whether the folder contains results of training, so that its settings must not change."""
    return any(folder.glob("checkpoint-*")) or any((folder / n).exists() for n in ("summary.json", "results.jsonl"))


def open_run(
    folder: Path,
    settings: dict[str, Any],
    free: Iterable[str],
    overwrite: bool,
    end: Callable[[], str | None] = lambda: None,
) -> None:
    """Create or enter a run folder, and lock it until this process ends.

    Refused: a folder of other settings, with the difference, and one that is not a run's. If the run has reached its
    `end` (see `describe_end`), nothing in it changes.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_folder(folder)
        refuse_foreign(folder)
        for old in folder.glob(".*.old"):
            recover_folder(folder / old.name[1:-4])
        if overwrite or not has_begun(folder):  # without a checkpoint, what an earlier run left would be out of date
            _empty_folder(folder, settings.get("logging_dir"))
        _refuse_other_settings(folder, settings, free)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output_dir {folder}: {reason}; give a folder that can be written") from None
    if not end():
        write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _refuse_other_settings(folder: Path, settings: dict[str, Any], free: Iterable[str]) -> None:
    if not (folder / "config.yaml").is_file():
        return
    if changes := training_changes(read_settings(folder), settings, free):
        raise UserError(
            f"--output_dir {folder} holds a run with other settings ({'; '.join(changes)}); "
            "give another folder, give those settings, or add --overwrite to start over"
        )


def describe_run(
    folder: Path, settings: dict[str, Any], free: Iterable[str], end: Callable[[], str | None] = lambda: None
) -> str:
    """What the same command without --dry_run would do with the folder."""
    if not has_begun(folder):
        return f"{folder}, a new one"
    if settings["overwrite"]:
        return f"{folder}, whose run is removed and started over"
    if changes := training_changes(read_settings(folder), settings, free):
        return f"{folder}, started with other settings ({'; '.join(changes)}): an error without --overwrite"
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    return end() or f"{folder}, continued from {found[-1].name if found else 'its start'}"


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json, which a run writes at its end; empty if there is none or if it is damaged."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checkpoint_step(folder: Path, resume: str) -> int:
    """The step of the newest checkpoint, or of the one that is named; 0 if there is none."""
    paths = folder.glob("checkpoint-*") if resume == "latest" else (folder / resume, Path(resume))
    names = [path.name for path in paths if path.is_dir()]
    return max((int(name.rpartition("-")[2]) for name in names if re.fullmatch(r"checkpoint-\d+", name)), default=0)


def describe_end(
    folder: Path, asked: list[int | None], resume: str, count: Callable[[], int], lacks: bool = False
) -> str | None:
    """The message that no step is left to train, or None. More steps trained than requested is an error.

    asked: --max_train_steps and --num_train_epochs; `count` returns their number of steps, and is called only if
    needed. resume: --resume_from_checkpoint. lacks: a requested file is still to be written.
    """
    summary, latest = read_summary(folder), resume == "latest"
    trained = max(_checkpoint_step(folder, resume), summary.get("steps", 0) if latest else 0)
    done = summary.get("asked") == asked
    if trained and not done:
        wanted = count()
        if trained > wanted:
            flag = f"--num_train_epochs {asked[1]} ({wanted} steps)" if asked[1] else f"--max_train_steps {wanted}"
            what = f"the run in {folder}" if latest else f"--resume_from_checkpoint {resume}"
            raise UserError(
                f"{flag}: {what} already has {trained:,} steps; nothing was changed. For fewer steps give "
                "another --output_dir, or start over with --overwrite"
            )
        done = summary.get("steps") == wanted
    if lacks or not done:
        return None
    return (
        f"{folder}: finished with {summary['steps']:,} steps; nothing was changed. To train longer, give "
        "more --max_train_steps (with a constant learning rate), or start over with --overwrite"
    )


def catch_signals(doing: str = "saving a checkpoint") -> list[int]:
    """Collect SIGINT and SIGTERM in the returned list from now on; a second SIGINT stops at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        # Not print, which fails if the signal arrives during another print.
        os.write(2, f"\n{signal.Signals(number).name}: {doing}; Ctrl-C again stops at once\n".encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to seconds[name]."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
