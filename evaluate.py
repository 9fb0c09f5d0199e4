"""Is a generated set good, does it match its prompts, is it varied and new? Every figure with its 95 % interval.

A folder in a bucket (s3://, gs://) is fetched once.

    python evaluate.py --real data/casual_shoes/test --train data/casual_shoes/train \\
        --generated data/synthetic/casual_shoes --output_dir runs/casual_shoes/evaluation
    python evaluate.py --real data/x/test --generated images --encoders clip --targets "clip_score>0.25" \\
        "invalid<0.10" --fail_under_targets --output_dir runs/x/evaluation
    python evaluate.py --generated runs/me/persona --identity_reference photos/others --instance_data_dir photos/me \\
        --output_dir runs/me/evaluation
"""

import argparse
import logging
import os
import time
from pathlib import Path

from utils import cli, devices, runs  # first: it says in one line which package is missing

# isort: split
from evaluation import adherence, encoder_check, features, human_study, judge, subject, targets
from evaluation.feature_cache import content_keys
from evaluation.identity import compare_identity
from evaluation.image_sets import (
    Record,
    Work,
    check_new,
    count_texts,
    describe_set,
    encode_sets,
    read_images,
    spell_alike,
)
from evaluation.report import summary
from evaluation.report.comparison_page import read_runs, write_comparison
from evaluation.report.evaluation_page import read_evaluation, write_report
from evaluation.results import RESULTS, check_results, open_results
from utils.catalogue import canonical
from utils.cli import Range, UserError, at_once, read_place, seed_number, workers
from utils.faces import add_face_flags, load_faces
from utils.files import write_json
from utils.outputs import check_apart
from utils.parallel import available_cores
from utils.storage import fetch

logger = logging.getLogger("evaluate")
SETS = ("real", "train", "generated", *subject.SETS)  # each is the folder of a flag
ALONE = {  # a task other than an evaluation: the flags that it uses
    "compare": {"output_dir", "overwrite"},
    "human_study": {"real", "generated", "seed", "output_dir", "overwrite"},
}


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    title = "images: a split of a prepared dataset, what generate.py made, or any folder"
    add = parser.add_argument_group(title).add_argument
    add(
        "--real",
        type=read_place,
        metavar="DIR|s3://…",
        help="real images that nothing was trained on; needed for quality",
    )
    add("--train", type=read_place, metavar="DIR|s3://…", help="what the model was trained on; needed for novelty")
    add("--generated", type=read_place, metavar="DIR|s3://…", help="the set to evaluate")
    group = parser.add_argument_group("one person or subject")
    add = group.add_argument
    add(
        "--identity_reference",
        type=read_place,
        metavar="DIR|s3://…",
        help="several photos of one person, best not used for training",
    )
    add_face_flags(group, crop=False, embedder=True)
    add("--instance_data_dir", type=read_place, metavar="DIR|s3://…", help="photos of the subject that was trained")
    add("--prior_before", type=read_place, metavar="DIR|s3://…", help="class images generated without the training")
    add("--prior_after", type=read_place, metavar="DIR|s3://…", help="the same prompts and seeds generated with it")
    add = parser.add_argument_group("figures").add_argument
    names = f"of {', '.join(features.NAMES)}; a hub id or folder after `=`; `none` for figures that need no encoder"
    add("--encoders", nargs="+", type=cli.mapped, default=["clip", "dinov2"], metavar="NAME[=SOURCE]", help=names)
    add("--inception", metavar="FILE|URL", help="the FID network as TorchScript; adds that encoder")
    add("--inception_sha256", default=features.INCEPTION_SHA256, help="expected sha256 of that file")
    columns = "columns to split by and to check (default: article, colour …)"
    add("--attributes", nargs="+", type=canonical, help=columns)
    add("--resamples", type=Range(1, 100_000, int), default=1000, help="bootstrap samples for each interval")
    add("--seed", type=seed_number, default=0, help="for bootstraps, samples, and the human study")
    add = parser.add_argument_group("targets and reports").add_argument
    asked = 'limits to meet: "cmmd<1" "clip_score>0.25" "invalid<0.10"; in a recipe `targets: {cmmd: "<1"}`'
    add("--targets", nargs="+", type=cli.mapped, default=[], metavar="NAME<LIMIT", help=asked)
    add("--fail_under_targets", action="store_true", help="exit with 3 unless all are met")
    add("--utility", type=Path, metavar="DIR", help="where train_classifier.py wrote its results.json")
    add("--human_study", type=human_study.half_real, metavar="N", help="write a page to rate N images on, and stop")
    add("--ratings", type=Path, nargs="+", metavar="JSON", help="the files that raters downloaded from that page")
    add("--compare", type=Path, nargs="+", metavar="DIR", help="compare these evaluations on one page")
    add = parser.add_argument_group("work").add_argument
    add("--batch_size", type=at_once, default=32, help="images at once through an encoder")
    add("--num_workers", type=workers, default=available_cores(), help="threads that decode images")
    add("--output_dir", type=Path, metavar="DIR", help="metrics.json, report.html, features/ (cache)")
    add("--overwrite", action="store_true", help="replace what is there; what no script wrote is moved aside")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    check_flags(parser, args)
    return args


