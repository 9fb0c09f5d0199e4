"""Turn a raw product catalogue into a dataset one can trust: read, clean, split without leakage, caption, write.

The catalogue is a folder with styles.csv + images/, images with <name>.txt captions, an imagefolder with
metadata.jsonl or metadata.csv, or a hub dataset id. What is left out is left out with a reason, in metadata.json.
Photos of one person or subject go through --portraits instead: judged, framed, cropped to the shapes training takes.

    python prepare_dataset.py --catalogue data/raw --category "Casual Shoes" --output_dir data/casual_shoes
    python prepare_dataset.py --catalogue data/raw --category Sandals "Flip Flops" --output_dir data/sandals
    python prepare_dataset.py --portraits photos/me --face_detector yunet --face_crop --output_dir data/me
    python prepare_dataset.py --verify data/casual_shoes
"""

import argparse
import hashlib
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from preparation import captions, flags, portraits, report, splits
from preparation.dataset_card import dataset_card
from utils import catalogue, cli, dataset, faces, files, images, parallel, sources, wording
from utils.cli import UserError

COLOUR_LIMIT = 3.0  # levels of 255, mean over 16x16 places: the same shoe in another colour is further off
SHARES = ("colour", "gender", "season", "usage", "year")
# Neither where the result goes nor how it is made changes what it is.
NOT_IN_RESULT = (
    "config dry_run debug verify strict output_dir overwrite num_workers catalogue portraits keep_splits new_splits"
).split()


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    flags.add_flags(parser)
    return flags.check_flags(parser, cli.parse_args(parser, argv))


def square_image(
    source: Path | bytes, side: int, pad: str, crop: str, max_pixels: int
) -> tuple[Image.Image, tuple, dict]:
    """An image as it goes into the dataset, the size it had, and no more to say of it; raises BadImage."""
    reduced = {"none": {"longest": side}, "centre": {"shortest": side}, "foreground": {}}[crop]
    image, size = images.read_image(source, max_pixels, **reduced)
    if images.is_blank(image):
        raise images.BadImage("blank or near uniform", f"{size[0]}x{size[1]}")
    if crop == "centre":
        image = images.crop_centre(image)
    elif crop == "foreground":
        image = image.crop(images.foreground_box(image))
    return images.fit_square(image, side, pad), size, {}


def process_image(job: tuple[str, Path | bytes], folder: Path | None, fit: Callable) -> dict:
    """Read, clean, compare, and write <folder>/<id>.png (no folder: write nothing). Runs in a worker process."""
    product_id, source = job
    try:
        image, size, facts = fit(source)
    except images.BadImage as error:
        return {"bad": (error.reason, error.detail)}
    if facts.get("fault"):
        return {"bad": facts["fault"], "quality": facts["quality"]}
    result = {**facts, "size": size, "hash": images.perceptual_hash(image), "thumb": images.colour_thumb(image)}
    if folder:
        png = io.BytesIO()
        image.save(png, "PNG")
        (folder / f"{product_id}.png").write_bytes(png.getvalue())
        result["sha256"] = hashlib.sha256(png.getvalue()).hexdigest()
    return result


def process_all(products: list[dict], dataset, work, workers: int) -> tuple[list[dict], list[dict]]:
    """The products with what `work` found out about their images, and those that can't be used."""
    jobs = ((one["id"], sources.image_source(dataset, one["image"])) for one in products)
    results = parallel.parallel_map(work, jobs, workers)
    good, rejected = [], []
    for one, result in zip(tqdm(products, unit=" images", smoothing=0.05, **cli.progress()), results):
        if "bad" in result:
            quality = {key: result[key] for key in ("quality",) if key in result}
            rejected.append(catalogue.left_out(one, *result["bad"]) | quality)
        else:
            good.append(one | result)
    return good, rejected


