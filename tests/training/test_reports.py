"""Reports while a training goes on: they come from a thread, and none of their faults reaches the training."""

import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from training import reports
from training.reports import Reporter, note_estimate, report_if_due, report_last, wait
from utils.metrics_log import read_metrics


def make_reporter(folder: Path, every: int, write, is_main: bool = True) -> Reporter:
    return Reporter(SimpleNamespace(folder=folder, is_main=is_main, trackers={}, seconds={}), every, write)


def test_a_report_is_written_every_so_many_steps_by_the_main_process_alone(tmp_path):
    begun = []
    reporter = make_reporter(tmp_path, 3, lambda folder: "text")
    for step in range(1, 7):
        report_if_due(reporter, step)
        begun += [step] * (reporter.newest is not None)
        wait(reporter)
        reporter.newest = None
    assert begun == [3, 6] and (tmp_path / "report.md").read_text() == "text"
    for other in (make_reporter(tmp_path / "no", 3, str, is_main=False), make_reporter(tmp_path / "no", 0, str)):
        report_if_due(other, 3)
        report_last(other)
        note_estimate(other, 3, lambda: 1 / 0)
    assert not (tmp_path / "no").exists()


def test_a_fault_of_a_report_is_one_line_of_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "a-secret-value")

    def fail(folder: Path) -> str:
        raise ValueError("two lines\nand a-secret-value")

    reporter = make_reporter(tmp_path, 5, fail)
    with caplog.at_level(logging.WARNING):
        report_if_due(reporter, 5)
        wait(reporter)
        report_last(reporter)
        note_estimate(reporter, 5, lambda: 1 / 0)
        report_if_due(make_reporter(tmp_path / "gone", 5, str), 5)
    lines = [record.getMessage() for record in caplog.records]
    said = "--report_every 5: two lines and ***; training continues without this report"
    assert lines[:2] == [said, said] and "division by zero" in lines[2]
    assert not (tmp_path / "report.md").exists()


def test_a_report_that_hangs_holds_up_neither_a_step_nor_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "PATIENCE", 0.05)
    go_on, begun = threading.Event(), []

    def hang(folder: Path) -> str:
        begun.append(folder)
        go_on.wait(10)
        return "late"

    reporter = make_reporter(tmp_path, 1, hang)
    for step in range(1, 5):
        report_if_due(reporter, step)
    assert len(begun) == 1  # and no second one beside it
    report_last(reporter)
    assert not (tmp_path / "report.md").exists()
    go_on.set()
    wait(reporter)


def test_the_estimate_is_recorded_where_reports_are_written(tmp_path):
    phases = {"encoding": {"weights": 2**30}, "training": {"weights": 2**30, "activations": 2**29}}
    note_estimate(make_reporter(tmp_path, 1, str), 7, lambda: phases)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 7, "estimated_memory_gib": 1.5}]


@pytest.mark.parametrize("every", ["-1", "x"])
def test_steps_between_reports_are_a_number(every, capsys):
    import train_lora

    with pytest.raises(SystemExit):
        train_lora.parse_args(["--report_every", every])
    assert f"--report_every {every}: expected a whole number" in capsys.readouterr().err
