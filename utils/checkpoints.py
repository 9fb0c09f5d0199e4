"""Checkpoints: written aside and renamed when complete, verified before use, the oldest removed.

A checkpoint is named tensors (`<name>.safetensors`), a state of plain values (`state.json`), and the files that a
trainer writes itself; nothing is pickled.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.cli import UserError, counted
from utils.files import MANIFEST, file_sha256, parse_json, read_text, write_json, write_manifest, write_safetensors
from utils.outputs import discard_folder, replaced_folder

logger = logging.getLogger(__name__)
Tensors = dict[str, torch.Tensor]


def pack_optimizer(state: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """An optimizer's state_dict as (tensors by name, the rest as JSON can hold it)."""
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for name, value in _flatten(values).items():
            if torch.is_tensor(value):
                tensors[f"{index}.{name}"] = value.detach().cpu()
            else:
                plain[f"{index}.{name}"] = value
    groups = [dict(group) for group in state["param_groups"]]
    for number, group in enumerate(groups):
        for name in [name for name, value in group.items() if torch.is_tensor(value)]:
            tensors[f"group.{number}.{name}"] = group.pop(name).detach().cpu()
    return tensors, {"state": plain, "param_groups": groups}


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """bitsandbytes keeps its quantised tensors in a dict within the state: its keys are joined by a slash."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}/{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def unpack_optimizer(tensors: Tensors, rest: dict[str, Any]) -> dict[str, Any]:
    """The state_dict that `pack_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {}
    groups = [dict(group) for group in rest["param_groups"]]
    for key, value in [*tensors.items(), *rest["state"].items()]:
        if key.startswith("group."):
            _, number, name = key.split(".", 2)
            groups[int(number)][name] = value
        else:
            index, name = key.split(".", 1)
            outer, slash, inner = name.partition("/")
            values = state.setdefault(int(index), {})
            if slash:
                values.setdefault(outer, {})[inner] = value
            else:
                values[outer] = value
    return {"state": dict(sorted(state.items())), "param_groups": groups}  # in order: equal states are equal bytes


def pack_optimizers(optimizers: dict[str, torch.optim.Optimizer]) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Optimizers by name as (files, state) for `save_checkpoint`."""
    packed = {name: pack_optimizer(optimizer.state_dict()) for name, optimizer in optimizers.items()}
    return {name: tensors for name, (tensors, _) in packed.items()}, {name: rest for name, (_, rest) in packed.items()}


def restore_optimizers(
    optimizers: dict[str, torch.optim.Optimizer], files: dict[str, Tensors], state: dict[str, Any]
) -> None:
    """Load what `load_checkpoint` gave into optimizers of the same names; KeyError or ValueError if it does not fit."""
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(unpack_optimizer(files[name], state[name]))


def save_checkpoint(
    folder: Path, write: Callable[[Path], None], files: dict[str, Tensors], state: dict[str, Any]
) -> None:
    """Make a checkpoint of the files that `write` puts into it, of `files` and `state`, and last MANIFEST.json.

    The folder appears in one step, complete.
    """
    try:
        with replaced_folder(folder) as partial:
            write(partial)
            for name, tensors in files.items():
                write_safetensors(partial / f"{name}.safetensors", tensors)
            write_json(partial / "state.json", state)
            write_manifest(partial)
    except (OSError, SafetensorError) as error:  # the latter from diffusers, for a disk that is full
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--output_dir: {folder} can't be written ({reason}); earlier checkpoints are intact; "
            "free some space or give another folder, and run the same command again"
        ) from error


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """(tensors by file, state) of a checkpoint that has been verified."""
    files = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    return files, parse_json(read_text(folder / "state.json"))


def checkpoint_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is what its manifest says."""
    try:
        manifest = parse_json(read_text(folder / MANIFEST))
        for name, entry in manifest.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, its manifest says {entry['bytes']}"
            if file_sha256(path) != entry["sha256"]:
                return f"{name} has changed: its sha256 is not the manifest's"
        return None if "state.json" in manifest else "it holds no state.json"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"MANIFEST.json can't be understood ({error})"


def list_checkpoints(run: Path) -> list[Path]:
    """checkpoint-<step> folders, the newest first."""
    found = [path for path in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def find_checkpoint(run: Path, wanted: str) -> Path | None:
    """The checkpoint to resume from: the one named, or with `latest` the newest that verifies, if there is any.

    Refuses a named one that is missing or damaged, and a run whose checkpoints are all damaged.
    """
    found = list_checkpoints(run)
    if wanted != "latest":
        return find_named(run, wanted, ", ".join(path.name for path in found) or "none")
    for path in found:
        damage = checkpoint_damage(path)
        if damage is None:
            return path
        logger.warning("%s is skipped: %s", path, damage)
    if found:
        raise UserError(
            f"--output_dir {run}: {'all ' if len(found) > 1 else ''}{counted(len(found), 'checkpoint')} "
            f"{'are' if len(found) > 1 else 'is'} damaged; add --overwrite to start again"
        )
    return None


def find_named(run: Path, wanted: str, there: str) -> Path:
    """The checkpoint of this name in the run, or of this path; `there` names those of the run."""
    path = next((path for path in (run / wanted, Path(wanted)) if path.is_dir()), None)
    if path is None:
        raise UserError(
            f"--resume_from_checkpoint {wanted}: no such checkpoint; in {run} there are: {there}; "
            "leave the flag out to resume from the newest, or to start from the beginning"
        )
    if damage := checkpoint_damage(path):
        raise UserError(f"--resume_from_checkpoint {wanted}: damaged ({damage}); in {run} there are: {there}")
    return path


def rotate_checkpoints(run: Path, limit: int | None) -> None:
    """Keep the newest `limit` checkpoints, and the newest one that verifies if it is not among them.

    Only for the process that holds the run. One with files in it that no script wrote is kept under another name.
    """
    found = list_checkpoints(run)
    count = max(1, limit) if limit else len(found)
    kept, others = found[:count], found[count:]
    if others and not any(checkpoint_damage(path) is None for path in kept):
        kept += [path for path in others if checkpoint_damage(path) is None][:1]
    for path in others:
        if path not in kept:
            discard_folder(path)
