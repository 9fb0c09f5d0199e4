"""The flags of generate.py, in groups; their names are those of diffusers wherever it has one."""

import argparse
from argparse import BooleanOptionalAction as OnOff
from pathlib import Path

from families.lora_mix import run_folder, split_spec
from families.names import DEFAULT_MODEL
from families.sampling import FLOW_SCHEDULER, SCHEDULERS
from families.sd import STEPS
from generation.prompts import MOST
from generation.set_folder import add_shard_flag, check_shard
from utils.cli import Parser, Range, at_once, pixels, read_place, report_ignored, share, workers
from utils.devices import HIGHEST_SEED
from utils.parallel import available_cores
from utils.sync import add_sync_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_prompt_flags(parser)
    add_sampling_flags(parser)
    add_condition_flags(parser)
    add_check_flags(parser)
    add_performance_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, metavar="DIR", help="default: data/synthetic/ and the LoRA's name")
    group.add_argument(
        "--image_metadata",
        action=OnOff,
        default=True,
        help="prompt and settings in each PNG, as A1111 writes them, and IPTC's mark of a synthetic image",
    )
    add_shard_flag(group)
    add_sync_flag(group)


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts (one of these)")
    group.add_argument("--prompt", metavar="TEXT", help="one for all images")
    group.add_argument("--prompts_file", type=read_place, metavar="FILE.txt|s3://…", help="one per line")
    group.add_argument(
        "--prompt_plan", type=read_place, metavar="FILE.jsonl|s3://…", help="text, attributes, weight in each line"
    )
    group.add_argument("--template", metavar="TEXT", help='"a photo of {colour} shoes", filled from --attribute')
    group.add_argument(
        "--attribute", action="append", metavar="NAME=A,B:2", help="values for --template, with shares; may be repeated"
    )
    group.add_argument("--negative_prompt", default="", metavar="TEXT", help="what no image should show")
    group.add_argument("--num_images", type=Range(1, MOST, int), metavar="N", help="default: as the prompts say")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("LoRA")
    group.add_argument(
        "--lora",
        action="extend",
        nargs="+",
        default=[],
        metavar="DIR|FILE|s3://…[:WEIGHT][:word=WORD]",
        help="a run folder, its best/, or a .safetensors file, also of kohya; several are mixed, as a:0.8 b:0.4; "
        "word=<b>: what prompts say for the word that it has learnt",
    )
    group.add_argument("--allow_other_base", action=OnOff, default=False, help="accept a LoRA of another base model")

    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--scheduler",
        choices=[*SCHEDULERS, FLOW_SCHEDULER],
        help="default: dpm++, which is DPM-Solver++, multistep; of flow matching flow_match_euler, its only one",
    )
    group.add_argument(
        "--num_inference_steps",
        type=Range(1, 1000, int),
        help="of the scheduler; default: the model's own (docs/generate.md#guidance)",
    )
    group.add_argument(
        "--guidance_scale",
        type=Range(0, 100),
        help="default: the model's own, and what is none for it: docs/generate.md#guidance",
    )
    group.add_argument("--resolution", type=pixels, metavar="PIXELS", help="side of the square; default: the model's")
    group.add_argument("--seed", type=Range(0, HIGHEST_SEED, int), default=0, help="of image 0; the next has the next")


def add_condition_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images to start from or to follow")
    group.add_argument(
        "--init_images", type=read_place, metavar="DIR|FILE|s3://…", help="images to vary, in order, repeated"
    )
    group.add_argument("--strength", type=share, default=0.6, help="how much to change: 0 keeps an image, 1 ignores it")
    group.add_argument("--controlnet", metavar="HUB_ID|DIR", help="a ControlNet of the model's family")
    group.add_argument(
        "--control_images",
        type=read_place,
        metavar="DIR|FILE|s3://…",
        help="images the ControlNet follows, in order, repeated",
    )
    group.add_argument(
        "--control_type",
        choices=["none", "canny", "depth"],
        default="none",
        help="none: use as they are (edge or depth images); canny: detect edges; depth: by --depth_model",
    )
    group.add_argument("--depth_model", metavar="HUB_ID|DIR", help="a transformers depth estimator")
    group.add_argument("--controlnet_conditioning_scale", type=Range(0, 10), default=1.0, help="its strength")


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checks")
    group.add_argument("--max_retries", type=Range(0, 1000, int), default=3, help="further seeds for a rejected image")
    group.add_argument(
        "--min_clip_score",
        type=Range(-1, 1, hint=" (the scale is the cosine)"),
        metavar="COSINE",
        help="reject images that don't match their prompt: those with a lower cosine to it, such as 0.25",
    )
    group.add_argument(
        "--clip_model",
        default="demo",
        metavar="HUB_ID|DIR|demo",
        help="computes that cosine; demo: only for the demo's shoes",
    )
    group.add_argument(
        "--reject_near_train", type=read_place, metavar="DIR|s3://…", help="reject near-copies of these images"
    )


