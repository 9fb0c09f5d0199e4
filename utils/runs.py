"""A run's folder: which process may write it, with which settings, and the record of where and how it was made."""

import contextlib
import datetime
import importlib.metadata
import logging
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from utils.cli import UserError, mask_text, refuse_deep
from utils.files import find_changed, lock_folder, parse_json, read_text, write_json, write_text, written_list
from utils.metrics_log import duration, read_metrics, seconds_left, summary_rows
from utils.outputs import check_movable, claim_folder, discard_folder, foreign_files, remove_stale, set_aside

RECORDED = ("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "pillow")

logger = logging.getLogger(__name__)


def git_commit() -> str | None:
    """The commit of this repository, with `+changes` if files differ from it; None if it can't be known.

    An image has no git checkout; it has the commit in SOURCE_COMMIT (cloud/Dockerfile).
    """

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SOURCE_COMMIT") or None


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


def _why_fixed(key: str, settings: dict[str, Any]) -> str:
    """Why the length of a run can't change."""
    if key not in ("max_train_steps", "num_train_epochs") or "lr_scheduler" not in settings:
        return ""
    return f": --lr_scheduler {settings['lr_scheduler']} spreads the rate over the length, so it can't change"


def training_changes(old: dict[str, Any], new: dict[str, Any], free: Iterable[str]) -> list[str]:
    """The differences between two settings, except for the `free` keys, which do not change the training.

    A setting that is off now and that the old ones lack, from before there was its flag, does not differ; nor one that
    is now taken from the environment, where the value there is the old one.
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
        else f"{key} was {old.get(key)}, now {new.get(key)}{_why_fixed(key, new)}"
        for key in sorted({*old, *new} - free)
        if not is_same(key)
    ]


def _expand(setting: Any) -> str:
    """A setting with the environment's values in place of its interpolations."""
    return re.sub(r"\$\{oc\.env:(\w+)\}", lambda found: os.environ.get(found[1], found[0]), str(setting))


def refuse_foreign(folder: Path, kind: str, advice: str = "give another folder") -> None:
    """Refuse a folder with files that no script began; in one of an earlier version, config.yaml names output_dir."""
    if written_list(folder, kind).exists() or "output_dir" in read_settings(folder):
        if not (folder / "config.yaml").is_file():
            logger.warning("%s has no config.yaml any more; the settings of this command are taken as its own", folder)
        return
    if foreign := foreign_files(folder, kind):
        raise UserError(f"--output_dir {folder}: holds files that no script wrote ({foreign[0]}); {advice}")


CONTINUE = "remove that file to continue with the settings of this command, or give another folder"


def read_settings(folder: Path, advice: str = CONTINUE) -> dict[str, Any]:
    """The settings that the folder was started with, from its config.yaml, if it has one.

    A damaged one is an error, whose message ends with the advice.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        text = read_text(path)
        refuse_deep(text)
        settings = dict(yaml.safe_load(text))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); {advice}") from None
    if isinstance(buckets := settings.get("aspect_ratio_buckets"), bool):  # before it had diffusers' meaning, a list
        settings |= {"use_aspect_ratio_buckets": buckets, "aspect_ratio_buckets": None}
    if settings.get("num_train_epochs"):  # the steps beside it, of earlier versions, were a default that did not count
        settings["max_train_steps"] = None
    return settings


def has_begun(folder: Path) -> bool:
    """Whether the folder contains results of training, so that its settings must not change."""
    if any(folder.glob("checkpoint-*")) or any((folder / n).exists() for n in ("summary.json", "results.jsonl")):
        return True
    return any(record.get("step", 0) for record in read_metrics(folder / "metrics.jsonl"))


def open_run(
    folder: Path,
    settings: dict[str, Any],
    free: Iterable[str],
    overwrite: bool,
    end: Callable[[], str | None] = lambda: None,
    kind: str = "train",
    fill: Callable[[Path], None] = lambda folder: None,
) -> str | None:
    """Create or enter a run folder, and lock it until this process ends; what `end` says (see `describe_end`).

    Refused: a folder of other settings, with the difference, and one that is not a run's. With `overwrite`, what is
    there goes (see `discard_folder`). If the run has reached its end, nothing in it changes. `fill` may bring files of
    the run into the folder, once it is locked.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; give a folder")
    place = folder.resolve()  # the folder that a link names: the link itself stays
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock_folder(place, folder)
        remove_stale(place)
        if overwrite and any(place.iterdir()):
            _start_over(place, kind)
        fill(place)
        aside = f"{place.name}.replaced-<date>"
        refuse_foreign(folder, kind, f"give another folder, or add --overwrite, which moves them to {aside}")
        _settle_changes(folder, _changes(place, settings, free), kind)
        if message := end():
            return message
        claim_folder(place, kind)
        _keep_best(place)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output_dir {folder}: {reason}; give a folder that can be written") from None
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return None


def _start_over(folder: Path, kind: str) -> None:
    """An empty folder in the place of this one, locked too."""
    check_movable(folder)
    discard_folder(folder, kind)
    folder.mkdir()
    lock_folder(folder)


def _settle_changes(folder: Path, changes: list[str], kind: str) -> None:
    """Refuse a run with other settings, but start over one that failed before its first step."""
    if changes and not has_begun(folder) and not foreign_files(folder, kind):
        _start_over(folder.resolve(), kind)
    elif changes:
        raise UserError(
            f"--output_dir {folder} holds a run with other settings ({'; '.join(changes)}); "
            "give another folder, give those settings, or add --overwrite to start over"
        )


def _keep_best(folder: Path) -> None:
    """Move the best weights of a run aside that starts again, since it has no checkpoint."""
    if has_begun(folder) and not any(folder.glob("checkpoint-*")) and (folder / "best").exists():
        moved = set_aside(folder / "best")
        logger.warning("%s has no checkpoint and starts again; its best weights so far are in %s", folder, moved)


def _changes(folder: Path, settings: dict[str, Any], free: Iterable[str]) -> list[str]:
    """How settings differ from those of the folder; without any, as after its config.yaml was removed, in nothing."""
    old = read_settings(folder)
    return training_changes(old, settings, free) if old else []


def describe_run(
    folder: Path,
    settings: dict[str, Any],
    free: Iterable[str],
    end: Callable[[], str | None] = lambda: None,
    kind: str = "train",
) -> str:
    """What the same command without --dry_run would do with the folder."""
    if settings["overwrite"] and folder.exists() and any(folder.iterdir()):
        moved = f"moved to {folder.name}.replaced-<date>" if foreign_files(folder, kind) else "removed"
        return f"{folder}, whose content is {moved}, and the run started over"
    if not has_begun(folder):
        return f"{folder}, a new one"
    if changes := _changes(folder, settings, free):
        return f"{folder}, started with other settings ({'; '.join(changes)}): an error without --overwrite"
    from utils import checkpoints  # here: it needs torch, which takes seconds to import

    if message := end():
        return message
    saved = checkpoints.find_checkpoint(folder, _expand(settings.get("resume_from_checkpoint", "latest")))
    return f"{folder}, continued from {saved.name if saved else 'its start'}"


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json, which a run writes at its end; empty if there is none or if it is damaged."""
    try:
        found = parse_json(read_text(folder / "summary.json"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe_progress(folder: Path) -> tuple[dict[str, str], bool]:
    """The results of a run so far by label, and whether it has ended; also of a copy that another machine writes."""
    path, summary = folder / "metrics.jsonl", read_summary(folder)
    records = read_metrics(path)
    step = max((record.get("step", 0) for record in records), default=0)
    if summary.get("steps") == step:
        return summary_rows(records, {name: summary[name] for name in summary if name not in ("asked", "files")}), True
    facts: dict[str, Any] = {}
    if records:
        facts["newest_record"] = f"written {duration(max(0.0, time.time() - path.stat().st_mtime))} ago"
    if last := read_settings(folder).get("max_train_steps"):  # None where epochs are counted
        left = seconds_left(records, last)
        facts |= {"last_step": f"{last:,}", "time_left": "not known yet" if left is None else duration(left)}
    return summary_rows(records, facts), False


def checkpoint_step(folder: Path, resume: str) -> int:
    """The step of the newest checkpoint, or of the one that is named; 0 if there is none."""
    paths = folder.glob("checkpoint-*") if resume == "latest" else (folder / resume, Path(resume))
    names = [path.name for path in paths if path.is_dir()]
    return max((int(name.rpartition("-")[2]) for name in names if re.fullmatch(r"checkpoint-\d+", name)), default=0)


def describe_end(
    folder: Path,
    asked: list[int | None],
    resume: str,
    count: Callable[[], int],
    lacks: bool = False,
    longer: str = "give more --max_train_steps",
) -> str | None:
    """The message that no step is left to train, or None. More steps trained than requested is an error.

    asked: --max_train_steps, --num_train_epochs and what else ends a run; `count` returns their number of steps, and
    is called only if needed. resume: --resume_from_checkpoint. lacks: a requested file is still to be written. longer:
    how the run is continued.
    """
    summary, latest = read_summary(folder), resume == "latest"
    trained = max(checkpoint_step(folder, resume), summary.get("steps", 0) if latest else 0)
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
    if lacks or not done or must_rewrite(folder, summary):
        return None
    early = f", stopped early ({summary['stopped_early']})" if "stopped_early" in summary else ""
    return (
        f"{folder}: finished with {summary['steps']:,} steps{early}; nothing was changed. To train longer, {longer}, "
        "or start over with --overwrite"
    )


def must_rewrite(folder: Path, summary: dict[str, Any]) -> bool:
    """Whether files of a run's result are missing or not what summary.json says; an error without a checkpoint."""
    bad = find_changed(folder, summary.get("files", {}))
    if bad and not any(folder.glob("checkpoint-*")):
        raise UserError(
            f"--output_dir {folder}: {bad[0]} is missing or damaged, and there is no checkpoint to write it "
            "anew from; add --overwrite to train again"
        )
    if bad:
        logger.warning("%s: %s: missing or damaged; written anew from the checkpoint", folder, ", ".join(bad))
    return bool(bad)


def catch_signals(doing: str = "saving a checkpoint") -> list[int]:
    """Collect SIGINT and SIGTERM in the returned list from now on; a second SIGINT stops at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        # Not print, which fails if the signal arrives during another print.
        with contextlib.suppress(OSError):  # where nobody reads it any more
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
