"""A generation folder: who writes what in it, what is done, and its end as a dataset in the prepared layout.

Several processes may work in one folder and none waits for another: each appends to files of its own, and whoever
finds the set complete merges them.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from utils import data
from utils.cli import UserError
from utils.files import (
    check_writable,
    file_sha256,
    lock_folder,
    replaced_folder,
    write_json,
    write_manifest,
    write_text,
)
from utils.metrics_log import read_metrics
from utils.runs import training_changes

OWN = ("config.yaml", "environment.json")


def open_folder(folder: Path, settings: dict, free: set[str]) -> None:
    """Make or enter the folder of these settings; one that was begun with others is an error with the difference."""
    config = folder / "config.yaml"
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if config.is_file():
            try:
                changes = training_changes(yaml.safe_load(config.read_text(encoding="utf-8")), settings, free)
            except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
                raise UserError(f"{config} is damaged ({' '.join(str(error).split())}); name another folder") from None
            if changes:
                raise UserError(
                    f"--output_dir {folder} holds pictures of other settings ({'; '.join(changes)}); "
                    "name another folder, or give those settings"
                )
            return
        foreign = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
        if foreign:
            raise UserError(
                f"--output_dir {folder}: holds other files ({foreign[0]}) and no config.yaml of a generated set; "
                "name another folder"
            )
        for name in ("images", "rejected"):
            (folder / name).mkdir(exist_ok=True)
        write_text(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in the folder among the processes that ask; they wait for one another. No lock where a drive has none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network drive without locks: what is done under it can bear company
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def part_name(share: int, shares: int) -> str:
    """The file that one share's lines go to; the whole set's where there is but one."""
    return "metadata.jsonl" if shares == 1 else f"metadata.{share}-of-{shares}.jsonl"


def claim_share(folder: Path, share: int, shares: int) -> int:
    """The lock of one share, until this process ends: the same command started twice is an error, not a race."""
    place = folder / f".share-{share}-of-{shares}"
    place.mkdir(exist_ok=True)
    return lock_folder(place, folder)


def read_parts(folder: Path) -> dict[str, dict]:
    """{file name: line} of all that any process has written, in order."""
    lines = [one for part in sorted(folder.glob("metadata*.jsonl")) for one in read_metrics(part)]
    return {one["file_name"]: one for one in sorted(lines, key=lambda one: one["file_name"]) if "file_name" in one}


def whole_png(path: Path) -> bool:
    """Whether a PNG reaches its end: a power cut may leave a name without its data."""
    try:
        with open(path, "rb") as file:
            file.seek(-12, os.SEEK_END)
            return file.read(8)[4:] == b"IEND"
    except OSError:
        return False


def image_name(index: int) -> str:
    return f"images/{index:06d}.png"


def index_of(name: str) -> int:
    return int(Path(name).stem.partition("-")[0])


def done_indices(folder: Path, packed: set[int]) -> set[int]:
    """The pictures that are there, as files or `packed` in tar shards, and have their line."""
    made = {index_of(name) for name in read_parts(folder)}
    return {index for index in made if index in packed or whole_png(folder / image_name(index))}


def tried(folder: Path) -> Counter:
    """{index: how many seeds of it have been rejected}."""
    return Counter(index_of(name) for name in read_parts(folder / "rejected"))


def merge_parts(folder: Path) -> list[dict]:
    """All lines in the order of the pictures in one metadata.jsonl; the parts are gone after."""
    lines = list(read_parts(folder).values())
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
    write_text(folder / "metadata.jsonl", text)
    for part in folder.glob("metadata.*.jsonl"):
        part.unlink()
    return lines


def write_prepared_layout(folder: Path, lines: list[dict], settings: dict, resolution: int, fingerprint: str) -> None:
    """train/ (hard links to the pictures: no space), an empty val/ and test/, metadata.json and MANIFEST.json."""
    records = []
    for line in lines:
        kept = {key: value for key, value in line["attributes"].items() if key not in ("file_name", "text", "id")}
        name = Path(line["file_name"]).stem
        records.append({"file_name": line["file_name"], "text": line["text"], "id": name, **kept, "seed": line["seed"]})
    columns = list(dict.fromkeys(key for one in records for key in one))
    records = [{key: one.get(key) for key in columns} for one in records]  # a table: `datasets` wants all columns
    sums = {}
    for split, members in (("train", records), ("val", []), ("test", [])):
        with replaced_folder(folder / split) as new:
            (new / "images").mkdir()
            for one in members:
                link_or_copy(folder / one["file_name"], new / one["file_name"])
                sums[one["file_name"]] = sums[f"{split}/{one['file_name']}"] = file_sha256(folder / one["file_name"])
            text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in members)
            (new / "metadata.jsonl").write_text(text, encoding="utf-8")
            (new / "ids.txt").write_text("".join(f"{one['id']}\n" for one in members), encoding="utf-8")
            write_json(new / "captions.json", {one["id"]: one["text"] for one in members})
        sums |= {f"{split}/{name}": file_sha256(folder / split / name) for name in data.TABLES}
    counts = {"written": len(records), "train": len(records), "val": 0, "test": 0}
    metadata = {
        "format": data.FORMAT,
        "source": {"generated": settings},
        "options": {"resolution": resolution},
        "source_fingerprint": fingerprint,
        "counts": counts,
        "duplicates": {"bits": 0, "colour": 0.0, "groups": []},
        "excluded": [],
        "fingerprint": data.content_fingerprint(sums),
    }
    write_json(folder / "metadata.json", metadata)
    write_manifest(folder, sums)


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a drive without hard links
        shutil.copyfile(source, target)
