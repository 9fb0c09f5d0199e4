"""Does the synthetic set help? The same classifier trained on real, on synthetic and on both, tested on real images.

Every training makes equally many steps; each is kept as soon as it is done, and the same command goes on.

    python train_classifier.py --real data/casual_shoes --synthetic data/synthetic/casual_shoes --target baseColour
    python train_classifier.py --real data/x --synthetic data/a data/b --target gender --model probe
    accelerate launch --config_file accelerate_configs/cpu_2proc.yaml train_classifier.py --config recipe.yaml
"""

import argparse
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from evaluation import backbones, curves, labelled
from evaluation import classifier_scores as scoring
from evaluation.image_sets import read_images, spell_alike
from training.flags import OnOff
from utils import cli, devices, runs
from utils.cli import UserError, positive, seed_number, workers
from utils.devices import key_seed, keyed_generator
from utils.files import write_json
from utils.metrics_log import append_metrics, read_metrics
from utils.parallel import available_cores

logger = logging.getLogger("train_classifier")
RATES = {"cnn": 3e-3, "probe": 3e-3, "finetune": 1e-4}
# What neither changes a training nor decides which of them there are to choose from.
FREE = set("output_dir overwrite seed seeds real_shares synthetic_ratios num_workers feature_cache".split())


def share_of_real(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0, at most 1")
    return value


def above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
    return value


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--real", type=Path, metavar="DIR", help="a prepared dataset with the splits train and test")
    group.add_argument("--synthetic", type=Path, nargs="+", metavar="DIR", help="generated sets, each judged by itself")
    group.add_argument(
        "--target", metavar="COLUMN", help="what to tell: a column of metadata.jsonl, such as baseColour"
    )
    group.add_argument("--min_per_class", type=positive, default=5, help="real images in train, and in test; else out")
    group.add_argument("--real_shares", type=share_of_real, nargs="+", default=[0.1, 0.25, 1.0], help="of real train")
    group.add_argument(
        "--synthetic_ratios", type=above_zero, nargs="*", default=[1, 2, 4], help="synthetic images for each real one"
    )
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=list(RATES), default="cnn", help="from scratch, on cached features, or whole")
    group.add_argument("--encoder", choices=["clip", "dinov2", "inception", "demo"], help="of --model probe (clip)")
    group.add_argument("--encoder_path", metavar="DIR|HUB_ID", help="where that encoder is; default: its usual place")
    group.add_argument(
        "--pretrained_model_name_or_path", metavar="DIR|HUB_ID", help="of --model finetune (microsoft/resnet-50)"
    )
    group.add_argument("--resolution", type=positive, help="pixels a side; default: 64 (cnn), or the backbone's own")
    group = parser.add_argument_group("training, the same for every arm")
    group.add_argument("--seeds", type=positive, default=5, help="trainings of each arm; fewer than 5 say little")
    group.add_argument("--seed", type=seed_number, default=0, help="the first of them")
    group.add_argument("--max_train_steps", type=positive, default=300, help="optimizer steps of each training")
    group.add_argument("--train_batch_size", type=positive, default=64, help="images a step")
    group.add_argument("--learning_rate", type=above_zero, help="the highest; default: 3e-3, or 1e-4 for finetune")
    group.add_argument("--weight_decay", type=float, default=0.05, help="of AdamW")
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: the best that is done right")
    group = parser.add_argument_group("output and performance")
    group.add_argument("--output_dir", type=Path, default=Path("runs/casual_shoes/utility"), help="results.json")
    group.add_argument("--overwrite", action=OnOff, default=False, help="remove the results there and begin anew")
    group.add_argument(
        "--feature_cache", type=Path, metavar="DIR", help="default: `cache/features` beside --output_dir"
    )
    group.add_argument("--num_workers", type=workers, default=available_cores(), help="processes that read images")
    args = cli.parse_args(parser, argv)
    for name in ("real", "synthetic", "target"):
        if not getattr(args, name):
            parser.error(f"--{name} is needed")
    for name, model in (("encoder", "probe"), ("encoder_path", "probe"), ("pretrained_model_name_or_path", "finetune")):
        if getattr(args, name) and args.model != model:
            parser.error(f"--{name} {getattr(args, name)}: is for --model {model}, not for {args.model}")
    if args.resolution and (args.model == "probe" or args.resolution < 16):
        parser.error(f"--resolution {args.resolution}: expected 16 or more, and not with --model probe")
    if args.seeds < 2:
        parser.error(f"--seeds {args.seeds}: an interval needs 2 or more; 5 are usual")
    args.real_shares = sorted(set(args.real_shares))
    args.synthetic_ratios = sorted(set(args.synthetic_ratios))
    # What was left open is resolved here, so that it is among the settings that are shown.
    args.learning_rate = args.learning_rate or RATES[args.model]
    if args.model == "cnn":
        args.resolution = args.resolution or 64
    elif args.model == "probe":
        args.encoder = args.encoder or "clip"
    else:
        args.pretrained_model_name_or_path = args.pretrained_model_name_or_path or "microsoft/resnet-50"
    return args


