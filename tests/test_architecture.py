"""Who may import whom, and how long the lists of parameters may be: read from the source of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {"utils": set(), "families": {"utils"}}
BELOW |= dict.fromkeys(
    ("preparation", "training", "generation", "evaluation", "benchmarking", "speech", "service"), {"utils", "families"}
)
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


def module_imports(path: Path) -> set[str]:
    """The modules of ours that a file imports by name, also as `from package import module`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & NAMES.keys()


NAMES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
PRODUCT = [*MODULES, *ROOT.glob("*.py")]


def find_cycles(graph: dict[str, set[str]]) -> list[str]:
    """The modules that import each other in a circle."""
    left = {name: needs - {name} for name, needs in graph.items()}
    while True:
        needed = set().union(*left.values())
        outside = {name for name, needs in left.items() if not needs & left.keys() or name not in needed}
        if not outside:
            return sorted(left)
        left = {name: needs - outside for name, needs in left.items() if name not in outside}


def test_no_module_imports_itself_through_others():
    assert find_cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c"]
    assert find_cycles({name: module_imports(path) for name, path in NAMES.items()}) == []


def test_utils_stays_small():
    """What only one package uses belongs into that package."""
    names = sorted(path.stem for path in (ROOT / "utils").glob("*.py") if path.stem != "__init__")
    assert len(names) <= 20, names


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> int:
    given = node.args
    return len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)


def test_formatting_is_nowhere_switched_off():
    files = [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    assert [path.name for path in files if "# fmt: " + "skip" in path.read_text("utf-8")] == []


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_have_few_parameters_with_named_types(path):
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))]
    assert [f"line {node.lineno}" for node in functions if parameters(node) > 8] == []
    assert [f"line {node.lineno}" for node in annotations(tree) if is_bare_callable(node)] == []


def annotations(tree: ast.Module) -> list[ast.expr]:
    """Every annotation of a parameter, a return value or a variable."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return [one for one in found if one is not None]


def is_bare_callable(annotation: ast.expr) -> bool:
    """Whether `Callable` stands in an annotation without the types of what it takes and returns."""
    nodes = list(ast.walk(annotation))
    typed = [node.value for node in nodes if isinstance(node, ast.Subscript)]
    return any(isinstance(node, ast.Name) and node.id == "Callable" and node not in typed for node in nodes)


def test_a_bare_callable_is_recognised():
    def found(text: str) -> bool:
        return is_bare_callable(ast.parse(f"x: {text}").body[0].annotation)

    assert found("Callable") and found("dict[str, Callable]") and found("Callable | None")
    assert not found("Callable[[int], str]") and not found("list[Callable[..., None]]") and not found("int")
