"""Read recordings and their texts from the layouts that corpora of speech have, and say what is wrong with them.

No row is dropped without a reason: each is a recording, or it is in `rejected`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from speech.audio import SOUND_TYPES
from speech.dataset import TEXT_COLUMNS
from utils import catalogue
from utils.catalogue import Attributes, Rejected, decode_lines, make_id, read_lines
from utils.cli import UserError, counted, name_some
from utils.files import list_files, parse_json, read_file

if TYPE_CHECKING:
    import datasets

# The names that columns have in corpora, in any case; the first that a table has counts.
AUDIO_COLUMNS = ("file_name", "wav_filename", "audio_file", "audio", "path", "file", "arquivo", "áudio", "caminho")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "speaker_name", "client_id", "locutor", "locutora", "falante", "voz")
OTHER_COLUMNS = ("book", "chapter", "gender", "accent", "livro")  # which are kept, as --disjoint may name one
HEADERLESS = ("file", "speaker", "raw_text", "text", "-")  # what --columns may name
PARTS = ("train.csv", "dev.csv", "val.csv", "validation.csv", "test.csv")
PLACES = ("wavs", "wav", "audio", "clips")  # folders whose name says nothing of the sounds in them
M4A = (".m4a", ".mp4", ".aac", ".wma")
EXPECTED = (
    "LJSpeech's metadata.csv + wavs/, Piper's metadata.csv, texts.csv with ==, a CSV with names of columns, "
    "metadata.jsonl, or sound files with <name>.txt beside them"
)


@dataclass(frozen=True)
class Source:
    """Recordings to read; messages name its `flag`. Columns without a name are found by those that corpora use."""

    name: str  # a folder or a hub id
    flag: str = "--recordings"
    audio_column: str | None = None
    text_column: str | None = None
    speaker_column: str | None = None
    columns: tuple[str, ...] = ()  # of a table without a header
    config: str | None = None  # of a hub dataset, as `split`
    split: str = "train"


@dataclass(frozen=True)
class Recording:
    id: str
    row: int | str  # file:line of its table, the row of a hub dataset, or the file's name
    sound: Path | int  # a file, or a row of Recordings.dataset
    text: str | None
    attributes: Attributes = field(default_factory=dict)  # speaker, book and others
    span: tuple[float, float] | None = None  # the seconds of its file that it is, if not all of them

    @property
    def speaker(self) -> str:
        return self.attributes.get("speaker") or ""


@dataclass
class Recordings:
    kind: str
    found: list[Recording] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a person should know
    dataset: "datasets.Dataset | None" = None  # of the hub: `sound` is a row of it

    @property
    def rows(self) -> int:
        return len(self.found) + len(self.rejected)

    def reject(self, name: str, row: int | str, reason: str, detail: str = "") -> None:
        self.rejected.append(Rejected(name, row, reason, detail))

    def note_names(self, what: str, names: list[str]) -> None:
        if names:
            self.notes.append(f"{what}: {name_some(names)}")


def reject_recording(one: Recording, reason: str, detail: str = "") -> Rejected:
    return Rejected(one.id, one.row, reason, detail, one.attributes)


def is_sound(name: str) -> bool:
    return name.lower().endswith(SOUND_TYPES)


def read_recordings(source: Source) -> Recordings:
    """The recordings; of several layouts texts.csv comes first, then metadata.jsonl, other tables, and sound files."""
    folder = Path(source.name)
    if folder.is_file():
        raise UserError(f"{source.flag} {source.name}: is a file; give the folder it is in")
    saved = folder.is_dir() and any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))
    if not folder.is_dir() or saved:
        return read_hub(source)
    read, tables = find_tables(folder)
    if not tables and any(folder.rglob("*.parquet")):
        return read_hub(source)
    found = Recordings("") if tables else read_folder(source)
    files = [name for name in list_files(folder) if is_sound(name)] if tables else []
    for path in tables:
        add_rows(found, path, read(path, source, found), folder, files)
    used = {one.sound for one in found.found}
    found.note_names("sounds without a row", [name for name in files if folder / name not in used])
    name_folders(found, source)
    return found


def find_tables(folder: Path) -> tuple["Reader", list[Path]]:
    """The tables that a folder holds, and what reads them."""
    texts, own = folder / "texts.csv", folder / "metadata.csv"
    if texts.is_file() and b"==" in read_file(texts):
        return read_texts, [texts]
    jsonl = [path for path in [folder / "metadata.jsonl", *sorted(folder.glob("*/metadata.jsonl"))] if path.is_file()]
    parts = [folder / name for name in PARTS if (folder / name).is_file()]
    return (read_jsonl, jsonl) if jsonl else (read_table, [own] if own.is_file() else parts)


# Tables: each reader yields (name of the row, cells by column) of the rows that it can read, and rejects the others.

Row = tuple[str, Attributes]
Reader = Callable[[Path, Source, Recordings], Iterator[Row]]


def name_row(path: Path, source: Source, line: int) -> str:
    return f"{path.relative_to(source.name).as_posix()}:{line}"


def add_rows(found: Recordings, table: Path, rows: Iterator[Row], folder: Path, files: list[str]) -> None:
    """Add the recordings of a table's rows, whose `file` is looked for in the table's folder."""
    base = table.parent.relative_to(folder).as_posix()
    inside = {name.removeprefix(f"{base}/"): name for name in files if base == "." or name.startswith(f"{base}/")}
    index = index_sounds(list(inside))
    taken = {one.id.lower() for one in found.found}
    listed: dict[str, str] = {}
    elsewhere: list[str] = []
    for where, row in rows:
        name, text = row.pop("file") or "", row.pop("text", None)
        matches = find_sounds(index, name)
        if not name:
            found.reject("", where, "row can't be read", "it names no sound file")
        elif not matches:
            found.reject(name, where, "no sound", f"there is no {name} in {table.parent.name}/")
        elif len(matches) > 1:
            found.reject(name, where, "sound is ambiguous", f"there are {' and '.join(matches[:3])}")
        elif matches[0] in listed:
            found.reject(name, where, "row given twice", f"kept {listed[matches[0]]}")
        elif not text:
            found.reject(name, where, "no text", f"the row of {matches[0]} has none")
        else:
            listed[matches[0]] = where
            elsewhere += [] if is_where_it_says(name, matches[0]) else [f"{name} at {inside[matches[0]]}"]
            given = f"{base}/{name}" if base != "." else name
            recording_id = make_id(short_name(given, matches[0]), taken, "sound")
            found.found.append(Recording(recording_id, where, folder / inside[matches[0]], text, row))
    found.note_names(f"{counted(len(elsewhere), 'sound')} in another place than the row says", elsewhere)


def short_name(name: str, sound: str) -> str:
    """A sound's name in its table, without folders that say nothing, and with the ending of its file."""
    ending = Path(sound).suffix
    parts = plain_path(name).removesuffix(ending).split("/")
    return "/".join([*(part for part in parts[:-1] if part.lower() not in (*PLACES, ".", "")), parts[-1]]) + ending


