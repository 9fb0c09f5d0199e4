"""Speech of espeak-ng's voices with the true timings of its phonemes, for the corpus of the embedded voice.

It uses the library and data of the package espeakng-loader, which making the corpus needs and nothing else here.
espeak-ng is GPL: only speech/phonemes.py loads it.
"""

import ctypes
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import resample_poly

from speech.phonemes import open_espeak
from utils import cli

RATE = 16_000  # of what is returned; espeak-ng itself speaks at 22,050 Hz
PEAK = 0.8
PAUSE = 0.05  # seconds of silence that are kept before and after the speech


class Phoneme(NamedTuple):
    """`ipa` is "" for a pause; `start` and `stop` are seconds of the returned sound."""

    ipa: str
    start: float
    stop: float


class Speech(NamedTuple):
    samples: np.ndarray
    phonemes: list[Phoneme]


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng for Brazilian Portuguese: a variant, words a minute, and two settings from 0 to 100."""

    variant: str
    rate: int = 150
    pitch: int = 50
    range: int = 50


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """`espeak_EVENT` of espeak-ng/speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_PHONEME = 7  # espeakEVENT_PHONEME; 0 ends a list of events
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_pieces: list[np.ndarray] = []
_events: list[tuple[int, str]] = []  # sample, IPA


@_CALLBACK
def _receive(samples: Any, count: int, events: Any) -> int:
    if samples and count:
        _pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
    index = 0
    while events[index].type:
        if events[index].type == _PHONEME:
            # All eight bytes may be used, with no zero at the end.
            raw = bytes(ctypes.string_at(ctypes.addressof(events[index].id), 8)).split(b"\0")[0]
            _events.append((events[index].sample, raw.decode("utf-8", "ignore")))
        index += 1
    return 0


@functools.cache
def _library() -> tuple[ctypes.CDLL, int]:
    """The library, ready to speak, and the rate at which it does."""
    found = open_espeak()
    if not found:
        raise cli.UserError("espeakng-loader is not installed; pip install -r requirements-dev.in")
    found[0].espeak_SetSynthCallback(_receive)
    return found


def _choose(speaker: Speaker) -> tuple[ctypes.CDLL, int]:
    library, rate = _library()
    name = f"pt-br+{speaker.variant}" if speaker.variant else "pt-br"
    if library.espeak_SetVoiceByName(name.encode()):
        raise cli.UserError(f"espeak-ng has no voice {name}")
    for number, value in ((1, speaker.rate), (3, speaker.pitch), (4, speaker.range)):
        library.espeak_SetParameter(number, value, 0)
    return library, rate


def phonemes_of(text: str) -> str:
    """The IPA of a text, clauses divided by spaces."""
    library, _ = _choose(Speaker(""))
    data = ctypes.c_char_p(text.encode())
    clauses = []
    while data.value:  # each call reads one clause and moves the pointer on
        clauses.append(library.espeak_TextToPhonemes(ctypes.byref(data), 1, 2).decode().strip())
    return " ".join(clause for clause in clauses if clause)


def say(text: str, speaker: Speaker) -> Speech:
    """The text, spoken: 16 kHz, the silence at its ends cut to PAUSE, the loudest sample at 0.8."""
    library, rate = _choose(speaker)
    _pieces.clear()
    _events.clear()
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)
    if not _pieces:
        raise cli.UserError(f"espeak-ng made no sound for {text!r}")
    wave = np.concatenate(_pieces).astype(np.float32) / 32768
    loud = np.flatnonzero(np.abs(wave) > 0.005)
    first = max(0, int(loud[0] - PAUSE * rate))
    last = min(len(wave), int(loud[-1] + PAUSE * rate))
    samples = resample_poly(wave[first:last], RATE, rate).astype(np.float32)
    seconds = len(samples) / RATE
    starts = [min(max((sample - first) / rate, 0.0), seconds) for sample, _ in _events] + [seconds]
    phonemes = [Phoneme(ipa, starts[i], starts[i + 1]) for i, (_, ipa) in enumerate(_events)]
    return Speech(samples * (PEAK / np.abs(samples).max()), phonemes)
