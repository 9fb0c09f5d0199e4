import argparse
import errno
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from utils import cli
from utils.runs import training_changes

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = """
from pathlib import Path
from utils import cli

def main(args):
    if args.rank == 13:
        raise cli.UserError("--rank 13: unlucky")
    if args.rank == 14:
        open("/nonexistent/file")
    if args.rank == 15:
        with open("/dev/full", "w") as file:
            file.write("x")
    if args.rank == 16:
        for _ in range(20000):
            print("a line of some length")
        (args.output_dir / "result").write_text("done")
    if args.rank == 17:
        import no_such_package
    cli.show_settings(args)

parser = cli.make_parser("doc")
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--output_dir", type=Path, default=Path("out"))
cli.run(main, cli.parse_args(parser))
"""


@pytest.fixture
def parser():
    parser = cli.make_parser("A script.")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--prompt", action="append")
    parser.add_argument("--kinds", nargs="+", default=["a"])
    parser.add_argument("--output_dir", default="runs/x")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--crop", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--names", nargs="+", action="extend")
    parser.add_argument("--mode", choices=["a", "b"])
    parser.add_argument("--shares", type=float, nargs=3)
    return parser


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return f"--config={path}"


def run_script(*words):
    return subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("A=1\n\n# a comment\nNEW_NAME hf_hidden\n", 4),
        ("hf_hidden", 1),
        ("\r\nA=hf_hidden\r\n\r\nNEW_NAME='hf_hidden\r\n", 4),
        ("A-B=hf_hidden", 1),
        ("A=1\nNEW_NAME=hf_\0hidden", 2),
    ],
)
def test_a_damaged_line_of_an_env_file_is_named_without_its_text(tmp_path, monkeypatch, written, line):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / ".env").write_text(written, newline="")
    with pytest.raises(cli.UserError) as error:
        cli.read_env_file(tmp_path / ".env")
    assert str(error.value).startswith(f"{tmp_path / '.env'}, line {line}: expected NAME=value")
    assert "hidden" not in str(error.value) and "A" not in os.environ


def test_an_env_file_that_cannot_be_read_is_one_line_and_a_folder_is_none(tmp_path):
    (tmp_path / "folder/.env").mkdir(parents=True)
    cli.read_env_file(tmp_path / "folder/.env")
    for content, said in ((b"A=\xff", "is no UTF-8 text"), (b"#" * (1 << 20) + b"\n", "has more than 1,048,576 bytes")):
        (tmp_path / ".env").write_bytes(content)
        with pytest.raises(cli.UserError, match=rf"/\.env: {said}; expected lines of NAME=value"):
            cli.read_env_file(tmp_path / ".env")


def test_a_script_reads_the_env_file_here_then_that_of_the_repository_before_libraries_do(tmp_path):
    repository, here = tmp_path / "repository", tmp_path / "here"
    shutil.copytree(ROOT / "utils", repository / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    here.mkdir()
    shown = "import os; from utils import cli; from huggingface_hub import constants, get_token\n"
    shown += "print(constants.HF_HOME, get_token(), *map(os.environ.get, ('A', 'B', 'C')))"
    (repository / "script.py").write_text(shown)
    (repository / ".env").write_text("A=repository\nB=repository\nC=repository\nHF_TOKEN=hf_of_the_repository\n")
    (here / ".env").write_text("export A='here # too'  # a comment\r\nB=here\nHF_HOME=of_the_file\n")
    unset = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON_DOTENV"))}

    def run(*words, **more):
        environment = {**unset, "PYTHONPATH": str(repository), **more}
        words = [sys.executable, *(words or [repository / "script.py"])]
        return subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True)

    assert run(A="set").stdout == "of_the_file hf_of_the_repository set here repository\n"
    assert run().stdout.split(" ", 2)[2] == "here # too here repository\n"
    assert run("-c", shown).stdout.endswith(" None None None None\n")  # not started as a script of the repository
    without_packages = run("-S", repository / "script.py").stderr
    assert ".env is not read: the package python-dotenv is missing; run check_environment.py\n" in without_packages
    (here / ".env").write_text("hf_hidden")
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "script.py: error: .env, line 1: expected NAME=value; a quote needs its second one\n"


