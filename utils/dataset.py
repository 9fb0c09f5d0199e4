"""Datasets on disk: the metadata and the records of a prepared one, and the records of a generated set."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import UserError
from utils.files import (
    MANIFEST,
    file_sha256,
    list_files,
    parse_json,
    read_manifest,
    read_text,
    write_json,
    write_lines,
    write_text,
)
from utils.metrics_log import read_metrics

FORMAT = "prepared dataset 1"
SPLITS = ("train", "val", "test")
SIZES = {"n<1K": 1_000, "1K<n<10K": 10_000, "10K<n<100K": 100_000}  # the hub's names, and where each ends
CHANGED = "has changed since it was written: its sha256 is not that of MANIFEST.json"


def split_repeats(spec: str) -> tuple[str, int]:
    """`data/shoes:3` -> ("data/shoes", 3): a folder, and how often an epoch has each of its images."""
    found = re.fullmatch(r"(.+):(\d{1,9})", spec, re.ASCII)
    return (found[1], int(found[2])) if found and not Path(spec).exists() else (spec, 1)


def list_folders(given: str | list[str] | None) -> list[str]:
    """The folders that a setting such as `train_data_dir` names, which is one or several, without their repeats."""
    specs = given if isinstance(given, list) else [given] if given else []
    return [split_repeats(one)[0] for one in specs]


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of a prepared dataset; refuses any other folder."""
    path, make = folder / "metadata.json", "make one with prepare_dataset.py"
    try:
        metadata = parse_json(read_text(path))
    except OSError:
        raise UserError(f"{folder} is not a prepared dataset: metadata.json is missing; {make}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); prepare the dataset again") from None
    needed = {"options", "counts", "duplicates", "fingerprint"}
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or not needed <= metadata.keys():
        raise UserError(f"{path}: expected a prepared dataset (`format: {FORMAT}`); {make}")
    return metadata


def read_split(folder: Path, split: str) -> list[dict[str, Any]]:
    """The records of one split, in the order of its ids: {"id", "path", "text", …attributes}."""
    path = folder / split / "metadata.jsonl"
    try:
        records = [parse_json(line) for line in read_text(path).split("\n") if line]
        return [{**record, "path": folder / split / record["file_name"]} for record in records]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a prepared dataset with a split `{split}`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the dataset again") from None


def verified_sums(folder: Path, *names: str) -> dict[str, str]:
    """{file: sha256} of a dataset's manifest, empty where it has none; refuses a named file that is not as it says."""
    sums = {name: entry["sha256"] for name, entry in read_manifest(folder).items()}
    if not sums and (folder / MANIFEST).exists():
        raise UserError(f"{folder / 'MANIFEST.json'} is damaged; prepare the dataset again")
    for name in names:
        if name in sums and (folder / name).is_file() and file_sha256(folder / name) != sums[name]:
            raise UserError(
                f"{folder / name} {CHANGED}; prepare the dataset again, or remove MANIFEST.json if it is meant"
            )
    return sums


def write_tables(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The tables of one split, whose rows have file_name, text, id and attributes; {file name: sha256}."""
    write_lines(folder / "metadata.jsonl", rows)
    write_text(folder / "ids.txt", "".join(f"{row['id']}\n" for row in rows))
    write_json(folder / "captions.json", {row["id"]: row["text"] for row in rows})
    return {name: file_sha256(folder / name) for name in ("metadata.jsonl", "ids.txt", "captions.json")}


def content_fingerprint(sums: dict[str, str]) -> str:
    """One checksum for the images and captions of all splits, from each file's sha256; reports do not count."""
    lines = [f"{sums[name]} {name}\n" for name in sorted(sums) if name.partition("/")[0] in SPLITS]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify_sums(folder: Path, sums: dict[str, str], fingerprint: str, is_example: Callable[[str], bool]) -> list[str]:
    """What differs from the manifest's {file: sha256}, but for the content of the examples themselves."""
    files = {name for name in list_files(folder) if name != MANIFEST}
    broken = [f"{name}: missing" for name in sorted(sums.keys() - files)]
    broken += [f"{name}: not in the manifest" for name in sorted(files - sums.keys())]
    for name in sorted(sums.keys() & files):
        if not is_example(name) and file_sha256(folder / name) != sums[name]:
            broken.append(f"{name}: the file has changed (its sha256 is not the manifest's)")
    if content_fingerprint(sums) != fingerprint:
        broken.append("metadata.json: its fingerprint does not match the manifest's files")
    return broken


@dataclass(frozen=True)
class SetKind:
    """What a generated set is made of, and under which names."""

    script: str  # that makes it: `generate`
    item: str  # one of it: `image`
    request: str  # what it is made from: `prompt`
    folder: str
    suffix: str
    is_whole: Callable[[Path, dict[str, Any]], bool]  # of an item's file and its record

    @property
    def grows(self) -> set[str]:
        """The settings that are others in a larger set."""
        return {self.count, self.digest}

    @property
    def count(self) -> str:
        return f"num_{self.item}s"

    @property
    def digest(self) -> str:
        return f"{self.request}s_sha256"

    def name(self, index: int) -> str:
        return f"{self.folder}/{index:06d}{self.suffix}"


def index_of(name: str) -> int:
    return int(Path(name).stem.partition("-")[0])


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """{file name: record} of all that any process has written, in the order of the images."""
    found: dict[str, dict[str, Any]] = {}
    for part in sorted(folder.glob("metadata*.jsonl")):
        for one in read_metrics(part):
            name = one.get("file_name", "")
            if not isinstance(name, str):
                raise UserError(f"{part}: `file_name: {name}`: expected a file's name; correct or remove that line")
            found[name] = one
    found.pop("", None)  # lines of another kind
    return dict(sorted(found.items()))


def size_category(total: int) -> str:
    """The hub's name for a dataset of so many examples."""
    return next((name for name, limit in SIZES.items() if total < limit), "n>100K")
