"""Write the splits of a dataset and all that describes them."""

import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preparation.captions import CaptionLengths
from preparation.records import Example
from preparation.report import Analysis, count_values, describe_catalogue, with_shares
from utils.dataset import FORMAT, SPLITS, content_fingerprint, size_category, write_tables
from utils.files import file_sha256, write_json, write_manifest
from utils.wording import make_environment


def write_split(
    folder: Path, split: str, examples: list[Example], columns: list[str], sidecars: bool
) -> dict[str, str]:
    """images/ (moved from `folder`/images), ids.txt, captions.json and metadata.jsonl of one split; {file: sha256}.

    With `sidecars` each caption is also in <id>.txt beside its image.
    """
    (folder / split / "images").mkdir(parents=True)
    sums, rows = {}, []
    for one in examples:
        product_id, name = one.product.id, f"images/{one.product.id}.png"
        (folder / name).rename(folder / split / name)
        sums[f"{split}/{name}"] = one.image.sha256
        if sidecars:
            text = f"{split}/images/{product_id}.txt"
            (folder / text).write_text(f"{one.caption}\n", encoding="utf-8")
            sums[text] = file_sha256(folder / text)
        facts = {key: one.product.attributes.get(key) for key in columns if key not in ("file_name", "text", "id")}
        rows.append({"file_name": name, "text": one.caption, "id": product_id, **facts})
    return sums | {f"{split}/{name}": sha256 for name, sha256 in write_tables(folder / split, rows).items()}


def write_splits(folder: Path, members: dict[str, list[Example]], columns: list[str], sidecars: bool) -> dict[str, str]:
    """Every split; {file: sha256}. The images that are left over are look-alikes that were dropped."""
    sums: dict[str, str] = {}
    for split, examples in members.items():
        sums |= write_split(folder, split, examples, columns, sidecars)
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
    train_counts = count_values([one.product for one in members["train"]], ["colour", "gender", "season"])
    look_alikes = analysis.look_alikes
    metadata = {
        "format": FORMAT,
        **({"shapes": analysis.shapes} if analysis.shapes else {}),
        "source": {"catalogue": catalogue, **describe_catalogue(analysis.catalogue)},
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
        "fingerprint": content_fingerprint(sums),
    }
    write_json(folder / "metadata.json", metadata)
    shown = list(dict.fromkeys(one.caption for one in members["train"] if one.caption))[:5]
    (folder / "README.md").write_text(dataset_card(metadata, shown), encoding="utf-8")
    write_manifest(folder, sums)
    return metadata


def dataset_card(metadata: dict[str, Any], captions: list[str]) -> str:
    """The card of a dataset, from its metadata.json and a few captions."""
    options, total = metadata["options"], metadata["counts"]["written"]
    title = "Photos of one subject" if "shapes" in metadata else " + ".join(options["category"] or ["All categories"])
    environment = make_environment(Path(__file__).parent / "templates")
    return environment.get_template("dataset_card.md.j2").render(
        front_matter=front_matter(total),
        title=title,
        total=total,
        side=options["resolution"],
        several_shapes=len(metadata.get("shapes", ())) > 1,
        source=metadata["source"],
        counts=metadata["counts"],
        captions=captions,
        tokens=metadata["captions"],
        shares=metadata["shares"],
        reasons=Counter(one["reason"] for one in metadata["excluded"]).most_common(),
        stratified_by=options["stratify_by"],
        sidecars=options.get("sidecar_captions"),
    )


def front_matter(total: int) -> str:
    """What the hub reads, as YAML."""
    from huggingface_hub import DatasetCardData

    return DatasetCardData(task_categories=["text-to-image"], size_categories=[size_category(total)]).to_yaml()
