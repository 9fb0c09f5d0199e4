"""How fast train_dreambooth.py is against diffusers' train_dreambooth_lora.py: same photos, class images and settings.

Both run by turns, each from nothing: the time is that of the whole process, from the start of Python to its exit, with
imports, loading, our cache of latents and the final save. The class images are drawn before, by ours, for both.

    python tests/benchmarks/dreambooth_speed.py --baseline PATH/train_dreambooth_lora.py --repeats 2
    python tests/benchmarks/dreambooth_speed.py --baseline PATH/train_dreambooth_lora.py --baseline_path STAND_IN

The baseline is in examples/dreambooth of huggingface/diffusers. It imports torchvision; where that is missing,
--baseline_path is a folder with a stand-in. Run it on a machine that does nothing else.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from families.models import resolve_model
from tests.benchmarks import side_by_side

INSTANCE, CLASS = "a professional product photo of sks shoes", "a professional product photo of shoes"


def shared_flags(args: argparse.Namespace, data: Path) -> list[str]:
    """What both are told; a step of both trains on a batch of photos and as many class images."""
    words = ["--instance_data_dir", str(data / "photos"), "--instance_prompt", INSTANCE, "--with_prior_preservation"]
    words += ["--class_data_dir", str(data / "class"), "--class_prompt", CLASS]
    words += ["--num_class_images", str(args.num_class_images), "--learning_rate", "1e-4", "--lr_scheduler", "constant"]
    words += ["--gradient_accumulation_steps", "1", "--seed", "0", "--report_to", "tensorboard"]
    for name in "resolution rank train_batch_size max_train_steps mixed_precision dataloader_num_workers".split():
        words += [f"--{name}", str(getattr(args, name))]
    return words


def commands(args: argparse.Namespace, data: Path, folder: Path) -> dict[str, list[str]]:
    """The baseline draws no validation images by default, has no gradient checkpointing, and alpha = rank."""
    shared, model = [*shared_flags(args, data), "--output_dir", str(folder / "run")], args.pretrained_model_name_or_path
    ours = [
        "--no-gradient_checkpointing",
        "--validation_steps",
        "0",
        "--checkpointing_steps",
        "0",
        "--latent_cache_dir",
        str(folder / "cache"),
        *shlex.split(args.ours_flags.format(folder=folder)),
    ]
    theirs = ["--checkpointing_steps", str(10**9), *shlex.split(args.baseline_flags)]
    start = {"diffusers": (args.baseline, resolve_model(model), theirs)}
    start["ours"] = (ROOT / "train_dreambooth.py", model, ours)
    return {
        who: [sys.executable, str(script), "--pretrained_model_name_or_path", name, *shared, *more]
        for who, (script, name, more) in start.items()
    }


def make_data(args: argparse.Namespace, data: Path) -> None:
    """The demo's subject, and the class images that our script draws before its first step."""
    photos = f"demo/subject.py --output_dir {shlex.quote(str(data / 'photos'))} --num_images {args.num_instance_images}"
    draw = ["train_dreambooth.py", "--pretrained_model_name_or_path", args.pretrained_model_name_or_path]
    draw += [*shared_flags(args, data), "--output_dir", str(data / "first"), "--max_train_steps", "1"]
    draw += ["--validation_guidance_scale", "3", "--validation_steps", "0", "--sample_batch_size", "16"]
    for command in (shlex.split(photos), draw):
        subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        make_data(args, data)
        # An epoch of the baseline is as long as the longer of its two folders; what is left over is a smaller batch.
        length = max(args.num_instance_images, args.num_class_images)
        if length % args.train_batch_size:
            sys.exit(f"--num_class_images {length}: must be a multiple of --train_batch_size {args.train_batch_size}")
        samples = dict.fromkeys(("diffusers", "ours"), args.max_train_steps * args.train_batch_size)
        side_by_side.compare(args, Path(name), data, lambda folder: commands(args, data, folder), samples)


if __name__ == "__main__":
    values = {"pretrained_model_name_or_path": "demo", "mixed_precision": "no", "resolution": 128, "rank": 8}
    values |= {"train_batch_size": 4, "max_train_steps": 500, "dataloader_num_workers": 0}
    values |= {"num_instance_images": 8, "num_class_images": 32}
    main(side_by_side.make_parser(__doc__, "train_dreambooth_lora.py", values).parse_args())
