"""Is a generated set good, does it show what was asked, is it varied and new? Every figure with its 95 % interval.

    python evaluate.py --real data/casual_shoes/test --train data/casual_shoes/train \\
        --generated data/synthetic/casual_shoes --output_dir runs/casual_shoes/evaluation
    python evaluate.py --real data/x/test --generated images --encoders demo --targets "clip_score>0.25" \\
        "invalid<0.10" --fail_under_targets --output_dir runs/x/evaluation
    python evaluate.py --generated runs/me/persona --identity_reference photos/others --instance_data_dir photos/me \\
        --output_dir runs/me/evaluation
"""

import argparse
import datetime
import hashlib
import logging
import os
import random
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from evaluation import adherence, assessment, failures, features, flags, human_study, image_measures, subject, targets
from evaluation.feature_cache import content_keys
from evaluation.image_sets import check_apart, check_new, read_images, spell_alike
from evaluation.report import summary
from evaluation.report.comparison_page import write_comparison
from evaluation.report.evaluation_page import read_evaluation, write_report
from utils import cli, devices, runs
from utils.cli import UserError
from utils.faces import load_faces
from utils.files import check_writable, write_json
from utils.parallel import available_cores, thread_map

logger = logging.getLogger("evaluate")
SHOWN = 24  # images of a kind in the report
SURE = 0.8  # an attribute is read off images by CLIP if it reads the real ones right at least so often
SETS = ("real", "train", "generated", *subject.SETS)  # each is the folder of a flag
COPY_JUDGES = ("dinov2", "clip", "demo", "inception")  # whose neighbours are shown: the best at telling things apart


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    flags.add_flags(parser)
    args = cli.parse_args(parser, argv)
    flags.check_flags(parser, args)
    return args


def known_figures(given: set[str], encoders: list[str], columns: list[str]) -> list[str]:
    """The ids that metrics.json will have. `given`: the flags that have a value; `columns`: what can be read off."""
    about_one = subject.known_figures(given, encoders)
    if "real" not in given:
        return ["invalid", *about_one]
    kinds = [*assessment.QUALITY, *assessment.DIVERSITY, *(assessment.NOVELTY if "train" in given else ())]
    found = [f"{kind}/{name}" for name in encoders for kind in kinds if kind != "cmmd" or name in features.CLIPS]
    for name in [name for name in encoders if name in features.CLIPS][:1]:
        kinds = ["clip_score", "clip_score_lowest", *(f"{key}_accuracy" for key in columns)]
        found += [f"{kind}/{name}" for kind in kinds]
    return [*found, *failures.LIMITS, *(["near_copies"] if "train" in given else []), *about_one]


