"""The folder of an experiment of one's own: made, refused, installed, and its command run."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from PIL import Image

from new_experiment.create import main, make_parser, package_name
from tests.check_install import check_experiment
from utils import cli
from utils.dataset import write_tables

ROOT = Path(__file__).resolve().parent.parent


def make(folder: Path, name: str = "My Shoes-2") -> Path:
    main(cli.parse_args(make_parser(), ["--name", name, "--output_dir", str(folder)]))
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return make(tmp_path_factory.mktemp("experiments") / "shoes")


def run(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_the_experiment_is_a_package_with_a_pinned_python_and_its_own_command(experiment):
    project = tomllib.loads((experiment / "pyproject.toml").read_text())["project"]
    assert project["name"] == "my-shoes-2" and project["scripts"] == {"my-shoes-2": "my_shoes_2.__main__:main"}
    minor = "{}.{}".format(*sys.version_info)
    assert project["requires-python"] == f"=={minor}.*" and (experiment / ".python-version").read_text() == f"{minor}\n"
    files = {path.relative_to(experiment).as_posix() for path in experiment.glob("[!.r]*/*")}
    assert files == {f"my_shoes_2/{name}.py" for name in ("__init__", "__main__", "data")} | {"configs/train_lora.yaml"}
    assert (experiment / ".env.example").read_bytes() == (ROOT / ".env.example").read_bytes()
    assert re.findall(r"\{\{|\{%", "".join(path.read_text() for path in experiment.iterdir() if path.is_file())) == []
    checked = run(experiment, sys.executable, "-m", "ruff", "check", "--select", "E,F,I,B", "--line-length", 120, ".")
    assert checked.returncode == 0, checked.stdout


def test_its_packages_are_those_that_the_repository_has_pinned(experiment):
    def pins(path: Path) -> list[str]:
        return re.findall(r"^\w.*==.*", path.read_text(), re.MULTILINE)

    assert pins(experiment / "requirements.txt") == pins(ROOT / "requirements-training.txt")
    source = re.findall("^-r (.+)", (experiment / "requirements.in").read_text(), re.MULTILINE)
    assert [(experiment / name).resolve() for name in source] == [ROOT / "requirements-training.txt"]


def test_its_recipe_is_one_of_train_lora(experiment):
    import train_lora

    args = train_lora.parse_args(["--config", str(experiment / "configs/train_lora.yaml")])
    assert (str(args.train_data_dir), str(args.output_dir)) == ("data/my_shoes_2", "runs/my_shoes_2")


@pytest.mark.parametrize(
    ("given", "package"), [("my_shoes", "my_shoes"), ("My Shoes-2", "my_shoes_2"), ("a.b--c_", "a_b_c")]
)
def test_a_name_is_made_into_that_of_a_package(given, package):
    assert package_name(given) == package


@pytest.mark.parametrize(
    "name",
    ["", "2shoes", "_", "schön", "a/b", "../x", "x\n", "x" * 51, "class", "test", "torch", "Pillow", "ls", "data"],
)
def test_a_name_that_is_none_or_is_taken_is_refused(name):
    with pytest.raises(ArgumentTypeError, match="expected a"):
        package_name(name)


def test_an_existing_folder_is_never_written_to(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run(tmp_path, sys.executable, ROOT / "new_experiment/create.py", "--name", "my_shoes", "--output_dir", ".")
    assert done.returncode == 1 and re.fullmatch(r"create.py: error: --output_dir \.: exists.* DIR\)\n", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_make_experiment_passes_name_and_folder_on(tmp_path):
    done = run(ROOT, "make", "experiment", "NAME=My Shoes", f"DIR={tmp_path}/a b")
    assert done.returncode == 0 and (tmp_path / "a b/my_shoes").is_dir(), done.stderr
    link = tmp_path / "a b/repository"
    assert link.resolve() == ROOT and not os.path.isabs(os.readlink(link))
    assert "make experiment NAME=my_shoes" in run(ROOT, "make", "experiment").stderr


def test_git_keeps_data_runs_and_secrets_out_and_sends_weights_and_images_to_lfs(experiment):
    run(experiment, "git", "init", "-q")
    ignored = ["data/x/train/images/1.png", "runs/x/config.yaml", ".env", ".venv/bin/python", "wandb/run"]
    kept = ["configs/train_lora.yaml", "my_shoes_2/data.py", "requirements.txt", ".python-version", "repository"]
    assert run(experiment, "git", "check-ignore", *ignored, *kept).stdout.split() == ignored
    large = ["runs/x/checkpoint-500/adapter.safetensors", "runs/x/best/state.pt", "data/x/train/images/1.png"]
    large += ["data/x.parquet", "data/x.tar", "photos/me.jpg"]
    words = run(experiment, "git", "check-attr", "filter", "--", *large, *kept).stdout.split("\n")
    assert [line.rpartition(": ")[2] for line in words if line] == ["lfs"] * len(large) + ["unspecified"] * len(kept)


@pytest.fixture
def repository(tmp_path):
    """A folder in the repository's place, whose train_lora.py prints what it was started with."""
    (tmp_path / "train_lora.py").write_text("import os, sys; print(os.getcwd(), *sys.argv[1:]); sys.exit(7)")
    shutil.copy(tmp_path / "train_lora.py", tmp_path / "generate.py")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ("train_lora --rank 4", "--config configs/train_lora.yaml "),
        ("train_lora.py", "--config configs/train_lora.yaml "),
        ("train_lora --config=mine.yaml", ""),
        ("generate --seed 1", ""),
    ],
)
def test_the_command_runs_a_script_with_its_recipe_and_keeps_its_exit_code(experiment, repository, words, added):
    script, *given = words.split()
    done = run(experiment, sys.executable, "-m", "my_shoes_2", script, *given, FINETUNING_SCRIPTS=str(repository))
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == f"{experiment} {added}{' '.join(given)}".strip()


