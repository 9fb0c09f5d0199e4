"""From the trainers' flags to what their functions take: the start of a trainer, its recipe, its data, its length."""

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from diffusers import DDPMScheduler

from families import kohya, lora, models
from families.diffusion import Text, training_scheduler
from families.lora import UNET_TARGETS, Adapter, check_targets
from families.sampler import Sampling
from families.sampling import native_size
from training.batches import BatchPlan, Loader, plan_batch
from training.build import Recipe
from training.dry_run import largest_batch
from training.encoding import encoded_at_once
from training.examples import Example, Record, Views, fitting_shapes, largest_shape
from training.memory import Load, Phases
from training.model_card import hub_token, push_run
from training.optimizers import OptimizerSettings, Schedule, load_adamw8bit
from training.read_data import choose_buckets
from training.run import Tracking
from training.validation import Checks, held_out_batches
from utils import checkpoints, cli, devices, runs, sync
from utils.catalogue import Source
from utils.cli import UserError
from utils.devices import Precision, working_device
from utils.outputs import check_apart
from utils.parallel import in_main_process
from utils.storage import Place, fetch
from utils.sync import Sync
from utils.trackers import tracker_names

logger = logging.getLogger(__name__)
# Flags of one trainer or both whose folders are read, those of data with all that is in them.
OF_DATA = ("train_data_dir", "instance_data_dir", "class_data_dir")
OF_MODELS = ("pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "model_config", "mask_loss")


@dataclass(frozen=True)
class Start:
    """What a trainer has before it looks at its data.

    `places`: that of --sync_to, if it is given; `data`: a folder here, or a hub id; `shapes`: those that images are
    fitted to.
    """

    accelerator: Accelerator
    precision: Precision
    plan: BatchPlan
    tracking: Tracking
    places: list[Place]
    data: str
    cache: Path
    model: str
    family: str
    noise_scheduler: DDPMScheduler
    shapes: list[tuple[int, int]]


def describe_shapes(args: argparse.Namespace, as_prepared: bool) -> str:
    """`512x512 pixels`, or how the images keep their proportions; `as_prepared`: no flag says which."""
    if args.aspect_ratio_buckets:
        return f"in the nearest of the shapes {args.aspect_ratio_buckets}"
    size = f"{args.resolution}x{args.resolution} pixels"
    if not args.use_aspect_ratio_buckets:
        return size
    return f"with their proportions, as large as {size}{', as the dataset was prepared' if as_prepared else ''}"


def start_trainer(args: argparse.Namespace, folder_flag: str) -> Start:
    """Start accelerate, settle and print the settings, find the model and the data (see `read_source`).

    Of args, this settles --effective_batch_size, --resolution and --use_aspect_ratio_buckets, which depend on other
    things.
    """
    read = {name: getattr(args, name, None) for name in (*OF_DATA, *OF_MODELS)}
    check_apart(args.output_dir, {name: read[name] for name in OF_DATA}, {name: read[name] for name in OF_MODELS})
    places = sync.find_place(args.sync_to, args.output_dir)
    if args.overwrite and args.resume_from_checkpoint != "latest":
        check_kept(args.output_dir, args.resume_from_checkpoint)
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    plan = plan_batch(
        args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size, accelerator.num_processes
    )
    batch = describe_batch(plan, args.effective_batch_size)
    args.shard = settle_sharding(args, plan.processes)
    cache, data = cache_folder(args), read_source(args, folder_flag).name
    model = models.resolve_model(args.pretrained_model_name_or_path, cache / "models", args.model_config)
    if args.pretrained_vae_model_name_or_path:
        models.check_vae(model, args.pretrained_vae_model_name_or_path)
    args.effective_batch_size = plan.effective
    args.resolution = args.resolution or native_size(model)
    as_prepared = args.use_aspect_ratio_buckets is None and not args.aspect_ratio_buckets
    args.use_aspect_ratio_buckets = choose_buckets(args.use_aspect_ratio_buckets, args.aspect_ratio_buckets, data)
    if accelerator.is_main_process:
        cli.show_settings(args)
        device = devices.describe_device(accelerator.device)
        print(f"device: {device}; precision: {precision.reason}; batch: {batch}; trained: {describe_trained(args)}")
        print(f"images: {describe_shapes(args, as_prepared)}")
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    tracking = Tracking(tracker_names(args.report_to), args.logging_dir, cli.settings_of(args))
    check_needs(args, model)
    schedule = models.load_noise_scheduler(model)
    return Start(
        accelerator=accelerator,
        precision=precision,
        plan=plan,
        tracking=tracking,
        places=places,
        data=data,
        cache=cache,
        model=model,
        family=models.model_family(model),
        noise_scheduler=training_scheduler(schedule, args.prediction_type, args.zero_terminal_snr),
        shapes=fitting_shapes(model, args.resolution, args.use_aspect_ratio_buckets, args.aspect_ratio_buckets),
    )


def settle_sharding(args: argparse.Namespace, processes: int) -> bool:
    """Whether weights are divided among the processes: --shard, or without it a launch config for FSDP, says so."""
    if not (parse_flag_from_env("ACCELERATE_USE_FSDP") if args.shard is None else args.shard):
        return False
    if args.optimizer != "adamw":
        raise UserError(f"--shard: not with --optimizer {args.optimizer}, which needs whole weights; use adamw")
    if getattr(args, "train_token", None):
        raise UserError(f"--shard: not with --train_token {args.train_token}; leave one of the two out")
    if processes == 1:
        start = "accelerate launch --config_file accelerate_configs/fsdp.yaml"
        logger.warning("--shard: one process has all the weights; start several with %s", start)
    return processes > 1


def describe_batch(plan: BatchPlan, effective: int | None) -> str:
    """`effective`: --effective_batch_size, if it is given."""
    if plan.processes == 1:
        return str(plan)
    return f"{plan} ({'the effective batch is divided among them' if effective else 'each its own batch'})"


def check_needs(args: argparse.Namespace, model: str) -> None:
    """Refuse now what would fail later: a token or package that is missing, a layer that the model lacks."""
    if args.push_to_hub:
        hub_token()
    if args.optimizer == "adamw8bit":
        load_adamw8bit()
    if args.lora_layers != list(UNET_TARGETS):
        check_targets(models.build_part(model, "unet"), args.lora_layers)


def check_kept(output: Path, resume: str) -> None:
    """Refuse, before --overwrite removes anything, a checkpoint that it would remove, or that is not there."""
    found = checkpoints.find_checkpoint(output, resume)
    if found and found.resolve().is_relative_to(output.resolve()):
        raise UserError(
            f"--resume_from_checkpoint {resume}: --overwrite would remove it with the run in {output}; leave "
            "--overwrite out, or give another --output_dir"
        )


def describe_trained(args: argparse.Namespace) -> str:
    """All weights, or the LoRA's rank and alpha, with the factor that they make."""
    divided = "; all are divided among the processes" if args.shard else ""
    if getattr(args, "method", "lora") == "full":
        return f"all weights{divided}"
    scale = args.lora_alpha / (args.rank**0.5 if args.use_rslora else args.rank)
    return f"a LoRA of rank {args.rank}, alpha {args.lora_alpha:g} (scaled by {scale:.3g}){divided}"


def check_patience(args: argparse.Namespace, held_out: Sequence[Record]) -> None:
    """Refuse early stopping without a held-out loss."""
    if args.early_stopping_patience and not held_out:
        raise UserError(
            f"--early_stopping_patience {args.early_stopping_patience}: the data has no held-out images to measure the "
            "loss on; add --held_out 0.1, or prepare it with a val split"
        )


def fit_batch(
    plan: BatchPlan, accelerator: Accelerator, together: bool, estimate: Callable[[int], Phases]
) -> BatchPlan:
    """The plan with the largest micro-batch whose estimate fits in the device's free memory.

    Where the processes compute `together`, it is the main process's.
    """

    def fit() -> int:
        return largest_batch(plan.micro, devices.device_memory(accelerator.device)[1], estimate)

    plan = plan._replace(micro=in_main_process(accelerator, fit) if together else fit())
    logger.warning("--train_batch_size auto: %s", plan)
    return plan


def describe_start(start: Start, plan: BatchPlan, run: str) -> list[tuple[str, str]]:
    """What a dry run says first; `run`: the state of the run folder."""
    rows = [("precision", start.precision.reason), ("batch", str(plan)), ("run", run)]
    return rows + sync.describe_places(start.places)


def open_folder(
    args: argparse.Namespace, start: Start, free: set[str], describe_end: Callable[[], str | None]
) -> list[Sync] | None:
    """Open --output_dir, filled from --sync_to where that is further; None if no step is left to train.

    Returned, in the main process: what keeps the folder elsewhere too, if anything does. `free`: the settings that a
    resumed run may change.
    """
    settings, syncs = start.tracking.settings, []

    def fill(folder: Path) -> None:
        for place in start.places:
            syncs.append(sync.open_sync(place, folder, "train", limit=args.checkpoints_total_limit))
            if args.overwrite:
                sync.erase(syncs[0])
            sync.fetch_run(syncs[0], settings, free, args.resume_from_checkpoint)

    def open_here() -> str | None:
        return runs.open_run(args.output_dir, settings, free, args.overwrite, describe_end, fill=fill)

    message = in_main_process(start.accelerator, open_here)
    if not message:
        for one in syncs:
            sync.start_sending(one)
        return syncs
    start.accelerator.print(message)
    if not sync.finish_all(syncs):
        raise UserError(f"--sync_to {args.sync_to}: not all of it is there; give the same command again")
    if args.push_to_hub and start.accelerator.is_main_process:
        push_run(args.output_dir, args.hub_model_id)
    return None


def plan_checks(
    args: argparse.Namespace,
    start: Start,
    held_out: list[Example],
    prompts: list[str],
    loader: Loader,
    encode: Callable[[list[str]], Text],
) -> Checks:
    """What a validation computes: the loss of held-out images, and images of the prompts in turn."""
    timesteps = start.noise_scheduler.config.num_train_timesteps
    return Checks(
        held_out=held_out_batches(held_out, args.num_validation_samples, timesteps, loader),
        prompts=[prompts[i % len(prompts)] for i in range(args.num_validation_images)],
        seeds=[args.seed + i for i in range(args.num_validation_images)],
        model=start.model,
        family=start.family,
        sampling=read_sampling(args),
        scheduler=start.noise_scheduler,
        encode=encode,
        autocast=devices.autocast(start.accelerator.device, start.precision),
        vae=args.pretrained_vae_model_name_or_path,
    )


def read_facts(
    args: argparse.Namespace, start: Start, adapter: Adapter | None, data: str, images: int, trigger: str | None
) -> dict[str, str]:
    """What the files of the result say of themselves; `data` is the fingerprint of what is trained on."""
    return lora.describe_training(
        args.pretrained_model_name_or_path,
        data,
        rank=adapter and adapter.rank,
        alpha=adapter and adapter.alpha,
        trigger_word=trigger,
        resolution=args.resolution,
        images=images,
        prediction_type=start.noise_scheduler.config.prediction_type,
    )


def read_adapter(args: argparse.Namespace) -> Adapter:
    dropout, layers = args.lora_dropout, tuple(args.lora_layers)
    return Adapter(args.rank, args.lora_alpha, dropout, layers, args.use_dora, args.use_rslora)


def read_optimizer(args: argparse.Namespace) -> OptimizerSettings:
    betas = args.adam_beta1, args.adam_beta2
    return OptimizerSettings(args.optimizer, betas, args.adam_weight_decay, args.adam_epsilon)


def read_schedule(args: argparse.Namespace) -> Schedule:
    return Schedule(args.lr_scheduler, args.lr_warmup_steps, args.lr_num_cycles, args.lr_power)


def cache_folder(args: argparse.Namespace) -> Path:
    return args.latent_cache_dir or args.output_dir.parent / "cache"


def read_here(args: argparse.Namespace, name: str) -> Path:
    """The path of what the flag of this name gives; what lies in a bucket is fetched."""
    return fetch(getattr(args, name), cache_folder(args), f"--{name}")


def read_source(args: argparse.Namespace, folder_flag: str) -> Source:
    """The data that the flags name; `folder_flag` is the trainer's own for a folder, which is fetched from a bucket."""
    flag = "--dataset_name" if args.dataset_name else f"--{folder_flag}"
    name = args.dataset_name or str(read_here(args, folder_flag))
    return Source(name, flag, args.image_column, args.caption_column, args.dataset_config_name)


def read_recipe(args: argparse.Namespace, plan: BatchPlan) -> Recipe:
    """What is trained, and how, as far as the shared flags say."""
    scale = plan.effective if args.scale_lr else 1
    return Recipe(
        adapter=read_adapter(args),
        learning_rate=args.learning_rate * scale,
        text_encoder_lr=(args.text_encoder_lr or args.learning_rate) * scale,
        optimizer=read_optimizer(args),
        seed=args.seed,
        train_text_encoder=args.train_text_encoder,
        use_ema=args.use_ema,
        gradient_checkpointing=args.gradient_checkpointing,
        xformers=args.enable_xformers_memory_efficient_attention,
        compiled=args.compile,
        vae=args.pretrained_vae_model_name_or_path,
        kohya_format=args.output_kohya_format,
        shards=plan.processes if args.shard else 1,
    )


def read_sampling(args: argparse.Namespace) -> Sampling:
    """How validation images, and class images, are generated."""
    return Sampling(args.validation_inference_steps, args.validation_guidance_scale, args.resolution)


def asked_length(args: argparse.Namespace) -> list[int | None]:
    """What decides when a training ends."""
    return [args.max_train_steps, args.num_train_epochs, args.early_stopping_patience]


def describe_end(args: argparse.Namespace, count_examples: Callable[[], int]) -> str | None:
    """What to say where the run in --output_dir has no step left to train, else None (see runs.describe_end).

    The examples are counted only where epochs are asked for.
    """

    def count_asked() -> int:
        return count_steps(args, count_examples() if args.num_train_epochs else 0)[0]

    early = "stopped_early" in runs.read_summary(args.output_dir)
    if early:
        longer = "give a larger --early_stopping_patience, or none"
    elif args.lr_scheduler.startswith("constant"):
        longer = f"give more {'--num_train_epochs' if args.num_train_epochs else '--max_train_steps'}"
    else:
        longer = f"give another --output_dir: --lr_scheduler {args.lr_scheduler} ends with the length it began with"
    asked = asked_length(args)
    out = args.output_dir
    missing = args.output_kohya_format and not (out / kohya.lora_name(out.resolve().name)).exists()
    return runs.describe_end(out, asked, args.resume_from_checkpoint, count_asked, bool(missing), longer=longer)


def read_views(args: argparse.Namespace) -> Views:
    """How images are cropped, mirrored and resized."""
    crops = 1 if args.center_crop else args.cache_crops
    return Views(crops, args.random_flip, args.image_interpolation_mode)


def count_steps(args: argparse.Namespace, examples: int) -> tuple[int, int]:
    """The steps of the training, and those from one validation to the next; epochs count where they are given."""
    epoch = examples / args.effective_batch_size
    last = math.ceil(args.num_train_epochs * epoch) if args.num_train_epochs else args.max_train_steps
    return last, math.ceil(args.validation_epochs * epoch) if args.validation_epochs else args.validation_steps


def read_load(
    args: argparse.Namespace, recipe: Recipe, precision: Precision, shapes: list[tuple[int, int]], micro_batch: int
) -> Load:
    """What decides the memory of a training with so many samples at once, of the largest of the shapes."""
    width, height = largest_shape(shapes)
    return Load(
        adapter=recipe.adapter,
        micro_batch=micro_batch,
        height=height,
        width=width,
        train_text_encoder=recipe.trains_texts,
        dtype=precision.dtype if recipe.adapter else torch.float32,
        autocast=precision.dtype if precision.mixed_precision != "no" else None,
        gradient_checkpointing=args.gradient_checkpointing,
        optimizer=args.optimizer,
        ema=args.use_ema,
        vae_batch=encoded_at_once(working_device()),
        shards=recipe.shards,
    )