def find_look_alikes(products: list[dict], bits: int) -> tuple[list[tuple], list[tuple]]:
    """Pairs within the threshold, and those a little beyond it, to judge it by: (id, id, bits, colour)."""
    if len(products) < 2:
        return [], []
    hashes, thumbs = (np.stack([one[key] for one in products]) for key in ("hash", "thumb"))
    pairs = images.near_pairs(hashes, thumbs, bits + 12, COLOUR_LIMIT + 2)
    named = [(products[i]["id"], products[j]["id"], distance, colour) for i, j, distance, colour in pairs]
    within = [pair for pair in named if pair[2] <= bits and pair[3] <= COLOUR_LIMIT]
    return within, [pair for pair in named if pair[2] > bits or pair[3] > COLOUR_LIMIT]


def place_products(products: list[dict], pairs: list[tuple], kept: dict[str, str], args) -> tuple[list, list, dict]:
    """The products with their splits, those left out, and {id: split} of every product that ever had a place."""
    by_id = {one["id"]: one for one in products}
    conflicts = splits.settle_conflicts(list(by_id), pairs, kept)
    out = [catalogue.left_out(by_id[one], "near duplicate across splits", why) for one, why in conflicts.items()]
    ids = [one for one in by_id if one not in conflicts]
    groups = splits.group_linked(ids, [pair for pair in pairs if conflicts.keys().isdisjoint(pair)])
    twins = {}
    if args.drop_duplicates:
        groups = [sorted(group, key=lambda one: one not in kept) for group in groups]  # the one that was there stays
        twins = {twin: group[0] for group in groups for twin in group[1:]}
        out += [
            catalogue.left_out(by_id[twin], "near duplicate", f"of {first}; --no-drop_duplicates keeps both")
            for twin, first in twins.items()
        ]
        groups = [group[:1] for group in groups]
    members = [one for one in ids if one not in twins]
    values = [tuple(by_id[one]["attributes"].get(column) for column in args.stratify_by) for one in members]
    strata = dict(zip(members, splits.pool_rare(values, args.min_stratum)))
    ratio = dict(zip(dataset.SPLITS, args.split_ratio))
    places = splits.assign_splits(groups, strata, ratio, args.seed, kept)
    placed = [by_id[one] | {"split": places[one]} for one in members]
    places |= {twin: places[first] for twin, first in twins.items()}
    return placed, out, dict(sorted((kept | places).items()))


def default_template(args: argparse.Namespace) -> str | None:
    """What is said of a product; of a photo, which may be of anyone, nothing is made up."""
    return None if args.portraits else captions.DEFAULT_TEMPLATE


def check_columns(args: argparse.Namespace, columns: list[str]) -> None:
    """Every column that a flag names is there."""
    there = ", ".join(columns) or "none"
    for flag, names in (("--stratify_by", args.stratify_by), ("--balance", args.balance)):
        for name in names:
            if name not in columns:
                raise UserError(f"{flag} {name}: there is no such column; there are {there}")
    used = wording.PLACEHOLDER.findall(args.caption_template or default_template(args) or "")
    for name in used if args.caption_template else []:
        if name not in columns:
            raise UserError(f"--caption_template: no column `{name}`; there are {there}")
    for name in args.caption_columns or []:
        if name not in used:
            raise UserError(f"--caption_columns {name}: the template has no {{{name}}}; add it to --caption_template")


def describe_dataset(args, analysis: dict, members: dict[str, list[dict]], tokenizer, fingerprint: str) -> dict:
    """The content of metadata.json."""
    products = [one for split in dataset.SPLITS for one in members[split]]
    train_counts = report.count_values(members["train"], ["colour", "gender", "season"])
    return {
        "format": dataset.FORMAT,
        **({"shapes": analysis["shapes"]} if "shapes" in analysis else {}),
        "source": {"catalogue": source_of(args)[1], **analysis["catalogue"]},
        **{key: analysis[key] for key in ("options", "source_fingerprint", "kept_splits")},
        "counts": {
            **{key: analysis["selection"][key] for key in ("rows", "usable")},
            "left_out": len(analysis["rejected"]),
            "written": len(products),
            **{split: len(members[split]) for split in dataset.SPLITS},
        },
        "shares": {key: analysis["shares"][key] for key in ("colour", "gender") if key in analysis["shares"]},
        "train_shares": {column: report.with_shares(counts) for column, counts in train_counts.items()},
        "captions": captions.measure([one["caption"] for one in products], *tokenizer),
        "duplicates": {key: analysis["duplicates"][key] for key in ("bits", "colour", "groups")},
        "excluded": analysis["rejected"],
        "fingerprint": fingerprint,
    }


