"""Flags about reports, which report_run.py and the trainers share."""

import argparse

from service.language import LANGUAGES
from utils.cli import zero_or_more


def add_language_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--lang", choices=LANGUAGES, help="of the report; default: by the environment's locale (LANG)")


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report in words")
    group.add_argument(
        "--report_every", type=zero_or_more, default=0, metavar="STEPS", help="between reports, in report.md; 0: none"
    )
    add_language_flag(group)
