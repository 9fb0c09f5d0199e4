"""The steps of check.py, in order of importance: each runs commands as a user would, and returns a figure.

A step raises Skipped where it can't be run and Failed where something did not do what it should. As a script, this
runs one step of a check that is under way, in its folder:

    python tests/gpu/steps.py --folder runs/gpu_check --step resume
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from families.flux2_klein import LAYERS
from families.names import FAMILIES
from tests.gpu import commands
from tests.gpu.commands import MODELS, Failed, Machine, Model, Setup, Skipped
from utils.files import write_json

FLOAT32 = ("--mixed_precision", "no")
SD = commands.find_model("sd1")  # of the steps that need no particular size
CONFIGS = {"cuda": "multi_gpu", "cpu": "cpu_2proc"}
CLOSE = {"no": 1e-4, "bf16": 0.03, "fp16": 0.03}  # losses of one plan, relative, after 8 steps


class Step(NamedTuple):
    """`limit`: seconds; `needs`: steps that have to pass before; `alone`: it measures time or fills the memory.

    `disk`: GiB that it leaves, or takes on its way.
    """

    name: str
    title: str
    run: Callable[[Setup], str]
    limit: int
    needs: tuple[str, ...] = ()
    alone: bool = False
    disk: int = 0


# The machine


def check_environment(setup: Setup) -> str:
    words = [sys.executable, "check_environment.py", "--json"]
    done = subprocess.run(words, cwd=ROOT, env=commands.environment(setup), capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        raise Failed(commands.last_words(done.stderr))
    (setup.folder / "environment.json").write_text(done.stdout)
    found = json.loads(done.stdout)
    if not found["ready"]:
        errors = [one for one in found["checks"] if one["status"] == "error" and one["critical"]]
        raise Failed("; ".join(f"{one['name']}: {one['detail']}" for one in errors))
    advice = found["recommendation"]
    if advice["device"].startswith("CPU") != (setup.device == "cpu"):
        raise Failed(f"the scripts would compute on {advice['device']}")
    return f"{advice['reason']}; suggested batch {advice['train_batch_size']}, {advice['accelerate_config']}"


def write_weights(setup: Setup, model: Model) -> str:
    folder, began = commands.weights_of(setup, model.family), time.monotonic()
    if setup.tiny:
        from tests.tiny_models import build_tiny

        build_tiny(folder, model.family)
    else:
        import torch

        from families.published import write_random_model

        write_random_model(model.family, folder, torch.bfloat16, reduce_text(model))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    said = f"{size / 1e9:.1f} GB in {time.monotonic() - began:.0f} s"
    if setup.tiny or not model.reduced_text:
        return said
    return f"{said}; text encoder with {', '.join(f'{key} {size}' for key, size in model.reduced_text.items())}"


def reduce_text(model: Model) -> dict[str, dict]:
    """The changes of the published configs that make the text encoder, of FLUX.1 the second one, a small one."""
    from families.published import read_published

    name = f"{[*FAMILIES[model.family].TEXT_ENCODERS][-1]}/config.json"
    inner = read_published(model.family)[name].get("text_config")  # of one that can see, too
    return {name: {"text_config": inner | model.reduced_text} if inner else model.reduced_text}


# The trainers


def train_in(setup: Setup, precision: str) -> str:
    """train_lora.py, with what a GPU does otherwise: half precision, validation with an image."""
    name = f"lora_{precision}"
    words = "--mixed_precision", precision, "--held_out", 0.25, "--validation_steps", 8, "--num_validation_samples", 8
    words += "--num_validation_images", 1, "--validation_inference_steps", 2, "--checkpointing_steps", 4
    done = commands.train_lora(setup, SD, name, *words)
    commands.check_precision(name, done.log, precision)
    losses, held_out = commands.losses_of(setup, name), commands.losses_of(setup, name, "val_loss")
    change = f"held-out loss {held_out[0]:.4f} → {held_out[-1]:.4f}"
    return f"{len(losses)} losses finite, {change}; peak {done.peak:.1f} GiB"


def dreambooth_words(setup: Setup, name: str, *more: object) -> list[object]:
    side = commands.side_of(setup, SD)
    short = "--train_batch_size 1 --gradient_accumulation_steps 2 --max_train_steps 6 --validation_steps 0 --seed 0"
    short += " --checkpointing_steps 0 --logging_steps 1 --report_to none --resolution"
    words = ["--pretrained_model_name_or_path", commands.weights_of(setup, SD.family), *short.split(), side]
    words += ["--instance_data_dir", commands.photos(setup, 6, side, captions=False)]
    words += ["--instance_prompt", "a photo of sks shapes", "--output_dir", commands.run_folder(setup, name)]
    return [*words, *more]


def teach_lora(setup: Setup) -> str:
    name, half = "dreambooth_lora", setup.machine.half
    shown = "float32" if half == "no" else half
    words = dreambooth_words(setup, name, "--mixed_precision", half, "--train_text_encoder", "--no-output_kohya_format")
    done = commands.measure(setup, name, "train_dreambooth.py", words)
    commands.check_precision(name, done.log, half)
    losses = commands.losses_of(setup, name)
    return f"{shown}, text encoder too: {len(losses)} losses finite; peak {done.peak:.1f} GiB"


def teach_all_weights(setup: Setup) -> str:
    """All weights, with prior preservation, whose class images are generated here."""
    if setup.device == "cuda" and setup.machine.memory_gib < 23:
        raise Skipped(f"weights, gradients and optimizer take 20 GiB, and this GPU has {setup.machine.memory_gib:.0f}")
    name, half = "dreambooth_full", setup.machine.half
    classes = setup.folder / "data/class"
    more = "--mixed_precision", half, "--method", "full", "--with_prior_preservation", "--class_data_dir", classes
    more += "--class_prompt", "a photo of shapes", "--num_class_images", 2, "--validation_inference_steps", 2
    words = dreambooth_words(setup, name, *more)
    done = commands.measure(setup, name, "train_dreambooth.py", words, "--keep_noise")
    commands.check_precision(name, done.log, half)
    losses = commands.losses_of(setup, name) + commands.losses_of(setup, name, "prior_loss")
    shutil.rmtree(commands.run_folder(setup, name) / "unet")  # the largest file of all
    return f"{half} with prior preservation: {len(losses)} losses finite; peak {done.peak:.1f} GiB"


def classify(setup: Setup) -> str:
    data, out, half = setup.folder / "data/classes", setup.folder / "runs/classifier", setup.machine.half
    commands.coloured(data / "real/train", 0, 40)
    commands.coloured(data / "real/test", 100, 28)
    commands.coloured(data / "synthetic", 200, 40)
    words = ["--real", data / "real", "--synthetic", data / "synthetic", "--target", "colour", "--output_dir", out]
    short = "--real_shares 1 --synthetic_ratios 1 --max_train_steps 30 --train_batch_size 16 --num_workers 2"
    words += [*short.split(), "--resolution", 32, "--mixed_precision", half]
    done = commands.measure(setup, "classifier", "train_classifier.py", words)
    commands.check_precision("classifier", done.log, half)
    best = max(arm["accuracy_interval"][0] for arm in commands.read_json(out / "results.json")["arms"])
    return f"{'float32' if half == 'no' else half}: accuracy {best:.2f} of 4 colours; peak {done.peak:.1f} GiB"


# Exactness


def kill_and_resume(setup: Setup, whole: str, name: str, *options: object) -> tuple[bool, float, float]:
    """The training `whole` again, killed after its sixth step and resumed: see commands.compare_loras."""
    precision = setup.machine.half
    words = "--mixed_precision", precision, "--checkpointing_steps", 4, "--held_out", 0.25
    if whole != f"lora_{precision}":
        commands.train_lora(setup, SD, whole, *words, options=options)
    killed = f"{name}_killed"
    again = commands.lora_words(setup, SD, name, *words)
    process = commands.start(
        setup, killed, commands.command(setup, killed, "train_lora.py", again, "--kill_after", 6, *options)
    )
    commands.finish(setup, killed, process, expected=-signal.SIGKILL)
    done = commands.measure(setup, name, "train_lora.py", again, *options)
    if "resuming from" not in done.log:
        raise Failed(f"{name} began anew: {commands.last_words(done.log)}")
    return commands.compare_loras(commands.run_folder(setup, whole), commands.run_folder(setup, name))


def resume(setup: Setup) -> str:
    """Equal to the byte, or else how far off, and whether the device's kernels or the resuming are the cause."""
    equal, largest, relative = kill_and_resume(setup, f"lora_{setup.machine.half}", "resumed")
    if equal:
        return "killed after step 6 of 8 and resumed: equal to the byte"
    off = f"off by {largest:.1e} at most, {relative:.1e} relative"
    try:
        equal, largest, _ = kill_and_resume(setup, "deterministic", "resumed_deterministic", "--deterministic")
    except Failed as why:
        raise Failed(f"{off}; why is not known: {why}") from None
    if not equal:
        raise Failed(f"{off}; with deterministic kernels still by {largest:.1e}")
    return f"{off}; with torch's deterministic kernels equal to the byte"


