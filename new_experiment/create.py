"""Make a folder for an experiment of one's own: a package with its command, a data loader, a recipe, pinned packages.

    python3 new_experiment/create.py --name my_shoes
    python3 new_experiment/create.py --name "My Shoes 2" --output_dir ../shoes

`make experiment NAME=my_shoes` does the same. Nothing is installed: README.md in the folder has the next steps.
"""

import argparse
import importlib.util
import keyword
import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli
from utils.outputs import replaced_folder
from utils.wording import make_environment

TEMPLATE = Path(__file__).parent / "template"
PINNED = ROOT / "requirements-training.txt"  # tested, so nothing has to be resolved
FOLDERS = {"configs", "data", "mlruns", "repository", "runs"}  # of an experiment, beside its package


def package_name(text: str) -> str:
    """`My Shoes-2` as the Python package `my_shoes_2`; refuses what can't be one, and a name that is taken."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 ._-]{0,49}", text):
        what = "expected a letter, then letters of English, digits, blanks, . _ or -, at most 50, such as my_shoes"
        raise argparse.ArgumentTypeError(f"{text[:60]}: {what}")
    name = re.sub(r"[ ._-]+", "_", text.lower()).strip("_")
    if is_taken(name):
        raise argparse.ArgumentTypeError(
            f"{text}: expected a new name; `{name}` is a folder, module, package or command already; take my_{name}"
        )
    return name


def is_taken(name: str) -> bool:
    """Whether Python, this environment, the pinned packages or the shell have something else of that name."""
    pinned = re.findall(r"^([\w.-]+)==", PINNED.read_text("utf-8"), re.MULTILINE)
    if keyword.iskeyword(name) or name in FOLDERS | sys.stdlib_module_names or command_name(name) in pinned:
        return True
    module = importlib.util.find_spec(name)
    return bool(module and module.origin) or shutil.which(command_name(name)) is not None  # no origin: any folder


def command_name(package: str) -> str:
    return package.replace("_", "-")


def render_files(package: str) -> dict[str, str]:
    """{path in the experiment's folder: text} of all its files: the template's, and the repository's .env.example."""
    environment = make_environment(TEMPLATE)
    values = {
        "package": package,
        "command": command_name(package),
        "python": "{}.{}".format(*sys.version_info),
        "pinned": re.sub(r"^(#.*\n)+", "", PINNED.read_text("utf-8")).strip(),
    }
    files = {name: environment.get_template(name).render(values) for name in environment.list_templates()}
    files = {name.removesuffix(".j2").replace("package/", f"{package}/"): text for name, text in files.items()}
    return files | {".env.example": (ROOT / ".env.example").read_text("utf-8")}


def write_experiment(folder: Path, files: dict[str, str]) -> None:
    """Write the files, and `repository`, a link to this repository that is relative to the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".sh":
            path.chmod(0o755)
    (folder / "repository").symlink_to(os.path.relpath(ROOT, folder.resolve()), target_is_directory=True)


def main(args: argparse.Namespace) -> None:
    folder, files = args.output_dir or Path("experiments", args.name), render_files(args.name)
    if os.path.lexists(folder):
        raise cli.UserError(
            f"--output_dir {folder}: exists, and is left as it is; give another --name or --output_dir "
            "(of `make experiment`: NAME or DIR)"
        )
    if args.dry_run:
        print("\n".join(str(folder / name) for name in sorted([*files, "repository"])))
        return
    with replaced_folder(folder) as new:
        write_experiment(new, files)
    command = command_name(args.name)
    print(f"{folder}: the package `{args.name}` with the command `{command}`; next: cd {folder}, and see README.md")


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--name", type=package_name, required=True, help="of the experiment; made into that of a Python package"
    )
    parser.add_argument("--output_dir", type=Path, help="a new folder (default: experiments/NAME)")
    return parser


if __name__ == "__main__":
    cli.run(main, cli.parse_args(make_parser()))
