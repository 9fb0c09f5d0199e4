"""From the flags of the trainers of images to what their functions take: the start, the recipe, the data."""

import argparse
import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from diffusers import FlowMatchEulerDiscreteScheduler

from families import kohya, lora, lora_mix, models, offloading, whole_file
from families.diffusion import Diffusion, Features, training_scheduler
from families.flow import Flow, Noising, Weighting, sigma_levels
from families.init_lora import load_init, parse_init
from families.lora import Adapter, check_targets
from families.lora_mix import Lora, fetch_lora, parse_lora, split_spec
from families.models import TextReading
from families.names import FAMILIES, LABELS
from families.quantized import load_bitsandbytes
from families.sampler import Sampling
from families.sampling import choose_guidance, choose_steps, native_size
from training.batches import BatchPlan, Loader
from training.build import Recipe
from training.dry_run import choose_savers, largest_batch
from training.encoding import encoded_at_once
from training.examples import Example, Record, Views, fitting_shapes, largest_shape, shuffle_tags
from training.flags import refuse_others
from training.loss_masks import MaskReader, mask_reader
from training.memory import Load, Phases
from training.model_card import hub_token
from training.optimizers import check_matrices, check_options, load_adamw8bit
from training.preservation import Preservation, preserve
from training.read_data import DataSet, choose_buckets
from training.run import Tracking
from training.starting import Start, announce, begin, read_optimizer
from training.state import Training
from training.validation import Checks, held_out_batches
from utils import devices
from utils.catalogue import Source
from utils.cli import OF_ONE_PROCESS, UserError, spell_flag
from utils.dataset import list_folders, split_repeats
from utils.devices import Precision, working_device
from utils.parallel import in_main_process
from utils.storage import fetch

