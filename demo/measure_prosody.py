"""Measure what --prosody, --style_tokens and --style_adaptive_norm do, on recordings of known pitch, rate and level.

    python demo/measure_prosody.py
    python demo/measure_prosody.py --max_train_steps 600 --output_dir runs/measured_prosody_600

espeak-ng speaks sentences as `clara`, whom demo-voice knows, each at a rate, pitch and range of its own, and each is
made quieter by a drawn number of dB. Voices with and without the parts are trained on them alike; what they are then
asked for is compared with what is measured in their speech. Stopped and started again, it goes on where it was.
"""

import argparse
import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli  # first: it says in one line which package is missing

# isort: split
import numpy as np

from demo import trials
from demo.voice_corpus import JUDGED, plan_takes, read_sentences, write_takes
from evaluation.intervals import Estimate, bootstrap, mean_interval
from evaluation.report.formatting import format_difference, format_interval
from speech.audio import read_sound, trim_silence, write_sound
from speech.dataset import read_records
from speech.distances import count_edits
from speech.normalise import plain_text
from speech.pitch import find_pitch
from speech.prosody import SEMITONE, measure_prosody
from speech.recogniser import load_recogniser
from speech.styles import choose_style
from speech.synthesis import Speaking, fold_weight_norm, speak
from speech.voices import Voice, load_voice
from utils.files import parse_json, read_file, write_lines

SPEAKER, QUIETEST = "clara", -12  # dB
TRAIN, TEST = range(300), JUDGED[:60]  # of the sentences to train on, and of unseen ones
VOICES = {
    "plain": "",
    "prosody": "--prosody",
    "styles": "--style_tokens 10",
    "styles-norms": "--style_tokens 10 --style_adaptive_norm",
}
TRAINING = """--pretrained_model_name_or_path demo-voice --train_batch_size 8 --effective_batch_size 8
    --learning_rate 8e-4 --lr_scheduler cosine --lr_warmup_steps 20 --discriminator_start 60 --validation_steps 0
    --checkpointing_steps 50 --checkpoints_total_limit 1 --report_to none"""  # as configs/demo_voice.yaml
NEUTRAL = 80  # sentences that are spoken as the voice speaks by itself
GRID = {"pitch": (-4, -2, 0, 2, 4), "energy": (-4, 0, 4), "rate": (0.8, 1.0, 1.25)}
AT_ONCE = 2  # sentences for each point of the grid, and for each reference
# What is asked, and the measure that should follow it: of the grid, and of a reference's true settings of espeak-ng.
FOLLOWED = {"grid": {name: name for name in GRID}}
FOLLOWED["references"] = {"pitch": "pitch", "range": "range", "rate": "rate", "level": "energy"}

Row = dict[str, Any]


