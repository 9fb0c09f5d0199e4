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

from utils import data, webdataset
from utils.cli import UserError
from utils.contact_sheets import write_sheets
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


def claim_part(folder: Path, part: str) -> int:
    """The lock of one share, until this process ends: the same command started twice is an error, not a race."""
    for name in ("images", "rejected"):
        (folder / name).mkdir(exist_ok=True)
    (folder / part).touch()
    return lock_folder(folder / part, folder)


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


def done_indices(folder: Path, shard_size: int) -> set[int]:
    """The pictures that have their line and are there as files or in a tar shard (of `shard_size`; 0: none), whole."""
    made = {index_of(name) for name in read_parts(folder)}
    packed = {
        int(path.stem.rpartition("-")[2])
        for path in (folder / "shards").glob("shard-*.tar")
        if webdataset.is_whole(path)
    }
    return {i for i in made if (shard_size and i // shard_size in packed) or whole_png(folder / image_name(i))}


def tried(folder: Path, precision: str) -> Counter:
    """{index: how many seeds of it have been rejected} in this precision."""
    lines = read_parts(folder / "rejected").items()
    return Counter(index_of(name) for name, line in lines if line["precision"] == precision)


def pack_block(folder: Path, number: int, shard_size: int, count: int) -> None:
    """A whole block of pictures as one tar shard; their single files are gone after."""
    indices = range(number * shard_size, min(count, (number + 1) * shard_size))
    lines = read_parts(folder)
    samples = [(f"{i:06d}", folder / image_name(i), lines[image_name(i)]) for i in indices]
    webdataset.write_shard(webdataset.shard_path(folder / "shards", number), samples)
    for _, path, _ in samples:
        path.unlink()


def merge_parts(folder: Path) -> list[dict]:
    """All lines in the order of the pictures in one metadata.jsonl; the parts are gone after."""
    lines = list(read_parts(folder).values())
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
    write_text(folder / "metadata.jsonl", text)
    for part in folder.glob("metadata.*.jsonl"):
        part.unlink()
    return lines


def write_prepared_layout(folder: Path, lines: list[dict], settings: dict, report: dict) -> None:
    """train/ (hard links to the pictures: no space), metadata.json and MANIFEST.json."""
    records, sums = [], {}
    for line in lines:
        kept = {key: value for key, value in line["attributes"].items() if key not in ("file_name", "text", "id")}
        name = Path(line["file_name"]).stem
        records.append({"file_name": line["file_name"], "text": line["text"], "id": name, "seed": line["seed"], **kept})
    columns = list(dict.fromkeys(key for one in records for key in one))  # a table: `datasets` wants them in each line
    with replaced_folder(folder / "train") as new:
        (new / "images").mkdir()
        for one in records:
            link_or_copy(folder / one["file_name"], new / one["file_name"])
            sums[one["file_name"]] = sums[f"train/{one['file_name']}"] = file_sha256(folder / one["file_name"])
        text = [json.dumps({key: one.get(key) for key in columns}, ensure_ascii=False) + "\n" for one in records]
        (new / "metadata.jsonl").write_text("".join(text), encoding="utf-8")
        (new / "ids.txt").write_text("".join(f"{one['id']}\n" for one in records), encoding="utf-8")
        write_json(new / "captions.json", {one["id"]: one["text"] for one in records})
    sums |= {f"train/{name}": file_sha256(folder / "train" / name) for name in data.TABLES}
    metadata = {
        "format": data.FORMAT,
        "source": {"generated": settings},
        "options": {"resolution": settings["resolution"]},
        "source_fingerprint": settings["prompts_sha256"],
        "counts": {"written": len(records), "train": len(records)},
        "duplicates": {"bits": 0, "colour": 0.0, "groups": []},  # looked for between splits, and there is only one
        "excluded": [],
        "fingerprint": data.content_fingerprint(sums),
    }
    write_json(folder / "metadata.json", metadata)
    write_json(folder / "report.json", report)
    write_manifest(folder, sums)  # last of all: with it the set is finished


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a drive without hard links
        shutil.copyfile(source, target)


def is_finished(folder: Path, webdataset: bool) -> bool:
    try:
        return bool(json.loads((folder / ("report.json" if webdataset else "MANIFEST.json")).read_text("utf-8")))
    except (OSError, ValueError):  # not there, or damaged: what describes the set is made anew
        return False


def forget_finish(folder: Path) -> None:
    for name in ("MANIFEST.json", "report.json"):
        (folder / name).unlink(missing_ok=True)


def finish_set(folder: Path, prompts: list[dict], settings: dict, facts: dict) -> dict:
    """Everything that describes the whole set; what is returned is its report."""
    lines = merge_parts(folder)
    rejected = Counter(one["reason"] for one in merge_parts(folder / "rejected"))
    write_text(folder / "prompts.txt", "".join(f"{' '.join(one['text'].split())}\n" for one in prompts))
    sessions = read_metrics(folder / "sessions.jsonl")
    seconds = sum(one["seconds"] for one in sessions)
    report = {
        "made": len(lines),
        "rejected": dict(rejected.most_common()),
        "seconds": round(seconds, 2),  # of all processes together
        "images_per_second": round(sum(one["made"] for one in sessions) / seconds, 4) if seconds else None,
        "sessions": len(sessions),
        **facts,
    }
    if not settings["webdataset"]:
        step = max(1, len(lines) / 192)  # four sheets, from the whole length of a large set
        shown = [lines[int(i * step)] for i in range(min(len(lines), 192))]
        captions = [(folder / one["file_name"], f"{index_of(one['file_name'])}: {one['text']}") for one in shown]
        list(write_sheets(folder / "sheets", captions))
        write_prepared_layout(folder, lines, settings, report)
    else:
        write_json(folder / "report.json", report)
    return report
