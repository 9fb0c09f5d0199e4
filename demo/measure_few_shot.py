"""Measure how a voice learns a new speaker from 5, 20 and 100 sentences: what is trained of it, and from which start.

    python demo/measure_few_shot.py                       # docs/voices.md has its tables
    python demo/measure_few_shot.py --work_dir runs/few_shot --dry_run

From demo-voice two starts are trained on many variants of espeak-ng at equal steps, one plainly and one by
--meta first-order; from each of them voices that no model here heard are learnt. Stopped, it goes on where it was.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli  # first: it says in one line which package is missing

# isort: split
from demo.trials import FIGURES, apart, headers, judge, over_seeds, read_scores, show, train
from demo.voice_corpus import HEARD, JUDGED, choose_indices, plan_takes, write_takes
from evaluation.intervals import Estimate
from evaluation.report.formatting import format_difference, format_number
from evaluation.report.spoken_page import read_spoken
from evaluation.spoken import compare_sentences

MANY, SENTENCES = HEARD[:32], 25  # of each, for the starts
NEW = ("elisa", "heitor", "Andrea", "Diogo")  # that no model here has heard
SIZES = (5, 20, 100)
TEST = JUDGED[:20]
RESAMPLES = 2000
SHOWN = ("mel", "mcd", "similarity", "cer")
EQUAL = """--lr_scheduler cosine --segment_frames 16 --num_validation_sounds 0 --num_validation_samples 20
--checkpoints_total_limit 1 --report_to none"""
STEPS = 240  # of a start; there are no discriminators, which would cost as much again
START = f"""--max_train_steps {STEPS} --effective_batch_size 8 --train_batch_size 8 --learning_rate 5e-4
--lr_warmup_steps 20 --discriminator_start {STEPS} --held_out 0.02 --validation_steps {STEPS}
--checkpointing_steps 100"""
ADAPT_STEPS = 100
ADAPT = f"""--max_train_steps {ADAPT_STEPS} --effective_batch_size 4 --train_batch_size 4 --learning_rate 8e-4
--lr_warmup_steps 10 --discriminator_start {ADAPT_STEPS} --validation_steps {ADAPT_STEPS} --checkpointing_steps 0"""
STARTS = {"plain": "", "meta": "--meta first-order"}


class Trial(NamedTuple):
    """A start, what is trained of it, and of how many sentences."""

    start: str
    adapt: str
    size: int


PARTS = {adapt: Trial("plain", adapt, 20) for adapt in ("all", "decoder", "speaker")}
# One after the other, each of all speakers: where little time is, the first ones are whole.
ROUNDS = [
    [Trial("plain", "all", 20), Trial("meta", "all", 20)],
    [PARTS["decoder"], PARTS["speaker"], Trial("plain", "all", 5), Trial("meta", "all", 5)],
    [Trial("plain", "all", 100), Trial("meta", "all", 100)],
]


def record(folder: Path, write: Callable[[Path], None]) -> Path:
    """A folder of recordings, made if it is not there."""
    if not (folder / "metadata.jsonl").is_file():
        write(folder)
    return folder


def record_many(folder: Path) -> None:
    """Other sentences of each variant."""
    indices = [choose_indices("train", 100, SENTENCES, number) for number in range(len(MANY))]
    takes = (plan_takes([one], "train", own) for one, own in zip(MANY, indices))
    write_takes(folder, list(itertools.chain.from_iterable(takes)))


def record_new(work: Path, speaker: str, size: int) -> Path:
    """The first sentences of a new speaker to train on; its `val`, which judges, has words that no training has."""
    data = work / "data" / f"{speaker}-{size}"
    record(data / "train", lambda folder: write_takes(folder, list(plan_takes([speaker], "train", range(size)))))
    record(data / "val", lambda folder: write_takes(folder, list(plan_takes([speaker], "unseen", TEST))))
    return data


def train_start(work: Path, name: str) -> Path:
    run, data = work / f"start-{name}", record(work / "data/many", record_many)
    words = [*START.split(), *EQUAL.split(), *STARTS[name].split()]
    train(run, "--pretrained_model_name_or_path", "demo-voice", "--train_data_dir", data, *words)
    return run


def run_folder(work: Path, trial: Trial, speaker: str) -> Path:
    return work / f"{trial.start}-{trial.adapt}-{trial.size}" / speaker


def measure(work: Path, trial: Trial, speaker: str) -> None:
    start, data = train_start(work, trial.start), record_new(work, speaker, trial.size)
    run = run_folder(work, trial, speaker)
    words = [*ADAPT.split(), *EQUAL.split(), "--adapt", trial.adapt]
    train(run, "--pretrained_model_name_or_path", start, "--train_data_dir", data, *words)
    judge(run, data / "val", run / "evaluation")


def find_judged(work: Path, trials: Iterable[Trial]) -> list[str]:
    """The speakers of which all of these trials are judged."""
    folders = {one: [run_folder(work, trial, one) / "evaluation/metrics.json" for trial in trials] for one in NEW}
    return [one for one, files in folders.items() if all(path.is_file() for path in files)]


def describe_trials(work: Path, trials: dict[str, Trial], speakers: list[str]) -> list[list[str]]:
    """A row for each trial: its figures, and how far they are from the first one's.

    The mel distance is a mean of speakers; the others are of all sentences of all speakers, sentence by sentence.
    """
    runs = {name: [run_folder(work, trial, one) for one in speakers] for name, trial in trials.items()}
    scores = {name: [read_scores(run) for run in folders] for name, folders in runs.items()}
    rows = {
        name: [row for run in folders for row in read_spoken(run / "evaluation")["utterances"]]
        for name, folders in runs.items()
    }
    compared = {one["id"]: one for one in compare_sentences(rows, RESAMPLES, 0)}
    base, table = next(iter(trials)), []
    for name in trials:
        cells = [name]
        for figure in SHOWN:
            unit = FIGURES[figure][1]
            if figure == "mel":
                value, apart_by = over_seeds(scores[name], figure).value, apart(scores[name], scores[base], figure)
            else:
                one = compared[figure]
                value, apart_by = one["runs"][name]["value"], read_estimate(one["differences"].get(name, {}))
            cell = format_number(value, 3, unit)
            cells.append(cell if name == base else cell + "; {} ({})".format(*format_difference(apart_by, unit)))
        table.append(cells)
    return table


def read_estimate(found: dict[str, Any]) -> Estimate:
    return Estimate(*(found.get(name, 0.0) for name in ("value", "low", "high")))


def show_table(work: Path, first: str, trials: dict[str, Trial]) -> None:
    """What is measured so far of some trials, of which the first is what the others are compared with."""
    speakers = find_judged(work, trials.values())
    print(f"\n{first}: {len(TEST)} sentences of {', '.join(speakers) or 'no speaker yet'}")
    if len(speakers) > 1:
        show(describe_trials(work, trials, speakers), headers(first, SHOWN))


def main(args: argparse.Namespace) -> None:
    cli.show_settings(args)
    if args.dry_run:
        count = sum(map(len, ROUNDS))
        print(f"{len(STARTS)} starts of {STEPS} steps; {count} trials of {ADAPT_STEPS} for each of the speakers")
        return
    for trials in ROUNDS if not args.table else ():
        for speaker, trial in itertools.product(NEW[: args.speakers], trials):
            measure(args.work_dir, trial, speaker)
    for size in SIZES:
        starts = {name: Trial(name, "all", size) for name in STARTS}
        show_table(args.work_dir, f"{size} sentences, start", starts)
    show_table(args.work_dir, "20 sentences, --adapt", PARTS)


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--work_dir", type=Path, default=Path("runs/few_shot"), help="recordings, runs, evaluations")
    parser.add_argument(
        "--speakers", type=cli.Range(2, len(NEW), int), default=len(NEW), help="the first of the new ones"
    )
    parser.add_argument("--table", action="store_true", help="measure nothing more: the tables of what there is")
    cli.run(main, cli.parse_args(parser))
