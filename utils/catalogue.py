"""Read a product catalogue of any layout: its products, where their images are, and what is wrong with it.

No row is dropped without a reason: each is a product, or it is in `rejected`.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli import UserError, counted, name_some
from utils.files import list_files, parse_json, read_file
from utils.hub import hub_failure
from utils.images import CONVERT

if TYPE_CHECKING:
    import datasets

IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufffd]")  # control characters, and bytes that could not be decoded
FILE_NAME = re.compile(r"\w[\w.-]*")
Attributes = dict[str, str | None]
# The names that captions and flags use for the columns of the Fashion Product Images dataset and similar ones.
NAMES = {"basecolour": "colour", "basecolor": "colour", "color": "colour", "articletype": "article"}
NAMES |= {"productdisplayname": "name"}
NAMES |= {name: name for name in ("id", "article", "colour", "gender", "season", "year", "usage")}  # in any case
MISSING = ("", "na", "n/a", "nan", "none", "null")


@dataclass(frozen=True)
class Source:
    """A catalogue to read; messages name its `flag`. Without `images_needed` a table alone is enough.

    With `several_captions` a list of captions, and each line of a .txt, is a caption of its own (`join_captions`).
    """

    name: str  # a folder or a hub id
    flag: str = "--catalogue"
    image_column: str | None = None  # default: file_name of an imagefolder, image of a hub dataset
    caption_column: str = "text"
    config: str | None = None  # of a hub dataset, as `split`
    split: str = "train"
    images_needed: bool = True
    several_captions: bool = False


@dataclass(frozen=True)
class Product:
    id: str
    row: int | str  # the line of its table, the row of a hub dataset, or the file's name
    image: Path | int  # a file, or a row of Catalogue.dataset
    text: str | None  # its own caption
    attributes: Attributes


@dataclass(frozen=True)
class Rejected:
    """A row or file that is left out. Reasons are few, to count by; the detail is of this one."""

    id: str
    row: int | str
    reason: str
    detail: str = ""
    attributes: Attributes = field(default_factory=dict)

    def __str__(self) -> str:
        detail = f" – {self.detail}" if self.detail else ""
        return f"{self.id or '?'} (row {self.row}): {self.reason}{detail}"


@dataclass
class Catalogue:
    kind: str
    columns: list[str] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a person should know
    rows: int = 0
    recovered: list[int | str] = field(default_factory=list)  # line numbers
    dataset: "datasets.Dataset | None" = None  # of the hub: `image` is a row of it

    def reject(
        self, product_id: str, row: int | str, reason: str, detail: str = "", attributes: Attributes | None = None
    ) -> None:
        self.rejected.append(Rejected(product_id, row, reason, detail, attributes or {}))

    def note_names(self, what: str, names: list[str]) -> None:
        if names:
            self.notes.append(f"{what}: {name_some(names, 12)}")


def is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_TYPES)


def reject_product(product: Product, reason: str, detail: str = "") -> Rejected:
    return Rejected(product.id, product.row, reason, detail, product.attributes)


def join_captions(texts: Iterable[object]) -> str | None:
    """Several captions of one image as one text, each a line; None where there is none."""
    return "\n".join(filter(None, map(clean_cell, texts))) or None


def read_catalogue(source: Source) -> Catalogue:
    """The catalogue; of several layouts styles.csv comes first, then metadata.*, what `datasets` saved, and images."""
    folder = Path(source.name)
    if folder.is_file():
        raise UserError(f"{source.flag} {source.name}: is a file; give the folder it is in")
    if folder.is_dir():
        if (folder / "styles.csv").exists():
            return read_styles(source)
        tables = [path for path in sorted(folder.glob("metadata.*")) if path.suffix in (".jsonl", ".csv")]
        tables = tables or [path for path in sorted(folder.glob("*/metadata.*")) if path.suffix in (".jsonl", ".csv")]
        if tables:
            return read_imagefolder(tables, source)
        saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
        if not saved and not any(folder.rglob("*.parquet")):
            return read_folder(source)
    return read_hub(source)


def read_table(path: Path, key: str, free_text: str, catalogue: Catalogue, flag: str) -> list[tuple[int, Attributes]]:
    """(line number, row) of a CSV file, damage repaired or noted in `catalogue`; every row has a `key`."""
    lines = read_lines(path, catalogue.notes)
    header = split_records(lines[:1], 1)
    columns = [canonical(cell) for cell in header[0][1]] if header else []
    while columns and not columns[-1]:
        columns.pop()
    if key not in columns:
        found = ",".join(header[0][1])[:80] if header else "an empty file"
        raise UserError(f"{flag} {path}: line 1: found `{found}`; expected names of columns with `{key}` among them")
    free = columns.index(free_text) if free_text in columns else None
    records = split_records(lines, len(columns))[1:]
    catalogue.columns, catalogue.rows = columns, catalogue.rows + len(records)
    rows = []
    for line, cells in records:
        fitted, repaired = fit_cells(cells, columns, free)
        if fitted is None:
            catalogue.reject(
                cells[0].strip(), line, "row can't be read", f"{counted(len(cells), 'cell')}, expected {len(columns)}"
            )
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


def _read_jsonl(
    table: Path, key: str, caption: str, catalogue: Catalogue, several: bool = False
) -> list[tuple[int, Attributes]]:
    """(line number, row) of a JSONL file, without lists and objects, which are no attributes."""
    rows = []
    for line, text in enumerate(read_lines(table, catalogue.notes), 1):
        if not text.strip():
            continue
        catalogue.rows += 1
        try:
            row = parse_json(text)
            values = {canonical(name): value for name, value in row.items()}
            cells = {name: clean_cell(value) for name, value in values.items() if not isinstance(value, (list, dict))}
            if several and is_texts(values.get(caption)):
                rows.append((line, cells | {key: str(row[key]), caption: join_captions(values[caption])}))
            elif not isinstance(values.get(caption), (str, type(None))):
                what = f"`{caption}` is {json.dumps(values[caption], ensure_ascii=False)[:60]}; expected one text"
                catalogue.reject(str(row[key]), line, "caption is no text", what, cells)
            else:
                rows.append((line, cells | {key: str(row[key])}))
        except (ValueError, KeyError, AttributeError):
            catalogue.reject("", line, "row can't be read", f"expected a JSON object with `{key}`: {text[:60]}")
    if not catalogue.columns and rows:
        catalogue.columns = list(rows[0][1])
    return rows


def read_styles(source: Source) -> Catalogue:
    """styles.csv and images/<id>.jpg, the layout of the Fashion Product Images dataset."""
    folder, catalogue = Path(source.name), Catalogue("styles.csv")
    rows = read_table(folder / "styles.csv", "id", "name", catalogue, source.flag)
    if not (folder / "images").is_dir():
        if source.images_needed:
            where = f"{source.flag} {folder}: there is a styles.csv but no folder images/ beside it"
            raise UserError(f"{where}; put the images there")
        catalogue.notes.append("there is no folder images/ beside styles.csv")
    by_name = {name: folder / "images" / name for name in list_files(folder / "images") if is_image(name)}
    by_stem: dict[str, Path] = {}
    for name, path in by_name.items():
        by_stem.setdefault(name.rpartition(".")[0], path)
    seen: dict[str, tuple[int, Attributes]] = {}
    for line, row in rows:
        product_id = row.pop("id")
        attributes = {key: value for key, value in row.items() if key != "image"}
        image = by_name.get(row.get("image")) or by_stem.get(product_id)
        if product_id in seen:
            first, values = seen[product_id]
            reason = "row given twice" if values == row else "id used twice"
            catalogue.reject(product_id, line, reason, f"kept line {first}", attributes)
            continue
        seen[product_id] = line, row
        if not FILE_NAME.fullmatch(product_id):
            catalogue.reject(product_id, line, "id is no file name", "expected letters, digits, - and _", attributes)
        elif image is None:
            catalogue.reject(product_id, line, "no image", f"no images/{product_id}.jpg, .png or .webp", attributes)
        else:
            catalogue.products.append(Product(product_id, line, image, None, attributes))
    if unused := len(by_name) - len({one.image for one in catalogue.products}):
        catalogue.notes.append(
            f"images/ holds {counted(unused, 'image')} that {'belongs' if unused == 1 else 'belong'} to no product"
        )
    return catalogue


def make_id(name: str, taken: set[str], nameless: str = "picture") -> str:
    """An id from a file's name, which joins `taken`; `a.png` beside `a.jpg` is `a-png`."""
    stem, _, ending = name.rpartition(".")
    stem = re.sub(r"[^\w.-]+", "_", stem).lstrip("._-") or nameless
    product_id = stem if stem.lower() not in taken else f"{stem}-{ending}"
    while product_id.lower() in taken:  # a name given twice, or one that differs in case only
        product_id += "-2"
    taken.add(product_id.lower())
    return product_id