def index_sounds(files: list[str]) -> dict[str, list[str]]:
    """{name of a sound as a table may give it: files}: with and without its ending and the folders above it."""
    index: dict[str, list[str]] = {}
    for name in files:
        parts = name.split("/")
        for tail in ("/".join(parts[i:]) for i in range(len(parts))):
            index.setdefault(tail, []).append(name)
            index.setdefault(tail.rpartition(".")[0], []).append(name)
    return index


def find_sounds(index: dict[str, list[str]], name: str) -> list[str]:
    """The files that a table's name may mean: that path, or one below it; or without folders that lead to the corpus.

    speakers/a/1.wav is never b/1.wav.
    """
    name = plain_path(name)
    found = index.get(name, [])
    exact = [one for one in found if name in (one, one.rpartition(".")[0])]
    parts = name.split("/")
    for i in range(1, len(parts)):
        tail = "/".join(parts[i:])
        exact = exact or [one for one in index.get(tail, []) if tail in (one, one.rpartition(".")[0])]
    return exact or found


def plain_path(name: str) -> str:
    """A path in a table, as list_files writes it."""
    return name.strip().replace("\\", "/").removeprefix("./")


def is_where_it_says(name: str, sound: str) -> bool:
    """Whether a sound is at the path that a table gives, or there in a folder for sounds, such as wavs/."""
    first, _, rest = sound.partition("/")
    places = (sound, rest) if first.lower() in PLACES else (sound,)
    return any(plain_path(name) in (one, one.rpartition(".")[0]) for one in places)