def write_dataset(folder: Path, args, analysis: dict, products: list[dict], places: dict, columns, tokenizer) -> dict:
    """The splits and all that describes them; the content of metadata.json."""
    members = {split: [one for one in products if one["split"] == split] for split in dataset.SPLITS}
    sums = {}
    for split in dataset.SPLITS:
        sums |= dataset.write_split(folder, split, members[split], columns, images=folder / "images")
    shutil.rmtree(folder / "images")  # what is left there are duplicates that were dropped
    if args.write_prompt_plan:
        captions.write_prompt_plan(folder / "prompt_plan.jsonl", members["train"], args.write_prompt_plan, args.balance)
    files.write_json(folder / "splits.json", places)
    metadata = describe_dataset(args, analysis, members, tokenizer, dataset.content_fingerprint(sums))
    files.write_json(folder / "metadata.json", metadata)
    examples = list(dict.fromkeys(one["caption"] for one in members["train"] if one["caption"]))[:5]
    (folder / "README.md").write_text(dataset_card(metadata, examples), encoding="utf-8")
    files.write_manifest(folder, sums)
    return metadata


def source_of(args) -> tuple[str, str]:
    """The flag that named the images, and what it named: photos are read as any catalogue is."""
    return ("--portraits", args.portraits) if args.portraits else ("--catalogue", args.catalogue)


def check_output(args: argparse.Namespace) -> None:
    """What may not be written or replaced is named before any work."""
    named = source_of(args)[1]
    folder, source = args.output_dir.resolve(), Path(named).resolve()
    if source.exists() and (folder == source or source in folder.parents or folder in source.parents):
        raise UserError(f"--output_dir {args.output_dir}: lies in {named} or around it; name a folder beside it")
    files.recover_folder(args.output_dir)
    if args.overwrite or not folder.exists():  # a dataset on a read-only disk may still be up to date
        files.check_writable(args.output_dir)
    dataset.check_replaceable(args.output_dir, args.overwrite)
    if args.analyse_only and (folder / "metadata.json").exists():
        raise UserError(f"--output_dir {args.output_dir}: holds a dataset; name another folder for the analysis")


def refuse_faults(rejected: list[dict]) -> None:
    """What --strict does: anything left out is an error, but for what --drop_duplicates asked for."""
    faults = [one for one in rejected if one["reason"] != "near duplicate"]
    if faults:
        print("\n".join(map(catalogue.fault_line, faults)), file=sys.stderr)
        raise UserError(f"--strict: {cli.counted(len(faults), 'row')} can't be used, see above; nothing was written")


def choose_products(found: catalogue.Catalogue, args) -> tuple[list[dict], list[dict], Counter, list[str]]:
    """Products with captions, rows left out, the categories' counts, the columns with values; settles --stratify_by."""
    products, rejected, categories = sources.select_products(found, args.category, args.category_column)
    columns = [name for name in found.columns if any(one["attributes"].get(name) for one in products)]
    if args.stratify_by is None:
        args.stratify_by = ["colour"] if "colour" in columns else []
    check_columns(args, columns)
    if not args.analyse_only:
        products, silent = captions.caption_products(
            products, args.caption_template, args.caption_columns, args.trigger_word, default_template(args)
        )
        rejected = rejected + silent
    if not products:
        why = ", ".join(f"{n}: {what}" for what, n in Counter(one["reason"] for one in rejected).most_common(3))
        first = "".join(f"; the first, {catalogue.fault_line(one)}" for one in rejected[:1])
        raise UserError(f"{' '.join(source_of(args))}: not one image can be used ({why}){first}")
    return products, rejected, categories, columns


def read_kept(args: argparse.Namespace) -> dict[str, str]:
    """{id: split} of the products that have their place already."""
    own = any((args.output_dir / name).exists() for name in ("splits.json", "metadata.json"))
    keep_from = args.keep_splits or (args.output_dir if own and not args.new_splits else None)
    return dataset.read_saved_splits(keep_from) if keep_from else {}


