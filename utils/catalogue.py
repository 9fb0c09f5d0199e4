"""Read a product catalogue whatever its layout: which products there are, where their images lie, what went wrong.

Nothing is dropped in silence: a row is a product or it is in `rejected` with a reason.
"""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from utils.cli import UserError, counted
from utils.files import list_files
from utils.tables import canonical, clean_cell, decode_lines, fit_cells, split_records

IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CONVERT = "convert it to JPEG: on a Mac `sips -s format jpeg a.heic --out a.jpg`, elsewhere `heif-convert a.heic a.jpg`"
NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufffd]")  # control characters, and bytes that stand for none


@dataclass
class Catalogue:
    kind: str
    columns: list[str] = field(default_factory=list)
    products: list[dict] = field(default_factory=list)  # {"id", "row", "image": Path or index, "text", "attributes"}
    rejected: list[dict] = field(default_factory=list)  # {"id", "row", "reason", "detail", "attributes"}
    notes: list[str] = field(default_factory=list)  # what a person should know
    rows: int = 0
    recovered: list[int] = field(default_factory=list)  # line numbers
    dataset: object = None  # of the hub: where `image` is an index

    def reject(self, product_id: str, row: int | str, reason: str, detail: str = "", attributes: dict | None = None):
        entry = {"id": product_id, "row": row, "reason": reason, "detail": detail, "attributes": attributes or {}}
        self.rejected.append(entry)

    def note_names(self, what: str, names: list[str]):
        if names:
            more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
            self.notes.append(f"{what}: {', '.join(names[:12])}{more}")


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_TYPES)


def left_out(product: dict, reason: str, detail: str = "") -> dict:
    """The entry in `rejected` for a product."""
    return {key: product[key] for key in ("id", "row", "attributes")} | {"reason": reason, "detail": detail}


def fault_line(entry: dict) -> str:
    """What was left out, and why."""
    detail = f" – {entry['detail']}" if entry["detail"] else ""
    return f"{entry['id'] or '?'} (row {entry['row']}): {entry['reason']}{detail}"


def read_table(path: Path, key: str, free_text: str, catalogue: Catalogue, flag: str) -> list[tuple[int, dict]]:
    """(line number, row) of a CSV file, each damage mended or told in `catalogue`; every row must have a `key`."""
    lines, odd = decode_lines(path.read_bytes())
    header = split_records(lines[:1], 1)
    columns = [canonical(cell) for cell in header[0][1]] if header else []
    while columns and not columns[-1]:
        columns.pop()
    if key not in columns:
        found = ",".join(header[0][1])[:80] if header else "an empty file"
        raise UserError(f"{flag} {path}: line 1: found `{found}`; expected names of columns with `{key}` among them")
    if odd:
        catalogue.notes.append(f"{path.name}: {counted(odd, 'line')} not in UTF-8, read as Latin-1")
    free = columns.index(free_text) if free_text in columns else None
    records = split_records(lines, len(columns))[1:]
    catalogue.columns, catalogue.rows = columns, catalogue.rows + len(records)
    rows = []
    for line, cells in records:
        fitted, repaired = fit_cells(cells, columns, free)
        if fitted is None:
            detail = f"{len(cells)} cells, expected {len(columns)}"
            catalogue.reject(cells[0].strip(), line, "row can't be read", detail)
            continue
        if repaired:
            catalogue.recovered.append(line)
        row = dict(zip(columns, map(clean_cell, fitted)))
        row.pop("", None)
        if row[key] is None:
            catalogue.reject("", line, f"no {key}", "", row)
        else:
            rows.append((line, row))
    return rows


def read_styles(folder: Path, flag: str = "--catalogue") -> Catalogue:
    """styles.csv and images/<id>.jpg, the layout of the Fashion Product Images dataset."""
    catalogue = Catalogue("styles.csv")
    rows = read_table(folder / "styles.csv", "id", "name", catalogue, flag)
    images = folder / "images"
    if not images.is_dir():
        raise UserError(f"{flag} {folder}: there is a styles.csv but no folder images/ beside it; put the images there")
    by_name, by_stem = {}, {}
    for name in list_files(images):
        if is_image(name):
            by_name[name] = images / name
            by_stem.setdefault(name.rpartition(".")[0], images / name)
    seen, used = {}, set()
    for line, row in rows:
        product_id = row.pop("id")
        attributes = {key: value for key, value in row.items() if key != "image"}
        if product_id in seen:
            first, values = seen[product_id]
            reason = "row given twice" if values == row else "id used twice"
            catalogue.reject(product_id, line, reason, f"kept line {first}", attributes)
            continue
        seen[product_id] = line, row
        if not re.fullmatch(r"\w[\w.-]*", product_id):
            catalogue.reject(product_id, line, "id is no file name", "expected letters, digits, - and _", attributes)
            continue
        image = by_name.get(row.get("image")) or by_stem.get(product_id)
        if image is None:
            catalogue.reject(product_id, line, "no image", f"no images/{product_id}.jpg, .png or .webp", attributes)
            continue
        used.add(image)
        catalogue.products.append(
            {"id": product_id, "row": line, "image": image, "text": None, "attributes": attributes}
        )
    if unused := len(by_name) - len(used):
        catalogue.notes.append(f"images/ holds {counted(unused, 'image')} of no product")
    return catalogue


