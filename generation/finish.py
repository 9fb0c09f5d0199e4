"""The end of a generated set: a dataset in the prepared layout, contact sheets, a report."""

from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from families.image_facts import CHANGED, MADE, source_xmp
from generation.prompts import Prompt
from utils import dataset
from utils.dataset import index_of, read_parts
from utils.files import (
    file_sha256,
    link_or_copy,
    read_written,
    replaced_file,
    write_json,
    write_lines,
    write_manifest,
    write_text,
)
from utils.images import make_grid, require_image
from utils.metrics_log import read_metrics
from utils.outputs import replaced_folder

# Contact sheets for people to look at: the images on all of them, spread over a large set; those on one sheet and in a
# row; the side of one in pixels.
SHOWN, PER_SHEET, PER_ROW, TILE = 192, 48, 8, 160


def finish_set(folder: Path, prompts: list[Prompt], settings: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Write everything that describes the complete set; returns its report, with these facts at the end."""
    records = merge_parts(folder)
    rejected = Counter(one["reason"] for one in merge_parts(folder / "rejected"))
    write_text(folder / "prompts.txt", "".join(f"{' '.join(one.text.split())}\n" for one in prompts))
    sessions = read_sessions(folder)
    seconds = sum(one["seconds"] for one in sessions)
    report = {
        "made": len(records),
        "rejected": dict(rejected.most_common()),
        "seconds": round(seconds, 2),  # of all processes together
        "images_per_second": round(sum(one["made"] for one in sessions) / seconds, 4) if seconds else None,
        "sessions": len(sessions),
        **facts,
    }
    step = max(1, len(records) / SHOWN)
    shown = [records[int(i * step)] for i in range(min(len(records), SHOWN))]
    captions = [f"{index_of(one['file_name'])}: {one['text']}" for one in shown]
    xmp = source_xmp(CHANGED if settings["init_images"] else MADE) if settings["image_metadata"] else ""
    write_sheets(folder / "sheets", [folder / one["file_name"] for one in shown], captions, xmp)
    sums = write_train(folder, records)
    write_metadata(folder, settings, sums, len(records))
    write_json(folder / "report.json", report)
    own = {*read_written(folder, "generate"), *sums}  # another process's list may lack what this one wrote
    write_manifest(folder, sums, own)  # last of all: with it the set is finished
    return report


def merge_parts(folder: Path) -> list[dict[str, Any]]:
    """All records in the order of the images, now in one metadata.jsonl; the parts are removed."""
    records = list(read_parts(folder).values())
    write_lines(folder / "metadata.jsonl", records)
    for part in folder.glob("metadata.*.jsonl"):
        part.unlink()
    return records


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The last line of each process's session; that of a killed one is a few seconds old."""
    lines = read_metrics(folder / "sessions.jsonl")
    return list({(one["share"], one.get("began")): one for one in lines}.values())


def write_train(folder: Path, records: list[dict[str, Any]]) -> dict[str, str]:
    """train/ in the prepared layout, its images as hard links (no space); {file: sha256} of images and tables."""
    rows, sums = [], {}
    for one in records:
        attributes = {key: value for key, value in one["attributes"].items() if key not in ("file_name", "text", "id")}
        facts = {"file_name": one["file_name"], "text": one["text"], "id": Path(one["file_name"]).stem}
        rows.append({**facts, "seed": one["seed"], **attributes})
    columns = list(dict.fromkeys(key for row in rows for key in row))  # `datasets` wants all of them in each line
    with replaced_folder(folder / "train") as new:
        (new / "images").mkdir()
        for name in (row["file_name"] for row in rows):
            link_or_copy(folder / name, new / name)
            sums[name] = sums[f"train/{name}"] = file_sha256(folder / name)
        tables = dataset.write_tables(new, [{key: row.get(key) for key in columns} for row in rows])
    return sums | {f"train/{name}": sha256 for name, sha256 in tables.items()}


def write_metadata(folder: Path, settings: dict[str, Any], sums: dict[str, str], count: int) -> None:
    metadata = {
        "format": dataset.FORMAT,
        "source": {"generated": settings},
        "options": {"resolution": settings["resolution"]},
        "source_fingerprint": settings["prompts_sha256"],
        "counts": {"written": count, "train": count},
        "duplicates": {"bits": 0, "colour": 0.0, "groups": []},  # looked for between splits, and there is only one
        "excluded": [],
        "fingerprint": dataset.content_fingerprint(sums),
    }
    write_json(folder / "metadata.json", metadata)


def write_sheets(folder: Path, images: list[Path], captions: list[str], xmp: str = "") -> None:
    """sheet-0001.jpg …, with this metadata, and no more than one sheet's images in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(images), PER_SHEET), 1):
        part = slice(start, start + PER_SHEET)
        tiles = [make_tile(path) for path in images[part]]
        sheet = make_grid(tiles, min(PER_ROW, len(tiles)), captions[part])
        with replaced_file(folder / f"sheet-{number:04d}.jpg") as file:
            sheet.save(file, "JPEG", quality=90, **({"xmp": xmp.encode()} if xmp else {}))


def make_tile(path: Path) -> Image.Image:
    """An image on a white square; smaller ones are enlarged without blurring."""
    image = require_image(path, longest=TILE)
    scale = TILE / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    tile = Image.new("RGB", (TILE, TILE), "white")
    tile.paste(image, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile
