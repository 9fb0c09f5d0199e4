"""Measure what this machine does with a model and a recipe: which settings to train with, and how long that takes.

The trainers themselves are started, with one set of settings after the other, and what they log is read. Without data,
images or sounds are made up. The same command goes on where it was stopped. What follows `--` are flags of the trainer.

    python benchmark.py --pretrained_model_name_or_path demo --max_train_steps 300
    python benchmark.py --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --resolution 512
    python benchmark.py --recipe configs/persona.yaml --config_file accelerate_configs/multi_gpu.yaml -- --rank 64
    python benchmark.py --family sdxl --random_weights   # no download: weights made from the known config
    python benchmark.py --recipe configs/voice_pt_br.yaml --train_data_dir data/voice -- --num_train_epochs 200
    python benchmark.py --compare t4.json l4.json --output_dir runs/machines
"""

import argparse
import contextlib
import datetime
import functools
import io
import logging
import os
import re
import shlex
import signal
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from utils import cli, devices, runs  # first: it says in one line which package is missing

# isort: split
import torch
from transformers import VitsConfig

import train_dreambooth
import train_lora
import train_tts
from benchmarking import drawings, search
from benchmarking.comparison import read_results, write_comparison
from benchmarking.flops import count_flops, flops_utilisation, peak_flops
from benchmarking.folder import check_folder, continue_or_refuse, open_folder, write_benchmark, write_settings
from benchmarking.machine import describe_machine
from benchmarking.measuring import Job, measure, settle, train_briefly
from benchmarking.report import (
    describe_row,
    plot_benchmark,
    print_benchmark,
    print_estimate,
    print_plan,
    print_recipe,
    why_nothing,
)
from benchmarking.search import Row
from benchmarking.timing import time_generation, time_repeatedly
from benchmarking.trainer import lacks_memory, read_launch_config
from families import models, sampler
from families.names import FAMILIES, published_model
from families.published import write_configs, write_random_model
from speech import prosody
from speech.batches import Position, load_batch, make_loader
from speech.dataset import Utterance
from speech.discriminators import choose_sizes
from speech.parts import parts_of
from speech.planning import plan_voice
from speech.references import encoder_of, plan_references
from speech.synthesis import Speaking, speak
from speech.voice_memory import build_step
from speech.voices import load_voice, read_voice_config, speaker_names
from training import encoding, examples, memory, prior, setup, starting
from training.batches import BatchPlan, plan_batch
from training.build import Recipe
from utils.cli import UserError
from utils.dataset import list_folders
from utils.files import read_text
from utils.parallel import other_process, thread_map

VOICE = "train_tts.py"
TRAINERS = {"train_lora.py": train_lora, "train_dreambooth.py": train_dreambooth, VOICE: train_tts}
FOLDER_FLAGS = {"train_lora.py": "train_data_dir", "train_dreambooth.py": "instance_data_dir", VOICE: "train_data_dir"}
PROMPT = "a photo of blurred noise"


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--recipe", type=Path, metavar="RECIPE.yaml", help="of the training, as configs/persona.yaml")
    group.add_argument("--trainer", choices=list(TRAINERS), help="default: the one that the recipe's flags are for")
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
    group.add_argument(
        "--repeats", type=cli.Range(1, 1000, int), default=8, metavar="N", help="steps at least, after a warm-up"
    )
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
        used = {"compare", "output_dir", "overwrite", *cli.COMMON}
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
    """The trainer that is named, or else the one that knows most flags of the recipe and the command line."""
    if args.trainer:
        return args.trainer
    try:
        text = read_text(args.recipe) if args.recipe else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--recipe {args.recipe}: {getattr(error, 'strerror', None) or 'is no text'}") from None
    used = {*re.findall(r"^(\w+):", text, re.M), *re.findall(r"--(?:no-)?(\w+)", args.trainer_flags)}
    known = {name: {action.dest for action in TRAINERS[name].make_parser()._actions} for name in TRAINERS}
    return max(TRAINERS, key=lambda name: len(used & known[name]))


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
    if getattr(named, "memory", None):  # which would choose in each row what the row is to measure
        raise UserError("--memory auto: benchmark.py tries gradient checkpointing and batch sizes itself; leave it out")
    places = list_folders(getattr(named, flag))
    is_there = places and all(cli.is_remote(place) or Path(place).exists() for place in places)
    has_data = is_there or getattr(named, "dataset_name", None)
    launch = read_launch_config(args.config_file)
    precision = launch.get("mixed_precision", None)
    return Job(
        script=script,
        words=tuple(words),
        out=out,
        random_family=args.family,
        drawn=not has_data,
        config_file=args.config_file,
        processes=int(launch.get("num_processes") or 1),
        mixed_precision="no" if precision is False else precision,  # an unquoted no
        sharded=launch.get("distributed_type") == "FSDP",
    )


