"""Make thousands of synthetic images: one seed each, every one checked, never half a set.

Killed and started again it goes on with what is missing; the set is a dataset in the prepared layout when it is done.

    python generate.py --lora runs/casual_shoes --prompt "a product photo of red casual shoes" --num_images 4
    python generate.py --pretrained_model_name_or_path demo --prompt_plan plan.jsonl --output_dir data/synthetic/shoes
    accelerate launch --config_file accelerate_configs/a100.yaml generate.py --lora runs/x --prompt_plan plan.jsonl
"""

import argparse
import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from families import conditions, lora_mix, models, sampling, tokens
from families.drawing import Studio, draw_images, image_seed, open_studio, relieve_memory
from families.lora import read_lora
from generation import flags, generated_set, outcome
from generation import prompts as prompt_lists
from utils import cli, devices, runs
from utils import image_set as folders
from utils.cli import UserError
from utils.files import file_sha256
from utils.metrics_log import append_metrics

logger = logging.getLogger("generate")
NUMERIC = ("NaN latents", "black (or NaN)", "of one colour", "noise")  # what a precision too low looks like
# Neither where the result goes nor how the work is divided changes an image.
FREE = set(
    "output_dir batch_size num_workers shard mixed_precision max_retries allow_other_base enable_vae_slicing "
    "enable_vae_tiling enable_attention_slicing enable_cpu_offload compile allow_tf32 model_config".split()
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    models.add_model_flags(parser)
    flags.add_flags(parser, list(sampling.SCHEDULERS))
    args = cli.parse_args(parser, argv)
    return flags.check_flags(parser, args)


def read_conditions(args, given: dict[str, list[Path]], size: int, device: torch.device) -> tuple[Callable, Callable]:
    """What gives the tensors to start from, and to keep to, of some images; None where there are none."""
    depth = conditions.load_depth(args.depth_model, device) if args.depth_model else None
    changes = {"none": lambda image: image, "canny": conditions.canny_edges, "depth": depth}

    def reader(flag: str, change: Callable) -> Callable:
        if flag not in given:
            return lambda jobs: None
        found = given[flag]
        return lambda jobs: conditions.to_tensor(
            [change(conditions.read_square(f"--{flag}", found[job.index % len(found)], size)) for job in jobs]
        )

    return reader("init_images", changes["none"]), reader("control_images", changes[args.control_type])


def describe_settings(args, prompts: list[dict], loras: list, given: dict, precision: str, size: int) -> dict:
    """All that decides what the images are, with checksums of what the named files hold."""
    settings = cli.settings_of(args) | {"resolution": size, "precision": precision, "num_images": len(prompts)}
    settings["prompts_sha256"] = folders.prompts_digest(prompts)
    read = [path for one in loras for path in (one.path, *tokens.token_files(one.path.parent))]
    settings["lora_sha256"] = [file_sha256(path)[:16] for path in read]
    for flag, found in given.items():
        settings[f"{flag}_sha256"] = hashlib.sha256(" ".join(map(file_sha256, found)).encode()).hexdigest()[:16]
    return settings


def find_models(args) -> tuple[str, str, int, list[lora_mix.Lora]]:
    """The model's place and family, the side of its images, and the LoRAs, which fit it."""
    loras = [lora_mix.parse_lora(spec) for spec in args.lora]
    for lora in loras if not args.allow_other_base else []:  # before the base is looked for: it may be the wrong one
        lora_mix.check_base(lora, args.pretrained_model_name_or_path)
    place = args.output_dir.parent / "cache" / "models"
    model = models.resolve_model(args.pretrained_model_name_or_path, place, args.model_config)
    family = models.model_family(model)
    size = args.resolution or sampling.native_size(model)
    models.training_shapes(model, size, buckets=False)  # an error where the model can't draw that size
    for lora in loras:
        lora_mix.check_lora(lora, args.pretrained_model_name_or_path, model, family)
    return model, family, size, loras


def tell_long_prompts(model: str, family: str, loras: list[lora_mix.Lora], texts: list[str]) -> None:
    """What a run would say of prompts that are cut off, by the tokenizer alone."""
    tokenizer = models.load_tokenizers(model, family)[0]
    for path in [path for one in loras for path in tokens.token_files(one.path.parent)[:1]]:
        tokenizer.add_tokens(list(read_lora(path)[0]))
    models.report_long_captions(tokenizer, texts, "prompts")


def make_draw(args, prompts: list[dict], given: dict, size: int, device: torch.device) -> Callable:
    """What draws a batch of jobs: for each its line, its pixels, and whether it came from finite latents."""
    starts, controls = read_conditions(args, given, size, device)
    about = {
        "negative_prompt": args.negative_prompt, "steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale, "scheduler": args.scheduler,
        "model": args.pretrained_model_name_or_path, "lora": args.lora, "resolution": size
    }  # fmt: skip
    about |= {name: str(getattr(args, name)) for name in ("init_images", "strength") if args.init_images}
    conditioned = ("controlnet", "control_images", "control_type", "controlnet_conditioning_scale")
    about |= {name: str(getattr(args, name)) for name in conditioned if args.controlnet}

    def draw(studio: Studio, jobs: list[outcome.Job]) -> list[tuple[dict, object, bool]]:
        seeds = [image_seed(args.seed, job.index, job.retry) for job in jobs]
        asked = [prompts[job.index] for job in jobs]
        pixels, finite = draw_images(
            studio, [one["text"] for one in asked], args.negative_prompt, seeds, args.num_inference_steps,
            size, starts(jobs), args.strength, controls(jobs), args.controlnet_conditioning_scale
        )  # fmt: skip
        more = {"precision": str(studio.dtype).removeprefix("torch.")}
        lines = [
            {"file_name": folders.image_name(job.index), "text": one["text"], "seed": seed, **about, **more}
            | {"attributes": one["attributes"]}
            for job, one, seed in zip(jobs, asked, seeds)
        ]
        return list(zip(lines, pixels.numpy(), finite))

    return draw


def make_images(
    args, open_model: Callable, dtype: torch.dtype, todo: deque[outcome.Job], draw: Callable, check: Callable,
    note: Callable, pack: Callable, received: list, shown: dict
) -> dict[int, str]:  # fmt: skip
    """Draw what is to do, a batch at a time, while threads judge and save; {index: reason} where no seed was good."""
    out, studio, batch = args.output_dir, open_model(dtype), args.batch_size
    on_cpu = studio.device.type == "cpu"
    spare = [name for name in sampling.ECONOMIES if not on_cpu and not getattr(args, f"enable_{name}")]
    left = list(spare)
    failed, waiting, packing, first, began = {}, deque(), [], True, time.monotonic()
    with tqdm(**shown) as bar, ThreadPoolExecutor(args.num_workers) as pool:  # an error has its own line, below the bar
        while waiting or (todo and not received):
            # One batch: drawn here, judged and saved in the background.
            jobs = [todo.popleft() for _ in range(min(batch, len(todo)))] if not received else []
            try:
                drawn = draw(studio, jobs) if jobs else []
            except RuntimeError as error:
                if not devices.out_of_memory(error):
                    raise
                drawn = []
            if jobs and not drawn:
                todo.extendleft(reversed(jobs))
                batch = relieve_memory(studio, len(jobs), left)
                continue
            waiting.extend(pool.submit(outcome.save_image, out, job, *one, check) for job, one in zip(jobs, drawn))

            # What has been saved is noted. Waited for only where nothing is left to draw, or much is under way.
            rejected = []
            while waiting and (first or received or not todo or len(waiting) > 4 * batch + 16 or waiting[0].done()):
                job, line = waiting.popleft().result()
                if (full := note(job, line, time.monotonic() - began)) is not None:
                    packing.append(pool.submit(pack, full))
                bar.update("reason" not in line)
                if "reason" in line:
                    rejected.append((job, line["reason"]))
            if first and jobs and len(rejected) == len(jobs) and all(reason in NUMERIC for _, reason in rejected):
                story = f"all of the first {cli.counted(len(jobs), 'image')} are invalid ({rejected[0][1]})"
                if studio.dtype != torch.float32:
                    logger.warning("%s in %s; going on in float32", story, studio.dtype)
                    (out / ".float32").touch()
                    studio = None  # its memory is free before the next is loaded
                    studio, left = open_model(torch.float32), list(spare)
                    todo.extendleft(reversed(jobs))
                    continue
                if len(jobs) > 3:
                    raise UserError(
                        f"{story}, and precision is not the cause; look at {out / 'rejected'}, try the model"
                    )
            for job, reason in rejected:
                if job.retry < args.max_retries:
                    todo.append(outcome.Job(job.index, job.retry + 1))
                else:
                    failed[job.index] = reason
            first = first and not jobs
        for one in packing:
            one.result()
    return failed


def main(args) -> int:
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    shard, shards = map(int, args.shard.split("/"))
    # Image i belongs to one share, by its number alone: processes and jobs need not know of one another.
    share, shares = shard * accelerator.num_processes + accelerator.process_index, shards * accelerator.num_processes
    block = args.shard_size if args.webdataset else 0  # a tar shard is one process's work
    part = folders.part_name(share, shares)
    if args.enable_cpu_offload and device.type == "cpu":
        raise UserError("--enable_cpu_offload: there is no GPU here that the weights could leave; leave it out")
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    model, family, size, loras = find_models(args)
    prompts = prompt_lists.read_prompts(
        args.num_images, args.prompt, args.prompts_file, args.prompt_plan, args.template, args.attribute
    )
    count = len(prompts)
    places = {flag: getattr(args, flag) for flag in ("init_images", "control_images") if getattr(args, flag)}
    given = {flag: conditions.list_images(f"--{flag}", place, count) for flag, place in places.items()}
    mine = [i for i in range(count) if i // (block or 1) % shares == share]
    settings = describe_settings(args, prompts, loras, given, precision.mixed_precision, size)
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}")
        prompt_lists.tell_plan(prompts, mine, share, shares)
        for folder in dict.fromkeys(lora.path.parent for lora in loras):
            tokens.warn_of_word(folder, [one["text"] for one in prompts])
    if args.dry_run:
        if is_main:
            tell_long_prompts(model, family, loras, [one["text"] for one in prompts] + [args.negative_prompt])
        return 0
    lock = folders.enter_folder(out, settings, prompts, FREE, part, block)
    if lock is None:
        if is_main:
            print(f"{out}: this set is finished; nothing to do")
        return 0
    folders.forget_finish(out)  # images of a finished set are gone, or it grows: what describes it is made anew
    facts = {"device": devices.describe_device(device), "shares": shares}
    digest = settings["prompts_sha256"]
    runs.write_environment(out / "environment.json", facts["device"], precision.reason, prompts=digest)

    # What is still to be drawn, and what draws it.
    dtype = torch.float32 if (out / ".float32").exists() else precision.dtype
    done, tried = folders.done_indices(out, block), folders.tried(out, str(dtype).removeprefix("torch."))
    if block:
        folders.pack_full(out, mine, done, block, count)
    missing = [i for i in mine if i not in done]
    todo = deque(outcome.Job(i, tried[i]) for i in missing if tried[i] <= args.max_retries)
    failed = {i: "rejected before" for i in missing if tried[i] > args.max_retries}
    received = runs.catch_signals("finishing the images at hand")
    if todo:
        texts = list(dict.fromkeys([prompts[job.index]["text"] for job in todo] + [args.negative_prompt]))
        check = outcome.make_check(args.reject_near_train, args.min_clip_score, args.clip_model, device)
        draw = make_draw(args, prompts, given, size, device)
        economies = [name for name in sampling.ECONOMIES if getattr(args, f"enable_{name}")]
        open_model = partial(
            open_studio, model, family, texts, device=device, scheduler=args.scheduler, batch=args.batch_size,
            guidance=args.guidance_scale, loras=loras, prediction_type=args.prediction_type,
            controlnet=args.controlnet, economies=economies, compiled=args.compile
        )  # fmt: skip
        session = {"share": share, "began": datetime.now(UTC).isoformat(), "made": 0, "seconds": 0.0}
        shown = {"total": len(mine), "initial": len(mine) - len(todo), "unit": " images", **cli.progress(is_main)}
        note = outcome.make_note(out, part, session, missing, block)
        pack = partial(folders.pack_block, out, shard_size=block, count=count)
        failed |= make_images(args, open_model, dtype, todo, draw, check, note, pack, received, shown)
        append_metrics(out / "sessions.jsonl", session)
    os.close(lock)
    if received:
        return 128 + received[0]
    if failed:
        some = ", ".join(f"{i} ({reason})" for i, reason in list(failed.items())[:3])
        raise UserError(
            f"{cli.counted(len(failed), 'image')} rejected with each of {cli.counted(args.max_retries + 1, 'seed')}: "
            f"{some}; look at {out / 'rejected'}, and run the same command with a higher --max_retries"
        )
    with folders.locked(out):  # the process that comes last finds the set complete
        if lacking := folders.count_missing(out, count, block):
            print(f"{out}: this share is made; still to come from other shares: {cli.counted(lacking, 'image')}")
        elif not folders.is_finished(out, count, block):
            facts["precision"] = "float32" if (out / ".float32").exists() else str(dtype).removeprefix("torch.")
            report = generated_set.finish_set(out, prompts, settings, facts)
            print(f"{out}: {cli.counted(report['made'], 'image')}, {report['images_per_second']} a second and process")
    return 0


if __name__ == "__main__":
    cli.run(main, parse_args())
