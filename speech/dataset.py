"""Datasets of speech on disk: what prepare_speech.py wrote, or a plain audiofolder with metadata.jsonl."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import soundfile

from utils.cli import UserError
from utils.dataset import CHANGED, verified_sums
from utils.files import find_changed, open_regular, parse_json, read_object, read_text

FORMAT = "prepared speech 1"
MAKE = "make it with prepare_speech.py"
TABLE = "metadata.jsonl"
# The names that the column of texts has in corpora; the first that there is counts.
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence", "texto", "transcrição", "transcricao", "frase")


@dataclass(frozen=True)
class Utterance:
    """One sound file with its text, which is what the model reads: normalised, or phonemes."""

    id: str
    path: Path
    text: str
    speaker: str  # "" where nobody said it
    seconds: float
    rate: int
    sha256: str = field(default="", compare=False)  # of the file, where reading the dataset has checked it
    prosody: tuple[float, float] | None = field(default=None, compare=False)  # see speech/prosody.py, where measured


def is_prepared(folder: Path) -> bool:
    return (folder / "metadata.json").is_file()


def read_metadata(folder: Path, flag: str) -> dict[str, Any]:
    """metadata.json of a dataset that prepare_speech.py made; refuses any other folder."""
    metadata = read_object(folder / "metadata.json", f"the metadata.json of a dataset of speech; {MAKE}", flag)
    needed = {"options", "counts", "speakers", "fingerprint"}
    if metadata.get("format") != FORMAT or not needed <= metadata.keys():
        raise UserError(f"{flag} {folder}: its metadata.json is not of a dataset of speech (`{FORMAT}`); {MAKE}")
    return metadata


def read_language(folder: Path, flag: str) -> tuple[str, str] | None:
    """The language of a prepared dataset, and what made phonemes of its texts or ""; None of a plain audiofolder."""
    if not is_prepared(folder):
        return None
    options = read_metadata(folder, flag)["options"]
    return str(options.get("language") or ""), str(options.get("phonemes") or "")


def read_utterances(folder: Path, flag: str) -> tuple[list[Utterance], list[Utterance]]:
    """The utterances to train with and the held-out ones (val); of a plain audiofolder, all are to train with.

    A prepared dataset's files must be as they were written. One without metadata.json may have its splits as folders.
    """
    if is_prepared(folder) or (folder / "train" / TABLE).is_file():
        has_val = is_prepared(folder) or (folder / "val" / TABLE).is_file()
        return read_split(folder, "train", flag), read_split(folder, "val", flag) if has_val else []
    return list(_read_audiofolder(folder, flag)), []


def read_split(folder: Path, split: str, flag: str) -> list[Utterance]:
    """The utterances of one split, in the order of its table; of a prepared dataset, files that changed are refused."""
    if not is_prepared(folder):
        return list(_read_audiofolder(folder / split, flag))
    rate = read_metadata(folder, flag)["options"]["sampling_rate"]
    try:
        sums = verified_sums(folder, "metadata.json", f"{split}/{TABLE}")
    except UserError as error:
        raise UserError(f"{flag} {error}") from None
    of_split = {name: digest for name, digest in sums.items() if name.startswith(f"{split}/audio/")}
    if changed := find_changed(folder, of_split):
        raise UserError(f"{flag} {folder / changed[0]} is missing or {CHANGED}; prepare the dataset again")
    found = []
    for where, record in read_records(folder / split / TABLE, flag):
        digest = of_split.get(f"{split}/{record['file_name']}", "")
        found.append(replace(_utterance(folder / split, record, where, record.get("seconds"), rate), sha256=digest))
    return found


def read_records(path: Path, flag: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a metadata.jsonl, each with the words that name it in a message."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or error
        raise UserError(f"{flag} {path}: {wrong}; expected a dataset of speech; {MAKE}") from None
    expected = "a JSON object with `file_name` and `text`"
    for where, record in parse_rows(text, f"{flag} {path}", expected):
        if not isinstance(record.get("file_name"), str):
            raise UserError(f"{where}: expected {expected}, found {str(record)[:60]}")
        yield where, record


def parse_rows(text: str, name: str, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL text, each with the words that name its line; `expected`: what a message asks for."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                row = parse_json(line)
            except ValueError as error:
                raise UserError(f"{where}: not JSON ({error}); expected {expected}") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected {expected}, found {line[:60]}")
            yield where, row


def require_text(record: dict[str, Any], where: str, expected: str) -> str:
    """The `text` of a row; one without is refused, with the keys that there are."""
    text = record.get("text")
    if isinstance(text, str) and text.strip():
        return text
    found = f"`text` is {text!r}" if "text" in record else f"there is no `text` among {', '.join(record)}"
    raise UserError(f"{where}: {found}; expected {expected}")


def _utterance(base: Path, record: dict[str, Any], where: str, seconds: object, rate: int) -> Utterance:
    text = require_text(record, where, f"what is said in {record['file_name']}")
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        raise UserError(f"{where}: `seconds` is {seconds!r}; expected the length of {record['file_name']}")
    name = str(record.get("id") or Path(record["file_name"]).stem)
    return Utterance(name, base / record["file_name"], text, str(record.get("speaker") or ""), float(seconds), rate)


def describe_unprepared(folder: Path) -> str:
    """What a folder without metadata.jsonl lacks, and the command that prepares recordings."""
    if not folder.is_dir():
        return f"there is no such folder; {MAKE}"
    name = shlex.quote(f"data/{folder.resolve().name}_prepared")
    command = f"python prepare_speech.py --recordings {shlex.quote(str(folder))} --output_dir {name}"
    return f"there is no {TABLE} in it; prepare the recordings with `{command}`, then give {name}"


def _read_audiofolder(folder: Path, flag: str) -> Iterator[Utterance]:
    table = folder / TABLE
    if not table.is_file():
        raise UserError(f"{flag} {folder}: {describe_unprepared(folder)}")
    for where, record in read_records(table, flag):
        path = folder / record["file_name"]
        try:
            with open_regular(path) as file:
                found = soundfile.info(file)
        except (OSError, soundfile.LibsndfileError) as error:
            wrong = getattr(error, "strerror", None) or "is no sound file that libsndfile reads"
            raise UserError(f"{where}: {path}: {wrong}; expected a WAV, FLAC, MP3 or Ogg file") from None
        named = next(({"text": record[column]} for column in TEXT_COLUMNS if column in record), {})
        yield _utterance(folder, record | named, where, found.duration, found.samplerate)
