"""A blind study of real and generated images: the page that raters open, and what their answers come to."""

import hashlib
import json
import logging
import random
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.intervals import agreement, crossed_interval
from evaluation.report.page import data_uri, fill
from utils.cli import UserError
from utils.files import write_json, write_text
from utils.images import BadImage, fit_square, read_image

LARGEST = 512  # pixels: a page of 200 images stays under 15 MB
GOOD = 4  # from this rating on

logger = logging.getLogger(__name__)


def _draw(records: list[dict], count: int, rng: random.Random, flag: str) -> list[tuple[Path, Image.Image]]:
    """`count` of the images in a seeded order; what can't be read is passed over."""
    found = []
    for one in rng.sample(records, len(records)):
        if len(found) == count:
            break
        try:
            found.append((Path(one["path"]), read_image(Path(one["path"]), longest=LARGEST)[0]))
        except BadImage as error:
            logger.warning("%s: %s; another image takes its place in the study", one["path"], error)
    if len(found) < count:
        raise UserError(
            f"--human_study {2 * count}: needs {count} readable {flag} images, found {len(found)}; ask for fewer"
        )
    return found


def write_study(
    folder: Path, real: list[dict], generated: list[dict], n: int, seed: int, overwrite: bool = False
) -> Path:
    """study.html of n images, half of them real, and study_key.json, which says which; the key is not for raters.

    Every image goes the same way: fitted in a square of one size, encoded as the same JPEG, without its name. The
    key's file names are whole paths. The same images and seed make the same page. Another study's key is not replaced
    without `overwrite`: no rating of that study could be read any more.
    """
    if n < 4 or n % 2:
        raise UserError(f"--human_study {n}: expected an even number of at least 4, half of the images being real")
    rng = random.Random(seed)
    drawn = [("real", *one) for one in _draw(real, n // 2, rng, "real")]
    drawn += [("generated", *one) for one in _draw(generated, n // 2, rng, "generated")]
    rng.shuffle(drawn)
    side = min(LARGEST, *(max(image.size) for _, _, image in drawn))  # none is enlarged, which would show
    images = [data_uri(fit_square(image, side), "JPEG", 92) for _, _, image in drawn]
    study = hashlib.sha256("".join(images).encode()).hexdigest()[:12]
    key = folder / "study_key.json"
    if key.is_file() and not overwrite and (other := read_key(key)[0]) != study:
        raise UserError(f"{key}: is of another study ({other}); name another --output_dir, or add --overwrite")
    items = [{"item": i, "kind": kind, "file": str(path.resolve())} for i, (kind, path, _) in enumerate(drawn, 1)]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(key, {"version": 1, "study": study, "seed": seed, "items": items})
    content = json.dumps({"id": study, "images": images}).replace("<", "\\u003c")
    page = fill("study.html", count=str(n), study=content, style=fill("study.css"), script=fill("study.js"))
    write_text(folder / "study.html", page)
    return folder / "study.html"


def _read_json(path: Path, flag: str, wanted: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; expected {wanted}") from None
    except ValueError as error:
        raise UserError(f"{flag} {path}: damaged ({error}); expected {wanted}") from None
    if not isinstance(value, dict):
        raise UserError(f"{flag} {path}: expected {wanted}")
    return value


def read_key(path: Path) -> tuple[str, list[str]]:
    """(the study's id, the kind of each item in order) from study_key.json."""
    key = _read_json(path, "--ratings", "the study_key.json that was written beside study.html")
    try:
        kinds = [one["kind"] for one in sorted(key["items"], key=lambda one: one["item"])]
        if set(kinds) != {"real", "generated"}:
            raise ValueError("items must be real and generated")
        return key["study"], kinds
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no key of a study; make the study again, with --overwrite") from None


def read_ratings(path: Path, study: str, count: int) -> dict:
    """One rater's answers: {"rater", "session", "saved", "answers": {item: (rating, guess)}}."""
    wanted = "a file that study.html let a rater download"
    value = _read_json(path, "--ratings", wanted)
    if "items" in value and "answers" not in value:
        raise UserError(f"--ratings {path}: is the key of a study, not a rater's answers; expected {wanted}")
    if value.get("study") != study:
        found = value.get("study", "none")
        raise UserError(f"--ratings {path}: of another study ({found}), this one's key is of {study}; leave it out")
    if fault := _find_fault(value, count):
        raise UserError(f"--ratings {path}: {fault}; expected {wanted}; ask the rater for it again")
    answers = {one["item"]: (one["rating"], one["guess"]) for one in value["answers"]}
    if not answers:
        raise UserError(f"--ratings {path}: has no answers; leave it out")
    return {**{key: value[key] for key in ("rater", "session", "saved")}, "answers": answers, "path": path}


def _find_fault(value: dict, count: int) -> str | None:
    """What is wrong with a rater's answers, and with which of them."""
    for key in ("rater", "session", "saved"):
        if not isinstance(value.get(key), str):
            return f"its `{key}` is no text"
    if not isinstance(value.get("answers"), list):
        return "its `answers` are no list"
    seen = set()
    for place, one in enumerate(value["answers"], 1):
        item, rating, guess = (one.get(key) if isinstance(one, dict) else None for key in ("item", "rating", "guess"))
        if type(item) is not int:
            return f"answer {place} does not say of which item it is"
        if not 1 <= item <= count:
            return f"item {item} is not in the study, which has {count}"
        if type(rating) is not int or not 1 <= rating <= 5:
            return f"item {item}: the rating is {json.dumps(rating)}, not 1 to 5"
        if guess not in ("real", "generated"):
            return f"item {item}: the guess is {json.dumps(guess)}, neither real nor generated"
        if item in seen:
            return f"item {item} is in it twice"
        seen.add(item)
    return None


def _expand(path: Path) -> list[Path]:
    """What a pattern stands for that no shell has expanded, in quotes or in a recipe."""
    if "*" not in path.name:
        return [path]
    found = sorted(path.parent.glob(path.name))
    if not found:
        raise UserError(f"--ratings {path}: no file has such a name; name the files that the raters downloaded")
    return found


def _one_each(found: list[dict], count: int) -> tuple[list[dict], list[str]]:
    """(one file for each rater, notes): the later of two downloads by one browser; two people of one name refused."""
    latest, notes = {}, []
    for one in found:
        other = latest.get(one["session"])
        if other:
            notes.append(f"{other['path'].name} and {one['path'].name} are one rater’s; the later one counts.")
        if not other or one["saved"] >= other["saved"]:
            latest[one["session"]] = one
    names = {}
    for number, one in enumerate(latest.values(), 1):
        name = " ".join(one["rater"].split())
        if name and name.casefold() in names:
            raise UserError(
                f"--ratings {one['path']}: by {name}, as {names[name.casefold()]} is; leave one out, or if these are "
                "two people, change `rater` in one of the files"
            )
        names[name.casefold()] = one["path"]
        one["rater"] = name or f"rater {number}"
        if len(one["answers"]) < count:
            notes.append(f"{one['rater']} left out {count - len(one['answers'])} of {count} images.")
    return list(latest.values()), notes


def merge_ratings(study_key: Path, paths: list[Path]) -> dict:
    """What the raters say, as `human` of metrics.json has it; every figure with its interval.

    mean and good {"real", "generated", "difference"}, agreement, told (how often they tell which is which), notes.
    """
    study, kinds = read_key(study_key)
    if not paths:
        raise UserError("--ratings: name the files that the raters downloaded")
    raters, notes = _one_each(
        [read_ratings(path, study, len(kinds)) for given in paths for path in _expand(given)], len(kinds)
    )
    ratings, told = (np.full((len(raters), len(kinds)), np.nan) for _ in range(2))
    for row, one in enumerate(raters):
        for item, (rating, guess) in one["answers"].items():
            ratings[row, item - 1], told[row, item - 1] = rating, guess == kinds[item - 1]
    real = np.array([kind == "real" for kind in kinds])
    for kind, chosen in (("real", real), ("generated", ~real)):
        if (~np.isnan(ratings[:, chosen])).any(0).sum() < 2:
            raise UserError(f"--ratings: fewer than 2 {kind} images have been rated; ask the raters to go on")
    if len(raters) == 1:
        notes.append("One rater: the intervals tell of other images, not of other people.")
    good = np.where(np.isnan(ratings), np.nan, ratings >= GOOD)
    right = _figure(crossed_interval([(told[:, real], 0.5), (told[:, ~real], 0.5)]), (0, 1), told)
    if right["low"] <= 0.5 <= right["high"]:
        verdict = "no difference shown"
    else:
        verdict = "people can tell" if right["value"] > 0.5 else "people take one for the other"
    return {
        "study": study,
        "items": len(kinds),
        "raters": [one["rater"] for one in raters],
        "mean": _by_kind(ratings, real, (1, 5)),
        "good": _by_kind(good, real, (0, 1)),
        "agreement": _agreement(ratings),
        "told": {**right, "verdict": verdict},
        "notes": notes,
    }


def _figure(estimate: tuple[float, float, float], ends: tuple[float, float], table: np.ndarray) -> dict:
    value, low, high = estimate
    n = int((~np.isnan(table)).sum())
    return {"value": value, "low": max(low, ends[0]), "high": min(high, ends[1]), "n": n}


def _by_kind(table: np.ndarray, real: np.ndarray, ends: tuple[int, int]) -> dict:
    """Means of the real, the generated, and how much the latter are above the former for the same raters."""
    parts = {"real": table[:, real], "generated": table[:, ~real]}
    found = {kind: _figure(crossed_interval([(part, 1.0)]), ends, part) for kind, part in parts.items()}
    reach = ends[1] - ends[0]
    apart = crossed_interval([(parts["generated"], 1.0), (parts["real"], -1.0)])
    return {**found, "difference": _figure(apart, (-reach, reach), table)}


def _agreement(ratings: np.ndarray) -> dict:
    try:
        value, low, high = agreement(ratings)
    except UserError as error:
        return {"refused": str(error)}
    if not np.isfinite([value, low, high]).all():
        return {"refused": "agreement: all ratings are the same, there is nothing to agree about"}
    shared = int(((~np.isnan(ratings)).sum(0) >= 2).sum())
    return {"value": value, "low": low, "high": high, "n": shared}