def is_up_to_date(args: argparse.Namespace, request: dict) -> bool:
    """Whether the folder holds what is asked for; what it holds otherwise is not replaced unasked."""
    folder = args.output_dir
    if not (folder.exists() and any(folder.iterdir())):
        return False
    changes = dataset.changes_since(folder, request) + (["--new_splits"] if args.new_splits else [])
    if changes and not args.overwrite:
        what = f"--output_dir {folder} exists, and {'; '.join(changes)}"
        raise UserError(f"{what}. Add --overwrite to replace it; splits are kept")
    if changes:
        print(f"{folder} will be replaced: {'; '.join(changes)}")
    else:
        print(f"{folder} is up to date: same images, same options. Nothing to do. (Contents: --verify)")
    return not changes


def warn_of_empty(counts: dict[str, int], ratio: list[float]) -> None:
    """A split that was asked for and gets nothing: the set is tiny."""
    for split, share in zip(dataset.SPLITS, ratio):
        if share and not counts[split]:
            print(f"warning: {split} gets no image; there are too few for --split_ratio {ratio}", file=sys.stderr)


def describe_plan(args, products: list[dict]) -> None:
    """What --dry_run says: the table's shares and what would be written."""
    for column, counts in report.count_values(products, list(SHARES)).items():
        first = [f"{name} {count / len(products):.1%}" for name, count in list(counts.items())[:6]]
        print(f"{column}: {', '.join(first)}")
    images = cli.counted(len(products), "image")
    if args.analyse_only:
        print(f"would read {images} and write {args.output_dir}: report.txt, analysis.json, figures/")
        return
    expected = splits.apportion(len(products), dict(zip(dataset.SPLITS, args.split_ratio)))
    sizes = ", ".join(f"{split} {count:,}" for split, count in expected.items())
    texts = [one["caption"] for one in products]
    print(f"first caption: {next(filter(None, texts), 'none')}")
    if empty := texts.count(""):
        print(portraits.describe_silent(empty, len(texts), args.trigger_word))
    if args.portraits and not args.face_detector:
        print(f"no --face_detector: {portraits.NO_DETECTOR}")
    print(f"would write {args.output_dir}: {sizes}, if every image is good")
    if args.write_prompt_plan:
        shares = f", filling up {' and '.join(args.balance)}" if args.balance else " in the training split's shares"
        print(f"would write prompt_plan.jsonl for {cli.counted(args.write_prompt_plan, 'image')}{shares}")
    warn_of_empty(expected, args.split_ratio)


def image_work(args: argparse.Namespace, models: faces.Faces | None) -> Callable:
    """What is done with each image: source -> (image, size, facts)."""
    most = int(args.max_megapixels * 1e6)
    if not args.portraits:
        return partial(square_image, side=args.resolution, pad=args.pad, crop=args.crop, max_pixels=most)
    limits = portraits.Limits(
        args.min_sharpness, tuple(args.exposure), args.max_enlargement, args.min_face_share, args.any_faces
    )
    shapes = portraits.portrait_shapes(args.resolution, args.aspect_ratio_buckets)
    return partial(
        portraits.prepare_portrait,
        faces=models,
        shapes=shapes,
        face_crop=args.face_crop,
        limits=limits,
        max_pixels=most,
    )


