"""Text from jinja2 templates: every value in HTML is escaped; the filter `cell` escapes one of a Markdown table."""

from pathlib import Path

import jinja2

from utils.cli import counted


def make_environment(folder: Path) -> jinja2.Environment:
    """The templates of a folder; a name that a template uses and that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": escape_cell, "counted": counted}
    return environment


def escape_cell(value: object) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
