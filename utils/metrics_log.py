"""The run's own record, metrics.jsonl: one JSON object per line, in addition to any tracker; its curve and summary."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import note_written, parse_json, read_file, replaced_file, write_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
BLUE, ORANGE, GREY = "#4a6fa5", "#d1682f", "#777777"
QUARTERS = {  # of the timesteps, and the colours of their curves
    "first: least noise": "#7fc6a4",
    "second": "#3a9ea5",
    "third": "#3b6aa0",
    "fourth: most noise": "#3b2f63",
}
SMOOTHING = 0.9  # of an exponential mean, a record
# Of a legend: to the right of its axes, where it covers nothing.
BESIDE: Record = {"frameon": False, "fontsize": 9, "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
TIMED = ("data", "step", "validation", "checkpoint")  # seconds_<name> in the records


def append_metrics(path: Path, record: Record) -> None:
    """Write one line and flush it. What is not finite becomes null: NaN is not JSON."""
    line = json.dumps({name: _plain(value) for name, value in record.items()}, ensure_ascii=False, allow_nan=False)
    note_written(path)
    with open(path, "ab") as file:
        # A kill may have left half a line: it must not swallow this one.
        torn = file.tell() > 0 and not _ends_line(path)
        file.write(("\n" if torn else "").encode() + line.encode() + b"\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a NumPy or torch number
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_metrics(path: Path) -> list[Record]:
    """The records of all complete lines; a line that a kill cut off is skipped. Without a file there are none."""
    return parse_metrics(read_file(path)) if path.exists() else []


def parse_metrics(content: bytes) -> list[Record]:
    """The records of a file's content, without the lines that hold none."""
    records = []
    for line in content.splitlines():
        try:
            record = parse_json(line)
        except ValueError:  # torn, perhaps in the middle of a character
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def cut_metrics(path: Path, step: int) -> list[Record]:
    """Remove the records after `step`, which a resumed run makes again; returns those that stay."""
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    if path.exists():
        write_lines(path, kept)
    return kept


def series(records: list[Record], name: str) -> tuple[list[int], list[float]]:
    """The steps where a number was recorded, and the numbers."""
    found = [(record["step"], record[name]) for record in records if record.get(name) is not None and "step" in record]
    return [step for step, _ in found], [value for _, value in found]


def best_validation(records: list[Record]) -> tuple[int, float] | None:
    """Step and value of the lowest val_loss, the first of equals."""
    steps, values = series(records, "val_loss")
    return min(zip(steps, values), key=lambda pair: pair[1]) if steps else None


def plot_losses(records: list[Record], path: Path) -> None:
    """Draw loss_curve.png; nothing if no loss was recorded."""
    if series(records, "loss")[0] or series(records, "val_loss")[0]:
        with replaced_file(path) as file:  # the same bytes whatever matplotlib's version says
            draw_losses(records).savefig(file, format="png", dpi=110, metadata={"Software": None})


def draw_losses(records: list[Record]) -> "Figure":
    """Loss and validation, loss by timestep, learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    loss, quarters, rate = figure.subplots(3, 1, sharex=True, height_ratios=[5, 3, 1.3])
    _plot_loss(loss, records)
    _plot_quarters(quarters, records)
    _plot_rate(rate, records)
    for axis in (loss, quarters, rate):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e8e8e8", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9)
    return figure


def _plot_loss(axis: "Axes", records: list[Record]) -> None:
    steps, values = series(records, "loss")
    axis.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.9, label="each record")
    axis.plot(steps, smooth(values), color=BLUE, linewidth=2, label="smoothed")
    if best := best_validation(records):
        without_ema = series(records, "val_loss_without_ema")
        if without_ema[0]:
            axis.plot(*without_ema, ".:", color=ORANGE, linewidth=1.2, label="validation without EMA")
        axis.plot(*series(records, "val_loss"), "o-", color=ORANGE, linewidth=1.6, markersize=4, label="validation")
        label = f"best: {best[1]:.4g}\nat step {best[0]:,}"
        axis.plot(*best, "*", color=ORANGE, markeredgecolor="white", markersize=17, zorder=5, label=label)
    # A few noisy records must not flatten the curves that matter.
    ordered, curves = sorted(values), smooth(values) + series(records, "val_loss")[1]
    if ordered and curves:
        low = min([*curves, ordered[len(ordered) // 20]])
        high = max([*curves, ordered[-1 - len(ordered) // 20]])
        room = 0.1 * (high - low) or 0.1 * abs(high) or 1
        axis.set_ylim(low - room, high + room)
    axis.set_title("Loss", loc="left", fontsize=11)
    axis.legend(**BESIDE)


def _plot_quarters(axis: "Axes", records: list[Record]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    found = [series(records, f"loss_q{number}") for number in range(1, 5)]
    for (name, colour), (steps, values) in zip(QUARTERS.items(), found):
        axis.plot(steps, smooth(values), color=colour, linewidth=1.6, label=name)
    axis.set_title("Loss by quarter of the timesteps, smoothed", loc="left", fontsize=11)
    if any(value > 0 for _, values in found for value in values):
        axis.set_yscale("log")  # the quarters lie far apart
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.legend(**BESIDE)


def _plot_rate(axis: "Axes", records: list[Record]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.plot(*series(records, "lr"), color=GREY, linewidth=1.4)
    axis.set_title("Learning rate", loc="left", fontsize=11)
    axis.yaxis.set_major_locator(MaxNLocator(3))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def smooth(values: list[float]) -> list[float]:
    """Exponential mean, corrected for its start at 0, as Adam's (Kingma and Ba, 2014, arXiv 1412.6980)."""
    smoothed, total = [], 0.0
    for count, value in enumerate(values, 1):
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        smoothed.append(total / (1 - SMOOTHING**count))
    return smoothed


