"""A run's folder: one process at a time, the same settings or none, and signals that save."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from utils import checkpoints, files, metrics_log, outputs, runs
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

        def remember(*args):
            locks.append(files.lock_folder(*args))
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
    files.write_text(folder / name / "state.json", "{}")


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".written"))


def test_a_run_is_entered_again_with_the_same_settings(tmp_path, open_run):
    run = tmp_path / "a/b"
    open_run(run)
    assert yaml.safe_load((run / "config.yaml").read_text("utf-8")) == SETTINGS
    mark(run)
    open_run(run)
    assert (run / "checkpoint-500/state.json").exists()
    assert names(run) == ["checkpoint-500", "config.yaml"]


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


@pytest.mark.parametrize("config", [None, "{}", "rank: 8"])
def test_a_foreign_folder_is_refused_also_with_a_config(tmp_path, open_run, config):
    (tmp_path / "thesis.tex").write_text("years of work")
    if config:
        (tmp_path / "config.yaml").write_text(config)
    first = "config.yaml" if config else "thesis.tex"
    with pytest.raises(UserError, match=rf"holds files that no script wrote \({first}\).*--overwrite"):
        open_run(tmp_path)
    assert names(tmp_path) == (["config.yaml"] if config else []) + ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        open_run(tmp_path / "thesis.tex")


def test_a_folder_that_can_not_be_made_is_one_line(open_run):
    with pytest.raises(UserError, match="--output_dir /proc/none/run"):
        open_run(Path("/proc/none/run"))


def test_overwrite_deletes_a_run_that_is_all_its_own(tmp_path, open_run):
    run = tmp_path / "run"
    open_run(run)
    mark(run)
    open_run(run, {"rank": 1}, overwrite=True)
    assert names(tmp_path) == ["run"] and names(run) == ["config.yaml"]
    assert yaml.safe_load((run / "config.yaml").read_text()) == {"rank": 1}


@pytest.mark.parametrize("of_earlier_version", [False, True])
@pytest.mark.parametrize("foreign", ["keep_v1.safetensors", "checkpoint-500/notes.txt", "logs", "unet/config.json"])
def test_overwrite_moves_a_run_with_other_files_aside(tmp_path, open_run, foreign, of_earlier_version):
    run = tmp_path / "run"
    open_run(run)
    mark(run)
    (run / foreign).parent.mkdir(exist_ok=True)
    if foreign == "logs":
        (run / foreign).symlink_to(tmp_path)
    else:
        (run / foreign).write_text("years of work")
    if of_earlier_version:  # which noted nothing
        (run / ".train.written").unlink()
    open_run(run, {"rank": 1}, overwrite=True)
    aside = next(tmp_path.glob("run.replaced-2*"))
    assert names(run) == ["config.yaml"]
    assert (aside / "checkpoint-500/state.json").exists() and (aside / foreign).exists()


def test_overwrite_replaces_what_a_link_names_and_keeps_the_link(tmp_path, open_run):
    (tmp_path / "link").symlink_to(tmp_path / "disk/run")  # which does not exist yet
    open_run(tmp_path / "link")
    mark(tmp_path / "link")
    open_run(tmp_path / "link", {"rank": 1}, overwrite=True)
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "disk/run") == ["config.yaml"]


def test_overwrite_moves_neither_the_current_folder_nor_one_above_it(tmp_path, open_run, monkeypatch):
    (tmp_path / "thesis").mkdir()
    monkeypatch.chdir(tmp_path / "thesis")
    with pytest.raises(UserError, match="is or holds the current folder"):
        open_run(tmp_path, overwrite=True)
    assert names(tmp_path) == ["thesis"]


def test_a_run_that_failed_before_its_first_step_may_have_other_settings(tmp_path, open_run):
    run = tmp_path / "run"
    open_run(run)
    files.write_json(run / "environment.json", {})
    open_run(run, SETTINGS | {"rank": 16})
    assert names(run) == ["config.yaml"]
    (run / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="other settings"):
        open_run(run)
    (run / "notes.txt").unlink()
    metrics_log.append_metrics(run / "metrics.jsonl", {"step": 1})
    with pytest.raises(UserError, match="other settings"):
        open_run(run)


def test_the_best_weights_of_a_killed_run_without_a_checkpoint_are_kept(tmp_path, open_run):
    run = tmp_path / "run"
    open_run(run)
    metrics_log.append_metrics(run / "metrics.jsonl", {"step": 7, "val_loss": 0.1})
    mark(run, "best")
    open_run(run)
    assert next(run.glob("best.replaced-2*/state.json")) and not (run / "best").exists()


def test_a_folder_that_is_removed_while_it_is_written_is_an_error_and_stays_away(tmp_path, open_run):
    open_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="was removed or moved"):
        metrics_log.append_metrics(tmp_path / "run/metrics.jsonl", {"step": 7})
    with pytest.raises(UserError, match="was removed or moved"), outputs.replaced_folder(tmp_path / "run/checkpoint-7"):
        pass
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from utils import files, outputs
outputs.claim_folder(Path(sys.argv[1]), "train")
with files.replaced_file(Path(sys.argv[1], "a.json")) as file, outputs.partial_folder(Path(sys.argv[1], "b")) as folder:
    file.write(b"half")
    (folder / "c").write_text("half")
    print("ready", flush=True)
    os.kill(os.getpid(), int(sys.argv[2])) if sys.argv[2] != "0" else sys.stdin.read()
"""


