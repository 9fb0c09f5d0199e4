"""Make thousands of synthetic images: one seed each, every image checked.

Started again after an interruption, it makes the missing images. The complete set is a dataset in the prepared layout.
What lies in a bucket (s3://, gs://), as a LoRA, is fetched once.

    python generate.py --lora runs/casual_shoes --prompt "a product photo of red casual shoes" --num_images 4
    python generate.py --pretrained_model_name_or_path demo --prompt_plan plan.jsonl --output_dir data/synthetic/shoes
    accelerate launch --config_file accelerate_configs/a100.yaml generate.py --lora runs/x --prompt_plan plan.jsonl
"""

import argparse
import hashlib
import logging
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils import cli, devices, runs, sync  # first: it says in one line which package is missing

# isort: split
import torch
from accelerate import Accelerator

from families import image_facts, lora_mix, models, sampling, tokens
from families.names import FAMILIES, LABELS
from families.sampler import Execution, ImageRequest, SamplerParts, Sampling, check_parts, generate_images, load_sampler
from generation import flags, set_folder
from generation import prompts as prompt_lists
from generation.checks import Checks, Result, check_and_save, load_checks
from generation.conditions import Conditions, canny_edges, list_images, load_depth, nth
from generation.finish import finish_set
from generation.prompts import Prompt
from generation.set_folder import IMAGES, Job, Session, Share, record_item, record_session
from utils.cli import OF_ONE_PROCESS, UserError, counted, spell_flag
from utils.console import Bar, show_progress
from utils.files import file_sha256, locked_folder
from utils.outputs import check_apart
from utils.parallel import in_main_process
from utils.storage import fetch
from utils.sync import Sync

logger = logging.getLogger("generate")
NUMERIC = ("NaN latents", "black (or NaN)", "of one colour", "noise")  # what a precision too low looks like
# Flags whose folders are read, those of data with all that is in them.
OF_DATA = ("init_images", "control_images", "reject_near_train")
OF_MODELS = ("pretrained_model_name_or_path", "model_config", "controlnet", "depth_model", "clip_model")
# Flags that are refused for a model without a UNet.
OF_UNETS = (
    "controlnet init_images control_images prediction_type zero_terminal_snr enable_attention_slicing compile".split()
)
# Neither where the result goes nor how the work is divided changes an image.
FREE = set(
    "output_dir batch_size num_workers shard mixed_precision max_retries allow_other_base enable_vae_slicing "
    "enable_vae_tiling enable_attention_slicing enable_cpu_offload compile allow_tf32 sync_to".split()
)


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    models.add_model_flags(parser, of_lora=True)
    flags.add_flags(parser)
    square = "the images are squares: --resolution is their side"
    cli.add_refused_flags(parser, {"height": square, "width": square})
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    return flags.check_flags(parser, cli.parse_args(parser, argv))


def read_loras(args: argparse.Namespace) -> tuple[lora_mix.Lora, ...]:
    return tuple(lora_mix.parse_lora(lora_mix.fetch_lora(spec, cache_folder(args))) for spec in args.lora)


def read_here(args: argparse.Namespace, name: str) -> Path | None:
    """The path of what the flag of this name gives, if it does; what lies in a bucket is fetched."""
    given = getattr(args, name)
    return fetch(given, cache_folder(args), f"--{name}") if given else None


def cache_folder(args: argparse.Namespace) -> Path:
    return args.output_dir.parent / "cache"


def find_parts(args: argparse.Namespace) -> SamplerParts:
    """The model and the LoRAs; refuses those that do not go together.

    Of args, this settles the model's name, and how images are sampled.
    """
    loras = read_loras(args)
    if args.pretrained_model_name_or_path is None:
        if base := lora_mix.named_base(loras):
            logger.warning("no --pretrained_model_name_or_path: taking %s, which the LoRA was trained on", base)
        args.pretrained_model_name_or_path = base or models.DEFAULT_MODEL
    name = args.pretrained_model_name_or_path
    for lora in loras if not args.allow_other_base else ():  # before the base is looked for: it may be the wrong one
        lora_mix.check_base(lora, name)
    model = models.resolve_model(name, cache_folder(args) / "models", args.model_config)
    noise = args.prediction_type, args.zero_terminal_snr
    reading = models.TextReading(args.max_sequence_length, args.clip_skip or 0)
    parts = SamplerParts(model, models.model_family(model), loras, args.controlnet, *noise, reading=reading)
    refuse_unsupported(args, parts.family)
    settle_sampling(args, model, parts.family)
    check_parts(parts, name, args.allow_other_base)
    return parts


