"""The run's own record, metrics.jsonl: one JSON object a line, kept whatever the trackers do; its curve and summary."""

import json
import math
import os
from pathlib import Path

from utils.files import write_text


def append_metrics(path: Path, record: dict) -> None:
    """One line, flushed. What is not finite becomes null: NaN is no JSON."""
    line = json.dumps({name: _plain(value) for name, value in record.items()}, ensure_ascii=False, allow_nan=False)
    with open(path, "ab") as file:
        # A kill may have left half a line: it must not swallow this one.
        torn = file.tell() > 0 and not _ends_line(path)
        file.write(("\n" if torn else "").encode() + line.encode() + b"\n")


def _plain(value):
    if hasattr(value, "item"):  # a NumPy or torch number
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_metrics(path: Path) -> list[dict]:
    """Every whole line; one that a kill tore is passed over. No file is no records."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # torn, perhaps in the middle of a character
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def cut_metrics(path: Path, step: int) -> list[dict]:
    """Drop what was recorded after `step`, since a resumed run makes it again; what stays is returned."""
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    if path.exists():
        write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    return kept


def series(records: list[dict], name: str) -> tuple[list[int], list[float]]:
    """The steps where a number was recorded, and the numbers."""
    found = [(record["step"], record[name]) for record in records if record.get(name) is not None and "step" in record]
    return [step for step, _ in found], [value for _, value in found]


def best_validation(records: list[dict]) -> tuple[int, float] | None:
    """Step and value of the lowest val_loss, the first of equals."""
    steps, values = series(records, "val_loss")
    return min(zip(steps, values), key=lambda pair: pair[1]) if steps else None


def plot_losses(records: list[dict], path: Path) -> None:
    """loss_curve.png: the loss with validation, the loss by timestep, the learning rate; nothing where no step is."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if not series(records, "loss")[0] and not series(records, "val_loss")[0]:
        return
    figure = Figure(figsize=(9, 8), layout="constrained")
    loss, quarters, rate = figure.subplots(3, 1, sharex=True, height_ratios=[5, 3, 1.3])
    _draw_loss(loss, records)
    names = ("first (least noise)", "second", "third", "fourth (most noise)")
    for number, (name, colour) in enumerate(zip(names, ("#7fc6a4", "#3a9ea5", "#3b6aa0", "#3b2f63")), 1):
        steps, values = series(records, f"loss_q{number}")
        quarters.plot(steps, _smooth(values), color=colour, linewidth=1.6, label=name)
    quarters.set_title("Loss by quarter of the timesteps, smoothed", loc="left", fontsize=11)
    if any(value > 0 for number in range(1, 5) for value in series(records, f"loss_q{number}")[1]):
        quarters.set_yscale("log")  # the quarters lie far apart
        quarters.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        quarters.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        quarters.yaxis.set_minor_formatter(NullFormatter())
        quarters.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 0.97))
    rate.plot(*series(records, "lr"), color="#777777", linewidth=1.4)
    rate.set_title("Learning rate", loc="left", fontsize=11)
    rate.yaxis.set_major_locator(MaxNLocator(3))
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for axis in (loss, quarters, rate):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e8e8e8", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes whatever matplotlib's version says


def _draw_loss(axis, records: list[dict]) -> None:
    steps, values = series(records, "loss")
    axis.plot(steps, values, color="#4a6fa5", alpha=0.25, linewidth=0.9, label="each record")
    axis.plot(*series(records, "loss_smooth"), color="#4a6fa5", linewidth=2, label="smoothed")
    best = best_validation(records)
    if best:
        axis.plot(*series(records, "val_loss"), "o-", color="#d1682f", linewidth=1.6, markersize=4, label="validation")
        axis.plot(*best, "*", color="#d1682f", markeredgecolor="white", markersize=17, zorder=5)
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axis.annotate(f"best {best[1]:.4g} at step {best[0]:,}", best, (0, -13), textcoords="offset points",
                      ha="center", va="top", fontsize=9, color="#a34a18", bbox=box, annotation_clip=False)  # fmt: skip
    # Single noisy records must not flatten the curves that matter.
    ordered, curves = sorted(values), series(records, "loss_smooth")[1] + series(records, "val_loss")[1]
    if ordered and curves:
        low = min([*curves, ordered[len(ordered) // 20]])
        high = max([*curves, ordered[-1 - len(ordered) // 20]])
        room = 0.1 * (high - low) or 0.1 * abs(high) or 1
        axis.set_ylim(low - room, high + room)
    axis.set_title("Loss", loc="left", fontsize=11)
    axis.legend(frameon=False, fontsize=9, loc="upper right")


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential mean without the pull towards 0 at its beginning."""
    smoothed, total = [], 0.0
    for count, value in enumerate(values, 1):
        total = weight * total + (1 - weight) * value
        smoothed.append(total / (1 - weight**count))
    return smoothed


def summary_rows(records: list[dict], facts: dict) -> dict[str, str]:
    """What the run came to, by label; `facts` of the trainer are added, or put in place of what was worked out here.

    Known facts: steps, seconds (the whole run), samples, skipped_steps, peak_memory_gib. Any other is shown as it is.
    """
    rest = dict(facts)
    steps = rest.pop("steps", max((record.get("step", 0) for record in records), default=0))
    times = {name: sum(series(records, f"seconds_{name}")[1]) for name in ("data", "step", "validation", "checkpoint")}
    seconds, samples = rest.pop("seconds", sum(times.values())), rest.pop("samples", None)
    rates, memory = series(records, "samples_per_second")[1], series(records, "memory_gib")[1]
    rows = {"steps": f"{steps:,}", "time": duration(seconds)}
    if samples is not None and seconds:
        rows["samples a second"] = f"{samples / seconds:.3g} ({samples:,} samples, everything included)"
    elif rates:
        rows["samples a second"] = f"{sorted(rates)[len(rates) // 2]:.3g} (median)"
    smooth = series(records, "loss_smooth")[1]
    if smooth:
        rows["smoothed loss"] = f"{smooth[0]:.4g} at first, {smooth[-1]:.4g} at last"
    best = best_validation(records)
    if best:
        first = series(records, "val_loss")[1][0]
        rows["validation loss"] = f"best {best[1]:.4g} at step {best[0]:,}, {first:.4g} at first"
    peak = rest.pop("peak_memory_gib", max(memory, default=None))
    if peak is not None:
        rows["peak memory"] = f"{peak:.2f} GiB"
    if seconds and any(times.values()):
        shares = {name: spent / seconds for name, spent in times.items()}
        shares["other"] = max(0.0, 1 - sum(shares.values()))
        rows["time spent"] = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
    invalid = sum(series(records, "validation/invalid_images")[1])
    if invalid:
        rows["invalid validation images"] = f"{invalid:.0f}"
    rows["skipped steps"] = f"{rest.pop('skipped_steps', 0):,}"
    return rows | {name.replace("_", " "): str(value) for name, value in rest.items()}


def summary_table(records: list[dict], facts: dict) -> str:
    """`summary_rows` as aligned lines, to print at the end."""
    rows = summary_rows(records, facts)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    )