def test_what_a_kill_left_half_written_goes_at_the_next_start_and_what_lives_stays(tmp_path, open_run):
    run, mine = tmp_path / "run", [".a.json.4711x.partial", ".backup.4711", ".notes.partial"]
    open_run(run)
    for name in mine:
        (run / name).write_text("x")
    (run / ".checkpoint-6.removed").mkdir()
    command = [sys.executable, "-c", KILLED, str(run)]
    assert subprocess.run([*command, "9"], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == -9
    with subprocess.Popen([*command, "0"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        living.stdout.readline()
        open_run(run)
        left = {*names(run)} - {*mine, "config.yaml"}
        assert left == {f".a.json.{living.pid}.partial", ".b.partial"}
    open_run(run)
    assert names(run) == sorted([*mine, "a.json", "config.yaml"])


def test_best_that_a_kill_left_between_two_renames_is_put_back(tmp_path, open_run):
    open_run(tmp_path)
    mark(tmp_path)
    mark(tmp_path, ".best.old")
    open_run(tmp_path)
    assert (tmp_path / "best/state.json").exists() and not (tmp_path / ".best.old").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a: [1",
        b"just words",
        b"- a\n- {b: 1}\n",
        b"\xff\xfe\x00\x81",
        b"rank: \x00",
        b"[" * 50_000 + b"]" * 50_000,
    ],
    ids=range(7),
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


def test_a_dry_run_names_the_checkpoint_from_which_the_run_would_go_on(tmp_path, open_run):
    """The one of the highest number that verifies, whichever was written last."""
    open_run(tmp_path)
    for step in (20, 5, 100):
        checkpoints.save_checkpoint(tmp_path / f"checkpoint-{step}", lambda folder: None, {}, {"step": step})
    os.utime(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-100" / "state.json").write_text("{}")
    settings, free = SETTINGS | {"overwrite": False}, ["overwrite", "resume_from_checkpoint"]
    assert runs.describe_run(tmp_path, settings, free).endswith("continued from checkpoint-20")
    with pytest.raises(UserError, match="checkpoint-100: damaged"):
        runs.describe_run(tmp_path, settings | {"resume_from_checkpoint": "checkpoint-100"}, free)


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


def test_a_length_that_can_not_change_is_refused_with_the_reason():
    old = {"max_train_steps": 300, "lr_scheduler": "cosine"}
    (change,) = runs.training_changes(old, old | {"max_train_steps": 600}, [])
    assert change.startswith("max_train_steps was 300, now 600: --lr_scheduler cosine spreads the rate over the length")


def test_the_progress_of_a_run_can_be_read_while_it_goes_on(tmp_path):
    assert runs.describe_progress(tmp_path) == ({"steps": "0", "time": "0.0 s", "skipped steps": "0"}, False)
    path = tmp_path / "metrics.jsonl"
    for step in (0, 10, 20):
        metrics_log.append_metrics(path, {"step": step, "seconds_step": 100.0 if step < 20 else 5.0, "loss": 0.5})
    assert "time left" not in runs.describe_progress(tmp_path)[0]  # its length is in epochs
    (tmp_path / "config.yaml").write_text("max_train_steps: 1000")
    rows, has_ended = runs.describe_progress(tmp_path)
    assert rows["steps"] == "20" and rows["last step"] == "1,000" and not has_ended
    assert rows["time left"] == "8 min 10 s" and rows["newest record"].startswith("written 0.")  # 980 steps of 0.5 s
    files.write_json(tmp_path / "summary.json", {"steps": 20, "seconds": 205.0, "asked": [20, None], "files": {}})
    rows, has_ended = runs.describe_progress(tmp_path)
    assert has_ended and rows["time"] == "3 min 25 s" and not {"asked", "files", "time left"} & rows.keys()
    metrics_log.append_metrics(path, {"step": 30, "seconds_step": 5.0})  # resumed with more --max_train_steps
    assert not runs.describe_progress(tmp_path)[1]
