"""Where recordings are cut."""

import numpy as np
import pytest

from speech.pauses import Cutting, Span, divide, find_speech, plan_pieces
from speech.vad import STEP_SECONDS, speech_probabilities
from tests.toy_speech import toy_speech

RATE = 16_000


def probabilities(*stretches: tuple[float, float]) -> np.ndarray:
    """Speech (1) and pauses (0), in seconds: (speech, pause), (speech, pause), …"""
    parts = [
        np.full(round(seconds / STEP_SECONDS), value) for pair in stretches for value, seconds in zip((1, 0), pair)
    ]
    return np.concatenate(parts).astype(np.float32)


def lengths(found: np.ndarray, cutting: Cutting) -> list[float]:
    return [round(one.seconds, 1) for one in plan_pieces(found, len(found) * STEP_SECONDS, cutting)]


def test_the_closure_of_a_plosive_is_no_pause():
    (one,) = find_speech(probabilities((1, 2 * STEP_SECONDS), (1, 0)))
    assert one.seconds == pytest.approx(2, abs=0.1)
    assert len(find_speech(probabilities((1, 4 * STEP_SECONDS), (1, 0)))) == 2


def test_a_recording_is_cut_at_its_longest_pauses_and_no_more_than_needed():
    found = probabilities((4, 0.3), (4, 0.6), (4, 0.2), (4, 0.5), (3, 0))
    assert lengths(found, Cutting(1, 12, 0)) == [8.3, 11.7]
    assert lengths(found, Cutting(1, 30, 0)) == [20.6]


def test_no_piece_is_longer_than_asked_or_holds_a_long_pause():
    random = np.random.default_rng(0)
    found = probabilities(*zip(random.exponential(3, 200), random.exponential(0.5, 200)))
    for cutting in (Cutting(), Cutting(1, 6, 0.3)):
        pieces = plan_pieces(found, len(found) * STEP_SECONDS, cutting)
        assert max(one.seconds for one in pieces) <= cutting.longest + 1e-6
        spoken = [find_speech(found[_steps(piece)]) for piece in pieces]
        gaps = [after.start - before.end for one in spoken for before, after in zip(one, one[1:])]
        assert max(gaps) < 1
        heard = sum(found[_steps(piece)].sum() for piece in pieces)
        assert heard == pytest.approx(found.sum(), abs=len(pieces))  # nothing that was said is lost


def _steps(span: Span) -> slice:
    return slice(round(span.start / STEP_SECONDS), round(span.end / STEP_SECONDS))


def test_a_short_rest_stays_with_its_neighbour_where_another_pause_will_do():
    found = probabilities((6, 0.4), (6, 0.6), (0.5, 0))
    assert lengths(found, Cutting(1, 12, 0)) == [6, 7.1]


def test_the_padding_is_of_the_pause_and_in_one_piece_only():
    pieces = plan_pieces(probabilities((5, 0.2), (5, 1.5), (5, 0.05)), 16.75, Cutting(1, 6, 0.2))
    assert [(before.end, after.start) for before, after in zip(pieces, pieces[1:])][0] == pytest.approx(
        (5.1, 5.1), abs=0.1
    )
    assert pieces[0].start == 0 and pieces[-1].end == pytest.approx(16.75, abs=0.1)
    assert pieces[2].start - pieces[1].end == pytest.approx(1.1, abs=0.1)


def test_a_recording_of_a_thousand_pauses_is_divided():
    stretches = [Span(i, i + 0.9 - i * 1e-5) for i in range(1200)]  # each pause a bit longer than the one before
    assert sum(map(len, divide(stretches, Cutting()))) == 1200


def test_sentences_are_found_whole_by_silero():
    quiet = np.random.default_rng(1).normal(0, 3e-4, 2 * RATE).astype(np.float32)
    said = [toy_speech(seconds, seed) for seed, seconds in enumerate((3.0, 4.0, 5.0))]
    recording = np.concatenate([part for one in said for part in (quiet, one)] + [quiet])
    pieces = plan_pieces(speech_probabilities(recording, RATE), len(recording) / RATE, Cutting())
    starts = np.cumsum([2, 5, 6])
    assert [one.start for one in pieces] == pytest.approx(list(starts), abs=0.35)
    assert [one.end for one in pieces] == pytest.approx(
        [start + len(one) / RATE for start, one in zip(starts, said)], abs=0.35
    )
    assert plan_pieces(speech_probabilities(quiet, RATE), 2, Cutting()) == []
