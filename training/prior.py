"""Class images for prior preservation: what the model draws of the class before it learns the subject."""

import logging
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from families import drawing, sampling
from training import examples
from utils import cli, devices
from utils.catalogue import is_image
from utils.cli import UserError
from utils.image_checks import find_fault
from utils.image_set import whole_png

logger = logging.getLogger(__name__)
TRIES = 4  # seeds for one image
FLAGS = {  # what an image that was drawn here says of itself, and the flag that said it
    "prompt": "class_prompt",
    "model": "pretrained_model_name_or_path",
    "size": "resolution",
    "steps": "validation_inference_steps",
    "guidance_scale": "validation_guidance_scale",
}
HOW = ("steps", "guidance_scale")


def list_class_images(folder: Path) -> list[Path]:
    """The images there, sorted; a PNG that doesn't reach its end counts as missing."""
    found = sorted(path for path in folder.glob("*") if is_image(path.name) and path.name[0] != ".")
    return [path for path in found if path.suffix.lower() != ".png" or whole_png(path)]


def check_folder(folder: Path, facts: dict[str, str], count: int) -> None:
    """That the images drawn here earlier were drawn of the same; those of a user's own say nothing of it.

    Where all `count` are there, it is no matter how others would be drawn. What is cut off is told of: other images
    are drawn in its place.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--class_data_dir {folder}: is a file; name a folder")
    if len(list_class_images(folder)) >= count:
        facts = {name: value for name, value in facts.items() if name not in HOW}
    for path in folder.glob("[0-9]*.png"):
        if whole_png(path):
            with Image.open(path) as example:
                told = example.info
            for name, value in facts.items():
                if told.get(name, value) != value:  # earlier versions said less
                    raise UserError(
                        f"--class_data_dir {folder}: {path.name} was drawn with --{FLAGS[name]} {told[name]}, now "
                        f"it is {value}; give that again, name another folder, or remove those images"
                    )
    if cut := sorted(path.name for path in folder.glob("*.png") if not whole_png(path)):
        logger.warning("--class_data_dir %s: not whole, so others are drawn in their place: %s", folder, ", ".join(cut))


def missing_indices(folder: Path, count: int) -> list[int]:
    """The numbers of the images to draw, so that there are `count`; each number has its own seed."""
    there = list_class_images(folder)
    names = {path.name for path in there}
    free = (number for number in range(10 * count) if image_name(number) not in names)
    return [next(free) for _ in range(max(0, count - len(there)))]


def image_name(number: int) -> str:
    return f"{number:06d}.png"


def make_class_images(
    folder: Path,
    prompt: str,
    count: int,
    seed: int,
    size: int,
    steps: int,
    batch: int,
    facts: dict[str, str],
    open_studio: Callable[[], drawing.Studio],
    accelerator: Accelerator,
) -> None:
    """Draw those that are missing, each process its share; what is drawn badly is drawn again from further seeds.

    `facts` are what an image says of itself (see FLAGS); those there must say the same.
    The same images come out however often this is broken off, and whatever the batch and the number of processes.
    """
    check_folder(folder, facts, count)
    folder.mkdir(parents=True, exist_ok=True)
    missing = missing_indices(folder, count)
    accelerator.wait_for_everyone()  # all have looked before the first one draws
    jobs = [(number, 0) for number in missing[accelerator.process_index :: accelerator.num_processes]]
    if jobs:
        furnished = open_studio()
        with tqdm(total=len(jobs), unit=" class images", **cli.progress()) as bar:
            _draw_all(folder, jobs, prompt, seed, size, steps, batch, facts, furnished, bar)
        furnished = None
        devices.free_memory(accelerator.device)
    accelerator.wait_for_everyone()


def _draw_all(
    folder: Path, jobs: list[tuple[int, int]], prompt: str, seed: int, size: int, steps: int,
    batch: int, facts: dict[str, str], furnished: drawing.Studio, bar: tqdm
) -> None:  # fmt: skip
    """The images of `jobs`: (number, how many of its seeds gave a bad one)."""
    left = list(sampling.ECONOMIES) if furnished.device.type != "cpu" else []
    while jobs:
        now, jobs = jobs[:batch], jobs[batch:]
        seeds = [drawing.image_seed(seed, number, retry) for number, retry in now]
        drawn = None
        try:
            texts = [prompt] * len(now)
            drawn = drawing.draw_images(furnished, texts, "", seeds, steps, size)
        except RuntimeError as error:
            if not devices.out_of_memory(error):
                raise
        if drawn is None:  # told here, where the error and the tensors that it holds are gone
            batch, jobs = drawing.relieve_memory(furnished, len(now), left), now + jobs
            continue
        for (number, retry), one, sound, used in zip(now, *drawn, seeds):
            example = Image.fromarray(one.numpy())
            fault = find_fault(example, sound)
            if fault is None:
                drawing.write_image(folder / image_name(number), example, {**facts, "seed": str(used)})
                bar.update()
            elif retry + 1 < TRIES:
                jobs.append((number, retry + 1))
            else:
                raise UserError(
                    f"--class_prompt {prompt!r}: image {number} is bad with each of {TRIES} seeds ({fault}); look at "
                    f"what the model draws of it with generate.py, try --prior_generation_precision fp32"
                )


def class_records(folder: Path, prompt: str, count: int) -> list[dict]:
    """What images.load_images reads: the first `count` images, all with the class prompt."""
    paths = list_class_images(folder)[:count]
    return [{"id": f"class/{path.stem}", "source": path, "text": prompt} for path in paths]


def prior_examples(folder: Path, prompt: str, count: int, resolution: int) -> list[examples.Example]:
    return examples.load_examples(class_records(folder, prompt, count), [(resolution, resolution)])
