"""What the measurements of voices share: train and judge each trial once, and put the figures of its seeds in a table.

A trial is a folder: the run of train_tts.py and, in `evaluation`, what evaluate_speech.py says of the voice. What is
finished is not made again, so a measurement that was stopped goes on where it was.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.intervals import Estimate, mean_interval
from evaluation.report.formatting import format_difference, format_interval
from evaluation.report.spoken_page import read_spoken
from evaluation.report.spoken_verdict import find_figure
from utils import cli
from utils.console import print_table
from utils.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
# Of a figure its name in a table, and its unit; `mel` is train_tts.py's held-out loss, the others are the evaluation's.
FIGURES = {
    "mel": ("mel distance", ""),
    "cer": ("characters heard wrong", "%"),
    "similarity": ("likeness of the speaker", ""),
    "mcd": ("mel-cepstral distortion, dB", ""),
    "duration_error": ("duration error", "%"),
}
Scores = dict[str, float]  # of one trial, by the figure


def run_script(name: str, *words: object) -> None:
    """A script of this repository, which must succeed; its command is printed."""
    command = [name, *map(str, words)]
    print(f"\n$ python {' '.join(command)}", flush=True)
    if code := subprocess.run([sys.executable, str(ROOT / name), *command[1:]], cwd=ROOT).returncode:
        raise cli.UserError(f"{name} failed with exit code {code}; its message is above")


def train(run: Path, *words: object) -> None:
    """A training by train_tts.py, if it isn't finished."""
    if not (run / "summary.json").is_file():
        run_script("train_tts.py", *words, "--output_dir", run)


def judge(voice: Path | str, real: Path, out: Path, *words: object) -> dict[str, Any]:
    """metrics.json of a voice that speaks the sentences of some recordings, with the demo's judges."""
    if not (out / "metrics.json").is_file():
        judges = "--asr", "demo", "--speaker_encoder", "demo"
        voices = "--pretrained_model_name_or_path", voice
        run_script("evaluate_speech.py", "--real", real, *voices, *judges, "--output_dir", out, *words)
    return read_spoken(out)


def read_scores(run: Path) -> Scores:
    """The figures of a trial: of its evaluation, and the mel distance of its last validation."""
    metrics = read_spoken(run / "evaluation")
    found = {name: find_figure(metrics, name) for name in FIGURES}
    scores = {name: one["value"] for name, one in found.items() if one}
    losses = [record["val_loss"] for record in read_metrics(run / "metrics.jsonl") if "val_loss" in record]
    return scores | ({"mel": losses[-1]} if losses else {})


def over_seeds(trials: Sequence[Scores], figure: str) -> Estimate:
    """The mean of a figure over seeds, with Student's interval."""
    return mean_interval([one[figure] for one in trials])


def apart(trials: Sequence[Scores], base: Sequence[Scores], figure: str) -> Estimate:
    """How far trials are above others of the same seeds, pair by pair."""
    return mean_interval([one[figure] - other[figure] for one, other in zip(trials, base, strict=True)])


def describe(trials: Mapping[str, Sequence[Scores]], base: str, figures: Sequence[str]) -> list[list[str]]:
    """A row for each name: the figures of its seeds, and how far they are from those of `base`."""
    rows = []
    for name, ours in trials.items():
        row = [name]
        for figure in figures:
            unit = FIGURES[figure][1]
            cell = "{} ({})".format(*format_interval(over_seeds(ours, figure), unit))
            if name != base:
                cell += "; {} ({})".format(*format_difference(apart(ours, trials[base], figure), unit))
            row.append(cell)
        rows.append(row)
    return rows


def headers(first: str, figures: Sequence[str]) -> list[str]:
    return [first, *(FIGURES[figure][0] for figure in figures)]


def show(rows: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """The table on the screen, and as a page of docs/ has it."""
    print()
    print_table(rows, names)
    print(f"\n{in_markdown(rows, names)}")


def in_markdown(rows: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
