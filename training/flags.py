"""Flags that the trainers share, in groups, and what argparse can't check of them.

Their names are those of the diffusers examples wherever one exists.
"""

import argparse
import logging
import os
import re
from argparse import BooleanOptionalAction as OnOff
from pathlib import Path
from typing import Any

from families.diffusion import HUBER_C, LOSSES
from families.flow import WEIGHTING_SCHEMES
from families.quantized import BYTES
from training.batches import MOST_A_STEP
from utils import cli, sync
from utils.cli import (
    Range,
    at_once,
    batch_size,
    learning_rate,
    pixels,
    positive,
    read_place,
    seed_number,
    share,
    zero_or_more,
)
from utils.dataset import list_folders, split_repeats

logger = logging.getLogger(__name__)
SCHEDULES = "linear cosine cosine_with_restarts polynomial constant constant_with_warmup".split()
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor")
IMAGE_OPTIMIZERS = (*OPTIMIZERS, "adamwschedulefree", "muon")
OR_NOT = ", or leave it out"
BELOW_ONE = Range(0, 1, below=True)
MICRO_BATCH = 2  # samples at once
MOST_REPEATS = 10_000
INTERPOLATIONS = "lanczos bicubic bilinear hamming box nearest nearest_exact".split()
# Flags of diffusers' training scripts that are refused, and why.
REFUSED = {
    "hub_token": "put the token into the environment as HF_TOKEN, and leave this out",
    "local_rank": "accelerate launch sets it; leave it out",
    "cache_dir": "set HF_HOME in the environment instead",
    "revision": "give the folder of that revision as --pretrained_model_name_or_path",
    "variant": "give a model whose files have plain names; precision is chosen by --mixed_precision",
    "no-aspect_ratio_buckets": "the switch is --no-use_aspect_ratio_buckets",
    "enable_npu_flash_attention": "Ascend NPUs are not supported; leave it out",
    "debug_loss": "metrics.jsonl has the loss by quarter of the timesteps, and a step that is not finite is explained",
    "tracker_project_name": "set WANDB_PROJECT, COMET_PROJECT_NAME or MLFLOW_EXPERIMENT_NAME in the environment",
}
# Flags of kohya's sd-scripts that are refused, and what to use here.
FOR_KOHYA = {
    "network_module": "use --adapter, or leave it out for a LoRA",
    "network_dim": "use --rank",
    "network_alpha": "use --lora_alpha",
    "network_args": "use --lora_layers, which may name convolutions",
    "network_dropout": "use --lora_dropout",
    "network_weights": "use --init_lora",
    "network_train_unet_only": "leave it out: so it is without --train_text_encoder",
    "base_weights": "use --base_lora FILE:WEIGHT",
    "base_weights_multiplier": "use --base_lora FILE:WEIGHT",
    "unet_lr": "use --learning_rate",
    "optimizer_type": "use --optimizer",
    "output_name": "use --output_dir runs/NAME",
    "max_train_epochs": "use --num_train_epochs",
    "lr_scheduler_num_cycles": "use --lr_num_cycles",
    "lr_scheduler_power": "use --lr_power",
    "min_snr_gamma": "use --snr_gamma",
    "huber_schedule": "leave it out: --huber_c is constant",
    "discrete_flow_shift": "use --timestep_shift",
    "timestep_sampling": "use --timestep_shift",
    "max_token_length": "use --max_sequence_length: 152 for 150, 227 for 225",
    "shuffle_caption": "use --shuffle_tags 10",
    "enable_wildcard": "use --multiple_captions",
    "caption_dropout_rate": "use --caption_dropout",
    "caption_extension": "rename the captions to .txt",
    "in_json": "put a metadata.jsonl beside the images",
    "reg_data_dir": "use train_dreambooth.py --with_prior_preservation --class_data_dir, or --preserve_base",
    "dataset_config": "use --config with a recipe",
    "config_file": "use --config with a recipe",
    "conditioning_data_dir": "use --mask_loss DIR",
    "masked_loss": "use --mask_loss DIR",
    "enable_bucket": "use --use_aspect_ratio_buckets",
    "min_bucket_reso": "use --use_aspect_ratio_buckets",
    "max_bucket_reso": "use --use_aspect_ratio_buckets",
    "bucket_reso_steps": "use --use_aspect_ratio_buckets",
    "bucket_no_upscale": "use --use_aspect_ratio_buckets",
    "flip_aug": "use --random_flip",
    "random_crop": "use --no-center_crop",
    "color_aug": "leave it out: colours are not changed",
    "cache_latents_to_disk": "leave it out: it is always done",
    "cache_text_encoder_outputs": "leave it out: it is always done",
    "cache_text_encoder_outputs_to_disk": "leave it out: it is always done",
    "fp8_base": "use --quantize_base int8",
    "blocks_to_swap": "use --blocks_on_cpu",
    "xformers": "use --enable_xformers_memory_efficient_attention, or leave it out",
    "sdpa": "leave it out: it is the default",
    "vae": "use --pretrained_vae_model_name_or_path",
    "no_half_vae": "leave it out: the VAE is never in float16",
    "save_every_n_steps": "use --checkpointing_steps",
    "save_every_n_epochs": "use --checkpointing_steps",
    "save_last_n_steps": "use --checkpoints_total_limit",
    "save_state": "leave it out: the same command resumes",
    "resume": "leave it out: the same command resumes",
    "sample_prompts": "use --validation_prompt",
    "sample_every_n_steps": "use --validation_steps",
    "sample_every_n_epochs": "use --validation_epochs",
    "log_with": "use --report_to",
    "wandb_api_key": "put WANDB_API_KEY into the environment",
    "save_precision": "leave it out: LoRAs are float32",
    "save_model_as": "leave it out: LoRAs are safetensors",
    "v2": "leave it out: the model says what it is",
    "v_parameterization": "leave it out: the model says what it is",
    "full_fp16": "leave it out, or use --mixed_precision fp16",
    "full_bf16": "leave it out, or use --mixed_precision bf16",
}
FOR_KOHYA = {name: f"{use}; see docs/coming_from_kohya.md" for name, use in FOR_KOHYA.items()}
# What may differ between a run and its continuation: none of it changes what is trained.
NOT_IN_TRAINING = (
    "config dry_run verbose debug output_dir overwrite train_batch_size gradient_accumulation_steps "
    "resume_from_checkpoint checkpointing_steps checkpoints_total_limit latent_cache_dir cache_latents report_to "
    "logging_steps logging_dir num_validation_images validation_prompt validation_steps validation_guidance_scale "
    "validation_inference_steps validation_epochs early_stopping_patience gradient_checkpointing compile allow_tf32 "
    "enable_xformers_memory_efficient_attention dataloader_num_workers max_train_steps num_train_epochs "
    "memory blocks_on_cpu push_to_hub hub_model_id output_kohya_format model_config on_nonfinite "
    "set_grads_to_none shard sync_to report_every lang allow_other_base"
).split()