def refuse_unsupported(args: argparse.Namespace, family: str) -> None:
    """Refuse what only a UNet's images can have."""
    if FAMILIES[family].DENOISER == "unet":
        return
    for name in OF_UNETS:
        if value := getattr(args, name):
            raise UserError(f"{spell_flag(name, value)}: not for {LABELS[family]}; leave it out")


def settle_sampling(args: argparse.Namespace, model: str, family: str) -> None:
    """The defaults that depend on the model; refuses a scheduler of the other kind of noise."""
    args.num_inference_steps = sampling.choose_steps(model, family, "num_inference_steps", args.num_inference_steps)
    guidance = "guidance_scale", args.guidance_scale, args.recipe_keys
    args.guidance_scale = sampling.choose_guidance(model, family, *guidance)
    if args.negative_prompt and not sampling.reads_negative_prompt(family, args.guidance_scale):
        problem = sampling.negative_prompt_problem(family, sampling.has_guidance(model), args.guidance_scale)
        raise UserError(f"--negative_prompt {args.negative_prompt}: {problem}")
    args.scheduler = sampling.choose_scheduler(family, args.scheduler)


def find_sampling(args: argparse.Namespace, model: str) -> Sampling:
    return Sampling(
        steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        size=sampling.choose_size(model, args.resolution),
        scheduler=args.scheduler,
        negative_prompt=args.negative_prompt,
        strength=args.strength,
        conditioning_scale=args.controlnet_conditioning_scale,
    )


def find_conditions(args: argparse.Namespace, count: int, size: int) -> Conditions:
    """The files of the images to start from and to follow. A depth model is loaded later, when images are missing."""
    files = {}
    for flag in ("init_images", "control_images"):
        place = read_here(args, flag)
        files[flag] = list_images(f"--{flag}", place, count) if place else []
    return Conditions(**files, size=size, to_control=canny_edges if args.control_type == "canny" else None)


@dataclass(frozen=True)
class Plan:
    """What to generate."""

    prompts: list[Prompt]
    parts: SamplerParts
    sampling: Sampling
    conditions: Conditions
    share: Share


def make_plan(args: argparse.Namespace, share: Share) -> Plan:
    parts = find_parts(args)
    how = find_sampling(args, parts.model)
    file, listed = read_here(args, "prompts_file"), read_here(args, "prompt_plan")
    prompts = prompt_lists.read_prompts(args.num_images, args.prompt, file, listed, args.template, args.attribute)
    return Plan(prompts, parts, how, find_conditions(args, len(prompts), how.size), share)


def describe_settings(args: argparse.Namespace, plan: Plan, precision: str) -> dict[str, Any]:
    """All settings that the images depend on, with checksums of the given files."""
    settings = cli.settings_of(args) | {"resolution": plan.sampling.size, "precision": precision}
    settings |= {"num_images": len(plan.prompts), "prompts_sha256": set_folder.items_digest(plan.prompts)}
    files = [path for lora in plan.parts.loras for path in (lora.path, *tokens.token_files(lora.path.parent))]
    settings["lora_sha256"] = [file_sha256(path)[:16] for path in files]
    for flag in ("init_images", "control_images"):
        if found := getattr(plan.conditions, flag):
            sums = " ".join(map(file_sha256, found))
            settings[f"{flag}_sha256"] = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return settings


def show_plan(args: argparse.Namespace, plan: Plan, device: str, precision: str) -> None:
    cli.show_settings(args)
    print(f"device: {device}; precision: {precision}")
    print(*prompt_lists.describe_plan(plan.prompts), sep="\n")
    if plan.share.of > 1:
        mine = len(plan.share.indices(len(plan.prompts)))
        print(f"this process is {plan.share.number} of {plan.share.of} and makes {counted(mine, 'image')}")
    for folder, word in lora_mix.learnt_words(plan.parts.loras).items():
        tokens.warn_missing_word(folder, word, [one.text for one in plan.prompts])


def report_long_prompts(plan: Plan) -> None:
    """Warn of prompts that a run would cut off, by the tokenizer alone."""
    parts = plan.parts
    tokenizers = models.load_tokenizers(parts.model, parts.family, parts.reading.length)
    prompts = [one.text for one in plan.prompts] + [plan.sampling.negative_prompt]
    models.report_long_captions(lora_mix.length_tokenizer(tokenizers, parts.loras), prompts, "prompts")


def make_request(args: argparse.Namespace, plan: Plan, job: Job) -> ImageRequest:
    return ImageRequest(
        prompt=plan.prompts[job.index].text,
        seed=devices.nth_seed(args.seed, job.index, job.retry),
        init_image=plan.conditions.init_image(job.index),
        control_image=plan.conditions.control_image(job.index),
    )


