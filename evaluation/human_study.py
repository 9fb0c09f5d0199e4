"""A blind study of real and generated images: the page that raters open, and what their answers show."""

import argparse
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
from scipy import special

from evaluation.image_sets import Record
from evaluation.intervals import agreement, crossed_interval
from evaluation.report.rendering import encode_image, render_page
from utils.cli import Range, UserError
from utils.files import read_object, write_json, write_text
from utils.images import BadImage, fit_square, read_image

LARGEST = 512  # pixels: a page of 200 images stays under 15 MB
GOOD = 4  # the lowest rating that counts as good
KINDS = ("real", "generated")
PAIR = "pair"  # the kind of an item of two sounds of one sentence, of which one is preferred
PREFERENCES = ("a", "b", "none")
DOWNLOADED = "a file that study.html or listening.html let a rater download"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyImage:
    kind: str
    path: Path
    image: Image.Image


@dataclass(frozen=True)
class Ratings:
    """One rater's file: {item: what was answered}. `session` is the browser's, `saved` the time of the download."""

    path: Path
    rater: str
    session: str
    saved: str
    answers: dict[int, dict[str, Any]]


def half_real(text: str) -> int:
    """A type for the images or sounds of a page: an even number, since half of them are real."""
    count = Range(4, 10_000, int)(text)
    if count % 2:
        raise argparse.ArgumentTypeError(f"{text}: expected an even number, half of them being real")
    return count


