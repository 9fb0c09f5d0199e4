"""Labelled images for a classifier: which classes there are, which part of the images each training gets."""

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from evaluation.image_sets import Record, find_shared, read_images, spell_alike
from utils.catalogue import canonical
from utils.cli import UserError, counted
from utils.devices import key_seed, keyed_generator
from utils.images import BadImage, fit_square, read_image
from utils.parallel import parallel_map

SPLITS = ("train", "test")
Labels = Sequence[str | None]


class Part(NamedTuple):
    """Some images and the numbers of their classes."""

    paths: list[Path]
    labels: np.ndarray


@dataclass(frozen=True)
class Data:
    classes: list[str]
    parts: dict[str, Part]  # train, test, and each synthetic set by its name
    left_out: list[str]  # lines on images that are left out
    lacking: list[str]  # lines on classes of which a synthetic set has no image

    @property
    def sizes(self) -> dict[str, int]:
        """{synthetic set: its number of images}."""
        return {name: len(part.paths) for name, part in self.parts.items() if name not in SPLITS}

    @property
    def paths(self) -> list[Path]:
        return [path for part in self.parts.values() for path in part.paths]


class Arm(NamedTuple):
    """One kind of training set. Its images differ from seed to seed, not their number."""

    name: str
    real_share: float  # of the real training images
    synthetic: str | None  # the name of the synthetic set
    ratio: float | None  # synthetic images for each real one; None without real images
    n_real: int
    n_synthetic: int

    @property
    def title(self) -> str:
        return f"{self.name} ({self.real_share:.0%} of real)" if self.n_real else f"{self.name} only"


def read_labels(records: Sequence[Record], target: str, flag: str) -> list[str | None]:
    """The values of a column, by either of its names (baseColour or colour); refuses a column without any value."""
    labels = [str(one.get(canonical(target)) or "").strip() or None for one in records]
    if not any(labels):
        columns = ", ".join(sorted({key for one in records for key in one} - {"path", "text", "id", "file_name"}))
        raise UserError(
            f"--target {target}: no image of {flag} has a value for it; its columns are: {columns or 'none'}"
        )
    return labels


def shorten(words: Sequence[str], most: int = 5) -> str:
    """A list as text, cut after a few words: a column may have a different value for each image."""
    return ", ".join(words[:most]) + (f", and {len(words) - most:,} others" if len(words) > most else "")


def choose_classes(train: Labels, test: Labels, least: int) -> tuple[list[str], list[str]]:
    """The classes with at least `least` images in both lists of labels, and lines on what is left out."""
    in_train, in_test = (Counter(filter(None, labels)) for labels in (train, test))
    every = sorted(in_train | in_test)
    classes = [name for name in every if min(in_train[name], in_test[name]) >= least]
    rare = [f"{name} ({in_train[name]} to train, {in_test[name]} to test)" for name in every if name not in classes]
    lines = [f"left out, fewer than {least} real images to train or to test: {shorten(rare)}"] if rare else []
    missing = sum(label is None for label in [*train, *test])
    lines += [f"left out, no label: {counted(missing, 'real image')}"] if missing else []
    return classes, lines


def unknown_labels(labels: Labels, classes: Sequence[str], name: str) -> list[str]:
    """A line on a synthetic set's images that are of no class of the real set."""
    unknown = Counter(label if label else "no label" for label in labels if label not in classes).most_common()
    counts = [f"{label} {count}" for label, count in unknown]
    return [f"left out of {name}, not among the real classes: {shorten(counts)}"] if counts else []


def name_sets(synthetic: Sequence[Path]) -> list[str]:
    """A name for each synthetic set: `synthetic`, or its folder's; refuses the same set twice."""
    names = ["synthetic"] if len(synthetic) == 1 else [one.name for one in synthetic]
    if len({*names, "real", *SPLITS}) < len(names) + 3:  # folders of one name, or of a name that is taken
        names = [str(one) for one in synthetic]
    if len({*names}) < len(names):
        raise UserError(f"--synthetic {' '.join(names)}: the same set twice; give each once")
    return names


def read_data(real: Path, synthetic: Sequence[Path], target: str, least: int) -> Data:
    """The labelled images, not yet opened; refuses a column without two classes of `least` real images."""
    names = name_sets(synthetic)
    for split in SPLITS:
        if not (real / split).is_dir():
            raise UserError(
                f"--real {real}: the split `{split}` is missing; give a dataset that prepare_dataset.py made, "
                "not one of its splits"
            )
    places = {split: (real / split, "--real") for split in SPLITS}
    places |= {name: (place, "--synthetic") for name, place in zip(names, synthetic)}
    records = spell_alike({name: read_images(*place) for name, place in places.items()})
    labels = {name: read_labels(records[name], target, f"{flag} {place}") for name, (place, flag) in places.items()}
    classes, lines = choose_classes(labels["train"], labels["test"], least)
    if len(classes) < 2:
        raise UserError(
            f"--target {target}: {'1 value has' if classes else '0 values have'} --min_per_class {least} real images "
            f"to train and to test, and two are needed; lower it, or choose another column ({'; '.join(lines)})"
        )
    parts = {}
    for name in places:
        kept = [i for i, label in enumerate(labels[name]) if label in classes]
        if name in names:
            lines += unknown_labels(labels[name], classes, name)
        if not kept:
            raise UserError(
                f"--synthetic {places[name][0]}: none of its labels is a class of the real set ({', '.join(classes)}); "
                "use the same spelling in both"
            )
        numbers = np.array([classes.index(str(labels[name][i])) for i in kept])
        parts[name] = Part([records[name][i]["path"] for i in kept], numbers)
    refuse_shared({name: [one["path"] for one in some] for name, some in records.items()}, places)
    lacking = [line for name in names if (line := describe_lacking(name, parts, classes))]
    return Data(classes, parts, lines, lacking)