def test_what_is_a_secret_by_its_name_in_the_environment_is_masked_wherever_it_stands(monkeypatch):
    secrets = {
        "MY_TOKEN": "one-two-three",
        "AWS_ACCESS_KEY_ID": "minioadmin",
        "SOME_KEY": "k" * 8,
        "db_password": "p" * 9,
    }
    for name, value in (secrets | {"HF_HOME": "/data/models", "PASSWORD": "demo", "EMPTY_TOKEN": ""}).items():
        monkeypatch.setenv(name, value)
    assert (
        cli.mask_text(f"at {' '.join(secrets.values())}: /data/models of demo")
        == "at *** *** *** ***: /data/models of demo"
    )
    assert cli.mask_secrets({"prompt": ["a one-two-three shoe"]}) == {"prompt": ["a *** shoe"]}


def test_recipe_sets_values_and_command_line_wins(parser, tmp_path):
    config = write(tmp_path, "learning_rate: -1e-3\nkinds: [b, c]\nflip: true\nprompt: [one, two]\n")
    args = cli.parse_args(parser, [config, "--prompt", "three"])
    assert args.learning_rate == -1e-3 and args.kinds == ["b", "c"] and args.flip and args.prompt == ["three"]


def test_recipe_interpolates_keys_and_environment(parser, tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", "/mnt/big")
    config = write(tmp_path, "prompt: [shoes]\noutput_dir: ${oc.env:WHERE}/${prompt[0]}\n")
    assert cli.parse_args(parser, [config]).output_dir == "/mnt/big/shoes"


def test_what_a_recipe_takes_from_the_environment_is_written_back_as_the_interpolation(
    parser, tmp_path, monkeypatch, capsys
):
    for name, value in {"WHERE": "/mnt/private", "MY_TOKEN": "abc", "STEPS": "3"}.items():
        monkeypatch.setenv(name, value)
    recipe = "output_dir: ${oc.env:WHERE}/x\nkinds: ['${output_dir}', '\\${a}']\nmode: ${oc.env:NOT_SET,a}\n"
    recipe += "prompt: [key abc, sk-1234567890abcdef1234]\nlearning_rate: ${oc.decode:${oc.env:STEPS}}\n"
    args = cli.parse_args(parser, [write(tmp_path, recipe + "names: ['${oc.env:MY_TOKEN}']")])
    assert args.output_dir == "/mnt/private/x" and args.learning_rate == 3 and args.names == ["abc"]
    cli.show_settings(args)
    shown = capsys.readouterr().out
    settings = yaml.safe_load(shown)
    assert settings["output_dir"] == "${oc.env:WHERE}/x" and settings["learning_rate"] == "${oc.env:STEPS}"
    assert settings["kinds"] == ["${oc.env:WHERE}/x", "\\${a}"] and settings["mode"] == "a"
    assert settings["prompt"] == ["key ${oc.env:MY_TOKEN}", "***"]
    assert cli.mask_text("in /mnt/private: abc") == "in ${oc.env:WHERE}: ${oc.env:MY_TOKEN}"
    again = cli.parse_args(parser, [write(tmp_path, shown)])
    assert {**vars(again), "config": 0} == {**vars(args), "config": 0, "prompt": ["key abc", "***"]}
    monkeypatch.setenv("STEPS", "4")
    changed = cli.settings_of(cli.parse_args(parser, [write(tmp_path, recipe)]))
    free = {"prompt", "names"}
    assert training_changes(settings, changed, free) == ["what --learning_rate gives has changed"]
    assert training_changes({**settings, "learning_rate": 4, "learning_rate_sha256": None}, changed, free) == [
        "what --learning_rate gives has changed"
    ]
    before = {key: value for key, value in settings.items() if not key.endswith("_sha256")}
    # a run of an earlier version, whose config.yaml has the values themselves
    assert training_changes(before | {"learning_rate": 4, "output_dir": "/mnt/private/x"}, changed, free) == []


def test_a_value_from_the_environment_stands_in_no_message(parser, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", "hidden-value")
    with pytest.raises(SystemExit):
        cli.parse_args(parser, [write(tmp_path, "learning_rate: ${oc.env:MY_KEY}\n")])
    assert "--learning_rate: invalid float value: '${oc.env:MY_KEY}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown key `lerning_rate`; did you mean `learning_rate`?"),
        ("learning_rate: fast", "recipe.yaml: argument --learning_rate: invalid float value: 'fast'"),
        ("mode: c", "recipe.yaml: argument --mode: invalid choice: 'c'"),
        ("shares: [70, 15]", "recipe.yaml: argument --shares: expected 3 arguments"),
        ("shares: [1, 2, 3, 4]", "recipe.yaml: unrecognized arguments: 4"),
        ("flip: 3", "`flip: 3` must be true or false"),
        ("learning_rate: true", "`learning_rate: True` is not a value"),
        ("output_dir: {a: 1}", "`output_dir` holds nested keys"),
        ("names: [{a: 3}]", "`names` holds `a: 3`, a nested key; write a:3, without the blank"),
        ("output_dir: ${oc.env:NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
        ("- a\n- b", "expected lines of `flag: value`, found a list"),
        ("a: [", "recipe.yaml"),
        pytest.param("- " * 100_000, "nested too deeply", id="deep"),
    ],
)
def test_wrong_recipe_is_one_line_that_names_the_fault(parser, tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as stop:
        cli.parse_args(parser, [write(tmp_path, text)])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and message in error and "\n" not in error


def test_lists_and_switches_of_a_recipe_can_be_undone(parser, tmp_path):
    config = write(tmp_path, "names: [one, two words]\ncrop: true\n")
    args = cli.parse_args(parser, [config])
    assert args.names == ["one", "two words"] and args.crop
    args = cli.parse_args(parser, [config, "--no-crop", "--names", "three", "four"])
    assert args.names == ["three", "four"] and not args.crop


def test_missing_recipe_names_the_path(parser, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.parse_args(parser, ["--config", str(tmp_path / "none.yaml")])
    assert "none.yaml: No such file or directory" in capsys.readouterr().err


def test_a_mistyped_flag_is_answered_with_the_nearest_one(parser, capsys):
    with pytest.raises(SystemExit):
        cli.parse_args(parser, ["--lerning_rate", "1"])
    assert "unrecognized arguments: --lerning_rate 1; did you mean `--learning_rate`?; see" in capsys.readouterr().err


def test_another_number_is_not_what_was_meant():
    assert cli.suggest("int4", ["nf4", "int8"]) == "; did you mean `nf4`?"
    assert cli.suggest("fp32", ["no", "fp16", "bf16"]) == ""


def test_no_flag_that_would_be_refused_is_suggested(parser, capsys):
    cli.add_refused_flags(parser, {"enable_bucket": "use another"})
    with pytest.raises(SystemExit):
        cli.parse_args(parser, ["--enable_buckets"])
    assert "unrecognized arguments: --enable_buckets; see" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("--learning-rate=1", "did you mean `--learning_rate`?"),
        ("--learning --flipp", "did you mean `--learning_rate`?; did you mean `--flip`?"),
        ("--dir x", "did you mean `--output_dir`?"),
        ("--mode bb", "did you mean `b`?"),
        ("--output_dir a folder", "unrecognized arguments: folder; a value with blanks needs quotes"),
        ("--place=", "--place: an empty path; name a file or folder"),
    ],
)
def test_what_was_probably_meant_is_named(parser, capsys, line, meant):
    with pytest.raises(SystemExit):
        cli.parse_args(parser, line.split())
    assert meant in capsys.readouterr().err


