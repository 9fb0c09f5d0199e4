"""What the output folder already holds: who wrote it, whether it is what is requested, and which splits it has."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import UserError
from utils.dataset import SPLITS
from utils.files import list_files, parse_json, read_text
from utils.outputs import check_apart, check_movable, check_writable, foreign_files, recover_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is requested, as metadata.json and analysis.json keep it."""

    options: dict[str, Any]
    source_fingerprint: str
    kept_splits: str | None


def make_request(options: dict[str, Any], source_fingerprint: str, kept: dict[str, str] | None) -> Request:
    """`kept`: the splits of --keep_splits, of which a checksum is kept; None without the flag."""
    digest = None if kept is None else hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    return Request(options, source_fingerprint, digest)


def check_output(
    folder: Path,
    source: tuple[str, str],
    overwrite: bool,
    analyse_only: bool = False,
    models: dict[str, str | None] | None = None,
) -> None:
    """Refuse a folder that can't be written, or whose content this script did not write.

    `source`: the flag of what is read, and its value. `models`: see check_apart.
    """
    check_apart(folder, {source[0].removeprefix("--"): source[1]}, models)
    recover_folder(folder)
    if overwrite or not folder.exists():  # a dataset on a read-only disk may still be up to date
        check_writable(folder)
    if analyse_only and (folder / "metadata.json").exists():
        raise UserError(f"--output_dir {folder}: holds a dataset; give another folder for the analysis")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; give a new folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if overwrite:
        check_movable(folder)
    elif not any((folder / name).is_file() for name in ("metadata.json", "analysis.json")):
        aside = f"{folder.resolve().name}.replaced-<date>"
        raise UserError(
            f"--output_dir {folder}: holds files that this script did not write ({foreign_files(folder)[0]}); give "
            f"another folder, or add --overwrite, which moves them to {aside}"
        )


def is_up_to_date(folder: Path, request: Request, new_splits: bool, overwrite: bool, what: str = "images") -> bool:
    """Whether the folder holds what is requested; refuses to replace anything else without --overwrite."""
    if not (folder.exists() and any(folder.iterdir())):
        return False
    changes = changes_since(folder, request) + (["--new_splits"] if new_splits else [])
    if not changes:
        print(f"{folder} is up to date: same {what}, same options. Nothing to do. (--verify checks every file)")
        return True
    if not overwrite:
        why = f"--output_dir {folder} exists, and {'; '.join(changes)}"
        raise UserError(f"{why}. Add --overwrite to replace it; splits are kept")
    kept = f"; as it holds other files, it is kept as {folder.resolve().name}.replaced-<date>"
    print(f"{folder} will be replaced: {'; '.join(changes)}{kept if foreign_files(folder) else ''}")
    return False


def changes_since(folder: Path, request: Request) -> list[str]:
    """How the request differs from the one that the folder was written for, and what has changed in the folder."""
    path = folder / "metadata.json" if (folder / "metadata.json").exists() else folder / "analysis.json"
    try:
        was = parse_json(read_text(path))
        manifest = parse_json(read_text(folder / "MANIFEST.json"))
        sizes = {name: entry["bytes"] for name, entry in manifest.items()}
        there = {name: stat.st_size for name, stat in list_files(folder).items()}
        old, new = was["options"], request.options
        known = [key for key in new if key in old or new[key]]  # a flag that is newer than the dataset, and is off
        changes = [
            f"{key} was {old.get(key)}, now {new[key]}"
            for key in known
            if comparable(key, old.get(key)) != comparable(key, new[key])
        ]
        if extra := sorted(there.keys() - sizes.keys() - {"MANIFEST.json"}):
            changes.append(f"there are other files in it ({extra[0]})")
        if any(there.get(name) != size for name, size in sizes.items()):
            changes.append("files in it are missing or changed")
        if was["source_fingerprint"] != request.source_fingerprint:
            changes.append("what is read has changed")
        if was["kept_splits"] != request.kept_splits:
            changes.append("the splits to keep have changed")
        return changes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["it is damaged"]


def comparable(key: str, value: Any) -> Any:
    """An option's value as it is compared: categories are found whatever their case."""
    return [name.lower() for name in value] if key == "category" and value else value


def read_kept_splits(folder: Path, keep_splits: Path | None, new_splits: bool) -> dict[str, str]:
    """{id: split} of the products that have a place already: in --keep_splits, else in the folder itself."""
    own = any((folder / name).exists() for name in ("splits.json", "metadata.json"))
    keep_from = keep_splits or (folder if own and not new_splits else None)
    return read_saved_splits(keep_from) if keep_from else {}


def read_saved_splits(path: Path) -> dict[str, str]:
    """{id: split} of every product that ever had a place, from a dataset's folder or its splits.json.

    If that file is damaged or missing, the ids.txt beside it give the products that are in the dataset.
    """
    path = path / "splits.json" if path.is_dir() else path
    try:
        splits = parse_json(read_text(path))
        if not isinstance(splits, dict) or not all(split in SPLITS for split in splits.values()):
            raise ValueError("expected {id: train, val or test}")
        return splits
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or error
    try:
        lists = {split: read_text(path.parent / split / "ids.txt").split() for split in SPLITS}
    except (OSError, ValueError):
        raise UserError(
            f"{path}: {wrong}; expected the splits.json of a prepared dataset; give another, or add --new_splits"
        ) from None
    logger.warning("%s: %s; the splits are taken from the three ids.txt beside it instead", path, wrong)
    return {one: split for split, ids in lists.items() for one in ids}