def check_flags(parser: cli.Parser, args: argparse.Namespace) -> None:
    """Refuse what argparse can't check by itself: missing flags, and flags that would do nothing."""
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    task = next((name for name in ALONE if name in given), None)
    needed = {"compare": ["output_dir"], "human_study": ["real", "generated", "output_dir"]}
    if missing := [f"--{name}" for name in needed.get(task or "", ["generated", "output_dir"]) if name not in given]:
        parser.error(f"missing: {'; '.join(missing)}")
    if task:
        used = {task, *cli.COMMON, *ALONE[task]}
        needs = {name: (f"an evaluation, which --{task} does not make", name in used) for name in vars(args)}
    else:
        inception = args.inception or any(word.partition("=")[0] == "inception" for word in args.encoders)
        face = ("--identity_reference", args.identity_reference is not None)
        needs = {
            "train": ("--real", args.real is not None),
            "inception_sha256": ("--inception", bool(inception)),
            "attributes": ("--real or --identity_reference", bool(args.real or args.identity_reference)),
            "face_detector": face,
            "face_embedder": face,
            "fail_under_targets": ("--targets", bool(args.targets)),
        }
    cli.report_ignored(parser, args, needs)


def check_output(out: Path, folders: dict[str, Path | str], overwrite: bool) -> None:
    """Refuse to replace an evaluation of other sets. `folders`: {flag: its value}."""
    check_results(out, RESULTS, overwrite)
    if overwrite or not (out / "metrics.json").is_file():
        return
    try:
        earlier = read_evaluation(out).get("sets", {})
    except UserError as error:  # our own, damaged: nothing can be lost
        logger.warning("%s", error)
        return
    for name, folder in folders.items():
        before = earlier.get(name, {}).get("path")
        if before and before != str(folder):
            raise UserError(
                f"--output_dir {out}: contains an evaluation of --{name} {before}, now {folder}; give another "
                "folder, or add --overwrite"
            )


def compare_evaluations(args: argparse.Namespace) -> int:
    cli.show_settings(args)
    check_results(args.output_dir, ["comparison.html"], args.overwrite)
    read_runs(args.compare)
    if not args.dry_run:
        lock = open_results(args.output_dir, ["comparison.html"])
        page = args.output_dir / "comparison.html"
        print(*write_comparison(args.compare, page), page, sep="\n")
        os.close(lock)
    return 0


def read_set(args: argparse.Namespace, name: str) -> list[Record]:
    """The images of the folder that the flag of this name gives; one in a bucket is fetched."""
    folder = fetch(getattr(args, name), args.output_dir.parent / "cache", f"--{name}")
    return read_images(folder, f"--{name}")


def make_study(args: argparse.Namespace) -> int:
    cli.show_settings(args)
    names = ["study.html"]  # a key is looked at by write_study
    check_results(args.output_dir, names, args.overwrite)
    real, generated = (read_set(args, name) for name in ("real", "generated"))
    print(f"real: {count_texts(real)}\ngenerated: {count_texts(generated)}")
    if not args.dry_run:
        out, count = args.output_dir, args.human_study
        lock = open_results(out, names)
        print(human_study.write_study(out, real, generated, count, args.seed, args.overwrite))
        os.close(lock)
    return 0


