"""Labelled images for a classifier: which classes there are, which part of the images each training gets."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.cli import UserError, counted
from utils.devices import key_seed, keyed_generator
from utils.images import BadImage, fit_square, read_image
from utils.parallel import parallel_map
from utils.tables import canonical


class Arm(NamedTuple):
    """One kind of training set. It is another with every seed, but of the same size."""

    name: str
    real_share: float  # of the real training images
    synthetic: str | None  # the name of the synthetic set
    ratio: float | None  # synthetic images for each real one; None where there is no real one
    n_real: int
    n_synthetic: int


def label_of(record: dict, target: str) -> str | None:
    """The value of a column, whether it is named as the catalogue did (baseColour) or as the dataset does (colour)."""
    value = next((record[key] for key in record if canonical(key) == canonical(target)), None)
    return None if value is None or not str(value).strip() else str(value).strip()


def read_labels(records: list[dict], target: str, flag: str) -> list[str | None]:
    labels = [label_of(one, target) for one in records]
    if not records:
        raise UserError(f"{flag}: there is no image in it; give a prepared dataset or a generated set")
    if not any(labels):
        columns = ", ".join(sorted({key for one in records for key in one} - {"path", "text", "id", "file_name"}))
        raise UserError(
            f"--target {target}: no image of {flag} has a value for it; its columns are: {columns or 'none'}"
        )
    return labels


def some(words: Sequence[str], most: int = 5) -> str:
    """A list as text, no longer than can be read: a column may hold a value of its own for each image."""
    return ", ".join(words[:most]) + (f", and {len(words) - most:,} others" if len(words) > most else "")


def choose_classes(train: list, test: list, least: int) -> tuple[list[str], list[str]]:
    """The classes with at least `least` images in both lists of labels, and a line on what is left out."""
    in_train, in_test = (Counter(filter(None, labels)) for labels in (train, test))
    every = sorted(in_train | in_test)
    classes = [name for name in every if min(in_train[name], in_test[name]) >= least]
    told = [f"{name} ({in_train[name]} to train, {in_test[name]} to test)" for name in every if name not in classes]
    lines = [f"left out, fewer than {least} real images to train or to test: {some(told)}"] if told else []
    missing = sum(label is None for label in [*train, *test])
    lines += [f"left out, no label: {counted(missing, 'real image')}"] if missing else []
    return classes, lines


def stranger_lines(labels: list, classes: list[str], name: str) -> list[str]:
    """What of a synthetic set has no place in the comparison."""
    strange = Counter(label if label else "no label" for label in labels if label not in classes).most_common()
    told = [f"{label} {count}" for label, count in strange]
    return [f"left out of {name}, not among the real classes: {some(told)}"] if strange else []


def plan_arms(
    shares: Sequence[float], ratios: Sequence[float], real: np.ndarray, sets: dict[str, int]
) -> tuple[list[Arm], list[str]]:
    """Every arm, and a line for each that is left out. `real` are class numbers, `sets` {name: images}."""
    arms = [Arm(name, 0.0, name, None, 0, n) for name, n in sets.items()]
    lines = []
    for share in shares:
        n_real = len(real_part(real, share, 0))
        arms.append(Arm("real", share, None, 0.0, n_real, 0))
        for name, n in sets.items():
            arms.append(Arm(f"real + {name}", share, name, n / n_real, n_real, n))
            for ratio in ratios:
                wanted, arm = round(ratio * n_real), f"real + {ratio:g}x {name}"
                if wanted < n:
                    arms.append(Arm(arm, share, name, ratio, n_real, wanted))
                else:
                    why = f"is real + {name}" if wanted == n else f"it wants {wanted:,} images, there are {n:,}"
                    lines.append(f"left out with {share:.0%} of the real images: {arm}: {why}")
    return arms, lines


def real_part(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which real images a share is: the same of every class, at least one, and a smaller one within a larger."""
    parts = []
    for number in np.unique(labels):
        members = np.flatnonzero(labels == number)
        order = torch.randperm(len(members), generator=keyed_generator("real", seed, int(number))).numpy()
        parts.append(members[order[: max(1, math.floor(share * len(members) + 0.5))]])
    return np.sort(np.concatenate(parts))


def synthetic_part(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which `count` synthetic images: every class in its share of the set, fewer within more."""
    place = np.empty(len(labels))
    generator = np.random.default_rng(key_seed("synthetic", seed))
    for number in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == number))
        place[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.sort(np.argsort(place, kind="stable")[:count])


def sample_order(images: torch.Tensor, batch: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """The batches of all steps: one permutation of the images after another, whatever their number."""
    count, needed = len(images), batch * steps
    epochs = [
        torch.randperm(count, generator=keyed_generator("order", seed, n)) for n in range(math.ceil(needed / count))
    ]
    return iter(images[torch.cat(epochs)[:needed]].split(batch))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image (n, side, side, 3) flipped or not, and moved by up to 1/16 of its side; its border fills the gap."""
    n, side = images.shape[:2]
    reach = side // 16
    down, across = torch.randint(-reach, reach + 1, (2, n, 1), generator=generator)
    flipped = torch.rand(n, 1, generator=generator) < 0.5
    line = torch.arange(side)
    rows, columns = (line + down).clamp(0, side - 1), (line + across).clamp(0, side - 1)
    columns = torch.where(flipped, columns.flip(1), columns)
    device = images.device
    first = torch.arange(n, device=device)[:, None, None]
    return images[first, rows[:, :, None].to(device), columns[:, None, :].to(device)]


def decode(job: tuple[Path, int]) -> np.ndarray:
    path, side = job
    try:
        return np.asarray(fit_square(read_image(path, shortest=side)[0], side))
    except BadImage as error:
        raise UserError(f"{path}: {error}; mend the image, or take its line out of the set") from None


def decode_all(paths: Sequence[Path], side: int, workers: int) -> np.ndarray:
    """Every image once, as bytes (n, side, side, 3)."""
    pixels = np.empty((len(paths), side, side, 3), np.uint8)
    for i, image in enumerate(parallel_map(decode, ((path, side) for path in paths), workers)):
        pixels[i] = image
    return pixels


def data_fingerprint(parts: dict[str, tuple[list[Path], Sequence]]) -> str:
    """Changes with any label, name or size in bytes of an image; no image is read."""
    digest = hashlib.sha256()
    for name, (paths, labels) in parts.items():
        try:
            lines = [f"{name} {path.name} {path.stat().st_size} {label}\n" for path, label in zip(paths, labels)]
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; an image of {name} is missing") from None
        digest.update("".join(lines).encode())
    return digest.hexdigest()[:16]
