"""Read a prepared dataset again and check every file."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from preparation.look_alikes import near_pairs, stack_looks
from preparation.records import ImageFacts
from utils.cli import UserError
from utils.console import track
from utils.dataset import SPLITS, read_metadata, read_split, verify_sums
from utils.files import list_files, parse_json, read_file, read_text
from utils.images import colour_thumb, perceptual_hash
from utils.parallel import parallel_map


class ImageJob(NamedTuple):
    path: Path
    size: int  # in bytes, as the manifest has it
    sha256: str
    shapes: list[list[int]]  # width and height that the dataset may have


def verify_dataset(folder: Path, workers: int) -> tuple[int, list[str]]:
    """How many images a dataset has, and what is wrong with it."""
    metadata = read_metadata(folder)
    broken, manifest = verify_layout(folder, metadata)
    names = [name for name in manifest if is_example(name) and (folder / name).is_file()]
    shapes = metadata.get("shapes") or [[metadata["options"]["resolution"]] * 2]
    jobs = (ImageJob(folder / name, manifest[name]["bytes"], manifest[name]["sha256"], shapes) for name in names)
    checks = parallel_map(check_image, jobs, workers)
    good = {}
    for name, facts in zip(names, track(checks, len(names), "images", "verifying"), strict=True):
        if facts.fault:
            broken.append(f"{name}: {facts.fault[0]} ({facts.fault[1]})")
        else:
            good[name] = facts
    limits = metadata["duplicates"]
    return len(names), broken + verify_apart(good, limits["bits"], limits["colour"])


def is_example(name: str) -> bool:
    """Whether a file of a dataset is an image of a split; a caption may lie beside it."""
    return "/images/" in name and name.endswith(".png")


def check_image(job: ImageJob) -> ImageFacts:
    """The fault of one image, or else its hash and colours. Runs in a worker process."""
    try:
        data = read_file(job.path)
        if len(data) != job.size or hashlib.sha256(data).hexdigest() != job.sha256:
            return ImageFacts(("the file has changed", "its size or sha256 is not the manifest's"))
        image = Image.open(io.BytesIO(data))
        if image.mode != "RGB" or list(image.size) not in job.shapes:
            expected = " or ".join(f"{width}x{height}" for width, height in job.shapes)
            return ImageFacts(
                ("wrong format", f"{image.mode} of {image.size[0]}x{image.size[1]}, expected RGB of {expected}")
            )
        return ImageFacts(hash=perceptual_hash(image), thumb=colour_thumb(image))
    except Exception as error:  # whatever a damaged file makes a decoder raise
        return ImageFacts(("cannot be read", str(error)))


def verify_apart(images: dict[str, ImageFacts], bits: int, colour: float) -> list[str]:
    """The look-alikes that are in two splits; names are `split/images/<id>.png`."""
    if not images:
        return []
    names = list(images)
    pairs = near_pairs(*stack_looks(images), bits, colour)
    apart = [pair for pair in pairs if names[pair[0]].partition("/")[0] != names[pair[1]].partition("/")[0]]
    return [f"{names[i]} and {names[j]}: look-alikes in two splits ({n} of 256 bits differ)" for i, j, n, _ in apart]


def verify_layout(folder: Path, metadata: dict[str, Any]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Every check except those of the pixels: what is wrong, and the manifest."""
    try:
        manifest = parse_json(read_text(folder / "MANIFEST.json"))
        sums = {name: entry["sha256"] for name, entry in manifest.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"MANIFEST.json: {error}"], {}
    files, broken = list_files(folder), verify_sums(folder, sums, metadata.get("fingerprint"), is_example)
    owner: dict[str, str] = {}
    for split in SPLITS:
        if split not in metadata["counts"] and not (folder / split).exists():  # a generated set is all for training
            continue
        wrong, ids = verify_split(folder, split, files, metadata)
        broken += wrong + [f"{one}: in {owner[one]} and in {split}" for one in ids if one in owner]
        owner |= dict.fromkeys(ids, split)
    return broken, manifest


def verify_split(
    folder: Path, split: str, files: Iterable[str], metadata: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """What is wrong in one split, whose tables and images must agree, and its ids."""
    broken, ids, captions = read_tables(folder, split)
    endings = (".png", ".txt") if metadata["options"].get("sidecar_captions") else (".png",)
    images = {name for name in files if name.startswith(f"{split}/images/")}
    if images != {f"{split}/images/{one}{ending}" for one in ids for ending in endings}:
        broken.append(f"{split}: ids.txt and images/ do not agree")
    if not metadata.get("captions", {}).get("empty"):
        broken += [f"{split}/captions.json: {one}: empty caption" for one, text in captions.items() if not text.strip()]
    if len(ids) != (count := metadata["counts"].get(split)):
        broken.append(f"{split}: {len(ids)} ids, metadata.json says {count}")
    return broken, ids


def read_tables(folder: Path, split: str) -> tuple[list[str], list[str], dict[str, str]]:
    """What is wrong with the tables of one split, its ids, and its captions."""
    try:
        ids = read_text(folder / split / "ids.txt").split()
        captions = parse_json(read_text(folder / split / "captions.json"))
        records = read_split(folder, split)
    except (OSError, ValueError, UserError) as error:
        return [f"{split}: {error}"], [], {}
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        return [f"{split}/captions.json: expected {{id: caption}}"], ids, {}
    broken = [
        f"{split}/metadata.jsonl: line {line}: expected text as `{key}`, found {record.get(key)!r}"
        for line, record in enumerate(records, 1)
        for key in ("id", "text")
        if not isinstance(record.get(key), str)
    ]
    if broken or captions != {record["id"]: record["text"] for record in records} or list(captions) != ids:
        broken.append(f"{split}: ids.txt, captions.json and metadata.jsonl do not agree")
    return broken, ids, captions
