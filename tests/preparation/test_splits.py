import random
from collections import Counter

import pytest

from preparation.look_alikes import group_linked
from preparation.splits import apportion, assign_splits, pool_rare, settle_conflicts

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
WEIGHTS = dict(zip("abcdefgh", (30, 18, 15, 10, 5, 3, 1, 1)))


def singles(count: int) -> list[list[str]]:
    return [[str(index)] for index in range(count)]


def draw_strata(count: int, seed: int = 0) -> dict[str, str]:
    rng = random.Random(seed)
    return {str(index): rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0] for index in range(count)}


def test_2845_products_give_1991_427_427():
    assert apportion(2845, {"train": 70, "val": 15, "test": 15}) == {"train": 1991, "val": 427, "test": 427}
    placed = assign_splits(singles(2845), draw_strata(2845), SHARES, 0, {})
    assert Counter(placed.values()) == {"train": 1991, "val": 427, "test": 427}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40, 41, 196, 2846])
def test_the_parts_add_up_and_are_off_by_less_than_one(count):
    parts = apportion(count, SHARES)
    assert sum(parts.values()) == count
    assert all(abs(parts[split] - count * SHARES[split]) < 1 for split in SHARES)


@pytest.mark.parametrize("seed", range(5))
def test_every_stratum_is_split_in_the_same_shares(seed):
    strata = draw_strata(600, seed)
    placed = assign_splits(singles(600), strata, SHARES, seed, {})
    cells = Counter((strata[one], placed[one]) for one in placed)
    for name, size in Counter(strata.values()).items():
        assert all(abs(cells[name, split] - size * SHARES[split]) < 2 for split in SHARES), name


def test_deterministic_in_the_seed():
    strata = draw_strata(200)
    first = assign_splits(singles(200), strata, SHARES, 1, {})
    assert first == assign_splits(singles(200), strata, SHARES, 1, {})
    assert first != assign_splits(singles(200), strata, SHARES, 2, {})


def test_growth_moves_no_old_product_and_the_counts_stay_exact():
    strata, kept = draw_strata(500), {}
    for count in (100, 137, 138, 300, 500):
        placed = assign_splits(singles(count), strata, SHARES, 0, kept)
        assert all(placed[one] == split for one, split in kept.items())
        assert Counter(placed.values()) == apportion(count, SHARES)
        kept = placed


def test_a_group_stays_together_and_the_counts_stay_exact():
    groups = [["a", "b", "c"], ["d", "e"], *singles(95)]
    strata = dict.fromkeys((one for group in groups for one in group), "x")
    placed = assign_splits(groups, strata, SHARES, 0, {})
    assert all(len({placed[one] for one in group}) == 1 for group in groups)
    assert Counter(placed.values()) == apportion(100, SHARES)


def test_a_new_product_joins_the_split_of_its_look_alike():
    for split in SHARES:
        placed = assign_splits(
            [["new", "old"], *singles(20)], draw_strata(20) | {"new": "a", "old": "a"}, SHARES, 0, {"old": split}
        )
        assert placed["new"] == placed["old"] == split


def test_rare_values_are_pooled_for_stratification():
    values = [("Black", "Men")] * 10 + [("Pink", "Men")] * 9 + [(None, "Men")] * 12
    assert Counter(pool_rare(values, 10)) == {"Black / Men": 10, "Other": 9, "(none) / Men": 12}


def test_linked_ids_share_a_group_through_others():
    assert group_linked(list("abcde"), [("a", "c"), ("c", "e")]) == [["a", "c", "e"], ["b"], ["d"]]
    assert group_linked(list("pqxyz"), [("x", "y"), ("p", "q"), ("y", "z")]) == [["p", "q"], ["x", "y", "z"]]


def test_a_new_product_between_two_splits_is_left_out_and_the_old_ones_stay():
    kept = {"a": "train", "b": "test"}
    out = settle_conflicts(["a", "b", "n", "m", "free"], [("a", "n"), ("m", "n"), ("m", "b")], kept)
    assert set(out) == {"n", "m"} and "a (train)" in out["n"] and "b (test)" in out["n"]


def test_of_old_look_alikes_in_two_splits_the_test_one_stays():
    out = settle_conflicts(["a", "b"], [("a", "b")], {"a": "train", "b": "test"})
    assert list(out) == ["a"] and "b" in out["a"]
    out = settle_conflicts(["a", "b"], [("a", "b")], {"a": "val", "b": "train"})
    assert list(out) == ["b"]


def test_a_new_product_like_one_that_is_itself_left_out_can_stay():
    kept = {"a": "train", "b": "test"}
    assert set(settle_conflicts(["a", "b", "n"], [("a", "b"), ("b", "n"), ("a", "n")], kept)) == {"a"}