def read_trainer_args(job: Job) -> argparse.Namespace:
    """The trainer's own reading of its command line; nothing of it is sent anywhere."""
    words = list(job.words)
    if job.drawn:
        words += [f"--{FOLDER_FLAGS[job.script]}", str(job.out / ("sounds" if job.script == VOICE else "images"))]
    args = TRAINERS[job.script].parse_args(words)
    args.output_dir = job.out / "training"
    if job.script != VOICE:
        args.latent_cache_dir = job.out / "cache"
    args.push_to_hub, args.hub_model_id, args.sync_to = False, None, None
    return args


# In a process of its own, whose share of the device's memory is free again before a training is measured


def use_precision(job: Job, args: argparse.Namespace) -> None:
    """Let the trainer's start choose the precision of the launch config, unless its own flag names one."""
    if job.mixed_precision and not args.mixed_precision:
        os.environ["ACCELERATE_MIXED_PRECISION"] = job.mixed_precision


def samples_a_step(job: Job, plan: BatchPlan, each: bool) -> int:
    """Of all processes; `each`: the plan of one is every process's own. Refuses what the processes can't divide."""
    effective = plan.effective * (job.processes if each else 1)
    plan_batch("auto", None, effective, job.processes)
    return effective


class Prepared(NamedTuple):
    """The start of the trainer, without a training; `effective`: samples a step of all processes."""

    args: argparse.Namespace
    start: setup.ImageStart
    recipe: Recipe
    effective: int


@functools.cache
def prepare(job: Job) -> Prepared:
    """Start the trainer up to where it would look at its data. Of its settings, those that depend on others are set."""
    args = read_trainer_args(job)
    use_precision(job, args)
    each = args.effective_batch_size is None  # --train_batch_size and accumulation count on each process
    sharded = setup.settle_sharding(args, job.processes, job.sharded)
    args.shard = False  # in this one process
    with contextlib.redirect_stdout(io.StringIO()):
        start = setup.start_trainer(args, FOLDER_FLAGS[job.script])
    args.shard, effective = sharded, samples_a_step(job, start.plan, each)
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
    asked = cli.settings_of(read_trainer_args(job))
    with tempfile.TemporaryDirectory() as name:
        if job.random_family and dry_run:
            job = with_configs_alone(job, Path(name))
        elif job.random_family:
            make_random_model(job)
        elif job.script == VOICE and dry_run:
            job = replace(job, out=Path(name))  # where sounds are made up
        facts = describe_voice(job) if job.script == VOICE else describe_prepared(job, dry_run)
    for flag in ("pretrained_model_name_or_path", FOLDER_FLAGS[job.script]):
        facts["settings"][flag] = asked[flag]  # not what stood in its place
    return facts