def read_imagefolder(tables: list[Path], source: Source) -> Catalogue:
    """Folders with metadata.jsonl or metadata.csv, whose `file_name` is relative to the table's own folder."""
    catalogue, key, caption_column = Catalogue("imagefolder"), source.image_column or "file_name", source.caption_column
    caption_column = canonical(caption_column)
    taken: set[str] = set()
    for table in tables:
        folder, files = table.parent, list_files(table.parent)
        listed: dict[str, int] = {}
        prefix = f"{folder.name}/" if len(tables) > 1 else ""
        if table.suffix == ".csv":
            rows = read_table(table, key, caption_column, catalogue, source.flag)
        else:
            rows = _read_jsonl(table, key, caption_column, catalogue, source.several_captions)
        for line, row in rows:
            name, row_id = row.pop(key), f"{prefix}{table.name}:{line}" if prefix else line
            text = row.pop(caption_column, None)
            attributes = {column: value for column, value in row.items() if column != "id"}
            if name not in files:
                catalogue.reject(name, row_id, "no image", f"{folder.name}/{name} is not there", attributes)
            elif name in listed:
                catalogue.reject(name, row_id, "row given twice", f"kept line {listed[name]}", attributes)
            else:
                listed[name] = line
                base = name.rpartition("/")[2] if prefix else name.removeprefix("images/")
                catalogue.products.append(Product(make_id(base, taken), row_id, folder / name, text, attributes))
    used = {one.image for one in catalogue.products}
    for folder, table in {table.parent: table for table in tables}.items():
        unlisted = [name for name in list_files(folder) if is_image(name) and folder / name not in used]
        catalogue.note_names(f"images without a line in {folder.name}/{table.name}", unlisted)
    return catalogue


