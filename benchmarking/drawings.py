"""Data to measure with, where the user has none yet: blurred noise with captions, or noise with text to speak."""

import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from utils.files import replaced_file, write_text
from utils.images import write_png

NUMBER = 8  # images; a step takes them again and again
SOUNDS = 32


def draw_images(folder: Path, side: int) -> Path:
    """A folder of images of `side` pixels, each with its caption in a .txt file; those of another side go."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("drawn-*"):
        if not path.name.startswith(f"drawn-{side}-"):
            path.unlink()
    for number in range(NUMBER):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        path = folder / f"drawn-{side}-{number}.png"
        if not path.exists():
            write_png(path, Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))
            path.with_suffix(".txt").write_text(f"blurred noise, number {number}\n")
    return folder


def draw_sounds(folder: Path, rate: int, letters: str, speaker: str) -> Path:
    """A folder of sounds of 2 to 10 seconds with a metadata.jsonl: 14 characters are said in a second."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, seconds in enumerate(np.linspace(2, 10, SOUNDS)):
        random = np.random.default_rng(number)
        sound = random.normal(0, 0.05, int(seconds * rate))
        text = "".join(random.choice(list(letters), int(14 * seconds)))
        name = f"drawn-{rate}-{number}.flac"
        if not (folder / name).exists():
            with replaced_file(folder / name) as file:
                soundfile.write(file, sound, rate, format="FLAC")
        rows.append({"file_name": name, "text": text, "speaker": speaker})
    write_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder
