"""A set of pictures to judge: a prepared split, what generate.py made, or any folder of pictures."""

import logging
from collections import Counter
from pathlib import Path

from utils import data, generation_folder, sources
from utils.cli import UserError, counted
from utils.splits import SPLITS
from utils.tables import canonical

OWN = ("file_name", "text", "id", "path", "seed")  # what a record has besides attributes

logger = logging.getLogger(__name__)


def read_pictures(folder: Path, flag: str) -> list[dict]:
    """{"path", "text" (None where nothing is said), "id", …attributes} of every picture; none is opened.

    Attributes are text under the short names of prepared sets: a template's `articleType` is `article`.
    """
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder; give a split such as data/x/test, or a folder of pictures")
    if (folder / "environment.json").is_file() and (folder / "config.yaml").is_file():  # only generate.py writes these
        records = _read_generated(folder, flag)
    elif (folder.parent / "metadata.json").is_file() and folder.name in SPLITS:
        records = [{"text": None, **one} for one in data.read_split(folder.parent, folder.name)]
    elif (folder / "metadata.json").is_file():
        there = [split for split in SPLITS if (folder / split).is_dir()]
        raise UserError(
            f"{flag} {folder}: is a whole dataset; give one of its splits ({', '.join(str(folder / s) for s in there)})"
        )
    else:
        records = _read_folder(folder, flag)
    if not records:
        raise UserError(f"{flag} {folder}: holds no pictures")
    return [_plain(one) for one in records]


def _plain(record: dict) -> dict:
    own = {key: value for key, value in record.items() if key in OWN or value is None}
    return own | {canonical(key): str(value) for key, value in record.items() if key not in own}


def _read_generated(folder: Path, flag: str) -> list[dict]:
    lines = generation_folder.read_parts(folder)
    kept = {name: one for name, one in lines.items() if (folder / name).is_file()}
    if lines and not kept:
        raise UserError(
            f"{flag} {folder}: its pictures are in tar shards; unpack them, or generate without --webdataset"
        )
    if len(kept) < len(lines):
        logger.warning("%s %s: %d pictures are not there", flag, folder, len(lines) - len(kept))
    if not (folder / "MANIFEST.json").is_file():
        logger.warning("%s %s: not finished; what is there is taken", flag, folder)
    return [
        {key: value for key, value in one["attributes"].items() if key not in OWN}
        | {"path": folder / name, "text": one["text"], "id": Path(name).stem, "seed": one.get("seed")}
        for name, one in kept.items()
    ]


def _read_folder(folder: Path, flag: str) -> list[dict]:
    try:
        found = sources.read_catalogue(str(folder), None, "text", None, "train")
    except UserError as error:
        raise UserError(str(error).replace("--catalogue", flag)) from None
    if found.dataset is not None:
        raise UserError(f"{flag} {folder}: is a saved dataset; give a folder of pictures")
    if found.rejected:
        reasons = Counter(one["reason"] for one in found.rejected)
        left_out = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        logger.warning("%s %s: %s left out (%s)", flag, folder, counted(len(found.rejected), "row"), left_out)
    return [{**one["attributes"], "path": one["image"], "text": one["text"], "id": one["id"]} for one in found.products]
