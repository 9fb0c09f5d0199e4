"""Machines side by side: several files of benchmark.py as one page, and as Markdown to paste into docs/hardware.md."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarking.flops import PRECISIONS
from benchmarking.report import (
    RATES,
    Result,
    best_generation,
    describe_status,
    draw_benchmarks,
    find_recommended,
    format_rate,
    format_share,
    format_spread,
)
from benchmarking.search import trial_of
from utils.cli import UserError
from utils.files import read_object, write_text
from utils.wording import PAGES, data_address, escape_cell, escape_code, make_environment

TEMPLATES = Path(__file__).parent / "templates"
MOST = 8  # files
EXPECTED = "a benchmark.json, as benchmark.py writes it"
# What two benchmarks must have in common, of their `recipe` and of the trainer's `settings`: all that decides the time,
# but for the precision, which is chosen for each machine.
RECIPE = "script model resolution effective_batch_size".split()
SETTINGS = (
    "rank lora_layers use_dora method optimizer train_text_encoder use_ema with_prior_preservation cache_latents "
    "lora_dropout validation_inference_steps validation_guidance_scale segment_frames discriminators"
).split()
PARTS = {"recipe": RECIPE, "settings": SETTINGS}


@dataclass(frozen=True)
class Line:
    """A figure of each machine as text, and each but the first as a multiple of the first where that makes sense."""

    name: str
    cells: list[str]
    ratios: list[str]


def read_results(paths: list[Path]) -> dict[str, Result]:
    """{the machine's name: its benchmark.json}; several of one machine have the name of the file or folder too."""
    if not 2 <= len(paths) <= MOST:
        raise UserError(f"--compare: takes 2 to {MOST} files, found {len(paths)}")
    results = [read_result(path) for path in paths]
    places = [path.resolve() for path in paths]
    if len(set(places)) < len(places):
        raise UserError(f"--compare {' '.join(map(str, paths))}: the same file twice; give different ones")
    machines = [str(result["machine"]["name"]) for result in results]
    stems = [place.parent.name if place.stem == "benchmark" else place.stem for place in places]
    names = [name if machines.count(name) == 1 else f"{name}, {stem}" for name, stem in zip(machines, stems)]
    if len(set(names)) < len(names):
        names = [f"{name}, {path}" for name, path in zip(machines, paths)]
    return dict(zip(names, results))


def read_result(path: Path) -> Result:
    """A benchmark.json; the error names --compare, the file, and what it lacks."""
    result = read_object(path, EXPECTED, "--compare")
    parts = {"machine": dict, "recipe": dict, "settings": dict, "rows": list, "generation": list, "rates": dict}
    if wrong := [name for name, kind in parts.items() if not isinstance(result.get(name), kind)]:
        raise UserError(f"--compare {path}: lacks `{wrong[0]}`; expected {EXPECTED}")
    try:
        compare_lines({"": result})
        draw_benchmarks({"": result})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--compare {path}: a part of it can't be read ({error!r}); expected {EXPECTED}") from None
    return result


def recipe_differences(results: Mapping[str, Result]) -> list[str]:
    """`resolution is 512 (Tesla T4) and 1024 (NVIDIA L4)`, for each key of the recipe that is not the same."""
    recipes = {name: read_recipe(result) for name, result in results.items()}
    found = []
    for key in (*RECIPE, *SETTINGS):
        values: dict[str, list[str]] = {}
        for name, recipe in recipes.items():
            values.setdefault(str(recipe.get(key)), []).append(name)
        if len(values) > 1:
            shown = [f"{text} ({', '.join(names)})" for text, names in values.items()]
            found.append(f"{key} is {' and '.join(shown)}")
    return found


def read_recipe(result: Result) -> dict[str, Any]:
    """What decides the figures, besides the machine."""
    recipe, settings = ({key: result[part].get(key) for key in keys} for part, keys in PARTS.items())
    return recipe | settings


def compare_lines(results: Mapping[str, Result]) -> list[Line]:
    """What is compared, a line each; lines that no machine has a figure for are left out."""
    several = list(results.values())
    rows = [find_recommended(result) or {} for result in several]
    generated = [best_generation(result) or {} for result in several]
    lines = [
        text_line("precision", [PRECISIONS[result["recipe"]["mixed_precision"]] for result in several]),
        text_line("settings", [describe_settings(result) for result in several]),
        spread_line("seconds a step", [row.get("seconds_per_step") for row in rows]),
        number_line("samples a second", [row.get("samples_per_second") for row in rows]),
        number_line("memory, GiB", [row.get("memory_gib") for row in rows]),
        text_line("FLOPs utilisation", [format_share(row.get("mfu")) for row in rows]),
        spread_line("seconds an image, generated", [one.get("seconds_per_image") for one in generated]),
        text_line("generated at once", [str(one.get("batch_size", "")) for one in generated]),
        *(number_line(text, [result["rates"].get(key) for result in several]) for key, text in RATES.items()),
    ]
    if recipe_differences(results):
        lines = [text_line(line.name, line.cells) for line in lines]
    return [line for line in lines if any(line.cells)]


def text_line(name: str, cells: list[str]) -> Line:
    return Line(name, cells, [""] * len(cells))


def number_line(name: str, values: list[float | None]) -> Line:
    return Line(name, [format_rate(value) for value in values], multiples(values))


def spread_line(name: str, spreads: list[dict[str, float] | None]) -> Line:
    medians = [spread["median"] if spread else None for spread in spreads]
    return Line(name, [format_spread(spread) for spread in spreads], multiples(medians))


def multiples(values: list[float | None]) -> list[str]:
    """Each value but the first as a multiple of the first, where both are known."""
    first, *others = values
    return ["", *(f"× {format_rate(value / first)}" if first and value else "" for value in others)]


def describe_settings(result: Result) -> str:
    """The settings that were recommended, or why none were."""
    row = find_recommended(result)
    if row is None:
        return "; ".join(dict.fromkeys(filter(None, map(describe_status, result["rows"])))) or "none measured"
    return str(trial_of(row))


def describe_hardware(machine: Mapping[str, Any]) -> str:
    """`Tesla T4, 14.6 GiB, 2 cores, torch 2.13.0`."""
    memory, cores, torch = (machine.get(key) for key in ("memory_gib", "cores", "torch"))
    parts = [memory and f"{memory:g} GiB", cores and f"{cores} core{'s' * (cores != 1)}", torch and f"torch {torch}"]
    return ", ".join([str(machine["name"]), *filter(None, parts)])


def describe_recipe(result: Result) -> str:
    """`train_lora.py, stable-diffusion-v1-5/stable-diffusion-v1-5, 512x512, 16 samples a step, rank 8`."""
    found = read_recipe(result)
    model = f"{found['model']}{' (random weights)' if result['recipe'].get('random_weights') else ''}"
    size = f"{found['resolution']}x{found['resolution']}"
    parts = [str(found["script"]), model, size, f"{found['effective_batch_size']} samples a step"]
    return ", ".join(parts + [f"rank {found['rank']}"] * bool(found["rank"]))


def write_comparison(results: Mapping[str, Result], output: Path) -> tuple[list[str], str]:
    """Write one page of several benchmarks; returns the recipes' differences, and all of it as Markdown."""
    differences = recipe_differences(results)
    lines = compare_lines(results)
    figure = io.BytesIO()
    draw_benchmarks(results).savefig(figure, format="svg", metadata={"Date": None, "Creator": None})
    template = make_environment(TEMPLATES, PAGES).get_template("comparison.html")
    page = template.render(
        contents=[],
        results=results,
        lines=lines,
        differences=differences,
        figure=data_address(figure.getvalue(), "image/svg+xml"),
        describe_hardware=describe_hardware,
        describe_recipe=describe_recipe,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    return differences, to_markdown(results, lines, differences)


def to_markdown(results: Mapping[str, Result], lines: list[Line], differences: list[str]) -> str:
    """A table with a column for each machine, what the recipes differ in, and how each was measured."""
    names = [escape_cell(name) for name in results]
    table = [["", *names], ["---"] * (1 + len(names))]
    for one in lines:
        cells = [" ".join(filter(None, pair)) for pair in zip(one.cells, one.ratios)]
        table.append([one.name, *map(escape_cell, cells)])
    text = [f"| {' | '.join(cells)} |" for cells in table]
    if differences:
        text += ["", "**Different recipes**: " + "; ".join(map(escape_cell, differences)) + "."]
    text += [""]
    for result in results.values():
        hardware, recipe = escape_cell(describe_hardware(result["machine"])), escape_cell(describe_recipe(result))
        text.append(f"- {hardware}: {recipe}. {result.get('date')}, commit {escape_cell(result.get('commit'))}:")
        text.append(f"  `{escape_code(result.get('command'))}`")
    return "\n".join(text) + "\n"
