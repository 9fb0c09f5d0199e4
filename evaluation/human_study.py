"""A blind study of real and generated images: the page that raters open, and what their answers show."""

import hashlib
import json
import logging
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.image_sets import Record
from evaluation.intervals import agreement, crossed_interval
from evaluation.report.rendering import encode_image, render_page
from utils.cli import UserError
from utils.files import read_object, write_json, write_text
from utils.images import BadImage, fit_square, read_image

LARGEST = 512  # pixels: a page of 200 images stays under 15 MB
GOOD = 4  # the lowest rating that counts as good
KINDS = ("real", "generated")
DOWNLOADED = "a file that study.html let a rater download"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyImage:
    kind: str
    path: Path
    image: Image.Image


@dataclass(frozen=True)
class Ratings:
    """One rater's file: {item: (rating, guess)}. `session` is the browser's, `saved` the time of the download."""

    path: Path
    rater: str
    session: str
    saved: str
    answers: dict[int, tuple[int, str]]


def write_study(
    folder: Path, real: list[Record], generated: list[Record], n: int, seed: int, overwrite: bool = False
) -> Path:
    """Write study.html of n images, half of them real, and study_key.json, which says which; raters must not see it.

    Every image is processed in the same way: fitted into a square of one size, encoded as the same JPEG, without its
    name. The same images and seed make the same page. The key of another study is replaced only with `overwrite`, since
    no rating of that study can be read without it.
    """
    if n < 4 or n % 2:
        raise UserError(f"--human_study {n}: expected an even number of at least 4, half of the images being real")
    rng = random.Random(seed)
    chosen = choose_images(real, n // 2, rng, "real") + choose_images(generated, n // 2, rng, "generated")
    rng.shuffle(chosen)
    side = min(LARGEST, *(max(one.image.size) for one in chosen))  # none is enlarged, which would show
    images = [encode_image(fit_square(one.image, side), "JPEG", 92) for one in chosen]
    study = hashlib.sha256("".join(images).encode()).hexdigest()[:12]
    key = folder / "study_key.json"
    if key.is_file() and not overwrite and (other := read_key(key)[0]) != study:
        raise UserError(f"{key}: is of another study ({other}); give another --output_dir, or add --overwrite")
    items = [{"item": i, "kind": one.kind, "file": str(one.path.resolve())} for i, one in enumerate(chosen, 1)]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(key, {"version": 1, "study": study, "seed": seed, "items": items})
    write_text(folder / "study.html", render_page("study.html", study={"id": study, "images": images}))
    return folder / "study.html"


def choose_images(records: list[Record], count: int, rng: random.Random, kind: str) -> list[StudyImage]:
    """`count` images in a random order; an unreadable one is replaced by another, with a warning."""
    found: list[StudyImage] = []
    for path in (Path(one["path"]) for one in rng.sample(records, len(records))):
        if len(found) == count:
            break
        try:
            found.append(StudyImage(kind, path, read_image(path, longest=LARGEST)[0]))
        except BadImage as error:
            logger.warning("%s: %s; another image is used in the study", path, error)
    if len(found) < count:
        raise UserError(
            f"--human_study {2 * count}: needs {count} readable {kind} images, found {len(found)}; ask for fewer"
        )
    return found


def read_key(path: Path) -> tuple[str, list[str]]:
    """(the study's id, the kind of each item in order) from study_key.json."""
    key = read_object(path, "the study_key.json that was written with study.html", "--ratings")
    try:
        kinds = [one["kind"] for one in sorted(key["items"], key=lambda one: one["item"])]
        if set(kinds) != set(KINDS):
            raise ValueError("items must be real and generated")
        return key["study"], kinds
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not a study key; make the study again, with --overwrite") from None


def read_ratings(path: Path, study: str, count: int) -> Ratings:
    """One rater's answers in the study, which has `count` images; refused if they are damaged or of another study."""
    value = read_object(path, DOWNLOADED, "--ratings")
    if "items" in value and "answers" not in value:
        raise UserError(f"--ratings {path}: is the key of a study, not a rater's answers; expected {DOWNLOADED}")
    if value.get("study") != study:
        found = value.get("study", "none")
        raise UserError(f"--ratings {path}: of another study ({found}), the key is of {study}; leave the file out")
    if fault := find_fault(value, count):
        raise UserError(f"--ratings {path}: {fault}; ask the rater to download the answers again")
    answers = {one["item"]: (one["rating"], one["guess"]) for one in value["answers"]}
    if not answers:
        raise UserError(f"--ratings {path}: has no answers; leave it out")
    return Ratings(path, value["rater"], value["session"], value["saved"], answers)


def find_fault(value: dict[str, Any], count: int) -> str:
    """What is wrong with a rater's file, and with which answer; an empty text if nothing is."""
    for key in ("rater", "session", "saved"):
        if not isinstance(value.get(key), str):
            return f"its `{key}` is not text"
    if not isinstance(value.get("answers"), list):
        return "its `answers` are not a list"
    for place, one in enumerate(value["answers"], 1):
        if not is_answer(one, count):
            found = json.dumps(one)[:200]
            return f"answer {place}: expected item 1 to {count}, rating 1 to 5, guess real or generated; found {found}"
    items = Counter(one["item"] for one in value["answers"])
    return next((f"item {item} is in it twice" for item, times in items.items() if times > 1), "")


def is_answer(one: Any, count: int) -> bool:
    item, rating, guess = (one.get(key) if isinstance(one, dict) else None for key in ("item", "rating", "guess"))
    numbers = type(item) is int and type(rating) is int  # a bool is an int, too
    return numbers and 1 <= item <= count and 1 <= rating <= 5 and guess in KINDS


def expand_pattern(path: Path) -> list[Path]:
    """The files of a pattern that no shell has expanded, in quotes or in a recipe."""
    found = sorted(path.parent.glob(path.name)) if "*" in path.name else [path] if path.exists() else []
    if not found:
        raise UserError(f"--ratings {path}: no such file; give the files that the raters downloaded")
    return found


def keep_latest(files: list[Ratings]) -> tuple[list[Ratings], list[str]]:
    """(one file for each browser, notes): of two downloads the later one counts."""
    latest: dict[str, Ratings] = {}
    notes = []
    for one in files:
        other = latest.get(one.session)
        if other:
            notes.append(f"{other.path.name} and {one.path.name} are from one rater; the later one counts.")
        if not other or one.saved >= other.saved:
            latest[one.session] = one
    return list(latest.values()), notes


def name_raters(files: list[Ratings]) -> list[str]:
    """The name of each rater, or a number; two people of one name are refused."""
    seen: dict[str, Path] = {}
    names = []
    for number, one in enumerate(files, 1):
        name = " ".join(one.rater.split())
        if name and name.casefold() in seen:
            raise UserError(
                f"--ratings {one.path}: by {name}, like {seen[name.casefold()]}; leave one out, or if these are "
                "two people, change `rater` in one of the files"
            )
        seen[name.casefold()] = one.path
        names.append(name or f"rater {number}")
    return names


def merge_ratings(study_key: Path, paths: list[Path]) -> dict[str, Any]:
    """The raters' answers, as `human` of metrics.json has it; every figure with its interval.

    mean and good {"real", "generated", "difference"}, agreement, told (how often they guess right), notes.
    """
    found = [path for one in paths for path in expand_pattern(one)]
    if not found:
        raise UserError("--ratings: give the files that the raters downloaded")
    study, kinds = read_key(study_key)
    files, notes = keep_latest([read_ratings(path, study, len(kinds)) for path in found])
    raters = name_raters(files)
    for rater, one in zip(raters, files):
        if len(one.answers) < len(kinds):
            notes.append(f"{rater} left out {len(kinds) - len(one.answers)} of {len(kinds)} images.")
    if len(raters) == 1:
        notes.append("One rater: the intervals are about other images, not about other people.")
    ratings, right = tabulate(files, kinds)
    real = np.array([kind == "real" for kind in kinds])
    for kind, chosen in (("real", real), ("generated", ~real)):
        if (~np.isnan(ratings[:, chosen])).any(0).sum() < 2:
            raise UserError(f"--ratings: fewer than 2 {kind} images have been rated; collect more ratings")
    return {
        "study": study,
        "items": len(kinds),
        "raters": raters,
        "mean": compare_kinds(ratings, real, (1, 5)),
        "good": compare_kinds(np.where(np.isnan(ratings), np.nan, ratings >= GOOD), real, (0, 1)),
        "agreement": measure_agreement(ratings),
        "told": judge_guesses(right, real),
        "notes": notes,
    }


def tabulate(files: list[Ratings], kinds: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ratings, whether the guess is right) as tables of raters by items; NaN where one did not answer."""
    ratings, right = (np.full((len(files), len(kinds)), np.nan) for _ in range(2))
    for row, one in enumerate(files):
        for item, (rating, guess) in one.answers.items():
            ratings[row, item - 1], right[row, item - 1] = rating, guess == kinds[item - 1]
    return ratings, right


def compare_kinds(table: np.ndarray, real: np.ndarray, ends: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Means of the real, the generated, and how much the latter are above the former for the same raters."""
    parts = {"real": table[:, real], "generated": table[:, ~real]}
    found = {kind: make_figure(crossed_interval([(part, 1.0)]), ends, part) for kind, part in parts.items()}
    reach = ends[1] - ends[0]
    apart = crossed_interval([(parts["generated"], 1.0), (parts["real"], -1.0)])
    return {**found, "difference": make_figure(apart, (-reach, reach), table)}


def judge_guesses(right: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """The mean of the shares of right guesses among real and generated: 0.5 for a rater who always says `real`."""
    found = make_figure(crossed_interval([(right[:, real], 0.5), (right[:, ~real], 0.5)]), (0, 1), right)
    if found["low"] <= 0.5 <= found["high"]:
        verdict = "no difference shown"
    else:
        verdict = "people can tell" if found["value"] > 0.5 else "people confuse real and generated"
    return {**found, "verdict": verdict}


def make_figure(estimate: tuple[float, float, float], ends: tuple[int, int], table: np.ndarray) -> dict[str, float]:
    """The estimate with its n; its interval is cut at `ends`."""
    value, low, high = estimate
    return {"value": value, "low": max(low, ends[0]), "high": min(high, ends[1]), "n": int((~np.isnan(table)).sum())}


def measure_agreement(ratings: np.ndarray) -> dict[str, Any]:
    """Krippendorff's alpha, or why there is none."""
    try:
        value, low, high = agreement(ratings)
    except UserError as error:
        return {"refused": str(error)}
    if not np.isfinite([value, low, high]).all():
        return {"refused": "agreement: all ratings are the same, so agreement is undefined"}
    shared = int(((~np.isnan(ratings)).sum(0) >= 2).sum())
    return {"value": value, "low": low, "high": high, "n": shared}