def clean_text(value: object) -> str | None:
    """A text without stray blanks, or None; not catalogue.clean_cell, for which `Na` is missing: it is a word."""
    return " ".join(str(value if value is not None else "").split()) or None


def pick_column(names: list[str], given: str | None, known: tuple[str, ...], flag: str) -> str | None:
    """The column that a flag names, or else the first of those that corpora use."""
    if given and given not in names:
        raise UserError(f"{flag} {given}: there is no such column; there are {', '.join(names)}")
    plain = {name.casefold(): name for name in reversed(names)}
    return given or next((plain[one] for one in known if one in plain), None)


def name_cells(names: list[str], source: Source) -> dict[str, str]:
    """{column of a table: file, text, speaker or another attribute}; it may lack file or text."""
    folders = source.speaker_column == "folder"  # see name_folders
    chosen = {
        "file": pick_column(names, source.audio_column, AUDIO_COLUMNS, "--audio_column"),
        "text": pick_column(names, source.text_column, TEXT_COLUMNS, "--text_column"),
        "speaker": None if folders else pick_column(names, source.speaker_column, SPEAKER_COLUMNS, "--speaker_column"),
    }
    return {column: name for name, column in chosen.items() if column} | {
        name: name.casefold() for name in names if name.casefold() in OTHER_COLUMNS
    }


def refuse_columns(source: Source, kind: str) -> None:
    """Refuse a flag that names columns, for recordings that have none."""
    speaker = None if source.speaker_column == "folder" else source.speaker_column
    given = {"audio_column": source.audio_column, "text_column": source.text_column, "speaker_column": speaker}
    for flag, value in (given | {"columns": " ".join(source.columns)}).items():
        if value:
            instead = "; `--speaker_column folder` takes the folder of each sound" if flag == "speaker_column" else ""
            raise UserError(f"--{flag} {value}: {source.name} is read as {kind}, which has no columns{instead}")


def read_texts(path: Path, source: Source, found: Recordings) -> Iterator[Row]:
    """texts.csv of the TTS-Portuguese Corpus: wavs/sample-1.wav==text."""
    found.kind = "TTS-Portuguese Corpus"
    refuse_columns(source, found.kind)
    for number, line in enumerate(read_lines(path, found.notes), 1):
        name, separator, text = line.partition("==")
        if separator:
            yield name_row(path, source, number), {"file": name.strip(), "text": clean_text(text)}
        elif line.strip():
            what = f"expected <file>==<text>, found {line[:60]}"
            found.reject(name.strip()[:40], name_row(path, source, number), "row can't be read", what)


def read_jsonl(path: Path, source: Source, found: Recordings) -> Iterator[Row]:
    """metadata.jsonl of an audiofolder, as `datasets` reads it."""
    found.kind = "audiofolder"
    for number, line in enumerate(read_lines(path, found.notes), 1):
        where = name_row(path, source, number)
        try:
            row = parse_json(line) if line.strip() else None
        except ValueError as error:
            found.reject("", where, "row can't be read", f"{error}: {line[:60]}")
            continue
        if row is None:
            continue
        columns = name_cells(list(row), source) if isinstance(row, dict) else {}
        if "file" not in columns.values():
            found.reject("", where, "row can't be read", f"expected a JSON object with `file_name`: {line[:60]}")
            continue
        if "text" not in columns.values():
            found.reject(
                "", where, "no text", f"its columns are {', '.join(row)}; --text_column names the one of texts"
            )
            continue
        yield where, {columns[key]: clean_text(value) for key, value in row.items() if key in columns}


