from collections import Counter

import pytest

from speech.speech_splits import group_recordings, place_groups, split_of
from utils.cli import UserError

RATIO = {"train": 80, "val": 10, "test": 10}


def test_shares_are_about_those_asked_for_and_another_seed_gives_others():
    places = {i: split_of(f"text {i}", RATIO, 0) for i in range(2000)}
    counts = Counter(places.values())
    assert abs(counts["train"] - 1600) < 60 and abs(counts["val"] - 200) < 50 and abs(counts["test"] - 200) < 50
    assert places != {i: split_of(f"text {i}", RATIO, 1) for i in range(2000)}


def test_no_recording_moves_when_others_come_or_go():
    groups = {f"id{i}": f"text {i}" for i in range(400)}
    all_of_them = place_groups(groups, {}, RATIO, 0).splits
    some = place_groups(dict(list(groups.items())[::2]), {}, RATIO, 0).splits
    assert some == {one: all_of_them[one] for one in some}


def test_a_text_or_a_speaker_is_in_one_split():
    texts = {f"{who}{i}": f"text {i % 30}" for who in "abcdefghij" for i in range(60)}
    for disjoint in (None, "speaker"):
        groups = group_recordings(texts, {one: one[0] for one in texts}, disjoint)
        places = place_groups(groups, {}, RATIO, 0).splits
        shared = {(groups[one], split) for one, split in places.items()}
        assert len(shared) == len({*groups.values()}) and {*places.values()} == {"train", "val", "test"}


def test_a_few_groups_reach_every_split_if_they_can():
    for count, filled in ((1, 1), (2, 2), (3, 3), (4, 3)):
        for seed in range(20):
            places = place_groups({f"id{i}": f"text {i}" for i in range(count)}, {}, RATIO, seed).splits
            assert len({*places.values()}) == filled and "train" in places.values()
    assert {*place_groups({"a": "x"}, {}, {"train": 1, "val": 0, "test": 0}, 0).splits.values()} == {"train"}


def test_kept_places_stay_and_a_corrected_text_that_joins_two_splits_leaves_one_out():
    groups = {"old": "um", "new": "um", "a": "dois", "b": "dois"}
    placed = place_groups(groups, {"old": "test", "a": "train", "b": "val"}, RATIO, 0)
    assert placed.splits == {"old": "test", "new": "test", "b": "val"}
    assert placed.apart == {"a": "as b, which is in val"}


def test_disjoint_needs_the_column_everywhere():
    with pytest.raises(UserError, match=r"--disjoint book: b has no book \(1 of 2 recordings have none\)"):
        group_recordings({"a": "x", "b": "y"}, {"a": "Dom Casmurro", "b": None}, "book")
