"""What benchmark.json says, as tables and as a figure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarking.measuring import estimated, too_large
from benchmarking.search import NO_MEMORY, Row, Trial, doubled, read_trial, trial_of
from utils.cli import counted
from utils.console import format_seconds, print_table
from utils.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = dict[str, Any]  # the content of benchmark.json (docs/benchmark.md)
Rows = list[list[str]]
COLOURS = ("#4a6fa5", "#d1682f", "#3a8a63", "#7a4a86", "#8a6d2f", "#b0476b", "#3a9ea5", "#777777")
ROW_HEADERS = ("checkpointing", "compiled", "at once", "s a step", "samples/s", "GiB", "estimated", "MFU", "")
GENERATION_HEADERS = ("at once", "s an image", "")
RATES = {
    "encoding_images_per_second": "images encoded a second",
    "captions_per_second": "captions encoded a second",
    "loading_images_per_second": "images loaded a second",
    "loading_utterances_per_second": "utterances loaded a second",
    "spoken_seconds_per_second": "seconds of sound spoken a second",
}


def format_rate(value: float | None, digits: int = 3) -> str:
    """A figure with so many significant digits and no exponent; nothing for None."""
    if value is None:
        return ""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:#.{digits}g}"


def format_spread(spread: Mapping[str, float] | None) -> str:
    """`1.24 (1.2 to 1.31)`: the median of the repeats, the smallest and the largest."""
    if not spread:
        return ""
    median, low, high = (format_rate(spread[key]) for key in ("median", "low", "high"))
    return median if low == high else f"{median} ({low} to {high})"


def format_share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def list_rows(result: Result) -> Rows:
    """The cells of ROW_HEADERS, a line for each setting that was tried or given up."""
    cells = []
    for row in result["rows"]:
        settings = ["yes" if row[key] else "no" for key in ("gradient_checkpointing", "compile")]
        figures = [
            format_spread(row.get("seconds_per_step")),
            format_rate(row.get("samples_per_second")),
            format_rate(row.get("memory_gib")),
            format_rate(row.get("estimated_gib")),
            format_share(row.get("mfu")),
        ]
        cells.append([*settings, str(row["micro_batch"]), *figures, describe_status(row)])
    return cells


def print_benchmark(result: Result) -> None:
    """The tables, and why there is no share of the device's peak."""
    for rows, headers in (
        (list_rows(result), ROW_HEADERS),
        (list_generation(result), GENERATION_HEADERS),
        (list_rates(result), ("rates", "")),
    ):
        if rows:
            print_table(rows, headers)
            print()
    tera = f"{result['flops']['per_sample'] / 1e12:.3g} TFLOPs a sample"
    if not result["flops"]["peak"]:
        print(f"MFU (of {tera}): not known: no peak is published for {result['machine']['name']}")
    else:
        print(f"MFU: {tera} against the published peak, {result['flops']['peak'] / 1e12:,.4g} TFLOP/s")


def print_recipe(facts: Result) -> None:
    """What is measured, and on what."""
    machine, recipe = facts["machine"], facts["recipe"]
    side = recipe.get("resolution")
    lines = [
        ("machine", f"{machine['name']}, {machine['memory_gib']:.1f} GiB, {counted(machine['cores'], 'core')}"),
        ("trainer", f"{recipe['script']}, {counted(recipe['processes'], 'process')}; {recipe['precision']}"),
        ("model", f"{recipe['model']}, {side}x{side} pixels" if side else recipe["model"]),
        ("data", "drawn, since there is none" if recipe["drawn"] else counted(recipe["examples"], "example")),
        ("batch", f"{recipe['effective_batch_size']} a step"),
    ]
    print_table(lines)