logger = logging.getLogger(__name__)
# Flags of one trainer or both whose folders are read, those of data with all that is in them.
OF_DATA = ("train_data_dir", "instance_data_dir")
OF_MODELS = ("pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "model_config", "mask_loss")
# Flags that the trainers refuse for a model without a UNet
OF_UNETS = ("train_text_encoder", "train_token", "enable_xformers_memory_efficient_attention")


@dataclass(frozen=True)
class ImageStart(Start):
    """What a trainer of images has before it looks at its data.

    `data`: folders here, or a hub id; `shapes`: those that images are fitted to.
    """

    tracking: Tracking
    data: list[str]
    cache: Path
    model: str
    family: str
    noising: Noising
    shapes: list[tuple[int, int]]


def describe_shapes(args: argparse.Namespace, as_prepared: bool) -> str:
    """`512x512 pixels`, or how the images keep their proportions; `as_prepared`: no flag says which."""
    if args.aspect_ratio_buckets:
        return f"in the nearest of the shapes {args.aspect_ratio_buckets}"
    size = f"{args.resolution}x{args.resolution} pixels"
    if not args.use_aspect_ratio_buckets:
        return size
    return f"with their proportions, as large as {size}{', as the dataset was prepared' if as_prepared else ''}"


def start_trainer(args: argparse.Namespace, folder_flag: str) -> ImageStart:
    """Start accelerate, settle and print the settings, find the model and the data (see `read_data_sets`).

    Of args, this settles --effective_batch_size, --lora_layers, --resolution, --guidance_scale,
    --use_aspect_ratio_buckets and how validation images are made, which depend on other things.
    """
    models_read = {name: getattr(args, name, None) for name in OF_MODELS}
    models_read |= {"base_lora": [split_spec(spec)[0] for spec in args.base_lora], "init_lora": args.init_lora}
    data_read: dict[str, Any] = {name: list_folders(getattr(args, name, None)) for name in OF_DATA}
    start = begin(args, data_read | {"class_data_dir": getattr(args, "class_data_dir", None)}, models_read)
    cache = cache_folder(args)
    model = models.resolve_model(args.pretrained_model_name_or_path, cache / "models", args.model_config)
    family = models.model_family(model)
    refuse_for_transformers(args, family)
    args.shard = settle_sharding(args, start.plan.processes, parse_flag_from_env("ACCELERATE_USE_FSDP"))
    data = [one.source.name for one in read_data_sets(args, folder_flag)]
    if args.pretrained_vae_model_name_or_path:
        models.check_vae(model, args.pretrained_vae_model_name_or_path)
    args.lora_layers = args.lora_layers or default_layers(model, family)
    args.resolution = args.resolution or native_size(model)
    steps = "validation_inference_steps", args.validation_inference_steps
    args.validation_inference_steps = choose_steps(model, family, *steps)
    guidance = "validation_guidance_scale", args.validation_guidance_scale, args.recipe_keys
    args.validation_guidance_scale = choose_guidance(model, family, *guidance)
    settle_guidance(args, model, family)
    as_prepared = args.use_aspect_ratio_buckets is None and not args.aspect_ratio_buckets
    args.use_aspect_ratio_buckets = choose_buckets(args.use_aspect_ratio_buckets, args.aspect_ratio_buckets, data)
    tracking = announce(args, start, describe_trained(args, start.plan.processes))
    start.accelerator.print(f"images: {describe_shapes(args, as_prepared)}")
    check_needs(args, model, family)
    return ImageStart(
        **vars(start),
        tracking=tracking,
        data=data,
        cache=cache,
        model=model,
        family=family,
        noising=read_noising(args, model, family),
        shapes=fitting_shapes(model, args.resolution, args.use_aspect_ratio_buckets, args.aspect_ratio_buckets),
    )


def settle_guidance(args: argparse.Namespace, model: str, family: str) -> None:
    """Of args, --guidance_scale: the number that a transformer with `guidance_embeds` reads in training.

    For others of flow matching, whose diffusers scripts take it too, it is warned of, and left out.
    """
    if models.reads_guidance(model):
        args.guidance_scale = FAMILIES[family].TRAINING_GUIDANCE if args.guidance_scale is None else args.guidance_scale
    elif args.guidance_scale is not None and FAMILIES[family].SCHEDULER != "DDPMScheduler":
        message = "--guidance_scale %g does nothing for %s that reads none, as in diffusers' script; images have %s"
        logger.warning(message, args.guidance_scale, LABELS[family], "--validation_guidance_scale")
        args.guidance_scale = None


def read_noising(args: argparse.Namespace, model: str, family: str) -> Noising:
    """How noise is added and weighted; refuses flags of the other kind of noise."""
    scheduler = models.load_noise_scheduler(model)
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    refuse_others(args, is_flow, LABELS[family])
    if not is_flow:
        schedule = training_scheduler(scheduler, args.prediction_type, args.zero_terminal_snr)
        return Diffusion(schedule, args.snr_gamma)
    given = {
        "weighting_scheme": args.weighting_scheme,
        "logit_mean": args.logit_mean,
        "logit_std": args.logit_std,
        "mode_scale": args.mode_scale,
    }
    weighting = Weighting(**{name: value for name, value in given.items() if value is not None})
    step = models.vae_step(models.read_config(model, "vae/config.json"))

    def mu(size: tuple[int, int]) -> float:
        return FAMILIES[family].mu(scheduler.config, *(side // step for side in size))

    return Flow(scheduler, sigma_levels(scheduler, args.timestep_shift or "auto", mu), weighting)


def settle_sharding(args: argparse.Namespace, processes: int, launched: bool) -> bool:
    """Whether several processes divide the weights: --shard says so, or else a launch config for FSDP (`launched`)."""
    if not (launched if args.shard is None else args.shard):
        return False
    name = "--shard" if args.shard else "--config_file of the launcher (distributed_type: FSDP)"
    instead = "leave --shard out" if args.shard else "add --no-shard, or start with another launch config"
    if args.optimizer != "adamw":
        what = f"not with --optimizer {args.optimizer}, which needs whole weights; use adamw, or {instead}"
        raise UserError(f"{name}: {what}")
    for other in ("train_token", "quantize_base", "blocks_on_cpu"):
        if value := getattr(args, other, None):
            raise UserError(f"{name}: not with --{other} {value}; leave that out, or {instead}")
    if processes == 1:
        start = "start several with accelerate launch --config_file accelerate_configs/fsdp.yaml"
        logger.warning("%s: one process has all the weights; %s", name, start)
    return True


def refuse_for_transformers(args: argparse.Namespace, family: str) -> None:
    """Refuse what only a model with a UNet can be trained for."""
    if FAMILIES[family].DENOISER == "unet":
        return
    for name in OF_UNETS:
        if value := getattr(args, name, None):
            problem = f"not for {LABELS[family]}, of which the transformer alone is trained; leave it out"
            raise UserError(f"{spell_flag(name, value)}: {problem}")
    if getattr(args, "method", "lora") == "full":
        raise UserError(f"--method full: not for {LABELS[family]}, of which only a LoRA is trained; leave --method out")


def check_needs(args: argparse.Namespace, model: str, family: str) -> None:
    """Refuse now what would fail later: a token or package that is missing, what the model lacks or can't."""
    denoiser = FAMILIES[family].DENOISER
    for name in ("quantize_base", "quantize_text_encoder"):
        if kind := getattr(args, name):
            load_bitsandbytes(name, kind)
            if working_device().type == "mps":
                raise UserError(f"--{name} {kind}: not on an Apple GPU; leave it out")
    if args.blocks_on_cpu:
        check_blocks(args.blocks_on_cpu, model, family)
    for one in read_base_loras(args):
        lora_mix.check_mergeable(one, args.pretrained_model_name_or_path, model, family)
    if args.output_kohya_format and not FAMILIES[family].KOHYA_BASES:
        raise UserError(f"--output_kohya_format: it has no names for {LABELS[family]}; leave it out")
    models.check_reading(model, family, read_reading(args))
    if args.push_to_hub:
        hub_token()
    if args.optimizer == "adamw8bit":
        load_adamw8bit()
    check_options(read_optimizer(args))
    if args.optimizer == "muon":
        adapter = read_adapter(args) if getattr(args, "method", "lora") == "lora" else None
        check_matrices(lora.choose_parameters(models.build_part(model, denoiser), adapter))
    if args.lora_layers != default_layers(model, family):
        check_targets(models.build_part(model, denoiser), args.lora_layers)
    if one := read_init_lora(args):
        refuse_unfit_init(args, one, model, family)


def refuse_unfit_init(args: argparse.Namespace, one: Lora, model: str, family: str) -> None:
    """Refuse a LoRA to continue from that was trained on another model, or with other settings of the adapter."""
    if not args.allow_other_base:
        lora_mix.check_base(one, args.pretrained_model_name_or_path)
        lora_mix.check_noise(one, model, args.prediction_type, args.zero_terminal_snr)
        lora_mix.check_reading(one, read_reading(args))
    lora_mix.check_lora(one, args.pretrained_model_name_or_path, model, family)
    adapter, denoiser = read_adapter(args), models.build_part(model, FAMILIES[family].DENOISER)
    lora.attach_lora(denoiser, adapter)
    names = FAMILIES[family].TEXT_ENCODERS if args.train_text_encoder else ()
    encoders = [models.build_part(model, name) for name in names]
    for encoder in encoders:
        lora.attach_lora(encoder, adapter, lora.TEXT_TARGETS)
    load_init(one, adapter, denoiser, encoders, family)


def check_blocks(count: int, model: str, family: str) -> None:
    """Refuse --blocks_on_cpu where so many blocks are not there, or where they would gain nothing."""
    flag, label = f"--blocks_on_cpu {count}", LABELS[family]
    if FAMILIES[family].DENOISER == "unet":
        raise UserError(f"{flag}: not for {label}, whose UNet has no blocks of a transformer; leave it out")
    there = len(offloading.block_bytes(models.build_part(model, FAMILIES[family].DENOISER)))
    if count > there:
        raise UserError(f"{flag}: the transformer of {label} has {there} blocks here; give {there} at most")
    if (device := working_device().type) == "mps":
        raise UserError(f"{flag}: not on an Apple GPU, whose memory is the CPU's; leave it out")
    if device == "cpu" or count <= 2:
        why = "that is where all are" if device == "cpu" else "two of them are on the GPU at once; give 3 or more"
        logger.warning("%s saves nothing: %s", flag, why)


def default_layers(model: str, family: str) -> list[str]:
    """Those that a LoRA of the model has where --lora_layers names none."""
    return list(FAMILIES[family].lora_targets(models.denoiser_config(model)))


def describe_trained(args: argparse.Namespace, processes: int) -> str:
    """All weights, or the LoRA's rank and alpha, with the factor that they make."""
    divided = "; all are divided among the processes" if args.shard and processes > 1 else ""
    if getattr(args, "method", "lora") == "full":
        return f"all weights{divided}"
    scale = args.lora_alpha / (args.rank**0.5 if args.use_rslora else args.rank)
    label = lora.LABELS.get(args.adapter, "LoRA")
    return f"a {label} of rank {args.rank}, alpha {args.lora_alpha:g} (scaled by {scale:.3g}){divided}"


def check_patience(args: argparse.Namespace, held_out: Sequence[object]) -> None:
    """Refuse early stopping without a held-out loss."""
    if args.early_stopping_patience and not held_out:
        raise UserError(
            f"--early_stopping_patience {args.early_stopping_patience}: the data has nothing held out to measure the "
            "loss on; add --held_out 0.1, or prepare it with a val split"
        )


def fit_memory(
    args: argparse.Namespace, recipe: Recipe, start: ImageStart, estimate: Callable[[int], Phases]
) -> Recipe:
    """The recipe with gradient checkpointing and blocks on the CPU only as far as the main process's device needs them.

    Of args, this settles both. Where the user has chosen a number of blocks, it stays.
    """
    if args.blocks_on_cpu:
        return recipe
    micro = 1 if args.train_batch_size == "auto" else start.plan.micro

    def estimate_with(checkpointing: bool) -> Phases:
        args.gradient_checkpointing = checkpointing
        return estimate(micro)

    def decide() -> tuple[bool, int]:
        free = devices.device_memory(start.accelerator.device)[1]
        return choose_savers(free, movable_blocks(args, start), estimate_with)

    args.gradient_checkpointing, args.blocks_on_cpu = in_main_process(start.accelerator, decide)
    on, kept = "on" if args.gradient_checkpointing else "off", args.blocks_on_cpu
    logger.warning("--memory auto: gradient checkpointing is %s%s", on, f"; --blocks_on_cpu {kept}" if kept else "")
    return replace(recipe, gradient_checkpointing=args.gradient_checkpointing, blocks_on_cpu=kept)


def movable_blocks(args: argparse.Namespace, start: ImageStart) -> list[int]:
    """Bytes of each block that --memory auto may keep on the CPU."""
    denoiser, elsewhere = FAMILIES[start.family].DENOISER, start.accelerator.device.type == "cuda"
    if not elsewhere or denoiser == "unet" or args.shard or args.compile or args.quantize_base:
        return []
    return offloading.block_bytes(models.build_part(start.model, denoiser, start.precision.dtype))


def fit_batch(
    plan: BatchPlan, accelerator: Accelerator, together: bool, estimate: Callable[[int], Phases]
) -> BatchPlan:
    """The plan with the largest micro-batch whose estimate fits in the device's free memory.

    Where the processes compute `together`, it is the main process's.
    """

    def fit() -> int:
        return largest_batch(plan.micro, devices.device_memory(accelerator.device)[1], estimate)

    plan = plan._replace(micro=in_main_process(accelerator, fit) if together else fit())
    logger.warning("--train_batch_size auto: %s", plan, extra={} if together else OF_ONE_PROCESS)
    return plan


def plan_checks(
    args: argparse.Namespace,
    start: ImageStart,
    held_out: list[Example],
    prompts: list[str],
    loader: Loader,
    encode: Callable[[list[str]], list[Features]],
) -> Checks:
    """What a validation computes: the loss of held-out images, and images of the prompts in turn."""
    return Checks(
        held_out=held_out_batches(held_out, args.num_validation_samples, start.noising, loader),
        prompts=[prompts[i % len(prompts)] for i in range(args.num_validation_images)],
        seeds=[args.seed + i for i in range(args.num_validation_images)],
        model=start.model,
        family=start.family,
        sampling=read_sampling(args),
        noising=start.noising,
        encode=encode,
        autocast=devices.autocast(start.accelerator.device, start.precision),
        vae=args.pretrained_vae_model_name_or_path,
        guidance=args.guidance_scale,
    )


def plan_preservation(
    args: argparse.Namespace,
    training: Training,
    family: str,
    encode: Callable[[list[str]], list[Features]],
    autocast: Callable[[], AbstractContextManager],
) -> Callable[..., torch.Tensor] | None:
    """What a step calls to keep the base model's prediction of --class_prompt; None where that isn't asked for."""
    if not args.preserve_base:
        return None
    weight = args.preserve_base / args.effective_batch_size
    modules, guidance, scaler = training.modules, args.guidance_scale, training.scaler
    return functools.partial(
        preserve, Preservation(args.class_prompt, weight, family, modules, encode, autocast, guidance, scaler)
    )


def read_facts(
    args: argparse.Namespace, start: ImageStart, recipe: Recipe, data: str, images: int, trigger: str | None
) -> dict[str, str]:
    """What the files of the result say of themselves; `data` is the fingerprint of what is trained on."""
    return lora.describe_training(
        args.pretrained_model_name_or_path,
        data,
        adapter=args.adapter if args.adapter in lora.MARKS else None,
        denoiser=FAMILIES[start.family].DENOISER if args.adapter in lora.MARKS else None,
        rank=recipe.adapter and recipe.adapter.rank,
        alpha=recipe.adapter and recipe.adapter.alpha,
        base_lora=", ".join(map(lora_mix.describe, recipe.base_loras)),
        init_lora=recipe.init_lora and lora_mix.describe(recipe.init_lora),
        quantized_base=recipe.quantized,
        sampling=describe_sampling(args, start),
        trigger_word=trigger,
        resolution=args.resolution,
        images=images,
        prediction_type=start.noising.scheduler.config.get("prediction_type"),
        zero_terminal_snr=args.zero_terminal_snr,
        clip_skip=args.clip_skip,
        max_sequence_length=args.max_sequence_length if FAMILIES[start.family].DENOISER == "unet" else None,
    )


def describe_sampling(args: argparse.Namespace, start: ImageStart) -> str | None:
    """The pipeline's arguments for validation images, beside prompt and size; of DDPM, SDXL's clip skip alone."""
    if isinstance(start.noising, Diffusion):  # the pipelines of SD 1.x and 2.x fail on one with transformers 5
        return f"clip_skip={args.clip_skip}" if args.clip_skip and start.family == "sdxl" else None
    family = FAMILIES[start.family]
    guidance = family.PIPELINE_GUIDANCE.format(args.validation_guidance_scale)
    limit = models.token_limit(start.model, start.family, args.max_sequence_length)
    length = f", max_sequence_length={limit}" if limit != family.MAX_SEQUENCE_LENGTH else ""  # which is the pipeline's
    return f"num_inference_steps={args.validation_inference_steps}, {guidance}{length}"


def read_base_loras(args: argparse.Namespace) -> tuple[Lora, ...]:
    flag, cache = "--base_lora", cache_folder(args)
    return tuple(parse_lora(fetch_lora(spec, cache, flag), flag) for spec in args.base_lora)


def read_init_lora(args: argparse.Namespace) -> Lora | None:
    return parse_init(fetch_lora(args.init_lora, cache_folder(args), "--init_lora")) if args.init_lora else None


def read_adapter(args: argparse.Namespace) -> Adapter:
    dropout, layers = args.lora_dropout, tuple(args.lora_layers)
    kind = args.adapter if args.adapter in lora.MARKS else "lora"
    factor = args.lokr_factor or -1  # as peft says that there is none
    return Adapter(args.rank, args.lora_alpha, dropout, layers, args.use_dora, args.use_rslora, kind, factor)


def cache_folder(args: argparse.Namespace) -> Path:
    return args.latent_cache_dir or args.output_dir.parent / "cache"


def draw_orders(args: argparse.Namespace, records: list[Record]) -> list[Record]:
    """The records to train on, with the orders of their tags that --shuffle_tags asks for."""
    if not args.shuffle_tags:
        return records
    keep = args.keep_tokens or 0
    ordered = [shuffle_tags(one, args.shuffle_tags, keep) for one in records]
    if all(len(set(after.captions)) <= max(1, len(before.captions)) for before, after in zip(records, ordered)):
        logger.warning("--shuffle_tags %d: no caption has two tags after its first %d", args.shuffle_tags, keep)
    return ordered


def mask_folders(args: argparse.Namespace) -> list[Path | None]:
    """The folders of --mask_loss, one for each data set; None: its images have no masks."""
    given = args.mask_loss if isinstance(args.mask_loss, list) else [args.mask_loss]
    return [None if str(one) == "none" else fetch(one, cache_folder(args), "--mask_loss") for one in given]


def read_masks(args: argparse.Namespace, examples: list[Example]) -> tuple[MaskReader | None, dict[str, str]]:
    """The masks of --mask_loss, if it is given, and what they add to the identity of the data."""
    if not args.mask_loss:
        return None, {}
    masks, sha256 = mask_reader(mask_folders(args), examples)
    return masks, {"masks": sha256}


def read_here(args: argparse.Namespace, name: str) -> Path:
    """The path of what the flag of this name gives; what lies in a bucket is fetched."""
    return fetch(getattr(args, name), cache_folder(args), f"--{name}")


def read_data_sets(args: argparse.Namespace, folder_flag: str) -> list[DataSet]:
    """The data that the flags name; `folder_flag` is the trainer's own for folders, fetched from buckets."""
    columns = args.image_column, args.caption_column, args.dataset_config_name
    read = functools.partial(Source, several_captions=args.multiple_captions)
    if args.dataset_name:
        sources, repeats = [read(args.dataset_name, "--dataset_name", *columns)], [1]
    else:
        flag, cache, given = f"--{folder_flag}", cache_folder(args), getattr(args, folder_flag)
        repeats = [split_repeats(one)[1] for one in (given if isinstance(given, list) else [given])]
        sources = [read(str(fetch(name, cache, flag)), flag, *columns) for name in list_folders(given)]
    return list(map(DataSet, sources, repeats, args.caption_prefix or [""] * len(sources)))


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
        reading=read_reading(args),
        base_loras=read_base_loras(args),
        init_lora=read_init_lora(args),
        quantized=args.quantize_base,
        kohya_format=args.output_kohya_format,
        shards=plan.processes if args.shard else 1,
        blocks_on_cpu=args.blocks_on_cpu,
    )


def read_reading(args: argparse.Namespace) -> TextReading:
    """How captions and prompts are read."""
    return TextReading(args.max_sequence_length, args.clip_skip or 0, args.quantize_text_encoder)


def read_sampling(args: argparse.Namespace) -> Sampling:
    """How validation images, and class images, are generated."""
    return Sampling(args.validation_inference_steps, args.validation_guidance_scale, args.resolution)


def lacks_other_format(args: argparse.Namespace) -> bool:
    """Whether a file for A1111 and ComfyUI, which is asked for, is still to be written."""
    name = args.output_dir.resolve().name
    asked = [kohya.lora_name(name)] if args.output_kohya_format else []
    asked += [whole_file.whole_name(name)] if getattr(args, "output_single_file", False) else []
    return not all((args.output_dir / one).exists() for one in asked)


def read_views(args: argparse.Namespace) -> Views:
    """How images are cropped, mirrored and resized."""
    crops = 1 if args.center_crop else args.cache_crops
    return Views(crops, args.random_flip, args.image_interpolation_mode)


def read_load(
    args: argparse.Namespace, recipe: Recipe, precision: Precision, shapes: list[tuple[int, int]], micro_batch: int
) -> Load:
    """What decides the memory of a training with so many samples at once, of the largest of the shapes."""
    width, height = largest_shape(shapes)
    shows = args.num_validation_images and (args.validation_steps or args.validation_epochs)
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
        amsgrad=bool(dict(recipe.optimizer.options).get("amsgrad")),
        ema=args.use_ema,
        quantized=args.quantize_base,
        quantized_texts=args.quantize_text_encoder,
        text_length=args.max_sequence_length,
        vae_batch=encoded_at_once(working_device()),
        sampling=read_sampling(args) if shows else None,
        shards=recipe.shards,
        blocks_on_cpu=args.blocks_on_cpu,
    )