def read_table(path: Path, source: Source, found: Recordings) -> Iterator[Row]:
    """A CSV of LJSpeech, Piper or CML-TTS, or any with names of columns: see `find_mark`."""
    lines = read_lines(path, found.notes)
    head = next((line for line in lines if line.strip()), "")
    mark = find_mark(head)
    records = _split(lines, mark) if mark in "|\t" else catalogue.split_records(lines, head.count(mark) + 1, mark)
    names = [cell.strip() for cell in records[0][1]] if records else []
    columns = {} if source.columns else name_cells(names, source)
    if {"file", "text"} <= {*columns.values()}:
        layout = "CML-TTS" if {"client_id", "transcript_wav2vec"} <= {*names} else "table"
        records, free = records[1:], names.index(next(key for key, name in columns.items() if name == "text"))
    else:
        if not source.columns:
            refuse_unknown_header(path, names, source)
        layout, names = name_headerless(path, records, source)
        columns, free = {name: name for name in names if name != "-"}, names.index("text")
    found.kind = layout
    for number, cells in records:
        where = name_row(path, source, number)
        fitted = cells if mark in "|\t" else catalogue.fit_cells(cells, names, free, mark)[0]
        if fitted is None or len(fitted) != len(names):
            what = f"{counted(len(cells), 'cell')}, expected {len(names)} ({mark.join(names)})"
            found.reject(cells[0].strip()[:60], where, "row can't be read", what)
            continue
        row = {columns[key]: clean_text(value) for key, value in zip(names, fitted) if key in columns}
        raw = row.pop("raw_text", None)
        row["text"] = row.get("text") or raw  # LJSpeech leaves the normalised text empty where it is the same
        if layout == "CML-TTS" and (sound := row["file"]):
            row.setdefault("book", Path(sound).parent.name)
        yield where, row


def _split(lines: list[str], mark: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of a table whose quotes are plain characters."""
    return [(number, line.split(mark)) for number, line in enumerate(lines, 1) if line.strip()]


def find_mark(head: str) -> str:
    """What separates the cells of a table, by its first line: bars, tabs, or the first comma or semicolon."""
    return next((mark for mark in "|\t" if mark in head), next((one for one in head if one in ",;"), ","))


def refuse_unknown_header(path: Path, names: list[str], source: Source) -> None:
    """Refuse a first row of single words of which the first is no sound: it names columns that are not known here."""
    if not names or not all(map(str.isidentifier, names)):
        return
    if not find_sounds(index_sounds([name for name in list_files(path.parent) if is_sound(name)]), names[0]):
        raise UserError(
            f"{source.flag} {path}: its first row, {', '.join(names)}, is no recording; if it names the columns, add "
            "--audio_column and --text_column with those of sounds and texts, and if it is a row like the others, say "
            "with --columns what it holds"
        )


def name_headerless(path: Path, records: list[tuple[int, list[str]]], source: Source) -> tuple[str, list[str]]:
    """The layout and columns of a table without a header, by the number of cells that most rows have."""
    widths = Counter(len(cells) for _, cells in records)
    width = widths.most_common(1)[0][0] if widths else 0
    rows = [cells for _, cells in records if len(cells) == width]
    if source.columns:
        return "table without a header", list(source.columns)
    if width == 2:
        return "file|text", ["file", "text"]
    if width == 3 and is_speaker_column([(cells[1], cells[2]) for cells in rows]):
        return "Piper: file|speaker|text", ["file", "speaker", "text"]
    if width == 3:
        return "LJSpeech: file|text|normalised text", ["file", "raw_text", "text"]
    first = f"line {records[0][0]}: found `{'|'.join(records[0][1])[:80]}`" if records else "it is empty"
    raise UserError(
        f"{source.flag} {path}: {first}; expected file|text, file|text|normalised, file|speaker|text, or a first row "
        "that names the columns; --columns says what a table without one holds"
    )


def is_speaker_column(pairs: list[tuple[str, str]]) -> bool:
    """Whether the second of three cells is a speaker's name and not a text: short, and repeated or much shorter."""
    names = [name for name, _ in pairs]
    repeated = 2 * len({*names}) <= len(names)
    shorter = all(2 * len(name) < len(text) for name, text in pairs)
    return all(len(name) <= 40 for name in names) and (repeated or shorter)


# Sound files alone, and datasets of the hub


def read_folder(source: Source) -> Recordings:
    """Sound files, with what is said in <name>.txt beside them."""
    refuse_columns(source, "sounds with .txt")
    folder, found = Path(source.name), Recordings("sounds with .txt")
    files, taken, odd = list_files(folder), set[str](), list[str]()
    for name in files:
        if name.lower().endswith(M4A):
            found.reject(name, name, "not a format that is read", "convert it with `ffmpeg -i recording.m4a a.flac`")
        if not is_sound(name):
            continue
        beside = f"{name.rpartition('.')[0]}.txt"
        lines, not_utf8 = decode_lines(read_file(folder / beside)) if beside in files else ([], 0)
        odd += [beside] * bool(not_utf8)
        text = clean_text(" ".join(lines))
        recording_id = make_id(short_name(name, name), taken, "sound")
        found.found.append(Recording(recording_id, name, folder / name, text))
    stems = {name.rpartition(".")[0] for name in files if is_sound(name)}
    unused = [name for name in files if name.endswith(".txt") and name.removesuffix(".txt") not in stems]
    found.note_names("texts without a sound", unused)
    found.note_names("texts not in UTF-8, read as Latin-1", odd)
    if not found.rows:
        hint = f"found {counted(len(files), 'other file')}" if files else "it is empty"
        raise UserError(f"{source.flag} {folder}: no audio: {hint}; expected {EXPECTED}")
    return found


def read_hub(source: Source) -> Recordings:
    """A dataset that `datasets` can load; its sounds are decoded by soundfile when they are needed."""
    place = catalogue.Source(source.name, source.flag, config=source.config, split=source.split)
    dataset = catalogue.load_dataset(place)
    import datasets

    names = dataset.column_names
    of_sounds = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Audio)]
    audio = pick_column(names, source.audio_column, (*of_sounds, *AUDIO_COLUMNS), "--audio_column")
    text = pick_column(names, source.text_column, TEXT_COLUMNS, "--text_column")
    speaker = pick_column(names, source.speaker_column, SPEAKER_COLUMNS, "--speaker_column")
    if not audio:
        raise UserError(
            f"{source.flag} {source.name}: no column of sounds; --audio_column names one of {', '.join(names)}"
        )
    found = Recordings("datasets")
    found.dataset = dataset.cast_column(audio, datasets.Audio(decode=False)).select_columns([audio])
    taken: set[str] = set()
    for index, row in enumerate(catalogue.plain_rows(dataset, audio, text or "")):
        own = clean_text(row.get("id")) or f"{index:06d}"
        attributes = {key: clean_text(row.get(key)) for key in OTHER_COLUMNS if key in row}
        attributes |= {"speaker": clean_text(row.get(speaker))} if speaker else {}
        words = clean_text(row.get(text)) if text else None
        found.found.append(Recording(make_id(f"{own}.wav", taken, "sound"), index, index, words, attributes))
    return found


