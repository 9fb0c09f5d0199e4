"""What to train on, and what is held out: records of any layout, images not yet opened."""

import functools
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from training.examples import Example, Record, list_texts
from utils import dataset
from utils.catalogue import Source, file_or_bytes, is_texts, read_catalogue
from utils.cli import UserError, counted
from utils.dataset import SPLITS
from utils.devices import keyed_generator
from utils.images import ImageSource

logger = logging.getLogger(__name__)


class Identified(Protocol):
    """What has an id."""

    @property
    def id(self) -> Any: ...


Named = TypeVar("Named", bound=Identified)


class DataSet(NamedTuple):
    """Data of which an epoch has each image `repeats` times; its captions begin with the prefix."""

    source: Source
    repeats: int = 1
    prefix: str = ""


def read_records(source: Source) -> tuple[list[Record], list[Record]]:
    """The training and the held-out records, from whatever layout is there.

    --dataset_name may be on the hub, any other flag names a folder.
    """
    root = Path(source.name)
    if source.flag != "--dataset_name" and not root.is_dir():
        raise UserError(
            f"{source.flag} {source.name}: no such folder; make it with prepare_dataset.py, give a folder of images, "
            "or name a hub dataset with --dataset_name"
        )
    if (root / "metadata.json").is_file():
        return _read_prepared(root, source, "train"), _read_prepared(root, source, "val")
    if root.name in SPLITS and (root.parent / "metadata.json").is_file():
        return _read_prepared(root.parent, source, root.name), []
    _warn_of_repeats(root, source.flag)
    parts = [root]
    if (root / "train").is_dir():  # an imagefolder with splits: its test images must not be trained on
        parts = [root / "train"] + [root / name for name in ("val", "validation") if (root / name).is_dir()][:1]
    records = [_read_catalogue(str(part), source) for part in parts]
    return records[0], records[1] if len(records) > 1 else []


def _warn_of_repeats(root: Path, flag: str) -> None:
    """Of folders as kohya's scripts read them, which repeat images by a folder's name, as 10_shoes."""
    named = sorted(one for one in root.glob("*_*") if re.match(r"[1-9]\d{0,2}_", one.name) and one.is_dir())
    if named:
        repeats = " ".join(f"{one}:{one.name.partition('_')[0]}" for one in named)
        message = "%s %s: an epoch has each image once; if names of folders are kohya's repeats, give %s %s"
        logger.warning(message, flag, root, flag, repeats)


def _read_prepared(root: Path, source: Source, split: str) -> list[Record]:
    if source.image_column:
        raise UserError(
            f"--image_column {source.image_column}: {source.flag} {root} is a prepared dataset, whose images are "
            "known; leave it out"
        )
    if split not in dataset.read_metadata(root)["counts"]:  # a generated set has no val split
        return []
    sums = dataset.verified_sums(root, "metadata.json", f"{split}/metadata.jsonl")
    rows, column = dataset.read_split(root, split), source.caption_column
    other = next((sorted(row) for row in rows if column not in row), None)
    if other:
        raise UserError(f"--caption_column {column}: {source.flag} {root} has the columns {', '.join(other)}")
    records = []
    for row in rows:
        text = row[column]
        if isinstance(text, list) and not (source.several_captions and is_texts(text) and text):
            name = root / split / row["file_name"]
            raise UserError(f"{name}: its `{column}` is a list; --multiple_captions reads one of texts")
        record = Record(row["id"], row["path"], text, sums.get(f"{split}/{row['file_name']}"))
        records.append(_with_captions(record, text) if isinstance(text, list) else record)
    return records


def _with_captions(record: Record, captions: Sequence[str]) -> Record:
    """The record with several captions; the first one is its text."""
    return record._replace(text=captions[0], captions=tuple(captions) if len(captions) > 1 else ())


def _read_catalogue(name: str, source: Source) -> list[Record]:
    catalogue = read_catalogue(replace(source, name=name))
    reasons = Counter(one.reason for one in catalogue.rejected)
    example = {one.reason: f"as {one.id or f'row {one.row}'}, {one.detail}" for one in reversed(catalogue.rejected)}
    left_out = "; ".join(f"{reason}: {count}, {example[reason]}" for reason, count in reasons.most_common())
    if not source.several_captions and any("` is [" in one.detail for one in catalogue.rejected):
        left_out += "; --multiple_captions reads lists of texts"
    if not catalogue.products:
        raise UserError(f"{source.flag} {name}: none of its {catalogue.rows} rows can be used ({left_out})")
    if catalogue.rejected:
        logger.warning("%s: %d of %d rows are left out (%s)", name, len(catalogue.rejected), catalogue.rows, left_out)
    for note in catalogue.notes:
        logger.warning("%s: %s", name, note)

    def place(image: Path | int) -> ImageSource:
        return functools.partial(file_or_bytes, catalogue.dataset, image) if isinstance(image, int) else image

    records = [Record(one.id, place(one.image), one.text) for one in catalogue.products]
    if source.several_captions:
        records = [_with_captions(one, one.text.split("\n")) if one.text else one for one in records]
    return records