def test_a_link_to_itself_is_no_place(parser, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemExit):
        cli.parse_args(parser, ["--place", str(tmp_path / "loop" / "new")])
    assert "a link that leads to itself" in capsys.readouterr().err


def test_abbreviated_flags_are_refused(parser):
    with pytest.raises(SystemExit):
        cli.parse_args(parser, ["--learn", "1"])


def test_printed_settings_read_back_as_a_recipe(parser, tmp_path, capsys):
    args = cli.parse_args(parser, ["--learning_rate", "3e-4", "--kinds", "x", "y", "--prompt", "a: b", "--flip"])
    cli.show_settings(args)
    again = cli.parse_args(parser, [write(tmp_path, capsys.readouterr().out)])
    assert {**vars(again), "config": None} == vars(args)


def test_settings_at_their_defaults_are_shown_with_verbose_alone(parser, capsys):
    cli.show_settings(cli.parse_args(parser, ["--learning_rate", "3e-4", "--mode", "b"]))
    assert yaml.safe_load(capsys.readouterr().out) == {"learning_rate": 3e-4, "mode": "b"}
    cli.show_settings(cli.parse_args(parser, ["--verbose"]))
    assert {"learning_rate: 0.0001", "mode: null", "flip: false"} <= set(capsys.readouterr().out.splitlines())
    args = cli.parse_args(parser, [])
    args.mode = "settled by the script"
    cli.show_settings(args)
    assert yaml.safe_load(capsys.readouterr().out) is None


