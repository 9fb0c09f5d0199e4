"""The learning curves of train_classifier.py as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import replaced_file


def plot_curves(path: Path, arms: Sequence[dict[str, Any]], majority: Mapping[str, float]) -> None:
    """Accuracy and macro-F1 over the number of real images, a line for each kind of training set with its intervals.

    `arms` are those of results.json; one trained on no real image is a horizontal band. `majority`: what always naming
    the most frequent class gives.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    names = list(dict.fromkeys(arm["name"] for arm in arms))
    for axis, metric, title in zip(figure.subplots(1, 2), ("accuracy", "macro_f1"), ("Accuracy", "Macro-F1")):
        for number, name in enumerate(names):
            own = sorted((arm for arm in arms if arm["name"] == name), key=lambda arm: arm["n_real"])
            centre, low, high = zip(*(arm[f"{metric}_interval"] for arm in own))
            colour = f"C{number % 10}"
            if not own[0]["n_real"]:
                axis.axhline(centre[0], color=colour, linestyle="--", label=f"{name} only")
                axis.axhspan(low[0], high[0], color=colour, alpha=0.12, linewidth=0)
                continue
            # next to each other, none hidden
            places = [arm["n_real"] * 1.02 ** (number - len(names) / 2) for arm in own]
            spread = [[c - edge for c, edge in zip(centre, low)], [edge - c for c, edge in zip(centre, high)]]
            axis.errorbar(places, centre, spread, color=colour, marker="o", markersize=4, capsize=3, label=name)
        axis.axhline(majority[metric], color="0.5", linestyle=":", label="always the most frequent class")
        ticks = sorted({arm["n_real"] for arm in arms if arm["n_real"]})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("real training images")
        axis.set_title(f"{title} on the real test images, 95 % intervals", loc="left", fontsize=11)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9, frameon=False)
    with replaced_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
