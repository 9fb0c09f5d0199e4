"""The files of a set of generated images: their names, their records, and PNGs that are whole."""

import os
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from utils.metrics_log import read_metrics


def image_name(index: int) -> str:
    return f"images/{index:06d}.png"


def index_of(name: str) -> int:
    return int(Path(name).stem.partition("-")[0])


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """{file name: record} of all that any process has written, in the order of the images."""
    records = [one for part in sorted(folder.glob("metadata*.jsonl")) for one in read_metrics(part)]
    return {one["file_name"]: one for one in sorted(records, key=lambda one: one["file_name"]) if "file_name" in one}


def is_whole_png(path: Path) -> bool:
    """Whether a PNG reaches its end: a power cut may leave a name without its data."""
    try:
        with open(path, "rb") as file:
            file.seek(-12, os.SEEK_END)
            return file.read(8)[4:] == b"IEND"
    except OSError:
        return False


def write_png(path: Path, image: Image.Image, facts: dict[str, str] | None = None) -> None:
    """A PNG that is whole or not there, with the facts in its header."""
    info = PngImagePlugin.PngInfo()
    for name, value in (facts or {}).items():
        info.add_itxt(name, value)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(partial, "PNG", compress_level=4, pnginfo=info)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
