"""What is each part of VITS2 worth? None, each, and all, trained for the same steps from the embedded voice.

    python demo/measure_vits2.py
    python demo/measure_vits2.py --seeds 1 --only none all --work_dir runs/vits2

Three voices of espeak-ng that no model here has heard, each with a rate of its own, are learnt from 60 short sentences
each, and judged by 8 others that have new words. What is finished is not made again.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli  # first: it says in one line which package is missing

# isort: split
from demo import trials
from demo.espeak import Speaker
from demo.voice_corpus import JUDGED, Take, read_sentences, write_takes
from speech.vits2 import CHOICES

VOICES = {"f2": Speaker("f2", 140), "m1": Speaker("m1", 160), "m8": Speaker("m8", 185)}
SENTENCES, LONGEST = {"train": 60, "unseen": 8}, {"train": 24, "unseen": 32}  # of each voice; characters of one
VARIANTS = {"none": [], **{name: ["--vits2", name] for name in CHOICES}, "all": ["--vits2", "all"]}
SHOWN = ("mel", "cer", "duration_error", "mcd", "similarity")
TRAINING = """--pretrained_model_name_or_path demo-voice --held_out 0.1 --max_train_steps 600 --train_batch_size 2
--effective_batch_size 2 --segment_frames 8 --discriminator_start 400 --learning_rate 4e-4 --lr_scheduler cosine
--lr_warmup_steps 30 --validation_steps 600 --num_validation_samples 6 --num_validation_sounds 0
--checkpointing_steps 200 --checkpoints_total_limit 1 --report_every 0 --report_to none""".split()


def plan_takes(split: str) -> list[Take]:
    """Short sentences, other ones of each voice."""
    first, count = JUDGED.start if split == "unseen" else 0, SENTENCES[split]
    short = [i for i, one in enumerate(read_sentences(split)) if i >= first and len(one.text) <= LONGEST[split]]
    turns = enumerate(VOICES.items())
    return [
        Take(name, voice, split, index)
        for number, (name, voice) in turns
        for index in short[number * count : (number + 1) * count]
    ]


def measure(args: argparse.Namespace) -> dict[str, list[trials.Scores]]:
    """The figures of each variant, by seed; all variants of a seed come before the next seed."""
    folders = {split: args.work_dir / split for split in SENTENCES}
    for split, folder in folders.items():
        if not (folder / "metadata.jsonl").is_file():
            write_takes(folder, plan_takes(split))
    found: dict[str, list[trials.Scores]] = {name: [] for name in args.only}
    for seed in range(args.seeds):
        for name in args.only:
            run = args.work_dir / f"{name}-{seed}"
            words = [*TRAINING, "--train_data_dir", folders["train"], *VARIANTS[name], "--seed", seed]
            trials.train(run, *words)
            trials.judge(run, folders["unseen"], run / "evaluation")
            found[name].append(trials.read_scores(run))
    return found


def main(args: argparse.Namespace) -> None:
    if len({*args.only}) < 2:
        raise cli.UserError(f"--only {args.only[0]}: name at least 2, of which the first is compared with")
    cli.show_settings(args)
    if args.dry_run:
        return
    found = measure(args)
    if args.seeds > 1:
        trials.show(trials.describe(found, args.only[0], SHOWN), trials.headers("parts", SHOWN))
    first = [args.work_dir / f"{name}-0/evaluation" for name in args.only]  # sentence by sentence
    trials.run_script("evaluate_speech.py", "--compare", *first, "--output_dir", args.work_dir / "seed0", "--overwrite")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--seeds", type=cli.positive, default=3, help="trainings of each variant; 1: without a table")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="from the first on")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/measured_vits2"), help="recordings and trainings")
    cli.run(main, cli.parse_args(parser))
