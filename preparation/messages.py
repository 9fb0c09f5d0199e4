"""What the scripts that prepare data say alike: what is to read, what can't be used, what a check has found."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import NoReturn

from utils.catalogue import Rejected
from utils.cli import COMMON, Parser, UserError, counted, report_ignored
from utils.dataset import SPLITS


def describe_work(found: Sized, noun: str, rejected: Sized, kept: Sized) -> str:
    """How many images or recordings are to read, beside the rows left out before that, and the splits to keep."""
    left_out = f", {counted(len(rejected), 'row')} left out already" if rejected else ""
    keeping = f", {counted(len(kept), 'split')} to keep" if kept else ""
    return f"{counted(len(found), noun)} to read{left_out}{keeping}"


def refuse_all(where: str, noun: str, rejected: list[Rejected]) -> NoReturn:
    """The error for a source without a usable row, with the most frequent reasons; `where`: its flag and name."""
    counts = Counter(one.reason for one in rejected).most_common(3)
    why = ", ".join(f"{count}: {reason}" for reason, count in counts)
    first = "".join(f"; the first, {one}" for one in rejected[:1])
    raise UserError(f"{where}: no {noun} can be used ({why or 'it has no rows'}){first}")


def refuse_any(rejected: list[Rejected], allowed: str) -> None:
    """For --strict: a row that is left out is an error, unless the reason is `allowed`."""
    faults = [one for one in rejected if one.reason != allowed]
    if faults:
        print("\n".join(map(str, faults)), file=sys.stderr)
        raise UserError(f"--strict: {counted(len(faults), 'row')} can't be used, see above; nothing was written")


def check_beside_verify(parser: Parser, args: argparse.Namespace) -> None:
    """--verify reads a dataset as it is: a flag of how one is made does nothing."""
    used = {"verify", "num_workers", *COMMON}
    needs = {name: ("a new dataset, which --verify does not make", name in used) for name in vars(args)}
    report_ignored(parser, args, needs)


def describe_ratio(ratio: Sequence[float]) -> str:
    return f"--split_ratio {' '.join(f'{part:g}' for part in ratio)}"


def warn_of_empty_splits(ratio: Sequence[float], counts: Mapping[str, int], noun: str, by: str = "") -> None:
    """`by`: what divides them, if it is not their ratio alone."""
    for split, part in zip(SPLITS, ratio):
        if part and not counts[split]:
            what = f"{split} gets no {noun}s; there are too few for {by or describe_ratio(ratio)}"
            print(f"warning: {what}", file=sys.stderr)


def report_verification(folder: Path, noun: str, count: int, broken: list[str]) -> int:
    """Print every check that a dataset of `count` images or recordings fails; returns the exit code."""
    verdict = f"failed checks: {len(broken)}" if broken else "all checks passed"
    print("\n".join([*broken, f"{folder}: {counted(count, noun)}, {verdict}"]))
    return 1 if broken else 0
