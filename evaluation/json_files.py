"""JSON files that a user names: one clear line where they are missing, damaged or something else."""

import json
from pathlib import Path
from typing import Any

from utils.cli import UserError


def read_object(path: Path, expected: str, flag: str = "") -> dict[str, Any]:
    """The object in a JSON file; the error names the flag, the file and what was `expected`."""
    name = f"{flag} {path}".strip()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; expected {expected}") from None
    except ValueError as error:
        raise UserError(f"{name}: damaged ({error}); expected {expected}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: expected {expected}")
    return value
