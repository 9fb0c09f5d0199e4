"""Texts to be spoken: from the command line or a file, checked, and cut into the pieces that a voice reads at once."""

import argparse
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech.dataset import parse_rows, require_text
from speech.normalise import LANGUAGES
from speech.sentences import MOST_CHARACTERS, Pause, Piece, split_sentences
from speech.voices import Voice, known_characters, read_aloud
from utils.cli import Range, UserError, counted
from utils.devices import HIGHEST_SEED
from utils.files import read_text

FLAG = "--text_file"
MOST = 1_000_000  # the number in a sound's name has six digits
SEEDS = Range(0, HIGHEST_SEED, int)
COLUMNS = ("id", "speaker", "seed")
# The rules for the languages that voices name by the codes of ISO 639-3, as MMS does, or of 639-1.
RULES = {"por": "pt-br", "pt": "pt-br", "eng": "en", "en-us": "en", "en-gb": "en"}
# Seconds after a piece, at the voice's own speaking rate.
PAUSES: dict[Pause, float] = {"word": 0.05, "clause": 0.2, "sentence": 0.4, "paragraph": 0.8}


@dataclass(frozen=True)
class Line:
    """One utterance to make; without a speaker or a seed, those of the command line."""

    id: str
    text: str
    speaker: str = ""
    seed: int | None = None


def read_lines(text: str | None, file: Path | None) -> list[Line]:
    """The texts of the one source that is given."""
    if (text is None) == (file is None):
        raise UserError(
            "there is no text; give --text or --text_file"
            if text is None
            else f"--text excludes --text_file {file}; leave one out"
        )
    if file is None:
        if not (text or "").strip():
            raise UserError("--text: is empty; say what is to be spoken")
        return [Line("000000", text or "")]
    content = _read(file)
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".csv"):
        rows = (
            parse_rows(content, f"{FLAG} {file}", "an object with `text`")
            if suffix == ".jsonl"
            else _read_csv(file, content)
        )
        lines = [_make_line(row, i, where) for i, (where, row) in enumerate(rows)]
    else:
        texts = [one.strip() for one in content.split("\n")]
        lines = [Line(f"{i:06d}", one) for i, one in enumerate(one for one in texts if one)]
    if not lines:
        raise UserError(f"{FLAG} {file}: holds no text; write one per line")
    if len(lines) > MOST:
        raise UserError(f"{FLAG} {file}: has {len(lines):,} texts; a set can have {MOST:,}; divide the file")
    seen: dict[str, int] = {}
    for i, one in enumerate(lines):
        if seen.setdefault(one.id, i) != i:
            raise UserError(f"{FLAG} {file}: `id: {one.id}` is there twice; give each text its own")
    return lines


def _read(file: Path) -> str:
    try:
        return read_text(file, "utf-8-sig")
    except OSError as error:
        raise UserError(f"{FLAG} {file}: {error.strerror}; give a .txt, .jsonl or .csv file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{FLAG} {file}: not UTF-8 text (byte {error.start:,}); save it as UTF-8") from None


def _read_csv(file: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.DictReader(content.splitlines(keepends=True))
    if "text" not in (rows.fieldnames or ()):
        found = ", ".join(rows.fieldnames or ())[:80]
        raise UserError(f"{FLAG} {file}: its first line is `{found}`; expected the names of columns, `text` among them")
    try:
        for number, row in enumerate(rows, 1):
            yield f"{FLAG} {file}, row {number}", row
    except csv.Error as error:
        raise UserError(f"{FLAG} {file}, line {rows.line_num}: {error}; expected a CSV file") from None


def _make_line(row: dict[str, Any], index: int, where: str) -> Line:
    """A row's text with its id (or its file's, or its index), speaker, seed; of a prepared dataset, `raw_text`."""
    given = {name: row.get(name) for name in COLUMNS if row.get(name) not in (None, "")}
    raw = {"text": row["raw_text"]} if row.get("raw_text") else {}
    text = require_text(row | raw, where, "what is to be spoken")
    speaker, seed = given.get("speaker", ""), given.get("seed")
    if seed is not None:
        try:
            seed = SEEDS(str(seed))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{where}: `seed` is {error}") from None
    stem = Path(str(row.get("file_name") or "")).stem
    return Line(str(given.get("id") or stem or f"{index:06d}"), text, str(speaker), seed)


def rules_of(language: str | None) -> str:
    """The rules for a voice's language, by which its texts are read; `none` where there are none."""
    known = RULES.get((language or "").lower(), (language or "").lower())
    return known if known in LANGUAGES else "none"


def cut_text(text: str, language: str) -> list[Piece]:
    """The pieces to be spoken one by one. `none`: as they are written, numbers and abbreviations too."""
    if language != "none":
        return split_sentences(text, language)
    pieces: list[Piece] = []
    for paragraph in filter(str.strip, re.split(r"\n\s*\n", text)):
        for sentence in re.split(r"(?<=[.!?…。！？])\s+", paragraph.strip()):
            *parts, last = _between_words(sentence)
            pieces += [*(Piece(part, "word") for part in parts), Piece(last, "sentence")]
        pieces[-1] = pieces[-1]._replace(pause="paragraph")
    return pieces


def _between_words(sentence: str, most: int = MOST_CHARACTERS) -> list[str]:
    """The sentence in parts of at most so many characters, but for words that are longer."""
    parts: list[str] = []
    for word in sentence.split():
        if parts and len(parts[-1]) + len(word) < most:
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts


def language_of(voice: Voice) -> str:
    """The rules by which a voice's texts are read; `none` where its language has none."""
    return rules_of(getattr(voice.model.config, "language", "") or voice.tokenizer.language)


def read_pieces(voice: Voice, texts: list[str], language: str) -> list[list[Piece]]:
    """The pieces of each text as the voice reads them: in phonemes, if it was trained on them.

    Those without a character that it knows are left out.
    """
    cut = [cut_text(one, language) for one in texts]
    read = iter(read_aloud(voice, [piece.text for pieces in cut for piece in pieces]))
    aloud = [[piece._replace(text=next(read)) for piece in pieces] for pieces in cut]
    return [[piece for piece in pieces if known_characters(voice, piece.text)] for pieces in aloud]


def describe_lines(lines: list[Line], pieces: int, language: str) -> str:
    read = "read as it is written" if language == "none" else f"read by the rules of {language}"
    return f"{counted(len(lines), 'text')}, {counted(pieces, 'sentence')}, {read}"
