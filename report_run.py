"""Write a report on a training run in words: what happened, what is odd, and what to try.

By rules alone and offline, from what the run's folder holds; with --llm_models also by a language model behind any
OpenAI-compatible endpoint, which gets the rules' findings and numbers alone, and whose numbers are checked.

    python3 report_run.py --run runs/casual_shoes
    python3 report_run.py --run runs/voice --lang pt
    python3 report_run.py --run runs/casual_shoes --llm_base_url http://127.0.0.1:11434/v1 --llm_models qwen3:8b
"""

import argparse
import os
import re
from argparse import BooleanOptionalAction as OnOff
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from utils import cli  # first: it says in one line which package is missing

# isort: split
from service.language import choose_language
from service.report.findings import Finding
from service.report.flags import add_language_flag
from service.report.llm import HERE, Answer, Budget, Endpoint, Failure, ask_models, with_answer, write_question
from service.report.run_record import RunRecord, read_run
from service.report.writing import find_all, make_report
from utils.cli import Range, UserError
from utils.files import read_object

KEY = "LLM_API_KEY"
OF_A_MODEL = ("base_url", "max_tokens", "max_calls", "timeout", "images")  # flags, after --llm_


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("report")
    group.add_argument("--run", type=Path, required=True, metavar="DIR", help="the folder of a run, finished or not")
    add_language_flag(group)
    group.add_argument(
        "--benchmark", type=Path, metavar="DIR", help="of benchmark.py, to compare the speed with what it measured"
    )

    group = parser.add_argument_group("language model")
    group.add_argument(
        "--llm_models", nargs="+", default=[], metavar="NAME", help="tried in turn until one answers; default: none"
    )
    group.add_argument(
        "--llm_base_url",
        default="https://openrouter.ai/api/v1",
        metavar="URL",
        help=f"of any OpenAI-compatible endpoint; the key is taken from {KEY}",
    )
    group.add_argument(
        "--llm_max_tokens", type=Range(500, 1_000_000, int), default=20_000, help="for all questions and answers"
    )
    group.add_argument("--llm_max_calls", type=Range(1, 100, int), default=6, help="requests, repeated ones included")
    group.add_argument(
        "--llm_timeout", type=Range(1, 600), default=60.0, metavar="SECONDS", help="of one request, its answer included"
    )
    group.add_argument("--llm_images", action=OnOff, default=False, help="show it the newest validation image too")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    asks = {f"llm_{name}": ("--llm_models", bool(args.llm_models)) for name in OF_A_MODEL}
    cli.report_ignored(parser, args, asks)
    return args


def read_endpoint(args: argparse.Namespace) -> Endpoint:
    """Where to ask; refuses an address that is none, and to send a key to another machine without TLS.

    That OpenRouter's key is missing is a Failure: the report by rules needs none.
    """
    given, key = args.llm_base_url, os.environ.get(KEY, "").strip()
    try:
        place = urlsplit(given)
        is_whole = place.port != 0 and not re.search(r"\s", given)  # reading the port checks it
    except ValueError:
        is_whole = False
    if not is_whole or place.scheme not in ("http", "https") or not place.hostname or place.query or place.username:
        raise UserError(f"--llm_base_url {given}: expected http(s)://host/path, such as https://openrouter.ai/api/v1")
    if place.hostname == "openrouter.ai" and not key:
        raise Failure("reason.no_key")
    if key and place.scheme == "http" and place.hostname not in HERE:
        raise UserError(f"--llm_base_url {given}: would send {KEY} unencrypted; give https://, or unset it")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY}: has characters that no key has; copy it again")
    return Endpoint(given.rstrip("/"), args.llm_models, key or None, args.llm_timeout)


def find_image(run: RunRecord) -> Path:
    images = sorted(run.folder.glob("validation/step-*.png"))
    if not images:
        raise UserError(f"--llm_images: {run.folder} has no validation image; leave it out")
    return images[-1]


def ask(args: argparse.Namespace, run: RunRecord, findings: list[Finding], language: str) -> Answer | Failure:
    """What a model answers, or why none did."""
    image = find_image(run) if args.llm_images else None
    budget = Budget(args.llm_max_tokens, args.llm_max_calls)
    try:
        return ask_models(read_endpoint(args), budget, findings, language, image)
    except Failure as failure:
        return failure


def read_benchmark(folder: Path | None) -> dict[str, Any]:
    return read_object(folder / "benchmark.json", "what benchmark.py wrote", "--benchmark") if folder else {}


def main(args: argparse.Namespace) -> int:
    language = choose_language(args.lang)
    run = read_run(args.run)
    findings = find_all(run, read_benchmark(args.benchmark))
    if args.dry_run:
        print(write_question(findings, language))
        return 0
    report = make_report(run, findings, language)
    if args.llm_models:
        report = with_answer(report, ask(args, run, findings, language), language)
    print(report.as_markdown(), end="")
    return 0


if __name__ == "__main__":
    cli.run(main, parse_args())
