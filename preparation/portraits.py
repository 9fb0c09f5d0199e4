"""Photos of one person or subject: checked, framed, and cropped to the shapes that training takes."""

import hashlib
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from preparation.records import Fault, Fitted, ImageFacts, Quality
from utils.catalogue import Product, Rejected
from utils.cli import UserError, counted
from utils.console import format_table
from utils.faces import Box, Face, Faces, area, crop_head, crop_to_head, find_faces, large_faces
from utils.files import file_sha256, read_file, replaced_file
from utils.images import BadImage, ImageSource, bucket_shapes, is_blank, nearest_shape, read_image
from utils.outputs import remove_stale

logger = logging.getLogger(__name__)
NO_DETECTOR = "faces are not detected; each photo is cropped around its centre"


@dataclass(frozen=True)
class Limits:
    """The limits that a photo must meet; only these decide why one is left out."""

    sharpness: float  # at least: variance of the Laplacian at the training size
    exposure: tuple[float, float]  # mean brightness, 0 to 255
    enlargement: float  # at most
    face_share: float  # at least, of the crop's area
    any_faces: bool  # keep photos without a face, and with several


@dataclass(frozen=True)
class PortraitRules:
    shapes: list[tuple[int, int]]  # to crop to
    face_crop: bool  # head and shoulders
    limits: Limits


def portrait_shapes(resolution: int, buckets: bool) -> list[tuple[int, int]]:
    """The shapes to crop to: sides in steps of 64 pixels, as Stable Diffusion takes them; steps down to 8 if small."""
    step = math.gcd(resolution, 64)
    while step * 8 > resolution and step > 8:
        step //= 2
    return bucket_shapes(resolution, step) if buckets else [(resolution, resolution)]


def frame_photo(
    size: tuple[int, int], face: Face | None, shapes: list[tuple[int, int]], face_crop: bool
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """The box to cut out, and the shape to bring it to: as much as can be, with the face, else its middle."""
    region = crop_head(size, face) if face_crop and face else (0, 0, *size)
    across, down = region[2] - region[0], region[3] - region[1]
    shape = nearest_shape((across, down), shapes)
    scale = min(across / shape[0], down / shape[1])
    width, height = (max(1, min(round(side * scale), room)) for side, room in zip(shape, (across, down)))
    x, y = ((region[0] + region[2]) / 2, (region[1] + region[3]) / 2)
    if face and not face_crop:
        x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    left = min(max(region[0], round(x - width / 2)), region[2] - width)
    top = min(max(region[1], round(y - height / 2)), region[3] - height)
    return (left, top, left + width, top + height), shape


def prepare_portrait(source: Path | bytes, max_pixels: int, rules: PortraitRules, faces: Faces | None) -> Fitted:
    """A photo as it goes into the dataset, with its quality and what is wrong with it; raises BadImage."""
    image, size = read_image(source, max_pixels)
    if is_blank(image):
        raise BadImage("blank or near uniform", f"{size[0]}x{size[1]}")
    found = find_faces(faces, image) if faces else []
    face = found[0] if found else None
    box, shape = frame_photo(image.size, face, rules.shapes, rules.face_crop)
    crop = image.crop(box).resize(shape, Image.Resampling.LANCZOS)
    scale = shape[0] / (box[2] - box[0])
    count = len(large_faces(found)) if faces else None
    quality = measure_photo(crop, size, box, face and _place_in_crop(face.box, box, shape, scale), count)
    return Fitted(crop, size, quality, find_fault(quality, rules.limits))


def _place_in_crop(face: Box, box: tuple[int, int, int, int], shape: tuple[int, int], scale: float) -> Box:
    left, top, right, bottom = ((side - at) * scale for side, at in zip(face, (box[0], box[1]) * 2))
    return max(0.0, left), max(0.0, top), min(shape[0], right), min(shape[1], bottom)


def measure_photo(
    crop: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], face: Box | None, faces: int | None
) -> Quality:
    """The figures of a crop at its training size: sharpness and exposure of the face, or without one of all.

    At that size, since it is what training sees: a small photo that was enlarged is as soft as one out of focus.
    """
    grey = np.asarray(crop.convert("L"), dtype=np.float64)
    edges = ndimage.laplace(grey)
    if face:
        left, top = (int(max(0, side)) for side in face[:2])
        right, bottom = (int(math.ceil(side)) for side in face[2:])
        grey, edges = (one[top : max(top + 2, bottom), left : max(left + 2, right)] for one in (grey, edges))
    return Quality(
        *size,
        crop=box,
        shape=crop.size,
        enlarged=round(crop.width / (box[2] - box[0]), 2),
        sharpness=round(float(edges.var()), 1),
        brightness=round(float(grey.mean()), 1),
        black=round(float((grey <= 5).mean()), 3),
        white=round(float((grey >= 250).mean()), 3),
        faces=faces,
        face_share=round(area(face) / (crop.width * crop.height), 4) if face else None,
    )


