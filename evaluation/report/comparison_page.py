"""Several evaluations side by side: their figures, the differences with intervals, images of one seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.intervals import Estimate, difference
from evaluation.report.charts import Mark, Strip, fit_axis
from evaluation.report.evaluation_page import describe_aim, read_evaluation
from evaluation.report.formatting import format_interval, read_estimate
from evaluation.report.rendering import render_page
from evaluation.report.verdict import GROUPS, either, find_missing, group_of
from utils.cli import UserError, counted
from utils.files import write_text
from utils.metrics_log import read_metrics

IMAGES = 12  # of one prompt and seed, on the page
UNBIASED = ("kid",)  # figures of quality and diversity that do not depend on n
SAME_N = 0.02  # numbers of images that differ by less count as one n


@dataclass(frozen=True)
class Reference:
    """What a set is called in a sentence, and how the ids of the figures that are measured against it begin."""

    name: str
    figures: tuple[str, ...]


REFERENCES = {
    "real": Reference(
        "real sets",
        ("frechet", "kid", "cmmd", "precision", "recall", "density", "coverage", "near_duplicates", "copies"),
    ),
    "instance_data_dir": Reference("photos of the subject", ("fidelity/subject", "fidelity/prior_leak")),
    "identity_reference": Reference("reference photos", ("identity/centroid", "identity/nearest", "identity/verified")),
    "prior_before": Reference("class images before", ("fidelity/prior",)),
}


@dataclass(frozen=True)
class Judgement:
    """The difference of two runs in a figure, in words and numbers, or why they can't be compared."""

    refused: str = ""
    estimate: Estimate | None = None
    verdict: str = ""
    state: str = ""  # its colour


@dataclass(frozen=True)
class ComparedFigure:
    """A figure, what each run has of it (or None), and each run but the first compared with the first."""

    figure: dict[str, Any]
    runs: dict[str, dict[str, Any] | None]
    judgements: dict[str, Judgement]


@dataclass(frozen=True)
class SharedImage:
    text: str
    seed: str
    files: dict[str, Path]  # of each run


def read_runs(folders: list[Path], read: Callable[..., dict[str, Any]] = read_evaluation) -> dict[str, dict[str, Any]]:
    """{name: metrics.json} of 2 to 6 evaluations, each by `read(folder, flag)`; refuses one that is given twice."""
    if not 2 <= len(folders) <= 6:
        raise UserError(f"--compare: takes 2 to 6 evaluations, found {len(folders)}")
    places = [folder.resolve() for folder in folders]
    if same := [str(folder) for folder, place in zip(folders, places) if places.count(place) > 1]:
        raise UserError(f"--compare {' '.join(same)}: the same evaluation; give different ones")
    return {name: read(folder, "--compare") for name, folder in zip(run_names(folders), folders)}


