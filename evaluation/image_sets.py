"""A set of images to judge: a prepared split, what generate.py made, or any folder; its measures and features."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from evaluation.feature_cache import content_keys
from evaluation.features import Encoder, image_features
from evaluation.image_measures import is_readable, measure_images
from utils import dataset
from utils.catalogue import Source, canonical, clean_cell, read_catalogue
from utils.cli import UserError, counted
from utils.dataset import SPLITS
from utils.files import file_sha256

OWN = ("file_name", "text", "id", "path", "seed")  # what a record has besides attributes
Record = dict[str, Any]  # path, text (None where there is none), id, and attributes, which are text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """The images of one folder, and what was measured of them: row i belongs to record i."""

    records: list[Record]
    keys: list[str]  # sha256 of each file
    measures: np.ndarray  # see image_measures.py
    features: dict[str, np.ndarray]  # of each encoder; rows of the readable images only

    @property
    def paths(self) -> list[Path]:
        return [one["path"] for one in self.records]

    def readable(self, flag: str) -> "ImageSet":
        """Without the images that can't be read, to which row i of the features belongs; refuses a set without any."""
        good = is_readable(self.measures)
        if not good.all():
            bad = self.paths[int(np.argmin(good))]
            logger.warning("%s: %s cannot be read (%s …)", flag, counted(int((~good).sum()), "image"), bad)
        if not good.any():
            raise UserError(f"{flag}: none of its {len(good)} images can be read")
        kept = np.flatnonzero(good)
        records, keys = [self.records[i] for i in kept], [self.keys[i] for i in kept]
        return replace(self, records=records, keys=keys, measures=self.measures[kept])


def describe_set(folder: Path | str, keys: list[str]) -> dict[str, Any]:
    """What metrics.json has of a set; its checksum shows another run whether the images are the same."""
    digest = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()
    return {"path": str(folder), "n": len(keys), "sha256": digest[:16]}


def count_texts(records: list[Record]) -> str:
    texts = sum(bool(one["text"]) for one in records)
    return f"{counted(len(records), 'image')}, {texts:,} with a text"


def read_images(folder: Path, flag: str) -> list[Record]:
    """The records of every image of a folder; no image is opened.

    Attributes are text under the short names of prepared sets: a template's `articleType` is `article`.
    """
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder; give a split such as data/x/test, or a folder of images")
    if _is_generated(folder):
        records = _read_generated(folder, flag)
    elif (folder.parent / "metadata.json").is_file() and folder.name in SPLITS:
        dataset.verified_sums(folder.parent, f"{folder.name}/metadata.jsonl")
        records = [{"text": None, **one} for one in dataset.read_split(folder.parent, folder.name)]
    elif (folder / "metadata.json").is_file():
        there = [split for split in SPLITS if (folder / split).is_dir()]
        raise UserError(
            f"{flag} {folder}: is a dataset; give one of its splits ({', '.join(str(folder / s) for s in there)})"
        )
    else:
        records = _read_folder(folder, flag)
    if not records:
        raise UserError(f"{flag} {folder}: contains no images")
    return [_plain(one) for one in records]


def check_new(generated: list[Record], others: Mapping[str, list[Record]]) -> None:
    """Refuse a generated image that is, byte by byte, among those it is compared with: it would score perfectly."""
    for name, records in others.items():
        if shared := find_shared(*([one["path"] for one in part] for part in (generated, records))):
            raise UserError(
                f"--{name} and --generated share {counted(len(shared), 'image')} ({shared[0]}): an image "
                "compared with itself scores perfectly; give folders without common images"
            )


def find_shared(files: Sequence[Path], others: Sequence[Path]) -> list[str]:
    """The names of those of `others` that are, byte by byte, among the files."""
    sizes = set.intersection(*({path.stat().st_size for path in some} for some in (files, others)))  # to read few
    own, given = ({file_sha256(one): one for one in some if one.stat().st_size in sizes} for some in (files, others))
    return sorted(given[key].name for key in own.keys() & given.keys())