class Part(NamedTuple):
    """Some images and the numbers of their classes."""

    paths: list[Path]
    labels: np.ndarray


class Data(NamedTuple):
    classes: list[str]
    parts: dict[str, Part]  # train, test, and each synthetic set by its name
    lines: list[str]  # what was left out


def read_data(real: Path, synthetic: list[Path], target: str, least: int) -> Data:
    """The labelled images, not yet opened."""
    names = ["synthetic"] if len(synthetic) == 1 else [one.name for one in synthetic]
    if len({*names, "real", "train", "test"}) < len(names) + 3:  # folders of one name, or of a name that is taken
        names = [str(one) for one in synthetic]
    if len({*names}) < len(names):
        raise UserError(f"--synthetic {' '.join(names)}: the same set twice; name each once")
    for split in ("train", "test"):
        if not (real / split).is_dir():
            raise UserError(
                f"--real {real}: there is no split `{split}` in it; give a dataset that prepare_dataset.py made, "
                "not one of its splits"
            )
    places = {"train": (real / "train", "--real"), "test": (real / "test", "--real")}
    places |= {name: (place, "--synthetic") for name, place in zip(names, synthetic)}
    records = spell_alike({name: read_images(*place) for name, place in places.items()})
    labels = {
        name: labelled.read_labels(records[name], target, f"{flag} {place}") for name, (place, flag) in places.items()
    }
    classes, lines = labelled.choose_classes(labels["train"], labels["test"], least)
    if len(classes) < 2:
        raise UserError(
            f"--target {target}: {'1 value has' if classes else '0 values have'} --min_per_class {least} real images "
            f"to train and to test, and two are needed; lower it, or choose another column ({'; '.join(lines)})"
        )
    parts = {}
    for name in places:
        kept = [i for i, label in enumerate(labels[name]) if label in classes]
        if name in names:
            lines += labelled.stranger_lines(labels[name], classes, name)
        if not kept:
            raise UserError(
                f"--synthetic {places[name][0]}: none of its labels is a class of the real set ({', '.join(classes)}); "
                "the two must be spelt alike"
            )
        numbers = np.array([classes.index(labels[name][i]) for i in kept])
        parts[name] = Part([records[name][i]["path"] for i in kept], numbers)
    return Data(classes, parts, lines)


def small_cnn(classes: int) -> nn.Module:
    """Patches of 4 x 4 pixels, two convolutions that halve the side, the mean over what is left, one layer."""
    layers, widths = [nn.Conv2d(3, 32, 4, stride=4, bias=False), nn.BatchNorm2d(32), nn.ReLU()], (32, 64, 128)
    for narrow, wide in zip(widths, widths[1:]):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    return model.to(memory_format=torch.channels_last)  # as augment() leaves the images: a tenth faster on a CPU


def make_builder(args, classes: int) -> tuple[Callable[[], nn.Module], int]:
    """What makes a new model, and the side of its images (0 where it takes features)."""
    if args.model == "cnn":
        return lambda: small_cnn(classes), args.resolution
    source = args.pretrained_model_name_or_path
    wants = backbones.read_backbone(source)
    side = args.resolution or wants["side"]

    def build() -> nn.Module:
        return backbones.Backbone(source, classes, wants["mean"], wants["std"])

    backbones.check_side(source, build(), side)
    return build, side


def load_inputs(args, parts: dict[str, Part], classes: int, device: torch.device) -> tuple[torch.Tensor, Callable]:
    """Every image of all parts, one after another, as bytes or as features; and what makes a new model for them."""
    paths = [path for part in parts.values() for path in part.paths]
    if args.model == "probe":
        from evaluation.features import image_features, load_encoder

        encoder = load_encoder(args.encoder, args.encoder_path, device, "--encoder")
        cache = args.feature_cache or args.output_dir.parent / "cache" / "features"
        features = torch.from_numpy(image_features(encoder, paths, cache, workers=args.num_workers))
        # Batch statistics without weights: features of any scale become comparable.
        return features, lambda: nn.Sequential(
            nn.BatchNorm1d(encoder.size, affine=False), nn.Linear(encoder.size, classes)
        )
    build, side = make_builder(args, classes)
    return torch.from_numpy(labelled.decode_all(paths, side, args.num_workers)), build


def as_input(batch: torch.Tensor) -> torch.Tensor:
    """Bytes (n, side, side, 3) as pixels in -1 … 1, channels first; features as they are."""
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch


