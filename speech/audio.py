"""Sounds: read, resampled, trimmed, levelled and written. Samples are float32, mono, in [-1, 1], with a rate beside."""

import io
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from utils.cli import UserError
from utils.files import open_regular, replaced_file

SOUND_TYPES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff")
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".mp3": ("MP3", None)}
CONVERT = "convert it, for example with `ffmpeg -i recording.m4a recording.flac`"
BLOCK = 1 << 20  # samples that are decoded at once, so that an hour of stereo needs no more memory than its mono mix
SIZES = re.compile(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)")  # what libsndfile notes of a WAV or AIFF
STREAMED = 0x7FFF0000  # sizes from here on in a header mean: unknown when it was written
FRAME, HOP = 0.02, 0.01  # seconds: what a level is measured over, and the distance of two
SILENT = -100.0  # dB, the level of digital silence
MARGIN = 0.1  # seconds that stay before and after the sound: soft consonants are quieter than what counts as sound
PEAK = 0.97
SYNTHETIC = "synthetic speech"  # the comment in each file of what a voice says


class Sound(NamedTuple):
    samples: np.ndarray
    rate: int


class BadSound(Exception):
    """A sound that can't be used: `reason` is one of a few, to count by; `detail` is of this sound."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def read_sound(path: Path, what: str) -> Sound:
    """A file as its mono mix, at its own rate; the error begins with `what`, such as a flag."""
    try:
        return decode_sound(path)
    except BadSound as error:
        raise UserError(f"{what}: {path} can't be used: {error}; expected a WAV, FLAC, MP3 or Ogg file") from None


def decode_sound(source: Path | bytes, span: tuple[float, float] | None = None) -> Sound:
    """A file, or its content, as its mono mix, decoded to its last sample. Raises BadSound.

    With a span (first and last second) only that part.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
            begins = file.read(12)
            if not begins:
                raise BadSound("empty file")
            file.seek(0)
            try:
                with soundfile.SoundFile(file) as opened:
                    samples = _read_mono(opened, span)
                    rate, header = opened.samplerate, opened.extra_info
            except soundfile.LibsndfileError as error:
                raise _undecodable(begins, error) from None
    except OSError as error:
        raise BadSound("cannot be read", error.strerror) from None
    if (sizes := SIZES.search(header)) and int(sizes[2]) < int(sizes[1]) < STREAMED:
        raise BadSound("truncated", f"its header says {int(sizes[1]):,} bytes of sound, {int(sizes[2]):,} are there")
    if not len(samples):
        raise BadSound("empty", "it holds no samples")
    if not np.isfinite(samples).all():
        raise BadSound("not finite", f"{np.count_nonzero(~np.isfinite(samples)):,} samples are NaN or infinite")
    return Sound(samples, rate)


def _undecodable(begins: bytes, error: soundfile.LibsndfileError) -> BadSound:
    said = error.error_string.removeprefix("Error : ").rstrip(".")
    if begins[4:8] == b"ftyp":
        return BadSound("not a format that is read", f"it is M4A or MP4; {CONVERT}")
    if re.search(r"lost sync|psf_fseek|[Ff]ile ended|truncat", said):
        return BadSound("truncated", said)
    if re.search("not recognised|unknown format|Unspecified internal", said):
        return BadSound("not audio", f"begins with {begins!r}")
    return BadSound("cannot be decoded", said)


def _read_mono(file: soundfile.SoundFile, span: tuple[float, float] | None) -> np.ndarray:
    wanted, expected = -1, 0.99 * file.frames  # of an MP3 without a table the number of frames is an estimate
    if span:
        first, end = (min(file.frames, round(second * file.samplerate)) for second in span)
        file.seek(first)
        wanted = expected = end - first
    blocks, got = [], 0  # not file.blocks, which fills up what a truncated MP3 lacks
    while wanted and len(block := file.read(min(BLOCK, wanted - got) if span else BLOCK, "float32", always_2d=True)):
        blocks.append(block.mean(1))
        got += len(block)
        if got == wanted:
            break
    if got < expected:
        raise BadSound("truncated", f"its header says {file.frames:,} samples, {got:,} can be read")
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The sound at another rate, by a polyphase filter that leaves nothing above half of the lower one."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly  # here: it takes a second to load, and most sounds have the wanted rate

    common = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // common, rate // common).astype(np.float32)


def frame_levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """The level of each 20 ms, every 10 ms, in dB below full scale; of a shorter sound, one level."""
    width, hop = max(1, round(FRAME * rate)), max(1, round(HOP * rate))
    padded = np.pad(samples, (0, max(0, width - len(samples))))
    sums = np.concatenate([[0.0], np.cumsum(np.square(padded, dtype=np.float64))])
    power = (sums[width::hop] - sums[: len(sums) - width : hop]) / width
    return 10 * np.log10(np.maximum(power, 10 ** (SILENT / 10)))


def silence_limit(levels: np.ndarray) -> float:
    """The level below which a frame is silence: 6 dB above the quietest frames, 20 to 50 dB below the loud ones."""
    loud = np.percentile(levels, 95)
    return float(np.clip(np.percentile(levels, 5) + 6, loud - 50, loud - 20))


def trim_silence(samples: np.ndarray, rate: int) -> np.ndarray:
    """The sound without the silence at its ends, but for a tenth of a second."""
    levels = frame_levels(samples, rate)
    sounding = np.flatnonzero(levels > silence_limit(levels))
    if not len(sounding):
        return samples
    first = round((sounding[0] * HOP - MARGIN) * rate)
    last = round((sounding[-1] * HOP + FRAME + MARGIN) * rate)
    return samples[max(0, first) : last]


def speech_level(samples: np.ndarray, rate: int) -> float:
    """The level of what is not silence, in dB below full scale."""
    levels = frame_levels(samples, rate)
    sounding = levels[levels > silence_limit(levels)]
    return float(10 * np.log10(np.mean(10 ** (sounding / 10)))) if len(sounding) else SILENT


def level_loudness(samples: np.ndarray, rate: int, wanted: float) -> np.ndarray:
    """The sound at the `wanted` speech level, or at the highest one below it that does not clip."""
    peak = np.abs(samples).max()
    if not peak:
        return samples
    gain = min(10 ** ((wanted - speech_level(samples, rate)) / 20), PEAK / peak)
    return (samples * gain).astype(np.float32)


def encode_sound(samples: np.ndarray, rate: int, suffix: str, comment: str = "") -> bytes:
    """The content of a .wav or .flac with 16 bits, or of an .mp3; beyond [-1, 1] it is clipped.

    A comment is what programs that show a file's metadata call so.
    """
    if suffix not in FORMATS:
        raise UserError(f"`{suffix}` is no ending for a sound file; expected {', '.join(FORMATS)}")
    kind, subtype = FORMATS[suffix]
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, subtype, format=kind) as opened:
        if comment:
            opened.comment = comment
        opened.write(samples)
    return file.getvalue()


def write_sound(path: Path, samples: np.ndarray, rate: int, comment: str = "") -> None:
    """Write a sound, complete or not at all, in the format of the file's ending."""
    content = encode_sound(samples, rate, path.suffix.lower(), comment)
    with replaced_file(path) as file:
        file.write(content)
