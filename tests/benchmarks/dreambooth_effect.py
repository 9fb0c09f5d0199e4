"""Does train_dreambooth.py teach the demo pipeline the demo's subject, and what does the class lose by it?

Images are drawn from the same seeds before and after, with prior preservation and without: of the subject
(cosine of CLIP's features to the photos), and of the class (distance of CLIP's features to the image before).

    python tests/benchmarks/dreambooth_effect.py
    python tests/benchmarks/dreambooth_effect.py --max_train_steps 100 --num_images 8
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from demo.subject import draw_subject
from families import lora_mix
from families.models import DEMO_MODEL
from families.sampler import Execution, ImageRequest, SamplerParts, Sampling, generate_images, load_sampler
from utils import image_checks

SUBJECT, CLASS = "a professional product photo of sks shoes", "a professional product photo of shoes"
FIRST_SEED = 5000  # seeds that no class image has


class Effect(NamedTuple):
    likeness: float  # of the subject's images to its photos
    drift: float  # of the class's images from those before


def draw(run: Path | None, count: int, steps: int) -> dict[str, list[Image.Image]]:
    """Images of the subject and of the class, by the demo pipeline with the LoRA of a run or without."""
    loras = (lora_mix.parse_lora(str(run)),) if run else ()
    parts, how = SamplerParts(str(DEMO_MODEL), "sd1", loras), Sampling(steps, 3.0, 128)
    sampler = load_sampler(parts, how, Execution(torch.device("cpu"), torch.float32, count), [SUBJECT, CLASS])
    found = {}
    for text in (SUBJECT, CLASS):
        images = generate_images(sampler, [ImageRequest(text, FIRST_SEED + i) for i in range(count)])
        found[text] = [one.image for one in images]
    return found


@torch.no_grad()
def features(clip: image_checks.Clip, images: list[Image.Image]) -> torch.Tensor:
    """CLIP's, of length 1."""
    pixels = clip.processor(images, return_tensors="pt").pixel_values
    output = clip.model.visual_projection(clip.model.vision_model(pixel_values=pixels).pooler_output)
    return torch.nn.functional.normalize(output, dim=-1)


def measure(
    clip: image_checks.Clip, photos: list[Image.Image], before: dict[str, list], after: dict[str, list]
) -> Effect:
    likeness = (features(clip, after[SUBJECT]) @ features(clip, photos).T).mean()
    drift = 1 - (features(clip, after[CLASS]) * features(clip, before[CLASS])).sum(1).mean()
    return Effect(likeness.item(), drift.item())


def train_command(photos: Path, classes: Path, out: Path, preserve: bool, more: list[str]) -> list[str]:
    """The recipe, with prior preservation or without."""
    words = ["--config", "configs/demo_dreambooth.yaml", "--instance_data_dir", photos, "--output_dir", out]
    words += ["--validation_steps", 0, "--checkpointing_steps", 0, "--report_to", "none"]
    words += ["--class_data_dir", classes] if preserve else ["--no-with_prior_preservation"]
    return [str(word) for word in [*words, *more]]


def save_photos(folder: Path, count: int = 8) -> list[Image.Image]:
    folder.mkdir(parents=True, exist_ok=True)
    photos = [draw_subject(number) for number in range(count)]
    for number, photo in enumerate(photos):
        photo.save(folder / f"{number:02d}.png")
    return photos


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, clip = Path(name), image_checks.load_clip("demo")
        photos = save_photos(folder / "photos")
        before = draw(None, args.num_images, 20)
        found = {"before": measure(clip, photos, before, before)}
        for what, preserve in (("with prior preservation", True), ("without", False)):
            run = folder / ("prior" if preserve else "plain")
            length = ["--max_train_steps", str(args.max_train_steps), "--seed", str(args.seed)]
            command = train_command(folder / "photos", folder / "class", run, preserve, length)
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "train_dreambooth.py", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
            print(f"{what}: {time.perf_counter() - began:.1f} s, the whole process", flush=True)
            found[what] = measure(clip, photos, before, draw(run, args.num_images, 20))
    print("\n| | cosine to the photos | class images' distance from before |\n|---|---|---|")
    for what, effect in found.items():
        print(f"| {what} | {effect.likeness:.3f} | {effect.drift:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_train_steps", type=int, default=250, help="default: 250, as in the recipe")
    parser.add_argument("--num_images", type=int, default=24, help="of the subject and of the class; default: 24")
    parser.add_argument("--seed", type=int, default=0, help="of the training; default: 0")
    main(parser.parse_args())
