"""Write a report on a training run in words: what happened, what is odd, and what to try.

By rules alone, offline, from what the run's folder holds. In Portuguese with --lang pt or by the environment's locale.

    python3 report_run.py --run runs/casual_shoes
    python3 report_run.py --run runs/voice --lang pt
"""

import argparse
from pathlib import Path

from utils import cli  # first: it says in one line which package is missing

# isort: split
from service.language import LANGUAGES, choose_language
from service.report import write_report
from service.run_record import read_run
from utils.cli import counted


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("report")
    group.add_argument("--run", type=Path, required=True, metavar="DIR", help="the folder of a run, finished or not")
    group.add_argument("--lang", choices=LANGUAGES, help="default: by the environment's locale (LANG)")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return cli.parse_args(make_parser(), argv)


def main(args: argparse.Namespace) -> int:
    language = choose_language(args.lang)
    if args.dry_run:
        records = counted(len(read_run(args.run).records), "record")
        print(f"would report in {language} on {records} of {args.run}")
        return 0
    print(write_report(args.run, language))
    return 0


if __name__ == "__main__":
    cli.run(main, parse_args())
