"""Promises that the repository as a whole makes."""

import argparse
import ast
import contextlib
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from utils import cli

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("*.py")) + [ROOT / "new_experiment/create.py"]
SCRIPTS += [path for path in sorted((ROOT / "demo").glob("*.py")) if "__main__" in path.read_text("utf-8")]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [ROOT / name for name in subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()]


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_shows_two_runnable_examples_and_every_flag_has_a_text(path):
    done = subprocess.run([sys.executable, path, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "torchvision" not in done.stderr, done.stderr
    name = path.relative_to(ROOT)
    assert len(re.findall(rf"^    python3? {name}", path.read_text(), re.M)) >= 2
    assert f"{name}" in done.stdout and "--config" in done.stdout and "--dry_run" in done.stdout
    for flag in re.findall(r"^  (?:-\w, )?(--\w+)", done.stdout, re.M):  # its text beside it, or indented below
        assert re.search(rf"^  (-\w, )?{flag}\b[^\n]*(  \S|\n {{20,}}\S)", done.stdout, re.M), flag


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_without_the_packages_each_script_says_so_in_one_line(path):
    done = subprocess.run([sys.executable, "-S", path, "--help"], cwd=ROOT, capture_output=True, text=True)
    starts_anyway = done.returncode == 0 and done.stdout
    assert starts_anyway or re.fullmatch(r"\w+\.py: error: .* has no package `\w+`; activate .*\n", done.stderr), done


def test_nothing_needs_torchvision_or_unpickles():
    for path in set(SOURCES) - {Path(__file__)}:
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) (torchvision|torchaudio|pickle)\b", text, re.M), path
        assert "weights_only=False" not in text and "trust_remote_code=True" not in text, path


def test_requirements_are_pinned_and_name_no_index():
    for path in ROOT.glob("requirements-*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.lstrip().startswith("#")]
        assert lines and all(re.match(r"[a-z0-9._-]+==[^ ]+( ; .+)?$", line) for line in lines), path


def test_the_env_example_explains_each_secret_that_the_scripts_and_pages_name_and_git_ignores_the_real_one():
    example = (ROOT / ".env.example").read_text()
    named = re.findall(r"^#(\w+)=", example, re.M)
    assert re.fullmatch(r"(#.*\n|\n)*", example) and len(named) == len({*named})  # copied as it is, it sets nothing
    assert all(block.startswith("# ") for block in example.split("\n\n"))
    pages = "".join(path.read_text() for path in [*SOURCES, *PAGES])
    secret = r"\b(?:HF|WANDB|MLFLOW|COMET|AWS|GOOGLE)_(?:[A-Z]+_)*(?:TOKEN|PASSWORD|KEY|KEY_ID|CREDENTIALS)\b"
    assert {*re.findall(secret, pages)} <= {*named}
    ignored = subprocess.run(["git", "check-ignore", ".env", ".env.example"], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout.split() == [".env"]


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\(.*?\)", "", one)).lower().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_page_and_heading_that_is_linked_exists(page):
    for target, heading in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not heading or heading in anchors_of(linked), f"{page.name} links to {target}#{heading}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_file_that_the_guides_name_exists(page):
    named = re.findall(r"`([\w/]+(?:\.py|\.md|/))`", (ROOT / page).read_text())
    assert len(named) > 20 and [name for name in named if not (ROOT / name).exists()] == []


def test_the_required_python_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    versions = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == versions
    assert "(3, 11) <= v <= (3, 14)" in (ROOT / "Makefile").read_text()
    for page in ("README.md", "docs/setup.md", "docs/check_environment.md", "CONTRIBUTING.md"):
        assert "3.11 to 3.14" in (ROOT / page).read_text(), page
    assert "3.11 a 3.14" in (ROOT / "README.pt-BR.md").read_text("utf-8")


# Each script with the flags that it needs to parse its command line.
NEEDED = {
    "prepare_dataset": "--catalogue c --output_dir o",
    "prepare_speech": "--recordings r --output_dir o",
    "train_lora": "",
    "train_dreambooth": "--instance_data_dir p --instance_prompt x",
    "train_classifier": "--real r --synthetic s --target t",
    "generate": "--prompt x --num_images 1",
    "evaluate": "--real r --generated g --output_dir o",
    "benchmark": "",
    "report_run": "--run r",
    "serve": "--pretrained_model_name_or_path demo",
}
# Read in loops over names, as getattr(args, name). Of the trainers: use_8bit_adam sets --optimizer, and published
# diffusers commands carry set_grads_to_none, for which there is a warning that it is always done, and for Z-Image
# guidance_scale, with a warning that it does nothing.
NOT_BY_ATTRIBUTE = {
    "train_lora": {"use_8bit_adam", "set_grads_to_none", "guidance_scale"},
    "train_dreambooth": {"use_8bit_adam", "set_grads_to_none", "guidance_scale"},
    "generate": {"control_images", "enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling"}
    | {"prompt_plan", "prompts_file", "reject_near_train"},
    "benchmark": {"effective_batch_size", "max_train_steps", "mixed_precision", "resolution"},
    "evaluate": {"generated", "instance_data_dir", "prior_after", "real", "train"},
}


def commands_of(page: str) -> list[tuple[str, list[str]]]:
    """The script and words of each complete command in a page's indented blocks, however it is launched."""
    text = re.sub(r" *\\\n *", " ", page)
    start = r"(?:caffeinate -i )?(?:python3?|accelerate launch --config_file \S+)"
    lines = re.findall(rf"^    {start} (\w+)\.py\b(.*)", text, re.M)
    return [(script, shlex.split(words, comments=True)) for script, words in lines if "…" not in words]


def test_commands_are_found_in_pages_over_several_lines_and_without_comments():
    found = commands_of((ROOT / "docs/train_dreambooth.md").read_text())
    assert ("train_dreambooth", ["--config", "configs/sdxl_full.yaml"]) in found  # by accelerate launch
    assert any("--class_data_dir" in words and "--class_prompt" in words for _, words in found)
    assert ("train_lora", ["--max_train_steps", "3000"]) in commands_of((ROOT / "docs/train_lora.md").read_text())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_in_the_docs_is_read_by_its_script(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for script, words in commands_of(path.read_text()):
        if "recipe.yaml" not in words:  # which is the reader's own
            importlib.import_module(script).parse_args(words)


def names_read(source: str) -> set[str]:
    """The flags that some code reads, as args.name or getattr(args, "name"), other than to define or check them."""
    found = set()
    tree = ast.parse(source)
    for part in tree.body:
        if isinstance(part, ast.FunctionDef) and part.name.startswith(("add_", "check_", "parse_args")):
            continue
        for node in ast.walk(part):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found |= {node.attr} if getattr(node.value, "id", "") == "args" else set()
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                found |= {node.args[1].value} if isinstance(node.args[1], ast.Constant) else set()
    return found


@pytest.mark.parametrize("script", NEEDED)
def test_no_flag_is_accepted_and_ignored(script):
    args = importlib.import_module(script).parse_args(NEEDED[script].split())
    files = [ROOT / f"{script}.py", ROOT / "utils/cli.py"]
    if script.startswith("train_"):
        files += [*ROOT.glob("training/*flags.py"), ROOT / "training/setup.py", ROOT / "training/starting.py"]
    read = set().union(*(names_read(path.read_text()) for path in files))
    assert vars(args).keys() - read - {"config"} <= NOT_BY_ATTRIBUTE.get(script, set())


@pytest.mark.parametrize("script", NEEDED)
def test_no_flag_takes_a_number_without_limits(script):
    """Infinite, NaN, or one that only ends in a full memory: each number has a type with two ends."""
    for action in importlib.import_module(script).make_parser()._actions:
        for text in ("inf", "nan", "-inf", "1e30", str(10**30), "-1000000000001") if action.type else ():
            with contextlib.suppress(argparse.ArgumentTypeError):
                assert not isinstance(action.type(text), (int, float)), f"{action.option_strings[0]} {text}"


def test_no_flag_has_a_plain_number_as_its_type():
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != "tests":
            assert not re.search(r"\btype=(int|float)\b", path.read_text()), path


@pytest.mark.parametrize("script", NEEDED)
def test_every_script_accepts_the_settings_that_it_wrote(script, tmp_path):
    """As config.yaml has them, with the checksums and the precision that are recorded there too."""
    parse = importlib.import_module(script).parse_args
    args = parse(NEEDED[script].split())
    written = cli.settings_of(args) | {"precision": "no", "data_sha256": "x"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written))
    again = parse(["--config", str(tmp_path / "config.yaml")])
    assert {**vars(again), "config": None} == vars(args)


def test_a_flag_that_is_only_defined_checked_or_assigned_counts_as_ignored():
    source = """
def add_flags(parser): parser.add_argument("--a")
def check_flags(args): assert args.b > 0
def main(args):
    args.c = 1
    print(args.d, getattr(args, "e"), other.f)
FREE = "g".split()
"""
    assert names_read(source) == {"d", "e"}


def test_no_module_needs_more_than_windows_has_to_be_imported():
    """So that the scripts can refuse native Windows in one line (utils.cli.make_parser)."""
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != "tests":
            top = ast.parse(path.read_text()).body
            modules = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
            modules |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
            assert not modules & {"fcntl", "resource", "pwd", "termios"}, path


def test_files_name_no_path_of_a_machine_and_no_registry():
    """What works only where it was written does not belong into the repository."""
    own = re.compile(r"/(home|Users|root)/\w|https?://[\w.:-]*(pypi|mirror|artifactory|nexus)")
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for path in (ROOT / name for name in names if not name.startswith("tests/")):
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".in", ".yaml", ".yml", ".cff", ""}:
            assert not own.search(path.read_text("utf-8")), path
