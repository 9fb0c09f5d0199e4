"""Class images for prior preservation: what the model generates for the class before it learns the subject.

Prior preservation: Ruiz et al., DreamBooth, 2022, arXiv 2208.12242.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import free_memory
from PIL import Image

from families.sampler import ImageRequest, Sampler, Sampling, generate_images
from training.examples import Example, Record, load_examples
from utils.catalogue import is_image
from utils.cli import UserError
from utils.console import show_progress
from utils.devices import nth_seed
from utils.image_checks import find_fault
from utils.images import is_whole_png, write_png
from utils.outputs import remove_stale

logger = logging.getLogger(__name__)
TRIES = 4  # seeds for one image
FLAGS = {  # that decide the facts in the header of a generated class image
    "prompt": "class_prompt",
    "model": "pretrained_model_name_or_path",
    "size": "resolution",
    "steps": "validation_inference_steps",
    "guidance_scale": "validation_guidance_scale",
}
MAY_DIFFER = ("steps", "guidance_scale")  # where no image is missing


@dataclass(frozen=True)
class ClassImages:
    """Which class images are wanted."""

    folder: Path
    prompt: str
    count: int
    seed: int
    model: str  # as the user named it
    sampling: Sampling


def describe(wanted: ClassImages) -> dict[str, str]:
    """What a generated class image says of itself in its header: the keys of FLAGS."""
    names = ("size", "steps", "guidance_scale")
    sampling = {name: str(getattr(wanted.sampling, name)) for name in names}
    return {"prompt": wanted.prompt, "model": wanted.model, **sampling}


def list_class_images(folder: Path) -> list[Path]:
    """The images in the folder, sorted; a PNG that does not reach its end counts as missing."""
    paths = sorted(path for path in folder.glob("*") if is_image(path.name) and path.name[0] != ".")
    return [path for path in paths if path.suffix.lower() != ".png" or is_whole_png(path)]


def check_folder(wanted: ClassImages) -> None:
    """Refuse a folder whose generated images were made otherwise; a user's own images say nothing of it.

    Where no image is missing, steps and guidance may differ. Warns of cut files: other images take their place.
    """
    folder = wanted.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--class_data_dir {folder}: is a file; name a folder")
    is_full = len(list_class_images(folder)) >= wanted.count
    facts = {name: value for name, value in describe(wanted).items() if not (is_full and name in MAY_DIFFER)}
    for path in filter(is_whole_png, folder.glob("[0-9]*.png")):
        with Image.open(path) as image:
            header = image.info
        for name, value in facts.items():
            if header.get(name, value) != value:  # earlier versions wrote fewer facts
                raise UserError(
                    f"--class_data_dir {folder}: {path.name} was generated with --{FLAGS[name]} {header[name]}, now "
                    f"it is {value}; give that again, name another folder, or remove those images"
                )
    if cut := sorted(path.name for path in folder.glob("*.png") if not is_whole_png(path)):
        names = ", ".join(cut)
        logger.warning("--class_data_dir %s: damaged, so others are generated in their place: %s", folder, names)


def missing_indices(folder: Path, count: int) -> list[int]:
    """The numbers of the images to generate, so that there are `count`; each number has its own seed."""
    paths = list_class_images(folder)
    names = {path.name for path in paths}
    free = (number for number in range(10 * count) if image_name(number) not in names)
    return [next(free) for _ in range(max(0, count - len(paths)))]


def image_name(number: int) -> str:
    return f"{number:06d}.png"


def make_class_images(wanted: ClassImages, load: Callable[[], Sampler], accelerator: Accelerator) -> None:
    """Generate those that are missing, each process its share; `load` gives the model where it is needed.

    The same images come out however often this is interrupted, for any batch size and number of processes.
    """
    check_folder(wanted)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    remove_stale(wanted.folder)
    missing = missing_indices(wanted.folder, wanted.count)
    accelerator.wait_for_everyone()  # all have listed the files before the first writes one
    if mine := missing[accelerator.process_index :: accelerator.num_processes]:
        _generate_all(wanted, mine, load())
        free_memory()
    accelerator.wait_for_everyone()


def _generate_all(wanted: ClassImages, numbers: list[int], sampler: Sampler) -> None:
    """These images; a bad one is generated again with its next seed."""
    todo, facts = deque((number, 0) for number in numbers), describe(wanted)
    with show_progress(len(todo), "class images", "generating") as bar:
        while todo:
            batch = [todo.popleft() for _ in range(min(sampler.batch_size, len(todo)))]
            seeds = [nth_seed(wanted.seed, number, retry) for number, retry in batch]
            images = generate_images(sampler, [ImageRequest(wanted.prompt, seed) for seed in seeds])
            for (number, retry), seed, made in zip(batch, seeds, images):
                fault = find_fault(made.image, made.is_finite)
                if fault is None:
                    write_png(wanted.folder / image_name(number), made.image, {**facts, "seed": str(seed)})
                    bar.update()
                elif retry + 1 < TRIES:
                    todo.append((number, retry + 1))
                else:
                    exact = sampler.execution.dtype == torch.float32
                    raise UserError(
                        f"--class_prompt {wanted.prompt!r}: image {number} is bad with each of {TRIES} seeds "
                        f"({fault}); look at images of it with generate.py"
                        + ("" if exact else ", try --prior_generation_precision fp32")
                    )


def load_class_images(wanted: ClassImages) -> list[Example]:
    """The first `count` images of the folder, all with the class prompt."""
    paths, size = list_class_images(wanted.folder)[: wanted.count], wanted.sampling.size
    records = [Record(f"class/{path.stem}", path, wanted.prompt) for path in paths]
    return load_examples(records, [(size, size)])
