"""Make thousands of synthetic images: one seed each, every one checked, never half a set.

Killed and started again it goes on with what is missing; the set is a dataset in the prepared layout when it is done.

    python generate.py --lora runs/casual_shoes --prompt "a product photo of red casual shoes" --num_images 4
    python generate.py --pretrained_model_name_or_path demo --prompt_plan plan.jsonl --output_dir data/synthetic/shoes
    accelerate launch --config_file accelerate_configs/a100.yaml generate.py --lora runs/x --prompt_plan plan.jsonl
"""

import argparse
import functools
import hashlib
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from utils import (
    cli,
    conditions,
    devices,
    flags,
    generation,
    generation_flags,
    guards,
    lora_mix,
    models,
    picture_checks,
    pictures,
    runs,
)
from utils import generation_folder as folders
from utils import prompts as prompt_lists
from utils.cli import UserError
from utils.files import file_sha256
from utils.metrics_log import append_metrics
from utils.studio import draw_pictures, open_studio, picture_seed, relieve_memory, write_picture

logger = logging.getLogger("generate")
NUMERIC = ("NaN latents", "black (or NaN)", "of one colour", "noise")  # what a precision too low looks like
# Neither where the result goes nor how the work is divided changes a picture.
FREE = set(
    "output_dir batch_size num_workers shard mixed_precision max_retries allow_other_base enable_vae_slicing "
    "enable_vae_tiling enable_attention_slicing enable_cpu_offload allow_tf32 model_config".split()
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    flags.add_model_flags(parser)
    generation_flags.add_flags(parser, list(generation.SCHEDULERS))
    args = cli.parse_args(parser, argv)
    return generation_flags.check_flags(parser, args)


class Job(NamedTuple):
    index: int  # of the picture
    retry: int  # 0 for its first seed


def make_check(args, device: torch.device) -> Callable[[Image.Image, str], tuple[str, str]]:
    """What gives (reason, detail) for a picture that is sound but not wanted; two empty texts where it is."""
    index = picture_checks.index_pictures(args.reject_near_train) if args.reject_near_train else None
    clip = picture_checks.load_clip(args.clip_model, device) if args.min_clip_score is not None else None

    def check(picture: Image.Image, text: str) -> tuple[str, str]:
        if index:
            name, bits, colour = picture_checks.nearest(index, picture)
            if picture_checks.is_near(bits, colour):
                return "near-copy of a training picture", f"{name}: {bits} of 256 bits, {colour} levels"
        if clip:
            score = picture_checks.clip_scores(clip, [picture], [text])[0]
            if not score >= args.min_clip_score:  # `not >=`: NaN is none
                return "not what its prompt says", f"CLIP score {score:.1f}, wanted {args.min_clip_score:g}"
        return "", ""

    return check


def save_picture(out: Path, job: Job, line: dict, pixels, finite: bool, check: Callable) -> tuple[Job, dict]:
    """Judge a picture, and write it whole where it belongs; a rejected one's line has a `reason`. Runs in a thread."""
    picture = Image.fromarray(pixels)
    fault = picture_checks.find_fault(picture, finite)
    reason, detail = (fault, "") if fault else check(picture, line["text"])
    path = out / line["file_name"]
    if reason:
        line = {**line, "file_name": f"{job.index:06d}-{line['seed']}.png", "reason": reason, "detail": detail}
        path = out / "rejected" / line["file_name"]
    write_picture(path, picture)
    return job, line


def read_conditions(args, size: int, device: torch.device) -> tuple[Callable, Callable]:
    """What gives the tensors to start from, and to keep to, of some images; None where there are none."""
    depth = conditions.load_depth(args.depth_model, device) if args.depth_model else None
    changes = {"none": lambda picture: picture, "canny": conditions.canny_edges, "depth": depth}

    def reader(flag: str, place: Path | None, change: Callable) -> Callable:
        if place is None:
            return lambda jobs: None
        found = conditions.list_pictures(flag, place)
        return lambda jobs: conditions.to_tensor(
            [change(conditions.read_square(flag, found[job.index % len(found)], size)) for job in jobs]
        )

    starts = reader("--init_images", args.init_images, changes["none"])
    return starts, reader("--control_images", args.control_images, changes[args.control_type])


def describe_settings(args, prompts: list[dict], loras: list, precision: str, size: int) -> dict:
    """All that decides what the pictures are, with checksums of what the named files hold."""
    settings = cli.settings_of(args) | {"resolution": size, "precision": precision, "num_images": len(prompts)}
    settings["prompts_sha256"] = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()[:16]
    settings["lora_sha256"] = [file_sha256(one.path)[:16] for one in loras]
    for flag in ("init_images", "control_images"):
        if place := getattr(args, flag):
            sums = [file_sha256(one) for one in conditions.list_pictures(f"--{flag}", place)]
            settings[f"{flag}_sha256"] = hashlib.sha256(" ".join(sums).encode()).hexdigest()[:16]
    return settings


def tell_plan(prompts: list[dict], mine: list[int], share: int, shares: int) -> None:
    """How many images of what."""
    print(f"{cli.counted(len(prompts), 'image')} of {cli.counted(len({one['text'] for one in prompts}), 'prompt')}")
    if shares > 1:
        print(f"this process is {share} of {shares} and makes {len(mine):,} of them")
    names = dict.fromkeys(name for one in prompts for name in one["attributes"])
    for name in names:
        counts = Counter(str(one["attributes"].get(name)) for one in prompts).most_common()
        print(f"  {name}: {', '.join(f'{value} {count:,}' for value, count in counts)}")


def main(args) -> int:
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    shard, shards = map(int, args.shard.split("/"))
    # Image i belongs to one share, by its number alone: processes and jobs need not know of one another.
    share, shares = shard * accelerator.num_processes + accelerator.process_index, shards * accelerator.num_processes
    block = args.shard_size if args.webdataset else 1  # a tar shard is one process's work
    part = folders.part_name(share, shares)
    if args.enable_cpu_offload and device.type == "cpu":
        raise UserError("--enable_cpu_offload: there is no GPU here that the weights could leave; leave it out")
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    model = models.resolve_model(args.pretrained_model_name_or_path, out.parent / "cache" / "models", args.model_config)
    family = models.model_family(model)
    size = args.resolution or generation.native_size(model)
    pictures.training_shapes(model, size, buckets=False)  # an error where the model can't draw that size
    loras = [lora_mix.parse_lora(spec) for spec in args.lora]
    for lora in loras:
        lora_mix.check_lora(lora, args.pretrained_model_name_or_path, model, family, args.allow_other_base)
    prompts = prompt_lists.read_prompts(
        args.num_images, args.prompt, args.prompts_file, args.prompt_plan, args.template, args.attribute
    )
    mine = [i for i in range(len(prompts)) if i // block % shares == share]
    settings = describe_settings(args, prompts, loras, precision.mixed_precision, size)
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}")
        tell_plan(prompts, mine, share, shares)
    if args.dry_run:
        return 0
    folders.open_folder(out, settings, FREE)
    done = folders.done_indices(out, block if args.webdataset else 0)
    if len(done) == len(prompts) and folders.is_finished(out, args.webdataset):
        if is_main:
            print(f"{out}: this set is finished; nothing to do")
        return 0
    lock = folders.claim_part(out, part)
    folders.forget_finish(out)  # pictures of a finished set are gone: what describes it is made anew
    runs.write_environment(
        out / "environment.json", devices.describe_device(device), precision.reason, prompts=settings["prompts_sha256"]
    )

    # What is still to be drawn, and what draws it.
    dtype = torch.float32 if (out / ".float32").exists() else precision.dtype
    tried = folders.tried(out, str(dtype).removeprefix("torch."))
    todo = deque(Job(i, tried[i]) for i in mine if i not in done and tried[i] <= args.max_retries)
    failed = {i: "rejected before" for i in mine if i not in done and tried[i] > args.max_retries}
    texts = list(dict.fromkeys([prompts[job.index]["text"] for job in todo] + [args.negative_prompt]))
    (starts, controls), check = read_conditions(args, size, device), make_check(args, device)
    left = [name for name in generation.ECONOMIES if not getattr(args, f"enable_{name}") and device.type != "cpu"]
    furnish = functools.partial(
        open_studio, model, family, texts, device=device, scheduler=args.scheduler, loras=loras,
        prediction_type=args.prediction_type, controlnet=args.controlnet,
        rows=args.batch_size * (1 + (args.guidance_scale > 1)),
        economies=[name for name in generation.ECONOMIES if getattr(args, f"enable_{name}")]
    )  # fmt: skip
    studio = furnish(dtype) if todo else None
    about = {
        "negative_prompt": args.negative_prompt, "steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale, "scheduler": args.scheduler,
        "model": args.pretrained_model_name_or_path, "lora": args.lora, "resolution": size
    }  # fmt: skip
    about |= {name: str(getattr(args, name)) for name in ("init_images", "strength") if args.init_images}
    conditioned = ("controlnet", "control_images", "control_type", "controlnet_conditioning_scale")
    about |= {name: str(getattr(args, name)) for name in conditioned if args.controlnet}
    lacking = Counter(i // block for i in mine if i not in done)  # of each tar shard
    batch, made, first, began = args.batch_size, 0, True, time.monotonic()
    received, waiting, packing = runs.catch_signals("finishing the images at hand"), deque(), []
    bar = tqdm(total=len(mine), initial=len(mine) - len(todo), unit=" images", **cli.progress(is_main))
    with ThreadPoolExecutor(args.num_workers) as pool:
        while waiting or (todo and not received):
            # One batch: drawn here, judged and saved in the background.
            jobs = [todo.popleft() for _ in range(min(batch, len(todo)))] if not received else []
            seeds = [picture_seed(args.seed, job.index, job.retry) for job in jobs]
            asked, pixels = [prompts[job.index] for job in jobs], []
            try:
                if jobs:
                    pixels, finite = draw_pictures(
                        studio, [one["text"] for one in asked], args.negative_prompt, seeds, args.num_inference_steps,
                        args.guidance_scale, size, starts(jobs), args.strength, controls(jobs),
                        args.controlnet_conditioning_scale
                    )  # fmt: skip
            except RuntimeError as error:
                if not guards.out_of_memory(error):
                    raise
                todo.extendleft(reversed(jobs))
            if jobs and not len(pixels):
                batch = relieve_memory(studio, len(jobs), left)
                continue
            for i, (job, one) in enumerate(zip(jobs, asked)):
                line = {"file_name": folders.image_name(job.index), "text": one["text"], "seed": seeds[i], **about}
                line |= {"precision": str(studio.dtype)[6:], "attributes": one["attributes"]}
                waiting.append(pool.submit(save_picture, out, job, line, pixels[i].numpy(), finite[i], check))

            # What has been saved is noted. Waited for only where nothing is left to draw, or much is under way.
            rejected = []
            while waiting and (first or received or not todo or len(waiting) > 4 * batch + 16 or waiting[0].done()):
                job, line = waiting.popleft().result()
                if "reason" in line:
                    append_metrics(out / "rejected" / part, line)
                    rejected.append((job, line["reason"]))
                    continue
                append_metrics(out / part, line)
                made, number = made + 1, job.index // block
                bar.update()
                lacking[number] -= 1
                if args.webdataset and not lacking[number]:
                    packing.append(pool.submit(folders.pack_block, out, number, block, len(prompts)))
            if first and jobs and len(rejected) == len(jobs) and all(reason in NUMERIC for _, reason in rejected):
                story = f"all of the first {cli.counted(len(jobs), 'image')} are invalid ({rejected[0][1]})"
                if studio.dtype != torch.float32:
                    logger.warning("%s in %s; going on in float32", story, studio.dtype)
                    (out / ".float32").touch()
                    studio = None
                    studio = furnish(torch.float32)
                    todo.extendleft(reversed(jobs))
                    continue
                if len(jobs) > 3:
                    raise UserError(
                        f"{story}, and precision is not the cause; look at {out / 'rejected'}, try the model"
                    )
            for job, reason in rejected:
                if job.retry < args.max_retries:
                    todo.append(Job(job.index, job.retry + 1))
                else:
                    failed[job.index] = reason
            first = first and not jobs
    bar.close()
    for one in packing:
        one.result()
    session = {"share": share, "made": made, "seconds": round(time.monotonic() - began, 3)}
    append_metrics(out / "sessions.jsonl", session)
    os.close(lock)
    if received:
        return 128 + received[0]
    if failed:
        some = ", ".join(f"{i} ({reason})" for i, reason in list(failed.items())[:3])
        raise UserError(
            f"{cli.counted(len(failed), 'image')} rejected with each of {args.max_retries + 1} seeds: {some}; look at "
            f"{out / 'rejected'}, and run the same command with a higher --max_retries"
        )
    with folders.locked(out):  # the process that comes last finds the set complete
        missing = len(prompts) - len(folders.done_indices(out, block if args.webdataset else 0))
        if missing:
            print(f"{out}: this share is made; {missing:,} images of other shares are not there yet")
        elif not folders.is_finished(out, args.webdataset):
            facts = {
                "device": devices.describe_device(device),
                "precision": str(studio.dtype if studio else dtype).removeprefix("torch."),
                "shares": shares,
            }
            report = folders.finish_set(out, prompts, settings, facts)
            print(f"{out}: {cli.counted(report['made'], 'image')}, {report['images_per_second']} a second and process")
    return 0


if __name__ == "__main__":
    cli.run(main, parse_args())