def write_comparison(folders: list[Path], output: Path) -> list[str]:
    """Write one page of evaluations (folders with metrics.json), each compared with the first.

    Returns its verdict in lines: on each run, and where the runs were measured against different images.
    """
    runs = read_runs(folders)
    names = list(runs)
    figures = compare_figures(runs)
    shared = find_shared_images(dict(zip(names, folders)), runs)
    headline = f"Compared with {names[0]}"
    verdicts = summarise_judgements(figures, names)
    warnings = [*warn_of_references(runs), *warn_of_missing(figures)]
    page = render_page(
        "comparison.html",
        folder=Path(),
        runs=runs,
        names=names,
        headline=headline,
        verdicts=verdicts,
        warnings=warnings,
        figures_legend=figures_legend(figures, names),
        groups={title: [one for one in figures if group_of(one.figure) == key] for key, title in GROUPS.items()},
        runs_strip=runs_strip,
        describe_aim=describe_aim,
        shared=len(shared),
        images=random.Random(0).sample(shared, min(IMAGES, len(shared))),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    return [headline, *verdicts, *warnings]


def run_names(folders: list[Path]) -> list[str]:
    """The last part of each path in which they differ; runs/x/evaluation is called x."""
    places = [folder.resolve() for folder in folders]
    parts = [(place.parent if place.name == "evaluation" else place).parts for place in places]
    for back in range(1, max(map(len, parts)) + 1):
        names = [part[-back] if back <= len(part) else part[0] for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {folder.name}" for number, folder in enumerate(folders, 1)]  # no part is another in all


def different_references(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The keys of REFERENCES whose sets both runs have, but with other images."""
    found = []
    for kind in REFERENCES:
        both = [run.get("sets", {}).get(kind) for run in (first, second)]
        if all(both):
            keys = ("sha256",) if all("sha256" in one for one in both) else ("path", "n")  # old evaluations: by name
            found += [kind] if len({tuple(one[key] for key in keys) for one in both}) > 1 else []
    return found


def judge_difference(
    first: dict[str, Any] | None, second: dict[str, Any] | None, references: Sequence[str] = ()
) -> Judgement:
    """Two runs compared in one figure; `references`: the `different_references` of the runs."""
    if reason := find_obstacle(first, second, references):
        return Judgement(reason)
    found = read_estimate(difference(first, second))
    if found.low <= 0 <= found.high:
        return Judgement("", found, "no difference shown", "soft")
    above, aim = found.value > 0, first.get("better")
    if aim == "near floor":
        return Judgement("", found, "higher" if above else "lower", "unsure")
    better = above == (aim == "higher")
    return Judgement("", found, "better" if better else "worse", "good" if better else "bad")


def find_obstacle(first: dict[str, Any] | None, second: dict[str, Any] | None, references: Sequence[str]) -> str:
    """Why two runs cannot be compared in a figure, if so."""
    for one in (first, second):
        if one is None:
            return "not in both"
        if one.get("value") is None:
            return one.get("refused") or "no value"
    if first.get("low") is None or second.get("low") is None:
        return "no interval"
    for reference in map(REFERENCES.get, references):
        if first["id"].startswith(reference.figures):
            return f"not compared: measured against different {reference.name}"
    n, other = first.get("n"), second.get("n")
    biased = group_of(first) in ("quality", "diversity") and first["id"].partition("/")[0] not in UNBIASED
    if biased and n and other and abs(n - other) > SAME_N * max(n, other):
        return f"not compared: n is {n:,} and {other:,}, and this figure depends on n"
    return ""


def compare_figures(runs: dict[str, dict[str, Any]]) -> list[ComparedFigure]:
    """Every figure that a run has, by id and encoder."""
    tables = {name: {(one["id"], one.get("encoder")): one for one in run["figures"]} for name, run in runs.items()}
    (first, start), *others = runs.items()
    references = {name: different_references(start, run) for name, run in others}
    compared = []
    for key in dict.fromkeys(key for table in tables.values() for key in table):
        found = {name: table.get(key) for name, table in tables.items()}
        judgements = {name: judge_difference(found[first], found[name], kinds) for name, kinds in references.items()}
        compared.append(ComparedFigure(next(filter(None, found.values())), found, judgements))
    return compared


def summarise_judgements(figures: list[ComparedFigure], names: list[str]) -> list[str]:
    """A sentence on each run but the first: in how many figures it is better, worse, …"""
    sentences = []
    for name in names[1:]:
        words = [one.judgements[name].verdict or "not compared" for one in figures]
        verdicts = ("better", "worse", "higher", "lower", "no difference shown", "not compared")
        counts = [f"{word} in {words.count(word)}" for word in verdicts if word in words]
        sentences.append(f"{name}: {', '.join(counts)}, of {counted(len(figures), 'figure')}.")
    return sentences


def warn_of_missing(figures: list[ComparedFigure]) -> list[str]:
    """As an evaluation without these has no verdict, so has a comparison."""
    compared = [one.figure for one in figures if any(found.verdict for found in one.judgements.values())]
    if missing := find_missing(compared):
        return [f"Which is better on the whole is not known: there is no figure of {either(missing)} to compare."]
    return []


def warn_of_references(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Where the runs were measured against different images."""
    (first, start), *others = runs.items()
    sentences = []
    for name, run in others:
        for kind in different_references(start, run):
            sets = (start["sets"][kind], run["sets"][kind])
            where = " and ".join(f"{one['path']} ({counted(one['n'], 'image')})" for one in sets)
            sentences.append(f"{first} and {name} were measured against different {REFERENCES[kind].name}: {where}.")
    return sentences


def figures_legend(figures: list[ComparedFigure], names: list[str]) -> list[tuple[str, str]]:
    floor = any((one.runs[names[0]] or {}).get("floor") for one in figures)
    runs = [(f"run{i}", name) for i, name in enumerate(names)]
    return [*runs, ("band", f"floor of {names[0]}")] if floor else runs


def runs_strip(compared: ComparedFigure) -> Strip | None:
    """The values of all runs on one axis; None where no run has a value."""
    marks, values = [], []
    unit = compared.figure.get("unit", "")
    for i, (name, figure) in enumerate(compared.runs.items()):
        if figure and figure.get("value") is not None:
            marks.append(Mark(f"run{i}", read_estimate(figure)))
            values.append(" ".join((name, *format_interval(marks[-1].estimate, unit))))
    if not marks:
        return None
    floor = (next(iter(compared.runs.values())) or {}).get("floor")
    band = read_estimate(floor) if floor else None
    axis = fit_axis([mark.estimate for mark in marks] + ([band] if band else []), unit, unit == "%")
    return Strip(axis, marks, f"{compared.figure['name']}: {'; '.join(values)}", band)


def find_shared_images(folders: dict[str, Path], runs: dict[str, dict[str, Any]]) -> list[SharedImage]:
    """The images of a prompt and seed that are in every run."""
    found = {name: find_images(folder, runs[name]) for name, folder in folders.items()}
    first, *others = found.values()
    shared = [key for key in first if all(key in other for other in others)]
    return [SharedImage(*key, {name: files[key] for name, files in found.items()}) for key in shared]


def find_images(folder: Path, metrics: dict[str, Any]) -> dict[tuple[str, str], Path]:
    """{(prompt, seed): file} of the generated set, whose metadata.jsonl is in the images' folder or its parent."""
    for one in metrics.get("pictures", {}).get("sample", []):
        file = folder / one["file"]
        for place in list(file.parents)[:2]:
            table = place / "metadata.jsonl"
            if table.is_file():
                lines = [one for one in read_metrics(table) if {"file_name", "text", "seed"} <= one.keys()]
                return {(str(one["text"]), str(one["seed"])): place / str(one["file_name"]) for one in lines}
    return {}
