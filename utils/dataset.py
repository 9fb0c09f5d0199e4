"""Read, write and verify a prepared dataset."""

import hashlib
import io
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.cli import UserError, progress
from utils.files import file_sha256, list_files, write_json
from utils.images import colour_thumb, near_pairs, perceptual_hash
from utils.parallel import parallel_map

FORMAT = "prepared dataset 1"
TABLES = ("metadata.jsonl", "ids.txt", "captions.json")

logger = logging.getLogger(__name__)


def read_metadata(folder: Path) -> dict:
    """metadata.json of a prepared dataset."""
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


def read_split(folder: Path, split: str) -> list[dict]:
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
    """One checksum for the images and captions of all splits, from the sha256 of each file; reports don't count."""
    lines = [f"{sums[name]} {name}\n" for name in sorted(sums) if name.partition("/")[0] in SPLITS]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_saved_splits(path: Path) -> dict[str, str]:
    """{id: split} of every product that ever had a place, from a dataset's folder or its splits.json.

    Where that file is damaged or missing, the ids.txt beside it tell at least of the products that are in the dataset.
    """
    path = path / "splits.json" if path.is_dir() else path
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(splits, dict) or not all(split in SPLITS for split in splits.values()):
            raise ValueError("expected {id: train, val or test}")
        return splits
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or error
    try:
        lists = {split: (path.parent / split / "ids.txt").read_text(encoding="utf-8").split() for split in SPLITS}
    except (OSError, ValueError):
        raise UserError(
            f"{path}: {wrong}; expected the splits.json of a prepared dataset; give another, or add --new_splits"
        ) from None
    logger.warning("%s: %s; the splits are taken from the three ids.txt beside it instead", path, wrong)
    return {one: split for split, ids in lists.items() for one in ids}


def check_image(job: tuple[Path, dict, list]) -> tuple[str, np.ndarray | None, np.ndarray | None]:
    """What is wrong with one image of a prepared dataset, its hash and colours; (path, manifest entry, shapes)."""
    path, entry, shapes = job
    try:
        data = path.read_bytes()
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            return "the file has changed (its size or sha256 is not the manifest's)", None, None
        image = Image.open(io.BytesIO(data))
        if image.mode != "RGB" or list(image.size) not in shapes:
            expected = " or ".join(f"{width}x{height}" for width, height in shapes)
            return f"{image.mode} of {image.size[0]}x{image.size[1]}, expected RGB of {expected}", None, None
        return "", perceptual_hash(image), colour_thumb(image)
    except Exception as error:  # whatever a damaged file makes a decoder raise
        return f"cannot be read: {error}", None, None


def verify_split(
    folder: Path, split: str, files: Iterable[str], count: int, silent: bool = False
) -> tuple[list[str], list[str]]:
    """(what is broken, ids) of one split, whose tables and images are to tell of the same products.

    `silent`: empty captions are no fault.
    """
    try:
        ids = (folder / split / "ids.txt").read_text(encoding="utf-8").split()
        captions = json.loads((folder / split / "captions.json").read_text(encoding="utf-8"))
        records = read_split(folder, split)
    except (OSError, ValueError, UserError) as error:
        return [f"{split}: {error}"], []
    broken = []
    if {name for name in files if name.startswith(f"{split}/images/")} != {f"{split}/images/{one}.png" for one in ids}:
        broken.append(f"{split}: ids.txt and images/ do not agree")
    if captions != {record["id"]: record["text"] for record in records} or list(captions) != ids:
        broken.append(f"{split}: ids.txt, captions.json and metadata.jsonl do not agree")
    empty = [one for one, text in captions.items() if not (silent or text.strip())]
    broken += [f"{split}/captions.json: {one}: empty caption" for one in empty]
    if len(ids) != count:
        broken.append(f"{split}: {len(ids)} ids, metadata.json says {count}")
    return broken, ids


def verify_layout(folder: Path, metadata: dict) -> tuple[list[str], dict]:
    """All promises but those about the pixels: (what is broken, the manifest)."""
    try:
        manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
        sums = {name: entry["sha256"] for name, entry in manifest.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"MANIFEST.json: {error}"], {}
    files = list_files(folder)
    broken = [f"{name}: missing" for name in manifest if name not in files]
    broken += [f"{name}: not in the manifest" for name in files if name not in manifest and name != "MANIFEST.json"]
    for name in manifest.keys() & files.keys():
        if "/images/" not in name and file_sha256(folder / name) != sums[name]:
            broken.append(f"{name}: the file has changed (its sha256 is not the manifest's)")
    if content_fingerprint(sums) != metadata.get("fingerprint"):
        broken.append("metadata.json: its fingerprint is not that of the manifest's files")
    owner = {}
    for split in SPLITS:
        if split not in metadata["counts"] and not (folder / split).exists():  # a generated set is all for training
            continue
        silent = bool(metadata.get("captions", {}).get("empty"))
        wrong, ids = verify_split(folder, split, files, metadata["counts"].get(split), silent)
        broken += wrong + [f"{one}: in {owner[one]} and in {split}" for one in ids if one in owner]
        owner |= dict.fromkeys(ids, split)
    return broken, manifest


