"""The output folder of a benchmark and its benchmark.json, which is complete after every measurement."""

from pathlib import Path
from typing import Any

import yaml

from utils.cli import UserError
from utils.files import lock_folder, note_written, read_object, write_json, write_text
from utils.outputs import claim_folder, foreign_files, remove_stale
from utils.runs import refuse_foreign, training_changes

NAME, KIND = "benchmark.json", "benchmark"
# Folders in it that others write: the trainers, their cache, the drawn images or sounds, a model with random weights.
INNER = ("training", "cache", "images", "class_images", "sounds", "model")
# What may differ between two commands that measure the same: it changes no time, or the time of no step.
FREE = set(
    "output_dir overwrite train_batch_size gradient_accumulation_steps gradient_checkpointing compile max_train_steps "
    "num_train_epochs latent_cache_dir resume_from_checkpoint logging_steps logging_dir report_to push_to_hub "
    "hub_model_id sync_to report_every lang learning_rate lr_scheduler lr_warmup_steps lr_num_cycles lr_power scale_lr "
    "text_encoder_lr seed validation_prompt validation_text early_stopping_patience".split()
)


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with files of others, and unless `overwrite` a damaged benchmark.json."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; give a folder")
    if foreign_files(folder, KIND) not in ([], [NAME]):  # that one, alone, is a copy, or what a copy has left
        refuse_foreign(folder, KIND)
    if not overwrite:
        read_benchmark(folder)


def open_folder(folder: Path, overwrite: bool) -> None:
    """Create or enter the folder, and lock it until this process ends; what check_folder refuses is left as it is."""
    check_folder(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    lock_folder(folder.resolve(), folder)
    remove_stale(folder)
    claim_folder(folder, KIND)
    for name in INNER:
        note_written(folder / name, is_folder=True)


def read_benchmark(folder: Path) -> dict[str, Any]:
    """benchmark.json; empty where there is none."""
    path = folder / NAME
    if not path.exists():
        return {}
    expected = "what benchmark.py wrote; add --overwrite to measure anew, or give another folder"
    found = read_object(path, expected, "--output_dir")
    if missing := {"machine", "settings", "rows"} - found.keys():
        raise UserError(f"--output_dir {path}: has no {min(missing)}; expected {expected}")
    return found


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def write_benchmark(folder: Path, benchmark: dict[str, Any]) -> None:
    write_json(folder / NAME, benchmark)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """How what is measured differs from what the file is about: settings of the training, and the machine."""
    found = training_changes(old["settings"], new["settings"], FREE)
    for name in ("device", "name", "torch"):
        before, now = old["machine"][name], new["machine"][name]
        found += [f"{name} was {before}, now {now}"] if before != now else []
    return found


def continue_or_refuse(folder: Path, new: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The benchmark to go on with: the folder's own, or a new one.

    Of one that is started over, or has another length, what was recommended is kept as `before`.
    """
    try:
        old = read_benchmark(folder)
    except UserError:
        if not overwrite:
            raise
        old = {}
    found = changes(old, new) if old else []
    if found and not overwrite:
        raise UserError(
            f"--output_dir {folder}: holds a benchmark of something else ({'; '.join(found)}); give another folder, or "
            "add --overwrite to measure anew"
        )
    if old and not found:
        new = new | {"before": old.get("recommended") or old.get("before")}
    return new if overwrite or not old else old | {name: new[name] for name in ("command", "commit", "date", "recipe")}
