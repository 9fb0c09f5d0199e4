"""Promises that the repository as a whole makes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("*.py")) + [
    path for path in sorted((ROOT / "demo").glob("*.py")) if path.stem not in ("shoes", "captions")
]
SOURCES = [ROOT / name for name in subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_shows_two_runnable_examples_and_every_flag_has_a_text(path):
    done = subprocess.run([sys.executable, path, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "torchvision" not in done.stderr, done.stderr
    name = path.relative_to(ROOT)
    assert len(re.findall(rf"^    python3? {name}", path.read_text(), re.M)) >= 2
    assert f"{name}" in done.stdout and "--config" in done.stdout and "--dry_run" in done.stdout
    for flag in re.findall(r"^  (?:-\w, )?(--\w+)", done.stdout, re.M):  # its text beside it, or indented below
        assert re.search(rf"^  (-\w, )?{flag}\b[^\n]*(  \S|\n {{20,}}\S)", done.stdout, re.M), flag


def test_nothing_needs_torchvision_or_unpickles():
    for path in set(SOURCES) - {Path(__file__)}:
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) (torchvision|torchaudio|pickle)\b", text, re.M), path
        assert "weights_only=False" not in text and "trust_remote_code=True" not in text, path


def test_requirements_are_pinned_and_name_no_index():
    for path in ROOT.glob("requirements-*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.lstrip().startswith("#")]
        assert lines and all(re.match(r"[a-z0-9._-]+==[^ ]+( ; .+)?$", line) for line in lines), path


def test_every_page_that_is_linked_exists():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
