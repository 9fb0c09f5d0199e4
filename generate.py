"""Make thousands of synthetic images: one seed each, every one checked, never half a set.

Killed and started again it goes on with what is missing; the set is a dataset in the prepared layout when it is done.

    python generate.py --lora runs/casual_shoes --prompt "a professional product photo of red casual shoes" --num_images 4
    python generate.py --pretrained_model_name_or_path demo --prompt_plan plan.jsonl --output_dir data/synthetic/shoes
    accelerate launch --config_file accelerate_configs/a100.yaml generate.py --lora runs/x --prompt_plan plan.jsonl
"""

import argparse
import hashlib
import inspect
import json
import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from utils import (
    cli,
    conditions,
    devices,
    encoding,
    flags,
    generation,
    generation_flags,
    guards,
    lora_mix,
    models,
    pictures,
    runs,
)
from utils import generation_folder as folders
from utils import prompts as prompt_lists
from utils.cli import UserError
from utils.files import file_sha256, write_json, write_text
from utils.metrics_log import append_metrics, read_metrics
from utils.validation import picture_fault

logger = logging.getLogger("generate")
RETRY_SEEDS = 1_000_000_000  # between the seeds of one picture's tries; those of the set's pictures are neighbours
NUMERIC = ("NaN in the latents", "black (or NaN)", "of one colour", "noise")  # what a precision too low looks like
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


class Studio(NamedTuple):
    """What draws: the models on their device, and every text's features on the CPU."""

    unet: torch.nn.Module
    vae: torch.nn.Module
    controlnet: torch.nn.Module | None
    scheduler: object
    features: dict[str, tuple[torch.Tensor, torch.Tensor | None]]
    dtype: torch.dtype
    device: torch.device


@torch.no_grad()
def open_studio(args, model: str, family: str, texts: list[str], loras: list, dtype, device: torch.device) -> Studio:
    """Every distinct text is encoded once, and the encoders are gone when this returns."""
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
    over, limit, example = prompt_lists.too_long(texts, tokenizers[0])
    if over:
        logger.warning("%d prompts are longer than %d tokens and cut off there, as: %s", over, limit, example)
    for start in range(0, len(texts), 64):
        part = texts[start : start + 64]
        embeds, pooled = models.encode_prompts(tokenizers, encoders, part, zero)
        for i, text in enumerate(part):
            features[text] = embeds[i].cpu(), None if pooled is None else pooled[i].cpu()
    del encoders, encoder
    encoding.free_memory(device)
    vae = models.load_vae(model)
    controlnet = conditions.load_controlnet(args.controlnet, unet, dtype) if args.controlnet else None
    for module in filter(None, (unet, controlnet)):
        module.to(dtype)
    studio = Studio(unet, vae, controlnet, generation.make_scheduler(args.scheduler, noise), features, dtype, device)
    for module in filter(None, (unet, vae, controlnet)):
        module.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return studio