def write_study(
    folder: Path, real: list[Record], generated: list[Record], n: int, seed: int, overwrite: bool = False
) -> Path:
    """Write study.html of n images, half of them real, and study_key.json, which says which; raters must not see it.

    Every image is processed in the same way: fitted into a square of one size, encoded as the same JPEG, without its
    name. The same images and seed make the same page. The key of another study is replaced only with `overwrite`, since
    no rating of that study can be read without it.
    """
    rng = random.Random(seed)
    chosen = choose_images(real, n // 2, rng, "real") + choose_images(generated, n // 2, rng, "generated")
    rng.shuffle(chosen)
    side = min(LARGEST, *(max(one.image.size) for one in chosen))  # none is enlarged, which would show
    images = [encode_image(fit_square(one.image, side), "JPEG", 92) for one in chosen]
    items = [{"kind": one.kind, "file": str(one.path.resolve())} for one in chosen]
    key = {"version": 1, "seed": seed, "items": items}
    return write_page(folder, "study", [[one] for one in images], key, overwrite)


def write_page(folder: Path, name: str, items: list[list[str]], key: dict[str, Any], overwrite: bool) -> Path:
    """Write <name>.html, of a template of this name, and <name>_key.json, which gets the study's id.

    `items` are the addresses that each item shows: one to rate, or two to compare.
    """
    study = hashlib.sha256("".join(address for item in items for address in item).encode()).hexdigest()[:12]
    place = folder / f"{name}_key.json"
    if place.is_file() and not overwrite and (other := read_key(place)["study"]) != study:
        raise UserError(f"{place}: is of another study ({other}); give another --output_dir, or add --overwrite")
    numbered = [{"item": i, **one} for i, one in enumerate(key["items"], 1)]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(place, {**key, "study": study, "items": numbered})
    write_text(folder / f"{name}.html", render_page(f"{name}.html", study={"id": study, "items": items}))
    return folder / f"{name}.html"


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


def read_key(path: Path) -> dict[str, Any]:
    """study_key.json, with its `study` and its `items` in order."""
    key = read_object(path, f"the {path.name} that was written with the page", "--ratings")
    try:
        items = sorted(key["items"], key=lambda one: one["item"])
        kinds = {one["kind"] for one in items}
        if not kinds <= {*KINDS, PAIR} or len(kinds & {*KINDS}) == 1:
            raise ValueError("items must be real and generated")
        return {**key, "study": key["study"], "items": items}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not a study key; make the study again, with --overwrite") from None


def read_ratings(path: Path, study: str, kinds: list[str]) -> Ratings:
    """One rater's answers about items of these kinds; refused if they are damaged or of another study."""
    value = read_object(path, DOWNLOADED, "--ratings")
    if "items" in value and "answers" not in value:
        raise UserError(f"--ratings {path}: is the key of a study, not a rater's answers; expected {DOWNLOADED}")
    if missing := {"study", "answers"} - value.keys():
        raise UserError(f"--ratings {path}: has no `{min(missing)}`; expected {DOWNLOADED}")
    if (found := value["study"]) != study:
        raise UserError(f"--ratings {path}: of another study ({found}), the key is of {study}; leave the file out")
    if fault := find_fault(value, kinds):
        raise UserError(f"--ratings {path}: {fault}; ask the rater to download the answers again")
    answers = {one["item"]: one for one in value["answers"]}
    if not answers:
        raise UserError(f"--ratings {path}: has no answers; leave it out")
    return Ratings(path, value["rater"], value["session"], value["saved"], answers)


def find_fault(value: dict[str, Any], kinds: list[str]) -> str:
    """What is wrong with a rater's file, and with which answer; an empty text if nothing is."""
    for key in ("rater", "session", "saved"):
        if not isinstance(value.get(key), str):
            return f"its `{key}` is not text"
    if not isinstance(value.get("answers"), list):
        return "its `answers` are not a list"
    for place, one in enumerate(value["answers"], 1):
        if not is_answer(one, kinds):
            found = json.dumps(one, ensure_ascii=False)[:200]
            expected = "rating 1 to 5, guess real or generated"
            expected += ", or preference a, b or none" * (PAIR in kinds)
            return f"answer {place}: expected item 1 to {len(kinds)}, {expected}; found {found}"
    items = Counter(one["item"] for one in value["answers"])
    return next((f"item {item} is in it twice" for item, times in items.items() if times > 1), "")


def is_answer(one: Any, kinds: list[str]) -> bool:
    item = one.get("item") if isinstance(one, dict) else None
    if type(item) is not int or not 1 <= item <= len(kinds):  # a bool is an int, too
        return False
    if kinds[item - 1] == PAIR:
        return one.get("preference") in PREFERENCES
    rating = one.get("rating")
    return type(rating) is int and 1 <= rating <= 5 and one.get("guess") in KINDS


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

    mean and good {"real", "generated", "difference"}, agreement, told (how often they guess right), notes; of pairs,
    preference.
    """
    found = [path for one in paths for path in expand_pattern(one)]
    if not found:
        raise UserError("--ratings: give the files that the raters downloaded")
    key = read_key(study_key)
    kinds = [one["kind"] for one in key["items"]]
    files, notes = keep_latest([read_ratings(path, key["study"], kinds) for path in found])
    raters = name_raters(files)
    what = "items" if PAIR in kinds or "listening" in study_key.name else "images"
    for rater, one in zip(raters, files):
        if len(one.answers) < len(kinds):
            notes.append(f"{rater} left out {len(kinds) - len(one.answers)} of {len(kinds)} {what}.")
    if len(raters) == 1:
        notes.append(f"One rater: the intervals are about other {what}, not about other people.")
    human = {"study": key["study"], "items": len(kinds), "raters": raters}
    if set(KINDS) <= {*kinds}:
        human |= judge_ratings(files, kinds, what)
    if PAIR in kinds:
        pairs = [one for one in key["items"] if one["kind"] == PAIR]
        others = dict.fromkeys(one["against"] for one in pairs)
        human["preferences"] = [judge_preferences(files, pairs, against) for against in others]
    return human | {"notes": notes}


def judge_ratings(files: list[Ratings], kinds: list[str], what: str) -> dict[str, Any]:
    ratings, right = tabulate(files, kinds)
    real, generated = (np.array([one == kind for one in kinds]) for kind in KINDS)
    for kind, chosen in zip(KINDS, (real, generated)):
        if (~np.isnan(ratings[:, chosen])).any(0).sum() < 2:
            raise UserError(f"--ratings: fewer than 2 {kind} {what} have been rated; collect more ratings")
    rated = real | generated
    ratings, right, real = ratings[:, rated], right[:, rated], real[rated]
    return {
        "mean": compare_kinds(ratings, real, (1, 5)),
        "good": compare_kinds(np.where(np.isnan(ratings), np.nan, ratings >= GOOD), real, (0, 1)),
        "agreement": measure_agreement(ratings),
        "told": judge_guesses(right, real),
    }


def judge_preferences(files: list[Ratings], pairs: list[dict[str, Any]], against: str) -> dict[str, Any]:
    """How often the voice is preferred to this other one, `no difference` counted as half; a sign test over sentences.

    A sentence counts once in the test, by its mean over raters: answers about one sentence are not independent.
    """
    pairs = [one for one in pairs if one["against"] == against]
    table = np.full((len(files), len(pairs)), np.nan)
    for column, item in enumerate(pairs):
        score = {"none": 0.5, "a": float(item["first"] == "generated"), "b": float(item["first"] != "generated")}
        for row, one in enumerate(files):
            if answer := one.answers.get(item["item"]):
                table[row, column] = score[answer["preference"]]
    table = table[:, (~np.isnan(table)).any(0)]
    if table.shape[1] < 2:
        raise UserError(f"--ratings: fewer than 2 pairs with {against} have been compared; collect more ratings")
    means = np.nanmean(table, 0)
    above, below = int((means > 0.5).sum()), int((means < 0.5).sum())
    found = make_figure(crossed_interval([(table, 1.0)]), (0, 1), table)
    verdict = "no difference shown"
    if not found["low"] <= 0.5 <= found["high"]:
        verdict = "preferred" if found["value"] > 0.5 else "the other is preferred"
    return {**found, "p": sign_test(above, below), "against": against, "verdict": verdict}


def sign_test(above: int, below: int) -> float:
    """The chance of so uneven a split, or a more uneven one, if both sides were as likely (Dixon & Mood 1946)."""
    return min(1.0, 2 * float(special.bdtr(min(above, below), above + below, 0.5)))


def tabulate(files: list[Ratings], kinds: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ratings, whether the guess is right) as tables of raters by items; NaN where one did not answer."""
    ratings, right = (np.full((len(files), len(kinds)), np.nan) for _ in range(2))
    for row, one in enumerate(files):
        for item, answer in one.answers.items():
            if kinds[item - 1] != PAIR:
                ratings[row, item - 1], right[row, item - 1] = answer["rating"], answer["guess"] == kinds[item - 1]
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
