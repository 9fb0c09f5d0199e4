"""How fast train_dreambooth.py is against diffusers' script for a flow-matching family, on the tests' tiny model of it.

Both run by turns, each from nothing: the time is that of the whole process, from the start of Python to its exit, with
imports, loading, what they cache and the final save. Both encode photos and captions once, before their first step.
Then the LoRA's forward and backward are timed alone: what no trainer of the model as diffusers has it can leave out.

    python tests/benchmarks/flow_speed.py --baseline PATH/train_dreambooth_lora_z_image.py --repeats 3
    python tests/benchmarks/flow_speed.py --baseline PATH/train_dreambooth_lora_z_image.py --baseline_path STAND_IN

The baseline is in examples/dreambooth of huggingface/diffusers. It imports torchvision; where that is missing,
--baseline_path is a folder with a stand-in. Run it on a machine that does nothing else.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarking.timing import time_repeatedly
from families import models
from families.lora import Adapter, attach_lora
from families.models import FAMILIES
from tests.benchmarks import side_by_side
from tests.tiny_models import build_tiny

PROMPT = "a professional product photo of sks shoes"


def make_data(args: argparse.Namespace, data: Path) -> None:
    """The model, and the demo's subject with a caption for each photo.

    With one prompt for all photos, the baseline repeats its list of features by the batch in every step, in place.
    """
    build_tiny(data / "model", args.family)
    photos = f"demo/subject.py --output_dir {shlex.quote(str(data / 'photos'))} --num_images {args.num_images}"
    subprocess.run([sys.executable, *shlex.split(photos)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    rows = [{"file_name": photo.name, "text": PROMPT} for photo in sorted((data / "photos").iterdir())]
    (data / "photos/metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def commands(args: argparse.Namespace, data: Path, folder: Path) -> dict[str, list[str]]:
    """Neither draws validation images or saves checkpoints; the baseline has no gradient checkpointing by default."""
    shared = ["--pretrained_model_name_or_path", str(data / "model"), "--output_dir", str(folder / "run")]
    shared += ["--instance_prompt", PROMPT, "--lora_alpha", str(args.rank), "--gradient_accumulation_steps", "1"]
    shared += ["--learning_rate", "1e-4", "--lr_scheduler", "constant", "--adam_weight_decay", "1e-4"]
    shared += ["--center_crop", "--cache_latents", "--seed", "0", "--report_to", "tensorboard"]
    for name in "resolution rank train_batch_size max_train_steps mixed_precision dataloader_num_workers".split():
        shared += [f"--{name}", str(getattr(args, name))]
    photos, cache = str(data / "photos"), str(folder / "cache")
    theirs = ["--dataset_name", photos, "--caption_column", "text", "--checkpointing_steps", str(10**9)]
    theirs += shlex.split(args.baseline_flags)
    ours = ["--instance_data_dir", photos, "--latent_cache_dir", cache, "--no-gradient_checkpointing"]
    ours += ["--validation_steps", "0", "--checkpointing_steps", "0"]
    ours += shlex.split(args.ours_flags.format(folder=folder))
    start = {"diffusers": (args.baseline, theirs), "ours": (ROOT / "train_dreambooth.py", ours)}
    return {who: [sys.executable, str(script), *shared, *more] for who, (script, more) in start.items()}


def time_model(args: argparse.Namespace, model: str) -> dict[str, float]:
    """Seconds a sample of a batch's forward and backward, on all threads, in float32."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    family, count = FAMILIES[args.family], args.train_batch_size
    denoiser = models.load_denoiser(model, torch.float32).train()
    attach_lora(denoiser, Adapter(args.rank, args.rank, targets=family.lora_targets(denoiser.config)))
    features = family.encode_text(*models.load_text_encoders(model, args.family, torch.float32), [PROMPT]) * count
    config = models.read_config(model, "vae/config.json")
    side = args.resolution // models.vae_step(config)
    latents = torch.randn(count, models.latent_channels(config), side, side)

    def train() -> None:
        prediction = family.predict(denoiser, latents, torch.rand(count), features, guidance=family.TRAINING_GUIDANCE)
        (prediction - latents).square().mean().backward()

    train()  # the first takes longer
    return time_repeatedly(train, count, args.max_train_steps)


def main(args: argparse.Namespace) -> None:
    if args.num_images % args.train_batch_size:  # the baseline would leave out what is left over
        sys.exit(f"--num_images {args.num_images}: must be a multiple of --train_batch_size {args.train_batch_size}")
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        make_data(args, data)
        samples = dict.fromkeys(("diffusers", "ours"), args.max_train_steps * args.train_batch_size)
        side_by_side.compare(args, Path(name), data, lambda folder: commands(args, data, folder), samples)
        seconds = time_model(args, str(data / "model"))
        print(f"\nforward and backward alone: {1 / seconds['median']:.1f} samples/s, the median of the steps")


if __name__ == "__main__":
    values = {"family": "z_image", "mixed_precision": "no", "resolution": 128, "rank": 8, "train_batch_size": 4}
    values |= {"max_train_steps": 300, "dataloader_num_workers": 0, "num_images": 8}
    main(side_by_side.make_parser(__doc__, "train_dreambooth_lora_z_image.py", values).parse_args())
