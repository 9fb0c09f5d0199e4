"""Identity: is it the same person? Faces of generated images against faces of reference photos, by a face embedder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.figures import Figure, Rows, measure, split_means
from evaluation.image_sets import Record
from evaluation.intervals import mean_or_share
from utils import images
from utils.cli import UserError, counted
from utils.console import track
from utils.faces import Face, Faces, face_embedding, find_faces, large_faces

logger = logging.getLogger(__name__)
KEYS = {"face_found": "face", "centroid": "centroid", "nearest": "nearest", "verified": "verified"}  # figure: column
NAMES = {
    "face_found": "Images with a face",
    "centroid": "Cosine to the mean reference",
    "nearest": "Cosine to the nearest reference",
    "verified": "Verified as the person",
}
SHARES = ("face", "verified")  # the columns that are yes or no
NOTE = "with the published threshold for a pair of photos, not checked for generated ones (Wilson)"


@dataclass(frozen=True)
class References:
    """Photos of one person: those with a face and its embeddings, and which photos are doubtful."""

    embeddings: np.ndarray
    used: list[Path]
    without_face: list[Path]
    several_faces: list[Path]
    unlike_others: list[Path]

    def as_json(self) -> dict[str, list[Path]]:
        return {key: value for key, value in vars(self).items() if key != "embeddings"}


@dataclass(frozen=True)
class Identity:
    figures: list[Figure]
    splits: dict[str, dict[str, Rows]]  # {identity_…: {attribute: means}}
    rows: Rows  # what each image shows
    references: References


def embed_file(path: Path, faces: Faces) -> tuple[np.ndarray | None, list[Face]]:
    """The embedding of an image's largest face, and its faces."""
    image, _ = images.read_image(path)
    found = find_faces(faces, image)
    return (face_embedding(faces, image, found[0]) if found else None), found


def embed_references(paths: list[Path], faces: Faces) -> References:
    """Warns of doubtful photos; refuses photos without any face."""
    rows, used, without_face, several_faces = [], [], [], []
    for path in paths:
        try:
            row, there = embed_file(path, faces)
        except images.BadImage as error:
            raise UserError(f"--identity_reference: {path}: {error}; remove or replace the file") from None
        if row is None:
            without_face.append(path)
            continue
        rows.append(row)
        used.append(path)
        several_faces += [path] if len(large_faces(there)) > 1 else []
    if not rows:
        raise UserError(
            f"--identity_reference: no face is found in {counted(len(paths), 'photo')}; give clear photos of one person"
        )
    base = np.stack(rows)
    alike = leave_one_out(base, faces.threshold)["verified"] if len(rows) > 1 else [True]
    unlike_others = [path for path, one in zip(used, alike) if not one]
    found = References(base, used, without_face, several_faces, unlike_others)
    warn_of_references(found, faces.threshold)
    return found


def warn_of_references(references: References, threshold: float) -> None:
    unlike = f"unlike most of the others (cosine below {threshold:g}): %s; give photos of one person only"
    for paths, problem in (
        (references.without_face, "no face is found in %s"),
        (references.several_faces, "several faces of similar size are in %s, and the largest is used; crop to one"),
        (references.unlike_others, unlike),
    ):
        if paths:
            logger.warning(f"--identity_reference: {problem}", ", ".join(path.name for path in paths))
    if len(references.used) == 1:
        logger.warning(
            "--identity_reference: with one photo there is no floor (what photos of the person get among themselves); "
            "give more"
        )


