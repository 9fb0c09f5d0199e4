"""Faces: found by OpenCV's YuNet, framed as head and shoulders, and compared by SFace or an insightface pack.

The models are ONNX files that are not part of this project: give a path, or let them be downloaded from the hub.
"""

import argparse
import logging
from argparse import BooleanOptionalAction as OnOff
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from utils.cli import UserError
from utils.hub import hub_failure, quiet_hub

logger = logging.getLogger(__name__)
# 2023mar has a fixed input of 640x640. Of 2026may the weights are the same, and any input will do.
ON_HUB = {
    "yunet": ("opencv/face_detection_yunet", "face_detection_yunet_2023mar.onnx"),
    "sface": ("opencv/face_recognition_sface", "face_recognition_sface_2021dec.onnx"),
}
SIDE = 640  # pixels, of the detector's input: files with a fixed input take no other
# YuNet finds faces of about 10 to 300 pixels: the smaller size is for those that fill a photo.
LOOKS = (640, 320)
FLAGS = {"yunet": "--face_detector", "sface": "--face_embedder"}
SCORE, OVERLAP = 0.9, 0.3  # OpenCV's own limits for YuNet
# The cosine from which two faces count as one person's, by number of features. SFace: OpenCV's. 512: the upper limit
# in insightface's web demo of buffalo_l.
KINDS = {128: ("sface", 0.363), 512: ("insightface", 0.28)}
LICENCE = "the weights of insightface's packs are for non-commercial research only"
# Where the eyes, the nose and the corners of the mouth are in an aligned face of 112x112, as both kinds were trained.
ALIGNED = np.array([38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j])
NO_FACE = "without it faces are not detected: crop the photos by hand, and leave out --face_detector and --face_crop"
NO_IDENTITY = (
    "without it identity is not measured: leave out --identity_reference, and compare by CLIP-I and DINO with "
    "--instance_data_dir"
)
HEAD = 2.5  # faces high, and as wide: from above the hair to the shoulders
ABOVE = 0.55  # of the face's height: hair
SECOND = 0.25  # of the largest face's area: smaller ones are the background's


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Model = TypeVar("Model")


class Face(NamedTuple):
    box: Box  # may reach beyond the image
    # Eye, eye, nose, corner and corner of the mouth; the left of the image first.
    landmarks: tuple[tuple[float, float], ...]
    score: float


class Faces(NamedTuple):
    """The models; None for those that are not given."""

    detector: "cv2.FaceDetectorYN | None"
    detector_file: Path | None
    network: Any  # cv2.FaceRecognizerSF or cv2.dnn.Net
    embedder: str | None  # sface or insightface
    threshold: float | None  # the embedder's published one, of a cosine


def add_face_flags(group: argparse._ArgumentGroup, crop: bool = True, embedder: bool = False) -> None:
    """--face_detector, and with it --face_crop or --face_embedder, for a script's own group."""
    group.add_argument("--face_detector", metavar="FILE.onnx|yunet", help="YuNet: its file, or `yunet`, from the hub")
    if crop:
        group.add_argument(
            "--face_crop",
            action=OnOff,
            default=False,
            help="keep head and shoulders; --face_detector: `yunet`, if none is named",
        )
    if embedder:
        group.add_argument(
            "--face_embedder",
            metavar="FILE.onnx|DIR|sface",
            help="SFace or an insightface pack: its file or folder, or `sface`, from the hub",
        )


def load_faces(detector: str | None, embedder: str | None = None) -> Faces:
    """The models that are given: a file, `yunet` or `sface`, OWNER/NAME/FILE.onnx of the hub, an insightface folder."""
    without = NO_IDENTITY if embedder else NO_FACE
    detector_file = _locate(detector, "yunet", without) if detector else None
    embedder_file = _locate(embedder, "sface", without) if embedder else None
    found = _open(detector_file, "yunet", without, _open_detector) if detector_file else None
    if not embedder_file:
        return Faces(found, detector_file, None, None, None)
    network, features = _open(embedder_file, "sface", without, _open_embedder)
    if features not in KINDS:
        known = " or ".join(f"{size} ({name})" for size, (name, _) in KINDS.items())
        raise UserError(f"{FLAGS['sface']} {embedder}: gives {features} features; expected {known}")
    kind, threshold = KINDS[features]
    if kind == "insightface":
        logger.warning("%s %s: %s", FLAGS["sface"], embedder, LICENCE)
    return Faces(found, detector_file, network, kind, threshold)


def _locate(name: str, kind: str, without: str) -> Path:
    """The file of a model of this kind (yunet or sface), from the hub if need be."""
    path, flag = Path(name).expanduser(), FLAGS[kind]
    if path.is_dir() and kind == "yunet":
        raise UserError(f"{flag} {name}: is a folder; give the .onnx file itself")
    if path.is_dir():
        packs = [one for pattern in ("w600k_*.onnx", "glint360k_*.onnx") for one in sorted(path.glob(pattern))]
        if not packs:
            raise UserError(f"{flag} {name}: the folder holds no w600k_*.onnx or glint360k_*.onnx; give the file")
        return packs[0]
    if path.is_file():
        return path
    parts = name.split("/")
    if name not in ON_HUB and (len(parts) < 3 or not name.endswith(".onnx") or name[0] in "./~"):
        raise UserError(f"{flag} {name}: no such file; {_advice(kind, without)}")
    repository, file = ON_HUB.get(name, ("/".join(parts[:2]), "/".join(parts[2:])))
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(repository, file), str):
        return Path(cached)
    logger.warning("%s %s: downloading %s/%s from the hub", flag, name, repository, file)
    try:
        with quiet_hub():
            return Path(hf_hub_download(repository, file))
    except Exception as error:  # of the network, the hub, the cache
        raise UserError(f"{flag} {name}: {hub_failure(error)}; {_advice(kind, without)}") from error


