"""A run's folder: who may write it, with which settings, and the record of where and how it was made."""

import contextlib
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

import yaml

from utils.cli import UserError
from utils.files import lock_folder, recover_folder, write_json, write_text
from utils.masking import mask_text

RECORDED = ("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy", "pillow")
RUN_FILES = re.compile(
    r"checkpoint-\d+|best|validation|logs|trackers|metrics\.jsonl|loss_curve\.png|README\.md|(summary|environment)\.json|"
    r"config\.yaml|[^/]+\.safetensors|results\.jsonl?|curves\.png|model_index\.json|unet|vae|text_encoder(_2)?|"
    r"tokenizer(_2)?|scheduler|feature_extractor"
)


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of this repository, with `+changes` where the files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def command_line() -> str:
    """The command that this process was started with, its secrets masked."""
    return mask_text(shlex.join([Path(sys.executable).name, *sys.argv]))


def package_versions() -> dict[str, str | None]:
    return {name: package_version(name) for name in RECORDED}


def write_environment(path: Path, device: str, precision: str, **facts) -> None:
    """environment.json of a run: versions, device, precision and why, git commit, the command, other facts."""
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


def training_changes(old: dict, new: dict, free: Iterable[str]) -> list[str]:
    """What differs between two settings, but for the keys that change nothing in training."""
    keys = sorted({*old, *new} - set(free)) if old else []  # an emptied config.yaml is the user's word that all is well
    return [
        f"what --{key.removesuffix('_sha256')} names has changed"
        if key.endswith("_sha256")
        else f"{key} was {old.get(key)}, now {new.get(key)}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _empty_folder(folder: Path, config: Path, logs: str | None) -> None:
    """Remove what a run makes, nothing else; config.yaml goes last: killed half-way, it is still a run's folder."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    foreign = [entry.name for entry in entries if entry.name != logs and not RUN_FILES.fullmatch(entry.name)]
    if foreign:
        raise UserError(f"--output_dir {folder}: holds files that no run made ({foreign[0]}); name another folder")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry == config):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def refuse_foreign(folder: Path) -> None:
    """An error where a folder holds anything, and no settings that it was begun with."""
    # A kill while the first config.yaml was written leaves its beginning under a hidden name.
    foreign = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".config.yaml.")]
    if foreign and not (folder / "config.yaml").is_file():
        raise UserError(
            f"--output_dir {folder}: holds other files ({foreign[0]}) and no config.yaml; name another folder, or, "
            "where they are of this very command, put a config.yaml with `{}` beside them"
        )


def read_settings(folder: Path) -> dict:
    """config.yaml: the settings that the folder was begun with."""
    path = folder / "config.yaml"
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())}); put `{{}}` in it to go on with what is there and "
            "the settings of this command, or name another folder"
        ) from None


def has_begun(folder: Path) -> bool:
    """Whether a run in the folder has come so far that its settings bind: the LoRA's, or a series of trainings'."""
    return any(folder.glob("checkpoint-*")) or any((folder / n).exists() for n in ("summary.json", "results.jsonl"))


def open_run(
    folder: Path, settings: dict, free: Iterable[str], overwrite: bool, end: Callable[[], str | None] = lambda: None
) -> None:
    """Make or enter a run folder, and lock it until this process ends.

    One that was begun with other settings is an error that shows the difference, and what is no run folder is refused.
    Where the run has come to its `end` (see `describe_end`), nothing in it changes.
    """
    config = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_folder(folder)
        refuse_foreign(folder)
        for old in folder.glob(".*.old"):
            recover_folder(folder / old.name[1:-4])
        begun = has_begun(folder)
        if overwrite or not begun:  # what a run left that had not come to its first checkpoint would be out of place
            _empty_folder(folder, config, settings.get("logging_dir"))
        if config.is_file():
            changes = training_changes(read_settings(folder), settings, free)
            if changes:
                raise UserError(
                    f"--output_dir {folder} holds a run with other settings ({'; '.join(changes)}); "
                    "name another folder, give those settings, or add --overwrite to begin anew"
                )
    except OSError as error:
        raise UserError(
            f"--output_dir {folder}: {error.strerror or error}; name a folder that can be written"
        ) from None
    if not end():
        write_text(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def describe_run(
    folder: Path, settings: dict, free: Iterable[str], end: Callable[[], str | None] = lambda: None
) -> str:
    """What the same command without --dry_run would find."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    if not has_begun(folder):
        return f"{folder}, a new one"
    if settings["overwrite"]:
        return f"{folder}, whose run is removed and begun anew"
    changes = training_changes(read_settings(folder), settings, free)
    if changes:
        return f"{folder}, begun with other settings ({'; '.join(changes)}): an error without --overwrite"
    return end() or f"{folder}, which goes on from {found[-1].name if found else 'its beginning'}"


def read_summary(folder: Path) -> dict:
    """What a run said of itself at its end; nothing where it is damaged: it is made again from the last checkpoint."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe_end(folder: Path, asked: list, resume: str, count: Callable[[], int], lacks: bool = False) -> str | None:
    """What to tell where no step is left to train, else None; an error where more are trained than are asked for.

    asked: --max_train_steps and --num_train_epochs, and `count` how many steps they come to; resume: the checkpoint
    that is gone on from; `lacks`: a file that is asked for has yet to be written.
    """
    summary, latest = read_summary(folder), resume == "latest"
    known = folder.glob("checkpoint-*") if latest else {folder / resume, Path(resume)}
    names = [path.name for path in known if path.is_dir()]
    reached = [int(name.rpartition("-")[2]) for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    trained = max([*reached, summary.get("steps", 0) * latest])
    done = summary.get("asked") == asked
    if trained and not done:
        if trained > (wanted := count()):
            flag = f"--num_train_epochs {asked[1]} ({wanted} steps)" if asked[1] else f"--max_train_steps {wanted}"
            what = f"the run in {folder}" if latest else f"--resume_from_checkpoint {resume}"
            raise UserError(
                f"{flag}: {what} is trained for {trained:,} steps already, and is left as it is; for fewer, name "
                "another --output_dir, or begin anew with --overwrite"
            )
        done = summary.get("steps") == wanted
    if lacks or not done:
        return None
    return (
        f"{folder}: finished, {summary['steps']:,} steps are trained, and nothing is changed; more --max_train_steps "
        "go on where the rate is constant, --overwrite begins anew"
    )


def catch_signals(doing: str = "saving a checkpoint") -> list[int]:
    """From now on SIGINT and SIGTERM are noted in the list that is returned; a second SIGINT stops at once."""
    received = []

    def note(number, _frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        # Not print: it fails where the signal comes in the middle of another print.
        os.write(2, f"\n{signal.Signals(number).name}: {doing}; Ctrl-C again stops at once\n".encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time that the block takes to seconds[name]."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
