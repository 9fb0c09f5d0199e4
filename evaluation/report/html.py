"""report.html of an evaluation: one file that a person reads from top to bottom, made from metrics.json alone."""

import json
from html import escape
from pathlib import Path

from evaluation.report import charts
from evaluation.report.page import contents, interval, make_page, section, value_html
from evaluation.report.sections import (
    copies_section,
    failures_section,
    identity_section,
    people_section,
    prompts_section,
    sample_section,
    shares_section,
)
from evaluation.report.utility import read_utility, utility_section
from evaluation.report.verdict import GROUPS, against_floor, group_of, target_state, verdict
from utils.cli import UserError, counted
from utils.files import write_text


def read_evaluation(folder: Path) -> dict:
    """metrics.json of an evaluation."""
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; name the folder of an evaluation, as evaluate.py makes it"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run evaluate.py again") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("figures"), list):
        raise UserError(f"{path}: expected an evaluation with `figures`; run evaluate.py again")
    return metrics


def write_report(folder: Path) -> Path:
    """Make report.html from metrics.json and from the images that it names."""
    metrics = read_evaluation(folder)
    utility = read_utility(metrics.get("utility"), folder)
    images = metrics.get("pictures", {})
    sections = [
        figures_section(metrics["figures"]),
        sample_section(images.get("sample", []), folder),
        prompts_section(metrics, folder),
        identity_section(metrics, folder),
        copies_section(images.get("copies", []), folder),
        failures_section(images.get("failures", []), folder),
        shares_section(metrics.get("shares", {})),
        utility_section(utility),
        people_section(metrics.get("human")),
        making_section(metrics),
    ]
    sets, made = metrics.get("sets", {}), metrics.get("made", {})
    name = Path(sets.get("generated", {}).get("path") or folder.resolve()).name
    head = (
        f"<header><p class=eyebrow>Evaluation</p><h1>{escape(name)}</h1><p class=soft>{_sizes(sets, made)}</p></header>"
    )
    body = head + verdict_section(metrics, utility) + contents(sections) + "".join(sections)
    path = folder / "report.html"
    write_text(path, make_page(f"{name} – evaluation", body))
    return path


def _sizes(sets: dict, made: dict) -> str:
    parts = [_count(sets[key]["n"], word) for key, word in _SETS if isinstance(sets.get(key), dict)]
    said = ", ".join(parts[:1]) + (" against " + " and ".join(parts[1:]) if parts[1:] else "")
    date = f"<span class=nowrap>{escape(str(made['date'])[:10])}</span>" if made.get("date") else ""
    return " · ".join(one for one in (escape(said), date) if one)


_SETS = (
    ("generated", "generated image"),
    ("real", "real one"),
    ("train", "training image"),
    ("instance_data_dir", "photo of the subject"),
    ("identity_reference", "reference photo"),
)


def _count(n: int, noun: str) -> str:
    first, of, rest = noun.partition(" of ")
    return counted(n, first) + of + rest


def verdict_section(metrics: dict, utility: dict | None) -> str:
    headline, sentences = verdict(metrics, utility)
    points = "".join(f"<li>{escape(one)}</li>" for one in sentences)
    return (
        f"<section class=verdict id=verdict><h2>{escape(headline)}</h2><ul>{points}</ul>{_targets(metrics)}</section>"
    )


def _targets(metrics: dict) -> str:
    units = {one["id"]: one.get("unit", "") for one in metrics["figures"]}
    rows = ""
    for one in metrics.get("targets", []):
        word, state = target_state(one)
        asked, found = escape(str(one["asked"])), "none"
        if one.get("value") is not None:
            found = value_html(one, units.get(one.get("figure"), ""))
        rows += f"<tr><th scope=row>{escape(one['target'])}</th><td class='state {state}'>{word}</td>"
        rows += f"<td data-label=asked>{asked}</td><td>{found}</td></tr>"
    head = "<thead><tr><th>Target<th>State<th>Asked for<th>Found, with its 95 % interval</tr></thead>"
    return f"<table class=stack>{head}<tbody>{rows}</tbody></table>" if rows else ""