def precision(setup: Setup) -> str:
    half = setup.machine.half
    commands.train_lora(setup, SD, "lora_no", "--mixed_precision", "no", "--held_out", 0.25)
    off = commands.apart(commands.losses_of(setup, "lora_no"), commands.losses_of(setup, f"lora_{half}"))
    return within(off, CLOSE[half], f"losses of {half} against float32")


def within(off: float, limit: float, what: str) -> str:
    if not off <= limit:
        raise Failed(f"{what} are {off:.1e} apart (at most {limit:.0e} expected)")
    return f"{what}: {off:.1e} apart at most"


# Full memory


def size_of_batches(setup: Setup) -> float:
    """GiB in which a sample fits and a batch of 16 does not, by the estimate."""
    import torch

    from families.lora import Adapter
    from training.memory import Load, estimate_memory

    side = commands.side_of(setup, SD)
    dtype = torch.float16 if setup.machine.half == "fp16" else torch.bfloat16

    def needed(micro: int) -> float:
        adapter = Adapter(8, 16)
        load = Load(adapter, micro, side, side, dtype=dtype, autocast=dtype, gradient_checkpointing=False)
        phases = estimate_memory(str(commands.weights_of(setup, SD.family)), SD.family, load)
        return sum(phases["training"].values()) / 2**30

    return (needed(1) + needed(16)) / 2


