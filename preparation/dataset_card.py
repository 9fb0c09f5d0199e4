"""README.md of a prepared dataset: its dataset card."""

from collections import Counter
from pathlib import Path
from typing import Any

from utils.wording import make_environment

SIZES = {"n<1K": 1_000, "1K<n<10K": 10_000, "10K<n<100K": 100_000}  # the hub's names, and where each ends


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
    )


def front_matter(total: int) -> str:
    """What the hub reads, as YAML."""
    from huggingface_hub import DatasetCardData

    size = next((name for name, limit in SIZES.items() if total < limit), "n>100K")
    return DatasetCardData(task_categories=["text-to-image"], size_categories=[size]).to_yaml()