def make_record(args: argparse.Namespace, plan: Plan, job: Job, dtype: torch.dtype) -> dict[str, Any]:
    """The image's line in metadata.jsonl, but for the name of its file."""
    record = {
        "text": plan.prompts[job.index].text,
        "seed": devices.nth_seed(args.seed, job.index, job.retry),
        "negative_prompt": args.negative_prompt,
        "steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "scheduler": args.scheduler,
        "model": args.pretrained_model_name_or_path,
        "lora": args.lora,
        "resolution": plan.sampling.size,
    }
    if args.clip_skip:
        record["clip_skip"] = args.clip_skip
    if args.init_images:
        record |= {"init_image": str(nth(plan.conditions.init_images, job.index)), "strength": str(args.strength)}
    if args.controlnet:
        record["control_image"] = str(nth(plan.conditions.control_images, job.index))
        names = ("controlnet", "control_type", "controlnet_conditioning_scale")
        record |= {name: str(getattr(args, name)) for name in names}
    return record | {"precision": dtype_name(dtype), "attributes": plan.prompts[job.index].attributes}


def make_facts(args: argparse.Namespace, plan: Plan, request: ImageRequest) -> dict[str, str]:
    """What is written into the image itself."""
    if not args.image_metadata:
        return {}
    names = [lora_mix.run_name(lora_mix.split_spec(spec)[0]) for spec in args.lora]
    mixed = zip(names, (lora.weight for lora in plan.parts.loras))
    more = image_facts.describe_model(args.pretrained_model_name_or_path, mixed, args.clip_skip or 0)
    more |= {"ControlNet": image_facts.short_name(args.controlnet)} if args.controlnet else {}
    return image_facts.describe_made(request, plan.sampling, plan.parts.family, more)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def make_images(
    args: argparse.Namespace,
    plan: Plan,
    execution: Execution,
    todo: deque[Job],
    checks: Checks,
    received: list[int],
    bar: Bar,
) -> dict[int, str]:
    """Generate a batch at a time, while threads check and save; {index: reason} of the images without a good seed."""
    prompts = list(dict.fromkeys(plan.prompts[job.index].text for job in todo))
    sampler = load_sampler(plan.parts, plan.sampling, execution, prompts)
    session, is_first = Session(args.output_dir, plan.share), True
    saving: list[Future[Result]] = []
    failed: dict[int, str] = {}
    with ThreadPoolExecutor(args.num_workers) as pool:
        while saving or (todo and not received):
            # Take a batch and generate it. Meanwhile threads check and save the batch before.
            jobs = [] if received else [todo.popleft() for _ in range(min(sampler.batch_size, len(todo)))]
            requests = [make_request(args, plan, job) for job in jobs]
            images = generate_images(sampler, requests)
            results = [one.result() for one in saving]
            records = [make_record(args, plan, job, execution.dtype) for job in jobs]
            facts = [make_facts(args, plan, request) for request in requests]
            made = zip(jobs, records, facts, images)
            saving = [pool.submit(check_and_save, args.output_dir, *one, checks) for one in made]
            if is_first:
                results, saving = [one.result() for one in saving], []

            # Record what was saved or rejected.
            for result in results:
                record_item(session, result.record)
                bar.update(not result.reason)
            rejected = [result for result in results if result.reason]

            # The first batch shows whether this model works in this precision.
            if is_first and rejected and all(one.reason in NUMERIC for one in results):
                problem = f"all of the first {counted(len(jobs), 'image')} are invalid ({rejected[0].reason})"
                if execution.dtype != torch.float32:
                    logger.warning("%s in %s; continuing in float32", problem, execution.dtype, extra=OF_ONE_PROCESS)
                    (args.output_dir / ".float32").touch()
                    execution = replace(execution, dtype=torch.float32)
                    sampler = None  # its memory is free before the next one is loaded
                    sampler = load_sampler(plan.parts, plan.sampling, execution, prompts)
                    todo.extendleft(reversed(jobs))
                    continue
                if len(jobs) > 3:
                    place = args.output_dir / "rejected"
                    raise UserError(f"{problem}, and precision is not the cause; look at {place}, and check the model")
            is_first = False

            # Try a rejected image again with its next seed.
            for job, _, reason in rejected:
                if job.retry < args.max_retries:
                    todo.append(Job(job.index, job.retry + 1))
                else:
                    failed[job.index] = reason
    record_session(session)
    return failed


def make_missing(
    args: argparse.Namespace, plan: Plan, execution: Execution, is_main: bool, received: list[int]
) -> dict[int, str]:
    """Make the images of this share that are not there yet; {index: reason} of those without a good seed."""
    out, mine = args.output_dir, plan.share.indices(len(plan.prompts))
    todo, failed = set_folder.find_missing(out, IMAGES, mine, dtype_name(execution.dtype), args.max_retries)
    if not todo:
        return failed
    near = read_here(args, "reject_near_train")
    checks = load_checks(near, args.num_workers, args.min_clip_score, args.clip_model, execution.device)
    if args.depth_model:
        to_control = load_depth(args.depth_model, execution.device)
        plan = replace(plan, conditions=replace(plan.conditions, to_control=to_control))
    with show_progress(len(mine), "images", "generating", len(mine) - len(todo), is_main) as bar:
        return failed | make_images(args, plan, execution, todo, checks, received, bar)