def figures_section(figures: list[dict]) -> str:
    """Every figure on its own axis, with its interval and the band of its floor, by group."""
    parts = []
    for group, title in GROUPS.items():
        rows = "".join(figure_row(one) for one in figures if group_of(one) == group)
        parts += [f"<h3>{title}</h3><div class=rows>{rows}</div>"] if rows else []
    kinds = [("generated", "generated set, with its 95 % interval")]
    if any(one.get("floor") for one in figures):
        kinds += [("band", "floor: what real photos get")]
    if any(_ring(one) for one in figures):
        kinds += [("ring", "generated set at the floor’s number of images")]
    intro = (
        "A figure means little alone. The floor is what real photos get: one half against the other, or all of them."
    )
    return section("figures", "The figures", charts.legend(kinds), *parts, intro=intro) if parts else ""


def _ring(one: dict) -> bool:
    """Whether the figure at the floor's n is worth a mark of its own."""
    other, value = one.get("at_floor_n"), one.get("value")
    return other is not None and value is not None and bool(one.get("floor")) and abs(other - value) > 1e-9


def figure_row(one: dict) -> str:
    encoder = f" · {one['encoder']}" if one.get("encoder") else ""
    aims = {"lower": "lower is better", "higher": "higher is better", "near floor": "best near the floor"}
    below = aims.get(one.get("better"), "") + encoder
    name = f"<div class=name>{escape(one['name'])}<span>{escape(below.removeprefix(' · '))}</span></div>"
    if one.get("refused") or one.get("value") is None:
        return (
            f"<div class=row>{name}<div class=refused>Not given: {escape(one.get('refused') or 'no value')}</div></div>"
        )
    unit, floor = one.get("unit", ""), one.get("floor")
    marks = [{**one, "kind": "generated"}] + ([{"value": one["at_floor_n"], "kind": "ring"}] if _ring(one) else [])
    ends = [mark.get(key) for mark in marks for key in ("value", "low", "high")]
    ends += [floor[key] for key in ("value", "low", "high")] if floor else []
    value, around = interval(one, unit)
    label = f"{one['name']}{encoder}: {value}, interval {around}"
    text = value_html(one, unit)
    if floor:
        found, reach = interval(floor, unit)
        label += f"; floor {found}, {reach}"
        word, state = against_floor(one)
        text += f"<span>floor {escape(found)} · <i class={state}>{escape(word)}</i></span>"
    within = all(0 <= end <= 1 for end in ends if end is not None)  # a cosine may be below 0
    share = unit == "%" or within and one.get("better") != "lower"
    plot = charts.strip(charts.axis_of(ends, share), marks, label, floor, unit)
    return f"<div class=row>{name}{plot}<div class=figure>{text}</div></div>"


def _plain(value) -> str:
    return " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def making_section(metrics: dict) -> str:
    """How each number was made, and the run that made them."""
    entries = ""
    for one in metrics["figures"]:
        if one.get("how"):
            sizes = f" n\u00a0=\u00a0{one['n']:,}." if isinstance(one.get("n"), int) else ""
            encoder = f" · {one['encoder']}" if one.get("encoder") else ""
            how = f"{one['how'][:1].upper()}{one['how'][1:].rstrip('.')}.{sizes}"
            entries += f"<dt>{escape(one['name'] + encoder)}</dt><dd>{escape(how)}</dd>"
    facts = ""
    for key, value in metrics.get("made", {}).items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_plain(found)}" for name, found in value.items())
        shown = f"{value:,.0f}" if key == "seconds" else str(value)
        shown = f"<code>{escape(shown)}</code>" if key in ("command", "commit") else escape(shown)
        facts += f"<dt>{escape(str(key))}</dt><dd>{shown}</dd>"
    for key, one in metrics.get("sets", {}).items():
        said = f"{escape(str(one['path']))}</code>, {counted(one['n'], 'image')}"
        said += f", {one['unreadable']:,} more could not be read" if one.get("unreadable") else ""
        facts += f"<dt>{escape(key.replace('_', ' '))}</dt><dd><code>{said}</dd>"
    figures = f"<dl>{entries}</dl>" if entries else ""
    return section(
        "making", "How each number was made", figures, f"<h3>This evaluation</h3><dl>{facts}</dl>" if facts else ""
    )