def find_fault(quality: Quality, limits: Limits) -> Fault | None:
    """Why a photo is left out: a reason to count by, and this photo's figure; None if it is good."""
    low, high = limits.exposure
    faces, bright = quality.faces, quality.brightness
    if faces is not None and not limits.any_faces:
        if not faces:
            return "no face found", "turned away, covered, or smaller than the detector sees; --any_faces keeps it"
        if faces > 1:
            return "several faces", f"{faces} of about one size; crop the photo by hand to one; --any_faces keeps it"
        if quality.face_share < limits.face_share:
            expected = f"expected {limits.face_share:.1%} or more (--min_face_share)"
            return "face too small", f"{quality.face_share:.1%} of the crop, {expected}"
    if quality.enlarged > limits.enlargement:
        expected = f"expected {limits.enlargement:g} at most (--max_enlargement)"
        return "too small", f"would be enlarged {quality.enlarged:.1f} times, {expected}"
    if not low <= bright <= high:
        reason = "too dark" if bright < low else "too bright"
        return reason, f"mean brightness {bright:g} of 255, expected {low:g} to {high:g} (--exposure)"
    if quality.sharpness < limits.sharpness:
        figure = f"variance of the Laplacian {quality.sharpness:g}"
        return "not sharp", f"{figure}, expected {limits.sharpness:g} or more (--min_sharpness)"
    return None


def best_first(products: list[Product], images: dict[str, ImageFacts]) -> list[Product]:
    """Of two look-alikes the first is kept: with more pixels, then with a caption of its own, then the sharper."""

    def order(one: Product) -> tuple[float, bool, float]:
        quality = images[one.id].quality
        return quality.enlarged, not one.text, -quality.sharpness

    return sorted(products, key=order)


def photo_rows(
    products: list[Product], images: dict[str, ImageFacts], rejected: list[Rejected]
) -> list[dict[str, Any]]:
    """The quality report: one row per photo in the order of their names, with why it was left out."""
    left_out = {one.id: one for one in rejected}
    rows = []
    for one in products:
        quality, out = images[one.id].quality, left_out.get(one.id)
        verdict = {"kept": out is None, "reason": out.reason if out else "", "detail": out.detail if out else ""}
        rows.append({"id": one.id, **(asdict(quality) if quality else {}), **verdict})
    return rows


def photo_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The quality report for report.txt and the terminal."""
    measured = [row for row in rows if "sharpness" in row]
    table = [
        (
            f"  {row['id']}",
            f"{row['width']}x{row['height']}",
            f"{row['sharpness']:.1f}",
            f"{row['brightness']:.1f}",
            f"{row['enlarged']:.2f}",
            "-" if row["faces"] is None else row["faces"],
            "-" if row["face_share"] is None else f"{row['face_share']:.1%}",
            "" if row["kept"] else row["reason"],
        )
        for row in measured
    ]
    headers = ["photos", "size", "sharpness", "brightness", "enlarged", "faces", "face share", ""]
    lines = ["", *format_table(table, headers).splitlines()]
    if measured and all(row["faces"] is None for row in measured):
        lines.append(f"  no --face_detector: {NO_DETECTOR}")
    return lines


def describe_missing_captions(empty: int, count: int, trigger: str | None) -> str:
    """What happens to photos without a caption when they are trained."""
    word = f"; write {trigger} in it" if trigger else ""
    missing = f"{counted(empty, 'photo')} of {count} {'has' if empty == 1 else 'have'} no caption"
    missing = "no photo has a caption" if empty == count else missing
    return f"{missing}: train_dreambooth.py trains such photos with its --instance_prompt{word}"


def head_crops(photos: list[tuple[str, ImageSource]], faces: Faces, folder: Path) -> list[Path | None]:
    """A PNG of head and shoulders of each photo (id, source); None for one without a face, with a warning.

    The crops are kept in `folder` under the checksums of photo and detector, so that a second run finds them there. If
    no photo has a face, that is an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    model = file_sha256(faces.detector_file)[:16]
    crops = [_head_crop(name, source, faces, folder, model) for name, source in photos]
    uncropped = [name for (name, _), crop in zip(photos, crops) if crop is None]
    if len(uncropped) == len(photos):
        raise UserError(
            f"--face_crop: no face is found in any of {counted(len(photos), 'photo')}; leave it out, or crop by hand"
        )
    if uncropped:
        logger.warning("--face_crop: no face is found in %s: not cropped", ", ".join(uncropped))
    return crops


def _head_crop(name: str, source: ImageSource, faces: Faces, folder: Path, model: str) -> Path | None:
    """The PNG of one photo's head and shoulders, made if it is not there; None if no face is found."""
    try:
        found = source() if callable(source) else source
        content = found if isinstance(found, bytes) else read_file(found)
        path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.{model}.png"
        if not path.is_file():
            head = crop_to_head(read_image(content)[0], faces)
            if head is None:
                return None
            with replaced_file(path) as file:
                head.save(file, "PNG")
        return path
    except (OSError, BadImage) as error:
        raise UserError(f"--face_crop: {name} can't be read ({error}); remove or replace the file") from None
