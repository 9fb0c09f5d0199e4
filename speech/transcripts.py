"""What a recogniser hears in sounds, kept in a file that a killed run goes on with; how far it is from their texts."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from speech.audio import Sound, resample
from speech.distances import count_edits
from speech.normalise import plain_text
from speech.recogniser import DEMO_RECOGNISER, RATE, Recogniser, Transcript
from speech.sound_measures import Fault
from utils.console import show_progress
from utils.hub import model_key
from utils.metrics_log import append_metrics, read_metrics

AT_ONCE = 16  # sounds whose transcripts a kill may lose


class Heard(NamedTuple):
    """What is heard in a recording, and the edits that make its text of that, per character of the text."""

    heard: str
    cer: float


def transcripts_file(cache: Path, recogniser: str, language: str) -> Path:
    """Where the transcripts of one recogniser, by the content of its folder, and language are kept."""
    key = json.dumps([model_key(recogniser, DEMO_RECOGNISER), language])
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache / "transcripts" / f"{name}.jsonl"


def read_transcripts(saved: Path) -> dict[str, Transcript]:
    return {row["digest"]: Transcript(row["text"], row["confidence"]) for row in read_metrics(saved)}


def transcribe(
    sounds: Mapping[str, Callable[[], Sound]], load: Callable[[], Recogniser], saved: Path, at_once: int = AT_ONCE
) -> dict[str, Transcript]:
    """{digest: what is said} of {digest: what decodes the sound}; the recogniser is loaded if one of them is new."""
    known = read_transcripts(saved)
    new = [digest for digest in sounds if digest not in known]
    if not new:
        return known
    recognise = load()
    saved.parent.mkdir(parents=True, exist_ok=True)
    with show_progress(len(new), "sounds", "transcribing") as bar:
        for at in range(0, len(new), at_once):
            some = new[at : at + at_once]
            heard = recognise([resample(*sounds[digest](), RATE) for digest in some])
            for digest, transcript in zip(some, heard, strict=True):
                append_metrics(saved, {"digest": digest, **transcript._asdict()})
                known[digest] = transcript
            bar.update(len(some))
    return known


def compare_text(text: str, heard: str, language: str) -> Heard:
    found, meant = plain_text(heard, language), plain_text(text, language)
    return Heard(heard, round(count_edits(found, meant) / max(1, len(meant)), 4))


def find_mismatches(heard: Mapping[str, Heard], most: float) -> dict[str, Fault]:
    """{id: why} of the recordings in which more of the text than the share `most` is heard otherwise."""
    return {
        one: (
            "text is not what is heard",
            f"{found.cer:.0%} of it differ, --max_cer {most:g}; heard: {found.heard[:60]}",
        )
        for one, found in heard.items()
        if found.cer > most
    }
