"""Train a LoRA on Stable Diffusion 1.x, 2.x or XL: exact on any hardware, resumed by the same command.

The data is what prepare_dataset.py made, an imagefolder, pictures with <name>.txt captions, or a hub dataset.

    python3 train_lora.py --max_train_steps 3000
    accelerate launch --config_file accelerate_configs/a100.yaml train_lora.py --train_batch_size auto
    python3 train_lora.py --pretrained_model_name_or_path demo --train_data_dir data/shoes --resolution 128 --dry_run
"""

import argparse
import logging
import math
import signal
import time
from argparse import BooleanOptionalAction as OnOff
from functools import partial

import torch

from utils import batches, checkpoints, cli, devices, diffusion, encoding, flags, guards, lora, metrics_log, models
from utils import optimizers, pictures, runs, sampling, trackers, validation
from utils.cli import UserError
from utils.files import write_json

logger = logging.getLogger("train_lora")


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    flags.add_model_flags(parser)
    flags.add_data_flags(parser)
    flags.add_lora_flags(parser)
    group = parser.add_argument_group("text encoder")
    group.add_argument("--train_text_encoder", action=OnOff, default=False, help="a LoRA on it too")
    group.add_argument("--text_encoder_lr", type=float, help="default: --learning_rate")
    flags.add_training_flags(parser)
    flags.add_performance_flags(parser)
    flags.add_validation_flags(parser)
    flags.add_run_flags(parser, "runs/casual_shoes")
    group = parser.add_argument_group("result")
    group.add_argument("--output_kohya_format", action=OnOff, default=False, help="also a file for A1111 and ComfyUI")
    args = cli.parse_args(parser, argv)
    flags.check_training_flags(parser, args)
    return args


def main(args) -> int:
    seconds: dict[str, float] = {}
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main = accelerator.device, accelerator.is_main_process
    plan = batches.plan_batch(
        args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size, accelerator.num_processes
    )
    args.effective_batch_size = plan.effective
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}; batch: {plan}", flush=True)
    cache = args.latent_cache_dir or args.output_dir.parent / "cache"
    model = models.resolve_model(args.pretrained_model_name_or_path, cache / "models", args.model_config)
    family = models.model_family(model)
    if args.dry_run:
        return 0
    received = runs.catch_signals()
    if is_main:
        lock = runs.open_run(args.output_dir, cli.settings_of(args), flags.free_to_change(args), args.overwrite)  # noqa: F841

    # The data. Captions and pictures are encoded once, and each encoder freed before the next part is loaded.
    shapes = pictures.training_shapes(model, args.resolution, args.aspect_ratio_buckets)
    train, held_out = pictures.load_training_data(args..., shapes)
    ...