def add_performance_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("performance")
    group.add_argument("--batch_size", type=at_once, default=16, help="images at once; changes none of them")
    group.add_argument("--num_workers", type=workers, default=available_cores(), help="threads that check and save")
    group.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        help="default: the fastest precision that passes this device's test",
    )
    group.add_argument("--enable_vae_slicing", action=OnOff, default=False, help="decode one by one: less memory")
    group.add_argument("--enable_vae_tiling", action=OnOff, default=False, help="decode in tiles: for large images")
    group.add_argument("--enable_attention_slicing", action=OnOff, default=False, help="less memory, slower")
    group.add_argument(
        "--enable_cpu_offload",
        action=OnOff,
        default=False,
        help="keep weights on the CPU, move each part to the GPU when needed; slow",
    )
    group.add_argument("--compile", action=OnOff, default=False, help="torch.compile the UNet: a minute or more first")
    group.add_argument("--allow_tf32", action=OnOff, default=False, help="float32 products in TF32 on NVIDIA GPUs")


def check_flags(parser: Parser, args: argparse.Namespace) -> argparse.Namespace:
    """Refuse what argparse can't check by itself; choose the output folder where none is given."""

    def need(condition: object, message: str) -> None:
        if not condition:
            parser.error(message)

    leave_out_ignored(parser, args)
    check_shard(parser, args.shard)
    need(not (args.compile and args.enable_cpu_offload), "--compile does not go with --enable_cpu_offload")
    need(not args.controlnet or args.control_images, f"--controlnet {args.controlnet}: needs --control_images")
    need(
        args.control_type != "depth" or args.depth_model,
        "--control_type depth: needs --depth_model; for images that are depth maps already: none",
    )
    steps = args.num_inference_steps or STEPS  # init images are for UNets alone
    need(
        not args.init_images or int(steps * args.strength),
        f"--strength {args.strength:g}: leaves 0 of {steps} steps; increase --strength or --num_inference_steps",
    )
    args.output_dir = args.output_dir or default_folder(args.lora, args.pretrained_model_name_or_path)
    return args


def leave_out_ignored(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse flags that do nothing without another; one from a recipe gets its default again, with a warning."""
    controlnet = "--controlnet", args.controlnet is not None
    single_file = (args.pretrained_model_name_or_path or "").endswith(".safetensors")
    needs = {
        "strength": ("--init_images", args.init_images is not None),
        "controlnet_conditioning_scale": controlnet,
        "control_images": controlnet,
        "control_type": controlnet,
        "depth_model": ("--controlnet and --control_type depth", controlnet[1] and args.control_type == "depth"),
        "clip_model": ("--min_clip_score", args.min_clip_score is not None),
        "allow_other_base": ("--lora", bool(args.lora)),
        "model_config": ("a .safetensors file as --pretrained_model_name_or_path", single_file),
    }
    report_ignored(parser, args, needs)
    for name, (_, is_there) in needs.items():
        if not is_there:
            setattr(args, name, parser.get_default(name))


def default_folder(loras: list[str], model: str | None) -> Path:
    """data/synthetic/ and the name of the first LoRA's run, or of the model."""
    place = run_folder(Path(split_spec(loras[0])[0])) if loras else Path(model or DEFAULT_MODEL)
    return Path("data/synthetic") / place.stem
