"""The text of a CSV file as rows, whatever was done to it: encodings, torn rows, open quotes, words for nothing."""

import csv
import re

# The names that captions and flags use for the columns of the Fashion Product Images dataset and its kin.
NAMES = {"basecolour": "colour", "basecolor": "colour", "color": "colour", "articletype": "article"}
NAMES |= {"productdisplayname": "name"}
NAMES |= {
    name: name for name in ("id", "article", "colour", "gender", "season", "year", "usage")
}  # whatever their case
MISSING = ("", "na", "n/a", "nan", "none", "null")


def canonical(column: str) -> str:
    """`baseColour` -> `colour`; a column that has no short name keeps its own."""
    return NAMES.get(column.strip().lower(), column.strip())


def clean_cell(text) -> str | None:
    """A cell without stray blanks; None where it says nothing; 2012.0, which pandas writes, is 2012."""
    text = " ".join(str(text if text is not None else "").split())
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
    """(line number, cells) per record. A quote that is never closed is a plain character and swallows no rows."""
    records, at = [], 0
    while at < len(lines):
        taken = 1
        while True:  # a quoted cell may hold line ends, but not something that looks like a record of its own
            chunk = lines[at : at + taken]
            try:
                parsed = list(csv.reader([line + "\n" for line in chunk], strict=True))
                break
            except csv.Error:
                after = lines[at + taken : at + taken + 1]
                if taken == 20 or not after or after[0].count(",") >= columns - 1:
                    parsed, taken = [lines[at].split(",")], 1
                    break
                taken += 1
        if parsed and parsed[0]:
            records.append((at + 1, parsed[0]))
        at += taken
    return records


def fit_cells(cells: list[str], columns: list[str], free: int | None) -> tuple[list[str] | None, bool]:
    """Cells that match the columns, and whether that took a repair; None where they can't be matched.

    Column `free` is free text: unquoted commas in it have torn the row, so it takes what is over; cut off, it is empty.
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
