"""Write the splits of a dataset and all that describes them."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preparation.captions import CaptionLengths
from preparation.dataset_card import dataset_card
from preparation.records import Example
from preparation.report import Analysis, count_values, with_shares
from utils.dataset import FORMAT, SPLITS, TABLES, content_fingerprint
from utils.files import file_sha256, write_json, write_manifest


def write_split(folder: Path, split: str, examples: list[Example], columns: list[str]) -> dict[str, str]:
    """images/ (moved from `folder`/images), ids.txt, captions.json and metadata.jsonl of one split; {file: sha256}."""
    (folder / split / "images").mkdir(parents=True)
    sums, lines = {}, []
    for one in examples:
        product_id, name = one.product.id, f"images/{one.product.id}.png"
        (folder / name).rename(folder / split / name)
        sums[f"{split}/{name}"] = one.image.sha256
        facts = {key: one.product.attributes.get(key) for key in columns if key not in ("file_name", "text", "id")}
        lines.append({"file_name": name, "text": one.caption, "id": product_id, **facts})
    jsonl = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / split / "metadata.jsonl").write_text(jsonl, encoding="utf-8")
    (folder / split / "ids.txt").write_text("".join(f"{one.product.id}\n" for one in examples), encoding="utf-8")
    write_json(folder / split / "captions.json", {one.product.id: one.caption for one in examples})
    return sums | {f"{split}/{name}": file_sha256(folder / split / name) for name in TABLES}


def write_splits(folder: Path, members: dict[str, list[Example]], columns: list[str]) -> dict[str, str]:
    """Every split; {file: sha256}. The images that are left over are look-alikes that were dropped."""
    sums: dict[str, str] = {}
    for split, examples in members.items():
        sums |= write_split(folder, split, examples, columns)
    shutil.rmtree(folder / "images")
    return sums


def write_description(
    folder: Path,
    catalogue: str,
    analysis: Analysis,
    members: dict[str, list[Example]],
    captions: CaptionLengths,
    sums: dict[str, str],
) -> dict[str, Any]:
    """metadata.json, the dataset card and the manifest; what is returned is the content of metadata.json."""
    metadata = describe_dataset(catalogue, analysis, members, captions, content_fingerprint(sums))
    write_json(folder / "metadata.json", metadata)
    shown = list(dict.fromkeys(one.caption for one in members["train"] if one.caption))[:5]
    (folder / "README.md").write_text(dataset_card(metadata, shown), encoding="utf-8")
    write_manifest(folder, sums)
    return metadata


def describe_dataset(
    catalogue: str,
    analysis: Analysis,
    members: dict[str, list[Example]],
    captions: CaptionLengths,
    fingerprint: str,
) -> dict[str, Any]:
    """The content of metadata.json."""
    train_counts = count_values([one.product for one in members["train"]], ["colour", "gender", "season"])
    look_alikes = analysis.look_alikes
    return {
        "format": FORMAT,
        **({"shapes": analysis.shapes} if analysis.shapes else {}),
        "source": {"catalogue": catalogue, **asdict(analysis.catalogue)},
        **asdict(analysis.request),
        "counts": {
            "rows": analysis.rows,
            "usable": analysis.usable,
            "left_out": len(analysis.rejected),
            "written": sum(map(len, members.values())),
            **{split: len(members[split]) for split in SPLITS},
        },
        "shares": {key: with_shares(analysis.values[key]) for key in ("colour", "gender") if key in analysis.values},
        "train_shares": {column: with_shares(counts) for column, counts in train_counts.items()},
        "captions": asdict(captions),
        "duplicates": {"bits": look_alikes.bits, "colour": look_alikes.colour, "groups": look_alikes.groups},
        "excluded": analysis.list_rejected(),
        "fingerprint": fingerprint,
    }