def test_the_command_finds_the_repository_by_its_link_and_says_what_to_do_when_it_was_moved(experiment, tmp_path):
    command = (sys.executable, "-m", "my_shoes_2")
    assert "--data_dir" in run(experiment, *command, "check_environment", "--help", FINETUNING_SCRIPTS="").stdout
    assert "my-shoes-2 train_lora" in run(experiment, *command, "--help").stdout
    unknown = run(experiment, *command, "train_it")
    assert unknown.returncode == 1 and re.fullmatch("my-shoes-2: error: train_it: .* train_lora.*\n", unknown.stderr)
    moved = shutil.copytree(experiment, tmp_path / "a/b/c", symlinks=True)
    done = run(moved, *command, "train_lora")
    assert done.returncode == 1 and re.fullmatch("my-shoes-2: error: .*ln -sfn .*\n", done.stderr), done.stderr


def test_the_data_loader_reads_a_prepared_dataset(experiment, tmp_path, monkeypatch):
    (tmp_path / "val/images").mkdir(parents=True)
    rows = [{"file_name": f"images/{i}.png", "text": f"shoe {i}", "id": str(i)} for i in range(5)]
    for i, row in enumerate(rows):
        Image.new("RGB", (24, 16), (255, 0, i)).save(tmp_path / "val" / row["file_name"])
    write_tables(tmp_path / "val", rows)
    monkeypatch.syspath_prepend(experiment)
    images = importlib.import_module("my_shoes_2.data").PreparedImages(tmp_path, "val")
    one = images[4]
    assert len(images) == 5 and one["text"] == "shoe 4" and one["pixel_values"].shape == (3, 16, 24)
    assert one["pixel_values"].amax((1, 2)).tolist() == pytest.approx([1, -1, 4 / 127.5 - 1])


def test_its_image_is_built_from_the_repository_with_its_own_tag(experiment, tmp_path):
    (tmp_path / "docker").write_text('#!/usr/bin/env bash\npwd -P; printf "%s\\n" "$@"')
    (tmp_path / "docker").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for given, tag in (((), "my-shoes-2:latest"), (("me/x:v2", "--push"), "me/x:v2")):
        folder, *words = run(tmp_path, experiment / "build_image.sh", *given, PATH=path).stdout.splitlines()
        assert folder == str(ROOT) and words[:5] == ["build", "--file", "cloud/Dockerfile", "--tag", tag]
        assert words[7:] == [*given[1:], "."]
    if shutil.which("shellcheck"):
        assert run(experiment, "shellcheck", "build_image.sh").returncode == 0


@pytest.mark.very_slow
def test_the_installed_command_trains_on_the_demo(tmp_path, monkeypatch):
    """Beside the packages that this environment has; `make check-install` does it beside those that it installs."""
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", "venv")
    site = next(tmp_path.glob("venv/lib/python*/site-packages"))
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    monkeypatch.setenv("UV_NO_BUILD_ISOLATION", "1")  # with the setuptools that is there, and so without a network
    check_experiment(tmp_path / "venv/bin/python", tmp_path / "experiment")
    assert (tmp_path / "experiment/runs/demo/pytorch_lora_weights.safetensors").is_file()
