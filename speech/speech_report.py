"""The report of a dataset of speech: what was measured, what was left out and why, for people and as figures."""

from collections import Counter
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech.processing import SoundFacts
from speech.recordings import Recording, Recordings
from speech.sound_measures import Measures
from utils.catalogue import Rejected
from utils.cli import counted, name_some
from utils.console import format_seconds, format_table
from utils.dataset import SPLITS

if TYPE_CHECKING:
    from speech.transcripts import Heard

MOST_LISTED = 40
# What is measured: {key: (its name, unit)}
SHOWN = {
    "seconds": ("length", "s"),
    "pace": ("pace", "characters/s"),
    "level": ("loudness as recorded", "dB"),
    "snr": ("signal to noise", "dB"),
    "silent": ("silence", "% of the time"),
    "speech": ("speech", "% of the time"),
    "clipped": ("clipping", "% of the samples"),
}


@dataclass(frozen=True)
class Example:
    """A recording of the dataset, in its split."""

    recording: Recording
    text: str  # what the model reads
    facts: SoundFacts
    split: str


def values_of(measures: Measures, text: str) -> dict[str, float]:
    """What is shown of one recording, shares in percent."""
    shares = {key: 100 * getattr(measures, key) for key in ("silent", "speech", "clipped")}
    own = {key: getattr(measures, key) for key in ("seconds", "level", "snr")}
    return {**own, "pace": measures.pace(text), **shares}


def quantiles(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """{key: values below which 5, 50 and 95 % of the recordings are}."""
    if not rows:
        return {}
    return {key: [round(float(q), 3) for q in np.percentile([row[key] for row in rows], (5, 50, 95))] for key in SHOWN}


def source_lines(found: Recordings) -> list[str]:
    """What was read, before any sound is."""
    lines = [f"read: {found.kind}, {counted(found.rows, 'row')}"]
    speakers = Counter(one.speaker for one in found.found if one.speaker)
    if speakers:
        shown = name_some([f"{name} {count:,}" for name, count in speakers.most_common()])
        lines.append(f"{counted(len(speakers), 'speaker')}: {shown}")
    return lines + [f"note: {note}" for note in found.notes]


def rejected_lines(rejected: list[Rejected]) -> list[str]:
    counts = Counter(one.reason for one in rejected).most_common()
    lines = [f"left out: {len(rejected):,}"]
    lines += format_table([(f"  {reason}", f"{n:,}") for reason, n in counts], label=26).splitlines()
    lines += [f"    {one}" for one in rejected[:MOST_LISTED]]
    hidden = len(rejected) - MOST_LISTED
    return lines + ([f"    … and {hidden:,} more, in metadata.json"] if hidden > 0 else [])


def findings_lines(examples: list[Example], rejected: list[Rejected]) -> list[str]:
    """What was found in the sounds: lengths of the splits, measures, and what was left out."""
    rows = []
    for split in SPLITS:
        own = [one.facts.seconds for one in examples if one.split == split]
        rows.append((f"  {split}", f"{len(own):,}", format_seconds(sum(own))))
    measured = quantiles([values_of(one.facts.measures, one.text) for one in examples if one.facts.measures])
    table = [(f"  {', '.join(SHOWN[key])}", *(f"{value:.4g}" for value in own)) for key, own in measured.items()]
    return [
        *format_table(rows, ["split", "recordings", "length"], label=26).splitlines(),
        "",
        *format_table(table, ["of the recordings", "5 %", "median", "95 %"], label=26).splitlines(),
        "",
        *rejected_lines(rejected),
    ]


def measure_rows(
    recordings: list[Recording], texts: dict[str, str], facts: dict[str, SoundFacts], heard: dict[str, "Heard"]
) -> list[dict[str, Any]]:
    """One row for each recording that was decoded, good or not, for measures.jsonl; what is heard in it, if asked."""
    rows = []
    for one in recordings:
        if found := facts[one.id].measures:
            measured = {key: value for key, value in asdict(found).items() if key != "fingerprint"}
            more = heard[one.id]._asdict() if one.id in heard else {}
            rows.append({"id": one.id, "row": one.row, **measured, "pace": round(found.pace(texts[one.id]), 2), **more})
    return rows


def draw_measures(path: Path, shown: dict[str, dict[str, float]], kept: Container[str]) -> None:
    """Histograms of lengths, pace, loudness and signal to noise, of what was kept and of what was left out."""
    from matplotlib.figure import Figure  # no pyplot: no display and no global state

    keys = ("seconds", "pace", "level", "snr")
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    for axis, key in zip(figure.subplots(2, 2).flat, keys):
        name, unit = SHOWN[key]
        groups = [[row[key] for one, row in shown.items() if (one in kept) == is_kept] for is_kept in (True, False)]
        axis.hist(groups, bins=40, stacked=True, color=["#4a6fa5", "#c8553d"], label=["kept", "left out"])
        axis.set_title(name, loc="left", fontsize=11)
        axis.set_xlabel(unit, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=9, frameon=False)
    path.parent.mkdir()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def count_characters(texts: list[str]) -> dict[str, int]:
    """How often each character occurs, the most frequent first: what a model's vocabulary must have."""
    return dict(sorted(Counter("".join(texts)).items(), key=lambda item: (-item[1], item[0])))
