"""Rules on what the training gave: validation images and sounds, the best weights, other runs, the evaluation."""

import math
import struct
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from service.report.findings import Finding
from service.report.loss_rules import FEWEST, judge_held_out
from service.report.run_record import RunRecord, is_number, read_evaluation, runs_beside

# Settings that a held-out loss depends on besides the weights: only runs that share them can be compared.
OF_THE_LOSS = "pretrained_model_name_or_path resolution seed num_validation_samples prediction_type".split()
COMPARED = (
    "learning_rate lr_scheduler rank lora_alpha effective_batch_size max_train_steps num_train_epochs optimizer "
    "snr_gamma noise_offset caption_dropout lora_dropout use_ema train_text_encoder"
).split()
ALIKE = 0.01  # held-out losses
MOST_SHOWN = 4  # settings that differ
QUIET, FULL, MOST_FULL = -50.0, 0.999, 0.001  # dB of the loudest part; a clipped sample; the share of them
LENGTH_OFF = 0.25  # of the recording's length
MUCH_HEARD_WRONG = 0.1  # of the characters
WEAK_OPPONENT = 0.05  # of the loss of discriminators that only guess


def judge_images(run: RunRecord) -> Finding | None:
    """Validation images that are black, of one colour or not finite."""
    counts = run.pairs("validation/invalid_images")
    if not counts:
        return None
    (step, newest), total = counts[-1], sum(count for _, count in counts)
    values = {"count": total, "newest": newest, "step": step}
    if newest:
        return Finding("finding.invalid_images", "bad", values, "advice.invalid_images")
    if total:
        return Finding("finding.invalid_images_before", "note", values)
    return Finding("finding.valid_images", "good", values | {"validations": len(counts)})


def judge_best(run: RunRecord) -> Finding | None:
    """Which weights to use."""
    pairs = run.pairs("val_loss")
    if len(pairs) < 2 or not (run.folder / "best").is_dir():
        return None
    step, best = min(pairs, key=lambda pair: pair[1])
    values = {"step": step, "best": best, "last": pairs[-1][1]}
    if step < pairs[-1][0]:
        worse = judge_held_out(run)
        says_so = worse is not None and worse.key == "finding.over_fits"  # in its own advice
        return Finding("finding.best_before", "note", values, None if says_so else "advice.best_before")
    before = min(loss for _, loss in pairs[:-1])
    if run.has_ended and best < (1 - ALIKE) * before:
        return Finding("finding.best_is_last", "note", values, "advice.best_is_last")
    return Finding("finding.best_so_far", "good", values)


def judge_beside(run: RunRecord) -> Finding | None:
    """The best held-out loss beside that of the best other run of the folder that can be compared.

    Before the end only what the others had reached by the same step counts, and nothing is called odd.
    """
    last = math.inf if run.has_ended else run.step
    own = min(run.values("val_loss"), default=None)
    others = [other for other in runs_beside(run) if is_comparable(run, other, last)] if own is not None else []
    if not others:
        return None
    best = min(others, key=lambda other: min(losses_until(other, last)))
    theirs = min(losses_until(best, last))
    values: dict[str, float | str] = {"runs": len(others), "other": best.name, "theirs": theirs, "own": own}
    if not run.has_ended:
        return Finding("finding.beside_so_far", "note", values | {"step": run.step})
    if differ := describe_differences(run, best):
        values["differ"] = differ
    if abs(own - theirs) <= ALIKE * theirs:
        return Finding("finding.beside_equal", "good", values)
    if own < theirs:
        return Finding("finding.beside_better", "good", values)
    return Finding("finding.beside_worse" if differ else "finding.beside_worse_alike", "odd", values)


def losses_until(run: RunRecord, last: float) -> list[float]:
    return [loss for step, loss in run.pairs("val_loss") if step <= last]


def is_comparable(run: RunRecord, other: RunRecord, last: float) -> bool:
    data = run.environment.get("dataset")
    same = all(run.settings.get(name) == other.settings.get(name) for name in OF_THE_LOSS)
    trained = len(losses_until(other, last)) > 1
    return same and trained and bool(data) and other.environment.get("dataset") == data


def describe_differences(run: RunRecord, other: RunRecord) -> str:
    """`rank` 8 (16): the run's settings, with those of the other one in brackets."""
    pairs = [(name, run.settings.get(name), other.settings.get(name)) for name in COMPARED]
    found = [f"`{name}` {own} ({theirs})" for name, own, theirs in pairs if own != theirs]
    return ", ".join(found[:MOST_SHOWN])