def train_once(
    build: Callable[[], nn.Module], inputs: torch.Tensor, labels: torch.Tensor, chosen: torch.Tensor,
    test: torch.Tensor, steps: int, batch: int, rate: float, decay: float, seed: int, precision, device: torch.device
) -> tuple[list[int], float]:  # fmt: skip
    """One training on the chosen images: (class of every test image, loss of the last tenth of the steps)."""
    # Weights, order and augmentation hang on the seed alone: arms of one seed differ in their images only.
    devices.seed_everything(key_seed("weights", seed) % 2**32)
    model = build().to(device).train()
    noise = keyed_generator("augmentation", seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.mixed_precision == "fp16")
    half, losses, warmup = precision.mixed_precision != "no", [], max(1, steps // 20)
    for step, members in enumerate(labelled.sample_order(chosen, batch, steps, seed)):
        for group in optimizer.param_groups:  # a short climb, then half a cosine to 0
            group["lr"] = rate * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        given = inputs[members]
        if given.dtype == torch.uint8:
            given = labelled.augment(given, noise)
        with torch.autocast(device.type, precision.dtype, half):
            logits = model(as_input(given.to(device)))
        loss = F.cross_entropy(logits.float(), labels[members].to(device))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step >= steps - max(1, steps // 10):
            losses.append(loss.detach())
    last = torch.stack(losses).mean().item()
    if not math.isfinite(last):
        raise UserError(f"--learning_rate {rate:g}: the loss is not finite any more; lower it, or --mixed_precision no")
    model.eval()
    predicted = []
    with torch.inference_mode(), torch.autocast(device.type, precision.dtype, half):
        for members in test.split(256):
            predicted += model(as_input(inputs[members].to(device))).argmax(1).tolist()
    return predicted, last


def choose_images(arm: labelled.Arm, parts: dict[str, Part], seed: int) -> torch.Tensor:
    """The places of an arm's training images among all inputs."""
    starts = dict(zip(parts, np.cumsum([0, *(len(part.paths) for part in parts.values())])))
    chosen = [np.array([], np.int64)]
    if arm.n_real:
        chosen.append(starts["train"] + labelled.real_part(parts["train"].labels, arm.real_share, seed))
    if arm.synthetic:
        picked = labelled.synthetic_part(parts[arm.synthetic].labels, arm.n_synthetic, seed)
        chosen.append(starts[arm.synthetic] + picked)
    return torch.from_numpy(np.concatenate(chosen))


def read_done(folder: Path, images: int) -> dict[tuple[str, float, int], dict]:
    """{(arm, share, seed): its line} of every training that is finished."""
    lines = read_metrics(folder / "results.jsonl")
    whole = [one for one in lines if len(one.get("predicted") or []) == images]
    return {(one["arm"], one["real_share"], one["seed"]): one for one in whole}


def print_plan(arms: list[labelled.Arm], data: Data, args, done: int) -> None:
    parts, trainings = data.parts, len(arms) * args.seeds
    print(f"{len(data.classes)} classes of {args.target}: {', '.join(data.classes)}")
    print(", ".join(f"{name} {len(part.paths):,}" for name, part in parts.items()) + " images; val is not used")
    for line in data.lines:
        print(line)
    print(f"\n{'real':>6} {'synthetic':>10}  trained on")
    for arm in arms:
        print(f"{arm.n_real:>6,} {arm.n_synthetic:>10,}  {arm_title(arm)}")
    print(
        f"{len(arms)} arms x {args.seeds} seeds = {trainings} trainings of {args.max_train_steps} steps of "
        f"{args.train_batch_size} images; {done} of them are done",
        flush=True,
    )


def arm_title(arm: labelled.Arm) -> str:
    return f"{arm.name} ({arm.real_share:.0%} of real)" if arm.n_real else f"{arm.name} only"


def pair_arms(arms: list[labelled.Arm]) -> list[tuple[labelled.Arm, labelled.Arm]]:
    """Real against all else of its share and against synthetic alone; then each synthetic set against each other."""
    real = [arm for arm in arms if arm.synthetic is None]
    others = [arm for arm in arms if arm.synthetic is not None]
    pairs = [(one, two) for one in real for two in others if two.real_share in (0, one.real_share)]
    for i, one in enumerate(others):
        kind = one.name.removesuffix(one.synthetic)
        pairs += [
            (one, two)
            for two in others[i + 1 :]
            if two.real_share == one.real_share and two.name.removesuffix(two.synthetic) == kind
        ]
    return pairs


def summarise(arms: list[labelled.Arm], data: Data, done: dict, seeds: range) -> tuple[list[dict], list[dict]]:
    """The arms and the comparisons of results.json."""
    truth, entries, values = data.parts["test"].labels, {}, {}
    weights = scoring.resample_weights(len(truth), 1000, 0)  # the same for every arm, so that they can be paired
    for arm in arms:
        lines = [done[arm.name, arm.real_share, seed] for seed in seeds]
        values[arm] = scoring.scores(truth, np.array([one["predicted"] for one in lines]), weights)
        entry = {"name": arm.name, "real_share": arm.real_share, "synthetic": arm.synthetic}
        entry |= {"synthetic_ratio": arm.ratio, "n_real": arm.n_real, "n_synthetic": arm.n_synthetic}
        entry |= {"seeds": list(seeds), "steps": [one["steps"] for one in lines]}
        for metric in scoring.METRICS:
            entry[metric] = values[arm][metric][0].tolist()
            entry[f"{metric}_interval"] = list(scoring.score_interval(values[arm][metric], len(truth)))
        entries[arm] = entry
    pairs = [(entries[one], entries[two], values[one], values[two]) for one, two in pair_arms(arms)]
    return list(entries.values()), scoring.compare(pairs)


def print_results(results: dict, shares: list[float]) -> None:
    print(f"\n{'':<42}{'accuracy':<28}macro-F1")
    for arm in results["arms"]:
        title = f"{arm['name']}, {arm['n_real']:,} + {arm['n_synthetic']:,}"
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*arm[f"{metric}_interval"]) for metric in scoring.METRICS]
        print(f"{title:<42}{cells[0]:<28}{cells[1]}")
    print("\nDoes the synthetic set help?")
    for line in results["verdict"]:
        print(f"  {line}")


