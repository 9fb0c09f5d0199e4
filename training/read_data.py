"""What to train on, and what is held out: records of any layout, images not yet opened."""

import functools
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from utils import dataset
from utils.catalogue import Source, image_source, read_catalogue
from utils.cli import UserError, counted
from utils.dataset import SPLITS
from utils.devices import keyed_generator

logger = logging.getLogger(__name__)


def read_records(
    place: str, flag: str, image_column: str | None, caption_column: str, config: str | None = None
) -> tuple[list[dict], list[dict]]:
    """{"id", "source", "text"} of the training and of the held-out images, from whatever layout is there.

    `flag` is the one that named the place: --dataset_name may be on the hub, any other is a folder.
    """
    root = Path(place)
    if flag != "--dataset_name" and not root.is_dir():
        raise UserError(
            f"{flag} {place}: no such folder; make it with prepare_dataset.py, give a folder of images, or name a "
            "hub dataset with --dataset_name"
        )
    if (root / "metadata.json").is_file():
        return _read_prepared(root, flag, image_column, caption_column)
    parts = [root]
    if (root / "train").is_dir():  # an imagefolder with splits: its test images must not be trained on
        parts = [root / "train"] + [root / name for name in ("val", "validation") if (root / name).is_dir()][:1]
    found = [_read_products(str(part), flag, image_column, caption_column, config) for part in parts]
    return found[0], found[1] if len(found) > 1 else []


def _read_prepared(root: Path, flag: str, image_column: str | None, caption_column: str) -> tuple[list, list]:
    counts = dataset.read_metadata(root)["counts"]  # a generated set has no val split
    if image_column:
        raise UserError(f"--image_column {image_column}: {flag} {root} is a prepared dataset, whose images are known")
    splits = []
    for split in ("train", "val"):
        records = dataset.read_split(root, split) if split in counts else []
        lacking = next((sorted(one) for one in records if caption_column not in one), None)
        if lacking:
            raise UserError(f"--caption_column {caption_column}: {flag} {root} has the columns {', '.join(lacking)}")
        splits.append([{"id": one["id"], "source": one["path"], "text": one[caption_column]} for one in records])
    return tuple(splits)


def _read_products(name: str, flag: str, image_column, caption_column: str, config: str | None) -> list[dict]:
    found = read_catalogue(Source(name, flag, image_column, caption_column, config))
    reasons = Counter(one.reason for one in found.rejected)
    example = {one.reason: f"as {one.id}, {one.detail}" for one in reversed(found.rejected)}
    left_out = "; ".join(f"{reason}: {count}, {example[reason]}" for reason, count in reasons.most_common())
    if not found.products:
        raise UserError(f"{flag} {name}: none of its {found.rows} rows can be used ({left_out})")
    if found.rejected:
        logger.warning("%s: %d of %d rows are left out (%s)", name, len(found.rejected), found.rows, left_out)
    for note in found.notes:
        logger.warning("%s: %s", name, note)

    def source(image: Path | int) -> Path | Callable:
        return functools.partial(image_source, found.dataset, image) if isinstance(image, int) else image

    return [{"id": one.id, "text": one.text, "source": source(one.image)} for one in found.products]


def hold_out(records: list[dict], fraction: float) -> tuple[list[dict], list[dict]]:
    """Training and held-out records; a hash of the id decides, so that growth moves nothing."""
    limit = fraction * 2**32
    held = [int.from_bytes(hashlib.sha256(str(one["id"]).encode()).digest()[:4], "big") < limit for one in records]
    return [one for one, out in zip(records, held) if not out], [one for one, out in zip(records, held) if out]


def read_training_records(
    place: str,
    flag: str,
    image_column: str | None,
    caption_column: str,
    config: str | None = None,
    share_held_out: float = 0.0,
    max_samples: int | None = None,
    seed: int = 0,
) -> tuple[list[dict], list[dict]]:
    """What to train on and what is held out, of any layout."""
    train, held_out = read_records(place, flag, image_column, caption_column, config)
    if share_held_out and not held_out:
        count = len(train)
        train, held_out = hold_out(train, share_held_out)
        if not (train and held_out):
            advice = f"give a {'smaller' if held_out else 'larger'} share, or leave it out"
            raise UserError(
                f"--held_out {share_held_out:g}: holds out {'all' if held_out else 'none'} of "
                f"{counted(count, 'image')}, by a hash of each one's id; {advice if count > 1 else 'leave it out'}"
            )
    if max_samples and max_samples < len(train):
        chosen = torch.randperm(len(train), generator=keyed_generator("samples", seed))[:max_samples]
        train = [train[i] for i in sorted(chosen.tolist())]
    if not train:
        raise UserError(f"{flag} {place}: there is no image to train on")
    return train, held_out


def prepared_with(folder: str, option: str):
    """The value of an option of prepare_dataset.py; None where the folder is not its, or the option had no say."""
    root = Path(folder)
    root = root.parent if root.name in SPLITS else root
    return dataset.read_metadata(root)["options"].get(option) if (root / "metadata.json").is_file() else None


def choose_buckets(asked: bool | None, folder: str) -> bool:
    """--aspect_ratio_buckets; by itself as the dataset was prepared, since a square of its crops may lack the face."""
    return bool(prepared_with(folder, "aspect_ratio_buckets")) if asked is None else asked


def tell_captions(texts: list[str], prompt: str | None) -> None:
    """How many photos train with a caption of their own, and which words of the instance prompt none of these holds."""
    own = [text for text in texts if text != prompt]
    if not (prompt and own):
        return
    held = {word for text in own for word in _words(text)}
    lacking = ", ".join(word for word in dict.fromkeys(_words(prompt)) if word not in held)
    logger.warning(
        "--instance_prompt %r: %s with it, %d with captions of their own%s", prompt,
        f"{counted(len(texts) - len(own), 'photo')} train{'s' * (len(texts) - len(own) == 1)}", len(own),
        f"; none of these holds: {lacking}. Write into them what names the subject, or remove them" if lacking else ""
    )  # fmt: skip


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