def fill_memory(setup: Setup, leave_gib: float, samples: int) -> tuple[tuple[object, ...], str]:
    """What measured.py does to fill the memory, and how to say it; on a CPU the error comes from nowhere."""
    if setup.device == "cpu":
        return ("--refuse_samples", samples), "as if the memory were full"
    return ("--leave_gib", leave_gib), f"{leave_gib:.1f} GiB free"


def train_out_of_memory(setup: Setup) -> str:
    options, free = fill_memory(setup, size_of_batches(setup), 4)
    shared = "--mixed_precision", setup.machine.half, "--no-gradient_checkpointing", "--max_train_steps", 2
    large = "--train_batch_size", 16, "--effective_batch_size", 16
    done = commands.train_lora(setup, SD, "full_memory", *shared, *large, options=options)
    sizes = re.findall(r"out of memory: (\d+) samples at once", done.log)
    if not sizes:
        raise Failed(f"16 samples at once did not run out of memory ({free}), against the estimate")
    small = "--train_batch_size", sizes[-1], "--effective_batch_size", 16
    commands.train_lora(setup, SD, "small_batch", *shared, *small)
    folders = [commands.run_folder(setup, name) for name in ("small_batch", "full_memory")]
    equal, largest, relative = commands.compare_loras(*folders)
    found = f"16 samples at once, {free}: halved to {sizes[-1]}, result"
    if relative > 1e-2:
        raise Failed(f"{found} {relative:.1e} from that of {sizes[-1]} at once")
    return f"{found} equal to the byte" if equal else f"{found} within {largest:.1e} ({relative:.1e} relative)"


def choose_batch(setup: Setup) -> str:
    """--train_batch_size auto, where not all 16 samples fit: what it chooses has to."""
    options, free = fill_memory(setup, size_of_batches(setup), 16)
    words = "--train_batch_size", "auto", "--effective_batch_size", 16, "--max_train_steps", 1
    words += "--mixed_precision", setup.machine.half, "--no-gradient_checkpointing"
    done = commands.train_lora(setup, SD, "auto_batch", *words, options=options)
    chosen = re.search(r"--train_batch_size auto: (.*)", done.log)
    if "out of memory" in done.log or not chosen:
        raise Failed(f"{free}: {chosen[1] if chosen else 'nothing'} was chosen, and ran out of memory")
    return f"{free}: {chosen[1]}"


def generate_words(setup: Setup, model: Model, name: str, *more: object) -> list[object]:
    words = ["--pretrained_model_name_or_path", commands.weights_of(setup, model.family), "--seed", 0]
    words += ["--output_dir", setup.folder / "runs" / name, "--resolution", commands.side_of(setup, model)]
    return [*words, "--mixed_precision", setup.machine.half, *more]


def generate_out_of_memory(setup: Setup) -> str:
    options, free = fill_memory(setup, min(10.0, 0.8 * setup.machine.memory_gib), 32)
    name, count = "generate_full_memory", 32 if setup.tiny else 128
    words = "--prompt", "a photo of shapes", "--num_images", count, "--num_inference_steps", 2, "--batch_size"
    large = generate_words(setup, SD, name, *words, count)
    done = commands.measure(setup, name, "generate.py", large, "--keep_noise", *options)
    sizes = re.findall(r"out of memory: (\d+) images? at once", done.log)
    if not sizes:
        raise Failed(f"{count} images at once did not run out of memory ({free})")
    from tests.benchmarks.generate_speed import largest_difference  # here: it imports torch, which takes seconds

    small = generate_words(setup, SD, "generate_small_batch", *words, sizes[-1])
    commands.measure(setup, "generate_small_batch", "generate.py", small, "--keep_noise")
    levels = largest_difference(
        *(setup.folder / "runs" / one / "images" for one in (name, "generate_small_batch")), count
    )
    found = f"{count} images at once, {free}: halved to {sizes[-1]}, all made, {levels} levels of 255 apart at most"
    if levels > 8:
        raise Failed(f"{found} from those of {sizes[-1]} at once")
    return found