def make_set(
    args: argparse.Namespace,
    plan: Plan,
    settings: dict[str, Any],
    precision: devices.Precision,
    accelerator: Accelerator,
    syncs: list[Sync],
) -> int:
    """Make the images of this share that are missing, and what describes the set once all are there; the exit code."""
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    lock = set_folder.enter_folder(out, IMAGES, settings, plan.prompts, FREE, plan.share)
    if lock is None:
        if is_main:
            print(f"{out}: this set is finished; nothing to do")
        return 0
    for one in syncs:
        sync.start_sending(one)
    try:
        facts: dict[str, Any] = {"device": devices.describe_device(device), "shares": plan.share.of}
        digest = settings["prompts_sha256"]
        runs.write_environment(out / "environment.json", facts["device"], precision.reason, prompts=digest)
        dtype = torch.float32 if (out / ".float32").exists() else precision.dtype
        savers = tuple(name for name in sampling.MEMORY_SAVERS if getattr(args, f"enable_{name}"))
        execution = Execution(device, dtype, args.batch_size, savers, args.compile)
        received = runs.catch_signals("finishing the current images")
        failed = make_missing(args, plan, execution, is_main, received)
    finally:
        os.close(lock)

    if received:
        saved = len(set_folder.done_indices(out, IMAGES))
        print(f"{out}: stopped; {saved:,} of {counted(len(plan.prompts), 'image')} are saved; the same command goes on")
        return 128 + received[0]
    if failed:
        some = ", ".join(f"{i} ({reason})" for i, reason in list(failed.items())[:3])
        raise UserError(
            f"{counted(len(failed), 'image')} rejected with each of {counted(args.max_retries + 1, 'seed')}: "
            f"{some}; look at {out / 'rejected'}, and run the same command with a higher --max_retries"
        )
    for one in syncs:  # what other machines have made: whoever sends last, finds all
        sync.send_rest(one)
        sync.fetch_set(one, IMAGES, settings, FREE)
    with locked_folder(out):  # the process that comes last finds the set complete
        facts["precision"] = "float32" if (out / ".float32").exists() else dtype_name(dtype)
        end_share(out, plan, settings, facts)
    return 0


def end_share(out: Path, plan: Plan, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write what describes the set if it is complete; else say how many images are missing."""
    if missing := len(plan.prompts) - len(set_folder.done_indices(out, IMAGES)):
        print(f"{out}: this share is complete; other shares still have to make {counted(missing, 'image')}")
    elif not set_folder.is_finished(out, IMAGES, len(plan.prompts)):
        report = finish_set(out, plan.prompts, settings, facts)
        each = ", each process" if plan.share.of > 1 else ""
        rate = f" ({report['images_per_second']:.3g} images/s{each})" if report["images_per_second"] else ""
        print(f"{out}: {counted(report['made'], 'image')} made{rate}")
        print(f"look at {out / 'sheets/sheet-0001.jpg'}")


@sync.sent_after_fault()
def main(args: argparse.Namespace) -> int:
    loras = [one.path for one in read_loras(args)]
    models_read = {name: getattr(args, name) for name in OF_MODELS} | {"lora": loras}
    check_apart(args.output_dir, {name: getattr(args, name) for name in OF_DATA}, models_read)
    places = sync.find_place(args.sync_to, args.output_dir)
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    if args.enable_cpu_offload and device.type == "cpu":
        raise UserError("--enable_cpu_offload: this machine has no GPU to offload from; leave it out")
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    plan = make_plan(args, set_folder.find_share(args.shard, accelerator))
    settings = describe_settings(args, plan, precision.mixed_precision)
    if is_main:
        show_plan(args, plan, devices.describe_device(device), precision.reason)
    if args.dry_run:
        if is_main:
            report_long_prompts(plan)
        return 0

    syncs: list[Sync] = []

    def fill() -> None:
        syncs.extend(set_folder.fill_folder(out, IMAGES, one, settings, FREE, args.shard) for one in places)

    if places:
        in_main_process(accelerator, fill)
    code = make_set(args, plan, settings, precision, accelerator, syncs)
    if places:
        accelerator.wait_for_everyone()  # the main process sends what all of them make
    all_sent = sync.finish_all(syncs, sync.GRACE if code else sync.PATIENCE)
    return code or (0 if all_sent else 1)


if __name__ == "__main__":
    cli.run(main, parse_args())