def write_recordings(folder: Path, split: str, indices: Sequence[int]) -> list[Row]:
    """Sentences of `clara`, of drawn rate, pitch, range and level; returns the rows of metadata.jsonl, which say so."""
    table = folder / "metadata.jsonl"
    if not table.is_file():
        makeshift = folder.with_name(f"{folder.name}.whole")
        write_takes(makeshift, plan_takes([SPEAKER], split, indices, ("rate", "pitch", "range")))
        rows = [row for _, row in read_records(makeshift / "metadata.jsonl", "--output_dir")]
        for row in rows:
            row["level"] = round(random.Random(f"level {row['file_name']}").uniform(QUIETEST, 0), 2)
            sound = read_sound(makeshift / row["file_name"], "--output_dir")
            (folder / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            write_sound(folder / row["file_name"], sound.samples * 10 ** (row["level"] / 20), sound.rate)
        write_lines(table, rows)
    return [row for _, row in read_records(table, "--output_dir")]


def measure(samples: np.ndarray, rate: int, text: str) -> dict[str, float]:
    """Pitch in semitones and the semitones that it spreads over, energy in dB, letters a second."""
    found, pitch = measure_prosody(samples, rate), find_pitch(samples, rate)
    spread = np.log(pitch.hertz[pitch.voiced]).std() / SEMITONE if pitch.voiced.any() else np.nan
    seconds = len(trim_silence(samples, rate)) / rate
    letters = sum(one.isalpha() for one in text)
    return {"pitch": found.pitch / SEMITONE, "energy": found.energy, "rate": letters / seconds, "range": float(spread)}


def plan_speech(voice: Voice, recordings: Path, rows: list[Row]) -> Iterator[tuple[str, Row, Speaking, str]]:
    """Of each utterance the task that it belongs to, what is asked, how to say it, and the text.

    A voice that knows no pitch and energy is asked for the rates of the grid alone, one without styles for no style.
    """
    texts = [sentence.text.lower() for sentence in read_sentences("unseen")]
    for index in JUDGED[:NEUTRAL]:
        yield "neutral", {}, Speaking(speaker=SPEAKER), texts[index]
    hears = getattr(voice.model.config, "parts", None) or {}
    turns = itertools.cycle(JUDGED)
    for values in itertools.product(*GRID.values()):
        asked = dict(zip(GRID, values))
        how = Speaking(asked["rate"], speaker=SPEAKER)
        if "prosody" in hears:
            how = replace(how, pitch=asked["pitch"], energy=asked["energy"])
        for index in itertools.islice(turns, AT_ONCE):
            yield "grid", asked, how, texts[index]
    for row in rows:
        reference = recordings / row["file_name"] if "style_tokens" in hears else None
        how = Speaking(speaker=SPEAKER, style=choose_style(voice.model, reference, None))
        for index in itertools.islice(turns, AT_ONCE):
            yield "references", {name: row[name] for name in FOLLOWED["references"]}, how, texts[index]


def listen(run: Path, recordings: Path, rows: list[Row]) -> list[Row]:
    """What is measured and heard of a voice, a row for each utterance; kept in heard.jsonl."""
    if not (run / "heard.jsonl").is_file():
        voice, recognise, found = load_voice(str(run)), load_recogniser("demo", "cpu", "pt-br"), []
        fold_weight_norm(voice.model)
        rate = voice.model.config.sampling_rate
        for seed, (task, asked, how, text) in enumerate(plan_speech(voice, recordings, rows)):
            samples = speak(voice, text, seed, how)
            heard, meant = (plain_text(one, "pt-br") for one in (recognise([samples])[0].text, text))
            wrong = count_edits(heard, meant) / len(meant)
            found.append({"task": task, "asked": asked, "found": measure(samples, rate, text), "cer": wrong})
        write_lines(run / "heard.jsonl", found)
    return [parse_json(line) for line in read_file(run / "heard.jsonl").splitlines()]


def of_task(heard: list[Row], task: str) -> list[Row]:
    return [row for row in heard if row["task"] == task]


def follow(rows: list[Row], asked: str, found: str) -> tuple[Estimate, Estimate]:
    """The correlation of what was asked with what was measured, and the slope of the latter, with intervals."""
    pairs = np.array([[row["asked"][asked], row["found"][found]] for row in rows], float)
    pairs[:, 1] = np.where(np.isfinite(pairs[:, 1]), pairs[:, 1], np.nanmean(pairs[:, 1]))  # nothing is voiced: no tie
    groups = pairs.reshape(-1, AT_ONCE, 2)  # of one point or reference: resampled together

    def slope(some: np.ndarray) -> float:
        x, y = some.reshape(-1, 2).T
        return float(np.cov(x, y)[0, 1] / max(x.var(ddof=1), 1e-12))

    def correlation(some: np.ndarray) -> float:
        return float(np.corrcoef(some.reshape(-1, 2).T)[0, 1])

    return bootstrap(groups, correlation), bootstrap(groups, slope)


def describe_errors(voices: dict[str, list[Row]], task: str) -> list[list[str]]:
    """Of each voice the share of characters heard wrong, and how far it is above the plain voice's, pair by pair."""
    plain, table = np.array([row["cer"] for row in of_task(voices["plain"], task)]), []
    for name, heard in voices.items():
        errors = np.array([row["cer"] for row in of_task(heard, task)])
        beside = "" if name == "plain" else "{} ({})".format(*format_difference(mean_interval(errors - plain), "%"))
        share = "{} ({})".format(*format_interval(mean_interval(errors), "%"))
        table.append([task, name, share, beside, f"{len(errors)}"])
    return table


def describe_following(voices: dict[str, list[Row]], task: str, some: Sequence[str]) -> list[list[str]]:
    table = []
    for name, (asked, found) in itertools.product(some, FOLLOWED[task].items()):
        rows = of_task(voices[name], task)
        cells = ["{} ({})".format(*format_interval(one)) for one in follow(rows, asked, found)]
        table.append([task, name, asked, *cells, f"{len(rows)}"])
    return table


def main(args: argparse.Namespace) -> None:
    cli.show_settings(args)
    if args.dry_run:
        return
    out = args.output_dir
    write_recordings(out / "recordings", "train", TRAIN)
    rows = write_recordings(out / "references", "unseen", TEST)
    heard = {}
    for name, words in VOICES.items():
        words = f"{words} {TRAINING} --max_train_steps {args.max_train_steps} --seed {args.seed}"
        trials.train(out / name, "--train_data_dir", out / "recordings", *words.split())
        heard[name] = listen(out / name, out / "references", rows)
    following = describe_following(heard, "grid", ["plain", "prosody"])
    following += describe_following(heard, "references", ["plain", "styles", "styles-norms"])
    trials.show(following, ["of", "voice", "asked", "correlation with what is measured", "slope", "n"])
    errors = [row for task in ("neutral", "grid", "references") for row in describe_errors(heard, task)]
    trials.show(errors, ["of", "voice", "characters heard wrong", "above the plain voice's", "n"])


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--max_train_steps", type=cli.positive, default=240, help="of each voice")
    parser.add_argument("--seed", type=cli.seed_number, default=0, help="of the trainings")
    parser.add_argument(
        "--output_dir",
        type=cli.read_path,
        default=Path("runs/measured_prosody"),
        help="what is there is not made again",
    )
    cli.run(main, cli.parse_args(parser))
