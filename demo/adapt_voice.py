"""Teach the embedded voice a speaker that it has never heard, by 60 recordings, as `make demo-voice` runs it.

    python demo/adapt_voice.py
    python demo/adapt_voice.py --output_dir runs/demo_voice --dry_run

Every step is a command that a user could type. Stopped and started again, each goes on where it was.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli  # first: it says in one line which package is missing

# isort: split
from demo.run import Step, run_steps
from evaluation.report.spoken_page import read_spoken
from evaluation.report.spoken_verdict import find_figure, say
from utils.console import print_table

RECORDINGS, SPEAKER = "demo/voice/corpus/held_back", "elisa"
TEXT = "Bom dia! Eu sou uma voz nova, e aprendi a falar com sessenta frases. Hoje é dia 12 de março, e são 14h30."
SHOWN = ("cer", "similarity", "mcd", "f0_rmse", "duration_error")


def steps(out: Path) -> list[Step]:
    names = ("before", "voice", "spoken", "after", "comparison")
    before, voice, spoken, after, comparison = (shlex.quote(os.path.relpath(out / name, ROOT)) for name in names)
    judge = f"evaluate_speech.py --real {RECORDINGS}/test --asr demo --speaker_encoder demo"
    return [
        Step(
            "judge the embedded voice by sentences of the speaker",
            f"{judge} --pretrained_model_name_or_path demo-voice --output_dir {before}",
            out / "before/report.html",
        ),
        Step(
            "train it on other sentences of the speaker",
            f"train_tts.py --config configs/demo_voice.yaml --train_data_dir {RECORDINGS}/train --held_out 0.1 "
            f"--output_dir {voice}",
            out / "voice/README.md",
        ),
        Step(
            "speak",
            f"synthesize.py --pretrained_model_name_or_path {voice} --speaker {SPEAKER} --text '{TEXT}' "
            f"--output_dir {spoken}",
            out / "spoken/audio/000000.wav",
        ),
        Step(
            "judge the new voice",
            f"{judge} --pretrained_model_name_or_path {voice} --output_dir {after}",
            out / "after/report.html",
        ),
        Step(
            "compare both",
            f"evaluate_speech.py --compare {before} {after} --output_dir {comparison}",
            out / "comparison/comparison.html",
        ),
    ]


def summarise(out: Path) -> list[list[str]]:
    """Of each figure what the voice gets before and after, and what the speaker's recordings get."""
    before, after = (read_spoken(out / name) for name in ("before", "after"))
    rows = []
    for name in SHOWN:
        first, last = (find_figure(metrics, name) for metrics in (before, after))
        if first and last:
            real = last["beside"].get("real")
            rows.append([last["name"], say(first), say(last), say(real | {"unit": last["unit"]}) if real else ""])
    return rows


def main(args: argparse.Namespace) -> None:
    if args.dry_run:
        for what, command, _ in steps(args.output_dir):
            print(f"{what}: python {command}")
        return
    run_steps(steps(args.output_dir))
    print()
    print_table(summarise(args.output_dir), ["figure", "before", "after", "recordings"])


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/demo_voice"), help="what is there is not made again"
    )
    cli.run(main, cli.parse_args(parser))
