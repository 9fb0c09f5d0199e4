"""The Colab notebooks: their form, their commands, and a `Run all` that is cut off and started again elsewhere."""

import ast
import contextlib
import functools
import http.server
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import benchmark
import train_lora
import train_tts
from demo.catalogue import write_catalogue
from notebooks import colab
from tests.drawn_runs import write_run
from training.batches import plan_batch
from training.flags import free_to_change
from utils.runs import training_changes

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRAIN, VOICE, MONITOR = (ROOT / f"notebooks/{name}_colab.ipynb" for name in ("train", "voice", "monitor"))
FIELD = re.compile(r"^(\w+) = (.*?)  # @param\b.*$", re.M)
NEWEST = "Figures, time left, report in words, loss curve, newest validation"  # a step of the monitor
needs_venv = pytest.mark.skipif(not colab.PYTHON.exists(), reason="the notebooks use .venv: run `make setup`")
# A stand-in for the part of Colab that the notebooks use: a secret, an upload, a mounted Drive.
GOOGLE_COLAB = {
    "__init__": "",
    "userdata": """
class SecretNotFoundError(Exception): pass
class NotebookAccessError(Exception): pass
class TimeoutException(Exception): pass
def get(name):
    if name != "HF_TOKEN": raise SecretNotFoundError(name)
    return "hf_very_secret_word"
""",
    "files": """
import pathlib
def upload(folder):
    pathlib.Path(folder).mkdir(parents=True)
    pathlib.Path(folder, "shoe.txt").write_text("uploaded")
""",
    "drive": "def mount(place): print('mounted', place)",
}


def read_code(path: Path, **fields: Any) -> list[str]:
    """The notebook's code cells, with these fields of its forms filled in."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = {found[1] for source in cells for found in FIELD.finditer(source)}
    assert fields.keys() <= names, fields.keys() - names

    def fill(found: re.Match[str]) -> str:
        return found[0].replace(found[2], repr(fields.get(found[1], ast.literal_eval(found[2]))), 1)

    return [FIELD.sub(fill, source) for source in cells]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with its .venv, in which what the notebooks write stays apart; the present folder."""
    (tmp_path / "checkout").mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs", ".git"):
            (tmp_path / "checkout" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path / "checkout")
    return Path.cwd()


