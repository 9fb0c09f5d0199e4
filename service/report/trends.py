"""Whether a series of noisy numbers changes: its ends beside each other, its last part beside its lowest, its line."""

import math
from statistics import fmean, variance
from typing import NamedTuple

ENDS = 5  # the share of a series that is an end: a fifth
LEAST = 10  # values of a window


def part_of(part: float, whole: float) -> float:
    """Their ratio; 0 where there is no whole."""
    return part / whole if whole else 0.0


class Change(NamedTuple):
    """The means of both ends, and the standard error of their difference."""

    first: float
    last: float
    error: float

    @property
    def relative(self) -> float:
        """Of the first mean: -0.5 where half of it is left."""
        return part_of(self.last - self.first, self.first)

    def is_beyond(self, share: float, errors: float = 2) -> bool:
        """Whether it changed by more than this share, and by more than so many standard errors."""
        return abs(self.relative) > share and abs(self.last - self.first) > errors * self.error


def compare(first: list[float], last: list[float]) -> Change:
    """Two parts of a series, of at least two values each."""
    error = math.sqrt(variance(first) / len(first) + variance(last) / len(last))
    return Change(fmean(first), fmean(last), error)


def compare_ends(values: list[float]) -> Change:
    """The last fifth of the values beside the first."""
    size = max(2, len(values) // ENDS)
    return compare(values[:size], values[-size:])


def compare_lowest(values: list[float]) -> Change:
    """The last tenth of the values beside the tenth with the lowest mean; each of at least ten values."""
    size = max(LEAST, len(values) // 10)
    parts = [values[i : i + size] for i in range(0, len(values) - size + 1, size)]
    return compare(min(parts, key=fmean), values[-size:])


def fit_line(values: list[float]) -> tuple[float, float]:
    """How much the line of least squares changes over all of the values, and that change's standard error."""
    n, middle = len(values), (len(values) - 1) / 2
    spread = sum((i - middle) ** 2 for i in range(n))
    level = fmean(values)
    slope = sum((i - middle) * (value - level) for i, value in enumerate(values)) / spread
    rest = sum((value - level - slope * (i - middle)) ** 2 for i, value in enumerate(values))
    return slope * (n - 1), math.sqrt(rest / (n - 2) / spread) * (n - 1)
