"""A plan of prompts for generate.py: how many images of which caption, with the right shares in every column."""

import json
from collections import Counter, defaultdict
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from preparation.records import Example

Key = TypeVar("Key", bound=Hashable)
COLUMNS = ("article", "colour", "gender", "season")


class Prompt(NamedTuple):
    text: str
    values: tuple[str | None, ...]  # of the plan's columns


def write_prompt_plan(path: Path, train: list[Example], count: int, balance: list[str]) -> None:
    """One line per distinct prompt; `weight` is how many images of it the plan asks for."""
    columns = [*balance, *(column for column in COLUMNS if column not in balance)]
    records = [{**one.product.attributes, "text": one.caption} for one in train]
    plan = plan_prompts(records, count, columns, balance)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in plan), encoding="utf-8")


def plan_prompts(
    records: list[dict[str, str | None]], count: int, columns: list[str], balance: list[str]
) -> list[dict[str, Any]]:
    """`count` images over the distinct captions of `records`: [{"text", "attributes", "weight"}], the weights whole.

    Shares follow the records: not only the captions' but those of each column's values, as near as whole numbers allow.
    With `balance`, the records together with the planned images are to hold as many of each value of those columns, as
    far as `fill_up` reaches.
    """
    held = Counter(Prompt(record["text"], tuple(record.get(column) for column in columns)) for record in records)
    shares = {prompt: number / len(records) for prompt, number in held.items()}
    if balance:
        shares = _balanced_shares(held, count, [columns.index(column) for column in balance])
    weights = _count_images({prompt: share for prompt, share in shares.items() if share > 0}, count, columns)
    return [
        {"text": prompt.text, "attributes": dict(zip(columns, prompt.values)), "weight": weights[prompt]}
        for prompt in shares
        if weights[prompt]
    ]


def _count_images(shares: dict[Prompt, float], count: int, columns: list[str]) -> Counter[Prompt]:
    """Each image goes to the prompt that, with its columns' values, is furthest below its share.

    Largest remainders of the prompts alone would add up to shares of a column that are off by many images.
    """
    features = {prompt: [("", prompt), *zip(columns, prompt.values)] for prompt in shares}
    due: dict[tuple[str, Any], float] = defaultdict(float)
    for prompt, of_prompt in features.items():
        for feature in of_prompt:
            due[feature] += shares[prompt]
    taken: Counter[tuple[str, Any]] = Counter()
    weights: Counter[Prompt] = Counter()
    for step in range(1, count + 1):
        best = max(features, key=lambda prompt: sum(step * due[f] - taken[f] for f in features[prompt]))
        weights[best] += 1
        taken.update(features[best])
    return weights


def _balanced_shares(held: Counter[Prompt], count: int, places: list[int]) -> dict[Prompt, float]:
    """The share of `count` that each prompt gets, so that there are equally many of each value at these places."""
    value = {prompt: tuple(prompt.values[place] for place in places) for prompt in held}
    sizes: Counter[tuple[str | None, ...]] = Counter()
    for prompt, number in held.items():
        sizes[value[prompt]] += number
    missing = fill_up(sizes, count)
    return {prompt: missing[value[prompt]] * held[prompt] / sizes[value[prompt]] / count for prompt in held}


def fill_up(sizes: dict[Key, int], count: int) -> dict[Key, float]:
    """How many of `count` each class gets, so that the smallest come up to one common size, as far as they reach.

    Each gets a quarter of an equal share at least: a set without the most frequent classes can't be compared with real
    images, nor teach a classifier.
    """
    least, rest, smallest = count / len(sizes) / 4, float(count), sorted(sizes.values())
    while (rest + sum(smallest)) / len(smallest) - smallest[-1] < least:
        smallest.pop()
        rest -= least
    level = (rest + sum(smallest)) / len(smallest)
    return {key: max(least, level - size) for key, size in sizes.items()}
