"""Make thousands of synthetic images: one seed each, every one checked, never half a set.

Killed and started again it goes on with what is missing; the set is a dataset in the prepared layout when it is done.

    python generate.py --lora runs/casual_shoes --prompt "a product photo of red casual shoes" --num_images 4
    python generate.py --pretrained_model_name_or_path demo --prompt_plan plan.jsonl --output_dir data/synthetic/shoes
    accelerate launch --config_file accelerate_configs/a100.yaml generate.py --lora runs/x --prompt_plan plan.jsonl
"""

import argparse
import hashlib
import inspect
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from utils import (
    cli,
    conditions,
    devices,
    encoding,
    flags,
    generated_set,
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
from utils import generation_outcome as outcome
from utils import prompts as prompt_lists
from utils.cli import UserError
from utils.files import file_sha256
from utils.metrics_log import append_metrics

logger = logging.getLogger("generate")
RETRY_SEEDS = 1_000_000_000  # between the seeds of one picture's tries; those of the set's pictures are neighbours
NUMERIC = ("NaN latents", "black (or NaN)", "of one colour", "noise")  # what a precision too low looks like
# Neither where the result goes nor how the work is divided changes a picture.
FREE = set(
    "output_dir batch_size num_workers shard mixed_precision max_retries allow_other_base enable_vae_slicing "
    "enable_vae_tiling enable_attention_slicing enable_cpu_offload compile allow_tf32 model_config".split()
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    flags.add_model_flags(parser)
    generation_flags.add_flags(parser, list(generation.SCHEDULERS))
    args = cli.parse_args(parser, argv)
    return generation_flags.check_flags(parser, args)


class Studio(NamedTuple):
    """What draws: the models on their device, and every text's features on the CPU."""

    unet: torch.nn.Module
    compiled: Callable  # the same, for whole batches: each other shape would be compiled anew
    vae: torch.nn.Module
    controlnet: torch.nn.Module | None
    scheduler: object
    features: dict[str, tuple[torch.Tensor, torch.Tensor | None]]
    dtype: torch.dtype
    device: torch.device
    cores: generation.Cores | None  # on a CPU each takes a part of a batch


@torch.no_grad()
def open_studio(args, model: str, family: str, texts: list[str], loras: list, dtype, device: torch.device) -> Studio:
    """Every distinct text is encoded once, and the encoders are gone when this returns."""
    controlnet = conditions.load_controlnet(args.controlnet, model, dtype) if args.controlnet else None
    whole = torch.float32 if loras else dtype  # a LoRA is fused before anything is rounded
    tokenizers, encoders = models.load_text_encoders(model, family, whole)
    unet = models.load_unet(model, whole)
    noise = models.load_noise_scheduler(model)
    if args.prediction_type:
        noise.register_to_config(prediction_type=args.prediction_type)
    if loras:
        pipeline = generation.build_pipeline(family, unet, None, noise)
        names = ("text_encoder", "text_encoder_2")[: len(encoders)]
        pipeline.register_modules(**dict(zip(names, encoders)))
        lora_mix.apply_loras(pipeline, loras)
        pipeline = None
    features, zero = {}, models.empty_prompt_is_zero(model)
    for encoder in encoders:
        encoder.to(device, dtype)
    encoding.report_long_captions(tokenizers[0], texts, "prompts")
    for start in range(0, len(texts), 64):
        part = texts[start : start + 64]
        embeds, pooled = models.encode_prompts(tokenizers, encoders, part, zero)
        for i, text in enumerate(part):
            features[text] = embeds[i].cpu(), None if pooled is None else pooled[i].cpu()
    del encoders, encoder
    encoding.free_memory(device)
    vae = models.load_vae(model)
    torch.nn.Module.to(unet, dtype)  # without the warning of diffusers, which holds for other models
    cores = generation.share_cores(args.batch_size * (1 + (args.guidance_scale > 1))) if device.type == "cpu" else None
    solver = generation.make_scheduler(args.scheduler, noise)
    # On a CPU the weights, laid out anew once, are half of the gain.
    options = {"freezing": True} if device.type == "cpu" else None
    compiled = torch.compile(unet, dynamic=False, options=options) if args.compile else unet
    studio = Studio(unet, compiled, vae, controlnet, solver, features, dtype, device, cores)
    for module in filter(None, (unet, vae, controlnet)):
        module.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    for name in generation.ECONOMIES:
        if getattr(args, f"enable_{name}"):
            generation.economise(unet, vae, controlnet, name, device)
    return studio


@torch.inference_mode()
def draw_pictures(
    studio: Studio, texts: list[str], negative: str, seeds: list[int], steps: int, guidance: float, size: int,
    starts: torch.Tensor | None, strength: float, control: torch.Tensor | None, control_scale: float, whole: int
) -> tuple[torch.Tensor, list[bool]]:  # fmt: skip
    """The pixels (n, size, size, 3) of one batch, and which of them came from finite latents."""
    unet = studio.compiled if len(texts) == whole else studio.unet
    vae, scheduler, device = studio.vae, studio.scheduler, studio.device
    # Whatever is drawn for a picture is drawn on the CPU by its own generator: no other picture changes it.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    guided = guidance > 1
    wanted = [negative] * len(texts) * guided + texts
    embeds = torch.stack([studio.features[text][0] for text in wanted]).to(device)
    pooled = ids = None
    if studio.features[texts[0]][1] is not None:
        pooled = torch.stack([studio.features[text][1] for text in wanted]).to(device)
        ids = torch.tensor([[size, size, 0, 0, size, size]] * len(wanted), dtype=studio.dtype, device=device)
    control = None if control is None else control.repeat(1 + guided, 1, 1, 1).to(device, studio.dtype)

    scheduler.set_timesteps(steps, device=device)
    timesteps, side = scheduler.timesteps, size // models.vae_step(vae.config)
    shape = (1, vae.config.latent_channels, side, side)
    if starts is None:
        latents = torch.cat([torch.randn(shape, generator=one) for one in generators])
        latents = (latents * scheduler.init_noise_sigma).to(device)
    else:
        latents, timesteps = generation.start_from(vae, scheduler, starts.to(device), generators, steps, strength)
    step_options = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_options["generator"] = generators

    @torch.inference_mode()  # said again: it holds for one thread
    def predict(given, embeds, pooled, ids, control):
        more = {} if pooled is None else {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        residuals = {}
        if control is not None:
            down, middle = studio.controlnet(
                given, time_step, embeds, control, conditioning_scale=control_scale, return_dict=False, **more
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return unet(given, time_step, embeds, return_dict=False, **more, **residuals)[0].float()

    for time_step in timesteps:
        # One denoising step of the whole batch, with its negative half beside it where there is guidance.
        given = scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), time_step).to(studio.dtype)
        predicted = generation.on_cores(studio.cores, predict, given, embeds, pooled, ids, control)
        if guided:
            without, towards = predicted.chunk(2)
            predicted = without + guidance * (towards - without)
        latents = scheduler.step(predicted, time_step, latents, return_dict=False, **step_options)[0]
    return generation.decode_pixels(vae, latents, studio.cores), picture_checks.finite_pictures(latents)


def read_conditions(args, given: dict[str, list[Path]], size: int, device: torch.device) -> tuple[Callable, Callable]:
    """What gives the tensors to start from, and to keep to, of some images; None where there are none."""
    depth = conditions.load_depth(args.depth_model, device) if args.depth_model else None
    changes = {"none": lambda picture: picture, "canny": conditions.canny_edges, "depth": depth}

    def reader(flag: str, change: Callable) -> Callable:
        if flag not in given:
            return lambda jobs: None
        found = given[flag]
        return lambda jobs: conditions.to_tensor(
            [change(conditions.read_square(f"--{flag}", found[job.index % len(found)], size)) for job in jobs]
        )

    return reader("init_images", changes["none"]), reader("control_images", changes[args.control_type])


def describe_settings(args, prompts: list[dict], loras: list, given: dict, precision: str, size: int) -> dict:
    """All that decides what the pictures are, with checksums of what the named files hold."""
    settings = cli.settings_of(args) | {"resolution": size, "precision": precision, "num_images": len(prompts)}
    settings["prompts_sha256"] = folders.prompts_digest(prompts)
    settings["lora_sha256"] = [file_sha256(one.path)[:16] for one in loras]
    for flag, found in given.items():
        settings[f"{flag}_sha256"] = hashlib.sha256(" ".join(map(file_sha256, found)).encode()).hexdigest()[:16]
    return settings


def relieve_memory(studio: Studio, batch: int, left: list[str]) -> int:
    """What to do where memory ran out, the cheapest first; the batch from here on."""
    encoding.free_memory(studio.device)
    if batch > 1:
        logger.warning("out of memory: %s at once from here on", cli.counted(math.ceil(batch / 2), "image"))
        return math.ceil(batch / 2)
    if not left:
        raise UserError("out of memory, one image at once and with every economy; lower --resolution, or free memory")
    generation.economise(studio.unet, studio.vae, studio.controlnet, left[0], studio.device)
    logger.warning("out of memory with one image at once: --enable_%s from here on", left.pop(0))
    return 1


def find_models(args) -> tuple[str, str, int, list[lora_mix.Lora]]:
    """The model's place and family, the side of its pictures, and the LoRAs, which fit it."""
    place = args.output_dir.parent / "cache" / "models"
    model = models.resolve_model(args.pretrained_model_name_or_path, place, args.model_config)
    family = models.model_family(model)
    size = args.resolution or generation.native_size(model)
    pictures.training_shapes(model, size, buckets=False)  # an error where the model can't draw that size
    loras = [lora_mix.parse_lora(spec) for spec in args.lora]
    for lora in loras:
        lora_mix.check_lora(lora, args.pretrained_model_name_or_path, model, family, args.allow_other_base)
    return model, family, size, loras


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
        seeds = [args.seed + job.index + job.retry * RETRY_SEEDS for job in jobs]
        asked = [prompts[job.index] for job in jobs]
        pixels, finite = draw_pictures(
            studio, [one["text"] for one in asked], args.negative_prompt, seeds, args.num_inference_steps,
            args.guidance_scale, size, starts(jobs), args.strength, controls(jobs), args.controlnet_conditioning_scale,
            args.batch_size
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
    left = [name for name in generation.ECONOMIES if not on_cpu and not getattr(args, f"enable_{name}")]
    failed, waiting, packing, first, began = {}, deque(), [], True, time.monotonic()
    with tqdm(**shown) as bar, ThreadPoolExecutor(args.num_workers) as pool:  # an error has its own line, below the bar
        while waiting or (todo and not received):
            # One batch: drawn here, judged and saved in the background.
            jobs = [todo.popleft() for _ in range(min(batch, len(todo)))] if not received else []
            try:
                drawn = draw(studio, jobs) if jobs else []
            except RuntimeError as error:
                if not guards.out_of_memory(error):
                    raise
                drawn = []
            if jobs and not drawn:
                todo.extendleft(reversed(jobs))
                batch = relieve_memory(studio, len(jobs), left)
                continue
            waiting.extend(pool.submit(outcome.save_picture, out, job, *one, check) for job, one in zip(jobs, drawn))

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
                    studio = open_model(torch.float32)
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
    given = {flag: conditions.list_pictures(f"--{flag}", place, count) for flag, place in places.items()}
    mine = [i for i in range(count) if i // (block or 1) % shares == share]
    settings = describe_settings(args, prompts, loras, given, precision.mixed_precision, size)
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}")
        prompt_lists.tell_plan(prompts, mine, share, shares)
    if args.dry_run:
        return 0
    lock = folders.enter_folder(out, settings, prompts, FREE, part, block)
    if lock is None:
        if is_main:
            print(f"{out}: this set is finished; nothing to do")
        return 0
    folders.forget_finish(out)  # pictures of a finished set are gone, or it grows: what describes it is made anew
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
        open_model = partial(open_studio, args, model, family, texts, loras, device=device)
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
