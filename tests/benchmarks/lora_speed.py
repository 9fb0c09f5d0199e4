"""How fast train_lora.py is against diffusers' train_text_to_image_lora.py: same data, batch, steps and precision.

Both run by turns, each from nothing: the time is that of the whole process, from the start of Python to its exit, with
imports, loading, our cache of latents and the final save.

    python tests/benchmarks/lora_speed.py --baseline PATH/train_text_to_image_lora.py --repeats 3
    python tests/benchmarks/lora_speed.py --baseline PATH/train_text_to_image_lora.py --baseline_path STAND_IN

The baseline is in examples/text_to_image of huggingface/diffusers. It imports torchvision; where that is missing,
--baseline_path is a folder with a stand-in. Run it on a machine that does nothing else.
"""

import argparse
import math
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from families.models import resolve_model
from tests.benchmarks import side_by_side


def make_data(folder: Path, resolution: int) -> Path:
    """The demo's casual shoes, as demo/run.py makes them; the folder of the training images."""
    for command in (
        f"demo/catalogue.py --output_dir {folder}/catalogue --num_images 600 --size 256 --seed 0",
        f'prepare_dataset.py --catalogue {folder}/catalogue --category "Casual Shoes" --output_dir {folder}/data '
        f"--resolution {resolution} --tokenizer demo",
    ):
        subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return folder / "data/train"


def count_samples(steps: int, batch: int, images: int, short: bool) -> int:
    """Samples trained; the baseline ends each epoch with the batch that is left over, ours goes on into the next."""
    epochs, rest = divmod(steps, math.ceil(images / batch))
    return epochs * images + rest * batch if short else steps * batch


def commands(args: argparse.Namespace, data: Path, folder: Path) -> dict[str, list[str]]:
    """The baseline has no validation by default, no gradient checkpointing, and alpha = rank."""
    quoted = {"data": shlex.quote(str(data)), "folder": shlex.quote(str(folder))}
    shared = (
        f"--train_data_dir {quoted['data']} --output_dir {quoted['folder']}/run --resolution {args.resolution} "
        f"--rank {args.rank} --learning_rate 1e-4 --lr_scheduler constant --train_batch_size {args.train_batch_size} "
        f"--gradient_accumulation_steps 1 --max_train_steps {args.max_train_steps} --seed 0 --report_to tensorboard "
        f"--mixed_precision {args.mixed_precision} --dataloader_num_workers {args.dataloader_num_workers} "
    )
    theirs = f"--caption_column text --checkpointing_steps {10**9} {args.baseline_flags}"
    ours = f"--lora_alpha {args.rank} --no-gradient_checkpointing --validation_steps 0 --checkpointing_steps 0 "
    words = {"diffusers": shared + theirs, "ours": shared + ours + args.ours_flags.format(**quoted)}
    model = args.pretrained_model_name_or_path
    start = {"diffusers": (args.baseline, resolve_model(model)), "ours": (ROOT / "train_lora.py", model)}
    for who, (script, name) in start.items():
        start[who] = [sys.executable, str(script), "--pretrained_model_name_or_path", name, *shlex.split(words[who])]
    return start


def parse_args() -> argparse.Namespace:
    values = {"pretrained_model_name_or_path": "demo", "mixed_precision": "no", "resolution": 128, "rank": 8}
    values |= {"train_batch_size": 8, "max_train_steps": 300, "dataloader_num_workers": 0}
    parser = side_by_side.make_parser(__doc__, "train_text_to_image_lora.py", values)
    parser.add_argument("--train_data_dir", type=Path, help="an imagefolder (default: the demo's casual shoes)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        data = (args.train_data_dir or make_data(Path(name), args.resolution)).resolve()
        images = len((data / "metadata.jsonl").read_text("utf-8").splitlines())
        samples = {
            who: count_samples(args.max_train_steps, args.train_batch_size, images, short=who == "diffusers")
            for who in ("diffusers", "ours")
        }
        side_by_side.compare(args, Path(name), data, lambda folder: commands(args, data, folder), samples)


if __name__ == "__main__":
    main(parse_args())