def test_a_config_that_a_script_wrote_is_a_recipe(parser, tmp_path, capsys):
    """It also holds checksums and the precision, to compare a later run with."""
    config = write(tmp_path, "learning_rate: 0.1\nprecision: fp16\nlora_sha256: [abc]\n")
    assert cli.parse_args(parser, [config]).learning_rate == 0.1
    with pytest.raises(SystemExit):  # but no recipe may set it
        cli.parse_args(parser, [write(tmp_path, "precision: fp16\n")])
    assert "unknown key `precision`" in capsys.readouterr().err


def test_an_error_is_the_last_line_of_a_log():
    script = "import sys; from utils import cli; cli.start_script(); print('a step'); print('error', file=sys.stderr)"
    words = [sys.executable, "-c", script]
    told = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert told.stdout == "a step\nerror\n"


def test_work_goes_on_without_a_reader_of_its_output(tmp_path):
    words = [sys.executable, "-c", SCRIPT, "--rank", "16", "--output_dir", str(tmp_path)]
    piped = subprocess.run(["bash", "-c", f"{shlex.join(words)} 2>&1 | head -1"], capture_output=True, text=True)
    assert piped.stdout == "a line of some length\n" and piped.stderr == ""
    assert (tmp_path / "result").read_text() == "done"
    (tmp_path / "result").unlink()
    closed = subprocess.run(["bash", "-c", f"{shlex.join(words)} >&-"], capture_output=True, text=True)
    assert closed.returncode == 0 and (tmp_path / "result").read_text() == "done"
    helped = subprocess.run(["bash", "-c", f"{shlex.join(words)} --help | head -1"], capture_output=True, text=True)
    assert helped.stderr == ""


def test_a_missing_package_is_one_line():
    said = run_script("--rank", "17").stderr
    assert "has no package `no_such_package`; activate .venv" in said and said.count("\n") == 1
    assert "Traceback" in run_script("--rank", "17", "--debug").stderr


def test_user_error_is_one_line_and_debug_shows_the_traceback():
    plain, debug = run_script("--rank", "13"), run_script("--rank", "13", "--debug")
    assert plain.returncode == debug.returncode == 1
    assert plain.stderr.strip().endswith("error: --rank 13: unlucky") and len(plain.stderr.strip().splitlines()) == 1
    assert "Traceback" in debug.stderr