def spell_alike(sets: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """The sets, with one spelling for each value of an attribute: a prompt's `red` becomes the real set's `Red`."""
    spelling: dict[tuple[str, str], str] = {}

    def spell(key: str, value: Any) -> Any:
        return value if key in OWN or value is None else spelling.setdefault((key, value.casefold()), value)

    return {
        name: [{key: spell(key, value) for key, value in one.items()} for one in records]
        for name, records in sets.items()
    }


def _plain(record: Record) -> Record:
    """Attributes under their short names; of two columns that are one (articleType, article) the first value counts."""
    plain = {key: value for key, value in record.items() if key in OWN}
    for key, value in record.items():
        if plain.get(canonical(key)) is None and key not in OWN:
            plain[canonical(key)] = clean_cell(value)
    return plain


def _is_generated(folder: Path) -> bool:
    """Whether generate.py wrote it, or its lines were copied from there: their attributes are nested."""
    if (folder / "environment.json").is_file() and (folder / "config.yaml").is_file():  # only generate.py writes these
        return True
    return any(isinstance(one.get("attributes"), dict) for one in dataset.read_parts(folder).values())


def _read_generated(folder: Path, flag: str) -> list[Record]:
    lines = dataset.read_parts(folder)
    kept = {name: one for name, one in lines.items() if (folder / name).is_file()}
    if not kept and (folder / "shards").is_dir():
        raise UserError(f"{flag} {folder}: its images are in tar shards; unpack them, or generate without --webdataset")
    if len(kept) < len(lines):
        lost = counted(len(lines) - len(kept), "image")
        logger.warning("%s %s: %s of its metadata.jsonl cannot be found", flag, folder, lost)
    if (folder / "config.yaml").is_file() and not (folder / "MANIFEST.json").is_file():
        logger.warning("%s %s: not finished; the images that exist are used", flag, folder)
    return [
        {key: value for key, value in (one.get("attributes") or {}).items() if canonical(key) not in OWN}
        | {"path": folder / name, "text": one.get("text"), "id": Path(name).stem, "seed": one.get("seed")}
        for name, one in kept.items()
    ]


def _read_folder(folder: Path, flag: str) -> list[Record]:
    found = read_catalogue(Source(str(folder), flag))
    if found.dataset is not None:
        raise UserError(f"{flag} {folder}: is a saved dataset; give a folder of images")
    if found.rejected:
        reasons = Counter(row.reason for row in found.rejected)
        left_out = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        logger.warning("%s %s: %s left out (%s)", flag, folder, counted(len(found.rejected), "row"), left_out)
    return [{**one.attributes, "path": one.image, "text": one.text, "id": one.id} for one in found.products]


@dataclass(frozen=True)
class Work:
    """Where and how images are encoded."""

    cache: Path
    batch_size: int
    workers: int


def encode_set(records: list[Record], keys: list[str], encoders: Sequence[Encoder], work: Work) -> ImageSet:
    """Measures of all images, features of those that can be read."""
    files = [one["path"] for one in records]
    measures = measure_images(files, work.cache, work.workers, keys)
    good = np.flatnonzero(is_readable(measures))
    files, good_keys = [files[i] for i in good], [keys[i] for i in good]
    features = {
        encoder.name: image_features(encoder, files, work.cache, work.batch_size, work.workers, good_keys)
        for encoder in encoders
    }
    return ImageSet(records, keys, measures, features)


def encode_sets(
    sets: Mapping[str, list[Record]], encoders: Sequence[Encoder], work: Work, accelerator: Accelerator
) -> dict[str, ImageSet]:
    """The sets by name. Several processes encode a share each; the first then reads all of them from the cache.

    The other processes get none.
    """
    work.cache.mkdir(parents=True, exist_ok=True)
    rank, count = accelerator.process_index, accelerator.num_processes
    keys = {name: content_keys([one["path"] for one in records], work.workers) for name, records in sets.items()}
    if count > 1:
        for name, records in sets.items():
            share = slice(rank, None, count)
            if records[share]:
                encode_set(records[share], keys[name][share], encoders, work)
        accelerator.wait_for_everyone()
    accelerator.end_training()  # the others need not wait for what the first process does alone
    if rank:
        return {}
    return {name: encode_set(records, keys[name], encoders, work) for name, records in sets.items()}
