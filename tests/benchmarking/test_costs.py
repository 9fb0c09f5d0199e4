"""Figures from what a training logged."""

import pytest

from benchmarking import costs


def log(steps: list[float], **more) -> list[dict]:
    return [{"step": n, "seconds_step": s, "seconds_data": 0.0, "memory_gib": 1.0, **more} for n, s in enumerate(steps)]


def test_the_first_steps_do_not_count():
    assert costs.warm_steps(log([9, 5, 1, 2])) == [1, 2]
    assert costs.warm_steps(log([50, 40])) == [40]  # a step that takes long is worth more
    assert costs.spread([3, 1, 2]) == {"median": 2, "low": 1, "high": 3, "repeats": 3}


@pytest.mark.parametrize(
    ("seconds", "enough"),
    [
        ([9, 9, 1, 1, 1], False),  # too few
        ([9, 9, *[1.0] * 5], True),
        ([9, 9, *[0.1] * 5], False),  # too short
        ([9, 9, *[0.1] * 60], True),
        ([50.0, 50.0], False),
        ([70.0, 70.0, 70.0], True),  # so slow that two must do
    ],
)
def test_a_measurement_has_enough_steps_and_time_but_ends(seconds, enough):
    assert costs.is_enough(log(seconds), costs.Effort(repeats=5, shortest=5, longest=120)) == enough


def test_a_row_is_of_whole_steps_also_where_only_a_part_of_each_was_measured():
    row = costs.measured_row(log([10.0, 3.0, 1.0, 1.0, 1.2]), samples=4, effective=16)
    assert row["seconds_per_step"] == {"median": 4.0, "low": 4.0, "high": 4.8, "repeats": 3}
    assert row["samples_per_second"] == 4 and row["warm_up_seconds"] == 11 and row["memory_gib"] == 1


@pytest.mark.parametrize(
    ("plan", "validations", "checkpoints"),
    [
        (costs.Plan(300, 300, 100, 1), 2, 3),
        (costs.Plan(250, 100, 100, 5), 4, 3),
        (costs.Plan(250, 100, 100, 2), 4, 2),  # no room for one of the last step
        (costs.Plan(250, 0, 0, None), 0, 0),
    ],
)
def test_validations_and_checkpoints_are_counted_as_the_trainers_do(plan, validations, checkpoints):
    assert (costs.count_validations(plan), costs.count_checkpoints(plan)) == (validations, checkpoints)


def test_the_estimate_adds_the_parts_of_a_longer_training():
    first, last = {"step": 0, "seconds_validation": 5.0, "seconds_loading": 7.0}, {"step": 6, "seconds_validation": 3.0}
    records = [first, last, *log([4.0, 2.0, 1.0, 1.0, 1.0, 1.0]), {"step": 6, "seconds_checkpoint": 0.5}]
    whole = 10 + 7 + 8 + 0.5 + 10  # start and end, loading, validations, a checkpoint, steps
    found = costs.costs_of(records, whole, rounds=2)
    assert found["start_and_end"] == pytest.approx(14)  # with what the first steps took longer
    parts = costs.estimate(found, costs.Plan(100, 50, 20, None))
    assert parts["steps"] == 200 and parts["validations"] == 5 + 2 * 3 and parts["checkpoints"] == 2.5