def check_folder(args, out: Path) -> None:
    """That what is there may be replaced: the same sets' earlier evaluation, or none."""
    check_writable(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--output_dir {out}: is a file; name a folder")
    if not (out / "metrics.json").is_file() or args.overwrite:
        return
    try:
        was = read_evaluation(out).get("sets", {})
    except UserError as error:  # damaged: there is nothing to lose
        logger.warning("%s", error)
        return
    for name in (*SETS, "identity_reference"):
        before, now = was.get(name, {}).get("path"), getattr(args, name)
        if before and now and before != str(now):
            raise UserError(
                f"--output_dir {out}: holds an evaluation of --{name} {before}, now {now}; name another folder, or add "
                "--overwrite"
            )


def describe(records: list[dict]) -> str:
    texts = sum(bool(one["text"]) for one in records)
    return f"{cli.counted(len(records), 'image')}, {texts:,} with a text"


def readable(name: str, records: list[dict], keys: list[str], rows: np.ndarray) -> tuple[list, list, np.ndarray]:
    """Without the images that can't be read; of the generated set they are counted as invalid."""
    good = rows[:, 0] != image_measures.FAULTS.index("unreadable")
    if not good.all():
        bad = records[int(np.argmin(good))]["path"]
        logger.warning("--%s: %s cannot be read (%s …)", name, cli.counted(int((~good).sum()), "image"), bad)
    if not good.any():
        raise UserError(f"--{name}: not one of its {len(good)} images can be read")
    kept = np.flatnonzero(good)
    return [records[i] for i in kept], [keys[i] for i in kept], rows[kept]


def judge_adherence(args, encoder, rows: dict, sets: dict, columns: dict) -> tuple[list, dict, dict, np.ndarray]:
    """Figures, splits and shares by attribute, and each image's score. `columns`: {attribute: its values}."""
    real, generated = sets["real"], sets["generated"]
    scores = adherence.clip_scores(encoder, rows["generated"], generated)
    real_scores = adherence.clip_scores(encoder, rows["real"], real)
    figures = adherence.scores_figures(encoder.name, scores, real_scores, args.resamples, args.seed)
    splits, shares = {"clip_score": {}}, {}
    for key, values in columns.items():
        seen = adherence.read_off(encoder, rows["generated"], generated, key, values)
        real_seen = adherence.read_off(encoder, rows["real"], real, key, values)
        hits = adherence.attribute_hits(generated, seen, key)
        real_hits = adherence.attribute_hits(real, real_seen, key)
        able = adherence.can_judge(real_hits, real, key)
        figures.append(adherence.accuracy_figure(encoder.name, key, hits, real_hits, len(values), values[0], able))
        if able:
            splits[f"{key}_accuracy"] = {key: adherence.split_means(generated, hits, key)}
        if not np.isnan(scores).all():
            splits["clip_score"][key] = adherence.split_means(generated, scores, key)
        sure = able and np.nanmean(real_hits) >= SURE
        shares[key] = adherence.shares(real, generated, key, *((seen, real_seen) if sure else (None, None)))
    return figures, splits, shares, scores


def judge_looks(sets: dict, measures: dict) -> tuple[list[dict], list[dict]]:
    """Near-copies by hash and colours, which need no encoder: the figure, and the pairs."""
    blank = assessment.figure(
        "near_copies", "novelty", "Near-copies by look", "lower", "%",
        "share that looks like a training image or its mirror: of 256 bits of a perceptual hash 16 at most differ, "
        "and the colours by 3 levels; the floor is the real test images' own",
    )  # fmt: skip
    ids = [str(i) for i in range(len(sets["train"]))]
    found = image_measures.find_look_alikes(ids, measures["train"], measures["generated"])
    floor = image_measures.find_look_alikes(ids, measures["train"], measures["real"])
    one = assessment.fill(
        blank, assessment.share([copy for _, copy in found]), assessment.share([copy for _, copy in floor])
    )
    copies = [
        {
            "file": sets["generated"][i]["path"], "nearest": sets["train"][int(near)]["path"], "distance": None,
            "limit": None, "suspected": True, "by": "look",
        }
        for i, (near, copy) in enumerate(found) if copy
    ]  # fmt: skip
    return [one], copies


def list_neighbours(encoder: str, sets: dict, copies: dict) -> list[dict]:
    """The generated images nearest to a training image, suspected or not."""
    return [
        {
            "file": sets["generated"][i]["path"], "nearest": sets["train"][which]["path"], "distance": distance,
            "limit": copies["threshold"], "suspected": distance < copies["threshold"], "by": encoder,
        }
        for i, which, distance in copies["nearest"][:SHOWN]
    ]  # fmt: skip


def judge_novelty(sets: dict, keys: dict, measures: dict, rows: dict) -> tuple[list[dict], list[dict]]:
    """Figures and pairs; refused where the test images are training images, since they tell what is no copy."""
    shared = set(keys["real"]) & set(keys["train"])
    if shared:
        raise UserError(
            f"--real and --train share {cli.counted(len(shared), 'image')}: what is near to a training image is "
            "judged by real images that are none; give two splits, or leave out --train"
        )
    figures, pairs = judge_looks(sets, measures)
    for name in sorted(rows, key=COPY_JUDGES.index):
        some, copies = assessment.novelty(name, *(rows[name][part] for part in ("train", "real", "generated")))
        figures += some
        if copies and not any(pair["by"] != "look" for pair in pairs):
            listed = list_neighbours(name, sets, copies)
            known = {pair["file"] for pair in listed}
            pairs = listed + [pair for pair in pairs if pair["file"] not in known]
    return figures, pairs[: 2 * SHOWN]


def choose_images(records: list[dict], scores: np.ndarray | None, seed: int) -> dict[str, list[dict]]:
    """A random sample of the set, and those whose texts fit best and worst (of the lowest tenth, at most).

    No even one: its stride would meet the same kind again and again in a set whose kinds take turns.
    """
    sample = random.Random(seed).sample(records, min(SHOWN, len(records)))
    found = {"sample": [{"file": one["path"], "text": one["text"]} for one in sample]}
    if scores is not None and not np.isnan(scores).all():
        order = [int(i) for i in scores.argsort(kind="stable") if not np.isnan(scores[i])]
        tenth = order[: max(1, round(adherence.LOWEST * len(order)))]
        for name, places in (("worst", tenth[:SHOWN]), ("best", order[::-1][: min(SHOWN // 2, len(order))])):
            found[name] = [
                {"file": records[i]["path"], "text": records[i]["text"], "score": float(scores[i])} for i in places
            ]
    return found


def describe_set(folder: Path, keys: list[str]) -> dict:
    """What metrics.json says of a set; the checksum tells another run whether its images were the same."""
    digest = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()
    return {"path": str(folder), "n": len(keys), "sha256": digest[:16]}


def relative(value, out: Path):
    """Every path in it as seen from the evaluation's folder, so that both can be moved together."""
    if isinstance(value, Path):
        return os.path.relpath(value.resolve(), out.resolve())
    if isinstance(value, dict):
        return {key: relative(one, out) for key, one in value.items()}
    return [relative(one, out) for one in value] if isinstance(value, list) else value


def compute_figures(args, encoders: list, sets: dict, keys: dict, measures: dict, rows: dict, columns: dict) -> dict:
    """All that metrics.json says about the sets. `rows`: {encoder: {set: features}}; `columns`: {attribute: values}."""
    real, generated = sets["real"], sets["generated"]
    figures, splits, shares, scores = [], {}, {}, None

    def judge(encoder) -> list[dict]:
        against = rows[encoder.name]["real"], rows[encoder.name]["generated"], args.resamples, args.seed
        return assessment.quality(encoder.name, *against) + assessment.variety(encoder.name, *against)

    with threadpool_limits(1):  # a core for each encoder: two at the matrices of one gain next to nothing
        judged = list(thread_map(judge, encoders, available_cores()))
    for encoder, found in zip(encoders, judged):
        figures += found
        if encoder.embed_texts and scores is None:
            some, splits, shares, scores = judge_adherence(args, encoder, rows[encoder.name], sets, columns)
            figures += some
    if not shares:
        shares = {key: adherence.shares(real, generated, key, None, None) for key in columns}
    failed, listed = failures.judge(sets["all generated"], measures["all generated"], real, measures["real"])
    figures += failed
    colours = 1 - failures.find_failures(generated, measures["generated"])["wrong_colour"]
    if by_colour := adherence.split_means(generated, colours, "colour"):
        splits["measured_colour_accuracy"] = {"colour": by_colour}
    images = choose_images(generated, scores, args.seed) | {"copies": [], "failures": listed}
    if "train" in sets:
        some, images["copies"] = judge_novelty(sets, keys, measures, rows)
        figures += some
    return {"figures": figures, "splits": splits, "shares": shares, "pictures": images}


def compute_without_real(encoders: list, sets: dict, measures: dict, rows: dict, seed: int) -> dict:
    """What can be said of images that have none to be compared with: those that are no images, and a look."""
    records, scores = sets["generated"], None
    if told := [one for one in encoders if one.embed_texts]:
        scores = adherence.clip_scores(told[0], rows[told[0].name]["generated"], records)
    nothing = measures["generated"][:0]
    failed, listed = failures.judge(sets["all generated"], measures["all generated"], [], nothing)
    images = choose_images(records, scores, seed) | {"copies": [], "failures": listed[:1]}
    said = {"figures": failed[:1], "splits": {}, "shares": {}, "pictures": images}  # the first is "invalid"
    return said | {"left_out": [subject.WITHOUT_REAL]}


def gather_rows(args, encoders, sets: dict, keys: dict, accelerator) -> tuple[dict, dict]:
    """Measures and features of every set; several processes share the work and meet in the cache."""
    out, rank, count = args.output_dir / "features", accelerator.process_index, accelerator.num_processes
    for share in ([slice(rank, None, count)] if count > 1 else []) + [slice(None)]:
        measures, rows = {}, {encoder.name: {} for encoder in encoders}
        for name, records in sets.items():
            files, sums = [one["path"] for one in records][share], keys[name][share]
            if not files:
                continue
            measures[name] = image_measures.measure_images(files, out, args.num_workers, sums)
            good = measures[name][:, 0] != image_measures.FAULTS.index("unreadable")
            files, sums = ([one for one, kept in zip(part, good) if kept] for part in (files, sums))
            for encoder in encoders:
                rows[encoder.name][name] = features.image_features(
                    encoder, files, out, args.batch_size, args.num_workers, sums
                )
        if share != slice(None):
            accelerator.wait_for_everyone()
            if rank:
                break
    return measures, rows


def study_or_compare(args) -> int:
    """The two tasks that stand alone."""
    cli.show_settings(args)
    check_writable(args.output_dir)
    if args.compare:
        if args.dry_run:
            return 0
        page = args.output_dir / "comparison.html"
        print(*write_comparison(args.compare, page), page, sep="\n")
        return 0
    real, generated = (read_images(getattr(args, name), f"--{name}") for name in ("real", "generated"))
    for name, records in (("real", real), ("generated", generated)):
        print(f"{name}: {describe(records)}")
    if not args.dry_run:
        found = human_study.write_study(args.output_dir, real, generated, args.human_study, args.seed, args.overwrite)
        print(found)
    return 0


def main(args) -> int:
    began = time.monotonic()
    read = {name: getattr(args, name) for name in (*SETS, "identity_reference")}
    check_apart(args.output_dir, {name: folder for name, folder in read.items() if folder})
    if args.compare or args.human_study is not None:
        return study_or_compare(args)
    accelerator, _ = devices.start_accelerator("no")  # features are float32 wherever they are made
    is_main, out = accelerator.is_main_process, args.output_dir
    sources = flags.read_encoders(args.encoders, args.inception)
    given = {name for name, value in vars(args).items() if value is not None}
    subject.check_flags(given, list(sources))
    sets = spell_alike({n: read_images(getattr(args, n), f"--{n}") for n in SETS if getattr(args, n)})
    judged = [sets[name] for name in ("real", "generated") if name in sets]
    adherence.check_attributes(judged, args.attributes)
    columns = adherence.usable_attributes(judged, args.attributes)
    for words in args.targets:
        targets.check_target(words, known_figures(given, list(sources), list(columns)))
    faces, against = None, {name: sets[name] for name in ("real", "instance_data_dir") if name in sets}
    if args.identity_reference:
        faces = load_faces(args.face_detector or "yunet", args.face_embedder or "sface")
        against["identity_reference"] = read_images(args.identity_reference, "--identity_reference")
    check_new(sets["generated"], against)
    references = [one["path"] for one in against.get("identity_reference", [])]
    if args.prior_before:
        subject.pair_images(sets["prior_before"], sets["prior_after"])
    check_folder(args, out)
    human = human_study.merge_ratings(out / "study_key.json", args.ratings) if args.ratings else None
    if args.utility and not (args.utility / "results.json").is_file():
        raise UserError(
            f"--utility {args.utility}: no results.json there; give the folder that train_classifier.py made"
        )
    if is_main:
        cli.show_settings(args)
        for name, records in sets.items():
            print(f"{name}: {describe(records)}")
    if args.dry_run:
        return 0
    encoders = [
        features.load_encoder(name, source, accelerator.device, "--encoders", args.inception_sha256)
        for name, source in sources.items()
    ]
    out.mkdir(parents=True, exist_ok=True)
    keys = {name: content_keys([one["path"] for one in records], args.num_workers) for name, records in sets.items()}
    measures, rows = gather_rows(args, encoders, sets, keys, accelerator)
    accelerator.end_training()  # the others need not wait for what the first process does alone
    if not is_main:
        return 0
    counts = {name: len(records) for name, records in sets.items()}
    sets["all generated"], measures["all generated"] = sets["generated"], measures["generated"]
    for name in counts:
        sets[name], keys[name], measures[name] = readable(name, sets[name], keys[name], measures[name])

    if references:
        keys["identity_reference"] = content_keys(references)
    if "real" in sets:
        found = compute_figures(args, encoders, sets, keys, measures, rows, columns)
    else:
        found = compute_without_real(encoders, sets, measures, rows, args.seed)
    if given & {"identity_reference", *subject.SETS}:
        more = subject.judge_subject(encoders, rows, sets, references, faces, args.attributes)
        found["figures"] += more.pop("figures")
        found["splits"] |= more.pop("splits")
        found |= more
    targets.keep_in_range(found)
    asked = [targets.judge(words, found["figures"]) for words in args.targets]
    metrics = {
        "version": 1,
        "made": {
            "command": runs.command_line(),
            "commit": runs.git_commit(),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
            "hardware": devices.describe_device(accelerator.device),
            "versions": runs.package_versions(),
            "encoders": {one.name: {"source": one.source, "fingerprint": one.fingerprint[:16]} for one in encoders},
            "seed": args.seed,
        },
        "sets": {name: describe_set(getattr(args, name), those) for name, those in keys.items()},
        **relative(found, out),
        "targets": asked,
    }
    metrics["sets"]["generated"]["unreadable"] = counts["generated"] - len(sets["generated"])
    if args.ratings:
        metrics["human"] = human
    if args.utility:
        metrics["utility"] = relative(args.utility / "results.json", out)
    write_json(out / "metrics.json", metrics)
    report = write_report(out)
    print(summary.summarise(metrics))
    print(f"\n{out / 'metrics.json'}, {report}")
    return 3 if args.fail_under_targets and not all(one["met"] for one in asked) else 0


if __name__ == "__main__":
    cli.run(main, parse_args())