def summary_rows(records: list[Record], facts: dict[str, Any]) -> dict[str, str]:
    """The results of a run by label, from its records and from `facts` of the trainer, which take precedence.

    Known facts: steps, seconds (the whole run), samples, skipped_steps, peak_memory_gib. Any other is shown as it is.
    """
    rest = dict(facts)
    steps = rest.pop("steps", max((record.get("step", 0) for record in records), default=0))
    times = {name: sum(series(records, f"seconds_{name}")[1]) for name in TIMED}
    seconds = rest.pop("seconds", sum(times.values()))
    peak = rest.pop("peak_memory_gib", max(series(records, "memory_gib")[1], default=None))
    invalid = sum(series(records, "validation/invalid_images")[1])
    rows = {
        "steps": f"{steps:,}",
        "time": duration(seconds),
        "samples a second": _describe_speed(records, rest.pop("samples", None), seconds),
        **_describe_losses(records),
        "peak memory": "" if peak is None else f"{peak:.2f} GiB",
        "time spent": _describe_times(times, seconds),
        "invalid validation images": f"{invalid:.0f}" if invalid else "",
        "skipped steps": f"{rest.pop('skipped_steps', 0):,}",
    }
    shown = {name: text for name, text in rows.items() if text}
    return shown | {name.replace("_", " "): str(value) for name, value in rest.items()}


def seconds_left(records: list[Record], last: int) -> float | None:
    """How long the steps up to `last` will take, validations and checkpoints included; None before there is a rate.

    The rate is that of the second half of the steps: a run may have been resumed on other hardware.
    """
    steps = sorted({record["step"] for record in records if "step" in record})
    if len(steps) < 2:
        return None
    first = max(step for step in steps if step <= steps[-1] / 2 or step == steps[0])
    recent = [record for record in records if record.get("step", 0) > first]
    seconds = sum(sum(series(recent, f"seconds_{name}")[1]) for name in TIMED)
    return max(0, last - steps[-1]) * seconds / (steps[-1] - first)


def _describe_speed(records: list[Record], samples: int | None, seconds: float) -> str:
    if samples is not None and seconds:
        return f"{samples / seconds:.3g} ({samples:,} samples, everything included)"
    rates = sorted(series(records, "samples_per_second")[1])
    return f"{rates[len(rates) // 2]:.3g} (median)" if rates else ""


def _describe_losses(records: list[Record]) -> dict[str, str]:
    rows = {}
    if losses := smooth(series(records, "loss")[1]):
        rows["smoothed loss"] = f"{losses[0]:.4g} at the start, {losses[-1]:.4g} at the end"
    if best := best_validation(records):
        first = series(records, "val_loss")[1][0]
        rows["validation loss"] = f"best {best[1]:.4g} at step {best[0]:,}, {first:.4g} at the start"
        if trained := series(records, "val_loss_without_ema")[1]:
            last = series(records, "val_loss")[1][-1]
            rows["validation loss at the end"] = f"{last:.4g} with the average, {trained[-1]:.4g} without"
    return rows


def _describe_times(times: dict[str, float], seconds: float) -> str:
    """The shares of the run's time, without those below half a per cent."""
    if not seconds or not any(times.values()):
        return ""
    shares = {name: spent / seconds for name, spent in times.items()}
    shares["other"] = max(0.0, 1 - sum(shares.values()))
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)


def duration(seconds: float) -> str:
    """`12.3 s`, `6 min 40 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