def print_plan(facts: Result) -> None:
    """What a dry run shows: each row that may be tried, its estimated memory, and why it is not tried."""
    recipe = facts["recipe"]
    sizes = doubled(recipe["effective_batch_size"] // recipe["processes"])
    trials = [Trial(on, False, size) for on in (False, True) for size in sizes]
    rows = [(trial, f"{estimated(facts, trial) / 2**30:.2f}", too_large(facts, trial)) for trial in trials]
    print_table(rows, ["may be tried", "GiB, estimated", ""])
    if all(why for *_, why in rows):
        print(nothing_fits(facts))


def nothing_fits(facts: Result) -> str:
    """What to try where no setting fits into the memory."""
    images = "a lower --resolution, or after `--` what saves memory (docs/memory.md), such as --quantize_base nf4"
    voices = "shorter utterances, or after `--` a smaller --segment_frames"
    return f"nothing fits into the memory; try {images if 'resolution' in facts['recipe'] else voices}"


def why_nothing(result: Result) -> str:
    """Why no row could be measured."""
    if all(row["status"] in NO_MEMORY for row in result["rows"]):
        return nothing_fits(result)
    return f"nothing could be measured: {result['rows'][-1]['why']}"


def print_estimate(result: Result) -> None:
    """How long the training takes, in all and part by part."""
    estimate = result["estimate"]
    shown = {name: format_seconds(value) for name, value in estimate.items() if name != "max_train_steps"}
    whole = shown.pop("seconds")
    parts = ", ".join(f"{name.replace('_', ' ')} {seconds}" for name, seconds in shown.items())
    epochs = result["settings"]["num_train_epochs"]
    length = f"{estimate['max_train_steps']:,} steps" + (f" ({counted(epochs, 'epoch')})" if epochs else "")
    print(f"{length} take about {whole}: {parts}")


def describe_status(row: Mapping[str, Any]) -> str:
    """Nothing for a row that was measured."""
    return "" if row["status"] == "ok" else ": ".join(filter(None, [row["status"], row.get("why")]))


def list_generation(result: Result) -> Rows:
    """The cells of GENERATION_HEADERS."""
    return [
        [str(one["batch_size"]), format_spread(one.get("seconds_per_image")), describe_status(one)]
        for one in result["generation"]
    ]


def list_rates(result: Result) -> Rows:
    """What each rate means, and its value."""
    return [[text, format_rate(result["rates"].get(key))] for key, text in RATES.items() if result["rates"].get(key)]


def find_recommended(result: Result) -> dict[str, Any] | None:
    """The row of the settings that were recommended; None if nothing could be measured."""
    wanted = result.get("recommended")
    return next((row for row in result["rows"] if wanted and trial_of(row) == read_trial(wanted)), None)


def best_generation(result: Result) -> dict[str, Any] | None:
    """The batch with the fewest seconds an image."""
    measured = [one for one in result["generation"] if one["status"] == "ok"]
    return min(measured, key=lambda one: one["seconds_per_image"]["median"], default=None)


# The figure


@dataclass(frozen=True)
class Curve:
    """Rows of benchmark.json that differ in the micro-batch alone."""

    name: str
    colour: str
    style: str
    rows: list[dict[str, Any]]


def training_curves(results: Mapping[str, Result]) -> list[Curve]:
    """One for each use of checkpointing and compile; of several machines, each has its colour."""
    curves = []
    for number, (name, result) in enumerate(results.items()):
        for checkpointing in (False, True):
            for compiled in (False, True):
                kind = (checkpointing, compiled)
                rows = [row for row in result["rows"] if (row["gradient_checkpointing"], row["compile"]) == kind]
                words = [name] if len(results) > 1 else []
                words += [f"{'with' if checkpointing else 'without'} checkpointing"] + ["compiled"] * compiled
                colour = COLOURS[number if len(results) > 1 else checkpointing]
                style = (":" if compiled else "--" if checkpointing and len(results) > 1 else "-") + "os"[compiled]
                curves += [Curve(", ".join(words), colour, style, rows)] if rows else []
    return curves


def draw_benchmarks(results: Mapping[str, Result]) -> "Figure":
    """Images a second and memory by micro-batch, and the seconds of a generated image by batch; of {name: result}."""
    from matplotlib.figure import Figure  # no pyplot: no display and no global state

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    speed, memory, generation = figure.subplots(1, 3)
    for curve in training_curves(results):
        _draw_speed(speed, curve)
        _draw_memory(memory, curve)
    for number, result in enumerate(results.values()):
        _draw_generation(generation, result["generation"], COLOURS[number])
        limit = result["machine"].get("memory_gib") if len(results) == 1 else None
        if limit and memory.get_ylim()[1] > limit / 4:  # far above, it would flatten the curves
            memory.axhline(limit, color="0.5", linestyle=":", label="the device's memory")
    measured = [row["micro_batch"] for result in results.values() for row in result["rows"]]
    generated = [one["batch_size"] for result in results.values() for one in result["generation"]]
    _finish(speed, "Training: samples a second", "samples at once", measured)
    _finish(memory, "Memory, GiB (hollow: as estimated)", "samples at once", measured)
    _finish(generation, "Generation: seconds an image", "images at once", generated)
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def plot_benchmark(result: Result, path: Path) -> None:
    """Write benchmark.png."""
    with replaced_file(path) as file:  # the same bytes whatever matplotlib's version says
        draw_benchmarks({result["machine"]["name"]: result}).savefig(
            file, format="png", dpi=110, metadata={"Software": None}
        )


def _measured(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["micro_batch"])


def _reach(values: list[float], low: list[float], high: list[float]) -> list[list[float]]:
    """How far the ends lie below and above the values, as matplotlib wants it."""
    return [[value - end for value, end in zip(values, low)], [end - value for value, end in zip(values, high)]]


def _draw_speed(axis: "Axes", curve: Curve) -> None:
    rows = _measured(curve.rows)
    speeds = [row["samples_per_second"] for row in rows]
    seconds = [row["seconds_per_step"] for row in rows]
    low = [speed * one["median"] / one["high"] for speed, one in zip(speeds, seconds)]
    high = [speed * one["median"] / one["low"] for speed, one in zip(speeds, seconds)]
    places = [row["micro_batch"] for row in rows]
    reach = _reach(speeds, low, high)
    axis.errorbar(places, speeds, reach, fmt=curve.style, color=curve.colour, markersize=5, capsize=3, label=curve.name)


def _draw_memory(axis: "Axes", curve: Curve) -> None:
    rows = _measured(curve.rows)
    axis.plot(
        [row["micro_batch"] for row in rows], [row["memory_gib"] for row in rows], curve.style, color=curve.colour
    )
    known = [(row["micro_batch"], row["estimated_gib"]) for row in curve.rows if row.get("estimated_gib")]
    if known:
        axis.plot(*zip(*sorted(known)), curve.style[-1], color=curve.colour, fillstyle="none")


def _draw_generation(axis: "Axes", generation: list[dict[str, Any]], colour: str) -> None:
    measured = [one for one in generation if one["status"] == "ok"]
    medians, low, high = ([one["seconds_per_image"][key] for one in measured] for key in ("median", "low", "high"))
    places = [one["batch_size"] for one in measured]
    axis.errorbar(places, medians, _reach(medians, low, high), fmt="-o", color=colour, markersize=5, capsize=3)


def _finish(axis: "Axes", title: str, along: str, places: list[int]) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(along)
    axis.set_ylim(bottom=0)
    if places:
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(set(places)), [f"{place:,}" for place in sorted(set(places))])
        axis.set_xticks([], minor=True)
    axis.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def describe_row(row: Row) -> str:
    """`4 at once: 0.52 s a step (0.50 to 0.55), 15.4 samples/s, 3.1 GiB (estimated 2.8)`."""
    name, estimated = trial_of(row), f"estimated {row['estimated_gib']:.3g} GiB"
    if row["status"] != "ok":
        return f"{name}: {row['status']}: {row['why']}"
    step = row["seconds_per_step"]
    took = f"{step['median']:.3g} s a step ({step['low']:.3g} to {step['high']:.3g})"
    return f"{name}: {took}, {row['samples_per_second']:.3g} samples/s, {row['memory_gib']:.3g} GiB ({estimated})"
