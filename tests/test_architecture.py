"""Who may import whom, read from the import statements of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {"utils": set(), "families": {"utils"}}
BELOW |= dict.fromkeys(("preparation", "training", "generation", "evaluation"), {"utils", "families"})
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
MODULES = [path for package in BELOW for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """The top-level names of all that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_package_imports_only_what_lies_below_it(path):
    package = path.relative_to(ROOT).parts[0]
    ours = imported(path) & (BELOW.keys() | SCRIPTS | {"demo", "tests"})
    assert ours <= BELOW[package] | {package}


def test_every_module_is_imported_somewhere():
    """Also through `from package import module`."""
    used = set()
    for path in [*MODULES, *ROOT.glob("*.py"), *(ROOT / "demo").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                used |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES if path.stem != "__init__"}
    assert names <= used
