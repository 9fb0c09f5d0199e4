"""What people read on serve.py's pages and in report_run.py's reports, in English or Brazilian Portuguese."""

import functools
import os
import re
import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.metrics_log import duration

LANGUAGES = ("en", "pt")
CATALOGUE = Path(__file__).parent / "texts.toml"
SEPARATORS = str.maketrans(",.", ".,")  # of thousands and of decimals


def choose_language(asked: str | None = None, accepted: str = "") -> str:
    """The language that is asked for, or the first known one of a browser (Accept-Language), or the environment's."""
    names = [asked or "", *_by_preference(accepted)]
    names += [os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG")]  # their order, as POSIX has it
    known = (re.split("[-_.@]", name.lower())[0] for name in names)
    return next((name for name in known if name in LANGUAGES), LANGUAGES[0])


def _by_preference(accepted: str) -> list[str]:
    """The names of `pt-BR,pt;q=0.9,en;q=0.8`, the most wanted first."""
    found = re.findall(r"([A-Za-z][\w-]*)\s*(?:;\s*q=([01](?:\.\d{1,3})?))?\s*(?:,|$)", accepted[:1000])
    return [name for name, weight in sorted(found, key=lambda one: -float(one[1] or 1))]


@functools.cache
def read_texts() -> dict[str, dict[str, str]]:
    """{key: {language: text}}; a key is that of its section, a dot, and its own."""
    sections = tomllib.loads(CATALOGUE.read_text("utf-8"))
    return {f"{section}.{key}": text for section, texts in sections.items() for key, text in texts.items()}


def translate(language: str, key: str, **values: Any) -> str:
    """The text of a key with its {values}; numbers are written as the language writes them.

    `{loss:.3g}` has a number's format, `{left:time}` is a duration, `{rate:rate}` a learning rate, and
    `{n:,} {n:image|images}` a word of one and of several.
    """
    return _Formatter(language).vformat(read_texts()[key][language], (), values)


def write_number(language: str, value: float, spec: str = ",") -> str:
    """A number by its format, `1,234.5` or `1.234,5`."""
    return write_separators(language, format(value, spec))


def write_separators(language: str, number: str) -> str:
    return number.translate(SEPARATORS) if language == "pt" else number


def write_rate(value: float) -> str:
    """A learning rate as people give it: 1e-3, 2.5e-5; from 0.01 on as it is."""
    if value >= 0.01 or not value:
        return f"{value:.2g}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


class _Formatter(string.Formatter):
    def __init__(self, language: str):
        self.language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        if "|" in format_spec:
            one, several = format_spec.split("|")
            return one if value == 1 else several
        if format_spec == "time":
            return write_separators(self.language, duration(value))
        if format_spec == "rate":
            return write_separators(self.language, write_rate(value))
        if isinstance(value, (int, float)):
            return write_number(self.language, value, format_spec)
        return format(value, format_spec)

    def check_unused_args(self, used_args: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """A text need not say all that a rule has found."""