def read_folder(source: Source) -> Catalogue:
    """Images with their captions in <name>.txt beside them; refuses a folder that holds neither."""
    folder, catalogue = Path(source.name), Catalogue("image folder")
    taken: set[str] = set()
    files = list_files(folder)
    other: Counter[str] = Counter()
    guessed: list[str] = []
    for name in files:
        stem, dot, ending = name.rpartition(".")
        if is_image(name):
            caption = folder / f"{stem}.txt"
            lines, not_utf8 = decode_lines(read_file(caption)) if f"{stem}.txt" in files else ([], 0)
            guessed += [f"{stem}.txt"] * bool(not_utf8)
            text = " ".join(lines)
            if odd := NO_TEXT.search(text):
                catalogue.reject(name, name, "caption is no text", f"{stem}.txt holds {odd[0]!r}; remove or rewrite it")
            else:
                product_id = make_id(name, taken)
                caption_text = join_captions(lines) if source.several_captions else clean_cell(text)
                catalogue.products.append(Product(product_id, name, folder / name, caption_text, {}))
        elif ending.lower() in ("heic", "heif"):
            catalogue.reject(name, name, "HEIC is not read", CONVERT)
        elif ending != "txt":
            other[dot + ending] += 1
    for link in sorted(path for path in folder.rglob("[!.]*") if is_image(path.name) and not path.exists()):
        name = link.relative_to(folder).as_posix()
        catalogue.reject(name, name, "broken link", f"{os.readlink(link)} is not there")
    stems = {name.rpartition(".")[0] for name in files if not name.endswith(".txt")}
    unused = [name for name in files if name.endswith(".txt") and name.removesuffix(".txt") not in stems]
    catalogue.note_names("captions without an image", unused)
    catalogue.note_names("captions not in UTF-8, read as Latin-1", guessed)
    if other:
        counts = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in sorted(other.items()))
        advice = "; rename .caption to .txt" if ".caption" in other else ""
        catalogue.notes.append(f"other files, not read: {counts}{advice}")
    if not (catalogue.products or catalogue.rejected):
        tables = ", ".join(name for name in files if name.endswith(".csv"))
        hint = f"found {tables or counted(len(files), 'other file')}" if files else "it is empty"
        expected = f"styles.csv + images/, a metadata.jsonl or .csv, or images ({', '.join(IMAGE_TYPES)})"
        raise UserError(f"{source.flag} {folder}: {hint}; expected {expected}")
    catalogue.rows = len(catalogue.products) + len(catalogue.rejected)
    return catalogue


