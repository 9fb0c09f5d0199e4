"""A prepared dataset on disk: its format, its description and the records of its splits."""

import hashlib
import json
from pathlib import Path
from typing import Any

from utils.cli import UserError

FORMAT = "prepared dataset 1"
SPLITS = ("train", "val", "test")
TABLES = ("metadata.jsonl", "ids.txt", "captions.json")


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of a prepared dataset; refuses any other folder."""
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"{folder} is no prepared dataset: there is no metadata.json; make one with prepare_dataset.py"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); prepare the dataset again") from None
    needed = {"options", "counts", "duplicates", "fingerprint"}
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or not needed <= metadata.keys():
        raise UserError(f"{path}: expected a prepared dataset (`format: {FORMAT}`); make one with prepare_dataset.py")
    return metadata


def read_split(folder: Path, split: str) -> list[dict[str, Any]]:
    """The records of one split, in the order of its ids: {"id", "path", "text", …attributes}."""
    path = folder / split / "metadata.jsonl"
    try:
        with open(path, encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        return [{**record, "path": folder / split / record["file_name"]} for record in records]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a prepared dataset with a split `{split}`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the dataset again") from None


def content_fingerprint(sums: dict[str, str]) -> str:
    """One checksum for the images and captions of all splits, from each file's sha256; reports do not count."""
    lines = [f"{sums[name]} {name}\n" for name in sorted(sums) if name.partition("/")[0] in SPLITS]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
