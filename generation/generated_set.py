"""The end of a generated set: a dataset in the prepared layout, contact sheets, a report."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

from generation.contact_sheets import write_sheets
from utils import dataset
from utils.files import file_sha256, replaced_folder, write_json, write_manifest, write_text
from utils.image_set import index_of, merge_parts
from utils.metrics_log import read_metrics


def write_prepared_layout(folder: Path, lines: list[dict], settings: dict, report: dict) -> None:
    """train/ (hard links to the images: no space), metadata.json and MANIFEST.json."""
    records, sums = [], {}
    for line in lines:
        kept = {key: value for key, value in line["attributes"].items() if key not in ("file_name", "text", "id")}
        name = Path(line["file_name"]).stem
        records.append({"file_name": line["file_name"], "text": line["text"], "id": name, "seed": line["seed"], **kept})
    columns = list(dict.fromkeys(key for one in records for key in one))  # a table: `datasets` wants them in each line
    with replaced_folder(folder / "train") as new:
        (new / "images").mkdir()
        for one in records:
            link_or_copy(folder / one["file_name"], new / one["file_name"])
            sums[one["file_name"]] = sums[f"train/{one['file_name']}"] = file_sha256(folder / one["file_name"])
        text = [json.dumps({key: one.get(key) for key in columns}, ensure_ascii=False) + "\n" for one in records]
        (new / "metadata.jsonl").write_text("".join(text), encoding="utf-8")
        (new / "ids.txt").write_text("".join(f"{one['id']}\n" for one in records), encoding="utf-8")
        write_json(new / "captions.json", {one["id"]: one["text"] for one in records})
    sums |= {f"train/{name}": file_sha256(folder / "train" / name) for name in dataset.TABLES}
    metadata = {
        "format": dataset.FORMAT,
        "source": {"generated": settings},
        "options": {"resolution": settings["resolution"]},
        "source_fingerprint": settings["prompts_sha256"],
        "counts": {"written": len(records), "train": len(records)},
        "duplicates": {"bits": 0, "colour": 0.0, "groups": []},  # looked for between splits, and there is only one
        "excluded": [],
        "fingerprint": dataset.content_fingerprint(sums),
    }
    write_json(folder / "metadata.json", metadata)
    write_json(folder / "report.json", report)
    write_manifest(folder, sums)  # last of all: with it the set is finished


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a drive without hard links
        shutil.copyfile(source, target)


def read_sessions(folder: Path) -> list[dict]:
    """The last that each process noted of itself; one that was killed, a few seconds before its end."""
    lines = read_metrics(folder / "sessions.jsonl")
    return list({(one["share"], one.get("began")): one for one in lines}.values())


def finish_set(folder: Path, prompts: list[dict], settings: dict, facts: dict) -> dict:
    """Everything that describes the whole set; what is returned is its report."""
    lines = merge_parts(folder)
    rejected = Counter(one["reason"] for one in merge_parts(folder / "rejected"))
    write_text(folder / "prompts.txt", "".join(f"{' '.join(one['text'].split())}\n" for one in prompts))
    sessions = read_sessions(folder)
    seconds = sum(one["seconds"] for one in sessions)
    report = {
        "made": len(lines),
        "rejected": dict(rejected.most_common()),
        "seconds": round(seconds, 2),  # of all processes together
        "images_per_second": round(sum(one["made"] for one in sessions) / seconds, 4) if seconds else None,
        "sessions": len(sessions),
        **facts,
    }
    if not settings["webdataset"]:
        step = max(1, len(lines) / 192)  # four sheets, from the whole length of a large set
        shown = [lines[int(i * step)] for i in range(min(len(lines), 192))]
        captions = [(folder / one["file_name"], f"{index_of(one['file_name'])}: {one['text']}") for one in shown]
        list(write_sheets(folder / "sheets", captions))
        write_prepared_layout(folder, lines, settings, report)
    else:
        write_json(folder / "report.json", report)
    return report