@torch.inference_mode()
def draw_pictures(
    studio: Studio, texts: list[str], negative: str, seeds: list[int], steps: int, guidance: float, size: int,
    starts: torch.Tensor | None, strength: float, control: torch.Tensor | None, control_scale: float, original: tuple
) -> tuple[torch.Tensor, list[bool]]:  # fmt: skip
    """The pixels (n, size, size, 3) of one batch, and which of them came from finite latents."""
    unet, vae, scheduler, device = studio.unet, studio.vae, studio.scheduler, studio.device
    # Whatever is drawn for a picture is drawn on the CPU by its own generator: no other picture changes it.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    guided = guidance > 1
    wanted = [negative] * len(texts) * guided + texts
    embeds = torch.stack([studio.features[text][0] for text in wanted]).to(device)
    more = {}
    if studio.features[texts[0]][1] is not None:
        pooled = torch.stack([studio.features[text][1] for text in wanted]).to(device)
        ids = torch.tensor([[*original, 0, 0, size, size]] * len(wanted), dtype=studio.dtype, device=device)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    control = None if control is None else control.repeat(1 + guided, 1, 1, 1).to(device, studio.dtype)

    scheduler.set_timesteps(steps, device=device)
    timesteps, side = scheduler.timesteps, size // generation.vae_step(vae)
    shape = (1, vae.config.latent_channels, side, side)
    if starts is None:
        latents = torch.cat([torch.randn(shape, generator=one) for one in generators])
        latents = (latents * scheduler.init_noise_sigma).to(device)
    else:
        latents, timesteps = generation.start_from(vae, scheduler, starts.to(device), generators, steps, strength)
    step_options = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_options["generator"] = generators
    for time_step in timesteps:
        # One denoising step of the whole batch, with its negative half beside it where there is guidance.
        given = scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), time_step).to(studio.dtype)
        residuals = {}
        if control is not None:
            down, middle = studio.controlnet(
                given, time_step, embeds, control, conditioning_scale=control_scale, return_dict=False, **more
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted = unet(given, time_step, embeds, return_dict=False, **more, **residuals)[0].float()
        if guided:
            without, towards = predicted.chunk(2)
            predicted = without + guidance * (towards - without)
        latents = scheduler.step(predicted, time_step, latents, return_dict=False, **step_options)[0]
    finite = latents.isfinite().flatten(1).all(1)
    return generation.decode_pixels(vae, latents), finite.tolist()


def finish_picture(folder: Path, job: Job, line: dict, pixels, finite: bool, check: Callable) -> tuple[Job, dict, str]:
    """Judge a picture and write it whole where it belongs; (job, its line, what is wrong with it). Runs in a thread."""
    picture = Image.fromarray(pixels)
    fault = (picture_fault(picture) or check(picture, line["text"]) or "") if finite else NUMERIC[0]
    if fault:
        line = {**line, "file_name": f"{job.index:06d}-{line['seed']}.png", "reason": fault}
    path = folder / "rejected" / line["file_name"] if fault else folder / line["file_name"]
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    picture.save(partial, "PNG", compress_level=4)
    os.replace(partial, path)
    return job, line, fault


def read_conditions(args, size: int, device: torch.device) -> tuple[Callable, Callable]:
    """What gives the tensors of the pictures to start from, and to keep to, of some images; None where there are none."""
    depth = conditions.load_depth(args.depth_model, device) if args.depth_model else None
    change = {"none": lambda picture: picture, "canny": conditions.canny_edges, "depth": depth}[args.control_type]

    def reader(flag: str, place: Path | None, change: Callable) -> Callable:
        if place is None:
            return lambda indices: None
        found = conditions.list_pictures(flag, place)
        return lambda indices: conditions.to_tensor(
            [change(conditions.read_square(flag, found[i % len(found)], size)) for i in indices]
        )

    return (
        reader("--init_images", args.init_images, lambda picture: picture),
        reader("--control_images", args.control_images, change),
    )


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


def relieve_memory(studio: Studio, batch: int, left: list[str]) -> tuple[int, str]:
    """What to do where memory ran out, the cheapest first: (batch from now on, what was done)."""
    if batch > 1:
        studio.vae.enable_slicing()
        return math.ceil(batch / 2), f"{math.ceil(batch / 2)} images at once from here on"
    if not left:
        raise UserError(
            "out of memory with one image at once and every economy; lower --resolution, or free the device's memory"
        )
    generation.economise(studio.unet, studio.vae, studio.controlnet, left[0], studio.device)
    return 1, f"--enable_{left.pop(0)} from here on"


def main(args) -> int:
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    shard, shards = map(int, args.shard.split("/"))
    share, shares = shard * accelerator.num_processes + accelerator.process_index, shards * accelerator.num_processes
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    model = models.resolve_model(args.pretrained_model_name_or_path, out.parent / "cache" / "models", args.model_config)
    family = models.model_family(model)
    size = args.resolution or generation.native_size(model)
    pictures.training_shapes(model, size, False)
    loras = [lora_mix.parse_lora(spec) for spec in args.lora]
    for lora in loras:
        lora_mix.check_lora(lora, args.pretrained_model_name_or_path, model, family, args.allow_other_base)
    prompts = prompt_lists.read_prompts(
        args.num_images, args.prompt, args.prompts_file, args.prompt_plan, args.template, args.attribute
    )
    block = args.shard_size if args.webdataset else 1  # a tar shard is one process's work
    mine = [i for i in range(len(prompts)) if i // block % shares == share]
    settings = describe_settings(args, prompts, loras, precision.mixed_precision, size)
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}")
        print(f"{cli.counted(len(prompts), 'image')}, of which {len(mine):,} in this process ({share} of {shares})")
    if args.dry_run:
        return 0
    starts, controls = read_conditions(args, size, device)
    folders.open_folder(out, settings, FREE)
    done = folders.done_indices(out, set())
    if len(done) == len(prompts) and (out / "report.json").exists():
        if is_main:
            print(f"{out}: this set of {cli.counted(len(prompts), 'image')} is finished; nothing to do")
        return 0
    lock = folders.claim_share(out, share, shares)
    tried = folders.tried(out)
    todo = deque(Job(i, tried[i]) for i in mine if i not in done)
    part = folders.part_name(share, shares)
    about = {
        "negative_prompt": args.negative_prompt, "steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale, "scheduler": args.scheduler,
        "model": args.pretrained_model_name_or_path, "lora": args.lora
    }  # fmt: skip
    texts = list(dict.fromkeys([prompts[job.index]["text"] for job in todo] + [args.negative_prompt]))
    half = precision.dtype != torch.float32 and not (out / ".float32").exists()
    dtype = precision.dtype if half else torch.float32
    studio = open_studio(args, model, family, texts, loras, dtype, device) if todo else None
    left = [name for name in generation.ECONOMIES if not getattr(args, f"enable_{name}")]
    for name in generation.ECONOMIES:
        if studio and getattr(args, f"enable_{name}"):
            generation.economise(studio.unet, studio.vae, studio.controlnet, name, device)
    batch, bound, failed = args.batch_size, 4 * args.batch_size + 16, {}
    original, began, received = (size, size), time.monotonic(), runs.catch_signals("finishing the images at hand")
    waiting: deque[Future] = deque()
    made, first = 0, len(todo) > 0
    bar = tqdm(total=len(mine), initial=len(mine) - len(todo), unit=" images", **cli.progress(is_main))
    with ThreadPoolExecutor(args.num_workers) as pool:
        while (todo or waiting) and not (received and not waiting):
            if todo and not received:
                jobs = [todo.popleft() for _ in range(min(batch, len(todo)))]
                lines = [prompts[job.index] for job in jobs]
                seeds = [args.seed + job.index + job.retry * RETRY_SEEDS for job in jobs]
                indices = [job.index for job in jobs]
                try:
                    pixels, finite = draw_pictures(
                        studio, [one["text"] for one in lines], args.negative_prompt, seeds, args.num_inference_steps,
                        args.guidance_scale, size, starts(indices), args.strength, controls(indices),
                        args.controlnet_conditioning_scale, original
                    )  # fmt: skip
                except RuntimeError as error:
                    if not guards.out_of_memory(error):
                        raise
                    pixels = None
                if pixels is None:
                    todo.extendleft(reversed(jobs))
                    encoding.free_memory(device)
                    batch, change = relieve_memory(studio, batch, left)
                    logger.warning("out of memory: %s", change)
                    continue
                for job, one, seed, picture, sound in zip(jobs, lines, seeds, pixels.numpy(), finite):
                    name = {"file_name": folders.image_name(job.index)}
                    line = {**name, "text": one["text"], "seed": seed, **about, "attributes": one["attributes"]}
                    check = lambda picture, text: None  # noqa: E731
                    waiting.append(pool.submit(finish_picture, out, job, line, picture, sound, check))
            # Saved in the background; waited for only where there is nothing to draw, or too much is under way.
            rejected = []
            while waiting and (first or not todo or received or len(waiting) > bound or waiting[0].done()):
                job, line, fault = waiting.popleft().result()
                if not fault:
                    append_metrics(out / part, line)
                    made += 1
                    bar.update()
                    continue
                append_metrics(out / "rejected" / part, line)
                rejected.append((job, fault))
            for job, fault in rejected:
                if job.retry < args.max_retries:
                    todo.append(Job(job.index, job.retry + 1))
                else:
                    failed[job.index] = fault
            first = False
    bar.close()
    seconds = time.monotonic() - began
    append_metrics(out / "sessions.jsonl", {"share": share, "made": made, "seconds": round(seconds, 2)})
    os.close(lock)
    if received:
        return 128 + received[0]
    with folders.locked(out):
        missing = len(prompts) - len(folders.done_indices(out, set()))
        if not missing:
            finish(out, prompts, settings, size)
    return 0


def finish(out: Path, prompts: list[dict], settings: dict, size: int) -> None:
    """Everything that describes the whole set."""
    lines = folders.merge_parts(out)
    rejected = Counter(one["reason"] for one in folders.merge_parts(out / "rejected"))
    write_text(out / "prompts.txt", "".join(f"{one['text']}\n" for one in prompts))
    sessions = read_metrics(out / "sessions.jsonl")
    seconds = sum(one["seconds"] for one in sessions)
    report = {
        "made": len(lines), "rejected": dict(rejected), "seconds": round(seconds, 2),
        "images_per_second": round(sum(one["made"] for one in sessions) / max(seconds, 1e-9), 3)
    }  # fmt: skip
    write_json(out / "report.json", report)
    folders.write_prepared_layout(out, lines, settings, size, settings["prompts_sha256"])
    print(f"{cli.counted(len(lines), 'image')} in {out}")


if __name__ == "__main__":
    cli.run(main, parse_args())