def refuse_shared(paths: Mapping[str, list[Path]], places: Mapping[str, tuple[Path, str]]) -> None:
    """Refuse a test image that is, byte by byte, among training images, and a real image in a synthetic set."""
    pairs = [("test", "train"), *((split, name) for name in paths if name not in SPLITS for split in SPLITS)]
    for split, name in pairs:
        if shared := find_shared(paths[name], paths[split]):
            place, flag = places[name]
            raise UserError(
                f"{flag} {place}: has {counted(len(shared), 'image')} of {places[split][0]} ({shared[0]}); test images "
                "must be new to every training, and real ones are not synthetic: give folders without common images"
            )


def describe_lacking(name: str, parts: Mapping[str, Part], classes: Sequence[str]) -> str:
    """A line on the classes that a synthetic set lacks, which no training on it alone can learn."""
    tested = np.bincount(parts["test"].labels, minlength=len(classes))
    lacking = [place for place in range(len(classes)) if place not in parts[name].labels]
    if not lacking:
        return ""
    which = shorten([f"{classes[place]} ({tested[place]})" for place in lacking], len(classes))
    return (
        f"{name} has no image of {len(lacking)} of {len(classes)} classes, which are {tested[lacking].sum()} of "
        f"{counted(int(tested.sum()), 'test image')}: {which}"
    )


def plan_arms(data: Data, shares: Sequence[float], ratios: Sequence[float]) -> tuple[list[Arm], list[str]]:
    """Every arm, and a line for each that is left out."""
    arms = [Arm(name, 0.0, name, None, 0, n) for name, n in data.sizes.items()]
    lines = []
    for share in shares:
        n_real = len(real_part(data.parts["train"].labels, share, 0))
        arms.append(Arm("real", share, None, 0.0, n_real, 0))
        for name, n in data.sizes.items():
            arms.append(Arm(f"real + {name}", share, name, n / n_real, n_real, n))
            for ratio in ratios:
                wanted, arm = round(ratio * n_real), f"real + {ratio:g}x {name}"
                if wanted < n:
                    arms.append(Arm(arm, share, name, ratio, n_real, wanted))
                else:
                    why = f"is real + {name}" if wanted == n else f"it needs {wanted:,} images, the set has {n:,}"
                    lines.append(f"left out with {share:.0%} of the real images: {arm}: {why}")
    return arms, lines


def pair_arms(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Real against all else of its share and against synthetic alone; then each synthetic set against each other."""
    real = [arm for arm in arms if arm.synthetic is None]
    others = [arm for arm in arms if arm.synthetic is not None]
    pairs = [(one, two) for one in real for two in others if two.real_share in (0, one.real_share)]
    for i, one in enumerate(others):
        kind = one.name.removesuffix(str(one.synthetic))
        pairs += [
            (one, two)
            for two in others[i + 1 :]
            if two.real_share == one.real_share and two.name.removesuffix(str(two.synthetic)) == kind
        ]
    return pairs


def choose_images(arm: Arm, parts: Mapping[str, Part], seed: int) -> torch.Tensor:
    """The places of an arm's training images among the images of all parts."""
    starts = dict(zip(parts, np.cumsum([0, *(len(part.paths) for part in parts.values())])))
    chosen = [np.array([], np.int64)]
    if arm.n_real:
        chosen.append(starts["train"] + real_part(parts["train"].labels, arm.real_share, seed))
    if arm.synthetic:
        picked = synthetic_part(parts[arm.synthetic].labels, arm.n_synthetic, seed)
        chosen.append(starts[arm.synthetic] + picked)
    return torch.from_numpy(np.concatenate(chosen))


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


def decode(path: Path, side: int) -> np.ndarray:
    try:
        return np.asarray(fit_square(read_image(path, shortest=side)[0], side))
    except BadImage as error:
        raise UserError(f"{path}: {error}; replace the image, or remove its line from the set") from None


def decode_all(paths: Sequence[Path], side: int, workers: int) -> np.ndarray:
    """Every image once, as bytes (n, side, side, 3)."""
    pixels = np.empty((len(paths), side, side, 3), np.uint8)
    for i, image in enumerate(parallel_map(functools.partial(decode, side=side), paths, workers)):
        pixels[i] = image
    return pixels


def data_fingerprint(parts: Mapping[str, Part]) -> str:
    """Changes with any label, name or size in bytes of an image; no image is read."""
    digest = hashlib.sha256()
    for name, part in parts.items():
        try:
            lines = [
                f"{name} {path.name} {path.stat().st_size} {label}\n" for path, label in zip(part.paths, part.labels)
            ]
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; an image of {name} is missing") from None
        digest.update("".join(lines).encode())
    return digest.hexdigest()[:16]
