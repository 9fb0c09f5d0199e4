"""Several evaluations side by side: their figures, the differences with intervals, images of one seed."""

import random
from collections.abc import Sequence
from html import escape
from pathlib import Path

from evaluation.intervals import difference
from evaluation.report import charts
from evaluation.report.html import read_evaluation
from evaluation.report.page import contents, decimals, image_tag, interval, make_page, number, section, value_html
from evaluation.report.verdict import GROUPS, group_of
from utils.cli import UserError, counted
from utils.files import write_text
from utils.metrics_log import read_metrics

ROWS = 12  # of images
UNBIASED = ("kid",)  # figures of quality and diversity that n does not bias
AGAINST = {  # what is measured against, in words, and how the ids of the figures begin that would be others without it
    "real": (
        "real sets",
        ("frechet", "kid", "cmmd", "precision", "recall", "density", "coverage", "near_duplicates", "copies"),
    ),
    "instance_data_dir": ("photos of the subject", ("fidelity/subject", "fidelity/prior_leak")),
    "identity_reference": ("reference photos", ("identity/centroid", "identity/nearest", "identity/verified")),
    "prior_before": ("class images before", ("fidelity/prior",)),
}
SAME_N = 0.02  # numbers of images that differ by less are one n


def write_comparison(folders: list[Path], output: Path) -> list[str]:
    """One page of evaluations (folders with metrics.json), each compared with the first; `output` is the HTML file.

    What is returned is its verdict in lines: on each run, and where what they were measured against differs.
    """
    if not 2 <= len(folders) <= 6:
        raise UserError(f"--compare: takes 2 to 6 evaluations, found {len(folders)}")
    runs = [read_evaluation(folder) for folder in folders]
    names = run_names(folders)
    rows = compare_figures(runs)
    sections = [_figures(rows, names), _images(folders, runs, names), _making(runs, names)]
    head = f"<header><p class=eyebrow>Comparison</p><h1>{escape(' · '.join(names))}</h1></header>"
    verdicts, warnings = summaries(rows, names), _warnings(runs, names)
    points = [f"<li>{escape(one)}</li>" for one in verdicts] + [f"<li class=bad>{escape(one)}</li>" for one in warnings]
    title = f"Compared with {names[0]}"
    top = f"<section class=verdict id=verdict><h2>{escape(title)}</h2><ul>{''.join(points)}</ul></section>"
    body = head + top + contents(sections) + "".join(sections)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, make_page("Comparison of evaluations", body))
    return [title, *verdicts, *warnings]