def load_dataset(source: Source) -> "datasets.Dataset":
    """A split of a dataset of the hub, or of a folder that `datasets` has saved or can load."""
    name, path = source.name, Path(source.name)
    if not path.exists() and (name.count("/") != 1 or name[0] in "./~" or path.parent.is_dir()):
        raise UserError(f"{source.flag} {name}: no such folder (a hub dataset is named owner/name)")
    import datasets  # after the check of the name: the import takes seconds

    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            dataset = datasets.load_from_disk(name)
            return dataset[source.split] if isinstance(dataset, datasets.DatasetDict) else dataset
        return datasets.load_dataset(name, source.config, split=source.split)
    except Exception as error:  # of the network, the hub, the loader: a dozen types
        flag = " (--dataset_split)" if source.flag in ("--catalogue", "--recordings") else ""
        what = f"its split {source.split}{flag} can't be read" if path.exists() else "no such folder; as a hub id"
        raise UserError(f"{source.flag} {name}: {what}: {hub_failure(error)}") from error


def read_hub(source: Source) -> Catalogue:
    """A dataset that `datasets` can load; images are read when they are needed."""
    dataset, image_column = load_dataset(source), source.image_column or "image"
    import datasets

    if image_column not in dataset.column_names:
        names = ", ".join(dataset.column_names)
        raise UserError(f"--image_column {image_column}: {source.name} has the columns {names}")
    catalogue = Catalogue("datasets", columns=list(dataset.column_names), rows=len(dataset))
    catalogue.dataset = dataset.cast_column(image_column, datasets.Image(decode=False)).select_columns([image_column])
    caption_column = canonical(source.caption_column)
    seen: dict[str, int] = {}
    for index, row in enumerate(plain_rows(dataset, image_column, caption_column)):
        text = row.pop(caption_column, None)
        attributes = {key: clean_cell(value) for key, value in row.items()}
        product_id = attributes.pop("id", None) or f"{index:06d}"
        if source.several_captions and is_texts(text):
            text = join_captions(text)
        else:
            text = clean_cell(text[0] if isinstance(text, list) and text else text)
        if product_id in seen:
            catalogue.reject(product_id, index, "id used twice", f"kept row {seen[product_id]}", attributes)
        elif not FILE_NAME.fullmatch(product_id):
            catalogue.reject(product_id, index, "id is no file name", "expected letters, digits, - and _", attributes)
        else:
            seen[product_id] = index
            catalogue.products.append(Product(product_id, index, index, text, attributes))
    return catalogue


def plain_rows(dataset: "datasets.Dataset", data_column: str, text_column: str) -> Iterable[dict[str, Any]]:
    """The rows without images, sounds, embeddings and boxes, which are not attributes; classes by name."""
    import datasets

    plain = (datasets.Value, datasets.ClassLabel)
    features = dataset.features.items()
    columns = [key for key, kind in features if isinstance(kind, plain) or canonical(key) == text_column]
    table = dataset.select_columns([key for key in columns if key != data_column])
    classes = {key: value for key, value in table.features.items() if isinstance(value, datasets.ClassLabel)}
    for row in table if table.column_names else ({} for _ in range(len(dataset))):
        named = {key: classes[key].int2str(v) if key in classes and v is not None else v for key, v in row.items()}
        yield {canonical(key): value for key, value in named.items()}


