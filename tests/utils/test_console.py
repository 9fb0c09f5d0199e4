import io
import sys
import time

import pytest

from utils import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_table_in_a_file_is_plain_lines_that_are_never_cut(capsys):
    long = "[bold] " + "word " * 100
    console.print_table([["one", "1,200", long], ["second", "7", "x"]], ["name", "images", "text"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["name", "images"], ["one", "1,200"], ["second", "7"]]
    assert lines[1].endswith(long.rstrip()) and lines[2].index("7") == lines[1].index("1,200") + 4


def test_a_table_on_a_terminal_wraps_its_long_cells(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    console.print_table([["one", "word " * 20]], ["name", "text"])
    lines = terminal.getvalue().splitlines()
    assert "\x1b[1m" in lines[0] and len(lines) > 3 and all(line.startswith("    ") for line in lines[2:])


def test_progress_in_a_file_is_lines_without_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(console, "EVERY", 0)
    assert list(console.track("abc", 3, "steps", "training")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("training: ") and line.isprintable() for line in lines)
    assert "1/3 steps (33 %)" in lines[0] and " left" in lines[0] and "3/3 steps (100 %)" in lines[-1]


def test_progress_on_a_terminal_is_one_bar_that_keeps_what_is_printed(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with console.show_progress(2, "steps", "training") as bar:
        print("a warning", file=sys.stderr)
        bar.update()
        for _ in console.track("ab", 2, "images", "validating"):  # a bar within the bar
            pass
        bar.update()
    shown = terminal.getvalue()
    assert "a warning" in shown and "validating: 2/2 images" in shown and "training: 2/2 steps (100 %)" in shown


def test_progress_on_a_terminal_that_can_not_redraw_is_lines(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert list(console.track("ab", 2, "steps")) == ["a", "b"]
    assert terminal.getvalue().startswith("2/2 steps (100 %)") and "\x1b" not in terminal.getvalue()


def test_a_process_that_shows_nothing_works_all_the_same(capsys):
    assert list(console.track("ab", 2, "steps", shown=False)) == ["a", "b"] and capsys.readouterr().err == ""


def test_other_work_does_not_count_for_the_rate_and_is_added_to_the_time_left():
    bar = console.Bar(30, "steps", "", 0, lambda bar: None)
    for _ in range(10):
        time.sleep(0.01)
        bar.update()
        with bar.paused():
            time.sleep(0.02)
    assert 50 < bar.rate < 100
    bar.later = 3600
    assert "1:00:00 left" in str(bar)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (62, "1:02"), (7384, "2:03:04")])
def test_seconds_are_written_as_on_a_clock(seconds, text):
    assert console.format_seconds(seconds) == text
