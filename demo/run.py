"""The whole pipeline on the demo models, as `make demo` runs it: every step is a command that a user could type.

    python demo/run.py
    python demo/run.py --output_dir runs/demo --seed 1

The folder of an earlier demo is removed and made again.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli
from utils.console import print_table
from utils.outputs import discard_folder

# The folders of the steps, and which list says what is in them.
MADE = {"catalogue": "", "dataset": "", "lora": "train", "synthetic": "generate", "evaluation": "evaluate"}


class Step(NamedTuple):
    what: str
    command: str
    shown: Path  # what to look at


def steps(output_dir: Path, seed: int, train_steps: int, images: int) -> list[Step]:
    names = ("catalogue", "dataset", "base_model.png", "lora", "synthetic", "evaluation")
    paths = catalogue, dataset, grid, run, synthetic, evaluation = [output_dir / name for name in names]
    at = {path: shlex.quote(os.path.relpath(path, ROOT)) for path in paths}  # the commands run in ROOT
    return [
        Step(
            "draw a catalogue",
            f"demo/catalogue.py --output_dir {at[catalogue]} --num_images 1800 --size 128 --seed {seed}",
            catalogue / "preview.png",
        ),
        Step(
            "prepare the casual shoes",
            f"prepare_dataset.py --config configs/demo_dataset.yaml --catalogue {at[catalogue]} "
            f"--output_dir {at[dataset]} --write_prompt_plan {images}",
            dataset / "figures/samples.png",
        ),
        Step("generate with the demo pipeline", f"demo/sample_grid.py --output {at[grid]} --seed {seed}", grid),
        Step(
            "train a LoRA on the held-back kind",
            f"train_lora.py --config configs/demo_lora.yaml --train_data_dir {at[dataset]} --output_dir {at[run]} "
            f"--max_train_steps {train_steps} --validation_steps {train_steps} --seed {seed}",
            run / f"validation/step-{train_steps:06d}.png",
        ),
        Step(
            "generate a balanced set with it",
            f"generate.py --pretrained_model_name_or_path demo --lora {at[run]} "
            f"--prompt_plan {at[dataset]}/prompt_plan.jsonl --num_inference_steps 20 --guidance_scale 3 "
            f"--batch_size 16 --output_dir {at[synthetic]} --seed {seed}",
            synthetic / "sheets/sheet-0001.jpg",
        ),
        Step(
            "evaluate that set",
            f"evaluate.py --real {at[dataset]}/test --train {at[dataset]}/train --generated {at[synthetic]} "
            f"--encoders demo --output_dir {at[evaluation]} --seed {seed}",
            evaluation / "report.html",
        ),
    ]


def run_command(words: list[str]) -> int:
    """The exit code of a script. At Ctrl-C, which it gets too, it is waited for: it may save; a second one ends it."""
    child = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.wait()
        raise
    finally:
        child.kill()  # nothing, where it has ended


def run_steps(steps: list[Step]) -> None:
    """Each as a command of its own; a table of them at the end."""
    table = []
    for what, command, look_at in steps:
        print(f"\n$ python {command}", flush=True)
        began = time.monotonic()
        if code := run_command(shlex.split(command)):
            raise cli.UserError(f"the step `{what}` failed with exit code {code}; its message is above")
        table.append((what, f"{time.monotonic() - began:.1f}", look_at))
    print()
    print_table(table, ["step", "seconds", "look at"])


def main(args: argparse.Namespace) -> None:
    if args.dry_run:
        for what, command, _ in steps(args.output_dir, args.seed, args.train_steps, args.num_images):
            print(f"{what}: python {command}")
        return
    if args.output_dir.exists():  # an earlier demo, made again from scratch
        if not (args.output_dir / "demo.txt").is_file():
            raise cli.UserError(f"--output_dir {args.output_dir} exists and is no earlier demo; name another folder")
        for name, kind in MADE.items():
            if (args.output_dir / name).exists():
                discard_folder(args.output_dir / name, kind)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "demo.txt").write_text("Made by demo/run.py, which makes it anew when it runs again.\n")
    run_steps(steps(args.output_dir, args.seed, args.train_steps, args.num_images))


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="made again each time")
    parser.add_argument("--seed", type=cli.seed_number, default=0, help="of the catalogue and of the generated images")
    parser.add_argument("--train_steps", type=cli.positive, default=300, help="of the LoRA")
    parser.add_argument(
        "--num_images", type=cli.positive, default=112, help="to generate; a Fréchet distance needs 100"
    )
    cli.run(main, cli.parse_args(parser))
