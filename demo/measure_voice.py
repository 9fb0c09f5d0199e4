"""Measure the embedded voice on sentences with words that it was not trained on, and write its card.

    python demo/measure_voice.py --write                          # demo/voice/README.md
    python demo/measure_voice.py --pretrained_model_name_or_path runs/voice --num_sentences 40

espeak-ng speaks the recordings beside it (requirements-dev.in), evaluate_speech.py computes the figures, and
demo/adapt_voice.py teaches it another speaker.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli  # first: it says in one line which package is missing

# isort: split
from demo.adapt_voice import summarise
from demo.pretrain_voice import ALWAYS, HERE, TRAINING
from demo.trials import in_markdown
from demo.voice_corpus import JUDGED, TRAINED, write_recordings
from evaluation.report.spoken_page import read_spoken
from evaluation.report.spoken_summary import figure_row
from evaluation.report.spoken_verdict import judge_speed
from evaluation.spoken import judge_sentences
from speech.voices import read_voice_config
from utils.console import print_table
from utils.files import write_text

HEADERS = ["figure", "value", "95 % interval", "recordings", "copy-synthesis", "n"]
SPEED = "real_time_factor"  # which is not of a speaker
ADAPTED = ["figure", "before", "after", "recordings"]


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Unseen sentences in the voices that it was trained on: metrics.json of evaluate_speech.py."""
    judged, out = JUDGED[: args.num_sentences], args.work_dir / "evaluation"
    real = args.work_dir / f"unseen-{judged[0]}-{judged[-1]}"
    if not (real / "metadata.jsonl").is_file():
        write_recordings(real, TRAINED, "unseen", judged)
    words = ["--real", real, "--pretrained_model_name_or_path", args.pretrained_model_name_or_path]
    words += ["--asr", "demo", "--speaker_encoder", "demo", "--output_dir", out, "--overwrite"]
    subprocess.run([sys.executable, str(ROOT / "evaluate_speech.py"), *map(str, words)], check=True)
    return read_spoken(out)


def adapt(folder: Path) -> list[list[str]]:
    subprocess.run([sys.executable, str(ROOT / "demo/adapt_voice.py"), "--output_dir", str(folder)], check=True)
    return summarise(folder)


def write_card(metrics: dict[str, Any], tables: dict[str, list[list[str]]], work: Path) -> None:
    """demo/voice/README.md: how it was trained, these figures of its own speakers, and those of one that it learns."""
    made, config = metrics["made"], read_voice_config("demo-voice")
    facts = {
        "training": "\n".join(f"    python train_tts.py {words} {' '.join(ALWAYS.split())}" for words in TRAINING),
        "commit": made["commit"],
        "hardware": made["hardware"],
        "sentences": len(metrics["utterances"]) // len(TRAINED),
        "adapted": in_markdown(adapt(work / "adapted"), ADAPTED),
        "speaking_rate": config.speaking_rate,
        "noise_scale": config.noise_scale,
        "speed": judge_speed(read_spoken(work / "adapted/before")),
    }
    facts |= {name: in_markdown(rows, HEADERS) for name, rows in tables.items()}
    write_text(HERE / "README.md", (HERE.parent / "voice_card.md").read_text("utf-8").format(**facts))


def main(args: argparse.Namespace) -> None:
    if args.write and args.pretrained_model_name_or_path != "demo-voice":
        raise cli.UserError("--write: the card is that of demo-voice; leave out --pretrained_model_name_or_path")
    cli.show_settings(args)
    if args.dry_run:
        return
    metrics, tables = evaluate(args), {}
    for name in TRAINED:
        rows = [row for row in metrics["utterances"] if row["speaker"] == name]
        figures = judge_sentences(rows, 1000, metrics["seed"])
        tables[name] = [figure_row(one) for one in figures if one["value"] is not None and one["id"] != SPEED]
        print(f"\n{name}")
        print_table(tables[name], HEADERS)
    if args.write:
        write_card(metrics, tables, args.work_dir)


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    count = cli.Range(20, len(JUDGED), int)
    parser.add_argument("--pretrained_model_name_or_path", default="demo-voice", help="the voice to measure")
    parser.add_argument("--num_sentences", type=count, default=len(JUDGED), help="unseen ones, in each voice")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/measured_voice"), help="recordings and evaluations")
    parser.add_argument("--write", action="store_true", help="measure a speaker that it learns too, and write its card")
    cli.run(main, cli.parse_args(parser))