# Options


def need_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # whatever its binary raises
        reason = f"bitsandbytes can't be used ({' '.join(str(error).split())[:100]})"
        raise Skipped(f"{reason}: pip install -r requirements-cuda.txt") from error


def train_8bit(setup: Setup) -> str:
    need_bitsandbytes()
    half = setup.machine.half
    words = "--mixed_precision", half, "--held_out", 0.25, "--optimizer", "adamw8bit"
    commands.train_lora(setup, SD, "adamw8bit", *words)
    off = commands.apart(commands.losses_of(setup, f"lora_{half}"), commands.losses_of(setup, "adamw8bit"))
    return within(off, 0.05, "losses of 8-bit and of 32-bit AdamW")


def speed_run(setup: Setup, model: Model, name: str, *more: object) -> commands.Measured:
    """A training for its speed and memory: no accumulation; gradient checkpointing if the model is large.

    `more` wins.
    """
    steps = 24 if model.resolution <= 512 else 12
    words = "--train_batch_size", model.batch, "--effective_batch_size", model.batch, "--max_train_steps", steps
    words += "--max_train_samples", 64, "--lora_alpha", 8
    words += "--mixed_precision", setup.machine.half, checkpointing_of(model)
    done = commands.train_lora(setup, model, name, *words, *more)
    if "out of memory" in done.log:
        raise Skipped(f"{model.batch} samples at once did not fit into {setup.machine.memory_gib:.0f} GiB ({name})")
    return done


def checkpointing_of(model: Model) -> str:
    """As one trains it on a GPU that it fits."""
    return "--gradient_checkpointing" if model.is_flow else "--no-gradient_checkpointing"


def faster(plain: commands.Measured, other: commands.Measured) -> str:
    rates = [commands.steps_per_second(done.steps) for done in (plain, other)]
    return f"{rates[0]:.2f} → {rates[1]:.2f} steps/s ({rates[1] / rates[0]:.2f}×)"


def compile_unet(setup: Setup) -> str:
    plain = speed_run(setup, SD, "speed_sd1")
    other = speed_run(setup, SD, "compiled", "--compile")
    off = commands.apart(commands.losses_of(setup, "speed_sd1"), commands.losses_of(setup, "compiled"))
    same = within(off, CLOSE[setup.machine.half], "losses")
    return f"{faster(plain, other)}, {other.steps[0] - plain.steps[0]:.0f} s to compile; {same}"


def allow_tf32(setup: Setup) -> str:
    if setup.device == "cpu":
        raise Skipped("a CPU has no TF32")
    plain = speed_run(setup, SD, "float32", "--mixed_precision", "no")
    other = speed_run(setup, SD, "tf32", "--mixed_precision", "no", "--allow_tf32")
    off = commands.apart(commands.losses_of(setup, "float32"), commands.losses_of(setup, "tf32"))
    return f"{faster(plain, other)}; {within(off, 0.01, 'losses')}"


# Memory and speed at published sizes


def read_estimate(log: str) -> float:
    """GiB at the peak, as --dry_run prints it."""
    return int(re.search(r"([\d,]+) MiB at the peak", log)[1].replace(",", "")) / 1024


def compare_memory(setup: Setup, model: Model) -> str:
    """The estimate with and without gradient checkpointing; of a large model with it alone."""
    need_memory(setup, model, bytes_of_weight=2)
    runs = {} if model.is_flow else {f"checkpointed_{model.family}": ("--gradient_checkpointing",)}
    runs[f"speed_{model.family}"] = (checkpointing_of(model),)  # later steps look at its speed
    return compare_estimates(setup, model, runs)


def compare_nf4(setup: Setup, model: Model) -> str:
    need_bitsandbytes()
    need_memory(setup, model, bytes_of_weight=0.6)
    runs = {f"nf4_{model.family}": (checkpointing_of(model), "--quantize_base", "nf4")}
    return compare_estimates(setup, model, runs)


