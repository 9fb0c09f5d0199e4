"""Does the synthetic set help? The same classifier trained on real, on synthetic and on both, tested on real images.

Every training has the same number of steps; each is saved as soon as it is done, and the same command resumes.
A folder in a bucket (s3://, gs://) is fetched once.

    python train_classifier.py --real data/casual_shoes --synthetic data/synthetic/casual_shoes --target baseColour
    python train_classifier.py --real data/x --synthetic data/a data/b --target gender --model probe
    accelerate launch --config_file accelerate_configs/cpu_2proc.yaml train_classifier.py --config recipe.yaml
"""

import argparse
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import cli, devices, runs  # first: it says in one line which package is missing

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from evaluation import classifier_scores as scoring
from evaluation import classifiers, curves, labelled
from evaluation.features import image_features, load_encoder
from utils.cli import Range, UserError, at_once, positive, read_place, seed_number, workers
from utils.console import print_table, track
from utils.devices import key_seed, keyed_generator
from utils.files import write_json
from utils.metrics_log import append_metrics, read_metrics
from utils.outputs import check_apart
from utils.parallel import available_cores
from utils.storage import fetch

logger = logging.getLogger("train_classifier")
RATES = {"cnn": 3e-3, "probe": 3e-3, "finetune": 1e-4}
# What neither changes a training nor decides which of them there are to choose from.
FREE = set("output_dir overwrite seed seeds real_shares synthetic_ratios num_workers feature_cache".split())


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument_group("data").add_argument
    add("--real", type=read_place, metavar="DIR|s3://…", help="a prepared dataset with the splits train and test")
    add(
        "--synthetic",
        type=read_place,
        nargs="+",
        metavar="DIR|s3://…",
        help="generated sets, each evaluated on its own",
    )
    add("--target", metavar="COLUMN", help="what to classify: a column of metadata.jsonl, such as baseColour")
    fewest = "real images in train and in test; smaller classes are left out"
    add("--min_per_class", type=positive, default=5, help=fewest)
    shares = "shares of the real training images"
    add("--real_shares", type=Range(0, 1, above=True), nargs="+", default=[0.1, 0.25, 1.0], help=shares)
    ratios = "synthetic images for each real one"
    add("--synthetic_ratios", type=Range(0, 1000, above=True), nargs="*", default=[1, 2, 4], help=ratios)
    add = parser.add_argument_group("model").add_argument
    kinds = "cnn: from scratch; probe: one layer on cached features; finetune: a whole pretrained model"
    add("--model", choices=list(RATES), default="cnn", help=kinds)
    add("--encoder", choices=["clip", "dinov2", "inception", "demo"], help="of --model probe (clip)")
    add("--encoder_path", metavar="DIR|HUB_ID", help="hub id or folder of that encoder; default: the usual one")
    backbone = "of --model finetune (microsoft/resnet-50)"
    add("--pretrained_model_name_or_path", metavar="DIR|HUB_ID", help=backbone)
    add("--resolution", type=cli.pixels, metavar="N", help="pixels a side; default: 64 (cnn), or the backbone's own")
    add = parser.add_argument_group("training, the same for every arm").add_argument
    several = Range(2, 1000, int)  # an interval needs two
    add("--seeds", type=several, default=5, metavar="N", help="trainings of each arm; fewer than 5 show little")
    add("--seed", type=seed_number, default=0, help="the first seed")
    add("--max_train_steps", type=positive, default=300, help="optimizer steps of each training")
    add("--train_batch_size", type=at_once, default=64, help="images per step")
    add("--learning_rate", type=cli.learning_rate, help="its highest value; default: 3e-3, or 1e-4 for finetune")
    add("--weight_decay", type=Range(0, 10), default=0.05, help="of AdamW")
    fastest = "default: the fastest precision that passes this device's test"
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help=fastest)
    add = parser.add_argument_group("output and performance").add_argument
    add("--output_dir", type=Path, default=Path("runs/casual_shoes/utility"), help="results.json")
    restart = "remove the results in --output_dir and start again"
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False, help=restart)
    add("--feature_cache", type=Path, metavar="DIR", help="default: `cache/features` next to --output_dir")
    add("--num_workers", type=workers, default=available_cores(), help="processes that read images")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    for name in ("real", "synthetic", "target"):
        if not getattr(args, name):
            parser.error(f"--{name} is needed")
    probe = ("--model probe", args.model == "probe")
    needs = {"encoder": probe, "encoder_path": probe, "feature_cache": probe}
    needs["pretrained_model_name_or_path"] = ("--model finetune", args.model == "finetune")
    needs["resolution"] = ("--model cnn or finetune", args.model != "probe")
    cli.report_ignored(parser, args, needs)
    args.real_shares = sorted(set(args.real_shares))
    args.synthetic_ratios = sorted(set(args.synthetic_ratios))
    # Defaults that depend on --model are set here, so that they are among the settings that are shown.
    args.learning_rate = args.learning_rate or RATES[args.model]
    if args.model == "cnn":
        args.resolution = args.resolution or 64
    elif args.model == "probe":
        args.encoder = args.encoder or "clip"
    else:
        args.pretrained_model_name_or_path = args.pretrained_model_name_or_path or "microsoft/resnet-50"
    return args


