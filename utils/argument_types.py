"""What argparse makes of a flag's words: numbers of a certain kind, or an error that says which."""

import argparse


def batch_size(text: str) -> int | str:
    """An argparse type: a whole number above 0, or `auto`."""
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, or auto")
    return text if text == "auto" else positive(text)


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def seed_number(text: str) -> int:
    """An argparse type: a number that every generator takes as a seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to {2**32 - 1}")
    return value


def share(text: str) -> float:
    """An argparse type: 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 to 1")
    return value
