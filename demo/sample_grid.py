"""Generate every kind in several colours with the demo pipeline, as one labelled grid.

    python demo/sample_grid.py --output runs/demo/base_model.png
    python demo/sample_grid.py --output grid.png --kinds Boots Heels --seed 3

One seed, one image: the batch size changes nothing.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, devices, images, runs  # first: it says in one line which package is missing

# isort: split
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image

from demo.shoes import COLOURS, KINDS
from families import models
from families.sampling import generate


def load_demo_pipeline(name: str, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    pipeline = models.load_pipeline(name, device, dtype)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def main(args: argparse.Namespace) -> None:
    cli.show_settings(args)
    if args.output.suffix != ".png":
        raise cli.UserError(f"--output {args.output}: expected a name that ends in .png")
    if args.output.exists():
        raise cli.UserError(f"--output {args.output} exists already; name another file, or remove it first")
    if args.dry_run:
        return
    device = devices.working_device()
    precision = devices.choose_precision(device)
    print(f"device: {devices.describe_device(device)}; precision: {precision.reason}")
    pipeline = load_demo_pipeline(args.pretrained_model_name_or_path, device, precision.dtype)
    pairs = [(kind, colour) for kind in args.kinds for colour in list(COLOURS)[: args.columns]]
    prompts = [f"a professional product photo of {colour.lower()} {kind.lower()}" for kind, colour in pairs]
    began = time.monotonic()
    generated = generate(pipeline, [args.seed + i for i in range(len(prompts))], prompt=prompts)
    seconds = (time.monotonic() - began) / len(generated)
    width, height = generated[0].size
    shown = [image.resize((2 * width, 2 * height), Image.Resampling.LANCZOS) for image in generated]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    labels = [f"{colour} {kind}" for kind, colour in pairs]
    images.make_grid(shown, args.columns, labels).save(args.output)
    runs.write_environment(args.output.with_suffix(".json"), devices.describe_device(device), precision.reason)
    print(f"{len(generated)} images, {seconds:.2f} s each, in {args.output}")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--pretrained_model_name_or_path", default="demo", help="a diffusers folder, hub id, or demo")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="one row each")
    parser.add_argument("--columns", type=cli.Range(1, 12, int), default=8, help="colours a row, 1 to 12")
    parser.add_argument("--seed", type=cli.seed_number, default=0, help="of the first image; the next has the next")
    cli.run(main, cli.parse_args(parser))
