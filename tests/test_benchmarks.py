"""Benchmarks are run by hand, seldom: what they import from the scripts must still be there."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = [
    path for path in sorted(Path(__file__).with_name("benchmarks").glob("*.py")) if "__main__" in path.read_text()
]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_starts_and_says_what_it_takes(path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", sys.path.copy())  # each adds the repository to it
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert not ended.value.code and f"python tests/benchmarks/{path.name}" in capsys.readouterr().out