# What a run writes into its folder besides the logs.
OF_A_RUN = re.compile(
    r"\.|[^/]+\.(yaml|jsonl?|png|md|safetensors)|(checkpoint-\d+|best|validation|unet|vae|scheduler|feature_extractor|"
    r"(text_encoder|tokenizer)(_2)?)(/.*)?"
)


def bucket_list(text: str) -> str:
    """An argparse type: heights and widths, as 512,512;384,640."""
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*(;[1-9]\d*,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(
            f"{text}: expected heights and widths, as 512,512;384,640; the switch is --use_aspect_ratio_buckets"
        )
    for side in re.findall(r"\d+", text):
        pixels(side)
    return text


def nonfinite_policy(text: str) -> str:
    """An argparse type: stop or skip."""
    if text not in ("stop", "skip"):
        gone = "; rollback is gone: skipped steps change no weight" if text == "rollback" else ""
        raise argparse.ArgumentTypeError(f"{text}: expected stop or skip{gone}")
    return text


def data_set(text: str) -> str:
    """An argparse type: a folder, or one with its repeats, as data/shoes:3."""
    folder, repeats = split_repeats(text)
    first, comma, _ = text.partition(",")
    if comma and not Path(folder).exists() and Path(split_repeats(first)[0]).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder; several are divided by blanks, without commas")
    before, colon, _ = text.rpartition(":")
    if colon and folder == text and not Path(text).exists() and Path(before or "missing:").is_dir():
        folder, repeats = before, 0  # a:x or a:1.5
    if not 1 <= repeats <= MOST_REPEATS:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 to {MOST_REPEATS:,} repeats, such as {folder}:3")
    return text


class OneOrSeveral(argparse.Action):
    """Keeps one word as it is, and several as a list."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def add_folder_flag(group: argparse._ArgumentGroup, name: str, help: str, default: str | None = None) -> None:
    """The flag of the folders that are trained on."""
    several = f"{help}; several train together, of DIR:3 each image three times an epoch"
    group.add_argument(
        name, nargs="+", action=OneOrSeveral, type=data_set, default=default, metavar="DIR[:N]|s3://…", help=several
    )


def add_vae_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("VAE").add_argument(
        "--pretrained_vae_model_name_or_path", metavar="HUB_ID|DIR", help="in place of the model's own VAE"
    )


def add_column_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dataset_config_name", metavar="NAME", help="of a hub dataset that has several")
    add("--image_column", help="default: file_name of an imagefolder, image of a hub dataset")
    add("--caption_column", default="text", help="where the captions are")
    add("--caption_prefix", nargs="+", metavar="TEXT", help='begins captions: one for each data set, or ""')
    add(
        "--mask_loss",
        nargs="+",
        action=OneOrSeveral,
        type=read_place,
        metavar="DIR|s3://…|none",
        help="masks named as the images, a folder for each data set: white is what counts",
    )
    add("--held_out", type=BELOW_ONE, default=0.0, metavar="SHARE", help="where there is no val split: take this much")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add_folder_flag(group, "--train_data_dir", "in a layout named above", default="data/casual_shoes")
    group.add_argument("--dataset_name", metavar="HUB_ID", help="a hub dataset, in place of --train_data_dir")
    group.add_argument("--max_train_samples", type=positive, metavar="N", help="a seeded choice of N images")
    group.add_argument(
        "--class_prompt", metavar="TEXT", help="whose prediction --preserve_base keeps, such as: a photo of shoes"
    )
    add_column_flags(group)
    add_image_flags(group)


def add_image_flags(group: argparse._ArgumentGroup) -> None:
    """How images are seen."""
    add = group.add_argument
    add("--resolution", type=pixels, help="side of the square, pixels; default: the model's own, of SDXL 1024")
    add(
        "--use_aspect_ratio_buckets",
        action=OnOff,
        help="keep proportions, same area; default: as the data was prepared",
    )
    add(
        "--aspect_ratio_buckets",
        nargs="?",
        const="",
        type=bucket_list,
        metavar='"H,W;H,W"',
        help="these shapes, in place of --resolution's",
    )
    add("--center_crop", action=OnOff, default=True, help="--no-center_crop: random crops")
    add("--cache_crops", type=Range(0, 1000, int), default=4, help="random crops an image; 0: endless, uncached only")
    add("--random_flip", action=OnOff, default=False, help="mirror half of the samples")
    add("--image_interpolation_mode", choices=INTERPOLATIONS, default="lanczos", help="filter of the resize")
    add("--caption_dropout", type=share, default=0.0, help="share trained with the empty caption")
    add(
        "--multiple_captions",
        action=OnOff,
        default=False,
        help="each line of a .txt, or text of a list, is a caption of its own: one is drawn each time",
    )
    add(
        "--shuffle_tags",
        type=Range(1, 1000, int, hint=OR_NOT),
        metavar="N",
        help="draw one of N orders of a caption's tags, which commas divide; N times the captions are encoded",
    )
    add("--keep_tokens", type=Range(1, 1000, int, hint=OR_NOT), metavar="N", help="so many first tags stay first")


def add_lora_flags(parser: argparse.ArgumentParser, alpha: str) -> None:
    """The flags of a LoRA; `alpha` says in --help what --lora_alpha is by default."""
    group = parser.add_argument_group("LoRA")
    add = group.add_argument
    add("--rank", type=Range(1, 2048, int), default=8, help="of the adapter's matrices: more is more capacity")
    add(
        "--lora_alpha",
        type=Range(0, 10_000, above=True),
        help=f"the adapter's output is scaled by alpha / rank; default: {alpha}",
    )
    add("--lora_dropout", type=BELOW_ONE, default=0.0, help="of the adapter's input")
    add(
        "--adapter",
        choices=["lora", "dora", "lokr", "loha"],
        help="default: lora; dora is --use_dora; lokr and loha are Kronecker and Hadamard products (LyCORIS)",
    )
    add(
        "--lokr_factor",
        type=Range(1, 4096, int),
        metavar="N",
        help="of lokr: each side is divided into N and the rest; a small N gives more weights; default: near its root",
    )
    add("--use_dora", action=OnOff, default=False, help="train magnitude and direction apart")
    add("--use_rslora", action=OnOff, default=False, help="scale by alpha / sqrt(rank) instead")
    add(
        "--lora_layers",
        nargs="+",
        metavar="NAME",
        help="layers of the UNet or transformer, with blanks or commas; default: those that diffusers' scripts train",
    )
    add(
        "--init_lora",
        metavar="DIR|FILE",
        help="a run's LoRA, or a file of diffusers or kohya, that this one begins as; of the same rank and layers",
    )
    add("--allow_other_base", action=OnOff, default=False, help="also one of another base model")
    add(
        "--preserve_base",
        type=Range(0, 1000, above=True, hint=OR_NOT),
        metavar="WEIGHT",
        help="add the distance to the base model's own prediction of --class_prompt, so that it forgets less",
    )
    add_average_flags(group)
    add("--train_text_encoder", action=OnOff, default=False, help="the text encoder too, not the UNet alone")
    add("--text_encoder_lr", type=learning_rate, help="default: --learning_rate")
    add(
        "--output_kohya_format",
        action=OnOff,
        help="also a file for A1111 and ComfyUI; default: where the LoRA can be one",
    )
    add_base_flags(group)


def add_base_flags(group: argparse._ArgumentGroup) -> None:
    """What is done to the frozen model before a LoRA is trained on it."""
    group.add_argument(
        "--base_lora",
        action="extend",
        nargs="+",
        default=[],
        metavar="DIR|FILE[:WEIGHT]",
        help="LoRAs that are merged into the frozen model before training, such as Turbo's training adapter",
    )
    group.add_argument(
        "--quantize_base",
        choices=list(BYTES),
        help="the frozen model's weights in 4 or 8 bits (QLoRA); needs bitsandbytes",
    )
    group.add_argument(
        "--quantize_text_encoder",
        choices=list(BYTES),
        help="the same for what encodes captions, where it is not trained; they change a little",
    )


def add_average_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--use_ema", action=OnOff, default=False, help="save and validate an average of the weights")
    group.add_argument("--ema_decay", type=BELOW_ONE, default=0.999, help="of that average, a step")


def add_training_flags(parser: argparse.ArgumentParser, steps: int, accumulation: int) -> None:
    """The flags of the training itself; `steps` and `accumulation` are the defaults that `settle_defaults` sets."""
    group = parser.add_argument_group("training")
    group.add_argument("--seed", type=seed_number, default=0, help="of everything that is random")
    group.add_argument(
        "--train_batch_size", type=batch_size, metavar="N|auto", help=f"samples at once; default: {MICRO_BATCH}"
    )
    group.add_argument(
        "--gradient_accumulation_steps",
        type=at_once,
        metavar="N",
        help=f"micro-batches a step; default: {accumulation}{', or 1 with a --train_batch_size' * (accumulation > 1)}",
    )
    group.add_argument(
        "--effective_batch_size",
        type=Range(1, MOST_A_STEP, int),
        metavar="N",
        help="samples a step on all processes together, from which accumulation follows",
    )
    group.add_argument("--max_train_steps", type=positive, help=f"optimizer steps in all; default: {steps:,}")
    group.add_argument("--num_train_epochs", type=positive, metavar="N", help="where there is no --max_train_steps")
    group.add_argument("--learning_rate", type=learning_rate, default=1e-4, help="at its highest; 1 for prodigy")
    group.add_argument("--scale_lr", action=OnOff, default=False, help="multiply the rates by the effective batch")
    group.add_argument("--lr_scheduler", choices=SCHEDULES, default="constant_with_warmup", help="of diffusers")
    group.add_argument("--lr_warmup_steps", type=zero_or_more, default=500, help="optimizer steps")
    group.add_argument("--lr_num_cycles", type=positive, default=1, help="of cosine_with_restarts")
    group.add_argument("--lr_power", type=Range(0, 100, above=True), default=1.0, help="of polynomial")


def add_noise_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("noise and loss")
    group.add_argument(
        "--snr_gamma", type=Range(0, 1000, above=True), metavar="5.0", help="min-SNR weighting; default: all weights 1"
    )
    group.add_argument("--noise_offset", type=share, default=0.0, help="brightness learnt better at, say, 0.05")
    group.add_argument(
        "--loss_type",
        choices=LOSSES,
        help="of the prediction's error: huber and smooth_l1 weigh outliers less; default: l2",
    )
    group.add_argument("--huber_c", type=Range(1e-4, 100), help=f"of huber and smooth_l1; default: {HUBER_C}")


def add_flow_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("noise of flow matching (Z-Image, FLUX.2 Klein, Qwen-Image, FLUX.1)")
    group.add_argument(
        "--weighting_scheme",
        choices=WEIGHTING_SCHEMES,
        help="logit_normal and mode draw some times more often, sigma_sqrt and cosmap weight them; default: none",
    )
    group.add_argument("--logit_mean", type=Range(-10, 10), help="of logit_normal; above 0: less noise; default: 0")
    group.add_argument("--logit_std", type=Range(0, 10, above=True), help="of logit_normal; default: 1")
    # Beyond these limits the density is none (Esser et al., 2024, section 3.1).
    group.add_argument("--mode_scale", type=Range(-1, 1.75), help="of mode; 0: evenly; default: 1.29")
    group.add_argument(
        "--guidance_scale",
        type=Range(0, 100),
        help="a number that FLUX.1 dev reads; default: 3.5. A warning says where a model of flow matching reads none",
    )
    group.add_argument(
        "--timestep_shift",
        type=timestep_shift,
        metavar="auto|none|3.0",
        help="towards noise; default: auto, as the model's pipeline does at this size",
    )


def timestep_shift(text: str) -> str | float:
    return text if text in ("auto", "none") else Range(0, 100, above=True, hint=", or auto, or none")(text)


# Flags of one kind of noise
OF_DIFFUSION = ("snr_gamma", "zero_terminal_snr", "prediction_type")
OF_FLOW = ("guidance_scale", "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "timestep_shift")


def refuse_others(args: argparse.Namespace, is_flow: bool, family: str) -> None:
    """Refuse flags of the kind of noise that the model's family does not have.

    A recipe may serve several families: of its keys, this only warns, and leaves them out of args.
    """
    for name in OF_DIFFUSION if is_flow else OF_FLOW:
        value = getattr(args, name)
        if value is None or value is False:
            continue
        problem = f"does nothing for {family}, whose noise is that of {'flow matching' if is_flow else 'DDPM'}"
        if name not in args.recipe_keys:
            raise cli.UserError(f"{cli.spell_flag(name, value)}: {problem}; leave it out")
        logger.warning("--config: `%s: %s` %s", name, value, problem)
        setattr(args, name, False if value is True else None)


def optimizer_option(text: str) -> str:
    """An argparse type: an argument of an optimizer and its value."""
    if not re.fullmatch(r"[a-z]\w*=.+", text):
        raise argparse.ArgumentTypeError(f"{text}: expected name=value, as ns_steps=6")
    return text


def add_optimizer_flags(parser: argparse.ArgumentParser, names: tuple[str, ...] = OPTIMIZERS) -> None:
    add = parser.add_argument_group("optimizer").add_argument
    add("--optimizer", type=str.lower, choices=names, default="adamw", help="adamw8bit needs bitsandbytes")
    add(
        "--optimizer_args",
        type=optimizer_option,
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="further arguments of the optimizer, as its class names them: ns_steps=6",
    )
    add("--use_8bit_adam", action=OnOff, default=False, help="the same as --optimizer adamw8bit")
    add("--adam_beta1", type=BELOW_ONE, default=0.9, help="memory of the gradient's mean")
    add("--adam_beta2", type=BELOW_ONE, default=0.999, help="memory of its square")
    add("--adam_weight_decay", type=Range(0, 10), default=1e-2, help="pull of the weights towards 0")
    add("--adam_epsilon", type=Range(0, 1, above=True), default=1e-8, help="keeps a tiny gradient from a huge step")
    add(
        "--max_grad_norm",
        type=Range(0, cli.MANY, above=True),
        default=1.0,
        help="gradients are scaled down to this norm",
    )
    add("--set_grads_to_none", action="store_true", help="accepted from diffusers' commands: always done")


def add_image_performance_flags(parser: argparse.ArgumentParser) -> None:
    group = add_performance_flags(parser)
    group.add_argument(
        "--memory",
        choices=["auto"],
        help="auto: gradient checkpointing, and --blocks_on_cpu, only as needed, then the largest batch that fits",
    )
    group.add_argument(
        "--blocks_on_cpu",
        type=zero_or_more,
        default=0,
        metavar="N",
        help="so many blocks of a transformer are kept in the CPU's memory, and brought to the GPU one at a time",
    )
    group.add_argument("--cache_latents", action=OnOff, default=True, help="encode images once, and free the VAE")
    group.add_argument("--latent_cache_dir", type=Path, metavar="DIR", help="default: `cache` beside --output_dir")
    group.add_argument("--compile", action=OnOff, default=False, help="torch.compile the UNet's repeated blocks")
    group.add_argument(
        "--shard",
        action=OnOff,
        default=None,
        help="divide weights and optimizer state among the processes (FSDP2); default: as the launch config says",
    )
    group.add_argument(
        "--enable_xformers_memory_efficient_attention",
        action=OnOff,
        default=False,
        help="needs xformers, which is built for CUDA 12 (docs/setup.md)",
    )


def add_performance_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("precision, memory and speed")
    group.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        help="default: what accelerate was launched with, or else the best that this device does right",
    )
    group.add_argument("--gradient_checkpointing", action=OnOff, default=True, help="less memory, some 25 %% slower")
    group.add_argument("--allow_tf32", action=OnOff, default=False, help="float32 products in TF32 on NVIDIA GPUs")
    group.add_argument(
        "--dataloader_num_workers", type=Range(0, 256, int), default=1, help="0: no thread prepares batches ahead"
    )
    return group


def add_image_validation_flags(parser: argparse.ArgumentParser) -> None:
    group = add_validation_flags(parser)
    add = group.add_argument
    add("--validation_prompt", action="append", metavar="TEXT", help="may be repeated; default: held-out captions")
    add("--num_validation_images", type=Range(0, 1000, int), default=4, help="images a validation; 0: loss only")
    add("--validation_guidance_scale", type=Range(0, 100), help="default: the model's own (docs/generate.md#guidance)")
    add(
        "--validation_inference_steps",
        type=Range(1, 1000, int),
        help="default: the model's own (docs/generate.md#guidance)",
    )


def add_validation_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("validation")
    add = group.add_argument
    add("--validation_steps", type=zero_or_more, default=500, help="between validations; 0: none")
    add("--validation_epochs", type=positive, metavar="N", help="in place of --validation_steps")
    add("--num_validation_samples", type=Range(1, 100_000, int), default=64, help="fixed samples of the held-out loss")
    add("--early_stopping_patience", type=positive, metavar="N", help="stop after N validations without a better loss")
    return group


def add_run_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    group = parser.add_argument_group("run folder and trackers")
    add = group.add_argument
    add("--output_dir", type=Path, default=Path(output_dir), help="the run folder")
    sync.add_sync_flag(group)
    add("--overwrite", action=OnOff, default=False, help="start again; what no script wrote is moved aside")
    add("--checkpointing_steps", type=zero_or_more, default=500, help="between checkpoints; 0: none")
    add("--checkpoints_total_limit", type=positive, metavar="N", help="keep the newest N; default: all")
    add("--resume_from_checkpoint", default="latest", metavar="latest|NAME", help="NAME: checkpoint-500, or a path")
    add("--logging_steps", type=positive, default=10, help="between lines of metrics.jsonl")
    add("--logging_dir", default="logs", help="of the trackers, within --output_dir or absolute")
    add(
        "--report_to",
        default="tensorboard",
        help="tensorboard, wandb, comet_ml, mlflow, several with commas, all, none",
    )
    add(
        "--on_nonfinite",
        type=nonfinite_policy,
        default="skip",
        metavar="skip|stop",
        help="NaN in loss or gradient: stop at once, or skip up to 3 steps in a row",
    )
    add("--push_to_hub", action=OnOff, default=False, help="the token is taken from HF_TOKEN")
    add("--hub_model_id", metavar="OWNER/NAME", help="default: the name of --output_dir")


def settle_defaults(parser: cli.Parser, args: argparse.Namespace, steps: int, accumulation: int) -> None:
    """The defaults that depend on other flags: the length and the batch."""
    settle_length(parser, args, steps)
    if getattr(args, "memory", None):  # train_tts.py has no such flag
        args.train_batch_size = args.train_batch_size or "auto"
    settle_batch(parser, args, accumulation)


def settle_alpha(args: argparse.Namespace, alpha: int) -> None:
    """--lora_alpha as a multiple of the rank, where it is not given."""
    args.lora_alpha = alpha * args.rank if args.lora_alpha is None else args.lora_alpha


def settle_length(parser: cli.Parser, args: argparse.Namespace, steps: int) -> None:
    """Of --max_train_steps and --num_train_epochs the steps count, as in diffusers; but epochs given over a recipe."""
    if not args.num_train_epochs:
        args.max_train_steps = args.max_train_steps or steps
    elif "max_train_steps" in parser.recipe_keys and "num_train_epochs" not in parser.recipe_keys:
        args.max_train_steps = None
    elif args.max_train_steps:
        message = "--num_train_epochs %d does nothing beside --max_train_steps %d, which counts, as in diffusers"
        logger.warning(message, args.num_train_epochs, args.max_train_steps)
        args.num_train_epochs = None


def settle_batch(parser: cli.Parser, args: argparse.Namespace, accumulation: int) -> None:
    """Either the batch of each process, where the command line has a batch flag, or the effective one of a recipe.

    On the command line --train_batch_size and --gradient_accumulation_steps count on each process, as in diffusers.
    A recipe's, and the defaults, make --effective_batch_size, which several processes divide among them.
    """
    given = {name for name in ("train_batch_size", "gradient_accumulation_steps") if getattr(args, name)}
    size, rounds, effective = args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size
    if effective:
        args.train_batch_size = size or min(MICRO_BATCH, effective)
        if "gradient_accumulation_steps" in parser.recipe_keys:  # it follows from the rest
            args.gradient_accumulation_steps = None
        return
    args.train_batch_size = size or MICRO_BATCH
    rounds = rounds or (1 if isinstance(size, int) else accumulation)
    if given - parser.recipe_keys and size != "auto":
        args.gradient_accumulation_steps = rounds
    else:
        args.effective_batch_size = (MICRO_BATCH if size == "auto" else args.train_batch_size) * rounds
        args.gradient_accumulation_steps = None


def check_training_flags(parser: cli.Parser, args: argparse.Namespace) -> None:
    """What argparse can't check by itself of any training; --use_8bit_adam becomes what it means."""

    def need(condition: object, message: str) -> None:
        if not condition:
            parser.error(message)

    logs = Path(args.logging_dir)
    need(".." not in logs.parts, f"--logging_dir {logs}: expected a name within --output_dir, or an absolute path")
    within = Path(os.path.relpath(args.output_dir / logs, args.output_dir))  # also of an absolute path
    taken = OF_A_RUN.fullmatch(within.as_posix())
    need(not taken, f"--logging_dir {args.logging_dir}: the run itself writes that; give another name, such as logs")
    if args.use_8bit_adam:
        need(args.optimizer in ("adamw", "adamw8bit"), f"--use_8bit_adam: not with --optimizer {args.optimizer}")
        args.optimizer = "adamw8bit"
    patience, validates = args.early_stopping_patience, args.validation_steps or args.validation_epochs
    need(patience is None or validates, f"--early_stopping_patience {patience}: needs --validation_steps above 0")
    for problem in schedule_free_problems(args):
        parser.error(problem)
    check_ignored_flags(parser, args)
    if args.lr_scheduler != "constant" and args.max_train_steps and args.lr_warmup_steps > args.max_train_steps:
        message = "--lr_warmup_steps %d: the rate only climbs, for all of --max_train_steps %d; give fewer, or 0"
        logger.warning(message, args.lr_warmup_steps, args.max_train_steps)


def schedule_free_problems(args: argparse.Namespace) -> list[str]:
    """What does not go with an optimizer that averages the weights in place of a schedule of rates."""
    if args.optimizer != "adamwschedulefree":
        return []
    beside = "not with --optimizer adamwschedulefree"
    constant = args.lr_scheduler.startswith("constant")
    found = {
        f"--lr_scheduler {args.lr_scheduler}: {beside}; use constant or constant_with_warmup": not constant,
        f"--use_ema: {beside}, whose weights are an average already; leave it out": args.use_ema,
        f"--adam_beta1 0: {beside}, which divides by it; give more": args.adam_beta1 == 0,
    }
    return [message for message, wrong in found.items() if wrong]


def check_image_flags(parser: cli.Parser, args: argparse.Namespace) -> None:
    """What argparse can't check by itself of a training on images; --lora_layers with commas become several."""
    if args.model_config and not args.pretrained_model_name_or_path.endswith(".safetensors"):
        parser.error(f"--model_config {args.model_config}: is for a single .safetensors file")
    check_views(parser, args)
    if args.lora_layers:
        args.lora_layers = [name for words in args.lora_layers for name in words.split(",") if name]
    args.use_dora = args.use_dora or args.adapter == "dora"
    args.adapter = None if args.adapter in ("lora", "dora") else args.adapter  # however it is spelt
    args.loss_type = None if args.loss_type == LOSSES[0] else args.loss_type
    for problem in contradictions(args):
        parser.error(problem)
    check_data_flags(parser, args)
    if args.preserve_base and not args.class_prompt:
        parser.error(f"--preserve_base {args.preserve_base:g}: needs --class_prompt, such as: a photo of shoes")
    needs = {
        "dataset_config_name": ("--dataset_name", bool(args.dataset_name)),
        "cache_crops": ("--no-center_crop", not args.center_crop),
        "logit_mean": ("--weighting_scheme logit_normal", args.weighting_scheme == "logit_normal"),
        "logit_std": ("--weighting_scheme logit_normal", args.weighting_scheme == "logit_normal"),
        "mode_scale": ("--weighting_scheme mode", args.weighting_scheme == "mode"),
        "keep_tokens": ("--shuffle_tags", bool(args.shuffle_tags)),
        "huber_c": ("--loss_type huber or smooth_l1", args.loss_type in LOSSES[1:]),
        "allow_other_base": ("--init_lora", bool(args.init_lora)),
        "lokr_factor": ("--adapter lokr", args.adapter == "lokr"),
    }
    cli.report_ignored(parser, args, needs)
    if args.text_encoder_lr and not args.train_text_encoder:
        logger.warning("--text_encoder_lr %g does nothing without --train_text_encoder", args.text_encoder_lr)


def check_views(parser: cli.Parser, args: argparse.Namespace) -> None:
    """Refuse ways to see images that do not go together."""
    if not args.center_crop and args.cache_crops == 0 and args.cache_latents:
        parser.error("--cache_crops 0: unlimited crops can't be cached; add --no-cache_latents, or cache some")
    if args.aspect_ratio_buckets == "":
        switch = "expected heights and widths; the switch is --use_aspect_ratio_buckets"
        parser.error(f"--aspect_ratio_buckets: {switch}")
    if args.aspect_ratio_buckets and args.use_aspect_ratio_buckets is False:
        parser.error("--aspect_ratio_buckets: not with --no-use_aspect_ratio_buckets; leave one of them out")


def contradictions(args: argparse.Namespace) -> list[str]:
    """What is wrong with pairs of flags that do not go together, of what is trained and of memory."""
    word, rounds = getattr(args, "train_token", None), args.quantize_base
    dora, blocks, texts = args.use_dora, args.blocks_on_cpu, args.quantize_text_encoder
    not_with, out = f"--blocks_on_cpu {blocks}: not with", "leave one out"
    keeps = "--no-gradient_checkpointing, which would keep all of them on the GPU"
    of_texts = f"--quantize_text_encoder {texts}: not where a text encoder or a word is trained"
    # diffusers does not read DoRA's magnitudes from such a file, and the images would change.
    kohya = "--output_kohya_format: not with --use_dora or --adapter dora; leave one of the two out"
    kind = args.adapter if args.adapter in ("lokr", "loha") else None
    beside = f"not with --adapter {kind}; {out}"
    found = {
        f"--train_token {word}: not with --optimizer muon, which is for matrices; {out}": word
        and args.optimizer == "muon",
        f"--quantize_base {rounds}: not with --adapter {kind}, which needs whole weights; {out}": kind and rounds,
        f"--train_text_encoder: {beside}": kind and args.train_text_encoder,
        f"--lora_dropout {args.lora_dropout}: {beside}": kind and args.lora_dropout,
        f"--use_dora: {beside}": kind and dora,
        f"--use_rslora: {beside}": kind and args.use_rslora,
        f"--quantize_base {rounds}: not with --use_dora, which needs whole weights; {out}": dora and rounds,
        f"{not_with} {keeps}; {out}": blocks and not args.gradient_checkpointing,
        f"--memory auto: not with --no-gradient_checkpointing, which it chooses itself; {out}": args.memory
        and not args.gradient_checkpointing
        and "gradient_checkpointing" not in args.recipe_keys,
        f"{not_with} --compile; {out}": blocks and args.compile,
        f"{not_with} --quantize_base {rounds}; {out}": blocks and rounds,
        f"{of_texts}; {out}": (args.train_text_encoder or word) and texts,
        kohya: dora and args.output_kohya_format,
    }
    return [message for message, both in found.items() if both]


def check_data_flags(parser: cli.Parser, args: argparse.Namespace) -> None:
    """Refuse a --train_data_dir beside --dataset_name; one from a recipe is warned of."""
    folders = getattr(args, "train_data_dir", None)  # train_dreambooth.py has no such flag
    check_each_set(parser, args, folders or args.instance_data_dir)
    if not args.dataset_name:
        check_twice(parser, args, "train_data_dir" if folders else "instance_data_dir")
    if not args.dataset_name or folders == parser.get_default("train_data_dir"):
        return
    named = " ".join(folders) if isinstance(folders, list) else folders
    message = f"--train_data_dir {named}: does nothing with --dataset_name {args.dataset_name}; give one of the two"
    if "train_data_dir" not in parser.recipe_keys:
        parser.error(message)
    logger.warning("%s", message)


def check_each_set(parser: cli.Parser, args: argparse.Namespace, folders: str | list[str]) -> None:
    """Refuse caption prefixes or masks that are not one for each data set, and masks for none of them."""
    sets = 1 if args.dataset_name else len(list_folders(folders))
    for name, other in (("caption_prefix", 'in quotes, ""'), ("mask_loss", "`none`")):
        value = getattr(args, name)
        given = len(value) if isinstance(value, list) else int(bool(value))
        if given not in (0, sets):
            where = cli.counted(sets, "data set")
            parser.error(f"--{name}: {given} for {where}; give one for each, {other} where there is none")
    masks = args.mask_loss if isinstance(args.mask_loss, list) else [args.mask_loss]
    if args.mask_loss and all(str(one) == "none" for one in masks):
        parser.error(f"--mask_loss {' '.join(map(str, masks))}: no data set has masks; leave it out")


def check_twice(parser: cli.Parser, args: argparse.Namespace, name: str) -> None:
    """Refuse a folder that is named again with the same captions and masks: its repeats say how often it trains."""
    given = getattr(args, name)
    if not isinstance(given, list):
        return
    parts, none = [split_repeats(spec) for spec in given], [None] * len(given)
    sets = [
        (os.path.realpath(folder), prefix, masks)
        for (folder, _), prefix, masks in zip(parts, args.caption_prefix or none, args.mask_loss or none)
    ]
    for one, (folder, _) in zip(sets, parts):
        if sets.count(one) > 1:
            total = sum(repeats for other, (_, repeats) in zip(sets, parts) if other == one)
            parser.error(f"--{name} {' '.join(given)}: has {folder} twice; give it once, as {folder}:{total}")


def check_ignored_flags(parser: cli.Parser, args: argparse.Namespace) -> None:
    """Flags that do nothing without another one; those that published diffusers commands carry are only warned of."""
    schedule = args.lr_scheduler
    needs = {
        "ema_decay": ("--use_ema", args.use_ema),
        "hub_model_id": ("--push_to_hub", args.push_to_hub),
        "lr_num_cycles": ("--lr_scheduler cosine_with_restarts", schedule == "cosine_with_restarts"),
        "lr_power": ("--lr_scheduler polynomial", schedule == "polynomial"),
        "lang": ("--report_every", bool(args.report_every)),
    }
    needs |= {
        name: ("--optimizer adamw or another of Adam's kind", args.optimizer not in ("adafactor", "muon"))
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon")
    }
    cli.report_ignored(parser, args, needs)
    if schedule == "constant" and args.lr_warmup_steps not in (0, parser.get_default("lr_warmup_steps")):
        logger.warning("--lr_warmup_steps %d does nothing with --lr_scheduler constant", args.lr_warmup_steps)
    if args.set_grads_to_none:
        logger.warning("--set_grads_to_none does nothing: it is always done")


def free_to_change(args: argparse.Namespace) -> set[str]:
    """The settings that a resumed run may have otherwise; its length only where the rate doesn't depend on it."""
    length = {"max_train_steps", "num_train_epochs"}
    return set(NOT_IN_TRAINING) - (set() if args.lr_scheduler.startswith("constant") else length)
