"""The blind listening page of a voice: sounds to rate, and pairs of one sentence to compare with another voice."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.human_study import KINDS, PAIR, write_page
from evaluation.spoken import Row
from utils.cli import UserError

Encode = Callable[[Path], str]  # a sound as the page has it: all alike in rate, loudness, silence and format


class Pair(NamedTuple):
    """A sentence as this voice and as another one says it; `against` is the name of the other."""

    own: Row
    other: Row
    against: str


def choose_items(rows: Sequence[Row], count: int, pairs: Sequence[Pair], seed: int) -> list[dict[str, Any]]:
    """`count` sounds, half of them recordings, and the pairs of this voice and others, in a random order.

    Each sentence is rated once where there are enough of them, as a recording or as the voice says it. Files in rows
    are whole paths.
    """
    if count // 2 > len(rows):
        raise UserError(f"--listening_test {count}: there are {len(rows)} sentences; ask for {2 * len(rows)} or fewer")
    rng = random.Random(seed)
    order = rng.sample(list(rows), len(rows))
    halves = order[: count // 2], order[-(count // 2) :]  # apart, or overlapping where sentences are few
    items: list[dict[str, Any]] = []
    for kind, half in zip(KINDS, halves):
        items += [{"kind": kind, "id": row["id"], "files": [row["sounds"][kind]["file"]]} for row in half]
    for own, other, against in pairs:
        files = {"generated": own["sounds"]["generated"]["file"], "against": other["sounds"]["generated"]["file"]}
        first = rng.choice(sorted(files))
        chosen = [files[first], *(file for name, file in files.items() if name != first)]
        items.append({"kind": PAIR, "id": own["id"], "first": first, "against": against, "files": chosen})
    rng.shuffle(items)
    return items


def write_listening(folder: Path, items: list[dict[str, Any]], seed: int, overwrite: bool, encode: Encode) -> Path:
    """Write listening.html of these items, and its listening_key.json, which `overwrite` allows to replace."""
    addresses = [[encode(Path(file)) for file in one["files"]] for one in items]
    named = [{**one, "files": list(map(str, one["files"]))} for one in items]
    return write_page(folder, "listening", addresses, {"version": 1, "seed": seed, "items": named}, overwrite)