def main(args) -> int:
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    data = read_data(args.real, args.synthetic, args.target, args.min_per_class)
    sizes = {name: len(part.paths) for name, part in data.parts.items() if name not in ("train", "test")}
    arms, left = labelled.plan_arms(args.real_shares, args.synthetic_ratios, data.parts["train"].labels, sizes)
    data.lines.extend(left)
    seeds, n_test = range(args.seed, args.seed + args.seeds), len(data.parts["test"].paths)
    settings = cli.settings_of(args) | {"precision": precision.mixed_precision}
    for flag, names in (("real", ("train", "test")), ("synthetic", sizes)):
        settings[f"{flag}_sha256"] = labelled.data_fingerprint({name: data.parts[name] for name in names})
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}")
        if args.seeds < 5:
            logger.warning("--seeds %d: fewer than 5 rarely show a difference, even where there is one", args.seeds)
    if args.dry_run:
        if is_main:
            print_plan(arms, data, args, len(read_done(out, n_test)))
            print(f"run: {runs.describe_run(out, settings, FREE)}")
        return 0
    if is_main:
        runs.open_run(out, settings, FREE, args.overwrite)
    accelerator.wait_for_everyone()
    done = read_done(out, n_test)
    todo = [(arm, seed) for arm in arms for seed in seeds if (arm.name, arm.real_share, seed) not in done]
    if is_main:
        print_plan(arms, data, args, len(arms) * args.seeds - len(todo))
    accelerator.wait_for_everyone()  # all have read what is done before anything is added
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    if mine:
        inputs, build = load_inputs(args, data.parts, len(data.classes), device)
        labels = torch.from_numpy(np.concatenate([part.labels for part in data.parts.values()]))
        n_train = len(data.parts["train"].paths)
        test = torch.arange(n_train, n_train + n_test)
        for arm, seed in tqdm(mine, unit=" trainings", **cli.progress(is_main)):
            began = time.monotonic()
            predicted, loss = train_once(
                build, inputs, labels, choose_images(arm, data.parts, seed), test, args.max_train_steps,
                args.train_batch_size, args.learning_rate, args.weight_decay, seed, precision, device
            )  # fmt: skip
            line = {"arm": arm.name, "real_share": arm.real_share, "seed": seed, "steps": args.max_train_steps}
            line |= {"loss": round(loss, 5), "seconds": round(time.monotonic() - began, 3), "predicted": predicted}
            append_metrics(out / "results.jsonl", line)
    accelerator.wait_for_everyone()
    if is_main:
        done = read_done(out, n_test)
        entries, comparisons = summarise(arms, data, done, seeds)
        made = {"command": runs.command_line(), "commit": runs.git_commit()}
        made |= {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        made |= {"seconds": round(sum(one["seconds"] for one in done.values()), 1)}
        made |= {"hardware": devices.describe_device(device), "versions": runs.package_versions()}
        results = {"version": 1, "target": args.target, "classes": data.classes, "model": args.model, "made": made}
        results |= {"n_test": n_test, "left_out": data.lines, "arms": entries, "comparisons": comparisons}
        results["verdict"] = scoring.verdict_lines(comparisons, args.real_shares)
        write_json(out / "results.json", results)
        curves.utility_curves(out / "curves.png", entries)
        print_results(results, args.real_shares)
        print(f"\n{out / 'results.json'}, {out / 'curves.png'}" + ("" if todo else ": nothing was left to train"))
    return 0


if __name__ == "__main__":
    cli.run(main, parse_args())
