"""How high and how loud an utterance is spoken: measured, standardised, and heard by a voice as two numbers.

The pitch is the mean of the logarithm of the fundamental frequency over voiced frames, the energy the level of what is
not silence, in dB below full scale: as it is in the data, so data that were levelled hardly vary in it.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import VitsModel

from speech.audio import read_sound, speech_level
from speech.dataset import Utterance
from speech.pitch import find_pitch
from utils.cli import UserError
from utils.files import file_sha256
from utils.metrics_log import append_metrics, read_metrics
from utils.parallel import parallel_map

logger = logging.getLogger(__name__)

NAME = "prosody"  # of the part
CACHE = "prosody-1.jsonl"  # of what is measured; another number with each change of it
SEMITONE = math.log(2) / 12
SMALLEST = (SEMITONE / 2, 0.5)  # a deviation below these is noise: half a semitone, half a dB
SCALE = 10.0  # of two inputs, so that a layer from zero learns as soon as one of many: Adam's steps are of one size
FURTHEST = 2.5  # deviations from a voice's own mean; beyond, it has heard next to nothing
UNMEASURED: dict[str, Any] = {"means": {}, "deviations": []}  # settings of the part, before the data are measured
UNITS = {"pitch": "semitones", "energy": "dB"}
WHERE = "--train_data_dir"


class Prosody(NamedTuple):
    """Of an utterance; `pitch` is the natural logarithm of Hz, NaN where nothing is voiced, `energy` in dB."""

    pitch: float
    energy: float


def add_prosody(model: VitsModel, means: dict[str, list[float]], deviations: list[float]) -> None:
    """The layer that hears an utterance's two numbers; it has no bias, so the means of a speaker (0, 0) add nothing."""
    model.prosody_to_condition = torch.nn.Linear(len(UNITS), model.config.speaker_embedding_size, bias=False)
    torch.nn.init.normal_(model.prosody_to_condition.weight, std=1 / SCALE)


def hear_prosody(model: VitsModel, deviations: Tensor) -> Tensor:
    """What pitch and energy (batch, 2) add to the condition (batch, size)."""
    return model.prosody_to_condition(SCALE * deviations)


def measure_utterances(utterances: Sequence[Utterance], cache: Path, workers: int) -> list[Utterance]:
    """The utterances with their prosody; what is in the file `cache`, by the content of the sounds, is not measured."""
    sums = {one.path: one.sha256 or file_sha256(one.path) for one in utterances}
    known = {str(row.get("sha256")): row for row in read_metrics(cache) if {"pitch", "energy"} <= row.keys()}
    missing = list({digest: path for path, digest in sums.items() if digest not in known}.values())
    cache.parent.mkdir(parents=True, exist_ok=True)
    for path, found in zip(missing, parallel_map(measure_file, missing, workers if len(missing) > 100 else 1)):
        append_metrics(cache, row := {"sha256": sums[path], **found._asdict()})
        known[sums[path]] = row
    return [replace(one, prosody=_read_row(known[sums[one.path]])) for one in utterances]


def measure_file(path: Path) -> Prosody:
    return measure_prosody(*read_sound(path, WHERE))


def measure_prosody(samples: np.ndarray, rate: int) -> Prosody:
    pitch = find_pitch(samples, rate)
    mean = float(np.log(pitch.hertz[pitch.voiced]).mean()) if pitch.voiced.any() else math.nan
    return Prosody(mean, speech_level(samples, rate))


def _read_row(row: dict[str, Any]) -> Prosody:
    return Prosody(math.nan if row["pitch"] is None else row["pitch"], row["energy"])


def plan_prosody(utterances: Sequence[Utterance], speakers: Sequence[str], known: dict[str, Any]) -> dict[str, Any]:
    """The part's settings: of each speaker ("" in a voice of one) the means, of all together the deviations from them.

    What the voice's settings have already (`known`) stays, since its layer has learnt on that scale; but the means of
    a voice of one, which may learn another person now.
    """
    values: dict[str, list[Prosody]] = {}
    for one in utterances:
        values.setdefault(one.speaker if speakers else "", []).append(measured(one))
    kept = known["means"] if speakers else {}
    new = {name: rows for name, rows in values.items() if name not in kept}
    if bad := [name for name, rows in new.items() if np.isnan(rows).all(0).any()]:
        raise UserError(f"{WHERE}: nothing is voiced in the utterances of {bad[0] or 'the voice'}; leave --prosody out")
    means = {name: np.nanmean(rows, 0).tolist() for name, rows in new.items()} | kept
    rests = np.concatenate([np.array(rows) - means[name] for name, rows in values.items()])
    found = known["deviations"] or np.maximum(np.sqrt(np.nanmean(rests**2, 0)), SMALLEST).tolist()
    for (name, unit), value, least in zip(UNITS.items(), in_units(found), in_units(SMALLEST)):
        if value <= least:
            why = "; was it levelled? prepare_speech.py --no-level_loudness keeps it" if name == "energy" else ""
            what = f"the {name} of its utterances varies by less than {least:g} {unit}"
            logger.warning("%s: %s, too little to learn --%s from%s", WHERE, what, name, why)
    return {"means": means, "deviations": found}


def measured(one: Utterance) -> Prosody:
    if one.prosody is None:
        raise ValueError(f"{one.id} was not measured")
    return Prosody(*one.prosody)


def in_units(values: Iterable[float]) -> list[float]:
    """Differences of pitch and energy in semitones and dB."""
    return [value / unit for value, unit in zip(values, (SEMITONE, 1.0))]


def standardise(settings: dict[str, Any], one: Utterance, speakers: Sequence[str]) -> list[float]:
    """What the voice hears of an utterance: deviations from its speaker's means; 0 for a pitch that it has not."""
    means = settings["means"][one.speaker if speakers else ""]
    return [0.0 if math.isnan(a) else (a - b) / c for a, b, c in zip(measured(one), means, settings["deviations"])]


def asked_prosody(settings: dict[str, Any] | None, asked: dict[str, float]) -> list[float] | None:
    """What the voice hears of semitones and dB above its own; None where nothing is asked."""
    if not any(asked.values()):
        return None
    if settings is None:
        name = next(name for name, value in asked.items() if value)
        raise UserError(
            f"--{name} {asked[name]:g}: the voice has not learnt it; train it with train_tts.py --prosody, or leave "
            "it out"
        )
    return [asked[name] / width for name, width in zip(UNITS, in_units(settings["deviations"]))]


def describe_far(settings: dict[str, Any], asked: dict[str, float]) -> str:
    """What is asked beyond nearly all that the voice has heard, for a warning; "" for nothing."""
    wide = {name: FURTHEST * width for name, width in zip(UNITS, in_units(settings["deviations"]))}
    far = [f"--{name} {value:g}" for name, value in asked.items() if abs(value) > wide[name]]
    heard = ", ".join(f"{name} ±{width:.1f} {UNITS[name]}" for name, width in wide.items())
    return f"{', '.join(far)}: further than nearly all that the voice has heard ({heard})" if far else ""
