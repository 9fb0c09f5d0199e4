"""A figure of an evaluation: what it is, its value with a 95 % interval, and what real images get (its floor)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from evaluation.intervals import Estimate, mean_or_share, wilson
from utils.cli import UserError

Rows = list[dict[str, Any]]  # of a table in metrics.json


@dataclass(frozen=True)
class Measured:
    """A value with its interval, from how many images it is, and how it was computed."""

    value: float
    low: float
    high: float
    n: int | None = None
    n_real: int | None = None
    n_generated: int | None = None
    resamples: int | None = None
    k: int | None = None  # neighbours
    threshold: float | None = None
    floor: "Measured | None" = None
    at_floor_n: float | None = None  # the figure for as many images as the floor is for, where their number matters

    def as_json(self) -> dict[str, Any]:
        """Without what is not known, and without the floor."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "floor"}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Figure:
    """An entry of metrics.json. Where the sets are too small it has no value, and `refused` says why."""

    id: str
    group: str
    name: str
    better: str  # lower, higher, near floor
    unit: str = ""  # % for shares (0 to 1)
    how: str = ""
    encoder: str | None = None
    measured: Measured | None = None
    refused: str | None = None

    def of(self, encoder: str | None, how: str = "") -> "Figure":
        """The same figure for an encoder; `how` is added to its explanation."""
        name = f"{self.id}/{encoder}" if encoder else self.id
        return replace(self, id=name, encoder=encoder, how=self.how + how)

    def refuse(self, reason: str) -> "Figure":
        return replace(self, refused=reason)

    def as_json(self) -> dict[str, Any]:
        found = {key: value for key, value in asdict(self).items() if key not in ("measured", "refused")}
        found |= {"value": None, "low": None, "high": None, "floor": None, "at_floor_n": None}
        if self.measured:
            found |= self.measured.as_json()
            found["floor"] = self.measured.floor.as_json() if self.measured.floor else None
        return found | ({"refused": self.refused} if self.refused else {})


def measure(estimate: Estimate, n: int | None = None, floor: Measured | None = None, **details: Any) -> Measured:
    """`details`: more of Measured's fields."""
    value, low, high = map(float, estimate)
    return Measured(value, low, high, n=n, floor=floor, **details)


def measure_share(hits: Iterable[bool] | np.ndarray, floor: Measured | None = None) -> Measured:
    """The share of images that are hits, with Wilson's interval."""
    hits = np.asarray(list(hits), bool)
    return measure(wilson(int(hits.sum()), len(hits)), len(hits), floor)


def fill(figures: Sequence[Figure], compute: Callable[[], Sequence[Measured]], hint: str = "") -> list[Figure]:
    """The figures with what `compute` returns for each; where it refuses, all refused with its reason and the hint."""
    try:
        found = compute()
    except UserError as error:
        return [one.refuse(f"{error}{hint}") for one in figures]
    return [replace(one, measured=each) for one, each in zip(figures, found, strict=True)]


def split_means(
    rows: Rows, values: np.ndarray, key: str, is_share: bool, least: int = 2, most: int | None = None
) -> Rows:
    """The mean of `values` for each value of a column, the most frequent first; NaN stands for an unknown value.

    Left out are those that fewer than `least` images have: from one image there is no interval of a mean.
    """
    found: Rows = []
    for value, _ in Counter(one[key] for one in rows if one.get(key)).most_common(most):
        mine = values[[one.get(key) == value for one in rows]]
        mine = mine[~np.isnan(mine)]
        if len(mine) >= least:
            mean, low, high = mean_or_share(mine, is_share)
            found.append({"value": value, "mean": mean, "low": low, "high": high, "n": len(mine)})
    return found


def stratify(rows: Rows, labels: Iterable[str]) -> Measured | None:
    """The share that a set would have with the labels of another one: `rows` as split_means gives them, by label.

    None where no label is known. The interval is Wilson's for the number of images that has the same variance.
    """
    known = {row["value"]: row for row in rows}
    wanted = Counter(label for label in labels if label in known)
    if not wanted:
        return None
    weights = {label: count / wanted.total() for label, count in wanted.items()}
    share = sum(weight * known[label]["mean"] for label, weight in weights.items())
    effective = 1 / sum(weight**2 / known[label]["n"] for label, weight in weights.items())
    return measure(wilson(min(1, share) * effective, effective), int(sum(known[label]["n"] for label in wanted)))