def need_memory(setup: Setup, model: Model, bytes_of_weight: float) -> None:
    """Skip a model that is larger than the GPU; the files have two bytes a weight."""
    files = (commands.weights_of(setup, model.family) / "transformer").glob("*.safetensors")
    size = sum(path.stat().st_size for path in files) / 2 * bytes_of_weight / 2**30
    if setup.device == "cuda" and size > setup.machine.memory_gib - 2:
        raise Skipped(f"the weights alone take {size:.0f} GiB, and this GPU has {setup.machine.memory_gib:.0f}")


def compare_estimates(setup: Setup, model: Model, runs: dict[str, tuple[str, ...]]) -> str:
    """The estimate against what tensors held at the peak; what torch reserves beside it is given, not judged.

    `runs`: the switches of each training.
    """
    words = "--train_batch_size", model.batch, "--effective_batch_size", model.batch, "--mixed_precision"
    words = [*commands.lora_words(setup, model, "dry", *words, setup.machine.half), "--dry_run"]
    dry = {
        name: commands.start(setup, f"dry_{name}", [sys.executable, "train_lora.py", *words, *switches])
        for name, switches in runs.items()
    }
    shown, far = [], []
    for name, switches in runs.items():
        done = speed_run(setup, model, name, *switches)  # the first one beside the dry runs
        commands.losses_of(setup, name)
        estimated = read_estimate(commands.finish(setup, f"dry_{name}", dry[name]))
        peaks, said = done.peak_gib, " ".join(switches)
        held, rate = peaks.get("allocated", peaks["reserved"]), model.batch * commands.steps_per_second(done.steps)
        figure = f"estimated {estimated:.2f} GiB, held {held:.2f}, reserved {peaks['reserved']:.2f}"
        shown.append(f"{said}: {figure}, {rate:.2f} samples/s")
        if "allocated" in peaks and not 0.75 <= estimated / held <= 1.25:
            far.append(said)
    figure = f"batch {model.batch}; {'; '.join(shown)}"
    if far:
        raise Failed(f"the estimate with {' and '.join(far)} is off by more than 25 %: {figure}")
    return figure + " with Python and its libraries" * (setup.device == "cpu")


def find_peer(setup: Setup, model: Model) -> Path:
    if setup.baseline is None:
        raise Skipped("no --baseline PATH, a checkout of diffusers")
    script = setup.baseline / "examples" / model.peer
    if not script.is_file():
        raise Skipped(f"--baseline {setup.baseline}: has no {script.relative_to(setup.baseline)}")
    environment = commands.environment(setup)
    tried = subprocess.run(
        [sys.executable, "-c", "import torchvision"], env=environment, capture_output=True, text=True
    )
    if tried.returncode:
        raise Skipped(
            f"{script.name} imports torchvision, which can't be imported: {commands.last_words(tried.stderr)}"
        )
    return script


def peer_words(setup: Setup, model: Model, steps: int) -> list[object]:
    """What diffusers' script is called with, to do what `speed_run` does."""
    name, photos = f"peer_{model.family}", commands.photos_of(setup, model)
    words = ["--pretrained_model_name_or_path", commands.weights_of(setup, model.family), "--rank", 8, "--seed", 0]
    words += ["--resolution", commands.side_of(setup, model), "--center_crop"]
    words += ["--train_batch_size", model.batch, "--max_train_steps", steps, "--learning_rate", 1e-3]
    words += ["--lr_scheduler", "constant", "--mixed_precision", setup.machine.half, "--dataloader_num_workers", 4]
    words += ["--output_dir", setup.folder / "runs" / name, "--checkpointing_steps", 10**9]
    if not model.is_flow:
        return [*words, "--train_data_dir", photos]
    # One prompt for all: at one photo a batch, Qwen-Image's script fails on captions of their own.
    words += ["--dataset_name", photos, "--instance_prompt", "a photo of shapes", "--lora_alpha", 8]
    layers = ["--text_encoder_out_layers", *LAYERS] if model.family == "flux2_klein" else []  # it takes others
    return [*words, "--cache_latents", "--gradient_checkpointing", *layers]


def train_beside(setup: Setup, model: Model) -> str:
    """train_lora.py against diffusers' script: the same model, data, batch, rank, steps and precision."""
    script = find_peer(setup, model)
    need_memory(setup, model, bytes_of_weight=2)
    ours = speed_run(setup, model, f"speed_{model.family}")
    name, steps = f"peer_{model.family}", len(ours.steps)
    words = peer_words(setup, model, steps)
    cache = {"HF_DATASETS_CACHE": str(setup.folder / "runs" / f"{name}_datasets")}
    theirs = commands.measure(setup, name, script, words, more=cache)
    rates = [model.batch * commands.steps_per_second(done.steps) for done in (ours, theirs)]
    figure = f"{rates[0]:.2f} samples/s against {rates[1]:.2f} ({rates[0] / rates[1]:.2f}×), peak {ours.peak:.1f} GiB"
    return f"{figure} against {theirs.peak:.1f}; {steps} steps in all {ours.seconds:.0f} s against {theirs.seconds:.0f}"