def describe_prepared(job: Job, dry_run: bool) -> dict[str, Any]:
    """The same, of a model that is there."""
    args, start, _, effective = prepared = prepare(job)
    missing = missing_class_images(args)
    if not dry_run:
        draw_what_is_missing(job, args.resolution, missing)
    records = [] if job.drawn else read_records(job, args)[0]
    images = len(records) or drawings.NUMBER
    steps, validation_steps = starting.count_steps(args, examples.count_epoch(records) or images)
    machine = describe_machine(start.accelerator.device)
    return {
        "machine": machine,
        "flops": {
            "per_sample": count_image_flops(prepared),
            "peak": peak_flops(machine, start.precision.mixed_precision),
        },
        "settings": cli.settings_of(args) | {"effective_batch_size": effective},
        "estimates": estimate_peaks(prepared),
        "class_images": missing,
        "views": images * setup.read_views(args).crops * (1 + args.random_flip),
        "recipe": {
            "script": job.script,
            "model": published_model(job.random_family) if job.random_family else args.pretrained_model_name_or_path,
            "random_weights": bool(job.random_family),
            "family": start.family,
            "resolution": args.resolution,
            "mixed_precision": start.precision.mixed_precision,
            "precision": start.precision.reason,
            "effective_batch_size": effective,
            "processes": job.processes,
            "examples": images,
            "drawn": job.drawn,
            "max_train_steps": steps,
            "validation_steps": validation_steps,
        },
    }


class PreparedVoice(NamedTuple):
    """The same of train_tts.py, with its data."""

    args: argparse.Namespace
    start: starting.Start
    effective: int
    utterances: list[Utterance]
    config: VitsConfig


@functools.cache
def prepare_voice(job: Job) -> PreparedVoice:
    """Start the trainer, and read its data; where there is none, sounds are made up."""
    args = read_trainer_args(job)
    use_precision(job, args)
    each = args.effective_batch_size is None
    start = starting.begin(args, {}, {})
    args.effective_batch_size = samples_a_step(job, start.plan, each)
    config = read_voice_config(args.pretrained_model_name_or_path)
    if job.drawn:
        letters = known_letters(args.pretrained_model_name_or_path)
        drawings.draw_sounds(job.out / "sounds", config.sampling_rate, letters, "".join(speaker_names(config)[:1]))
    utterances = train_tts.read_data(args)[0]
    config = plan_voice(config, train_tts.read_wanted(args), [one.speaker for one in utterances])
    return PreparedVoice(args, start, args.effective_batch_size, utterances, config)


def known_letters(name: str) -> str:
    """What a voice's tokenizer knows, of one character each."""
    return "".join(sorted(one for one in load_voice(name).tokenizer.encoder if len(one) == 1 and one.isalpha()))


def describe_voice(job: Job) -> dict[str, Any]:
    """As describe_prepared."""
    args, start, effective, utterances, config = prepare_voice(job)
    steps, validation_steps = starting.count_steps(args, len(utterances))
    machine = describe_machine(start.accelerator.device)
    seconds = statistics.mean(one.seconds for one in utterances)
    average = min(utterances, key=lambda one: abs(one.seconds - seconds))
    sizes = choose_sizes(args.discriminators, config)
    step = build_step(config, sizes, average, 1, args.segment_frames)
    return {
        "machine": machine,
        "flops": {
            "per_sample": count_flops(lambda: step.run(False)),
            "peak": peak_flops(machine, start.precision.mixed_precision),
        },
        "settings": cli.settings_of(args),
        "estimates": {str(on): [0, *estimate_voice_peaks(job, on)] for on in (False, True)},
        "class_images": 0,
        "views": len(utterances),
        "recipe": {
            "script": job.script,
            "model": args.pretrained_model_name_or_path,
            "random_weights": args.random_weights,
            "family": "vits",
            "mixed_precision": start.precision.mixed_precision,
            "precision": start.precision.reason,
            "effective_batch_size": effective,
            "processes": job.processes,
            "examples": len(utterances),
            "seconds_of_sound": round(seconds, 3),
            "drawn": job.drawn,
            "max_train_steps": steps,
            "validation_steps": validation_steps,
        },
    }


def estimate_voice_peaks(job: Job, checkpointing: bool) -> list[int]:
    """Bytes of a step with one of the longest utterances at once, and with two."""
    args, start, _, utterances, config = prepare_voice(job)
    args = argparse.Namespace(**vars(args) | {"gradient_checkpointing": checkpointing})
    steps = [train_tts.lay_out_step(args, config, utterances, micro) for micro in (1, 2)]
    phases = [train_tts.estimate_memory(args, step, start.precision) for step in steps]
    return [memory.peak_phase(one)[1] for one in phases]


