"""How long evaluate.py takes with cached features, and how long features take compared with the model alone.

    python tests/benchmarks/evaluate_speed.py
    python tests/benchmarks/evaluate_speed.py --generated 1000 --real 1000 --extract 64

CLIP ViT-B/32 and DINOv2 base with random weights: as large as the published ones, and as slow.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from evaluation import features, image_measures
from evaluation.feature_cache import content_keys, write_rows
from tests.benchmarks.side_by_side import count_cores


def build_models(folder: Path) -> dict[str, Path]:
    from transformers import (
        BitImageProcessorPil,
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPTokenizer,
        Dinov2Config,
        Dinov2Model,
    )

    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder / "clip")
    CLIPImageProcessorPil().save_pretrained(folder / "clip")
    CLIPTokenizer.from_pretrained(ROOT / "demo" / "clip").save_pretrained(folder / "clip")
    Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(folder / "dinov2")
    BitImageProcessorPil(size={"shortest_edge": 256}).save_pretrained(folder / "dinov2")
    return {name: folder / name for name in ("clip", "dinov2")}


def write_images(folder: Path, count: int, seed: int, size: int) -> list[Path]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.png", compress_level=1)
        colour = ("Red", "Blue", "Green")[i % 3]
        lines.append(f'{{"file_name": "{i:05d}.png", "text": "a photo of {colour} shoes", "colour": "{colour}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    return sorted(folder.glob("*.png"))


def time_cached(root: Path, models: dict[str, Path], args) -> Iterator[float]:
    """Seconds of each whole command. The features in its cache are random: only their number counts."""
    sets = {name: write_images(root / name, getattr(args, name), i, args.size) for i, name in enumerate(args.sets)}
    rng, cache = np.random.default_rng(0), root / "out" / "features"
    keys = content_keys([one for files in sets.values() for one in files], 2)
    folders = {image_measures.VERSION: image_measures.SIZE}
    for name, place in models.items():
        encoder = features.load_encoder(name, str(place))
        folders[f"{name}-{encoder.fingerprint[:16]}"] = encoder.size
    for name, size in folders.items():
        rows = np.abs(rng.normal(size=(len(keys), size))).astype(np.float32)
        if name == image_measures.VERSION:  # no faults, plain rims, a colour, and looks like no other's
            rows = rng.integers(0, 256, (len(keys), size)).astype(np.float32)
            rows[:, : image_measures.HASH] = (0, 0, 0, 0.8, 50, 0, 0)
        write_rows(cache / name, dict(zip(keys, rows)))
    encoders = " ".join(f"{name}={place}" for name, place in models.items())
    places = " ".join(f"--{name} {root / name}" for name in sets)
    command = f"evaluate.py {places} --encoders {encoders} --output_dir {root / 'out'} --resamples {args.resamples}"
    for _ in range(args.repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        yield time.perf_counter() - began


def time_extraction(root: Path, place: Path, name: str, args) -> tuple[float, float]:
    """Seconds for the model's forward passes alone, and for the features of the same files, cache written."""
    files = write_images(root / f"extract_{name}", args.extract, 9, args.size)
    encoder = features.load_encoder(name, str(place))
    ready = np.stack([encoder.prepare(Image.open(one)) for one in files])
    encoder.forward(ready[:32])  # warm-up
    forward, whole = [], []
    for turn in range(3):
        began = time.perf_counter()
        for start in range(0, len(ready), 32):
            encoder.forward(ready[start : start + 32])
        forward.append(time.perf_counter() - began)
        began = time.perf_counter()
        features.image_features(encoder, files, root / f"cache_{name}_{turn}", 32, os.cpu_count())
        whole.append(time.perf_counter() - began)
    return min(forward), min(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=int, default=2845)
    parser.add_argument("--train", type=int, default=0, help="training images too, for the figures of novelty")
    parser.add_argument("--generated", type=int, default=3000)
    parser.add_argument("--extract", type=int, default=192, help="images to take features of")
    parser.add_argument("--size", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="of the command with cached features")
    args = parser.parse_args()
    args.sets = ("real", "generated", "train") if args.train else ("real", "generated")
    print(f"{os.cpu_count()} cores, torch threads {torch.get_num_threads()}, images of {args.size} pixels")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        models = build_models(root / "models")
        if args.extract:
            for name, folder in models.items():
                forward, whole = time_extraction(root, folder, name, args)
                rate = args.extract / whole
                print(f"{name}: forward {forward:.1f} s, features {whole:.1f} s: {whole / forward:.2f}x, {rate:.1f}/s")
        for some in ({"clip": models["clip"]}, models):
            out = root / "-".join(some)
            sizes = ", ".join(f"{getattr(args, name):,} {name}" for name in args.sets)
            print(f"{' and '.join(some)}: {sizes}, {args.resamples:,} bootstraps, features cached:")
            for seconds in time_cached(out, some, args):
                print(f"    {seconds:.1f} s, {count_cores():.1f} cores given", flush=True)


if __name__ == "__main__":
    main()