def to_centroid(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The cosine of each row to the references' mean direction."""
    centre = references.mean(0)
    return rows @ (centre / max(np.linalg.norm(centre), 1e-12))


def is_verified(rows: np.ndarray, references: np.ndarray, threshold: float) -> np.ndarray:
    """Whether at least half of the references, each compared alone, pass the threshold.

    The threshold was published for pairs. The nearest of many references passes more easily the more there are, and a
    centroid is not a photo; half of the pairs means the same for any number of references.
    """
    return (rows @ references.T >= threshold).mean(1) >= 0.5


def leave_one_out(references: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """What real photos of the person get: each reference against all the others."""
    others = [np.delete(references, i, 0) for i in range(len(references))]
    pairs = [(row[None], rest) for row, rest in zip(references, others)]
    return {
        "centroid": np.array([to_centroid(*pair)[0] for pair in pairs]),
        "nearest": np.array([(row @ rest.T).max() for row, rest in pairs]),
        "verified": np.array([is_verified(*pair, threshold)[0] for pair in pairs]),
    }


def split_by_columns(rows: Rows, columns: Sequence[str], key: str) -> dict[str, Rows]:
    """For each value of each column: a mean over the images with a face, or a share of all its images."""
    values = np.array([row[key] for row in rows], float)  # None becomes NaN
    is_share = key in SHARES
    return {column: split_means(rows, values, column, is_share, 1 if is_share else 2) for column in columns}


def compare_image(path: Path, faces: Faces, references: References) -> dict[str, Any]:
    """What an image shows; without a face, or unreadable, it is not verified and has no cosine."""
    try:
        embedding, there = embed_file(path, faces)
    except images.BadImage:  # it is counted among the invalid images
        embedding, there = None, []
    row: dict[str, Any] = {"face": bool(there), "faces": len(there)}
    row |= {"centroid": None, "nearest": None, "nearest_reference": None, "verified": False}
    if embedding is not None:
        found, base = embedding[None], references.embeddings
        cosines = (found @ base.T)[0]
        near = int(cosines.argmax())
        row |= {"centroid": float(to_centroid(found, base)[0]), "nearest": float(cosines[near])}
        row |= {"nearest_reference": references.used[near]}
        row |= {"verified": bool(is_verified(found, base, faces.threshold)[0])}
    return row


def compare_identity(
    references: list[Path], records: list[Record], faces: Faces, split_by: Sequence[str] = ("text",)
) -> Identity:
    """Figures, splits and what each image shows, of records against photos of one person."""
    if not references:
        raise UserError("--identity_reference: contains no images; give a folder of photos of the person")
    known = embed_references(references, faces)
    rows = []
    for one in track(records, len(records), "images", "comparing faces"):
        head = {"file": one["path"], **{name: one.get(name) for name in split_by}}
        rows.append(head | compare_image(one["path"], faces, known))
    splits = {f"identity_{figure}": split_by_columns(rows, split_by, key) for figure, key in KEYS.items()}
    return Identity(identity_figures(rows, known.embeddings, faces), splits, rows, known)


def identity_figures(rows: Rows, base: np.ndarray, faces: Faces) -> list[Figure]:
    """The four figures of all images; their floors are what the references get among themselves."""
    floors = leave_one_out(base, faces.threshold) if len(base) > 1 else {}
    n = counted(len(base), "reference photo")
    how = {
        "face_found": "share of the images in which the detector finds a face (Wilson)",
        "centroid": f"largest face against the mean of {n}; images with a face",
        "nearest": f"largest face against the nearest of {n}; images with a face",
        "verified": f"share of all images whose face passes {faces.threshold:g} with at least half of {n}; {NOTE}",
    }
    figures = []
    for name, key in KEYS.items():
        is_share = key in SHARES
        values = [row[key] for row in rows if row[key] is not None]
        floor = measure(mean_or_share(floors[key], is_share)) if key in floors else None
        if key != "face":
            how[name] += "; floor: each reference against the others" if floor else "; no floor: needs a second photo"
        unit, least = ("%", 1) if is_share else ("", 2)
        figure = Figure(f"identity/{name}", "identity", NAMES[name], "higher", unit, how[name], faces.embedder)
        if len(values) < least:
            reason = f"needs a face in at least {counted(least, 'image')}, found {len(values)}"
            figures.append(figure.refuse(reason))
        else:
            figures.append(replace(figure, measured=measure(mean_or_share(values, is_share), len(values), floor)))
    return figures
