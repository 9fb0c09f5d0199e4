"""Figures of a voice, from what was measured of each sentence: with intervals, beside recordings and copy-synthesis.

A row is a sentence as metrics.json has it: `characters` and `words` of its text, and in `sounds` what was measured of
each kind of sound: generated, real (the recording), copy (the recording through the voice's encoder and decoder).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.figures import Figure, measure
from evaluation.intervals import Estimate, bootstrap
from utils.cli import UserError

Row = dict[str, Any]
Part = Callable[[Row, dict[str, Any]], tuple[float | None, float | None]]  # of a figure: what is divided by what
KINDS = ("generated", "copy", "real")
LEAST = 2  # sentences for an interval
FEW = 10  # with fewer sentences no voice is called better or worse: their interval is too narrow too often
NO_DIFFERENCE, TOO_FEW = "no difference shown", "too few sentences to tell"
UNDECIDED = NO_DIFFERENCE, TOO_FEW
FIGURES = (
    Figure("cer", "understood", "Characters heard wrong", "lower", "%"),
    Figure("wer", "understood", "Words heard wrong", "lower", "%"),
    Figure("similarity", "speaker", "Likeness of the speaker", "higher"),
    Figure("mcd", "sound", "Mel-cepstral distortion, dB", "lower"),
    Figure("f0_rmse", "sound", "Pitch: error of its logarithm", "lower"),
    Figure("f0_correlation", "sound", "Pitch: correlation", "higher"),
    Figure("voicing_error", "sound", "Voicing errors", "lower", "%"),
    Figure("duration_error", "tempo", "Duration error", "lower", "%"),
    Figure("length", "tempo", "Length beside the recordings", "near 1"),
    Figure("real_time_factor", "tempo", "Real-time factor", "lower"),
)
HOW = {
    "cer": "insertions, deletions and substitutions of characters that make the text of what the recogniser heard, "
    "over the characters of all texts; both texts normalised, in lower case and without punctuation",
    "wer": "the same of words",
    "similarity": "cosine of a sentence's vector and the mean of those of the speaker's other recordings",
    "mcd": "coefficients 1 to 13 of the mel cepstrum, frames aligned by dynamic time warping, silence at the ends "
    "trimmed; the recording itself would get 0",
    "f0_rmse": "of the natural logarithm of the pitch (YIN), over aligned frames that are voiced in both; 0.058 is a "
    "semitone",
    "f0_correlation": "of the logarithm of the pitch over the same frames, the mean over sentences",
    "voicing_error": "the share of aligned frames that are voiced in one sound only",
    "duration_error": "how much longer or shorter than the recording, as a share of it, the mean over sentences",
    "length": "seconds of all generated sentences over those of the recordings; below 1 the voice is faster",
    "real_time_factor": "seconds that speaking took over seconds of sound; below 1 is faster than real time",
}


def _own(name: str) -> Part:
    return lambda row, sound: (sound.get(name), 1.0)


PARTS: dict[str, Part] = {
    **{name: _own(name) for name in ("similarity", "mcd", "f0_rmse", "f0_correlation", "voicing_error")},
    "cer": lambda row, sound: (sound.get("character_edits"), row["characters"]),
    "wer": lambda row, sound: (sound.get("word_edits"), row["words"]),
    "duration_error": lambda row, sound: (sound.get("duration_error"), 1.0),
    "length": lambda row, sound: (sound.get("spoken_seconds"), sound.get("real_seconds")),
    "real_time_factor": lambda row, sound: (sound.get("speaking_seconds"), sound.get("seconds")),
}


def read_parts(rows: Sequence[Row], kind: str, name: str) -> np.ndarray:
    """(sentences, 2): what a figure divides by what, NaN where it was not measured."""
    found = [PARTS[name](row, row["sounds"].get(kind, {})) for row in rows]
    return np.array([(np.nan, np.nan) if None in pair else pair for pair in found], np.float64).reshape(-1, 2)


def ratio(parts: np.ndarray) -> float:
    below = float(parts[:, 1].sum())
    return float(parts[:, 0].sum()) / below if below else np.nan


def estimate_ratio(parts: np.ndarray, resamples: int, seed: int) -> tuple[Estimate, int]:
    """The figure over the sentences that have it, and their number; refused where these are fewer than two."""
    known = parts[~np.isnan(parts).any(1)]
    if len(known) < LEAST:
        raise UserError(f"measured of {len(known)} sentences, an interval needs at least {LEAST}")
    return bootstrap(known, ratio, resamples, seed), len(known)


def estimate_difference(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> tuple[Estimate, int]:
    """The second less the first over the sentences that both have; each resample has the same ones of both."""
    both = np.concatenate([first, second], 1)
    both = both[~np.isnan(both).any(1)]
    if len(both) < LEAST:
        raise UserError(f"{len(both)} sentences in common, an interval needs at least {LEAST}")
    return bootstrap(both, lambda some: ratio(some[:, 2:]) - ratio(some[:, :2]), resamples, seed), len(both)


def judge_sentences(rows: Sequence[Row], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Every figure that was measured, as metrics.json has it; `beside` what recordings and copies get, if they do.

    There, too, how much the voice is above them (`difference`), over the same sentences.
    """
    figures = []
    for figure in FIGURES:
        parts = {kind: read_parts(rows, kind, figure.id) for kind in KINDS}
        if np.isnan(parts["generated"]).any(1).all():
            continue
        try:
            found, n = estimate_ratio(parts["generated"], resamples, seed)
        except UserError as error:
            figures.append(figure.refuse(str(error)).as_json() | {"how": HOW[figure.id], "beside": {}})
            continue
        beside = {kind: judge_beside(parts["generated"], parts[kind], resamples, seed) for kind in ("real", "copy")}
        one = figure.as_json() | measure(found, n, resamples=resamples).as_json()
        figures.append(one | {"how": HOW[figure.id], "beside": {kind: at for kind, at in beside.items() if at}})
    return figures


