"""Charts of counts, drawn without a display and without matplotlib's global state."""

from pathlib import Path


def bar_panels(path: Path, panels: dict[str, dict[str, int]], most: int = 12) -> None:
    """One panel of horizontal bars per title, each bar with its count and share; what is over `most` is summed up."""
    from matplotlib.figure import Figure

    panels = {title: _shorten(counts, most) for title, counts in panels.items() if counts}
    if not panels:
        return
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    heights = [
        max(len(counts) for counts in list(panels.values())[row * columns : (row + 1) * columns]) for row in range(rows)
    ]
    figure = Figure(figsize=(5.6 * columns, 0.27 * sum(heights) + 0.85 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=[height + 2 for height in heights]).ravel()
    for index, (axis, (title, counts)) in enumerate(zip(axes, panels.items())):
        total = sum(counts.values())
        bars = axis.barh(list(counts), list(counts.values()), color="#4a6fa5", height=0.72)
        labels = [f" {count:,}  {count / total:.1%}" for count in counts.values()]
        axis.bar_label(bars, labels, fontsize=8, color="#333333")
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_xlim(0, max(counts.values()) * 1.28)
        axis.set_ylim(heights[index // columns] - 0.4, -0.6)  # bars equally thick, whatever their number
        axis.spines["left"].set_bounds(-0.6, len(counts) - 0.4)
        axis.tick_params(axis="y", length=0, labelsize=9)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes whatever matplotlib's version says


def _shorten(counts: dict[str, int], most: int) -> dict[str, int]:
    names = list(counts)
    if len(names) <= most:
        return counts
    rest = sum(counts[name] for name in names[most - 1 :])
    return {name: counts[name] for name in names[: most - 1]} | {f"{len(names) - most + 1} others": rest}