def file_or_bytes(dataset: "datasets.Dataset | None", place: Path | int) -> Path | bytes:
    """Where an image or a sound is: its file, or the encoded bytes in a row of a dataset of one column."""
    if isinstance(place, Path):
        return place
    cell = next(iter(dataset[place].values())) or {}
    return cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else b"")


# The rows of a damaged CSV file: other encodings, torn rows, open quotes. Not `pandas.read_csv(on_bad_lines=...)`: it
# reports only rows that are too long, without their line number, fills short ones with NaN, loses the rows after an
# open quote, and reads one encoding per file.


def canonical(column: str) -> str:
    """`baseColour` -> `colour`; a column that has no short name keeps its own."""
    return NAMES.get(column.strip().lower(), column.strip())


def clean_cell(value: object) -> str | None:
    """A cell's text without stray blanks; None for a missing value; 2012.0, which pandas writes, is 2012."""
    text = " ".join(str(value if value is not None else "").split())
    return None if text.lower() in MISSING else re.sub(r"^(\d+)\.0$", r"\1", text)


def decode_lines(data: bytes) -> tuple[list[str], int]:
    """The lines of a text file without BOM, and how many were not UTF-8 and have been read as Windows' Latin-1."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace").splitlines(), 0
    lines, odd = [], 0
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            odd += 1
            lines.append(line.decode("cp1252", errors="replace"))
    return lines, odd


def read_lines(path: Path, notes: list[str]) -> list[str]:
    """The lines of a table; `notes` gets how many were not UTF-8."""
    lines, odd = decode_lines(read_file(path))
    if odd:
        notes.append(f"{path.name}: {counted(odd, 'line')} not in UTF-8, read as Latin-1")
    return lines


def split_records(lines: list[str], columns: int, mark: str = ",") -> list[tuple[int, list[str]]]:
    """(line number, cells) of each record. A quote that is never closed is a plain character; no row is lost by it."""
    records, at = [], 0
    while at < len(lines):
        cells, taken = _split_record(lines, at, columns, mark)
        if cells:
            records.append((at + 1, cells))
        at += taken
    return records


def _split_record(lines: list[str], at: int, columns: int, mark: str) -> tuple[list[str], int]:
    """The cells of the record that begins at line `at`, and how many lines it takes.

    A quoted cell may hold line ends, but no line that looks like a record of its own.
    """
    for taken in range(1, 21):
        try:
            rows = list(csv.reader([line + "\n" for line in lines[at : at + taken]], strict=True, delimiter=mark))
            return (rows[0] if rows else []), taken
        except csv.Error:
            after = lines[at + taken : at + taken + 1]
            if not after or after[0].count(mark) >= columns - 1:
                break
    return lines[at].split(mark), 1


def fit_cells(cells: list[str], columns: list[str], free: int | None, mark: str = ",") -> tuple[list[str] | None, bool]:
    """Cells that match the columns, and whether that took a repair; None if they can't be matched.

    Column `free` holds free text: unquoted marks (commas) in it have torn the row, so it takes the surplus cells; in a
    row that was cut short it is empty.
    """
    while len(cells) > len(columns) and not cells[-1].strip():
        cells = cells[:-1]
    over = len(cells) - len(columns)
    if over == 0:
        return cells, False
    if free is None or len(cells) < free or (over < 0 and free < len(columns) - 1):
        return None, False
    if over > 0:
        cells = [*cells[:free], mark.join(cells[free : free + over + 1]), *cells[free + over + 1 :]]
    else:
        cells = [*cells, *[""] * -over]
    year = clean_cell(cells[columns.index("year")]) if "year" in columns else None
    return (None, False) if year and not year.isdigit() else (cells, True)