def main(args: argparse.Namespace) -> int:
    began, out = time.monotonic(), args.output_dir
    folders = {name: getattr(args, name) for name in (*SETS, "identity_reference") if getattr(args, name)}
    sources = features.parse_encoders(args.encoders, args.inception)
    read = {"generated": folders.get("generated"), "encoders": list(sources.values())}
    check_apart(out, {name: folder for name, folder in folders.items() if name not in read}, read)
    if args.compare:
        return compare_evaluations(args)
    if args.human_study is not None:
        return make_study(args)

    # Everything that can be refused is refused before any work.
    accelerator, _ = devices.start_accelerator("no")  # features are float32 on every device
    given = {name for name, value in vars(args).items() if value is not None}
    subject.check_flags(given, list(sources))
    records = spell_alike({name: read_set(args, name) for name in SETS if name in folders})
    compared = [records[name] for name in ("real", "generated") if name in records]
    adherence.check_attributes(compared, args.attributes)
    columns = adherence.usable_attributes(compared, args.attributes)
    known = judge.known_figures(given, list(sources), list(columns))
    for words in args.targets:
        targets.check_target(words, known, judge.predict_refusals(records, known))
    faces, references = None, []
    if args.identity_reference:
        faces = load_faces(args.face_detector or "yunet", args.face_embedder or "sface")
        references = read_set(args, "identity_reference")
    others = {name: records[name] for name in ("real", "instance_data_dir") if name in records}
    check_new(records["generated"], others | {"identity_reference": references})
    if args.prior_before:
        subject.pair_images(records["prior_before"], records["prior_after"])
    check_output(out, folders, args.overwrite)
    human = human_study.merge_ratings(out / "study_key.json", args.ratings) if args.ratings else None
    if args.utility and not (args.utility / "results.json").is_file():
        raise UserError(
            f"--utility {args.utility}: results.json is missing; give the folder that train_classifier.py made"
        )
    if accelerator.is_main_process:
        cli.show_settings(args)
        for name, some in records.items():
            print(f"{name}: {count_texts(some)}")
    if args.dry_run:
        return 0
    lock = open_results(out, RESULTS) if accelerator.is_main_process else -1

    # Images → features.
    encoders = [
        features.load_encoder(name, source, accelerator.device, "--encoders", args.inception_sha256)
        for name, source in sources.items()
    ]
    work = Work(out / "features", args.batch_size, args.num_workers)
    everything = encode_sets(records, encoders, work, accelerator)
    if not accelerator.is_main_process:
        return 0
    sets = {name: one.readable(f"--{name}") for name, one in everything.items()}

    # Features → figures, of the encoders that understand the real images.
    checks = encoder_check.check_encoders(encoders, sets, work)
    failed = {name: one["problem"] for name, one in checks.items() if one["problem"]}
    trusted, generated = [one for one in encoders if one.name not in failed], everything["generated"]
    if args.real:
        found = judge.judge_against_real(trusted, sets, generated, columns, args.resamples, args.seed)
    else:
        found = judge.judge_without_real(trusted, sets["generated"], generated, args.resamples, args.seed)
    photos = sets["instance_data_dir"].records if "instance_data_dir" in sets else references
    if photos and not args.real:
        found.images["real"] = judge.choose_images(photos, None, args.seed)["sample"]
    if faces:
        split_by = subject.split_columns(generated.records, args.attributes)
        person = [one["path"] for one in references]
        found.identity = compare_identity(person, generated.records, faces, split_by)
        found.figures += found.identity.figures
        found.splits |= found.identity.splits
    if encoders and not checks:
        found.left_out.append(judge.UNCHECKED.format(encoder_check.LEAST))
    if given & {"identity_reference", *subject.SETS}:
        found.figures += [figure for one in trusted for figure in subject.judge_fidelity(one, sets)]

    # Figures → metrics.json, report.html.
    said = {name: describe_set(folders[name], one.keys) for name, one in sets.items()}
    said["generated"]["unreadable"] = len(generated.records) - len(sets["generated"].records)
    if references:
        keys = content_keys([one["path"] for one in references])
        said["identity_reference"] = describe_set(args.identity_reference, keys)
    made = runs.describe_making(devices.describe_device(accelerator.device), time.monotonic() - began)
    made["encoders"] = {one.name: {"source": one.source, "fingerprint": one.fingerprint[:16]} for one in encoders}
    metrics = {"version": 1, "made": made | {"seed": args.seed}, "sets": said, "checks": checks, **found.as_json(out)}
    targets.keep_in_range(metrics)
    lost = {key: f"{name} failed its check" for name in failed for key in known if key.endswith(f"/{name}")}
    metrics["targets"] = [targets.judge_target(words, metrics["figures"], lost) for words in args.targets]
    if human:
        metrics["human"] = human
    if args.utility:
        metrics["utility"] = judge.relative_paths(args.utility / "results.json", out)
    write_json(out / "metrics.json", metrics)
    report = write_report(out)
    os.close(lock)
    print(f"{summary.summarise(metrics)}\n\n{out / 'metrics.json'}, {report}")
    return 3 if args.fail_under_targets and not all(one["met"] for one in metrics["targets"]) else 0


if __name__ == "__main__":
    cli.run(main, parse_args())
