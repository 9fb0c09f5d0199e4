"""A generation folder: with which settings, who writes what in it, and what is done.

Several processes may work in one folder and none waits for another: each appends to files of its own, and whoever
finds the set complete merges them.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from utils import runs, webdataset
from utils.cli import UserError, counted
from utils.files import check_writable, lock_folder, replaced_file, write_text
from utils.metrics_log import read_metrics


def enter_folder(
    folder: Path, settings: dict, prompts: list[dict], free: set[str], part: str, block: int
) -> int | None:
    """Make or enter the folder of these settings, and lock one share of it; None where its set is finished.

    One that holds images of other settings is an error with the difference. Tar shards are of `block` images (0:
    there are none).
    """
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        runs.refuse_foreign(folder)
        config = folder / "config.yaml"
        old = runs.read_settings(folder) if config.is_file() else {}
        empty = not (read_parts(folder) or read_parts(folder / "rejected"))
        if empty and runs.training_changes(old, settings, free):
            for other in folder.glob("metadata*.jsonl"):
                os.close(lock_folder(other, folder))  # an error where another process is about to draw
            old = {}
        grown = check_settings(folder, old, settings, prompts, free)
        if grown and block:
            unpack_end(folder, old["num_images"], block)
        if grown or not old:
            write_text(config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        if is_finished(folder, len(prompts), block):
            return None
        return claim_part(folder, part)


def check_settings(folder: Path, old: dict, settings: dict, prompts: list[dict], free: set[str]) -> bool:
    """Whether the set is to be larger than it was begun; an error where its images would be others."""
    number, before = len(prompts), old.get("num_images", len(prompts))
    changes = runs.training_changes(old, settings, {*free, "num_images", "prompts_sha256"})
    if number < before:
        changes.append(f"num_images was {before}, now {number}: a set can't be made smaller")
    elif old and not changes and prompts_digest(prompts[:before]) != old.get("prompts_sha256"):
        more = f", so that shares stay even over {number:,}, or since the prompts have changed"
        changes.append(f"some of its {counted(before, 'image')} would have another prompt{more * (number > before)}")
    if changes:
        raise UserError(
            f"--output_dir {folder} holds images of other settings ({'; '.join(changes)}); "
            "name another folder, or give those settings"
        )
    return number > before


def prompts_digest(prompts: list[dict]) -> str:
    return hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()[:16]


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


def done_indices(folder: Path, shard_size: int, packed_only: bool = False) -> set[int]:
    """The images that have their line and are there as files or in a tar shard (of `shard_size`; 0: none), whole."""
    made = {index_of(name) for name in read_parts(folder)}
    packed = {
        int(path.stem.rpartition("-")[2])
        for path in (folder / "shards").glob("shard-*.tar")
        if webdataset.is_whole(path)
    }
    done = {i for i in made if shard_size and i // shard_size in packed}
    return done if packed_only else done | {i for i in made - done if whole_png(folder / image_name(i))}


def count_missing(folder: Path, count: int, shard_size: int) -> int:
    """How many images are not yet where the finished set has them."""
    return count - len(done_indices(folder, shard_size, packed_only=shard_size > 0))


def tried(folder: Path, precision: str) -> Counter:
    """{index: how many seeds of it have been rejected} in this precision."""
    lines = read_parts(folder / "rejected").items()
    return Counter(index_of(name) for name, line in lines if line["precision"] == precision)


def pack_block(folder: Path, number: int, shard_size: int, count: int) -> None:
    """A whole block of images as one tar shard; their single files are gone after."""
    indices = range(number * shard_size, min(count, (number + 1) * shard_size))
    lines = read_parts(folder)
    samples = [(f"{i:06d}", folder / image_name(i), lines[image_name(i)]) for i in indices]
    webdataset.write_shard(webdataset.shard_path(folder / "shards", number), samples)
    for _, path, _ in samples:
        path.unlink()


def pack_full(folder: Path, mine: list[int], done: set[int], shard_size: int, count: int) -> None:
    """The blocks whose images were all drawn when a process was killed, before it had packed them."""
    for number in sorted({i // shard_size for i in mine} - {i // shard_size for i in mine if i not in done}):
        if not webdataset.is_whole(webdataset.shard_path(folder / "shards", number)):
            pack_block(folder, number, shard_size, count)


def unpack_end(folder: Path, count: int, shard_size: int) -> None:
    """The last tar shard of a set that grows is single files again, where it is not full: more will come into it."""
    shard = webdataset.shard_path(folder / "shards", count // shard_size)
    if count % shard_size and webdataset.is_whole(shard):
        for key, image in webdataset.read_images(shard):
            with replaced_file(folder / image_name(int(key))) as file:
                file.write(image)
        shard.unlink()


def merge_parts(folder: Path) -> list[dict]:
    """All lines in the order of the images in one metadata.jsonl; the parts are gone after."""
    lines = list(read_parts(folder).values())
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
    write_text(folder / "metadata.jsonl", text)
    for part in folder.glob("metadata.*.jsonl"):
        part.unlink()
    return lines


def is_finished(folder: Path, count: int, shard_size: int) -> bool:
    """Whether all images are there, and what describes them."""
    last = folder / ("report.json" if shard_size else "MANIFEST.json")
    try:
        return bool(json.loads(last.read_text("utf-8"))) and not count_missing(folder, count, shard_size)
    except (OSError, ValueError):  # not there, or damaged: what describes the set is made anew
        return False


def forget_finish(folder: Path) -> None:
    for name in ("MANIFEST.json", "report.json"):
        (folder / name).unlink(missing_ok=True)