def judge_beside(generated: np.ndarray, other: np.ndarray, resamples: int, seed: int) -> dict[str, Any] | None:
    try:
        found, n = estimate_ratio(other, resamples, seed)
        apart, shared = estimate_difference(other, generated, resamples, seed)
    except UserError:  # not measured of that kind
        return None
    return measure(found, n).as_json() | {"difference": measure(apart, shared).as_json()}


def compare_sentences(runs: Mapping[str, Sequence[Row]], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Of each figure, what each run has over the sentences of all runs, and its difference from the first run.

    `runs`: {name: rows}, with the same sentences in the same order.
    """
    first, *others = runs
    compared = []
    for figure in FIGURES:
        parts = {name: read_parts(rows, "generated", figure.id) for name, rows in runs.items()}
        shared = ~np.isnan(np.concatenate(list(parts.values()), 1)).any(1)
        if shared.sum() < LEAST:
            continue
        values = {name: estimate_ratio(some[shared], resamples, seed) for name, some in parts.items()}
        apart = {
            name: estimate_difference(parts[first][shared], parts[name][shared], resamples, seed) for name in others
        }
        one = figure.as_json() | {"how": HOW[figure.id], "n": int(shared.sum())}
        one["runs"] = {name: measure(found).as_json() for name, (found, _) in values.items()}
        one["differences"] = {name: measure(found, n).as_json() for name, (found, n) in apart.items()}
        compared.append(one)
    return compared


def judge_difference(difference: dict[str, Any], better: str) -> tuple[str, str]:
    """(words, their colour) for how much a voice is above another sound."""
    if difference.get("n", FEW) < FEW:  # an earlier version noted no n
        return TOO_FEW, "soft"
    if difference["low"] <= 0 <= difference["high"]:
        return NO_DIFFERENCE, "soft"
    if better not in ("lower", "higher"):
        return ("longer", "unsure") if difference["value"] > 0 else ("shorter", "unsure")
    good = (difference["value"] > 0) == (better == "higher")
    return ("better", "good") if good else ("worse", "bad")


def choose_examples(rows: Sequence[Row], count: int, seed: int) -> dict[str, list[int]]:
    """Places of rows: the best, the worst, and others at random; by characters heard wrong, then by distortion."""

    def badness(place: int) -> tuple[float, float]:
        sound = rows[place]["sounds"]["generated"]
        wrong = (sound.get("character_edits") or 0) / max(1, rows[place]["characters"])
        return wrong, sound.get("mcd") or 0.0

    order = sorted(range(len(rows)), key=badness)
    each = min(count, len(rows) // 3) or 1
    ends = {"worst": order[::-1][:each], "best": [place for place in order[:each] if len(rows) > each]}
    rest = [place for place in order if place not in {*ends["worst"], *ends["best"]}]
    chosen = np.random.default_rng(seed).permutation(len(rest))[:count]
    return ends | {"random": [rest[i] for i in sorted(chosen)]}
