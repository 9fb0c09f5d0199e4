"""Is it the same person? Faces of generated images against faces of reference photos, by an embedder of faces."""

import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.assessment import refused
from evaluation.intervals import mean_interval, wilson
from utils import images
from utils.cli import UserError, counted, progress
from utils.faces import Face, Faces, face_embedding, find_faces, large_faces

logger = logging.getLogger(__name__)
KEYS = {"face_found": "face", "centroid": "centroid", "nearest": "nearest", "verified": "verified"}  # figure: column
NOTE = "with the threshold as published, for a pair of photos; not looked at for generated ones"


def embed_file(path: Path, faces: Faces) -> tuple[np.ndarray | None, list[Face]]:
    """The embedding of an image's largest face, and its faces."""
    image, _ = images.read_image(path)
    found = find_faces(faces, image)
    return (face_embedding(faces, image, found[0]) if found else None), found


def embed_references(references: list[Path], faces: Faces, flag: str) -> tuple[np.ndarray, dict[str, list[Path]]]:
    """The embeddings of the photos with a face, and which photos those are, and which are doubtful, by the reason.

    None with a face is an error.
    """
    rows, sorted_out = [], {"used": [], "without_face": [], "several_faces": []}
    for path in references:
        try:
            row, found = embed_file(path, faces)
        except images.BadImage as error:
            raise UserError(f"{flag}: {path}: {error}; remove the file, or mend it") from None
        sorted_out["without_face" if row is None else "used"].append(path)
        sorted_out["several_faces"] += [path] if len(large_faces(found)) > 1 else []
        rows += [] if row is None else [row]
    if not rows:
        raise UserError(
            f"{flag}: no face is found in {counted(len(references), 'photo')}; give clear photos of one person"
        )
    base = np.stack(rows)
    alike = leave_one_out(base, faces.threshold)["verified"] if len(rows) > 1 else [True]
    sorted_out["unlike_others"] = [path for path, one in zip(sorted_out["used"], alike) if not one]
    warn_of_references(sorted_out, faces.threshold, flag)
    return base, sorted_out


def warn_of_references(sorted_out: dict[str, list[Path]], threshold: float, flag: str) -> None:
    for key, said in (
        ("without_face", "no face is found in %s"),
        ("several_faces", "several faces of about one size are in %s, of which the largest is taken; crop to one"),
        ("unlike_others", f"below {threshold:g} with most of the others are %s; give photos of one person alone"),
    ):
        if sorted_out[key]:
            logger.warning(f"%s: {said}", flag, ", ".join(path.name for path in sorted_out[key]))
    if len(sorted_out["used"]) == 1:
        logger.warning("%s: one photo has no floor, what photos of the person get among themselves; give more", flag)


