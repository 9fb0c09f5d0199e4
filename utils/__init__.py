"""What two or more packages or scripts share.

Importing it, which each script does first, is enough for one line in place of a traceback where a package is missing,
and for the secrets of .env: libraries read some variables when they are imported.
"""

from __future__ import annotations  # so that an older Python can start check_environment.py

import logging
import os
import sys
from pathlib import Path
from types import TracebackType


def _explain_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    name = (getattr(error, "name", None) or "").partition(".")[0]
    ours = (Path(__file__).parent.parent / name).exists()  # a module of ours that is gone is no package to install
    if not issubclass(kind, ModuleNotFoundError) or not name or ours or "--debug" in sys.argv:
        sys.__excepthook__(kind, error, trace)
        return
    script = os.path.basename(sys.argv[0])
    repair = "activate .venv (`. .venv/bin/activate`), or run check_environment.py"
    print(f"{script}: error: {sys.executable} has no package `{name}`; {repair}", file=sys.stderr)


def _read_env_files() -> None:
    """Read .env of the current folder, then of the repository, if one of its scripts was started."""
    from utils import cli

    root = Path(__file__).resolve().parent.parent
    started = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
    if started.parent not in (root, root / "demo"):
        return
    try:
        for path in cli.ENV_FILES:
            cli.read_env_file(path)
    except cli.UserError as error:
        cli.report_fault(f"{started.name}: error: {error}")
        sys.exit(2)


def _quiet_bitsandbytes() -> None:
    """Without its line, as it is imported, that it lacks a package which only inference on a CPU has a use for."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


_quiet_bitsandbytes()
sys.excepthook = _explain_missing
_read_env_files()