@dataclass(frozen=True)
class Recipe:
    """How every arm is trained."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    precision: devices.Precision
    device: torch.device


def load_inputs(
    args: argparse.Namespace, data: labelled.Data, device: torch.device
) -> tuple[torch.Tensor, classifiers.Builder]:
    """Every image of all parts, one after another, as bytes or as features; and what builds a new model for them."""
    classes = len(data.classes)
    if args.model == "probe":
        encoder = load_encoder(args.encoder, args.encoder_path, device, "--encoder")
        cache = args.feature_cache or args.output_dir.parent / "cache" / "features"
        features = torch.from_numpy(image_features(encoder, data.paths, cache, workers=args.num_workers))
        return features, lambda: classifiers.probe(encoder.size, classes)
    build, side = lambda: classifiers.small_cnn(classes), args.resolution
    if args.model == "finetune":
        build, side = classifiers.find_backbone(args.pretrained_model_name_or_path, classes, args.resolution)
    return torch.from_numpy(labelled.decode_all(data.paths, side, args.num_workers)), build


def as_input(batch: torch.Tensor) -> torch.Tensor:
    """Bytes (n, side, side, 3) as pixels in -1 … 1, channels first; features as they are."""
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch


def train(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, chosen: torch.Tensor, recipe: Recipe, seed: int
) -> float:
    """Train on the chosen inputs; the mean loss of the last tenth of the steps. Refuses one that is not finite.

    Order and augmentation depend on the seed alone: arms of one seed differ in their images only.
    """
    device, precision, steps = recipe.device, recipe.precision, recipe.steps
    noise = keyed_generator("augmentation", seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.mixed_precision == "fp16")
    autocast, losses, warmup = devices.autocast(device, precision), [], max(1, steps // 20)
    for step, members in enumerate(labelled.sample_order(chosen, recipe.batch_size, steps, seed)):
        for group in optimizer.param_groups:  # a short linear warm-up, then half a cosine to 0
            scale = min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            group["lr"] = recipe.learning_rate * scale
        batch = inputs[members]
        if batch.dtype == torch.uint8:
            batch = labelled.augment(batch, noise)
        with autocast():
            logits = model(as_input(batch.to(device)))
        loss = F.cross_entropy(logits.float(), labels[members].to(device))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step >= steps - max(1, steps // 10):
            losses.append(loss.detach())
    last = torch.stack(losses).mean().item()
    if not math.isfinite(last):
        raise UserError(
            f"--learning_rate {recipe.learning_rate:g}: the loss is no longer finite; lower it, or --mixed_precision no"
        )
    return last


def predict(model: nn.Module, inputs: torch.Tensor, recipe: Recipe) -> list[int]:
    """The class of every input."""
    predicted: list[int] = []
    model.eval()
    with torch.inference_mode(), devices.autocast(recipe.device, recipe.precision)():
        for batch in inputs.split(256):
            predicted += model(as_input(batch.to(recipe.device))).argmax(1).tolist()
    return predicted


def read_done(folder: Path, images: int) -> dict[tuple[str, float, int], dict[str, Any]]:
    """{(arm, share of the real images, seed): its line of results.jsonl} of every training that is finished."""
    lines = read_metrics(folder / "results.jsonl")
    complete = [one for one in lines if len(one.get("predicted") or []) == images]
    return {(one["arm"], one["real_share"], one["seed"]): one for one in complete}


def print_plan(
    args: argparse.Namespace, data: labelled.Data, arms: Sequence[labelled.Arm], left_out: Sequence[str], done: int
) -> None:
    print(f"{len(data.classes)} classes of {args.target}: {', '.join(data.classes)}")
    sizes = ", ".join(f"{name} {len(part.paths):,}" for name, part in data.parts.items())
    print(f"{sizes} images; val is not used")
    print("".join(f"{line}\n" for line in [*data.lacking, *left_out]))
    rows = [(f"{arm.n_real:,}", f"{arm.n_synthetic:,}", arm.title) for arm in arms]
    print_table(rows, ["real", "synthetic", "trained on"])
    print(
        f"{len(arms)} arms x {args.seeds} seeds = {len(arms) * args.seeds} trainings of {args.max_train_steps} steps "
        f"of {args.train_batch_size} images; {done} of them are done",
        flush=True,
    )


def print_results(results: Mapping[str, Any]) -> None:
    rows = []
    for arm in results["arms"]:
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*arm[f"{metric}_interval"]) for metric in scoring.METRICS]
        learnt = "" if arm["learnt"] else "nothing learnt"
        rows.append([f"{arm['name']}, {arm['n_real']:,} + {arm['n_synthetic']:,}", *cells, learnt])
    guess = [f"{results['majority'][metric]:.3f}" for metric in scoring.METRICS]
    rows.append(["always the most frequent class", *guess, ""])
    print()
    print_table(rows, ["trained on", "accuracy", "macro-F1", ""])
    print("\nDoes the synthetic set help?", *results["verdict"], sep="\n  ")


def main(args: argparse.Namespace) -> int:
    models = {name: getattr(args, name) for name in ("encoder_path", "pretrained_model_name_or_path")}
    check_apart(args.output_dir, {"real": args.real, "synthetic": args.synthetic}, models)
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    cache = args.output_dir.parent / "cache"
    real = fetch(args.real, cache, "--real")
    synthetic = [fetch(one, cache, "--synthetic") for one in args.synthetic]
    data = labelled.read_data(real, synthetic, args.target, args.min_per_class)
    arms, unused = labelled.plan_arms(data, args.real_shares, args.synthetic_ratios)
    left_out = [*data.left_out, *unused]
    seeds, n_test = range(args.seed, args.seed + args.seeds), len(data.parts["test"].paths)
    settings = cli.settings_of(args) | {"precision": precision.mixed_precision}
    for flag, names in (("real", labelled.SPLITS), ("synthetic", data.sizes)):
        settings[f"{flag}_sha256"] = labelled.data_fingerprint({name: data.parts[name] for name in names})
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}")
        if args.seeds < scoring.LEAST_SEEDS:
            logger.warning("--seeds %d: fewer than %d can show no difference", args.seeds, scoring.LEAST_SEEDS)
        elif args.seeds < 5:
            logger.warning("--seeds %d: fewer than 5 rarely show a difference that exists", args.seeds)
    if args.dry_run:
        if is_main:
            print_plan(args, data, arms, left_out, len(read_done(out, n_test)))
            print(f"run: {runs.describe_run(out, settings, FREE, kind='classify')}")
        return 0

    if is_main:
        runs.open_run(out, settings, FREE, args.overwrite, kind="classify")
    accelerator.wait_for_everyone()
    done = read_done(out, n_test)
    todo = [(arm, seed) for arm in arms for seed in seeds if (arm.name, arm.real_share, seed) not in done]
    if is_main:
        print_plan(args, data, arms, left_out, len(arms) * args.seeds - len(todo))
    accelerator.wait_for_everyone()  # all have read what is done before anything is added

    mine = todo[accelerator.process_index :: accelerator.num_processes]
    if mine:
        inputs, build = load_inputs(args, data, device)
        labels = torch.from_numpy(np.concatenate([part.labels for part in data.parts.values()]))
        n_train = len(data.parts["train"].paths)
        test = inputs[n_train : n_train + n_test]
        recipe = Recipe(
            args.max_train_steps, args.train_batch_size, args.learning_rate, args.weight_decay, precision, device
        )
        for arm, seed in track(mine, len(mine), "trainings", shown=is_main):
            began = time.monotonic()
            devices.seed_everything(key_seed("weights", seed) % 2**32)  # of the first weights: the same for every arm
            model = build().to(device).train()
            loss = train(model, inputs, labels, labelled.choose_images(arm, data.parts, seed), recipe, seed)
            predicted = predict(model, test, recipe)
            line = {"arm": arm.name, "real_share": arm.real_share, "seed": seed, "steps": args.max_train_steps}
            line |= {"loss": round(loss, 5), "seconds": round(time.monotonic() - began, 3), "predicted": predicted}
            append_metrics(out / "results.jsonl", line)
    accelerator.wait_for_everyone()

    if is_main:
        done = read_done(out, n_test)
        truth = data.parts["test"].labels
        entries, comparisons = scoring.summarise(arms, done, truth, seeds)
        seconds = sum(one["seconds"] for one in done.values())
        results = {
            "version": 1,
            "target": args.target,
            "classes": data.classes,
            "model": args.model,
            "made": runs.describe_making(devices.describe_device(device), seconds),
            "n_test": n_test,
            "majority": scoring.majority_scores(truth),
            "lacking": data.lacking,
            "left_out": left_out,
            "arms": entries,
            "comparisons": comparisons,
            "verdict": [*data.lacking, *scoring.verdict_lines(comparisons, args.real_shares)],
        }
        write_json(out / "results.json", results)
        curves.plot_curves(out / "curves.png", entries, results["majority"])
        print_results(results)
        print(f"\n{out / 'results.json'}, {out / 'curves.png'}" + ("" if todo else ": all trainings were done before"))
    return 0


if __name__ == "__main__":
    cli.run(main, parse_args())