def name_folders(found: Recordings, source: Source) -> None:
    """Give each recording of a file the column `folder`: where it lies below the corpus, and maybe a speaker."""
    root, speaker = Path(source.name), source.speaker_column == "folder"
    for i, one in enumerate(found.found):
        if isinstance(one.sound, Path):
            place = one.sound.parent.relative_to(root).as_posix().removeprefix(".")
            own = {"folder": place, **({"speaker": place or root.resolve().name} if speaker else {})}
            found.found[i] = replace(one, attributes=one.attributes | own)


# What is asked of the recordings


def choose_speakers(found: Recordings, wanted: list[str] | None) -> Recordings:
    """The recordings of these speakers (None: all); refuses a speaker whom none has."""
    names = {one.speaker for one in found.found if one.speaker}
    for name in wanted or []:
        if name not in names:
            some = name_some(sorted(names)) or "none, as no column names them (see --speaker_column)"
            raise UserError(f"--speakers {name}: no recording has this speaker; there are {some}")
    return replace(found, found=[one for one in found.found if not wanted or one.speaker in wanted])


def check_column(flag: str, column: str | None, found: Recordings) -> None:
    """Refuse a column that no recording has."""
    columns = sorted({key for one in found.found for key, value in one.attributes.items() if value})
    if column and column not in columns:
        raise UserError(f"{flag} {column}: no recording has such a column; there are {', '.join(columns) or 'none'}")


def source_fingerprint(found: Recordings) -> str:
    """Changes with any row, and with the size or time of any sound; none is read."""
    digest = hashlib.sha256(found.dataset._fingerprint.encode() if found.dataset is not None else b"")
    for one in found.found:
        stat = one.sound.stat() if isinstance(one.sound, Path) else None
        facts = [one.id, one.row, one.text, one.attributes, stat and (stat.st_size, stat.st_mtime_ns)]
        digest.update(json.dumps(facts).encode())
    digest.update(json.dumps([vars(one) for one in found.rejected]).encode())
    return digest.hexdigest()


def sound_of(found: Recordings, one: Recording) -> Path | bytes:
    """Where a recording's sound is: its file, or the encoded bytes in a row of the dataset."""
    return catalogue.file_or_bytes(found.dataset, one.sound)
