"""A run's folder: one process at a time, the same settings or none, and signals that save."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from utils import files, runs
from utils.cli import UserError

SETTINGS = {
    "rank": 8,
    "learning_rate": 1e-05,
    "output_dir": "runs/ü x",
    "betas": [0.9, 0.999],
    "gamma": None,
    "on": True,
}
ROOT = Path(__file__).resolve().parent.parent.parent
# A lock lasts until a process ends, so that two of them are needed to see it.
OPEN = """
import ast, sys, time
from pathlib import Path
from utils import runs
from utils.cli import UserError
folder, settings, free, overwrite, wait = ast.literal_eval(sys.argv[1])
try:
    runs.open_run(Path(folder), settings, free, overwrite)
    print("open", flush=True)
    time.sleep(wait)
except UserError as error:
    print("refused:", error, flush=True)
"""


def start(folder, settings=None, free=(), overwrite=False, wait=0):
    given = repr((str(folder), SETTINGS if settings is None else settings, list(free), overwrite, wait))
    return subprocess.Popen([sys.executable, "-c", OPEN, given], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def open_run(monkeypatch):
    """open_run, after which its lock is given back: as if each call were a process of its own."""

    def call(folder, settings=SETTINGS, free=(), overwrite=False, end=lambda: None):
        locks = []

        def remember(path):
            locks.append(files.lock_folder(path))
            return locks[-1]

        monkeypatch.setattr(runs, "lock_folder", remember)
        try:
            runs.open_run(folder, settings, free, overwrite, end)
        finally:
            for lock in locks:
                os.close(lock)

    return call


def mark(folder, name="checkpoint-500"):
    """As if the run had come to a checkpoint."""
    (folder / name).mkdir()
    (folder / name / "state.json").write_text("{}")


def test_a_run_is_entered_again_with_the_same_settings(tmp_path, open_run):
    run = tmp_path / "a/b"
    open_run(run)
    assert yaml.safe_load((run / "config.yaml").read_text("utf-8")) == SETTINGS
    mark(run)
    open_run(run)
    assert (run / "checkpoint-500/state.json").exists()
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-500", "config.yaml"]


def test_other_settings_are_shown_and_nothing_is_changed(tmp_path, open_run):
    open_run(tmp_path / "run")
    mark(tmp_path / "run")
    before = (tmp_path / "run/config.yaml").read_bytes()
    with pytest.raises(UserError) as error:
        open_run(tmp_path / "run", SETTINGS | {"rank": 16, "new": 1})
    said = str(error.value)
    assert "rank was 8, now 16" in said and "new was None, now 1" in said and "learning_rate" not in said
    assert "--output_dir" in said and "--overwrite" in said
    assert (tmp_path / "run/config.yaml").read_bytes() == before


def test_what_changes_nothing_in_training_may_differ(tmp_path, open_run):
    open_run(tmp_path / "run")
    mark(tmp_path / "run")
    open_run(tmp_path / "run", SETTINGS | {"rank": 16, "on": False}, free=["rank", "on"])
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text("utf-8"))["rank"] == 16


def test_a_run_from_before_a_flag_was_renamed_is_entered_again(tmp_path, open_run):
    open_run(tmp_path, {"rank": 8, "aspect_ratio_buckets": True})
    mark(tmp_path)
    open_run(tmp_path, {"rank": 8, "aspect_ratio_buckets": None, "use_aspect_ratio_buckets": True})
    with pytest.raises(UserError, match="use_aspect_ratio_buckets was True, now False"):
        open_run(tmp_path, {"rank": 8, "aspect_ratio_buckets": None, "use_aspect_ratio_buckets": False})


def test_changes_are_of_values_and_not_of_order():
    assert runs.training_changes({"a": 1, "b": [1]}, {"b": [1], "a": 1}, []) == []
    assert runs.training_changes({"a": 1, "b": 2}, {"a": 3, "b": 4}, ["b"]) == ["a was 1, now 3"]


def test_a_flag_that_is_newer_than_the_run_is_a_change_only_where_it_is_used():
    assert runs.training_changes({"a": 1}, {"a": 1, "b": 0, "c": False, "d": None, "e": []}, []) == []
    assert runs.training_changes({"a": 1}, {"a": 1, "b": 2}, []) == ["b was None, now 2"]
    assert runs.training_changes({"a": 1}, {"a": 0}, []) == ["a was 1, now 0"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_refused_whatever_is_asked(tmp_path, open_run, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"--output_dir .*holds other files \(thesis.tex\)"):
        open_run(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work" and not (tmp_path / "config.yaml").exists()
    with pytest.raises(UserError, match="is a file"):
        open_run(tmp_path / "thesis.tex", overwrite=overwrite)


def test_a_folder_that_can_not_be_made_is_one_line(open_run):
    with pytest.raises(UserError, match="--output_dir /proc/none/run"):
        open_run(Path("/proc/none/run"))


def test_overwrite_starts_over_and_follows_no_link(tmp_path, open_run):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    open_run(run)
    mark(run)
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("x")
    (run / "logs").symlink_to(elsewhere)
    open_run(run, {"rank": 1}, overwrite=True)
    assert [path.name for path in run.iterdir()] == ["config.yaml"] and (elsewhere / "kept.txt").exists()
    assert yaml.safe_load((run / "config.yaml").read_text()) == {"rank": 1}


def test_overwrite_never_removes_what_no_run_made(tmp_path, open_run):
    (tmp_path / "config.yaml").write_text("rank: 1")
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="do not belong to a run \\(thesis.txt\\)"):
            open_run(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").exists()


def test_overwriting_that_was_killed_half_way_can_be_done_again(tmp_path, open_run, monkeypatch):
    run = tmp_path / "run"
    open_run(run)
    for name in ("best", "validation"):
        mark(run, name)
    real = runs.shutil.rmtree

    def fail(path, *given, **more):
        if path.name == "validation":
            raise OSError(5, "Input/output error")
        real(path, *given, **more)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="Input/output error"):
        patch.setattr(runs.shutil, "rmtree", fail)
        open_run(run, overwrite=True)
    assert (run / "config.yaml").exists() and (run / "validation").exists()
    open_run(run, overwrite=True)
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_a_kill_in_the_first_moment_of_a_run_does_not_lock_its_folder(tmp_path, open_run):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.config.yaml.4711").write_text("rank:")
    open_run(tmp_path / "run")
    assert (tmp_path / "run/config.yaml").exists()


def test_best_that_a_kill_left_between_two_renames_is_put_back(tmp_path, open_run):
    open_run(tmp_path)
    mark(tmp_path)
    mark(tmp_path, ".best.old")
    open_run(tmp_path)
    assert (tmp_path / "best/state.json").exists() and not (tmp_path / ".best.old").exists()


@pytest.mark.parametrize(
    "content", [b"", b"a: [1", b"just words", b"- a\n- {b: 1}\n", b"\xff\xfe\x00\x81", b"rank: \x00"]
)
def test_a_damaged_config_is_named(tmp_path, open_run, content):
    open_run(tmp_path)
    mark(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match="config.yaml is damaged") as error:
        open_run(tmp_path)
    assert "\n" not in str(error.value) and (tmp_path / "checkpoint-500").exists()


def test_two_processes_never_hold_one_run_and_a_kill_frees_it(tmp_path):
    first = start(tmp_path / "run", wait=60)
    assert first.stdout.readline() == "open\n"
    second = start(tmp_path / "run", overwrite=True)
    assert "another process is writing it" in second.communicate(timeout=30)[0]
    first.kill()
    first.wait()
    assert start(tmp_path / "run").communicate(timeout=30)[0] == "open\n"
    first.stdout.close()


def end(folder, steps, epochs=None, resume="latest", lacks=False):
    return runs.describe_end(folder, [steps, epochs], resume, lambda: 20 * epochs if epochs else steps, lacks)


def test_a_run_is_done_when_it_came_to_what_is_asked(tmp_path):
    assert end(tmp_path, 100) is None
    files.write_json(tmp_path / "summary.json", {"steps": 100, "asked": [100, None]})
    assert "finished with 100 steps" in end(tmp_path, 100) and end(tmp_path, 200) is None
    assert "finished" in end(tmp_path, 3000, epochs=5) and end(tmp_path, 100, lacks=True) is None


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_has_gone_beyond_what_is_asked_is_an_error(tmp_path, finished):
    if finished:
        files.write_json(tmp_path / "summary.json", {"steps": 100, "asked": [100, None]})
    else:
        for step in (20, 100):
            mark(tmp_path, f"checkpoint-{step}")
        assert end(tmp_path, 40, resume="checkpoint-20") is None  # back to an earlier one, by its name
    with pytest.raises(UserError, match="--max_train_steps 99: .* already has 100 steps.*--overwrite"):
        end(tmp_path, 99)
    with pytest.raises(UserError, match=r"--num_train_epochs 4 \(80 steps\): .* already has 100 steps"):
        end(tmp_path, 3000, epochs=4)
    assert end(tmp_path, 101) is None


def test_a_run_at_its_end_keeps_its_settings_as_they_are(tmp_path, open_run):
    open_run(tmp_path)
    mark(tmp_path)
    before = (tmp_path / "config.yaml").stat().st_mtime_ns
    open_run(tmp_path, SETTINGS | {"on": False}, free=["on"], end=lambda: "finished")
    assert (tmp_path / "config.yaml").stat().st_mtime_ns == before
    said = runs.describe_run(tmp_path, SETTINGS | {"overwrite": False}, ["overwrite"], lambda: "finished")
    assert said == "finished"
    assert "started over" in runs.describe_run(tmp_path, SETTINGS | {"overwrite": True}, [])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": 3}', "\x00"])
def test_a_damaged_summary_is_no_end(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    assert end(tmp_path, 100) is None


@pytest.fixture
def handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_signals_are_noted_and_a_second_ctrl_c_stops_at_once(handlers, capfd):
    received = runs.catch_signals()
    assert received == []
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM] * 2 and "SIGTERM: saving a checkpoint" in capfd.readouterr().err
    received.clear()
    os.kill(os.getpid(), signal.SIGINT)
    assert received == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_seconds_add_up_also_through_an_error():
    seconds = {}
    for _ in range(2):
        with runs.timed(seconds, "step"):
            time.sleep(0.01)
    with pytest.raises(ValueError), runs.timed(seconds, "other"):
        raise ValueError
    assert 0.02 <= seconds["step"] < 1 and 0 <= seconds["other"] < 0.5


def test_the_environment_records_the_command_without_its_secrets(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_lora.py", "--hub_token", "hf_secret", "--rank", "8"])
    runs.write_environment(tmp_path / "environment.json", "a device", "float32", dataset="0123")
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["command"].endswith(" train_lora.py --hub_token *** --rank 8")
    assert "hf_secret" not in json.dumps(found) and found["packages"]["torch"] and found["dataset"] == "0123"
