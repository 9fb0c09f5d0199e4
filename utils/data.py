"""Read and verify a prepared dataset; read a dataset of the hub or one that `datasets` has saved."""

import hashlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from utils.catalogue import Catalogue, canonical, clean_cell
from utils.cli import UserError
from utils.files import file_sha256, list_files
from utils.images import colour_thumb, near_pairs, perceptual_hash
from utils.splits import SPLITS

FORMAT = "prepared dataset 1"


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
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise UserError(f"{path}: expected a prepared dataset (`format: {FORMAT}`); make one with prepare_dataset.py")
    return metadata


def read_split(folder: Path, split: str) -> list[dict]:
    """The records of one split, in the order of its ids: {"id", "path", "text", …attributes}."""
    path = folder / split / "metadata.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return [{**record, "path": folder / split / record["file_name"]} for record in records]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a prepared dataset with a split `{split}`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the dataset again") from None


def content_fingerprint(sums: dict[str, str]) -> str:
    """One checksum for the pictures and captions of all splits, from the sha256 of each file; reports don't count."""
    lines = [f"{sums[name]} {name}\n" for name in sorted(sums) if name.partition("/")[0] in SPLITS]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_saved_splits(path: Path) -> dict[str, str]:
    """{id: split} of a dataset folder or its splits.json: every product that ever had a place."""
    path = path / "splits.json" if path.is_dir() else path
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; expected the splits.json of a prepared dataset") from None
    if not isinstance(splits, dict) or not set(splits.values()) <= set(SPLITS):
        raise UserError(f"{path}: expected {{id: train, val or test}}")
    return splits


def check_picture(job: tuple[Path, dict, int]) -> tuple[list[str], np.ndarray | None, np.ndarray | None]:
    """What is wrong with one picture of a prepared dataset, and its hash and colours; (path, manifest entry, side)."""
    path, entry, side = job
    try:
        data = path.read_bytes()
        if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            return ["the file has changed (its size or sha256 is not the manifest's)"], None, None
        image = Image.open(io.BytesIO(data))
        if image.mode != "RGB" or image.size != (side, side):
            return [f"{image.mode} of {image.size[0]}x{image.size[1]}, expected RGB of {side}x{side}"], None, None
        return [], perceptual_hash(image), colour_thumb(image)
    except Exception as error:  # whatever a damaged file makes a decoder raise
        return [f"cannot be read: {error}"], None, None


def verify_layout(folder: Path, metadata: dict) -> tuple[list[str], dict, dict[str, list[str]]]:
    """All promises but those about the pixels: (what is broken, the manifest, {split: ids})."""
    try:
        manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
        sums = {name: entry["sha256"] for name, entry in manifest.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"MANIFEST.json: {error}"], {}, {}
    files = list_files(folder)
    broken = [f"{name}: missing" for name in manifest if name not in files]
    broken += [f"{name}: not in the manifest" for name in files if name not in manifest and name != "MANIFEST.json"]
    for name in manifest.keys() & files.keys():
        if "/images/" not in name and file_sha256(folder / name) != sums[name]:
            broken.append(f"{name}: the file has changed (its sha256 is not the manifest's)")
    if content_fingerprint(sums) != metadata.get("fingerprint"):
        broken.append("metadata.json: its fingerprint is not that of the manifest's files")
    ids, owner = {}, {}
    for split in SPLITS:
        try:
            ids[split] = (folder / split / "ids.txt").read_text(encoding="utf-8").split()
            captions = json.loads((folder / split / "captions.json").read_text(encoding="utf-8"))
            records = read_split(folder, split)
        except (OSError, ValueError, UserError) as error:
            broken.append(f"{split}: {error}")
            continue
        images = {name for name in files if name.startswith(f"{split}/images/")}
        if images != {f"{split}/images/{one}.png" for one in ids[split]}:
            broken.append(f"{split}: ids.txt and images/ do not agree")
        if captions != {record["id"]: record["text"] for record in records} or list(captions) != ids[split]:
            broken.append(f"{split}: ids.txt, captions.json and metadata.jsonl do not agree")
        broken += [f"{split}/captions.json: {one}: empty caption" for one, text in captions.items() if not text.strip()]
        if len(ids[split]) != metadata.get("counts", {}).get(split):
            broken.append(f"{split}: {len(ids[split])} ids, metadata.json says {metadata['counts'].get(split)}")
        broken += [f"{one}: in {owner[one]} and in {split}" for one in ids[split] if one in owner]
        owner |= dict.fromkeys(ids[split], split)
    return broken, manifest, ids


def verify_disjoint(
    names: list[str], hashes: Iterable[np.ndarray], thumbs: Iterable[np.ndarray], bits: int, colour: float
) -> list[str]:
    """Pairs of look-alikes in two splits; `names` are `split/images/<id>.png`."""
    if not names:
        return []
    pairs = near_pairs(np.stack(list(hashes)), np.stack(list(thumbs)), bits, colour)
    apart = [pair for pair in pairs if names[pair[0]].partition("/")[0] != names[pair[1]].partition("/")[0]]
    return [f"{names[i]} and {names[j]}: look-alikes in two splits ({n} of 256 bits differ)" for i, j, n, _ in apart]


def read_hub(name: str, config: str | None, split: str, image_column: str, caption_column: str) -> Catalogue:
    """A dataset of the hub, or a folder that `datasets` has saved or can load; pictures are read when they are needed."""
    import datasets

    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            dataset = datasets.load_from_disk(name)
            dataset = dataset[split] if isinstance(dataset, datasets.DatasetDict) else dataset
        else:
            dataset = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # of the network, the hub, the loader: a dozen types
        detail = " ".join(str(error).split())[:300]
        raise UserError(
            f"--catalogue {name}: no folder of that name, and no hub dataset could be loaded with --dataset_split {split} ({detail})"
        ) from None
    if image_column not in dataset.column_names:
        raise UserError(f"--image_column {image_column}: {name} has the columns {', '.join(dataset.column_names)}")
    catalogue = Catalogue("datasets", columns=list(dataset.column_names), rows=len(dataset))
    catalogue.dataset = dataset.cast_column(image_column, datasets.Image(decode=False)).select_columns([image_column])
    table = dataset.remove_columns(image_column)
    classes = {key: value for key, value in table.features.items() if isinstance(value, datasets.ClassLabel)}
    seen = {}
    for index, row in enumerate(table if table.column_names else ({} for _ in range(len(dataset)))):
        row = {key: classes[key].int2str(v) if key in classes and v is not None else v for key, v in row.items()}
        row = {canonical(key): value if key == caption_column else clean_cell(value) for key, value in row.items()}
        product_id = row.pop("id", None) or f"{index:06d}"
        text = row.pop(caption_column, None)
        text = clean_cell(text[0] if isinstance(text, list) and text else text)
        if product_id in seen:
            catalogue.reject(product_id, index, "id used twice", f"kept row {seen[product_id]}", row)
        elif not re.fullmatch(r"\w[\w.-]*", product_id):
            catalogue.reject(product_id, index, "id is no file name", "expected letters, digits, - and _", row)
        else:
            seen[product_id] = index
            catalogue.products.append({"id": product_id, "row": index, "image": index, "text": text, "attributes": row})
    return catalogue


def hub_bytes(dataset, index: int) -> bytes:
    """The encoded picture in one row of `Catalogue.dataset`."""
    cell = next(iter(dataset[index].values())) or {}
    if cell.get("bytes"):
        return cell["bytes"]
    path = Path(cell["path"]) if cell.get("path") else None
    return path.read_bytes() if path and path.exists() else b""