def test_disk_errors_are_one_line_too():
    result = run_script("--rank", "14")
    assert result.stderr == "-c: error: /nonexistent/file: No such file or directory\n" and result.returncode == 1
    said = run_script("--rank", "15", "--output_dir", "here").stderr  # such an error names no file
    advice = "make room, then give the same command again"
    assert said == f"-c: error: --output_dir here: No space left on device; {advice}\n"


def test_a_name_too_long_for_the_disk_is_said_to_be_so(tmp_path):
    with pytest.raises(OSError) as error:
        (tmp_path / ("a" * 300)).mkdir()
    said = cli.describe_fault(error.value, argparse.Namespace(output_dir=tmp_path))
    assert said.startswith(f"--output_dir {tmp_path}: {tmp_path}/aaa")
    assert said.endswith("File name too long; give a shorter name")
    error = OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".x.partial/images"))  # of a folder, x
    said = cli.describe_fault(error, argparse.Namespace(output_dir=tmp_path / "x"))
    assert said.startswith(
        f"--output_dir {tmp_path}/x: {tmp_path}/.x.partial/images: Read-only file system; give a place"
    )


def test_a_script_that_ends_closes_the_process_group_that_it_was_started_in(parser):
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda args: 3, cli.parse_args(parser, []))
    assert ended.value.code == 3 and not distributed.is_initialized()


@pytest.mark.parametrize(("processes", "end"), [("1", "taken apart\n"), ("2", "")])
def test_one_process_of_several_ends_before_its_interpreter_is_taken_apart(processes, end):
    """What gloo's threads still drop then would abort it; handlers run, and all that was printed is there."""
    script = """
import atexit, os, sys
from utils import cli

class Left:
    def __del__(self, write=os.write):
        write(1, b"taken apart\\n")

def main(args):
    print("done")
    return 3

sys.left = Left()
atexit.register(print, "handler")
cli.run(main, cli.parse_args(cli.make_parser("doc")))
"""
    environment = {**os.environ, "WORLD_SIZE": processes}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (3, f"done\nhandler\n{end}")


