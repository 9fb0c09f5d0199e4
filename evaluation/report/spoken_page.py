"""report.html of a voice, and the page that compares voices: made from metrics.json and the sounds that it names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report.charts import Mark, Strip, fit_axis
from evaluation.report.comparison_page import read_runs
from evaluation.report.evaluation_page import describe_fact
from evaluation.report.formatting import format_interval, read_estimate
from evaluation.report.rendering import render_page
from evaluation.report.spoken_verdict import NAMES, judge_voice, preferences_of
from evaluation.spoken import UNDECIDED, Row, choose_examples, compare_sentences, judge_difference
from utils.cli import UserError, counted
from utils.files import read_file, read_object, write_text
from utils.wording import data_address

GROUPS = {"understood": "Understood", "speaker": "Speaker", "sound": "Sound", "tempo": "Tempo"}
AIMS = {"lower": "lower is better", "higher": "higher is better", "near 1": "best near 1"}
COLOURS = {"generated": "generated", "real": "real", "copy": "run3"}  # classes of page.css
LEGEND = {
    "generated": "the voice, with its 95 % interval",
    "real": "recordings",
    "copy": "copy-synthesis: the recording through the voice’s encoder and decoder",
}
EXAMPLES = {"best": "Best", "worst": "Worst", "random": "At random"}
SHOWN = 3  # sentences of a kind, each with three sounds
KIND = "speech"  # of metrics.json
TYPES = {".flac": "audio/flac", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".png": "image/png"}
EXPECTED = "an evaluation of a voice, as evaluate_speech.py makes it"


def read_spoken(folder: Path, flag: str = "") -> dict[str, Any]:
    """metrics.json of an evaluation of a voice; `flag` is what its folder was given by."""
    path = folder / "metrics.json"
    metrics = read_object(path, EXPECTED, flag)
    lists = all(isinstance(metrics.get(key), list) for key in ("figures", "utterances"))
    if metrics.get("kind") != KIND or not lists:
        raise UserError(f"{flag} {path}: expected {EXPECTED}".strip())
    return metrics


def embed_file(path: Path) -> str:
    """The address of a sound or picture that is inside the page; empty where the file is gone."""
    try:
        return data_address(read_file(path), TYPES.get(path.suffix.lower(), "application/octet-stream"))
    except OSError:
        return ""


def write_spoken_report(folder: Path) -> Path:
    metrics = read_spoken(folder)
    headline, sentences, doubts = judge_voice(metrics)
    rows, figures, made = metrics["utterances"], metrics["figures"], metrics.get("made", {})
    examples = choose_examples(rows, SHOWN, metrics.get("seed", 0))
    page = render_page(
        "spoken.html",
        metrics=metrics,
        preferences=preferences_of(metrics.get("human") or {}),
        folder=folder,
        name=metrics["name"],
        size=counted(len(rows), "sentence"),
        headline=headline,
        sentences=sentences,
        doubts=doubts,
        groups={title: [one for one in figures if one["group"] == key] for key, title in GROUPS.items()},
        legend_entries=figures_legend(figures),
        figure_strip=figure_strip,
        aims=AIMS,
        judge_difference=judge_difference,
        names=NAMES,
        examples={EXAMPLES[key]: [rows[place] for place in places] for key, places in examples.items() if places},
        kinds={"generated": "the voice", "real": "recording", "copy": "copy-synthesis"},
        embed_file=embed_file,
        made={key: describe_fact(key, value) for key, value in made.items() if value is not None},
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def figures_legend(figures: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    there = {"generated", *(kind for one in figures for kind in one.get("beside", {}))}
    return [(COLOURS[kind], text) for kind, text in LEGEND.items() if kind in there]


def figure_strip(figure: dict[str, Any]) -> Strip | None:
    """The voice, recordings and copies on one axis; None where there is no value."""
    if figure.get("value") is None:
        return None
    found = {"generated": figure, **figure.get("beside", {})}
    marks = [Mark(COLOURS[kind], read_estimate(found[kind])) for kind in COLOURS if kind in found]
    unit = figure.get("unit", "")
    said = "; ".join(" ".join((kind, *format_interval(read_estimate(one), unit))) for kind, one in found.items())
    axis = fit_axis([mark.estimate for mark in marks], unit)
    return Strip(axis, marks, f"{figure['name']}: {said}")


def shared_sentences(runs: dict[str, dict[str, Any]], flag: str = "--compare") -> dict[str, list[Row]]:
    """{run: its rows} of the sentences that all runs were measured by, against the same recordings, in one order."""

    def key(row: Row) -> tuple[str, str, str]:
        return row["id"], row["text"], row["sounds"]["real"]["sha256"]

    tables = {name: {key(row): row for row in run["utterances"]} for name, run in runs.items()}
    first, *others = tables.values()
    keys = [one for one in first if all(one in table for table in others)]
    if len(keys) < 2:
        raise UserError(
            f"{flag} {' '.join(runs)}: {counted(len(keys), 'sentence')} with the same recording in all; evaluate them "
            "with the same --real"
        )
    return {name: [table[one] for one in keys] for name, table in tables.items()}


def write_spoken_comparison(folders: list[Path], output: Path, resamples: int, seed: int) -> list[str]:
    """Write one page of several voices, each compared with the first; returns its verdict in lines."""
    runs = read_runs(folders, read_spoken)
    rows = shared_sentences(runs)
    figures = compare_sentences(rows, resamples, seed)
    n = len(next(iter(rows.values())))
    headline, verdicts = f"Compared with {next(iter(runs))}", summarise(figures, list(runs))
    doubts = warn_of_runs(runs, n)
    chosen = choose_examples(next(iter(rows.values())), SHOWN, seed)["random"] or [0]
    page = render_page(
        "spoken_comparison.html",
        runs=runs,
        n=n,
        headline=headline,
        verdicts=verdicts,
        doubts=doubts,
        groups={title: [one for one in figures if one["group"] == key] for key, title in GROUPS.items()},
        legend_entries=[(f"run{i}", name) for i, name in enumerate(runs)],
        runs_strip=runs_strip,
        aims=AIMS,
        judge_difference=judge_difference,
        places=dict(zip(runs, folders)),
        examples=[{name: some[place] for name, some in rows.items()} for place in chosen],
        embed_file=embed_file,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    return [headline, *verdicts, *doubts]


def runs_strip(figure: dict[str, Any]) -> Strip:
    estimates = {name: read_estimate(one) for name, one in figure["runs"].items()}
    marks = [Mark(f"run{i}", one) for i, one in enumerate(estimates.values())]
    unit = figure.get("unit", "")
    said = "; ".join(" ".join((name, *format_interval(one, unit))) for name, one in estimates.items())
    return Strip(fit_axis(estimates.values(), unit), marks, f"{figure['name']}: {said}")


def summarise(figures: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """A sentence on each run but the first: in which figures it is better, and in which worse."""
    sentences = []
    for name in names[1:]:
        words: dict[str, list[str]] = {}
        for one in figures:
            words.setdefault(judge_difference(one["differences"][name], one["better"])[0], []).append(one["name"])
        parts = [f"{word} in {len(some)} ({', '.join(some)})" for word, some in words.items() if word not in UNDECIDED]
        parts += [f"{word} in {len(words[word])}" for word in UNDECIDED if word in words]
        sentences.append(f"{name}: {'; '.join(parts)}, of {counted(len(figures), 'figure')}.")
    return sentences


def warn_of_runs(runs: dict[str, dict[str, Any]], n: int) -> list[str]:
    """Sentences that only some runs have, and models that differ."""
    warnings = [f"{n} sentences are few: only large differences are seen."] if n < 30 else []
    if more := [f"{name} {len(run['utterances'])}" for name, run in runs.items() if len(run["utterances"]) > n]:
        warnings.append(f"Only the {n} sentences that all runs have are compared; there are more: {', '.join(more)}.")
    used = {str(run.get("made", {}).get("models")) for run in runs.values()}
    if len(used) > 1:
        warnings.append("The runs were heard by different recognisers or speaker encoders: those figures say little.")
    return warnings
