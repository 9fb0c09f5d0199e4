"""The folder of an evaluation: what in it a script may replace, and its lock."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from evaluation.report.evaluation_page import read_evaluation
from utils.cli import UserError
from utils.files import lock_folder, read_written
from utils.outputs import check_writable, claim_folder, remove_stale, set_aside

logger = logging.getLogger(__name__)
RESULTS = ("metrics.json", "report.html")


def foreign_results(out: Path, names: Sequence[str], script: str) -> list[Path]:
    """Those of the files that the script did not write; an earlier evaluate.py noted nothing of what it wrote."""
    own = read_written(out, script)
    if not own and script == "evaluate" and (out / "metrics.json").is_file():
        with contextlib.suppress(UserError):
            own = set(RESULTS) if read_evaluation(out) else own
    return [out / name for name in names if (out / name).exists() and name not in own]


def check_results(out: Path, names: Sequence[str], overwrite: bool, script: str = "evaluate") -> None:
    """Refuse a folder that can't be written, or in which other programs' files have the names of the results."""
    check_writable(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--output_dir {out}: is a file; give a folder")
    if not overwrite and (foreign := foreign_results(out, names, script)):
        aside = f"{foreign[0].name}.replaced-<date>"
        raise UserError(
            f"--output_dir {out}: {foreign[0].name} was not written by {script}.py; give another folder, or add "
            f"--overwrite, which moves it to {aside}"
        )


def open_results(out: Path, names: Sequence[str], script: str = "evaluate") -> int:
    """The lock of the folder (see `lock_folder`); other programs' files of these names are moved aside."""
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out)
    for path in foreign_results(out, names, script):
        logger.warning("%s was not written by %s.py and is now %s", path, script, set_aside(path))
    remove_stale(out)
    claim_folder(out, script)
    return lock