def generate_beside(setup: Setup, model: Model) -> str:
    """generate.py against the plain diffusers loop: the same prompts, seeds, scheduler, steps and precision."""
    many, few, batch = (16, 4, 8) if model.resolution <= 512 else (8, 2, 4)
    folder, name = setup.folder / "runs", f"generated_{model.family}"
    (folder / f"loop_{model.family}").mkdir(parents=True, exist_ok=True)
    prompts = folder / f"loop_{model.family}" / "prompts.txt"
    prompts.write_text("".join(f"a photo of {i} shapes\n" for i in range(many)))
    shared = ["--prompts_file", prompts, "--num_inference_steps", 2 if setup.tiny else 8 if model.is_flow else 25]
    if model.is_flow:
        need_memory(setup, model, bytes_of_weight=2)
        above = FAMILIES[model.family].SECOND_PROMPT_ABOVE
        shared += ["--guidance_scale", 3.5 if above is None else above]  # which costs nothing
    words = generate_words(setup, model, name, *shared, "--num_images", many, "--batch_size", batch)
    ours = commands.measure(setup, name, "generate.py", words, "--keep_noise")
    words = ["--pretrained_model_name_or_path", commands.weights_of(setup, model.family), *shared, "--seed", 0]
    words += ["--mixed_precision", setup.machine.half, "--resolution", commands.side_of(setup, model)]
    words += ["--plain_loop", folder / f"loop_{model.family}", "--loop_images", few]
    theirs = commands.measure(setup, f"loop_{model.family}", "tests/benchmarks/generate_speed.py", words)
    reports = folder / name / "report.json", folder / f"loop_{model.family}/report.json"
    rates = [commands.read_json(path)["images_per_second"] for path in reports]
    figure = f"{rates[0]:.2f} images/s, {batch} at once, against {rates[1]:.2f} ({rates[0] / rates[1]:.2f}×)"
    return f"{figure}; peak {ours.peak:.1f} GiB against {theirs.peak:.1f}"


# Several GPUs


def train_with_two(setup: Setup, name: str, *more: object) -> tuple[float, float]:
    """The training of the half precision as two processes: how far its losses and its LoRA are off."""
    if setup.device == "cuda" and setup.machine.gpus < 2:
        raise Skipped("this machine has one GPU")
    half = setup.machine.half
    words = commands.lora_words(setup, SD, name, "--held_out", 0.25, *more)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 2, "--mixed_precision", half]
    launch += ["--main_process_port", 0, "--config_file", f"accelerate_configs/{CONFIGS[setup.device]}.yaml"]
    environment = {"ACCELERATE_USE_CPU": "false"} if setup.device == "cpu" else {}
    process = commands.start(setup, name, [*launch, "train_lora.py", *words], environment)
    if " x 2 processes" not in commands.finish(setup, name, process):
        raise Failed(f"{name}: it was not started as two processes (logs/{name}.txt)")
    folders = [commands.run_folder(setup, one) for one in (f"lora_{half}", name)]
    off = commands.apart(commands.losses_of(setup, f"lora_{half}"), commands.losses_of(setup, name))
    return off, commands.compare_loras(*folders)[2]


def two_processes(setup: Setup) -> str:
    off, relative = train_with_two(setup, "two_processes")
    same = within(off, 0.01, "losses of two processes and of one")
    return f"{'NCCL' if setup.device == 'cuda' else 'gloo'}: {same}, LoRA {relative:.1e}"


def sharded(setup: Setup) -> str:
    """Weights and optimizer state divided among two processes: the same training, in half the memory each."""
    off, relative = train_with_two(setup, "sharded", "--shard")
    same = within(off, 0.01, "losses divided and whole")
    memory = [max(commands.losses_of(setup, name, "memory_gib")) for name in (f"lora_{setup.machine.half}", "sharded")]
    return f"{same}, LoRA {relative:.1e}; peak {memory[1]:.1f} GiB each, whole {memory[0]:.1f}"


# A Mac