@pytest.fixture
def in_colab(tmp_path, monkeypatch):
    """As if the notebook were open in Colab."""
    for name, text in GOOGLE_COLAB.items():
        path = tmp_path / "colab/google/colab" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "colab")
    before = set(sys.modules)
    yield
    for name in sys.modules.keys() - before:
        if name.startswith("google.colab"):
            del sys.modules[name]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_hold_no_output(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        assert cell.source and not cell.get("outputs") and cell.get("execution_count") is None, cell.source
    titles = [re.match(r"# @title (\d+)\. \w", cell.source) for cell in book.cells if cell.cell_type == "code"]
    assert [int(title[1]) for title in titles] == list(range(1, len(titles) + 1))
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert not re.search(r"/(home|Users|root)/\w|hf_\w{8}", text)


def test_the_notebooks_begin_in_the_same_way():
    assert read_code(TRAIN)[0] == read_code(VOICE)[0] == read_code(MONITOR)[0]
    assert read_code(TRAIN)[1:3] == read_code(VOICE)[1:3]


def test_every_field_of_the_voices_notebook_is_explained_and_so_is_the_licence():
    for source in read_code(VOICE)[1:]:
        lines = source.splitlines()
        for above, line in zip(lines, lines[1:]):
            assert not FIELD.match(line) or above.startswith("# @markdown "), line
    assert "CC BY-NC" in nbformat.read(VOICE, as_version=4).cells[0].source
    (choice,) = (source for source in read_code(VOICE) if "facebook/mms-tts-por" in source)
    assert "may not be used commercially" in choice


def test_without_an_address_the_notebook_says_what_is_missing_and_with_one_it_clones(tmp_path):
    source = read_code(TRAIN)[0]
    asked = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True)
    assert asked.returncode == 1 and re.fullmatch("repository: empty; give the address .*\n", asked.stderr)
    wrong = read_code(TRAIN, repository=f"{tmp_path}/nothing")[0]
    refused = subprocess.run([sys.executable, "-c", wrong], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1 and "does not exist" in refused.stderr and "Traceback" not in refused.stderr
    origin = tmp_path / "origin"
    (origin / "notebooks").mkdir(parents=True)
    for name in ("train_lora.py", "notebooks/colab.py"):
        shutil.copy(ROOT / name, origin / name)
    git = ["git", "-C", origin, "-c", "user.name=me", "-c", "user.email=me@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a fork"]):
        subprocess.run([*git, *words], check=True)
    right = read_code(TRAIN, repository=f"file://{origin}")[0] + "\nprint(colab.ROOT)"
    for folder in (tmp_path, tmp_path / "finetuning/notebooks"):  # cloned, then found
        done = subprocess.run([sys.executable, "-c", right], cwd=folder, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == str(tmp_path / "finetuning"), done.stderr


# Commands


RECORDER = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
if words[0] != "-c":
    with open("commands.jsonl", "a") as file:
        print(json.dumps(words), file=file)
    if "--output_dir" in words:
        pathlib.Path(words[words.index("--output_dir") + 1]).mkdir(parents=True, exist_ok=True)
"""


@pytest.fixture
def recording(tmp_path):
    """A checkout whose .venv/bin/python runs no script, but writes its command line into commands.jsonl."""
    folder = tmp_path / "recording"
    for path in (folder / "notebooks/colab.py", folder / ".venv/bin/python"):
        path.parent.mkdir(parents=True)
    shutil.copy(ROOT / "notebooks/colab.py", folder / "notebooks")
    (folder / ".venv/bin/python").write_text(RECORDER.format(python=sys.executable))
    (folder / ".venv/bin/python").chmod(0o755)
    for name in ("train_lora.py", "report_run.py", "utils", "service"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def read_commands(folder: Path, path: Path, **fields: Any) -> list[list[str]]:
    """The command lines that the notebook runs with these fields."""
    source = re.sub(r"^%.*$", "", "\n".join(read_code(path, **fields)), flags=re.M)
    done = subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "commands.jsonl").read_text().splitlines()]


WORDS = {"empty": "", "on": True, "off": False}


def suggested_fields(path: Path, column: int) -> dict[str, Any]:
    """What the table in the notebook's first cell suggests for one's own data."""
    lines = nbformat.read(path, as_version=4).cells[0].source.splitlines()
    found = {}
    for row in (line.split("|") for line in lines if line.startswith("| `")):
        text = row[column + 1].strip()
        found |= dict.fromkeys(re.findall(r"`(\w+)`", row[1]), WORDS.get(text.partition(":")[0], text.strip("`")))
    return found | {"run_name": "mine"}


def check_command(command: list[str]) -> None:
    """Let the script itself parse its command line."""
    script, *words = command
    if not words:
        return
    module = script.removesuffix(".py").replace("/", ".")
    if hasattr(importlib.import_module(module), "parse_args"):
        sys.modules[module].parse_args(words)
    else:
        done = subprocess.run([sys.executable, script, *words, "--dry_run"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_every_command_of_the_training_notebook_is_one_that_its_script_accepts(recording, tmp_path):
    commands = read_commands(recording, TRAIN, keep_in=str(tmp_path / "drive"))
    names = "check_environment demo/catalogue prepare_dataset train_lora generate evaluate"
    assert [command[0].removesuffix(".py") for command in commands] == names.split()
    for command in commands:
        check_command(command)
    synced = [command[command.index("--sync_to") + 1] for command in commands if "--sync_to" in command]
    assert synced == [str(tmp_path / "drive" / name) for name in ("runs/demo_lora", "data/generated/demo_lora")]


@pytest.mark.parametrize("trainer", ["train_lora", "train_dreambooth"])
def test_what_the_training_notebook_suggests_for_own_images_is_accepted(recording, trainer):
    (recording / "photos").mkdir()
    fields = suggested_fields(TRAIN, 1 + (trainer == "train_dreambooth"))
    commands = read_commands(recording, TRAIN, **fields | {"keep_in": "", "source": "folder", "place": "photos"})
    middle = [] if trainer == "train_dreambooth" else ["prepare_dataset.py"]
    assert [command[0] for command in commands[1:]] == [*middle, f"{trainer}.py", "generate.py", "evaluate.py"]
    for command in commands[1:]:
        check_command(command)
        assert "--sync_to" not in command and "demo" not in " ".join(command)


def test_every_command_of_the_voices_notebook_is_one_that_its_script_accepts(recording, tmp_path):
    commands = read_commands(recording, VOICE, keep_in=str(tmp_path / "drive"), push_to="me/voice")
    names = "check_environment prepare_speech train_tts synthesize evaluate_speech"
    assert [command[0].removesuffix(".py") for command in commands] == names.split()
    for command in commands:
        check_command(command)
    trained = commands[2]
    assert trained[trained.index("--sync_to") + 1] == str(tmp_path / "drive/runs/demo_voice")
    assert trained[-3:] == ["--push_to_hub", "--hub_model_id", "me/voice"]


@pytest.mark.parametrize("column", [2, 3])  # the first is the second without --segment
def test_what_the_voices_notebook_suggests_for_own_recordings_is_accepted(recording, column):
    fields = suggested_fields(VOICE, column)
    (recording / "recordings").mkdir()
    found = {"keep_in": "", "source": "folder", "place": "recordings"}
    commands = read_commands(recording, VOICE, **fields | found)
    names = "check_environment prepare_speech train_tts synthesize evaluate_speech"
    assert [command[0].removesuffix(".py") for command in commands] == names.split()
    assert ("--segment" in commands[1]) == (column == 2)
    for command in commands[1:]:
        check_command(command)
        assert "--sync_to" not in command and "--push_to_hub" not in command and "demo" not in " ".join(command)


def test_every_command_of_the_monitor_is_one_that_its_script_accepts(recording, tmp_path):
    run = tmp_path / "drive/runs/demo_lora"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("max_train_steps: 40")
    commands = read_commands(recording, MONITOR, keep_in=str(tmp_path / "drive"), evaluate=True)
    assert [command[0] for command in commands] == ["generate.py", "evaluate.py"]
    assert commands[0][1:3] == ["--lora", str(run / "best")]
    for command in commands:
        check_command(command)


@pytest.mark.slow
def test_the_monitor_reports_in_words_and_asks_a_language_model_only_if_one_is_named(recording, tmp_path):
    run = write_run(tmp_path / "drive/runs/demo_lora", last=400)
    (run / "validation").mkdir()

    def shown(**fields) -> str:
        source = re.sub(
            r"^%.*$", "", "\n".join(read_code(MONITOR, keep_in=str(tmp_path / "drive"), **fields)), flags=re.M
        )
        environment = os.environ | {"LLM_API_KEY": ""}
        words = [sys.executable, "-c", source]
        return subprocess.run(words, cwd=recording, env=environment, capture_output=True, text=True).stdout

    text = shown(language="pt")
    assert (
        "## O que aconteceu" in text and "400 de 1.000 passos treinados" in text and "modelo de linguagem" not in text
    )
    nobody = "http://127.0.0.1:9/v1"
    text = shown(language="pt", llm_models="one", llm_base_url=nobody)
    assert "O relatório de um modelo de linguagem ficou de fora: não foi possível conectar ao servidor" in text


@needs_venv
def test_a_command_is_shown_and_its_lines_appear_as_they_come(checkout, capsys):
    began, seen = time.monotonic(), []

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            seen.append((time.monotonic() - began, text))
            return len(text)

    Path("slow.py").write_text("import time; print('first'); time.sleep(0.5); print('last')")
    with contextlib.redirect_stdout(Screen()):
        colab.run("slow.py", "--prompt", "a b")
    times = {text.strip(): at for at, text in seen}
    assert "$ python3 slow.py --prompt 'a b'" in times and times["last"] - times["first"] > 0.4
    Path("fails.py").write_text("import sys; sys.exit('data/x: no such folder')")
    with pytest.raises(SystemExit, match="fails.py ended with exit code 1; its message is above"):
        colab.run("fails.py")
    assert "data/x: no such folder" in capsys.readouterr().out


@needs_venv
def test_the_stop_button_lets_a_trainer_save_its_checkpoint(checkout):
    saves = "import time\nfrom utils.runs import catch_signals\ngot, end = catch_signals(), time.monotonic() + 30\n"
    saves += "print('training')\nwhile not got and time.monotonic() < end: time.sleep(0.05)\n"
    Path("trains.py").write_text(saves + "print('saved', *map(int, got))")
    press = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])  # what Jupyter and Colab send

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            if text == "training\n":
                press.start()
            return super().write(text)

    with contextlib.redirect_stdout(Screen()) as shown, pytest.raises(KeyboardInterrupt):
        colab.run("trains.py")
    assert "saved 15" in shown.getvalue()


@needs_venv
def test_the_notebooks_settings_stay_out_of_the_scripts(checkout, capsys, monkeypatch):
    """Colab's own would make matplotlib look for a package that .venv lacks, and uv for constraints that are gone."""
    for name in colab.NOT_INHERITED:
        monkeypatch.setenv(name, "/nowhere")
    Path("shows.py").write_text("import os; print(sorted(os.environ))")
    colab.run("shows.py")
    assert not set(colab.NOT_INHERITED) & set(ast.literal_eval(capsys.readouterr().out.splitlines()[-1]))


# Packages, Drive, secrets, data


@pytest.mark.parametrize(
    ("gpus", "build"),
    [
        ([], 13),
        (["Tesla T4, 7.5, 580.82.07"], 13),
        (["NVIDIA A100-SXM4-80GB, 8.0, 590.48.01"], 13),
        (["Tesla T4, 7.5, 550.54.15"], 12),
        (["Tesla P100-PCIE-16GB, 6.0, 580.82.07"], 12),
        (["Tesla V100-SXM2-16GB, 7.0, 580.82.07"], 12),
    ],
)
def test_gpus_and_drivers_that_cuda_13_leaves_out_get_the_build_for_cuda_12(gpus, build):
    *_, install = colab.install_commands(gpus)
    pinned, venv = str(ROOT / "requirements-training.txt"), str(ROOT / ".venv")
    if build == 13:
        assert install == ["uv", "pip", "install", "--quiet", "--python", venv, "-r", pinned]
    else:
        filtered, pipe, installed = install[-1].partition(" | ")
        assert pipe and install[:3] == ["bash", "-o", "pipefail"] and "--torch-backend cu126 -r -" in installed
        left = subprocess.check_output(filtered, shell=True, text=True).splitlines()
        names = {line.partition("==")[0] for line in left if "==" in line}
        assert {"torch", "diffusers"} <= names and not any(name.startswith(("nvidia", "cuda")) for name in names)


@needs_venv
def test_an_environment_that_works_is_left_as_it_is(capsys):
    colab.install()
    assert capsys.readouterr().out.splitlines()[-1] == f"packages: {ROOT / '.venv'} is ready"


def test_secrets_reach_the_scripts_and_are_never_shown(in_colab, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("OTHER", "")
    colab.read_secrets("HF_TOKEN OTHER")
    shown = capsys.readouterr().out
    assert os.environ["HF_TOKEN"] == "hf_very_secret_word" and "secret_word" not in shown
    assert shown.splitlines()[1].startswith("OTHER: not among Colab's secrets")


def test_drive_is_mounted_where_a_path_lies_on_it_and_only_in_colab(request, capsys):
    assert colab.open_place(" ") is None and colab.open_place("photos") == Path("photos")
    with pytest.raises(SystemExit, match="/content/drive/MyDrive/x: Drive can only be mounted in Colab"):
        colab.open_place("/content/drive/MyDrive/x")
    request.getfixturevalue("in_colab")
    assert colab.open_place("/content/drive/MyDrive/x") == Path("/content/drive/MyDrive/x")
    assert capsys.readouterr().out == "mounted /content/drive\n"


def test_data_comes_from_a_folder_a_zip_file_an_upload_or_the_hub(checkout, in_colab):
    assert colab.find_data("hub", "me/shoes", "train_lora.py", Path("uploads")) == "me/shoes"
    Path("photos").mkdir()
    Path("photos/1.txt").touch()
    Path("photos/2.txt").touch()
    assert colab.find_data("folder", "photos", "train_lora.py", Path("uploads")) == Path("photos")
    with zipfile.ZipFile("shoes.zip", "w") as packed:
        packed.writestr("my shoes/1.txt", "a red shoe")
        packed.writestr("__MACOSX/my shoes/._1.txt", "")
    found = colab.find_data("folder", "shoes.zip", "train_lora.py", Path("uploads"))
    assert found == Path("data/unpacked/shoes/my shoes") and (found / "1.txt").read_text() == "a red shoe"
    for _ in range(2):  # asked for once
        assert colab.find_data("upload", "", "train_lora.py", Path("uploads")) == Path("uploads")
    assert Path("uploads/shoe.txt").read_text() == "uploaded"
    with pytest.raises(SystemExit, match="place: gone.zip; give the path of a folder"):
        colab.find_data("folder", "gone.zip", "train_lora.py", Path("uploads"))


@pytest.fixture
def address(tmp_path):
    """A server's address, and the folder that it serves."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "served"
        server.shutdown()


def test_a_zip_file_is_downloaded_once_from_its_address(checkout, address, capsys):
    place, served = address
    with zipfile.ZipFile(served / "corpus.zip", "w") as packed:
        packed.writestr("corpus/texts.csv", "wavs/1.wav==bom dia")
    for _ in range(2):
        found = colab.find_data("address", f"{place}/corpus.zip?dl=1", "train_tts.py", Path("uploads"))
        assert (found / "texts.csv").read_text() == "wavs/1.wav==bom dia"
    assert capsys.readouterr().out.count("downloading") == 1
    with pytest.raises(SystemExit, match="place: my/corpus; give the address of a .zip file"):
        colab.find_data("address", "my/corpus", "train_tts.py", Path("uploads"))
    with pytest.raises(SystemExit, match="curl ended with exit code 22"):
        colab.find_data("address", f"{place}/gone.zip", "train_tts.py", Path("uploads"))
    assert "404" in capsys.readouterr().out


PREPARES = """
import pathlib, sys
words = sys.argv[1:]
place = pathlib.Path(words[words.index("--output_dir") + 1])
place.mkdir()
place.joinpath("splits.json").write_text("{}")
place.joinpath("corrections.html").write_text("a page")
segments = place.parent / "cache/segments/transcripts"
segments.mkdir(parents=True, exist_ok=True)
segments.joinpath("some.jsonl").write_text("heard")
"""


@needs_venv
def test_a_voices_data_and_transcripts_are_kept_and_not_prepared_again_elsewhere(checkout, tmp_path):
    drive, script = tmp_path / "drive", Path("prepare_speech.py")
    script.unlink()
    script.write_text(PREPARES)
    Path("recordings").mkdir()
    Path("recordings/one.wav").touch()
    asked = ("folder", "recordings", ["--segment"], "mine", drive)
    assert colab.prepare_voice(*asked) == Path("data/mine")
    (kept,) = drive.glob("data/mine-*.zip")
    assert kept.with_suffix(".corrections.html").read_text() == "a page"
    assert (drive / "data/segments/transcripts/some.jsonl").read_text() == "heard"
    for place in ("data", "recordings"):
        shutil.rmtree(place)
    script.write_text("raise SystemExit('prepared again')")
    assert colab.prepare_voice(*asked) == Path("data/mine")
    assert Path("data/mine/splits.json").read_text() == "{}"
    assert colab.prepare_voice("folder", "data/mine", [], "other", drive) == Path("data/mine")  # prepared already
    Path("recordings").mkdir()
    with pytest.raises(SystemExit, match="prepare_speech.py ended with exit code 1"):
        colab.prepare_voice("folder", "recordings", ["--segment", "--asr", "demo"], "mine", drive)


def test_the_newest_sounds_of_a_voice_come_with_their_recordings(tmp_path):
    names = ["000000_1", "000000_1_real", "000000_2", "000000_2_real", "000100_1", "000100_2"]
    (tmp_path / "validation").mkdir()
    for name in names:
        (tmp_path / f"validation/step-{name}.wav").touch()
    shown = [path.stem.removeprefix("step-") for path in colab.newest_sounds(tmp_path)]
    assert shown == ["000100_1", "000000_1_real", "000100_2", "000000_2_real"]
    assert colab.newest_sounds(tmp_path / "validation") == []


# Batch


MEASURES = """
import json, pathlib, sys
words = sys.argv[1:]
place = pathlib.Path(words[words.index("--output_dir") + 1])
place.mkdir(parents=True, exist_ok=True)
best = {"train_batch_size": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": False, "compile": False}
place.joinpath("benchmark.json").write_text(json.dumps({"recommended": best, "words": words}))
"""


@pytest.fixture
def measuring(checkout, tmp_path, monkeypatch):
    """A checkout whose benchmark.py only writes its command line and a recommendation; nvidia-smi names a T4."""
    Path("benchmark.py").unlink(missing_ok=True)
    Path("benchmark.py").write_text(MEASURES)
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\necho "${GPU:-Tesla T4}, 7.5, 580.82.07"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    return smi


CHOSEN = "--train_batch_size=4 --gradient_accumulation_steps=2 --no-gradient_checkpointing --no-compile".split()


@needs_venv
@pytest.mark.parametrize(
    ("trainer", "data", "flags", "more"),
    [
        ("train_lora", ["--train_data_dir", "data/x"], ["--config", "configs/demo_lora.yaml"], ["--rank", "4"]),
        ("train_dreambooth", ["--instance_data_dir", "x"], ["--instance_prompt", "a photo of sks"], ["--rank", "4"]),
        ("train_tts", ["--train_data_dir", "data/x"], ["--config", "configs/voice_pt_br.yaml"], ["--seed", "4"]),
    ],
)
def test_the_batch_is_measured_once_for_a_gpu_and_its_flags_and_kept(
    measuring, tmp_path, monkeypatch, trainer, data, flags, more
):
    drive, chosen = tmp_path / "drive", CHOSEN[: 4 - (trainer == "train_tts")]
    asked = (f"{trainer}.py", data, flags, "with a GPU", drive)
    assert colab.choose_batch(*asked) == chosen
    importlib.import_module(trainer).parse_args([*data, *flags, *chosen])
    (kept,) = drive.glob("runs/benchmarks/tesla-t4-*/*")
    words = json.loads(kept.read_text())["words"]
    assert words[words.index("--") + 1 :] == [*data, *flags]
    assert benchmark.read_job(benchmark.parse_args(words)).script == f"{trainer}.py"
    shutil.rmtree("runs")
    Path("benchmark.py").unlink()  # measured again, this would fail
    assert colab.choose_batch(*asked) == chosen
    for other in ({"flags": [*flags, *more]}, {"gpu": "NVIDIA L4"}):
        monkeypatch.setenv("GPU", other.get("gpu", "Tesla T4"))
        with pytest.raises(SystemExit, match="benchmark.py ended with exit code 2"):
            colab.choose_batch(asked[0], data, other.get("flags", flags), *asked[3:])


@needs_venv
def test_without_a_gpu_or_unasked_the_batch_stays_that_of_the_flags(measuring, capsys):
    assert colab.choose_batch("train_lora.py", [], [], "never", None) == []
    measuring.write_text("#!/bin/sh\nexit 9\n")  # as without a driver
    assert colab.choose_batch("train_lora.py", [], [], "with a GPU", None) == []
    assert capsys.readouterr().out.count("batch: not measured") == 2 and not Path("runs").exists()
    assert colab.choose_batch("train_lora.py", [], [], "always", None) == CHOSEN
    assert len(list(Path("runs/benchmarks").glob("cpu-*/benchmark.json"))) == 1


@pytest.mark.parametrize(
    ("trainer", "own"),
    [
        (train_lora, []),
        (train_lora, ["--train_batch_size", "8"]),
        (train_lora, ["--config", "configs/demo_lora.yaml"]),
        (train_tts, []),
        (train_tts, ["--config", "configs/voice_pt_br.yaml"]),
    ],
)
def test_the_chosen_batch_resumes_a_run_that_began_with_another(trainer, own):
    """What is compared of two runs is the effective batch, which benchmark.py only divides."""
    before = trainer.parse_args(own)
    effective = plan_of(before).effective
    again = trainer.parse_args([*own, "--train_batch_size=1", f"--gradient_accumulation_steps={effective}"])
    assert plan_of(again).effective == effective and plan_of(again).micro == 1 != plan_of(before).micro
    old, new = (vars(args) | {"effective_batch_size": effective} for args in (before, again))
    assert training_changes(old, new, free_to_change(again)) == []


def plan_of(args):
    return plan_batch(args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size, 1)


def test_a_run_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    (tmp_path / "runs/shoes").mkdir(parents=True)
    (tmp_path / "runs/shoes/config.yaml").touch()
    assert colab.find_run(tmp_path, "shoes") == tmp_path / "runs/shoes"
    with pytest.raises(SystemExit, match="run_name: no run in .*/shoe; there are: shoes"):
        colab.find_run(tmp_path, "shoe")
    with pytest.raises(SystemExit, match="run_name: ../x; give letters"):
        colab.name_folders("../x")


# Run all


def run_all(path: Path, **fields: Any) -> dict[str, str]:
    """Run a notebook in a kernel, in the present folder; {title: what its cell printed}."""
    book = nbformat.read(path, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    for cell, source in zip(cells, read_code(path, **fields)):
        cell.source = source
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
    texts = ["".join(one.get("text", "") for one in cell.outputs) for cell in cells]
    return dict(zip((cell.source.splitlines()[0].partition(". ")[2] for cell in cells), texts))


def kill_once_kept(run: Path, trainer: str, *names: str) -> None:
    """Kill the trainer, as when its machine goes, once a checkpoint of the run and files of these names are kept."""
    while not all(list(run.glob(name)) for name in ("checkpoint-*/MANIFEST.json", *names)):
        time.sleep(0.1)
    for process in psutil.Process().children(recursive=True):
        if trainer in process.cmdline():
            process.kill()


@needs_venv
@pytest.mark.very_slow
def test_run_all_again_elsewhere_resumes_and_the_monitor_follows(checkout, tmp_path, monkeypatch):
    drive, run = tmp_path / "drive", tmp_path / "drive/runs/demo_lora"
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # where tensorboard is
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    short = "--config configs/demo_lora.yaml --lr_scheduler constant --checkpointing_steps 5 --validation_steps 50"
    short += " --num_validation_samples 8 --num_validation_images 2 --logging_steps 1 --max_train_steps"
    fields = {"keep_in": str(drive), "num_images": 8}

    write_catalogue(Path("data/drawn"), 60, (128, 128), 0, ["Casual Shoes"], damage=False)
    threading.Thread(target=kill_once_kept, args=[run, "train_lora.py"], daemon=True).start()
    with pytest.raises(CellExecutionError, match="train_lora.py ended with exit code -9"):
        run_all(TRAIN, **fields, train_flags=f"{short} 2000")
    shown = run_all(MONITOR, **fields)[NEWEST]
    assert re.search(r"^last step +2,000$", shown, re.M) and re.search(r"^time left +\d", shown, re.M), shown

    shutil.rmtree("runs")  # the machine is gone, and with it its lease, minutes later
    shutil.rmtree("data")
    os.utime(run / ".lease.json", (time.time() - 600,) * 2)
    write_catalogue(Path("data/drawn"), 60, (128, 128), 0, ["Casual Shoes"], damage=False)
    kept = max(int(path.parent.name.partition("-")[2]) for path in run.glob("checkpoint-*/MANIFEST.json"))
    told = run_all(TRAIN, **fields, train_flags=f"{short} {kept + 5}")
    assert f"resuming from runs/demo_lora/checkpoint-{kept}\n" in told["Train"]
    assert "8 images made" in told["Generate"] and "report.html" in told["Evaluate"]
    results = "runs/demo_lora/pytorch_lora_weights.safetensors", "data/generated/demo_lora/images/000007.png"
    assert all((drive / name).is_file() for name in results)
    names = zipfile.ZipFile("runs/demo_lora.zip").namelist()
    assert {"runs/demo_lora/README.md", "runs/demo_lora_evaluation/report.html"} <= set(names)
    told = run_all(MONITOR, **fields, evaluate=True, evaluate_flags="--encoders demo --real data/demo_lora/test")
    assert re.search(rf"^steps +{kept + 5}$", told[NEWEST], re.M) and "time left" not in told[NEWEST]
    assert len(list(drive.glob("runs/demo_lora_*_evaluation/report.html"))) == 1


@needs_venv
@pytest.mark.very_slow
def test_run_all_of_the_voices_notebook_again_elsewhere_resumes_and_the_monitor_follows(
    checkout, tmp_path, monkeypatch
):
    drive, run = tmp_path / "drive", tmp_path / "drive/runs/demo_voice"
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # where tensorboard is
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    short = "--effective_batch_size 4 --learning_rate 1e-5 --checkpointing_steps 5 --validation_steps 5"
    short += " --num_validation_samples 4 --num_validation_sounds 2 --logging_steps 1 --max_train_steps"
    fields = {"keep_in": str(drive)}
    fields["evaluate_flags"] = "--asr demo --speaker_encoder demo --max_sentences 6 --num_workers 1"

    heard = "validation/step-*_1.wav", "validation/step-*_1_real.wav"
    threading.Thread(target=kill_once_kept, args=[run, "train_tts.py", *heard], daemon=True).start()
    with pytest.raises(CellExecutionError, match="train_tts.py ended with exit code -9"):
        run_all(VOICE, **fields, train_flags=f"{short} 2000")
    shown = run_all(MONITOR, keep_in=str(drive), run_name="demo_voice")[NEWEST]
    assert re.search(r"^last step +2,000$", shown, re.M) and re.search(r"step-\d+_1.wav.*_1_real.wav", shown, re.S), (
        shown
    )

    shutil.rmtree("runs")  # the machine is gone, and with it its lease, minutes later
    shutil.rmtree("data")
    os.utime(run / ".lease.json", (time.time() - 600,) * 2)
    kept = max(int(path.parent.name.partition("-")[2]) for path in run.glob("checkpoint-*/MANIFEST.json"))
    told = run_all(VOICE, **fields, train_flags=f"{short} {kept + 5}")
    assert told["Data"].startswith("data: data/demo_voice, from ")
    assert f"resuming from runs/demo_voice/checkpoint-{kept}\n" in told["Train"]
    assert f"step-{kept + 5:06d}_2.wav" in told["Figures, loss curve, validation"]
    assert "Bom dia! Como posso ajudar?" in told["Listen"].splitlines() and "report.html" in told["Evaluate"]
    results = "runs/demo_voice/model.safetensors", "runs/demo_voice_evaluation/report.html"
    assert all((drive / name).is_file() for name in (*results, "data/spoken/demo_voice/audio/000001.wav"))
    names = zipfile.ZipFile("runs/demo_voice.zip").namelist()
    assert {*results, "data/spoken/demo_voice/audio/000001.wav"} <= set(names)
