"""The page on which a person listens to pieces and corrects their transcripts, and the files that it saves."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from speech.audio import Sound, encode_sound, resample
from speech.recogniser import RATE
from speech.segmenting import Reading
from utils.cli import UserError
from utils.files import read_object, write_text
from utils.wording import PAGES, data_address, make_environment

FLAG, PAGE = "--corrections", "corrections.html"
SAVED = f"a file that {PAGE} saved"


def read_corrections(paths: Sequence[Path]) -> dict[str, str | None]:
    """{digest of a piece: what is said in it, or None to leave it out} of files that the page saved.

    Of two for one piece, the later file's counts.
    """
    found: dict[str, str | None] = {}
    for path in paths:
        rows = read_object(path, SAVED, FLAG).get("corrections")
        if not isinstance(rows, list):
            raise UserError(f"{FLAG} {path}: there is no list `corrections` in it; expected {SAVED}")
        for number, row in enumerate(rows, 1):
            digest, text = (row.get("digest"), row.get("text", 0)) if isinstance(row, dict) else (None, None)
            if not isinstance(digest, str) or not isinstance(text, str | None):
                raise UserError(f"{FLAG} {path}: correction {number} is {str(row)[:60]}; expected {SAVED}")
            found[digest] = " ".join((text or "").split()) or None
    return found


def write_page(path: Path, readings: Sequence[Reading], most: int, facts: dict[str, str]) -> None:
    """One file with the sounds inside, of so many pieces, the least certain first. `facts`: see its template."""
    rows = [
        {
            "id": one.piece.id,
            "digest": one.piece.digest,
            "seconds": one.piece.span.seconds,
            "text": one.transcript.text,
            "confidence": one.transcript.confidence,
            "fault": one.fault and one.fault[0],
            "uri": _embed(one.piece.decode()),
        }
        for one in sorted(readings, key=lambda one: (one.transcript.confidence, one.piece.id))[:most]
    ]
    name = hashlib.sha256(json.dumps([row["digest"] for row in rows]).encode()).hexdigest()[:12]
    environment = make_environment(Path(__file__).parent / "templates", PAGES)
    page = environment.get_template(PAGE).render(
        pieces=rows, total=f"{len(readings):,}", page={"id": name}, contents=[], **facts
    )
    write_text(path, page)


def _embed(sound: Sound) -> str:
    """The address of a player: an MP3, which every browser plays, at the rate that a recogniser hears."""
    return data_address(encode_sound(resample(*sound, RATE), RATE, ".mp3"), "audio/mpeg")
