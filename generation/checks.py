"""What happens to an image that was generated: it is checked, and saved where it belongs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from families.sampler import GeneratedImage
from generation.set_folder import IMAGES, Job
from utils import image_checks
from utils.images import write_png


class Result(NamedTuple):
    job: Job
    record: dict[str, Any]
    reason: str  # why the image was rejected; empty where it was not


@dataclass(frozen=True)
class Checks:
    """What an image is checked for, apart from faults such as noise."""

    near_index: image_checks.NearIndex | None  # of the images that it must not be a copy of
    clip: image_checks.Clip | None
    min_clip_score: float | None


def load_checks(
    near: Path | None, workers: int, min_clip_score: float | None, clip_model: str, device: torch.device
) -> Checks:
    index = image_checks.index_images(near, workers) if near else None
    clip = image_checks.load_clip(clip_model, device) if min_clip_score is not None else None
    return Checks(index, clip, min_clip_score)


class Finding(NamedTuple):
    """Why an image is rejected, in words to count by and in detail; empty where it is accepted."""

    reason: str = ""
    detail: str = ""
    clip_score: float | None = None  # where it was computed: by it a user can choose another limit


def check_image(checks: Checks, made: GeneratedImage, prompt: str) -> Finding:
    if fault := image_checks.find_fault(made.image, made.is_finite):
        return Finding(fault)
    if checks.near_index:
        name, bits, colour = image_checks.nearest(checks.near_index, made.image)
        if image_checks.is_near(bits, colour):
            return Finding("near-copy of a training image", f"{name}: {bits} of 256 bits, {colour} levels")
    if not checks.clip:
        return Finding()
    score = float(image_checks.clip_scores(checks.clip, [made.image], [prompt])[0])
    known = round(score, 4) if math.isfinite(score) else None
    if score >= checks.min_clip_score:
        return Finding(clip_score=known)
    detail = f"CLIP score {score:.3f}, expected {checks.min_clip_score:g} or more"
    return Finding("not what its prompt says", detail, known)  # NaN too


def check_and_save(
    folder: Path, job: Job, record: dict[str, Any], facts: dict[str, str], made: GeneratedImage, checks: Checks
) -> Result:
    """Write an image, with these facts in it, to images/ or rejected/; its file's name into its record. In a thread."""
    reason, detail, score = check_image(checks, made, record["text"])
    record = record | ({"clip_score": score} if score is not None else {})
    if reason:
        name = f"{job.index:06d}-{record['seed']}.png"
        write_png(folder / "rejected" / name, made.image, facts)
        return Result(job, {"file_name": name, **record, "reason": reason, "detail": detail}, reason)
    name = IMAGES.name(job.index)
    write_png(folder / name, made.image, facts)
    return Result(job, {"file_name": name, **record}, "")