def verify_disjoint(
    names: list[str], hashes: Iterable[np.ndarray], thumbs: Iterable[np.ndarray], bits: int, colour: float
) -> list[str]:
    """Pairs of look-alikes in two splits; `names` are `split/images/<id>.png`."""
    pairs = near_pairs(np.stack(list(hashes)), np.stack(list(thumbs)), bits, colour)
    apart = [pair for pair in pairs if names[pair[0]].partition("/")[0] != names[pair[1]].partition("/")[0]]
    return [f"{names[i]} and {names[j]}: look-alikes in two splits ({n} of 256 bits differ)" for i, j, n, _ in apart]


def verify_dataset(folder: Path, workers: int) -> tuple[int, list[str]]:
    """Re-read a dataset: how many images it has, and every promise that it breaks."""
    metadata = read_metadata(folder)
    broken, manifest = verify_layout(folder, metadata)
    names = [name for name in manifest if "/images/" in name and (folder / name).is_file()]
    shapes = metadata.get("shapes") or [[metadata["options"]["resolution"]] * 2]
    jobs = ((folder / name, manifest[name], shapes) for name in names)
    checks = parallel_map(check_image, jobs, workers)
    seen = []
    for name, (wrong, bits, thumb) in zip(tqdm(names, unit=" images", **progress()), checks):
        if wrong:
            broken.append(f"{name}: {wrong}")
        else:
            seen.append((name, bits, thumb))
    limits = metadata["duplicates"]
    return len(names), broken + (verify_disjoint(*zip(*seen), limits["bits"], limits["colour"]) if seen else [])


def write_split(folder: Path, split: str, products: list[dict], columns: list[str], images: Path) -> dict[str, str]:
    """images/ (moved from `images`), ids.txt, captions.json and metadata.jsonl of one split; {file: sha256}."""
    (folder / split / "images").mkdir(parents=True)
    sums, lines = {}, []
    for one in products:
        name = f"images/{one['id']}.png"
        (images / f"{one['id']}.png").rename(folder / split / name)
        sums[f"{split}/{name}"] = one["sha256"]
        facts = {key: one["attributes"].get(key) for key in columns if key not in ("file_name", "text", "id")}
        lines.append({"file_name": name, "text": one["caption"], "id": one["id"], **facts})
    jsonl = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / split / "metadata.jsonl").write_text(jsonl, encoding="utf-8")
    (folder / split / "ids.txt").write_text("".join(f"{one['id']}\n" for one in products), encoding="utf-8")
    write_json(folder / split / "captions.json", {one["id"]: one["caption"] for one in products})
    return sums | {f"{split}/{name}": file_sha256(folder / split / name) for name in TABLES}


def foreign_files(folder: Path) -> list[str]:
    """Files in a dataset's folder that its manifest does not list: somebody else's."""
    try:
        own = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8")).keys() | {"MANIFEST.json"}
    except (OSError, ValueError, AttributeError):
        return []
    return [name for name in list_files(folder) if name not in own]


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """That nothing in the folder of a new dataset is somebody else's."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; name a new folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not any((folder / name).is_file() for name in ("metadata.json", "analysis.json")):
        raise UserError(f"--output_dir {folder}: exists and was not written by this script; name a new one")
    if overwrite and (extra := foreign_files(folder)):
        raise UserError(
            f"--output_dir {folder}: --overwrite would remove files that this script did not write "
            f"({', '.join(extra[:3])}{' …' if extra[3:] else ''}); move them away, or name another folder"
        )


def changes_since(folder: Path, request: dict) -> list[str]:
    """What has changed since the folder was written for another request; nothing where it holds what is asked for."""
    path = folder / "metadata.json" if (folder / "metadata.json").exists() else folder / "analysis.json"
    try:
        was = json.loads(path.read_text(encoding="utf-8"))
        manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in manifest.items()}
        there = {name: stat.st_size for name, stat in list_files(folder).items() if name != "MANIFEST.json"}
        old, new = was["options"], request["options"]
        changes = [f"{key} was {old.get(key)}, now {new[key]}" for key in new if old.get(key) != new[key]]
        changes += [f"there are other files in it ({extra[0]})"] if (extra := foreign_files(folder)) else []
        changes += (
            ["files in it are missing or changed"] if any(there.get(n) != size for n, size in sizes.items()) else []
        )
        changes += ["what is read has changed"] if was["source_fingerprint"] != request["source_fingerprint"] else []
        return changes + (["the splits to keep have changed"] if was["kept_splits"] != request["kept_splits"] else [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["it is damaged"]


SPLITS = ("train", "val", "test")
