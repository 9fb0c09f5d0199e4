"""What argparse makes of a flag's words: numbers of a certain kind, or an error that says which."""

import argparse
import contextlib
import math
import re

MOST_WORKERS = 256  # as processes, each of some 100 MB


def batch_size(text: str) -> int | str:
    """An argparse type: a whole number above 0, or `auto`."""
    try:
        return text if text == "auto" else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or auto") from None


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, 1 or more")
    return int(text)


def seed_number(text: str) -> int:
    """An argparse type: a number that every generator takes as a seed."""
    if not re.fullmatch(r"\d{1,10}", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, 0 to {2**32 - 1}")
    return int(text)


def share(text: str) -> float:
    """An argparse type: 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: expected a number, 0 to 1, such as 0.05 for 5 %")


def finite(text: str) -> float:
    """An argparse type: a value that is neither infinite nor NaN."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: expected a finite number")


def workers(text: str) -> int:
    """An argparse type: a whole number of processes or threads."""
    if positive(text) > MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text}: expected {MOST_WORKERS} or fewer")
    return int(text)