def judge_evaluation(run: RunRecord) -> Finding | None:
    """How many figures of the evaluation are worse than those of real images or recordings, and which copies it has."""
    figures = [one for one in read_evaluation(run).get("figures", []) if is_measured(one)]
    with_floor = [one for one in figures if is_measured(one.get("floor"))]
    copies = [one["value"] for one in figures if str(one.get("id", "")).startswith(("copies", "near_copies"))]
    if copies and max(copies) > 0.05:
        return Finding("finding.copies", "bad", {"share": max(copies)}, "advice.copies")
    wrong = [one["value"] for one in figures if one.get("id") == "cer"]
    if wrong:
        if wrong[0] > MUCH_HEARD_WRONG:
            return Finding("finding.heard_wrong", "odd", {"share": wrong[0]}, "advice.heard_wrong")
        return Finding("finding.heard_wrong", "good", {"share": wrong[0]})
    if not with_floor:
        return None
    values = {"worse": sum(map(is_worse, with_floor)), "figures": len(with_floor)}
    if values["worse"]:
        return Finding("finding.evaluated_worse", "note", values, "advice.evaluated_worse")
    return Finding("finding.evaluated_alike", "good", values)


def is_measured(figure: Any) -> bool:
    return isinstance(figure, dict) and all(is_number(figure.get(name)) for name in ("value", "low", "high"))


def is_worse(figure: dict[str, Any]) -> bool:
    """Whether the interval of a figure lies beyond that of its floor, on the worse side."""
    at_n = figure.get("at_floor_n")
    low, high = (at_n, at_n) if is_number(at_n) else (figure["low"], figure["high"])
    above, below = low > figure["floor"]["high"], high < figure["floor"]["low"]
    return {"lower": above, "higher": below}.get(figure.get("better", ""), above or below)


# Voices


class Sound(NamedTuple):
    """Of a file: its length, its loudest 20 ms in dB below full scale, the share of clipped samples."""

    seconds: float
    level: float
    clipped: float


def measure_sound(path: Path) -> Sound | None:
    """None of a file that is not whole, as where a drive has only a part of it yet."""
    from scipy.io import wavfile  # here: it takes a moment to import, and runs on images need none

    try:
        rate, samples = wavfile.read(path)
    except (OSError, ValueError, struct.error):
        return None
    samples = samples.astype(np.float64) / (np.iinfo(samples.dtype).max if samples.dtype.kind == "i" else 1)
    part = max(1, rate // 50)
    parts = samples[: len(samples) // part * part].reshape(-1, part)
    power = max(np.square(parts).mean(1).max(initial=0.0), 1e-12)
    return Sound(len(samples) / rate, float(10 * np.log10(power)), float((np.abs(samples) >= FULL).mean()))


def newest_sounds(run: RunRecord) -> list[Path]:
    """What the voice said in its newest validation."""
    paths = sorted(path for path in run.folder.glob("validation/step-*_*.wav") if not path.stem.endswith("_real"))
    return [path for path in paths if path.name.partition("_")[0] == paths[-1].name.partition("_")[0]]


def judge_sounds(run: RunRecord) -> Finding | None:
    """Sounds of the newest validation that are silent or clipped."""
    sounds = [sound for path in newest_sounds(run) if (sound := measure_sound(path))]
    if not sounds:
        return None
    silent = sum(sound.level < QUIET for sound in sounds)
    clipped = sum(sound.clipped > MOST_FULL for sound in sounds)
    values = {"sounds": len(sounds), "silent": silent, "clipped": clipped}
    if silent:
        return Finding("finding.silent_sounds", "bad", values, "advice.silent_sounds")
    if clipped:
        return Finding("finding.clipped_sounds", "odd", values, "advice.clipped_sounds")
    return Finding("finding.sounds", "good", values)


def judge_lengths(run: RunRecord) -> Finding | None:
    """How far the lengths of held-out sentences are off."""
    errors = run.values("val_duration_error")
    if not errors:
        return None
    if errors[-1] > LENGTH_OFF:
        return Finding("finding.lengths_off", "odd", {"error": errors[-1]}, "advice.lengths_off")
    return Finding("finding.lengths", "good", {"error": errors[-1]})


def judge_discriminators(run: RunRecord) -> Finding | None:
    """Discriminators that are hardly wrong any more: the voice then learns little from them.

    The loss of those that only guess is known from the records: the highest mean of ten in a row.
    """
    losses = run.values("loss_discriminators")
    losses = losses[next((i for i, loss in enumerate(losses) if loss), len(losses)) :]  # from --discriminator_start on
    if len(losses) < 3 * FEWEST:
        return None
    guessing = max(fmean(losses[i : i + FEWEST]) for i in range(len(losses) - FEWEST + 1))
    now = fmean(losses[-FEWEST:])
    if now < WEAK_OPPONENT * guessing:
        return Finding("finding.discriminators_win", "odd", {"now": now, "highest": guessing}, "advice.discriminators")
    return None