@pytest.mark.slow
def test_a_script_prints_no_warning_about_torchvision_which_nothing_needs():
    script = """
from utils import cli

def main(args):
    import diffusers
    print(diffusers.StableDiffusionPipeline)

cli.run(main, cli.parse_args(cli.make_parser("doc")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "class" in done.stdout and "torchvision" not in done.stderr


NEEDS = {"prompt": ("--flip", False), "flip": ("--mode b", False), "kinds": ("--crop", False)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--prompt x", "--prompt x: does nothing without --flip; add that, or leave --prompt out"),
        ("--flip", "--flip: does nothing without --mode b"),
        ("--kinds a b", "--kinds a b: does nothing without --crop"),
    ],
)
def test_a_flag_that_does_nothing_is_an_error_on_the_command_line(parser, capsys, line, message):
    args = cli.parse_args(parser, line.split())
    with pytest.raises(SystemExit) as ended:
        cli.report_ignored(parser, args, NEEDS)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1


def test_processes_beside_the_first_show_no_warning_but_their_own(monkeypatch):
    for rank, shown in (("0", [True, True, True]), ("1", [False, True, True])):
        monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())
        monkeypatch.setenv("RANK", rank)
        cli.leave_warnings_to_main()
        records = [logging.makeLogRecord({"levelno": level}) for level in (logging.WARNING, logging.ERROR)]
        records.append(logging.makeLogRecord({"levelno": logging.WARNING, **cli.OF_ONE_PROCESS}))
        assert [bool(logging.lastResort.filter(one)) for one in records] == shown


def test_a_flag_that_does_nothing_is_a_warning_from_a_recipe(parser, tmp_path, caplog, capsys):
    config = write(tmp_path, "flip: true\nmode: b\n")
    cli.report_ignored(parser, cli.parse_args(parser, [config]), NEEDS)
    assert caplog.messages == ["--config: `flip: True` does nothing without --mode b"]
    with pytest.raises(SystemExit):  # given again on the command line, it is the command line's
        cli.report_ignored(parser, cli.parse_args(parser, [config, "--flip"]), NEEDS)
    assert "--flip: does nothing without" in capsys.readouterr().err
    needs = NEEDS | {"flip": ("--mode b", True)}
    cli.report_ignored(parser, cli.parse_args(parser, ["--flip"]), needs)  # with what it needs


def test_native_windows_is_refused_in_one_line():
    script = "import sys; from utils import cli; sys.platform = 'win32'; sys.argv[0] = 'a.py'; cli.make_parser('doc')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "a.py: error: native Windows is not supported; run it in WSL 2\n"


@pytest.mark.parametrize(
    ("limits", "good", "bad", "message"),
    [
        ((0, 1), ["0", "1", "1e-3"], ["-0.1", "1.1", "nan", "x"], "expected a number, 0 to 1"),
        ((0, 5000, float, True), ["0.1", "5e3"], ["0", "inf", "-1"], "expected a number, above 0, at most 5,000"),
        ((0, 1, float, False, True), ["0", "0.99"], ["1", "2"], "expected a number, 0 or more, below 1$"),
        ((2, 99, int), ["2", "99"], ["1", "2.5", "", "9" * 30], "expected a whole number, 2 to 99"),
    ],
)
def test_a_range_takes_what_lies_within_its_limits(limits, good, bad, message):
    read = cli.Range(*limits)
    kind = int if "whole" in message else float
    assert [(read(text), type(read(text))) for text in good] == [(kind(text), kind) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text}: {message}"):
            read(text)


def test_the_launcher_ends_with_the_message_of_an_error(tmp_path, monkeypatch, capsys):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def fail(_args):
        raise cli.UserError("--rank 13: unlucky")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.run(fail, cli.parse_args(cli.make_parser("doc"), []))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # so that the launcher gets the process's own code
    finally:
        signal.signal(signal.SIGTERM, handler)
    said = capsys.readouterr().err.strip()
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=ended.value.code, error_file=str(tmp_path / "error.json"))
    shown = str(ChildFailedError("train_lora.py", {0: failure}))  # what torchrun prints last
    assert ended.value.code == 1 and f"traceback : {said}" in shown.splitlines()[-2]


def test_one_process_prints_what_is_wrong_with_a_flag_and_the_launcher_ends_with_it(tmp_path, monkeypatch, capsys):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    handler, said = signal.getsignal(signal.SIGTERM), {}
    try:
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            with pytest.raises(SystemExit):
                cli.parse_args(cli.make_parser("doc"), ["--dry_rnu"])
            said[rank] = capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert said["1"] == "" and "--dry_rnu; did you mean `--dry_run`?" in said["0"]
    assert json.loads(file.read_text())["message"]["message"] == said["0"].strip()


LAUNCHED = """
import os, subprocess, sys
from utils.parallel import ENDS_WITH_STDIN
child = "import sys, time; from utils import parallel; parallel.end_with_launcher(); print('up', file=sys.stderr); "
child += "time.sleep(60)"
words = [sys.executable, "-c", child]
if ENDS_WITH_STDIN in os.environ:  # another process stands between
    words = [sys.executable, "-c", f"import subprocess; subprocess.run({words})"]
process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
process.stderr.readline()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", ["TORCHELASTIC_RUN_ID", "ENDS_WITH_STDIN"])
def test_a_process_ends_when_its_launcher_was_killed(monkeypatch, name):
    monkeypatch.setenv(name, "none")
    # The child holds the pipe of stdout: its end is that of the child.
    subprocess.run([sys.executable, "-c", LAUNCHED], cwd=ROOT, stdout=subprocess.PIPE, timeout=30)