def prepare(
    folder: Path, args, dataset, chosen: tuple, kept: dict, about: dict, tokenizer, fit: Callable
) -> tuple[dict, dict]:
    """Read the images and fill the folder; what analysis.json and (with --analyse_only empty) metadata.json hold."""
    products, rejected, columns = chosen
    images = None if args.analyse_only else folder / "images"
    if images:
        images.mkdir()
    good, bad = process_all(products, dataset, partial(process_image, folder=images, fit=fit), args.num_workers)
    if args.portraits:  # of two alike the one with more pixels is kept, of equal ones that with a caption, the sharper
        good.sort(key=lambda one: (one["quality"]["enlarged"], not one["text"], -one["quality"]["sharpness"]))
    old_first = sorted(good, key=lambda one: one["id"] not in kept)  # so that old ones are paired with old ones
    within, beyond = find_look_alikes(old_first, args.duplicate_threshold)
    linked = [pair[:2] for pair in within]
    placed, out, places = place_products(good, linked, kept, args)
    rejected = rejected + bad + out
    if args.strict:
        refuse_faults(rejected)
    if not placed:
        first = catalogue.fault_line(rejected[0])
        raise UserError(f"{' '.join(source_of(args))}: not one image can be used; the first, {first}")
    analysis = about | report.analyse(placed, rejected, SHARES, args.resolution)
    if args.portraits:
        analysis["photos"] = portraits.photo_rows(products, good, rejected)
        analysis["shapes"] = portraits.portrait_shapes(args.resolution, args.aspect_ratio_buckets)
    limits = {"bits": args.duplicate_threshold, "colour": COLOUR_LIMIT}
    groups = splits.groups_of_pairs(linked)
    analysis["duplicates"] = limits | {"pairs": within, "beyond": beyond[:40], "groups": groups}

    def load(product: dict) -> Image.Image:
        if images:
            return Image.open(images / f"{product['id']}.png")
        return fit(sources.image_source(dataset, product["image"]))[0]

    report.write_analysis(folder, analysis, good, load)
    if args.analyse_only:
        files.write_manifest(folder)
        return analysis, {}
    return analysis, write_dataset(folder, args, analysis, placed, places, columns, tokenizer)


def main(args: argparse.Namespace) -> int:
    if args.verify:
        images, broken = dataset.verify_dataset(args.verify, args.num_workers)
        verdict = f"promises broken: {len(broken)}" if broken else "every promise holds"
        print("\n".join([*broken, f"{args.verify}: {cli.counted(images, 'image')}, {verdict}"]))
        return 1 if broken else 0
    cli.show_settings(args)
    check_output(args)
    tokenizer = None if args.analyse_only else captions.load_tokenizer(args.tokenizer)  # first: it may be missing
    models = faces.load_faces(args.face_detector) if args.face_detector else None  # it, too, may be missing
    found = sources.read_catalogue(
        *source_of(args)[::-1], args.image_column, args.caption_column, args.dataset_config_name, args.dataset_split
    )  # fmt: skip
    facts = report.catalogue_facts(found)
    print("\n".join(report.catalogue_lines(facts)))
    products, rejected, categories, columns = choose_products(found, args)
    kept = read_kept(args)
    left_aside = NOT_IN_RESULT if args.portraits else [*NOT_IN_RESULT, *flags.OF_PORTRAITS]
    options = {key: value for key, value in vars(args).items() if key not in left_aside}
    if models:
        options["face_detector"] = files.file_sha256(models.detector_file)[:16]
    request = {
        "options": options,
        "source_fingerprint": sources.source_fingerprint(found, products, rejected),
        "kept_splits": hashlib.sha256(json.dumps(kept).encode()).hexdigest() if args.keep_splits else None,
    }
    if is_up_to_date(args, request):
        return 0
    if args.strict:
        refuse_faults(rejected)
    left = cli.counted(len(rejected), "row")
    print(f"{cli.counted(len(products), 'image')} to read, {left} left out already, {len(kept):,} splits to keep")
    if args.dry_run:
        describe_plan(args, products)
        return 0
    about = request | {"catalogue": facts, "categories": dict(categories.most_common())}
    with files.replaced_folder(args.output_dir) as folder:
        chosen = products, rejected, columns
        fit = image_work(args, models)
        analysis, metadata = prepare(folder, args, found.dataset, chosen, kept, about, tokenizer, fit)
    print(report.report_text(analysis))
    if metadata:
        print(", ".join(f"{split} {metadata['counts'][split]:,}" for split in dataset.SPLITS))
        warn_of_empty(metadata["counts"], args.split_ratio)
        told = metadata["captions"]
        longest = f"longest {told['longest']}, by {told['counted_by']}"
        print(f"captions over {told['limit']} tokens: {told['over_limit']} ({longest})")
        if told["empty"]:
            print(portraits.describe_silent(told["empty"], metadata["counts"]["written"], args.trigger_word))
    print(f"written: {args.output_dir}")
    return 0


if __name__ == "__main__":
    arguments = parse_args()
    cli.run(main, arguments)