def compute_operators(setup: Setup) -> str:
    """The demo model's parts, forward and backward, on the device and on the CPU: Metal's kernels can be wrong."""
    import torch

    from families.models import DEMO_MODEL, load_denoiser, load_vae

    torch.manual_seed(0)
    device = torch.device(setup.device)
    unet, vae = (load(str(DEMO_MODEL), torch.float32).requires_grad_() for load in (load_denoiser, load_vae))
    latents, text = torch.randn(2, unet.config.in_channels, 8, 8), torch.randn(2, 7, unet.config.cross_attention_dim)
    parts = {
        "UNet": (unet, unet.forward, (latents, torch.tensor([10, 900]), text)),
        "VAE's encoder": (vae, lambda image: (vae.encode(image).latent_dist.mean,), (torch.rand(2, 3, 32, 32),)),
        "VAE's decoder": (vae, vae.decode, (latents,)),
    }

    def compute(module, function, inputs, where: torch.device) -> torch.Tensor:
        """The output and every gradient, in one row."""
        module.to(where).zero_grad()
        output = function(*(one.to(where) for one in inputs))[0]
        output.square().mean().backward()
        gradients = [one.grad for one in module.parameters() if one.grad is not None]
        return torch.cat([one.detach().cpu().double().flatten() for one in (output, *gradients)])

    found = []
    for name, part in parts.items():
        expected, got = (compute(*part, where) for where in (torch.device("cpu"), device))
        found.append(within(((got - expected).norm() / expected.norm()).item(), 1e-3, name))
    return "; ".join(found)


def generate_as_cpu(setup: Setup) -> str:
    """generate.py's images on the device against those that it makes of the same seeds on the CPU."""
    from tests.benchmarks.generate_speed import largest_difference  # here: it imports torch, which takes seconds

    done, count = {}, 2
    for name, more in {"generated": {}, "generated_on_cpu": {"ACCELERATE_USE_CPU": "true"}}.items():
        words = "--prompt", "a photo of shapes", "--num_images", count, "--batch_size", 1, "--num_inference_steps", 4
        words = generate_words(setup, SD, name, *words, *FLOAT32)
        done[name] = commands.measure(setup, name, "generate.py", words, "--keep_noise", more=more)
    levels = largest_difference(*(setup.folder / "runs" / name / "images" for name in done), count)
    seconds = " against ".join(f"{one.seconds:.0f} s" for one in done.values())
    if levels > 8:
        raise Failed(f"the images are {levels} levels of 255 from the CPU's")
    return f"{levels} levels of 255 from the CPU's at most; {count} images of 4 steps {seconds}"


def train_recipe(setup: Setup) -> str:
    """Seconds a step and memory of the recipe whose figures a Mac's owner has reported; nothing of it is judged."""
    import psutil

    name, steps = "recipe", 12
    words = ["--config", "configs/casual_shoes.yaml", "--resolution", commands.side_of(setup, SD), *FLOAT32]
    words += ["--pretrained_model_name_or_path", commands.weights_of(setup, SD.family), "--report_to", "none"]
    words += ["--train_data_dir", commands.photos_of(setup, SD), "--output_dir", commands.run_folder(setup, name)]
    words += ["--gradient_accumulation_steps", 1, "--max_train_steps", steps, "--lr_warmup_steps", 0]
    words += ["--validation_steps", 0, "--checkpointing_steps", 0, "--no-output_kohya_format"]
    dry = commands.start(setup, f"dry_{name}", [sys.executable, "train_lora.py", *words, "--dry_run"])
    estimated = read_estimate(commands.finish(setup, f"dry_{name}", dry))
    before = psutil.swap_memory().used
    done = commands.measure(setup, name, "train_lora.py", words)
    swapped = (psutil.swap_memory().used - before) / 2**30
    seconds = 1 / commands.steps_per_second(done.steps)
    figure = f"{seconds:.2f} s a step of 2 samples (an M2 Max: 2–3 s, reported), {8 * seconds:.1f} s of the recipe's 16"
    return f"{figure}; estimated {estimated:.2f} GiB, held {done.peak:.2f}; swap {swapped:+.2f} GiB"


def of_each(
    kind: str, title: str, run: Callable[[Setup, Model], str], limit: int, models: Iterable[Model]
) -> list[Step]:
    """A step for each family."""
    return [
        Step(
            f"{kind}_{model.family}",
            f"{title}, {model.family} at {model.resolution}²",
            partial(run, model=model),
            limit,
            (f"weights_{model.family}",),
            alone=True,
        )
        for model in models
    ]


def write_each(models: Iterable[Model]) -> list[Step]:
    return [
        Step(
            f"weights_{model.family}",
            f"random weights of {model.family}",
            partial(write_weights, model=model),
            300,
            disk=model.disk,
        )
        for model in models
    ]