def time_voice(job: Job, repeats: int) -> dict[str, Any]:
    """Utterances a second that one thread reads, with their spectrograms; seconds of sound spoken in a second."""
    args, start, _, utterances, config = prepare_voice(job)
    if prosody.NAME in parts_of(config):
        (utterances,) = train_tts.measure_prosody(start.accelerator, job.out, utterances)
    vectors = train_tts.encode_speakers(args, encoder_of(config), utterances, start.accelerator)
    voice = train_tts.open_voice(args, config, utterances, vectors)
    some = utterances[: drawings.NUMBER]
    loader = make_loader(some, voice, args.segment_frames, plan_references(utterances, [], vectors)[0])
    positions = [Position(i, 0.0, ("benchmark", i)) for i in range(len(some))]
    loading = time_repeatedly(lambda: load_batch(positions, loader, positions), len(some), repeats)
    how, text = Speaking(speaker="".join(voice.speakers[:1])), some[-1].text
    spoken = len(speak(voice, text, 0, how)) / voice.model.config.sampling_rate
    speaking = time_repeatedly(lambda: speak(voice, text, 0, how), 1, repeats)
    return {
        "loading_utterances_per_second": 1 / loading["median"],
        "loading_utterances_seconds": loading,
        "spoken_seconds_per_second": spoken / speaking["median"],
        "speaking_seconds": speaking,
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
            FAMILIES[start.family].encode_text(tokenizers, encoders, [one.text], False)[0]["embeds"].cpu()

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
    kept = bool(facts["settings"].get("blocks_on_cpu"))  # which needs gradient checkpointing, and can't be compiled
    compiles = "compile" in facts["settings"] and not kept
    while trial := search.next_trial(rows, share, recipe["max_train_steps"], compiles, kept):
        row = measure(job, facts, trial, rows, repeats)
        if row["status"] == "failed" and not rows:
            raise UserError(re.sub(r"^\w+\.py: error: ", "", row["why"]))
        if row["status"] == "ok" and (peak := facts["flops"]["peak"]):
            flops = facts["flops"]["per_sample"]
            row["mfu"] = flops_utilisation(flops, row["samples_per_second"], peak * recipe["processes"])
        rows.append(row)
        write_benchmark(job.out, benchmark)
        print(describe_row(row), flush=True)


def measure_rest(job: Job, benchmark: dict[str, Any], sizes: list[int], repeats: int) -> None:
    """Generation, encoding and loading, in a process of their own."""
    rows, is_voice = benchmark["generation"], job.script == VOICE
    missing = [] if is_voice else search.sizes_left(rows, sizes)
    if benchmark["rates"] and not missing:
        return
    with other_process() as call:
        call(logging.getLogger("training").setLevel, logging.ERROR)  # describe_job has shown the trainer's warnings
        if not benchmark["rates"]:
            benchmark["rates"] = call(time_voice if is_voice else time_rates, job, repeats)
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
    (check_folder if args.dry_run else open_folder)(args.output_dir, args.overwrite)
    with other_process() as call:
        facts = call(describe_job, job, args.dry_run)
    print_recipe(facts)

    # A new benchmark, or the one in the folder, to go on with.
    new: dict[str, Any] = {"command": runs.command_line(), "commit": runs.git_commit(), "date": now()}
    new |= {name: facts[name] for name in ("machine", "recipe", "settings", "flops")}
    new |= {"rows": [], "generation": [], "rates": {}, "before": None}
    benchmark = continue_or_refuse(args.output_dir, new, args.overwrite)
    if args.dry_run:
        print_plan(facts)
        return 0
    write_settings(job.out, cli.settings_of(args))
    write_benchmark(job.out, benchmark)

    # Trainings with one set of settings after the other, and the best of them.
    measure_rows(job, benchmark, facts, args.repeats)
    before = benchmark.get("before")
    best = search.recommend(benchmark["rows"], facts["recipe"]["max_train_steps"], before and search.read_trial(before))
    if best is None:
        raise UserError(why_nothing(benchmark))

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
        print(f"the data was made up; for yours, add --{FOLDER_FLAGS[job.script]} DIR")
    print(benchmark["recommended"]["command"])
    return 0


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


if __name__ == "__main__":
    cli.run(main, parse_args())
