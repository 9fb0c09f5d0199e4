"""Flags that are given and do nothing, since another is missing.

They are told, and no error: a recipe may name them, and the command line undo what they belong to.
"""

import argparse
import logging

logger = logging.getLogger(__name__)


def tell_lonely(parser: argparse.ArgumentParser, args: argparse.Namespace, partners: dict[str, tuple[str, bool]]):
    """`partners`: of each flag what it is of no use without, and whether that is there."""
    for name, (partner, is_there) in partners.items():
        if getattr(args, name) != parser.get_default(name) and not is_there:
            logger.warning("--%s %s has no use without %s", name, getattr(args, name), partner)


def tell_lonely_training(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Those that every trainer has."""
    schedule = args.lr_scheduler
    warms = schedule != "constant" or not args.lr_warmup_steps  # commands for diffusers say 0, which is true
    partners = {
        "dataset_config_name": ("--dataset_name", bool(args.dataset_name)),
        "cache_crops": ("--no-center_crop", not args.center_crop),
        "ema_decay": ("--use_ema", args.use_ema),
        "hub_model_id": ("--push_to_hub", args.push_to_hub),
        "lr_num_cycles": ("--lr_scheduler cosine_with_restarts", schedule == "cosine_with_restarts"),
        "lr_power": ("--lr_scheduler polynomial", schedule == "polynomial"),
        "lr_warmup_steps": ("an --lr_scheduler that warms up", warms),
    }
    tell_lonely(parser, args, partners)