def measure_each(models: Iterable[Model]) -> list[Step]:
    """Memory and speed of each of them."""
    return [
        *of_each("memory", "the memory that --dry_run estimates", compare_memory, 400, models),
        *of_each(
            "nf4", "memory and speed with --quantize_base nf4", compare_nf4, 400, [one for one in models if one.is_flow]
        ),
        *of_each("train", "train_lora.py against diffusers' script", train_beside, 400, models),
        *of_each("generate", "generate.py against the plain loop", generate_beside, 400, models),
    ]


# On a Mac: without half precision, several GPUs, a full memory (macOS would swap), and sizes that take hours there.
ON_MAC = "environment operators weights_sd1 lora_no resume generate_cpu recipe dreambooth_lora classifier".split()
MAC_ONLY = ("operators", "lora_no", "generate_cpu", "recipe")  # on a CPU too, to test them


def list_steps(half: str, device: str = "cuda") -> list[Step]:
    """The steps of a device, the most important first; `half` is the precision that this machine has in hardware."""
    if device == "mps":
        steps = {step.name: step for step in list_all_steps("no")}
        return [steps[name]._replace(limit=4 * steps[name].limit) for name in ON_MAC]
    return [step for step in list_all_steps(half) if device == "cpu" or step.name not in MAC_ONLY]


def list_all_steps(half: str) -> list[Step]:
    weights = ("weights_sd1",)
    base = (f"lora_{half}",)
    small = [model for model in MODELS if not model.is_flow]
    return [
        Step("environment", "check_environment.py", check_environment, 120),
        *write_each(small),
        Step("lora_bf16", "train_lora.py in bf16", partial(train_in, precision="bf16"), 150, weights),
        Step("lora_fp16", "train_lora.py in fp16 with a loss scale", partial(train_in, precision="fp16"), 150, weights),
        Step("dreambooth_lora", "train_dreambooth.py, a LoRA", teach_lora, 150, weights),
        Step("dreambooth_full", "train_dreambooth.py, all weights", teach_all_weights, 200, weights, disk=8),
        Step("classifier", "train_classifier.py", classify, 120),
        Step("resume", "a killed training resumed", resume, 300, base),
        Step("precision", "half precision against float32", precision, 150, base),
        Step("out_of_memory", "train_lora.py with too little memory", train_out_of_memory, 200, weights, alone=True),
        Step("auto_batch", "--train_batch_size auto", choose_batch, 150, weights, alone=True),
        Step("generate_oom", "generate.py with too little memory", generate_out_of_memory, 240, weights, alone=True),
        Step("adamw8bit", "--optimizer adamw8bit", train_8bit, 150, base),
        Step("compile", "--compile", compile_unet, 300, weights, alone=True),
        Step("tf32", "--allow_tf32", allow_tf32, 200, weights, alone=True),
        *measure_each(small),
        Step("lora_no", "train_lora.py in float32", partial(train_in, precision="no"), 150, weights),
        Step("operators", "the models' operators against the CPU's", compute_operators, 60),
        Step("generate_cpu", "generate.py against the CPU", generate_as_cpu, 150, weights, alone=True),
        Step("recipe", "configs/casual_shoes.yaml in float32", train_recipe, 150, weights, alone=True),
        Step("two_processes", "two processes against one", two_processes, 200, base, alone=True),
        Step("sharded", "--shard among two processes against one", sharded, 200, base, alone=True),
        # One after the other: the weights of each are deleted before the next are written.
        *(step for model in MODELS if model.is_flow for step in write_each([model]) + measure_each([model])),
    ]


# One step, as a process


def read_setup(folder: Path) -> Setup:
    values = commands.read_json(folder / "setup.json")
    baseline = Path(values["baseline"]) if values["baseline"] else None
    return Setup(folder, values["device"], values["tiny"], baseline, Machine(**values["machine"]))


def run_step(setup: Setup, step: Step) -> dict[str, str]:
    """Its status, its figure, and why it was skipped or failed."""
    try:
        return {"status": "pass", "figure": step.run(setup), "reason": ""}
    except Skipped as why:
        return {"status": "skipped", "figure": "", "reason": str(why)}
    except Failed as why:
        return {"status": "fail", "figure": "", "reason": str(why)}
    except Exception as error:  # whatever it is, the other steps still run
        traceback.print_exc()
        return {"status": "fail", "figure": "", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def end_with_parent() -> None:
    """End this process and what it has started once check.py is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the check, with its setup.json")
    parser.add_argument("--step", required=True, help="its name; check.py --list")
    given = parser.parse_args()
    end_with_parent()
    found = read_setup(given.folder.resolve())
    chosen = next(one for one in list_steps(found.machine.half, found.device) if one.name == given.step)
    write_json(found.folder / "results" / f"{given.step}.json", run_step(found, chosen))
