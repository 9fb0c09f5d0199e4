"""A text spoken piece by piece: the seed of each piece, its checks, the pauses, and the sound as a stream of bytes."""

import io
import struct
from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import soundfile

from speech import texts
from speech.audio import SYNTHETIC, resample
from speech.sentences import Piece
from speech.sound_checks import Limits, find_fault
from speech.synthesis import Speaking, speak
from speech.voices import Voice, known_characters
from utils import devices
from utils.cli import UserError

PCM_RATE = 24_000  # of sound without a header, as OpenAI's clients play it
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
# libsndfile's format and subtype, and more options of soundfile's. An MP3 has a constant bit rate, 80 kbit/s at 16 kHz:
# of any other one readers can't estimate the length.
STREAMS: dict[str, dict[str, Any]] = {
    "wav": {"format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"},  # after a header of our own
    "pcm": {"format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.5},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


class Spoken(NamedTuple):
    samples: np.ndarray
    fault: str
    seconds: float  # that it took


def piece_seeds(seed: int, count: int) -> Iterator[int]:
    """The first piece has the text's own seed, so that one sentence is what a plain pipeline gives for it."""
    return (seed if i == 0 else devices.key_seed("piece", seed, i) for i in range(count))


def speak_piece(voice: Voice, text: str, seed: int, how: Speaking, limits: Limits) -> Spoken:
    """Runs in a thread."""
    began = perf_counter()
    samples = speak(voice, text, seed, how)
    seconds = perf_counter() - began
    known, rate = len(known_characters(voice, text)), how.rate * voice.model.speaking_rate
    return Spoken(samples, find_fault(samples, voice.model.config.sampling_rate, known, limits, rate), seconds)


def pause_after(piece: Piece, rate: int, sentence_pause: float) -> np.ndarray:
    """The silence between a piece and the next one; `rate`: samples a second."""
    factor = sentence_pause / texts.PAUSES["sentence"]
    return np.zeros(round(texts.PAUSES[piece.pause] * factor * rate), np.float32)


def join_pieces(pieces: list[Piece], spoken: list[Spoken], rate: int, sentence_pause: float) -> np.ndarray:
    """The pieces with their pauses between."""
    parts = [spoken[0].samples]
    for piece, next_one in zip(pieces, spoken[1:]):
        parts += [pause_after(piece, rate, sentence_pause), next_one.samples]
    return np.concatenate(parts)


def say(
    voice: Voice,
    text: str,
    seed: int,
    how: Speaking,
    language: str,
    sentence_pause: float = texts.PAUSES["sentence"],
    max_retries: int = 3,
) -> Iterator[Spoken]:
    """A text's pieces, each with the pause before it: what synthesize.py gives for the same seed.

    But a piece that is rejected gets further seeds by itself, since what came before it may have been heard.
    """
    (pieces,) = texts.read_pieces(voice, [text], language)
    if not pieces:
        raise UserError(f"text {text[:60]!r}: no character of it is in the voice's alphabet; give other text")
    rate, before = voice.model.config.sampling_rate, np.zeros(0, np.float32)
    tries = [list(piece_seeds(devices.nth_seed(seed, 0, retry), len(pieces))) for retry in range(max_retries + 1)]
    for piece, seeds in zip(pieces, zip(*tries)):
        spoken = _speak_well(voice, piece.text, seeds, how)
        yield spoken._replace(samples=np.concatenate([before, spoken.samples]))
        before = pause_after(piece, rate, sentence_pause / how.rate)


def _speak_well(voice: Voice, text: str, seeds: tuple[int, ...], how: Speaking) -> Spoken:
    for seed in seeds:
        spoken = speak_piece(voice, text, seed, how, Limits())
        if not spoken.fault:
            return spoken
    what = f"text {text[:60]!r}: rejected with each of {len(seeds)} seeds ({spoken.fault})"
    raise UserError(f"{what}; give other text, or a manner nearer to the voice's own")


class SoundStream:
    """Encodes sound of a format of STREAMS as it comes. What is returned is final, so no header says the length.

    FLAC comes at the end, as a whole: libsndfile, and so soundfile, reads none whose header doesn't say the length.
    """

    def __init__(self, kind: str, rate: int):
        self._rate, self._written_rate = rate, rate
        if kind == "pcm" or (kind == "opus" and rate not in OPUS_RATES):
            self._written_rate = PCM_RATE
        self._content = io.BytesIO()
        self._file = soundfile.SoundFile(self._content, "w", self._written_rate, 1, **STREAMS[kind])
        if STREAMS[kind]["format"] != "RAW":
            self._file.comment = SYNTHETIC
        self._is_whole = kind == "flac"
        self._start, self._taken = wav_header(rate) if kind == "wav" else b"", 0

    def add(self, samples: np.ndarray) -> bytes:
        """The next bytes, which may be none yet."""
        self._file.write(resample(samples, self._rate, self._written_rate))
        return b"" if self._is_whole else self._take()

    def end(self) -> bytes:
        self._file.close()
        return self._take()

    def _take(self) -> bytes:
        with self._content.getbuffer() as content:
            new = self._start + bytes(content[self._taken :])
            self._start, self._taken = b"", len(content)
        return new


def wav_header(rate: int) -> bytes:
    """Of 16-bit mono whose length is unknown, with the comment of every file of a voice."""
    unknown = 0xFFFFFFFF
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    comment = SYNTHETIC.encode() + b"\0\0"  # which ends with a zero, at an even length
    info = b"INFOICMT" + struct.pack("<I", len(comment)) + comment
    about = b"LIST" + struct.pack("<I", len(info)) + info
    return b"RIFF" + struct.pack("<I", unknown) + b"WAVE" + form + about + b"data" + struct.pack("<I", unknown)