def run_names(folders: list[Path]) -> list[str]:
    """The last part of each path in which they differ."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    for back in range(1, longest + 1):
        names = [part[-back] if back <= len(part) else part[0] for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {folder.name}" for number, folder in enumerate(folders, 1)]  # the same one twice


def different(first: dict, second: dict) -> list[str]:
    """The kinds of AGAINST that two runs both have, and that are not the same images in both."""
    found = []
    for kind in AGAINST:
        both = [run.get("sets", {}).get(kind) for run in (first, second)]
        if all(both):
            keys = ("sha256",) if all("sha256" in one for one in both) else ("path", "n")  # older: by the name
            found += [kind] if len({tuple(one[key] for key in keys) for one in both}) > 1 else []
    return found


def judge(first: dict, second: dict, apart: Sequence[str] = ()) -> dict:
    """{"value", "low", "high", "verdict", "state"} of two runs' figures, or {"refused": why}.

    `apart`: in which kinds of AGAINST the runs are `different`.
    """
    for one in (first, second):
        if one is None or one.get("value") is None:
            return {"refused": "not in both" if one is None else one.get("refused") or "no value"}
    if first.get("low") is None or second.get("low") is None:
        return {"refused": "no interval"}
    for words, begins in map(AGAINST.get, apart):
        if first["id"].startswith(begins):
            return {"refused": f"not compared: measured against different {words}"}
    n, other = first.get("n"), second.get("n")
    biased = group_of(first) in ("quality", "diversity") and first["id"].partition("/")[0] not in UNBIASED
    if biased and n and other and abs(n - other) > SAME_N * max(n, other):
        return {"refused": f"not compared: n is {n:,} and {other:,}, and this figure depends on n"}
    found = difference(first, second)
    if found["low"] <= 0 <= found["high"]:
        return {**found, "verdict": "no difference shown", "state": "soft"}
    above, aim = found["value"] > 0, first.get("better")
    if aim == "near floor":
        return {**found, "verdict": "higher" if above else "lower", "state": "unsure"}
    better = above == (aim == "higher")
    return {**found, "verdict": "better" if better else "worse", "state": "good" if better else "bad"}


def compare_figures(runs: list[dict]) -> list[dict]:
    """[{"figure": how it is described, "runs": [each run's figure or None], "against": [judged with the first]}]."""
    tables = [{(one["id"], one.get("encoder")): one for one in run["figures"]} for run in runs]
    rows, apart = [], [different(runs[0], other) for other in runs[1:]]
    for key in dict.fromkeys(key for table in tables for key in table):
        found = [table.get(key) for table in tables]
        against = [judge(found[0], *other) for other in zip(found[1:], apart)]
        rows.append({"figure": next(filter(None, found)), "runs": found, "against": against})
    return rows


def summaries(rows: list[dict], names: list[str]) -> list[str]:
    sentences = []
    for i, name in enumerate(names[1:]):
        words = [row["against"][i]["verdict"] for row in rows if "verdict" in row["against"][i]]
        counts = [f"{word} in {words.count(word)}" for word in ("better", "worse", "higher", "lower") if word in words]
        same = words.count("no difference shown")
        counts += [f"no difference shown in {same}"] if same else []
        missing = len(rows) - len(words)
        counts += [f"not compared in {missing}"] if missing else []
        sentences.append(f"{name}: {', '.join(counts)}, of {counted(len(rows), 'figure')}.")
    return sentences


def _warnings(runs: list[dict], names: list[str]) -> list[str]:
    """Where what the runs were measured against is not the same."""
    notes = []
    for run, name in zip(runs[1:], names[1:]):
        for kind in different(runs[0], run):  # figures that only one of them has say so themselves
            where = [
                f"{one['path']} ({counted(one['n'], 'image')})" for one in (runs[0]["sets"][kind], run["sets"][kind])
            ]
            words = f"{names[0]} and {name} were measured against different {AGAINST[kind][0]}"
            notes.append(f"{words}: {' and '.join(where)}.")
    return notes


def _figures(rows: list[dict], names: list[str]) -> str:
    kinds = [(f"run{i}", name) for i, name in enumerate(names)]
    kinds += [("band", f"floor of {names[0]}")] if any((row["runs"][0] or {}).get("floor") for row in rows) else []
    parts = [charts.legend(kinds)]
    for group, title in GROUPS.items():
        found = "".join(_row(row, names) for row in rows if group_of(row["figure"]) == group)
        parts += [f"<h3>{title}</h3><div class=rows>{found}</div>"] if found else []
    intro = (
        f"Differences are from {names[0]}, with 95 % intervals that take the runs for independent: the half widths are "
        "added in quadrature. Where the interval holds 0, no difference is shown. Of twenty figures that do not "
        "differ, one will seem to."
    )
    return section("figures", "The figures", *parts, intro=intro)


def _row(row: dict, names: list[str]) -> str:
    one = row["figure"]
    unit, aims = one.get("unit", ""), {"lower": "lower is better", "higher": "higher is better"}
    below = " · ".join(filter(None, (aims.get(one.get("better"), ""), one.get("encoder"))))
    name = f"<div class=name>{escape(one['name'])}<span>{escape(below)}</span></div>"
    marks, lines = [], []
    for i, (run, found) in enumerate(zip(names, row["runs"])):
        if found and found.get("value") is not None:
            marks.append({**found, "kind": f"run{i}"})
            lines.append(f"<span>{escape(run)} {value_html(found, unit)}</span>")
    for i, found in enumerate(row["against"], 1):
        reason = found.get("refused")
        said = f"<i class=soft>{escape(reason)}</i>" if reason else _difference(found, unit)
        lines.append(f"<span>{escape(names[i])} − {escape(names[0])}: {said}</span>")
    if not marks:
        return f"<div class=row>{name}<div class=refused>{''.join(lines)}</div></div>"
    floor = (row["runs"][0] or {}).get("floor")
    ends = [mark.get(key) for mark in marks for key in ("value", "low", "high")]
    ends += [floor[key] for key in ("low", "high")] if floor else []
    label = f"{one['name']}: " + "; ".join(
        " ".join((names[int(mark["kind"][3:])], *interval(mark, unit))) for mark in marks
    )
    plot = charts.strip(charts.axis_of(ends, unit == "%"), marks, label, floor, unit)
    return f"<div class='row runs'>{name}{plot}<div class=figure>{''.join(lines)}</div></div>"


def _difference(found: dict, unit: str) -> str:
    """With its sign; of shares in points."""
    scale = 100 if unit == "%" else 1
    value, low, high = (found[key] * scale for key in ("value", "low", "high"))
    places = decimals(low, high)
    sign = "+" if value > 0 else ""
    around = f"<small>{number(low, places)} to {number(high, places)}</small>"
    shown = f"{sign}{number(value, places)}" + (" points" if unit == "%" else "")
    return f"{shown} {around} <i class='{found['state']}'>{found['verdict']}</i>"


def find_images(folder: Path, metrics: dict) -> dict[tuple[str, str], Path]:
    """{(prompt, seed): file} of the generated set whose metadata.jsonl lies beside the sample's images or above."""
    for one in metrics.get("pictures", {}).get("sample", []):
        file = folder / one["file"]
        for place in list(file.parents)[:2]:
            table = place / "metadata.jsonl"
            if table.is_file():
                lines = [one for one in read_metrics(table) if {"file_name", "text", "seed"} <= one.keys()]
                return {(str(one["text"]), str(one["seed"])): place / str(one["file_name"]) for one in lines}
    return {}


def _images(folders: list[Path], runs: list[dict], names: list[str]) -> str:
    """The same prompt and seed in every run."""
    found = [find_images(folder, run) for folder, run in zip(folders, runs)]
    shared = [key for key in found[0] if all(key in other for other in found[1:])]
    if not shared:
        note = "No prompt and seed are in all runs (or their generation folders are no longer there)."
        return section("images", "The same prompt and seed", f"<p class=soft>{note}</p>")
    parts = []
    for text, seed in random.Random(0).sample(shared, min(ROWS, len(shared))):
        cells = "".join(
            f"<div>{image_tag(files[text, seed], Path(), f'{name}: {text}')}<small>{escape(name)}</small></div>"
            for files, name in zip(found, names)
        )
        caption = f"<figcaption>{escape(text)} · seed {seed}</figcaption>"
        parts.append(f'<figure class=abreast style="--columns:{len(names)}">{cells}{caption}</figure>')
    intro = f"{counted(len(shared), 'image')} in all runs share prompt and seed; these are drawn at random."
    return section("images", "The same prompt and seed", f"<div class=rows2>{''.join(parts)}</div>", intro=intro)


def _making(runs: list[dict], names: list[str]) -> str:
    entries = ""
    for run, name in zip(runs, names):
        made, sets = run.get("made", {}), run.get("sets", {})
        said = [f"{kind}: {one.get('path')}, {counted(one.get('n', 0), 'image')}" for kind, one in sets.items()]
        said += [str(made[key]) for key in ("date", "commit", "hardware") if made.get(key)]
        command = f"<br><code>{escape(str(made['command']))}</code>" if made.get("command") else ""
        entries += f"<dt>{escape(name)}</dt><dd>{escape('; '.join(said))}{command}</dd>"
    return section("making", "The evaluations", f"<dl>{entries}</dl>")
