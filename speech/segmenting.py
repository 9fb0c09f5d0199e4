"""Long recordings without transcripts: cut at their pauses, each piece transcribed by a recogniser.

What takes long is kept in a cache, by the content of what it was made from: a killed run goes on where it was, and
new recordings beside old ones cost only their own time.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from speech.audio import BadSound, Sound, decode_sound
from speech.pauses import Cutting, Span, plan_pieces
from speech.recogniser import Transcript
from speech.recordings import Recording, Recordings, Source, name_folders, read_folder, reject_recording
from speech.vad import speech_probabilities
from utils.cli import UserError, counted
from utils.console import track
from utils.files import file_sha256, parse_json, read_text, write_json
from utils.parallel import parallel_map


@dataclass(frozen=True)
class Piece:
    """A part of a recording. `digest` is of its samples, whatever the file is called."""

    recording: Recording
    span: Span
    digest: str

    @property
    def id(self) -> str:
        """The recording's id and where the piece begins, in milliseconds."""
        return f"{self.recording.id}_{round(1000 * self.span.start):08d}"

    def decode(self) -> Sound:
        assert isinstance(self.recording.sound, Path)  # a row of a hub's dataset is not cut
        return decode_sound(self.recording.sound, self.span)


@dataclass(frozen=True)
class Reading:
    """A piece with what the recogniser or a person read in it; `fault`: why it is left out, if it is."""

    piece: Piece
    transcript: Transcript
    fault: tuple[str, str] | None


def read_whole(source: Source) -> Recordings:
    """The sound files of a folder; texts beside them are not read."""
    if not Path(source.name).is_dir():
        raise UserError(f"{source.flag} {source.name}: there is no such folder; --segment reads one with sound files")
    found = read_folder(source)
    name_folders(found, source)
    return found


def cut_recordings(found: Recordings, cutting: Cutting, cache: Path, workers: int) -> list[Piece]:
    """The pieces of all recordings; those that can't be used, or in which nobody speaks, are rejected."""
    work = partial(_cut_recording, cutting=cutting, cache=cache)
    results = parallel_map(work, [one.sound for one in found.found], workers)
    pieces = []
    tracked = track(results, len(found.found), "recordings", "finding the pauses")
    for cut, one in zip(tracked, found.found, strict=True):
        if isinstance(cut, BadSound):
            found.rejected.append(reject_recording(one, cut.reason, cut.detail))
        elif not cut:
            found.rejected.append(reject_recording(one, "no speech", "silero-vad finds none"))
        for start, end, digest in [] if isinstance(cut, BadSound) else cut:
            piece = Piece(one, Span(start, end), digest)
            if end - start >= cutting.shortest:
                pieces.append(piece)
            else:
                found.reject(piece.id, one.row, "short piece", f"{end - start:.2f} s between two pauses")
    return pieces


def _cut_recording(sound: Path, cutting: Cutting, cache: Path) -> list[tuple[float, float, str]] | BadSound:
    """Start, end and digest of each piece, found in the cache the next time. Runs in a worker process."""
    try:
        key = hashlib.sha256(json.dumps([file_sha256(sound), asdict(cutting)]).encode()).hexdigest()[:32]
        saved = cache / "pieces" / f"{key}.json"
        if not saved.is_file():
            samples, rate = decode_sound(sound)
            spans = plan_pieces(speech_probabilities(samples, rate), len(samples) / rate, cutting)
            saved.parent.mkdir(parents=True, exist_ok=True)
            write_json(saved, [[*span, digest_of(decode_sound(sound, span))] for span in spans])
        return [tuple(row) for row in parse_json(read_text(saved))]
    except OSError as error:
        return BadSound("cannot be read", error.strerror or str(error))
    except BadSound as error:
        return error


def digest_of(sound: Sound) -> str:
    return hashlib.sha256(str(sound.rate).encode() + sound.samples.tobytes()).hexdigest()[:32]


def read_pieces(
    pieces: Sequence[Piece], transcripts: dict[str, Transcript], corrections: dict[str, str | None], least: float
) -> list[Reading]:
    """Each piece with its text, which needs the `least` confidence.

    What a person wrote is certain; None there leaves the piece out.
    """
    readings = []
    for piece in pieces:
        one = transcripts[piece.digest]
        fault = None
        if piece.digest in corrections:
            text = corrections[piece.digest]
            one = Transcript(text or one.text, 1.0)
            fault = None if text else ("left out by hand", "")
        elif not one.text:
            fault = ("nothing recognised", "")
        elif one.confidence < least:
            fault = ("low confidence", f"{one.confidence:.2f}: {one.text[:60]}")
        readings.append(Reading(piece, one, fault))
    return readings


def as_recordings(found: Recordings, readings: Sequence[Reading]) -> Recordings:
    """What prepare_speech.py makes a dataset of: each piece as a recording, with the confidence in its text."""
    of_pieces = [
        Recording(
            one.piece.id,
            one.piece.recording.row,
            one.piece.recording.sound,
            one.transcript.text or None,
            one.piece.recording.attributes
            | {"recording": one.piece.recording.id, "confidence": f"{one.transcript.confidence:.3f}"},
            one.piece.span,
        )
        for one in readings
    ]
    good = [recording for recording, one in zip(of_pieces, readings) if not one.fault]
    bad = [reject_recording(recording, *one.fault) for recording, one in zip(of_pieces, readings) if one.fault]
    notes = [*found.notes, f"{counted(len(found.found), 'recording')} cut into {counted(len(readings), 'piece')}"]
    return Recordings("recordings cut at their pauses", good, found.rejected + bad, notes)
