"""Photos of one person or subject: judged, framed, and cropped to the shapes that training takes."""

import hashlib
import io
import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from utils import images
from utils.cli import UserError, counted
from utils.faces import Face, Faces, area, crop_head, crop_to_head, find_faces, large_faces
from utils.files import file_sha256, replaced_file
from utils.images import bucket_shapes, nearest_shape

logger = logging.getLogger(__name__)
NO_DETECTOR = "no face is looked for, and each photo is cropped about its middle"
Box = tuple[float, float, float, float]


class Limits(NamedTuple):
    """What a photo must keep to; the reasons to leave one out follow from these alone."""

    sharpness: float  # at least: variance of the Laplacian at the training size
    exposure: tuple[float, float]  # mean brightness, 0 to 255
    enlargement: float  # at most
    face_share: float  # at least, of the crop's area
    any_faces: bool  # keep photos without a face, and with several


def portrait_shapes(resolution: int, buckets: bool) -> list[tuple[int, int]]:
    """The shapes to crop to: sides in steps of 64 pixels, as Stable Diffusion takes them, of a small side down to 8."""
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


def measure_photo(crop: Image.Image, face: Box | None) -> dict:
    """Sharpness and exposure of a crop at its training size: of the face where there is one, else of all.

    At that size, since it is what training sees: a small photo that was enlarged is as soft as one out of focus.
    """
    grey = np.asarray(crop.convert("L"), dtype=np.float64)
    edges = ndimage.laplace(grey)
    if face:
        left, top = (int(max(0, side)) for side in face[:2])
        right, bottom = (int(math.ceil(side)) for side in face[2:])
        grey, edges = (one[top : max(top + 2, bottom), left : max(left + 2, right)] for one in (grey, edges))
    return {
        "sharpness": round(float(edges.var()), 1),
        "brightness": round(float(grey.mean()), 1),
        "black": round(float((grey <= 5).mean()), 3),
        "white": round(float((grey >= 250).mean()), 3),
    }


def find_fault(quality: dict, limits: Limits) -> tuple[str, str] | None:
    """Why a photo is left out, in a few words and with its figure; None where it is fit."""
    low, high = limits.exposure
    faces, bright = quality["faces"], quality["brightness"]
    if faces is not None and not limits.any_faces:
        if not faces:
            return "no face found", "turned away, covered, or smaller than the detector sees; --any_faces keeps it"
        if faces > 1:
            return "several faces", f"{faces} of about one size; crop the photo by hand to one; --any_faces keeps it"
        if quality["face_share"] < limits.face_share:
            expected = f"expected {limits.face_share:.1%} or more (--min_face_share)"
            return "face too small", f"{quality['face_share']:.1%} of the crop, {expected}"
    if quality["enlarged"] > limits.enlargement:
        return (
            "too small",
            f"would be enlarged {quality['enlarged']:.1f} times, expected {limits.enlargement:g} at most "
            "(--max_enlargement)",
        )
    if not low <= bright <= high:
        reason = "too dark" if bright < low else "too bright"
        return reason, f"mean brightness {bright:g} of 255, expected {low:g} to {high:g} (--exposure)"
    if quality["sharpness"] < limits.sharpness:
        figure = f"variance of the Laplacian {quality['sharpness']:g}"
        return "not sharp", f"{figure}, expected {limits.sharpness:g} or more (--min_sharpness)"
    return None


