"""The flags of evaluate.py, in groups, and which of them go together."""

import argparse
from pathlib import Path

from evaluation import features, subject
from utils import cli
from utils.cli import UserError, positive, seed_number, workers
from utils.parallel import available_cores
from utils.tables import canonical

ALONE = {  # a task that is no evaluation, and the flags that mean something to it
    "compare": ("output_dir",),
    "human_study": ("real", "generated", "seed", "output_dir", "overwrite"),
}
PARTNERS = [  # of an evaluation: a flag, and what it does nothing without
    ("inception", "real"),
    ("inception_sha256", "inception"),
    ("attributes", "real or --identity_reference"),
    ("face_detector", "identity_reference"),
    ("face_embedder", "identity_reference"),
    ("fail_under_targets", "targets"),
]


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images: a split of a prepared dataset, what generate.py made, or any folder")
    group.add_argument("--real", type=Path, metavar="DIR", help="real images that nothing was trained on")
    group.add_argument("--train", type=Path, metavar="DIR", help="what the model was trained on; needed for novelty")
    group.add_argument("--generated", type=Path, metavar="DIR", help="the set to judge")
    subject.add_subject_flags(parser)
    group = parser.add_argument_group("figures")
    group.add_argument(
        "--encoders", nargs="+", type=cli.mapped, default=["clip", "dinov2"], metavar="NAME[=SOURCE]",
        help=f"of {', '.join(features.NAMES)}; a hub id or folder after `=`; `none` for what needs no encoder",
    )  # fmt: skip
    group.add_argument("--inception", metavar="FILE|URL", help="the FID network as TorchScript; adds that encoder")
    group.add_argument("--inception_sha256", default=features.INCEPTION_SHA256, help="what that file must have")
    group.add_argument(
        "--attributes", nargs="+", type=canonical, help="columns to split by and to check (default: article, colour …)"
    )
    group.add_argument("--resamples", type=positive, default=1000, help="bootstraps for each interval")
    group.add_argument(
        "--seed", type=seed_number, default=0, help="of bootstraps, halves, samples, and the human study"
    )
    group = parser.add_argument_group("targets and reports")
    group.add_argument(
        "--targets", nargs="+", type=cli.mapped, default=[], metavar="NAME<LIMIT",
        help='what is asked for: "fid<50" "clip_score>0.25" "invalid<0.10"; in a recipe `targets: {fid: "<50"}`',
    )  # fmt: skip
    group.add_argument("--fail_under_targets", action="store_true", help="exit with 3 unless all are shown to be met")
    group.add_argument("--utility", type=Path, metavar="DIR", help="where train_classifier.py wrote its results.json")
    group.add_argument("--human_study", type=int, metavar="N", help="write a page to rate N images on, and stop")
    group.add_argument("--ratings", type=Path, nargs="+", metavar="JSON", help="what raters downloaded from that page")
    group.add_argument("--compare", type=Path, nargs="+", metavar="DIR", help="put these evaluations side by side")
    group = parser.add_argument_group("work")
    group.add_argument("--batch_size", type=positive, default=32, help="images at once through an encoder")
    group.add_argument("--num_workers", type=workers, default=available_cores(), help="threads that decode images")
    group.add_argument("--output_dir", type=Path, metavar="DIR", help="metrics.json, report.html, features/ (cache)")
    group.add_argument("--overwrite", action="store_true", help="replace another set's evaluation or study there")


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What argparse can't check by itself: what is lacking, and what would do nothing."""
    given = [name for name, value in vars(args).items() if value != parser.get_default(name)]
    alone = next((task for task in ALONE if task in given), None)
    optional = {"identity_reference", *subject.SETS} & {*given} and alone is None and not args.train
    needed = ["output_dir"] if alone == "compare" else [*([] if optional else ["real"]), "generated", "output_dir"]
    if lacking := [f"--{name}" for name in needed if name not in given]:
        if lacking[0] == "--real" and alone is None and not args.train:
            lacking[0] += " (or, of one person or subject, --identity_reference, --instance_data_dir or --prior_before)"
        parser.error(f"{' and '.join(lacking)} must be given")
    useful = (alone, "config", "dry_run", "debug", *ALONE.get(alone, given))
    if idle := [f"--{name}" for name in given if name not in useful]:
        verb = "do" if idle[1:] else "does"
        parser.error(f"{' and '.join(idle)} {verb} nothing beside --{alone}; leave out, or give two commands")
    there = {*given, *(word.partition("=")[0] for word in args.encoders)}  # `inception` may be named so, too
    for flag, partner in PARTNERS:
        if flag in there and not there.intersection(partner.split(" or --")):
            named = flag if flag in given else f"encoders {flag}"
            parser.error(f"--{named}: does nothing without --{partner}; give both, or leave it out")


def read_encoders(words: list[str], inception: str | None) -> dict[str, str | None]:
    """{name: where it is, if that was said}."""
    sources = {}
    for word in ([] if words == ["none"] else words) + ([f"inception={inception}"] if inception else []):
        name, _, source = word.partition("=")
        if name not in features.NAMES:
            raise UserError(f"--encoders {word}: no such encoder; choose among {', '.join(features.NAMES)}, or `none`")
        if name in sources:
            raise UserError(f"--encoders {word}: a second {name}; give one (--inception is one, too)")
        sources[name] = source or None
    return sources
