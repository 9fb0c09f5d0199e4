"""Find out what a catalogue is and read it; choose its products; notice when it has changed."""

import difflib
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from utils import catalogue
from utils.catalogue import Catalogue
from utils.cli import UserError
from utils.hub import hub_failure
from utils.tables import canonical, clean_cell


def read_catalogue(name: str, flag: str, image_column, caption_column, config, split) -> Catalogue:
    """Whatever the layout: styles.csv wins over metadata.*, that over what `datasets` has saved, that over images.

    `flag` is the one that named the place, for what is wrong with it.
    """
    folder, caption_column = Path(name), canonical(caption_column)
    if folder.is_file():
        raise UserError(f"{flag} {name}: is a file; give the folder it is in")
    if folder.is_dir():
        if (folder / "styles.csv").exists():
            return catalogue.read_styles(folder, flag)
        tables = [path for path in sorted(folder.glob("metadata.*")) if path.suffix in (".jsonl", ".csv")]
        tables = tables or [path for path in sorted(folder.glob("*/metadata.*")) if path.suffix in (".jsonl", ".csv")]
        if tables:
            return catalogue.read_imagefolder(tables, image_column or "file_name", caption_column, flag)
        saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
        if not saved and not any(folder.rglob("*.parquet")):
            return catalogue.read_folder(folder, flag)
    return read_hub(name, config, split, image_column or "image", caption_column, flag)


def select_products(found: Catalogue, wanted: list[str] | None, column: str) -> tuple[list[dict], list[dict], Counter]:
    """The products and the rejected rows of the wanted categories, and how many there are of each category."""

    def value(entry: dict) -> str | None:
        return entry["attributes"].get(column)

    counts = Counter(value(entry) for entry in [*found.products, *found.rejected] if value(entry))
    if not wanted:
        return found.products, found.rejected, counts
    names = {name.lower(): name for name in counts}
    if not names:
        raise UserError(f"--category: the catalogue has no column `{column}` (found: {', '.join(found.columns)})")
    for name in wanted:
        if name.lower() not in names:
            near = difflib.get_close_matches(name.lower(), names, n=3)
            near = near or [key.lower() for key, _ in counts.most_common(5)]
            choice = ", ".join(f'"{names[key]}" ({counts[names[key]]})' for key in near)
            raise UserError(f'--category "{name}": no product has this {column}; there are {choice}')
    lower = {name.lower() for name in wanted}
    products = [one for one in found.products if (value(one) or "").lower() in lower]
    rejected = [one for one in found.rejected if not value(one) or value(one).lower() in lower]
    return products, rejected, counts


def source_fingerprint(found: Catalogue, products: list[dict], rejected: list[dict]) -> str:
    """Changes with any row, and with the size or time of any image; no image is read."""
    digest = hashlib.sha256()
    if found.dataset is not None:
        digest.update(found.dataset._fingerprint.encode())
    for one in products:
        stat = one["image"].stat() if isinstance(one["image"], Path) else None
        facts = [one["id"], one["row"], one["text"], one["attributes"], stat and (stat.st_size, stat.st_mtime_ns)]
        digest.update(json.dumps(facts).encode())
    digest.update(json.dumps(rejected).encode())
    return digest.hexdigest()


def load_dataset(name: str, config: str | None, split: str, flag: str):
    """A split of a dataset of the hub, or of a folder that `datasets` has saved or can load."""
    path = Path(name)
    if not path.exists() and (name.count("/") != 1 or name[0] in "./~" or path.parent.is_dir()):
        raise UserError(f"{flag} {name}: no such folder (a hub dataset is named owner/name)")
    import datasets

    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            dataset = datasets.load_from_disk(name)
            return dataset[split] if isinstance(dataset, datasets.DatasetDict) else dataset
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # of the network, the hub, the loader: a dozen types
        named = " (--dataset_split)" if flag == "--catalogue" else ""
        what = f"its split {split}{named} can't be read" if path.exists() else "no such folder; as a hub id"
        raise UserError(f"{flag} {name}: {what}: {hub_failure(error)}") from error


def read_hub(
    name: str, config: str | None, split: str, image_column: str, caption_column: str, flag: str = "--catalogue"
) -> Catalogue:
    """What `datasets` can load; images are read when they are needed."""
    dataset = load_dataset(name, config, split, flag)
    import datasets  # after the check of the name: the import takes seconds

    if image_column not in dataset.column_names:
        raise UserError(f"--image_column {image_column}: {name} has the columns {', '.join(dataset.column_names)}")
    catalogue = Catalogue("datasets", columns=list(dataset.column_names), rows=len(dataset))
    catalogue.dataset = dataset.cast_column(image_column, datasets.Image(decode=False)).select_columns([image_column])
    plain = (datasets.Value, datasets.ClassLabel)  # an embedding or a box is no attribute
    columns = [
        key for key, kind in dataset.features.items() if isinstance(kind, plain) or canonical(key) == caption_column
    ]
    table = dataset.select_columns([key for key in columns if key != image_column])
    classes = {key: value for key, value in table.features.items() if isinstance(value, datasets.ClassLabel)}
    seen = {}
    for index, row in enumerate(table if table.column_names else ({} for _ in range(len(dataset)))):
        row = {key: classes[key].int2str(v) if key in classes and v is not None else v for key, v in row.items()}
        row = {canonical(key): value for key, value in row.items()}
        text = row.pop(caption_column, None)
        row = {key: clean_cell(value) for key, value in row.items()}
        product_id = row.pop("id", None) or f"{index:06d}"
        text = clean_cell(text[0] if isinstance(text, list) and text else text)
        if product_id in seen:
            catalogue.reject(product_id, index, "id used twice", f"kept row {seen[product_id]}", row)
        elif not re.fullmatch(r"\w[\w.-]*", product_id):
            catalogue.reject(product_id, index, "id is no file name", "expected letters, digits, - and _", row)
        else:
            seen[product_id] = index
            catalogue.products.append({"id": product_id, "row": index, "image": index, "text": text, "attributes": row})
    return catalogue


def image_source(dataset, image: Path | int) -> Path | bytes:
    """Where a product's image is: its file, or the encoded bytes in a row of `Catalogue.dataset`."""
    if isinstance(image, Path):
        return image
    cell = next(iter(dataset[image].values())) or {}
    return cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else b"")