def _advice(kind: str, without: str) -> str:
    repository, file = ON_HUB[kind]
    return f"get {file} from huggingface.co/{repository} and give its path with {FLAGS[kind]}; {without}"


def _open(path: Path, kind: str, without: str, opener: Callable[[Path], Model]) -> Model:
    """The model that OpenCV reads from the file; refuses any other file."""
    flag = FLAGS[kind]
    if path.read_bytes()[:40].startswith(b"version https://git-lfs"):
        what = "is a pointer of Git LFS, not the model; download the file itself (`git lfs pull`)"
        raise UserError(f"{flag} {path}: {what}")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # OpenCV 5 warns of each model that it opens
    try:
        return opener(path)
    except cv2.error as error:
        named = {"yunet": "a YuNet model", "sface": "a model of SFace or insightface"}[kind]
        raise UserError(f"{flag} {path}: is not {named} that OpenCV can use; {_advice(kind, without)}") from error
    finally:
        cv2.utils.logging.setLogLevel(level)


def _open_detector(path: Path) -> "cv2.FaceDetectorYN":
    detector = cv2.FaceDetectorYN.create(str(path), "", (SIDE, SIDE), SCORE, OVERLAP)
    detector.detect(np.zeros((SIDE, SIDE, 3), np.uint8))  # an error now, if its outputs are not YuNet's
    return detector


def _open_embedder(path: Path) -> tuple[Any, int]:
    """The network, and how many features it gives."""
    network = cv2.dnn.readNetFromONNX(str(path))
    features = _embed_pack(network, np.zeros((112, 112, 3), np.uint8)).size
    return (cv2.FaceRecognizerSF.create(str(path), "") if features == 128 else network), features


def find_faces(faces: Faces, image: Image.Image) -> list[Face]:
    """The faces of an RGB image, the largest first."""
    found: list[Face] = []
    for look in LOOKS:
        scale = min(1.0, look / max(image.size))
        if look != LOOKS[0] and max(image.size) <= look:  # it has been searched at that size
            continue
        size = [max(1, round(side * scale)) for side in image.size]
        canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
        small = image if scale == 1 else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
        canvas[: size[1], : size[0]] = np.asarray(small)[:, :, ::-1]
        rows = faces.detector.detect(canvas)[1]
        for row in [] if rows is None else rows.astype(np.float64):
            left, top, width, height = row[:4] / scale
            points = tuple(map(tuple, (row[4:14] / scale).reshape(5, 2).tolist()))
            face = Face((float(left), float(top), float(left + width), float(top + height)), points, float(row[14]))
            if all(overlap(face.box, other.box) < OVERLAP for other in found):
                found.append(face)
    return sorted(found, key=lambda face: -area(face.box))


def large_faces(found: list[Face]) -> list[Face]:
    """Those of about the size of the largest, which is the first of `found`."""
    return [one for one in found if area(one.box) >= SECOND * area(found[0].box)]


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """The boxes' common area as a share of the area that they cover together."""
    both = area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    return both / max(1e-9, area(one) + area(other) - both)


def align_face(image: Image.Image, face: Face) -> np.ndarray:
    """The face turned, scaled and moved to 112x112 so that its landmarks lie as nearly as can be in their places.

    As OpenCV and insightface do: least squares over turn, scale and shift, here as one line in the complex plane.
    """
    points = np.array([complex(x, y) for x, y in face.landmarks])
    moved, wanted = points - points.mean(), ALIGNED - ALIGNED.mean()
    turn = np.vdot(moved, wanted) / np.vdot(moved, moved)
    shift = ALIGNED.mean() - turn * points.mean()
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    return cv2.warpAffine(np.asarray(image), matrix, (112, 112), flags=cv2.INTER_LINEAR)


def _embed_pack(network: "cv2.dnn.Net", aligned: np.ndarray) -> np.ndarray:
    network.setInput(cv2.dnn.blobFromImage(aligned, 1 / 127.5, (112, 112), (127.5,) * 3))
    return network.forward()


def face_embedding(faces: Faces, image: Image.Image, face: Face) -> np.ndarray:
    """Features of length 1, whose product is the cosine that the embedder's threshold is for."""
    if faces.embedder == "sface":
        flat = [value for point in face.landmarks for value in point]
        left, top, right, bottom = face.box
        row = np.array([left, top, right - left, bottom - top, *flat, face.score], np.float32)
        pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        features = faces.network.feature(faces.network.alignCrop(pixels, row))
    else:
        features = _embed_pack(faces.network, align_face(image, face))
    features = features.ravel().astype(np.float64)
    return features / max(np.linalg.norm(features), 1e-12)


def crop_head(size: tuple[int, int], face: Face) -> tuple[int, int, int, int]:
    """The square (left, top, right, bottom) of head and shoulders, moved or shrunk to lie within the image."""
    left, top, right, bottom = face.box
    height = max(bottom - top, right - left)  # a face that lies on its side, or is cut off, is not smaller
    side = max(1, min(round(HEAD * height), *size))
    x, y = (left + right - side) / 2, (top + bottom - height) / 2 - ABOVE * height
    if side < HEAD * height:  # not all of it fits: the face stays complete, in the middle
        y = (top + bottom - side) / 2
    x, y = (int(min(max(0, round(at)), room - side)) for at, room in zip((x, y), size))
    return x, y, x + side, y + side


def crop_to_head(image: Image.Image, faces: Faces) -> Image.Image | None:
    """Head and shoulders of the image's largest face; None where there is none."""
    found = find_faces(faces, image)
    return image.crop(crop_head(image.size, found[0])) if found else None
