"""Choose the products of a catalogue, check the columns that flags name, and notice when the catalogue has changed."""

import difflib
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from utils.catalogue import Catalogue, Product, Rejected
from utils.cli import UserError

# The reasons that make a row unusable; with all others only its image is missing or bad.
UNREADABLE = ("row can't be read", "no id", "no file_name")
REPEATED = ("row given twice", "id used twice")


class Selection(NamedTuple):
    products: list[Product]
    rejected: list[Rejected]
    categories: dict[str, int]  # how many rows each has, the most frequent first


def select_products(found: Catalogue, wanted: list[str] | None, column: str) -> Selection:
    """The products and rejected rows of the wanted categories (None: all); refuses a category that no row has."""
    rows: list[Product | Rejected] = [*found.products, *found.rejected]
    named = [value for one in rows if (value := one.attributes.get(column))]
    counts = dict(Counter(named).most_common())
    if not wanted:
        return Selection(found.products, found.rejected, counts)
    names = {name.lower(): name for name in counts}
    if not names:
        raise UserError(f"--category: the catalogue has no column `{column}` (found: {', '.join(found.columns)})")
    for name in wanted:
        if name.lower() not in names:
            near = difflib.get_close_matches(name.lower(), names, n=3) or list(names)[:5]
            choice = ", ".join(f'"{names[key]}" ({counts[names[key]]})' for key in near)
            raise UserError(f'--category "{name}": no product has this {column}; there are {choice}')
    lower = {name.lower() for name in wanted}
    products = [one for one in found.products if (one.attributes.get(column) or "").lower() in lower]
    rejected = [one for one in found.rejected if (one.attributes.get(column) or wanted[0]).lower() in lower]
    return Selection(products, rejected, counts)


def rows_without_image(rejected: list[Rejected]) -> list[Rejected]:
    """The rows that the table describes well, for an analysis of the table alone."""
    return [one for one in rejected if one.reason not in UNREADABLE + REPEATED]


def check_columns(flag: str, names: list[str], columns: list[str]) -> None:
    """Refuse a column that the catalogue does not have."""
    for name in names:
        if name not in columns:
            raise UserError(f"{flag} {name}: there is no such column; there are {', '.join(columns) or 'none'}")


def source_fingerprint(found: Catalogue, products: list[Product], rejected: list[Rejected]) -> str:
    """Changes with any row, and with the size or time of any image; no image is read.

    It stands in datasets that exist: what is hashed, and in which order, must stay as it is.
    """
    digest = hashlib.sha256()
    if found.dataset is not None:
        digest.update(found.dataset._fingerprint.encode())
    for one in products:
        stat = one.image.stat() if isinstance(one.image, Path) else None
        facts = [one.id, one.row, one.text, one.attributes, stat and (stat.st_size, stat.st_mtime_ns)]
        digest.update(json.dumps(facts).encode())
    digest.update(json.dumps([_in_order(one) for one in rejected]).encode())
    return digest.hexdigest()


def _in_order(one: Rejected) -> dict[str, object]:
    values = vars(one)
    if one.reason == "no caption":
        return {key: values[key] for key in ("id", "row", "attributes", "reason", "detail")}
    return values