def _add_image(catalogue: Catalogue, taken: set[str], name: str, row, image, text, attributes: dict) -> None:
    """A product named after its file; `a.png` beside `a.jpg` becomes `a-png`."""
    stem, _, ending = name.rpartition(".")
    stem = re.sub(r"[^\w.-]+", "_", stem).lstrip("._-") or "picture"
    product_id = stem if stem.lower() not in taken else f"{stem}-{ending}"
    while product_id.lower() in taken:  # not by chance: a name given twice, or one that differs in case only
        product_id += "-2"
    taken.add(product_id.lower())
    catalogue.products.append({"id": product_id, "row": row, "image": image, "text": text, "attributes": attributes})


def read_imagefolder(
    tables: list[Path], image_column: str, caption_column: str, flag: str = "--catalogue"
) -> Catalogue:
    """Folders with metadata.jsonl or metadata.csv, whose `file_name` is relative to the table's own folder."""
    catalogue = Catalogue("imagefolder")
    taken, listed = set(), {}
    for table in tables:
        prefix = f"{table.parent.name}/" if len(tables) > 1 else ""
        files = list_files(table.parent)
        if table.suffix == ".csv":
            rows = read_table(table, image_column, caption_column, catalogue, flag)
        else:
            rows = _read_jsonl(table, image_column, catalogue)
        for line, row in rows:
            name, row_id = row.pop(image_column), f"{prefix}{table.name}:{line}" if prefix else line
            text = row.pop(caption_column, None)
            attributes = {key: value for key, value in row.items() if key != "id"}
            if name not in files:
                catalogue.reject(name, row_id, "no image", f"{table.parent.name}/{name} is not there", attributes)
            elif (table, name) in listed:
                catalogue.reject(name, row_id, "row given twice", f"kept line {listed[table, name]}", attributes)
            else:
                listed[table, name] = line
                base = name.removeprefix("images/") if not prefix else name.rpartition("/")[2]
                _add_image(catalogue, taken, base, row_id, table.parent / name, text, attributes)
    used = {one["image"] for one in catalogue.products}
    for folder in dict.fromkeys(table.parent for table in tables):
        unlisted = [name for name in list_files(folder) if is_image(name) and folder / name not in used]
        catalogue.note_names(f"images without a line in {folder.name}/metadata", unlisted)
    return catalogue


def _read_jsonl(table: Path, key: str, catalogue: Catalogue) -> list[tuple[int, dict]]:
    rows = []
    for line, text in enumerate(decode_lines(table.read_bytes())[0], 1):
        if not text.strip():
            continue
        catalogue.rows += 1
        try:
            row = json.loads(text)
            cells = {canonical(name): clean_cell(value) for name, value in row.items()}
            rows.append((line, cells | {key: str(row[key])}))
        except (ValueError, KeyError, AttributeError):
            catalogue.reject("", line, "row can't be read", f"expected a JSON object with `{key}`: {text[:60]}")
    if not catalogue.columns and rows:
        catalogue.columns = list(rows[0][1])
    return rows


def read_folder(folder: Path, flag: str = "--catalogue") -> Catalogue:
    """Images with their captions in <name>.txt beside them."""
    catalogue = Catalogue("image folder")
    taken, files, other = set(), list_files(folder), Counter()
    for name in files:
        stem, dot, ending = name.rpartition(".")
        if is_image(name):
            caption = folder / f"{stem}.txt"
            text = " ".join(decode_lines(caption.read_bytes())[0]) if f"{stem}.txt" in files else None
            if odd := NO_TEXT.search(text or ""):
                catalogue.reject(name, name, "caption is no text", f"{stem}.txt holds {odd[0]!r}; remove or rewrite it")
            else:
                _add_image(catalogue, taken, name, name, folder / name, clean_cell(text), {})
        elif ending.lower() in ("heic", "heif"):
            catalogue.reject(name, name, "HEIC is not read", CONVERT)
        elif ending != "txt":
            other[dot + ending] += 1
    for link in sorted(path for path in folder.rglob("[!.]*") if is_image(path.name) and not path.exists()):
        name = link.relative_to(folder).as_posix()
        catalogue.reject(name, name, "broken link", f"{os.readlink(link)} is not there")
    stems = {name.rpartition(".")[0] for name in files if not name.endswith(".txt")}
    lone = [name for name in files if name.endswith(".txt") and name.removesuffix(".txt") not in stems]
    catalogue.note_names("captions without an image", lone)
    if other:
        counts = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in sorted(other.items()))
        catalogue.notes.append(f"other files left alone: {counts}")
    if not (catalogue.products or catalogue.rejected):
        tables = ", ".join(name for name in files if name.endswith(".csv"))
        hint = f"found {tables or counted(len(files), 'other file')}" if files else "it is empty"
        raise UserError(
            f"{flag} {folder}: {hint}; expected styles.csv + images/, a metadata.jsonl or .csv, or images "
            f"({', '.join(IMAGE_TYPES)})"
        )
    catalogue.rows = len(catalogue.products) + len(catalogue.rejected)
    return catalogue
