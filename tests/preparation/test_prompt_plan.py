"""The plan of prompts for generate.py: whole images, in the shares of every column, or filling up what is rare."""

from collections import Counter

import pytest

from demo.catalogue import product
from demo.shoes import COLOURS, KINDS
from preparation.prompt_plan import fill_up, plan_prompts


def records() -> list[dict]:
    counts = {("Black", "Men"): 60, ("Black", "Women"): 20, ("White", "Men"): 10, ("Pink", "Women"): 10}
    return [
        {"text": f"{colour} {gender}", "colour": colour, "gender": gender}
        for (colour, gender), n in counts.items()
        for _ in range(n)
    ]


def totals(plan: list[dict], column: str) -> Counter:
    found = Counter()
    for line in plan:
        found[line["attributes"][column]] += line["weight"]
    return found


def test_a_plan_follows_the_shares_in_whole_images():
    plan = plan_prompts(records(), 50, ["colour", "gender"], [])
    assert sum(line["weight"] for line in plan) == 50
    assert totals(plan, "colour") == {"Black": 40, "White": 5, "Pink": 5}
    assert totals(plan, "gender") == {"Men": 35, "Women": 15}


def test_a_small_plan_keeps_every_column_near_its_shares():
    plan = plan_prompts(records(), 7, ["colour", "gender"], [])
    assert abs(totals(plan, "gender")["Men"] - 4.9) < 1 and abs(totals(plan, "colour")["Black"] - 5.6) < 1


def test_a_balanced_plan_fills_up_what_is_rare_in_the_records():
    plan = plan_prompts(records(), 140, ["colour", "gender"], ["colour"])
    assert totals(plan, "colour") == {"Black": 12, "White": 64, "Pink": 64}  # 80 black ones are there
    plan = plan_prompts(records(), 200, ["colour", "gender"], ["colour"])
    assert totals(plan, "colour") == {"Black": 20, "White": 90, "Pink": 90}
    plan = plan_prompts(records(), 20, ["colour", "gender"], ["colour"])
    assert totals(plan, "colour") == {"Black": 2, "White": 9, "Pink": 9}


def test_the_demos_plan_has_every_colour_of_its_training_images():
    products = [product(0, i, list(KINDS)) for i in range(1800)]
    colours = [one["baseColour"] for one in products if one["articleType"] == "Casual Shoes"]
    records = [{"text": colour, "colour": colour} for colour in colours[::2]]
    planned = totals(plan_prompts(records, 112, ["colour"], ["colour"]), "colour")
    assert set(planned) == set(COLOURS) and min(planned.values()) >= 2


def test_fill_up_reaches_one_level():
    assert fill_up({"a": 10, "b": 5, "c": 1}, 24) == pytest.approx({"a": 10 / 3, "b": 25 / 3, "c": 37 / 3})
    assert fill_up({"a": 10, "b": 5, "c": 1}, 10) == pytest.approx({"a": 10 / 12, "b": 31 / 12, "c": 79 / 12})
    assert sum(fill_up({"a": 3}, 4).values()) == 4
