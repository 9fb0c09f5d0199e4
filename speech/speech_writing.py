"""Write the splits of a dataset of speech and all that describes them."""

from collections import Counter
from pathlib import Path
from typing import Any

from speech.dataset import FORMAT, TABLE
from speech.processing import Handling, sound_file
from speech.recordings import Recordings
from speech.speech_report import SHOWN, Example, count_characters, quantiles, values_of
from utils.catalogue import Rejected
from utils.cli import counted
from utils.console import format_seconds
from utils.dataset import SPLITS, content_fingerprint, size_category
from utils.files import file_sha256, link_or_copy, write_json, write_lines, write_manifest, write_text
from utils.wording import make_environment


def write_splits(folder: Path, examples: list[Example], work: Path, handling: Handling) -> dict[str, str]:
    """audio/, metadata.jsonl and ids.txt of every split; {file: sha256}."""
    sums: dict[str, str] = {}
    columns = sorted({key for one in examples for key in one.recording.attributes} - {"speaker"})
    for split in SPLITS:
        (folder / split / "audio").mkdir(parents=True)
        own = [one for one in examples if one.split == split]
        for one in own:
            name = f"{split}/audio/{one.recording.id}{handling.ending}"
            link_or_copy(sound_file(work, one.recording.id, handling), folder / name)
            sums[name] = one.facts.sha256
        write_lines(folder / split / TABLE, [table_row(one, columns, handling.ending) for one in own])
        write_text(folder / split / "ids.txt", "".join(f"{one.recording.id}\n" for one in own))
        sums |= {f"{split}/{name}": file_sha256(folder / split / name) for name in (TABLE, "ids.txt")}
    return sums


def table_row(one: Example, columns: list[str], ending: str) -> dict[str, Any]:
    return {
        "file_name": f"audio/{one.recording.id}{ending}",
        "text": one.text,
        "raw_text": one.recording.text,
        "speaker": one.recording.speaker,
        "seconds": one.facts.seconds,
        "id": one.recording.id,
        **{key: one.recording.attributes.get(key) for key in columns},
    }


def describe(
    examples: list[Example], rejected: list[Rejected], sums: dict[str, str], found: Recordings, asked: dict[str, Any]
) -> dict[str, Any]:
    """The content of metadata.json; `asked`: options, and what tells whether the dataset is up to date."""
    lengths = {split: round(sum(one.facts.seconds for one in examples if one.split == split), 3) for split in SPLITS}
    speakers = Counter(one.recording.speaker for one in examples if one.recording.speaker)
    measured = [values_of(one.facts.measures, one.text) for one in examples if one.facts.measures]
    return {
        "format": FORMAT,
        "source": {"kind": found.kind, "rows": found.rows, "notes": found.notes},
        **asked,
        "counts": {
            "written": len(examples),
            "left_out": len(rejected),
            **{split: sum(one.split == split for one in examples) for split in SPLITS},
        },
        "seconds": lengths,
        "speakers": dict(sorted(speakers.items())),
        "characters": count_characters([one.text for one in examples]),
        "measures": {"percentiles": [5, 50, 95], **quantiles(measured)},
        "excluded": [{"id": one.id, "row": one.row, "reason": one.reason, "detail": one.detail} for one in rejected],
        "fingerprint": content_fingerprint(sums),
    }


def write_description(folder: Path, metadata: dict[str, Any], examples: list[Example], sums: dict[str, str]) -> None:
    """metadata.json, the dataset card and the manifest."""
    write_json(folder / "metadata.json", metadata)
    sentences = [one.text for one in examples if one.split == "train"][:5]
    write_text(folder / "README.md", dataset_card(metadata, sentences))
    write_manifest(folder, sums)


def dataset_card(metadata: dict[str, Any], sentences: list[str]) -> str:
    """The card of a dataset, from its metadata.json and a few of its sentences."""
    environment = make_environment(Path(__file__).parent / "templates")
    measures = {f"{name}, {unit}": metadata["measures"][key] for key, (name, unit) in SHOWN.items()}
    return environment.get_template("speech_card.md.j2").render(
        front_matter=front_matter(metadata),
        metadata=metadata,
        lengths={split: format_seconds(seconds) for split, seconds in metadata["seconds"].items()},
        total=counted(metadata["counts"]["written"], "recording"),
        measures=measures,
        sentences=sentences,
        reasons=Counter(one["reason"] for one in metadata["excluded"]).most_common(),
    )


def front_matter(metadata: dict[str, Any]) -> str:
    """What the hub reads, as YAML."""
    from huggingface_hub import DatasetCardData

    size = size_category(metadata["counts"]["written"])
    language = metadata["options"]["language"].partition("-")[0]
    return DatasetCardData(task_categories=["text-to-speech"], size_categories=[size], language=[language]).to_yaml()
