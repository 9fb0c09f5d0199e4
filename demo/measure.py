"""Measure the demo pipeline: right kind and colour of generated images, the autoencoder's PSNR, seconds an image.

    python demo/measure.py                       # 500 images; prints a table and writes demo/model/README.md
    python demo/measure.py --num_images 60 --no-write

Kind and colour are judged by demo/clip, and the colour is measured on the foreground as well.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, devices, runs  # first: it says in one line which package is missing

# isort: split
import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from scipy.stats import binomtest
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from demo.catalogue import draw_product, product
from demo.sample_grid import load_demo_pipeline
from demo.shoes import COLOURS, HELD_BACK, KINDS, KNOWN_KINDS
from families.sampling import generate
from utils.console import print_table
from utils.images import foreground_colour

DEMO = Path(__file__).resolve().parent
TEST_SEED = 3_000  # no image that anything was trained on has it


@torch.no_grad()
def judge_images(shown: list[Image.Image]) -> list[tuple[str, str]]:
    """(kind, colour) of each image: the caption, of one for every kind in every colour, that demo/clip scores best."""
    clip = CLIPModel.from_pretrained(DEMO / "clip", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(DEMO / "clip")
    processor = CLIPImageProcessorPil.from_pretrained(DEMO / "clip")
    names = [(kind, colour) for kind in KINDS for colour in COLOURS]
    captions = [f"a photo of {colour.lower()} {kind.lower()}" for kind, colour in names]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    best = []
    for start in range(0, len(shown), 64):
        pixels = processor(shown[start : start + 64], return_tensors="pt").pixel_values
        best += clip(input_ids=ids, pixel_values=pixels).logits_per_image.argmax(1).tolist()
    return [names[index] for index in best]


@torch.no_grad()
def autoencoder_psnr(vae: AutoencoderKL, originals: list[Image.Image]) -> float:
    """Mean peak signal-to-noise ratio of images through the autoencoder and back, in dB."""
    x = torch.from_numpy(np.stack([np.asarray(p) for p in originals])).permute(0, 3, 1, 2).float() / 127.5 - 1
    decoded = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.to(vae.device).split(16)]
    errors = ((torch.cat(decoded).cpu().clamp(-1, 1) - x) / 2).square().mean((1, 2, 3))
    return (-10 * errors.log10()).mean().item()


def accuracy(found: list[str | None], wanted: list[str]) -> str:
    """A share with its 95 % interval (Wilson, 1927), in per cent."""
    hits = sum(f == w for f, w in zip(found, wanted, strict=True))
    interval = binomtest(hits, len(wanted)).proportion_ci(method="wilson")
    return f"{hits / len(wanted):.1%} ({interval.low:.1%} to {interval.high:.1%}, n={len(wanted)})"


def measure(pipeline: DiffusionPipeline, count: int) -> dict[str, str]:
    """{what is measured: the result}, over `count` generated and as many drawn images."""
    pairs = [(kind, colour) for colour in COLOURS for kind in KNOWN_KINDS]
    wanted = [pairs[i % len(pairs)] for i in range(count)]
    prompts = [f"a professional product photo of {colour.lower()} {kind.lower()}" for kind, colour in wanted]
    generate(pipeline, list(range(8)), prompt=prompts[:8])  # warm-up
    began = time.monotonic()
    generated = generate(pipeline, [TEST_SEED + i for i in range(count)], prompt=prompts)
    seconds = (time.monotonic() - began) / count
    rows = [product(TEST_SEED, i, list(KINDS)) for i in range(count)]
    drawn = [draw_product(row, TEST_SEED, generated[0].size) for row in rows]
    truth = [(row["articleType"], row["baseColour"]) for row in rows]
    judged, judged_drawn = judge_images(generated), judge_images(drawn)
    seen, seen_drawn = ([foreground_colour(one, COLOURS) for one in part] for part in (generated, drawn))
    known = [image for image, (kind, _) in zip(drawn, truth) if kind != HELD_BACK]
    held_back = [image for image, (kind, _) in zip(drawn, truth) if kind == HELD_BACK]
    kinds, colours = (list(part) for part in zip(*wanted))
    true_kinds, true_colours = (list(part) for part in zip(*truth))
    return {
        "generated: kind, judged by demo/clip": accuracy([kind for kind, _ in judged], kinds),
        "generated: colour, judged by demo/clip": accuracy([colour for _, colour in judged], colours),
        "generated: colour, measured on the foreground": accuracy(seen, colours),
        "drawn, all six kinds: kind, judged by demo/clip": accuracy([kind for kind, _ in judged_drawn], true_kinds),
        "drawn: colour, judged by demo/clip": accuracy([colour for _, colour in judged_drawn], true_colours),
        "drawn: colour, measured on the foreground": accuracy(seen_drawn, true_colours),
        "autoencoder, PSNR on drawn images of the known kinds": f"{autoencoder_psnr(pipeline.vae, known):.1f} dB",
        "autoencoder, PSNR on the held-back kind": f"{autoencoder_psnr(pipeline.vae, held_back):.1f} dB",
        "seconds an image (20 steps, guidance 3, batch 8)": f"{seconds:.2f}",
    }


def main(args: argparse.Namespace) -> None:
    cli.show_settings(args)
    if args.num_images < 12:
        raise cli.UserError(f"--num_images {args.num_images}: at least 12 are needed to measure anything")
    if args.dry_run:
        return
    device = devices.working_device()
    pipeline = load_demo_pipeline("demo", device, torch.float32)
    table = measure(pipeline, args.num_images)
    print_table(table.items())
    if not args.write:
        return
    training = json.loads((DEMO / "model" / "training.json").read_text())
    rows = [(name, *stage.values()) for name, stage in training["stages"].items()]
    card = (DEMO / "model_card.md").read_text()
    card = card.format(
        commit=training["git_commit"],
        measured=runs.git_commit(),
        hardware=f"{devices.describe_device(device)}, {platform.machine()}",
        stages="\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows),
        figures="\n".join(f"| {name} | {value} |" for name, value in table.items()),
    )
    (DEMO / "model" / "README.md").write_text(card)


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--num_images", type=cli.positive, default=500, help="images to generate, and to draw")
    parser.add_argument(
        "--write", action=argparse.BooleanOptionalAction, default=True, help="write demo/model/README.md"
    )
    cli.run(main, cli.parse_args(parser))
