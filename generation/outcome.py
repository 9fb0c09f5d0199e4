"""What becomes of an image that was drawn: judged, saved, noted."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from families.drawing import write_image
from utils import image_checks
from utils.metrics_log import append_metrics


class Job(NamedTuple):
    index: int  # of the image
    retry: int  # 0 for its first seed


def make_check(
    near: Path | None, least: float | None, clip_model: str, device: torch.device
) -> Callable[[Image.Image, str], tuple[str, str]]:
    """What gives (reason, detail) for an image that is sound but not wanted; two empty texts where it is."""
    index = image_checks.index_images(near) if near else None
    clip = image_checks.load_clip(clip_model, device) if least is not None else None

    def check(image: Image.Image, text: str) -> tuple[str, str]:
        if index:
            name, bits, colour = image_checks.nearest(index, image)
            if image_checks.is_near(bits, colour):
                return "near-copy of a training image", f"{name}: {bits} of 256 bits, {colour} levels"
        if clip:
            score = image_checks.clip_scores(clip, [image], [text])[0]
            if not score >= least:  # `not >=`: NaN is none
                return "not what its prompt says", f"CLIP score {score:.1f}, wanted {least:g}"
        return "", ""

    return check


def save_image(out: Path, job: Job, line: dict, pixels, finite: bool, check: Callable) -> tuple[Job, dict]:
    """Judge an image, and write it whole where it belongs; a rejected one's line has a `reason`. Runs in a thread."""
    image = Image.fromarray(pixels)
    fault = image_checks.find_fault(image, finite)
    reason, detail = (fault, "") if fault else check(image, line["text"])
    path = out / line["file_name"]
    if reason:
        line = {**line, "file_name": f"{job.index:06d}-{line['seed']}.png", "reason": reason, "detail": detail}
        path = out / "rejected" / line["file_name"]
    write_image(path, image)
    return job, line


def make_note(out: Path, part: str, session: dict, missing: list[int], block: int) -> Callable:
    """What writes down an image that was saved or rejected, and tells the number of a tar shard that is full.

    What it is given last are the seconds since drawing began.
    """
    lacking = Counter(i // block for i in missing) if block else Counter()
    told = -math.inf

    def note(job: Job, line: dict, seconds: float) -> int | None:
        nonlocal told
        session["seconds"] = round(seconds, 3)
        if "reason" in line:
            append_metrics(out / "rejected" / part, line)
            return None
        append_metrics(out / part, line)
        session["made"] += 1
        if session["seconds"] > told + 5:  # now and then: a kill leaves no time to say it
            told = session["seconds"]
            append_metrics(out / "sessions.jsonl", session)
        if not block:
            return None
        number = job.index // block
        lacking[number] -= 1
        return None if lacking[number] else number

    return note
