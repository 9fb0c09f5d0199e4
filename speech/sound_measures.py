"""What is measured of a recording, what is wrong with it by limits, and which recordings are alike."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from speech.audio import MARGIN, Sound, frame_levels, silence_limit, speech_level
from speech.vad import speech_probabilities

Fault = tuple[str, str]  # reason, detail
QUIET = -60.0  # dB: a sound whose loudest frame is below holds nothing
FLAT = 3e-5  # samples that differ by less, about one step of 16 bits, are equal
PLATEAU = 4  # equal samples near the peak that count as clipped
SPOKEN = 0.5  # silero-vad's probability from which somebody speaks
LEAST_OF_A_SPEAKER = 20  # recordings, from which a speaker's own pace is known
LEAST_SPREAD = 0.06  # of the logarithm of a pace: 6 deviations are then a factor of 1.4, also of a synthetic voice
PRINT_PARTS = 24  # of a fingerprint: equal parts of the time
PRINT_BANDS = (0, 500, 1500, 3000)  # Hz: where each begins
DEPTH = 30  # dB below its loudest that a fingerprint reaches
ALIKE_LENGTH = 0.02  # of one take given twice: the relative difference of lengths
ALIKE_LEVEL = 1.5  # dB: and the mean difference of fingerprints


@dataclass(frozen=True)
class Measures:
    """Of the sound as it was recorded, but `seconds` and `silent` are without the silence at its ends."""

    rate: int
    recorded_seconds: float
    seconds: float
    level: float  # of the speech, in dB below full scale
    loudest: float  # frame, in dB
    snr: float  # dB: the speech over the quietest fiftieth of the frames
    clipped: float  # share of the samples
    silent: float  # share of the time
    speech: float  # share of the time in which somebody speaks
    fingerprint: list[int]  # dB

    def pace(self, text: str) -> float:
        """Characters per second, without the pause that trimming leaves at both ends."""
        return len(text) / max(0.05, self.seconds - 2 * MARGIN)


class Limits(NamedTuple):
    """From which values on a recording is left out."""

    seconds: tuple[float, float]
    pace: tuple[float, float]  # characters per second
    deviations: float  # of the logarithm of the pace from its median, in robust standard deviations
    clipped: float
    snr: float
    silent: float
    speech: float
    rate: int  # the least that it must be recorded at


def measure_sound(recorded: Sound, trimmed: np.ndarray, rate: int) -> Measures:
    """The measures of a sound; `trimmed` is at `rate`."""
    levels, own = frame_levels(*recorded), frame_levels(trimmed, rate)
    probabilities = speech_probabilities(trimmed, rate)
    return Measures(
        rate=recorded.rate,
        recorded_seconds=round(len(recorded.samples) / recorded.rate, 3),
        seconds=round(len(trimmed) / rate, 3),
        level=round(speech_level(*recorded), 1),
        loudest=round(float(levels.max()), 1),
        snr=round(signal_to_noise(levels), 1),
        clipped=round(clipped_share(recorded.samples), 5),
        silent=round(float((own <= silence_limit(own)).mean()), 3),
        speech=round(float((probabilities > SPOKEN).mean()), 3),
        fingerprint=fingerprint(trimmed, rate),
    )


def signal_to_noise(levels: np.ndarray) -> float:
    """By the levels of the frames, in dB, 0 to 99; too low where a recording has no pause."""
    power = 10 ** (levels / 10)
    noise = np.sort(power)[: max(2, len(power) // 50)].mean()
    sounding = power[levels > silence_limit(levels)]
    speech = sounding.mean() if len(sounding) else noise
    return float(np.clip(10 * np.log10(max(speech - noise, 1e-12) / noise), 0, 99))


def fingerprint(samples: np.ndarray, rate: int) -> list[int]:
    """How loud each band is in each part of a sound, in dB over the lowest that counts."""
    rows = []
    for part in np.array_split(samples, PRINT_PARTS):
        power = np.square(np.abs(np.fft.rfft(part, max(2, len(part)))))
        starts = [round(band * max(2, len(part)) / rate) for band in PRINT_BANDS]
        rows.append([power[first:end].sum() for first, end in zip(starts, [*starts[1:], None])])
    levels = 10 * np.log10(np.array(rows) + 1e-12)
    return (levels - levels.max() + DEPTH).clip(0).round().astype(int).ravel().tolist()


def clipped_share(samples: np.ndarray) -> float:
    """The share of the samples at full scale, or in a flat run of four near the peak."""
    size = np.abs(samples)
    near, clipped = size > 0.98 * size.max(), size >= 0.999
    flat = (np.abs(np.diff(samples)) < FLAT) & near[1:] & near[:-1]
    if len(flat) >= PLATEAU - 1 and size.max() > 0.01:
        starts = np.flatnonzero(np.convolve(flat, np.ones(PLATEAU - 1), "valid") > PLATEAU - 1.5)
        for offset in range(PLATEAU):
            clipped[starts + offset] = True
    return float(clipped.mean())


def find_fault(found: Measures, text: str, limits: Limits) -> Fault | None:
    """Why a recording is left out, by itself; None if it is good."""
    low, high = limits.seconds
    slow, fast = limits.pace
    pace = found.pace(text)
    checks = [
        (found.loudest < QUIET, "silent", f"its loudest part has {found.loudest:g} dB"),
        (
            found.rate < limits.rate,
            "rate too low",
            f"{found.rate:,} Hz, less than {limits.rate:,}; --upsample keeps it",
        ),
        (found.seconds < low, "too short", f"{found.seconds:.2f} s without silence, --seconds begins at {low:g}"),
        (found.seconds > high, "too long", f"{found.seconds:.1f} s, --seconds ends at {high:g}"),
        (
            found.speech < limits.speech,
            "no speech",
            f"somebody speaks {found.speech:.0%} of the time, --min_speech {limits.speech:g}",
        ),
        (found.clipped > limits.clipped, "clipped", f"{found.clipped:.2%}, --max_clipping {limits.clipped:g}"),
        (found.snr < limits.snr, "noisy", f"signal to noise {found.snr:.0f} dB, --min_snr {limits.snr:g}"),
        (found.silent > limits.silent, "mostly silent", f"{found.silent:.0%}, --max_silence {limits.silent:g}"),
        (pace < slow, "text too short for the sound", f"{pace:.1f} characters/s, expected {slow:g} or more"),
        (pace > fast, "text too long for the sound", f"{pace:.1f} characters/s, expected {fast:g} at most"),
    ]
    return next(((reason, detail) for is_bad, reason, detail in checks if is_bad), None)


def find_outliers(paces: dict[str, float], speakers: dict[str, str], deviations: float) -> dict[str, Fault]:
    """{id: why} of the recordings whose pace is far from the median of their speaker, or of all where he has few."""
    logs = {one: float(np.log(max(pace, 1e-3))) for one, pace in paces.items()}
    of_speaker: dict[str, list[float]] = defaultdict(list)
    for one, value in logs.items():
        of_speaker[speakers[one]].append(value)
    if len(logs) < LEAST_OF_A_SPEAKER:
        return {}
    of_all = _usual(list(logs.values()))
    usual = {name: _usual(own) if len(own) >= LEAST_OF_A_SPEAKER else of_all for name, own in of_speaker.items()}
    found: dict[str, Fault] = {}
    for one, value in logs.items():
        middle, spread = usual[speakers[one]]
        if abs(value - middle) > deviations * spread:
            what = f"{paces[one]:.1f} characters/s, median {np.exp(middle):.1f}"
            found[one] = "text does not fit the sound", f"{what}: {abs(value - middle) / spread:.1f} deviations"
    return found


def _usual(values: list[float]) -> tuple[float, float]:
    """Their median, and how far from it they usually are."""
    middle = float(np.median(values))
    return middle, max(LEAST_SPREAD, 1.4826 * float(np.median(np.abs(np.array(values) - middle))))


class Take(NamedTuple):
    """What tells whether two recordings are one."""

    id: str
    text: str
    speaker: str
    digest: str  # of its samples
    measures: Measures


def find_contradictions(takes: list[Take]) -> dict[str, Fault]:
    """{id: why} of the recordings with the same sound and different texts: nobody can say which is right."""
    by_sound: dict[str, list[Take]] = defaultdict(list)
    for one in takes:
        by_sound[one.digest].append(one)
    return {
        one.id: ("one sound with several texts", f"also {next(other.id for other in same if other.id != one.id)}")
        for same in by_sound.values()
        if len({one.text for one in same}) > 1
        for one in same
    }


def find_duplicates(takes: list[Take]) -> dict[str, str]:
    """{id: id of an earlier one} of the recordings that are the same take, also if it was encoded or levelled anew."""
    same: dict[tuple[str, str], list[Take]] = defaultdict(list)
    found: dict[str, str] = {}
    for one in takes:
        group = same[one.text, one.speaker]
        if first := next((other for other in group if is_same_take(one, other)), None):
            found[one.id] = first.id
        else:
            group.append(one)
    return found


def is_same_take(one: Take, other: Take) -> bool:
    if one.digest == other.digest:
        return True
    if abs(one.measures.seconds - other.measures.seconds) > ALIKE_LENGTH * other.measures.seconds:
        return False
    return float(np.abs(np.subtract(one.measures.fingerprint, other.measures.fingerprint)).mean()) < ALIKE_LEVEL