def to_centroid(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The cosine of each row to the references' mean direction."""
    centre = references.mean(0)
    return rows @ (centre / max(np.linalg.norm(centre), 1e-12))


def is_verified(rows: np.ndarray, references: np.ndarray, threshold: float) -> np.ndarray:
    """Whether at least half of the references, each compared alone, pass the threshold.

    It was published for pairs. The nearest of many references passes the more easily the more there are, and a centroid
    is no photo; half of the pairs means the same for any number of references.
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


def _spread(values: np.ndarray, of_shares: bool) -> dict | None:
    if len(values) < 2:
        return None
    return dict(
        zip(("value", "low", "high"), wilson(int(values.sum()), len(values)) if of_shares else mean_interval(values))
    )


def figure(
    name: str, title: str, encoder: str, values: np.ndarray, of_shares: bool, how: str, floor: dict | None
) -> dict:
    """One figure of metrics.json; refused where there are too few values for an interval."""
    head = {"id": f"identity/{name}", "group": "identity", "name": title, "encoder": encoder}
    head |= {"better": "higher", "unit": "%" if of_shares else "", "n": len(values)}
    head |= {"how": how, "floor": floor, "at_floor_n": None}
    least = 1 if of_shares else 2
    if len(values) < least:
        return refused(head, f"needs a face in at least {counted(least, 'image')}, found {len(values)}")
    estimate = wilson(int(values.sum()), len(values)) if of_shares else mean_interval(values)
    return head | dict(zip(("value", "low", "high"), map(float, estimate)))


def split_figures(rows: list[dict], column: str, key: str) -> list[dict]:
    """For each value of a column: a mean over the images with a face, or a share of all its images."""
    parts = []
    for value in dict.fromkeys(row[column] for row in rows):
        mine = [row[key] for row in rows if row[column] == value and row[key] is not None]
        of_shares = key in ("face", "verified")
        if value is None or len(mine) < (1 if of_shares else 2):  # no interval: left out
            continue
        mean, low, high = wilson(sum(mine), len(mine)) if of_shares else mean_interval(mine)
        parts.append({"value": value, "mean": mean, "low": low, "high": high, "n": len(mine)})
    return parts


def compare_identity(
    references: list[Path],
    records: list[dict],
    faces: Faces,
    split_by: tuple[str, ...] = ("text",),
    flag: str = "--identity_reference",
) -> dict:
    """{"figures", "splits", "images", "references"} of the images ({"path", "text", …}) for metrics.json.

    An image without a face, or that can't be read, counts as not verified, and has no cosine.
    """
    if not references:
        raise UserError(f"{flag}: holds no images; give a folder of photos of the person")
    base, sorted_out = embed_references(references, faces, flag)
    used = sorted_out["used"]
    rows, embedded = [], []
    for one in tqdm(records, unit=" images", **progress()):
        try:
            embedding, there = embed_file(one["path"], faces)
        except images.BadImage:  # told before, among the invalid ones; nobody is to be seen in it
            embedding, there = None, []
        row = {
            "file": one["path"],
            **{name: one.get(name) for name in split_by},
            "face": bool(there),
            "faces": len(there),
        }
        rows.append(row | {"centroid": None, "nearest": None, "nearest_reference": None, "verified": False})
        embedded += [] if embedding is None else [(len(rows) - 1, embedding)]
    if embedded:
        found = np.stack([embedding for _, embedding in embedded])
        cosines = found @ base.T
        values = zip(to_centroid(found, base), cosines, is_verified(found, base, faces.threshold))
        for (at, _), (centre, pairs, verified) in zip(embedded, values):
            near = int(pairs.argmax())
            measured = {"centroid": float(centre), "nearest": float(pairs[near]), "nearest_reference": used[near]}
            rows[at] |= measured | {"verified": bool(verified)}
    return {
        "figures": identity_figures(rows, base, faces),
        "splits": {
            f"identity_{figure}": {name: split_figures(rows, name, key) for name in split_by}
            for figure, key in KEYS.items()
        },
        "pictures": rows,
        "references": sorted_out,
    }


def identity_figures(rows: list[dict], base: np.ndarray, faces: Faces) -> list[dict]:
    """The four figures of all images, each with what the references get among themselves as its floor."""
    real = leave_one_out(base, faces.threshold) if len(base) > 1 else {}
    encoder, n = faces.embedder, counted(len(base), "reference photo")
    figures = []
    for name, title, how in (
        ("face_found", "Images with a face", "share of the images in which the detector finds a face (Wilson)"),
        ("centroid", "Cosine to the mean reference", f"largest face against the mean of {n}; images with a face"),
        (
            "nearest",
            "Cosine to the nearest reference",
            f"largest face against the nearest of {n}; images with a face",
        ),
        (
            "verified",
            "Verified as the person",
            f"share of all images whose face passes {faces.threshold:g} with at least half of {n}; {NOTE} (Wilson)",
        ),
    ):
        key, of_shares = KEYS[name], name in ("face_found", "verified")
        values = np.array([row[key] for row in rows if row[key] is not None], dtype=np.float64)
        floor = _spread(real[key], of_shares) if key in real else None
        if key != "face":
            how += "; floor: each reference against the others" if floor else "; no floor: it needs a second photo"
        figures.append(figure(name, title, encoder, values, of_shares, how, floor))
    return figures