def hash_id(record: Identified) -> int:
    """A number below 2**32."""
    return int.from_bytes(hashlib.sha256(str(record.id).encode()).digest()[:4], "big")


def hold_out(records: list[Named], fraction: float) -> tuple[list[Named], list[Named]]:
    """What to train on, and what is held out; a hash of the id decides, so that growth moves nothing."""
    held = [hash_id(one) < fraction * 2**32 for one in records]
    return [one for one, out in zip(records, held) if not out], [one for one, out in zip(records, held) if out]


def read_training_records(
    sets: Sequence[DataSet], held_out_share: float = 0.0, max_samples: int | None = None, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """What to train on, `max_samples` of it chosen by the seed, and what is held out.

    Of a set without a val split, `held_out_share` is held out. Of several sets, ids begin with the set's number.
    """
    parts = [_read_set(one.source, number) for number, one in enumerate(sets)]
    train, held_out = choose_records(parts, held_out_share, max_samples, seed, "image")
    if not train:
        raise UserError(f"{sets[0].source.flag} {sets[0].source.name}: there is no image to train on")
    repeated = [_settle(one, sets)._replace(repeats=sets[one.set].repeats) for one in train]
    return repeated, [_settle(one, sets) for one in held_out]


def _read_set(source: Source, number: int) -> tuple[list[Record], list[Record]]:
    """Those of one data set, with its number."""
    train, held_out = read_records(source)
    return [one._replace(set=number) for one in train], [one._replace(set=number) for one in held_out]


def _settle(one: Record, sets: Sequence[DataSet]) -> Record:
    """The record with its set's prefix and, only now, its number: hold_out treats an image in two sets as one."""
    if len(sets) > 1:
        one = one._replace(id=f"{one.set + 1}/{one.id}")
    prefix = sets[one.set].prefix
    if not (prefix and one.text):
        return one
    return one._replace(text=f"{prefix} {one.text}", captions=tuple(f"{prefix} {text}" for text in one.captions))


def choose_records(
    parts: Sequence[tuple[list[Named], list[Named]]], share: float, max_samples: int | None, seed: int, noun: str
) -> tuple[list[Named], list[Named]]:
    """The records of --held_out and --max_train_samples, of the training and held-out ones of each data set.

    Of so few that the share is none, the id of the smallest hash is held out. `noun` is what an error calls one.
    """
    undivided = [train for train, held_out in parts if not held_out]
    if share:
        parts = [(train, held_out) if held_out else hold_out(train, share) for train, held_out in parts]
    train, held_out = ([one for part in parts for one in part[i]] for i in range(2))
    if share and train and not held_out:
        lowest = min(map(hash_id, train))
        held_out = [one for one in train if hash_id(one) == lowest]
        train = [one for one in train if hash_id(one) != lowest]
    if share and undivided and not train:
        count = sum(map(len, undivided))
        advice = "give a smaller share, or leave it out" if count > 1 else "leave it out"
        raise UserError(
            f"--held_out {share:g}: holds out all of {counted(count, noun)}, by a hash of each one's id; {advice}"
        )
    if max_samples and max_samples < len(train):
        chosen = torch.randperm(len(train), generator=keyed_generator("samples", seed))[:max_samples]
        train = [train[i] for i in sorted(chosen.tolist())]
    return train, held_out


def read_preparation_option(folder: str, *options: str) -> Any:
    """The value of the first of these options that prepare_dataset.py has noted; None where it made no such folder."""
    root = Path(folder)
    root = root.parent if root.name in SPLITS else root
    if not (root / "metadata.json").is_file():
        return None
    noted = dataset.read_metadata(root)["options"]
    return next((noted[option] for option in options if option in noted), None)


def read_trigger(folders: Sequence[str]) -> str | None:
    """The trigger words that prepare_dataset.py has noted in these folders."""
    words = [read_preparation_option(folder, "trigger_word") for folder in folders]
    return ", ".join(dict.fromkeys(filter(None, words))) or None


def choose_buckets(asked: bool | None, listed: str | None, folders: Sequence[str]) -> bool:
    """Whether images keep their proportions: as asked, or else if any of the datasets was prepared so.

    A square of a prepared dataset's crops may lack the face.
    """
    if asked is not None or listed:
        return bool(asked or listed)
    options = "use_aspect_ratio_buckets", "aspect_ratio_buckets"
    return any(read_preparation_option(folder, *options) for folder in folders)


def report_captions(images: Sequence[Record | Example], prompt: str | None) -> None:
    """Warn where photos train with captions of their own, and name the words of the instance prompt they all lack."""
    own = [one for one in images if one.text != prompt]
    if not (prompt and own):
        return
    used = {word for text in list_texts(own) for word in _words(text)}
    missing = ", ".join(word for word in dict.fromkeys(_words(prompt)) if word not in used)
    with_prompt = counted(len(images) - len(own), "photo")
    advice = f"; none of these holds: {missing}. Write into them what names the subject, or remove them"
    logger.warning(
        "--instance_prompt %r: %s with it, %d with captions of their own%s",
        prompt,
        f"{with_prompt} train{'s' * (len(images) - len(own) == 1)}",
        len(own),
        advice if missing else "",
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
