"""The rows of a damaged CSV file: other encodings, torn rows, open quotes, words that mean a missing value.

Not `pandas.read_csv(on_bad_lines=...)`: it reports only rows that are too long, without their line number, fills short
ones with NaN, loses the rows after an open quote, and reads one encoding per file.
"""

import csv
import re

# The names that captions and flags use for the columns of the Fashion Product Images dataset and similar ones.
NAMES = {"basecolour": "colour", "basecolor": "colour", "color": "colour", "articletype": "article"}
NAMES |= {"productdisplayname": "name"}
NAMES |= {name: name for name in ("id", "article", "colour", "gender", "season", "year", "usage")}  # in any case
MISSING = ("", "na", "n/a", "nan", "none", "null")


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


def split_records(lines: list[str], columns: int) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each record. A quote that is never closed is a plain character; no row is lost by it."""
    records, at = [], 0
    while at < len(lines):
        cells, taken = _split_record(lines, at, columns)
        if cells:
            records.append((at + 1, cells))
        at += taken
    return records


def _split_record(lines: list[str], at: int, columns: int) -> tuple[list[str], int]:
    """The cells of the record that begins at line `at`, and how many lines it takes.

    A quoted cell may hold line ends, but no line that looks like a record of its own.
    """
    for taken in range(1, 21):
        try:
            rows = list(csv.reader([line + "\n" for line in lines[at : at + taken]], strict=True))
            return (rows[0] if rows else []), taken
        except csv.Error:
            after = lines[at + taken : at + taken + 1]
            if not after or after[0].count(",") >= columns - 1:
                break
    return lines[at].split(","), 1


def fit_cells(cells: list[str], columns: list[str], free: int | None) -> tuple[list[str] | None, bool]:
    """Cells that match the columns, and whether that took a repair; None if they can't be matched.

    Column `free` holds free text: unquoted commas in it have torn the row, so it takes the surplus cells; in a row that
    was cut short it is empty.
    """
    while len(cells) > len(columns) and not cells[-1].strip():
        cells = cells[:-1]
    over = len(cells) - len(columns)
    if over == 0:
        return cells, False
    if free is None or len(cells) < free or (over < 0 and free < len(columns) - 1):
        return None, False
    if over > 0:
        cells = [*cells[:free], ",".join(cells[free : free + over + 1]), *cells[free + over + 1 :]]
    else:
        cells = [*cells, *[""] * -over]
    year = clean_cell(cells[columns.index("year")]) if "year" in columns else None
    return (None, False) if year and not year.isdigit() else (cells, True)