def prepare_portrait(
    source: Path | bytes,
    faces: Faces | None,
    shapes: list[tuple[int, int]],
    face_crop: bool,
    limits: Limits,
    max_pixels: int,
) -> tuple[Image.Image, tuple[int, int], dict]:
    """A photo as it goes into the dataset, its size on disk, and {"quality", "fault"}; raises BadImage."""
    image, size = images.read_image(source, max_pixels)
    if images.is_blank(image):
        raise images.BadImage("blank or near uniform", f"{size[0]}x{size[1]}")
    found = find_faces(faces, image) if faces else []
    face = found[0] if found else None
    box, shape = frame_photo(image.size, face, shapes, face_crop)
    crop = image.crop(box).resize(shape, Image.Resampling.LANCZOS)
    scale = shape[0] / (box[2] - box[0])
    inside = None
    if face:
        inside = tuple((side - at) * scale for side, at in zip(face.box, (box[0], box[1]) * 2))
        inside = (max(0.0, inside[0]), max(0.0, inside[1]), min(shape[0], inside[2]), min(shape[1], inside[3]))
    quality = {
        "width": size[0],
        "height": size[1],
        "crop": list(box),
        "shape": list(shape),
        "enlarged": round(scale, 2),
        **measure_photo(crop, inside),
        "faces": len(large_faces(found)) if faces else None,  # None: nobody looked
        "face_share": round(area(inside) / (shape[0] * shape[1]), 4) if inside else None,
    }
    return crop, size, {"quality": quality, "fault": find_fault(quality, limits)}


def photo_rows(products: list[dict], good: list[dict], rejected: list[dict]) -> list[dict]:
    """The quality report: one row per photo in the order of their names, with why it was left out."""
    found = {one["id"]: one["quality"] for one in [*rejected, *good] if "quality" in one}
    fate = {one["id"]: one for one in rejected}
    rows = []
    for one in products:
        out = fate.get(one["id"])
        verdict = {"kept": out is None, "reason": out["reason"] if out else "", "detail": out["detail"] if out else ""}
        rows.append({"id": one["id"], **found.get(one["id"], {}), **verdict})
    return rows


def photo_lines(rows: list[dict]) -> list[str]:
    """The quality report for report.txt and the terminal."""
    measured = [row for row in rows if "sharpness" in row]
    lines = ["", "photos        size      sharpness  brightness  enlarged  faces  face share"]
    for row in measured:
        faces = "-" if row["faces"] is None else row["faces"]
        part = "-" if row["face_share"] is None else f"{row['face_share']:.1%}"
        verdict = "" if row["kept"] else f"  {row['reason']}"
        lines.append(
            f"  {row['id'][:20]:20} {row['width']}x{row['height']:<6}{row['sharpness']:9.1f} {row['brightness']:11.1f}"
            f" {row['enlarged']:9.2f} {faces:>6} {part:>11}{verdict}"
        )
    if measured and all(row["faces"] is None for row in measured):
        lines.append(f"  no --face_detector: {NO_DETECTOR}")
    return lines


def describe_silent(empty: int, count: int, trigger: str | None) -> str:
    """What is to be known of photos with an empty caption."""
    word = f"; write {trigger} in it" if trigger else ""
    said = f"{empty} of {counted(count, 'photo')} {'has' if empty == 1 else 'have'} no caption"
    return f"{said}: --instance_prompt of train_dreambooth.py will be theirs{word}"


def head_crops(records: list[dict], faces: Faces, folder: Path) -> list[dict]:
    """The records ({"id", "source", …} as training_data reads them) with `source` a PNG of head and shoulders.

    The crops are kept in `folder` under the checksums of photo and detector, so a second run finds them there. A photo
    without a face stays whole, with a warning; where none has one, that is an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, cropped, whole = file_sha256(faces.detector_file)[:16], [], []
    for record in records:
        try:
            source = record["source"]() if callable(record["source"]) else record["source"]
            content = source if isinstance(source, bytes) else source.read_bytes()
            path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.{model}.png"
            if not path.is_file():
                head = crop_to_head(images.read_image(content)[0], faces)
                if head is None:
                    whole.append(str(record["id"]))
                    cropped.append(record)
                    continue
                png = io.BytesIO()
                head.save(png, "PNG")
                with replaced_file(path) as file:
                    file.write(png.getvalue())
        except (OSError, images.BadImage) as error:
            raise UserError(f"--face_crop: {record['id']} can't be read ({error}); remove it, or mend it") from None
        cropped.append({**record, "source": path})
    if len(whole) == len(records):
        raise UserError(
            f"--face_crop: no face is found in any of {counted(len(records), 'photo')}; leave it out, or crop by hand"
        )
    if whole:
        logger.warning("--face_crop: no face is found in %s: kept whole", ", ".join(whole))
    return cropped
