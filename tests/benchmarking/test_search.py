"""Which settings a benchmark tries and recommends, on machines that are a formula."""

import pytest

from benchmarking.search import Trial, next_trial, recommend, sizes_left, trial_of


def row(trial: Trial, seconds: float, status: str = "ok") -> dict:
    measured = {"seconds_per_step": {"median": seconds}, "warm_up_seconds": 40.0 * trial.compile}
    return {**trial._asdict(), "status": status, "why": "", **(measured if status == "ok" else {})}


def search(seconds, fits, share: int, steps: int = 300) -> list[dict]:
    """All rows of a machine where a step of a trial takes `seconds(trial)`, if it `fits(trial)`."""
    rows: list[dict] = []
    while trial := next_trial(rows, share, steps):
        assert trial not in map(trial_of, rows)
        rows.append(row(trial, seconds(trial), "ok" if fits(trial) else "out of memory"))
    return rows


def tried(rows: list[dict], checkpointing: bool) -> list[int]:
    plain = [one for one in rows if not one["compile"] and one["gradient_checkpointing"] == checkpointing]
    return [one["micro_batch"] for one in plain]


def slower_checkpointing(trial: Trial) -> float:
    """Twice as many samples at once take half the time; recomputing takes a quarter more."""
    return (1.25 if trial.gradient_checkpointing else 1.0) / trial.micro_batch


@pytest.mark.parametrize(("limit", "largest"), [(1, 1), (5, 4), (6, 6), (11, 6), (12, 12)])
def test_the_largest_micro_batch_that_fits_is_found(limit, largest):
    rows = search(slower_checkpointing, lambda trial: trial.micro_batch <= limit, share=12)
    assert max(one["micro_batch"] for one in rows if one["status"] == "ok") == largest
    assert len(rows) <= 9


def test_sizes_grow_no_further_where_more_at_once_are_not_faster():
    rows = search(lambda trial: 1.0 if trial.micro_batch < 4 else 0.8, lambda trial: True, share=64)
    assert tried(rows, False) == [1, 2]  # 2 are not faster than 1
    rows = search(lambda trial: max(0.25, 1 / trial.micro_batch), lambda trial: True, share=64)
    assert tried(rows, False) == [1, 2, 4, 8] and tried(rows, True) == [8]


def test_checkpointing_goes_on_where_only_memory_ended_the_search_without_it():
    rows = search(slower_checkpointing, lambda trial: trial.micro_batch <= (16 if trial[0] else 2), share=16)
    assert tried(rows, False) == [1, 2, 4] and tried(rows, True) == [2, 4, 8, 16]
    assert trial_of(recommend(rows, 300)) == (True, False, 16)


def test_checkpointing_begins_at_one_where_nothing_fits_without():
    rows = search(slower_checkpointing, lambda trial: trial.gradient_checkpointing, share=4)
    assert tried(rows, False) == [1] and tried(rows, True) == [1, 2, 4]


def test_where_nothing_fits_nothing_is_recommended():
    rows = search(slower_checkpointing, lambda trial: False, share=4)
    assert len(rows) == 2 and recommend(rows, 300) is None


def test_compiling_is_tried_where_the_training_is_long_enough_and_recommended_where_it_wins():
    def seconds(trial: Trial) -> float:
        return slower_checkpointing(trial) * (0.8 if trial.compile else 1.0)

    assert not any(one["compile"] for one in search(seconds, lambda trial: True, share=8, steps=300))
    for steps, wins in ((1000, False), (10_000, True)):  # 40 s to compile, 0.025 s less a step
        rows = search(seconds, lambda trial: True, share=8, steps=steps)
        assert [trial_of(one) for one in rows if one["compile"]] == [Trial(False, True, 8)]
        assert recommend(rows, steps)["compile"] == wins


def test_of_about_equally_fast_settings_the_plainest_is_recommended():
    rows = [
        row(Trial(False, True, 4), 0.97),
        row(Trial(True, False, 8), 0.96),
        row(Trial(False, False, 8), 0.99),
        row(Trial(False, False, 4), 1.0),
    ]
    assert trial_of(recommend(rows, 100_000)) == (False, False, 4)


def test_what_was_recommended_before_stays_unless_another_is_clearly_faster():
    first, second = Trial(False, False, 4), Trial(False, False, 8)
    for faster, kept in ((0.97, first), (0.94, first), (0.88, second)):
        rows = [row(first, 1.0), row(second, faster)]
        assert trial_of(recommend(rows, 300, before=first)) == kept
    assert trial_of(recommend([row(first, 1.0), row(second, 0.98)], 300, before=second)) == second


def test_a_trainer_that_failed_ends_its_column():
    rows = [row(Trial(False, False, 1), 1.0), row(Trial(False, False, 2), 0.0, "failed")]
    assert next_trial(rows, 8, 10) == Trial(True, False, 1)


def test_of_images_at_once_no_more_are_tried_where_fewer_did_not_fit():
    rows = [{"batch_size": 2, "status": "ok"}]
    assert sizes_left(rows, [1, 2, 4, 8]) == [1, 4, 8]
    assert sizes_left([*rows, {"batch_size": 4, "status": "out of memory"}], [1, 2, 4, 8]) == [1]


def test_a_training_that_is_always_checkpointed_is_tried_only_so():
    rows: list[dict] = []
    while trial := next_trial(rows, 8, 10_000, compiles=False, always_checkpointed=True):
        rows.append(row(trial, slower_checkpointing(trial), "ok" if trial.micro_batch <= 4 else "out of memory"))
    assert [trial_of(one) for one in rows] == [Trial(True, False, size) for size in (1, 2, 4, 8)]
