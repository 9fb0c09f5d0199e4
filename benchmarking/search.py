"""Which settings a benchmark tries, in which order, and which it recommends: from the rows measured so far alone."""

import math
from typing import Any, NamedTuple

Row = dict[str, Any]  # of benchmark.json (docs/benchmark.md)
# Settings that take up to so much longer than the fastest count as equally fast, and the plainest of them wins; those
# that an earlier benchmark recommended win up to twice that.
TOLERANCE = 0.05
COMPILING, GAIN = 30.0, 0.3  # compiling takes at least so many seconds, and saves at most this share of a step
NO_MEMORY = ("out of memory", "not tried")  # the states of a row that needs more memory than there is


class Trial(NamedTuple):
    """Settings to measure."""

    gradient_checkpointing: bool
    compile: bool
    micro_batch: int

    def __str__(self) -> str:
        """`8 at once, gradient checkpointing`."""
        parts = [f"{self.micro_batch} at once"]
        return ", ".join(parts + ["gradient checkpointing"] * self.gradient_checkpointing + ["compiled"] * self.compile)


def trial_of(row: Row) -> Trial:
    return Trial(row["gradient_checkpointing"], row["compile"], row["micro_batch"])


def read_trial(recommended: dict[str, Any]) -> Trial:
    """The trial that benchmark.json recommends."""
    names = ("gradient_checkpointing", "compile", "train_batch_size")
    return Trial(*(recommended[name] for name in names))


def doubled(share: int) -> list[int]:
    """The sizes of a micro-batch that are tried as long as they fit: each divides the share, and is twice the last."""
    sizes = [1]
    while size := next((size for size in range(2 * sizes[-1], share + 1) if share % size == 0), None):
        sizes.append(size)
    return sizes


def sizes_left(rows: list[Row], sizes: list[int]) -> list[int]:
    """How many images at once are still to be generated: no more where fewer did not fit."""
    done = [row["batch_size"] for row in rows]
    too_many = min((row["batch_size"] for row in rows if row["status"] != "ok"), default=math.inf)
    return [size for size in sizes if size < too_many and size not in done]


def next_trial(
    rows: list[Row], share: int, steps: int, compiles: bool = True, always_checkpointed: bool = False
) -> Trial | None:
    """What to measure next; None where enough is known.

    `share`: samples a step on each process, which a micro-batch divides evenly; `steps`: the length of the training;
    `compiles`: whether the trainer can compile the model; `always_checkpointed`: whether it trains only so.
    Without gradient checkpointing the sizes grow from 1 on, while that is faster and fits; with it from there on,
    if it was the memory that ended them. Last, the best of all compiled, if it can pay.
    """
    plain, checkpointed = ([row for row in rows if row["gradient_checkpointing"] == on] for on in (False, True))
    plain, checkpointed = ([row for row in column if not row["compile"]] for column in (plain, checkpointed))
    if not always_checkpointed and (size := _next_size(plain, share, 1)):
        return Trial(False, False, size)
    if not checkpointed or always_checkpointed or any(row["status"] in NO_MEMORY for row in plain):
        fitting = [row["micro_batch"] for row in plain if row["status"] == "ok"]
        if size := _next_size(checkpointed, share, max(fitting, default=1)):
            return Trial(True, False, size)
    best = recommend(rows, steps)
    if best is None or not compiles or any(row["compile"] for row in rows) or not can_pay(best, steps):
        return None
    return trial_of(best)._replace(compile=True)


def can_pay(row: Row, steps: int) -> bool:
    """Whether so many steps are long enough to win back the time that compiling takes."""
    return GAIN * steps * row["seconds_per_step"]["median"] > COMPILING


def _next_size(column: list[Row], share: int, first: int) -> int | None:
    """The size to try next, each at least twice the one before; where it does not fit, one between."""
    if not column:
        return first
    fitting = sorted((row for row in column if row["status"] == "ok"), key=lambda row: row["micro_batch"])
    grows = len(fitting) == 1 or (fitting and _step(fitting[-2]) > (1 + TOLERANCE) * _step(fitting[-1]))
    if not grows or any(row["status"] == "failed" for row in column):
        return None
    largest = fitting[-1]["micro_batch"]
    too_large = min((row["micro_batch"] for row in column if row["status"] in NO_MEMORY), default=share + 1)
    if too_large <= share:
        return max((size for size in range(largest + 1, too_large) if share % size == 0), default=None)
    return next((size for size in range(2 * largest, share + 1) if share % size == 0), None)


def _step(row: Row) -> float:
    return row["seconds_per_step"]["median"]


def training_seconds(row: Row, steps: int) -> float:
    """What so many steps take, and the first of them besides, in which a model is compiled."""
    return row["warm_up_seconds"] + steps * _step(row)


def recommend(rows: list[Row], steps: int, before: Trial | None = None) -> Row | None:
    """The row to train with; None if none could be measured.

    Of those that are about as fast as the fastest: uncompiled rather than compiled, without gradient checkpointing
    rather than with, the smaller micro-batch. `before`: what was recommended here before stays, unless another is
    clearly faster.
    """
    measured = [row for row in rows if row["status"] == "ok"]
    if not measured:
        return None
    fastest = min(training_seconds(row, steps) for row in measured)

    def within(tolerance: float) -> list[Row]:
        near = [row for row in measured if training_seconds(row, steps) <= (1 + tolerance) * fastest]
        return sorted(near, key=lambda row: (row["compile"], row["gradient_checkpointing"], row["micro_batch"]))

    kept = [row for row in within(2 * TOLERANCE) if trial_of(row) == before]
    return (kept or within(TOLERANCE))[0]
