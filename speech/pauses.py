"""Where a long recording is cut: at the pauses between words, found by a detector of speech, the longest first."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from speech.vad import STEP_SECONDS

SPEECH = 0.5  # a probability from which on somebody speaks
SHORTEST_PAUSE = 3 * STEP_SECONDS  # shorter ones are within a word: the closure before a plosive
LONG_PAUSE = 1.0  # seconds without speech that are in no piece


class Span(NamedTuple):
    """A part of a recording, in seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Cutting:
    """How long a piece may be, in seconds, and how much of the pause beside it stays."""

    shortest: float = 1.0
    longest: float = 12.0
    padding: float = 0.2


def find_speech(probabilities: np.ndarray) -> list[Span]:
    """The stretches with speech, of one probability for each step; pauses of less than a tenth of a second are none."""
    speaks = np.concatenate([[False], probabilities >= SPEECH, [False]])
    edges = np.flatnonzero(speaks[1:] != speaks[:-1]) * STEP_SECONDS
    found: list[Span] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist()):
        if found and start - found[-1].end < SHORTEST_PAUSE:
            start = found.pop().start
        found.append(Span(start, end))
    return found


def divide(stretches: list[Span], cutting: Cutting) -> list[list[Span]]:
    """Groups of stretches, each for one piece: divided at every long pause, and while too long at the longest."""
    groups, waiting = [], [stretches] if stretches else []
    while waiting:
        group = waiting.pop()
        pauses = [after.start - before.end for before, after in zip(group, group[1:])]
        seconds = group[-1].end - group[0].start
        if not pauses or (max(pauses) < LONG_PAUSE and seconds <= cutting.longest - 2 * cutting.padding):
            groups.append(group)
        else:
            at = _choose_pause(group, pauses, cutting.shortest) + 1
            waiting += [group[at:], group[:at]]
    return groups


def _choose_pause(group: list[Span], pauses: list[float], shortest: float) -> int:
    """The longest; one that leaves less than `shortest` on a side only if it is long, or where there is no other."""

    def rank(at: int) -> tuple[bool, bool, float]:
        least = min(group[at].end - group[0].start, group[-1].end - group[at + 1].start)
        return pauses[at] >= LONG_PAUSE, least >= shortest, pauses[at]

    return max(range(len(pauses)), key=rank)


def cut_steady(stretch: Span, probabilities: np.ndarray, longest: float) -> list[Span]:
    """A stretch without a pause, cut where speech is least certain in the second half of what is too long."""
    pieces, start = [], stretch.start
    while stretch.end - start > longest:
        first, last = (round((start + share * longest) / STEP_SECONDS) for share in (0.5, 1))
        at = (first + int(probabilities[first:last].argmin())) * STEP_SECONDS
        pieces.append(Span(start, at))
        start = at
    return [*pieces, Span(start, stretch.end)]


def plan_pieces(probabilities: np.ndarray, seconds: float, cutting: Cutting) -> list[Span]:
    """The pieces of a recording, with silence around them, but none of it in two pieces. Some may be too short."""
    room = cutting.longest - 2 * cutting.padding
    steady = [part for one in find_speech(probabilities) for part in cut_steady(one, probabilities, room)]
    spoken = [Span(group[0].start, group[-1].end) for group in divide(steady, cutting)]
    limits = [0.0, *((before.end + after.start) / 2 for before, after in zip(spoken, spoken[1:])), seconds]
    return [
        Span(max(low, one.start - cutting.padding), min(high, one.end + cutting.padding))
        for one, low, high in zip(spoken, limits, limits[1:])
    ]
