"""How fast generate.py is against a plain loop that calls a diffusers pipeline once a prompt, and whether both agree.

Both draw the same prompts and seeds with the same scheduler and steps, by turns, each from nothing, on an idle machine.
`whole run` is the process from start to exit; `loop` is without the start, to the last image on the disk.

    python tests/benchmarks/generate_speed.py --num_images 64 --repeats 3
    python tests/benchmarks/generate_speed.py --lora runs/demo/lora --num_images 64 --repeats 3
    python tests/benchmarks/generate_speed.py --pretrained_model_name_or_path FOLDER --prompts_file prompts.txt
"""

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from families.models import resolve_model
from generation.prompts import read_prompts
from tests.benchmarks.side_by_side import others_busy, setting, spread, tree_memory
from utils.devices import describe_device, working_device

SHOES = {
    "template": "a professional product photo of {colour} {article}",
    "attributes": ["colour=red,blue,green,black", "article=boots,sandals"],
}


class Run(NamedTuple):
    seconds: float  # of the whole process
    loop: float  # images/s, without the start
    memory: float  # MiB at the peak, of the machine's memory
    others: float  # cores that everybody else kept busy


def plain_loop(args: argparse.Namespace) -> None:
    """What one writes first: a pipeline, called with one prompt after the other."""
    import torch
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.mixed_precision]
    model = resolve_model(args.pretrained_model_name_or_path)
    pipeline = DiffusionPipeline.from_pretrained(model, dtype=dtype, safety_checker=None).to(device)
    if hasattr(pipeline, "unet"):  # the others have flow matching, and keep their own
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if args.lora:
        pipeline.load_lora_weights(args.lora)
    prompts, began = args.prompts_file.read_text("utf-8").splitlines()[: args.loop_images], time.perf_counter()
    for i, prompt in enumerate(prompts):
        image = pipeline(
            prompt=prompt,
            generator=torch.Generator().manual_seed(args.seed + i),
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            height=args.resolution,
            width=args.resolution,
        ).images[0]
        image.save(args.plain_loop / f"{i:06d}.png")
    rate = len(prompts) / (time.perf_counter() - began)
    (args.plain_loop / "report.json").write_text(json.dumps({"images_per_second": rate}))


def measure(command: list[str], environment: dict, folder: Path) -> Run:
    before, start, memory = others_busy(), time.perf_counter(), 0
    process = psutil.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        memory = max(memory, tree_memory(process))
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.25)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {shlex.join(command)}")
    loop = json.loads((folder / "report.json").read_text())["images_per_second"]
    return Run(seconds, loop, memory / 2**20, max(0.0, others_busy() - before) / seconds)


def largest_difference(ours: Path, theirs: Path, count: int) -> int:
    """In levels of 255, over all values of two sets of images."""
    largest = 0
    for i in range(count):
        a, b = (np.asarray(Image.open(folder / f"{i:06d}.png"), dtype=np.int16) for folder in (ours, theirs))
        largest = max(largest, int(np.abs(a - b).max()))
    return largest


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts_file", type=Path, help="one a line (default: shoes in four colours)")
    parser.add_argument("--lora", help="the folder of a run, for both; default: none")
    parser.add_argument("--plain_loop", type=Path, metavar="DIR", help="draw the loop's images there, no more")
    parser.add_argument("--loop_images", type=int, help="that the plain loop draws; default: as many")
    parser.add_argument("--resolution", type=int, help="pixels a side; default: the model's own")
    parser.add_argument("--ours_flags", default="", help="more flags for generate.py, in one string")
    values = {"pretrained_model_name_or_path": "demo", "num_images": 64, "num_inference_steps": 25, "seed": 0}
    values |= {"guidance_scale": 7.5, "batch_size": 8, "mixed_precision": "no", "repeats": 1, "threads": os.cpu_count()}
    for flag, value in values.items():
        parser.add_argument(f"--{flag}", type=type(value), default=value, help=f"default: {value}")
    args = parser.parse_args()
    args.loop_images = args.loop_images or args.num_images
    return args


def main(args: argparse.Namespace) -> None:
    runs, shown, apart = {"ours": [], "plain loop": []}, {}, 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as name:
        prompts = Path(name) / "prompts.txt"
        source = {"file": args.prompts_file} if args.prompts_file else SHOES
        prompts.write_text("".join(one.text + "\n" for one in read_prompts(args.num_images, **source)), "utf-8")
        shared = f"--prompts_file {prompts}"
        same = "pretrained_model_name_or_path num_inference_steps guidance_scale seed mixed_precision"
        for flag in same.split():
            shared += f" --{flag} {shlex.quote(str(getattr(args, flag)))}"
        for flag in ("lora", "resolution"):
            shared += f" --{flag} {shlex.quote(str(value))}" if (value := getattr(args, flag)) else ""
        for turn in range(args.repeats):
            folder = {"ours": Path(name) / f"ours{turn}", "plain loop": Path(name) / f"loop{turn}"}
            folder["plain loop"].mkdir()
            words = {
                "ours": f"generate.py {shared} --num_images {args.num_images} --batch_size {args.batch_size} "
                f"--output_dir {folder['ours']} {args.ours_flags}",
                "plain loop": f"tests/benchmarks/generate_speed.py {shared} --loop_images {args.loop_images} "
                f"--plain_loop {folder['plain loop']}",
            }
            for who in sorted(runs, reverse=turn % 2 == 1):  # by turns, who goes first too
                run = measure([sys.executable, *shlex.split(words[who])], environment, folder[who])
                print(f"{who}: {run.seconds:.1f} s, loop {run.loop:.2f} images/s", flush=True)
                runs[who].append(run)
                shown[who] = "python " + words[who].replace(name, "DIR")
            apart = max(apart, largest_difference(folder["ours"] / "images", folder["plain loop"], args.loop_images))
    print(f"\n{describe_device(working_device())}; {setting(args.threads)}\n")
    print("| | images/s, whole run | seconds, whole run | images/s, loop | peak MiB | others' load, cores |")
    print("|---|---|---|---|---|---|")
    images = {"ours": args.num_images, "plain loop": args.loop_images}
    for who, done in runs.items():
        cells = [spread([images[who] / run.seconds for run in done], 2), spread([run.seconds for run in done])]
        cells += [spread([run.loop for run in done], 2), spread([run.memory for run in done], 0)]
        print(f"| {who} | {' | '.join(cells)} | {spread([run.others for run in done], 2)} |")
    pairs = list(zip(runs["ours"], runs["plain loop"]))
    more = args.num_images / args.loop_images
    whole = spread([more * theirs.seconds / ours.seconds for ours, theirs in pairs], 2)
    loop = spread([ours.loop / theirs.loop for ours, theirs in pairs], 2)
    print(f"\nours / plain loop, images/s: {whole} over the whole run, {loop} in the loop; images: {images}")
    print(f"the images differ by at most {apart} levels of 255\n")
    print("".join(f"    {command}\n" for command in shown.values()))


if __name__ == "__main__":
    arguments = parse_args()
    plain_loop(arguments) if arguments.plain_loop else main(arguments)
