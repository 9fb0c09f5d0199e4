"""Turn a raw product catalogue into a dataset that can be trusted: read, clean, split without leakage, caption, write.

The catalogue is a folder with styles.csv + images/, images with <name>.txt captions, an imagefolder with
metadata.jsonl or metadata.csv, or a hub dataset id. Every row that is left out has its reason in metadata.json.
Photos of one person or subject go through --portraits instead: checked and cropped to the shapes that training takes.

    python prepare_dataset.py --catalogue data/raw --category "Casual Shoes" --output_dir data/casual_shoes
    python prepare_dataset.py --catalogue data/raw --category Sandals "Flip Flops" --output_dir data/sandals
    python prepare_dataset.py --portraits photos/me --face_detector yunet --face_crop --output_dir data/me
    python prepare_dataset.py --verify data/casual_shoes
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

from utils import cli  # first: it says in one line which package is missing

# isort: split
from PIL import Image

from preparation import captions, existing, flags, labels, messages, portraits, report, selection, splits, writing
from preparation.look_alikes import find_look_alikes
from preparation.model_captions import caption_images, load_captioner
from preparation.processing import Framing, fit_image, process_images
from preparation.prompt_plan import write_prompt_plan
from preparation.records import Example
from preparation.verify import verify_dataset
from utils.catalogue import Product, Rejected, Source, file_or_bytes, read_catalogue, reject_product
from utils.cli import UserError, counted
from utils.dataset import SPLITS
from utils.faces import Faces, load_faces
from utils.files import file_sha256, write_json, write_manifest
from utils.hub import check_name
from utils.outputs import replaced_folder
from utils.storage import fetch
from utils.wording import PLACEHOLDER

LEAST_TO_EVALUATE = 50  # real images, for evaluation/quality.py
SHARES = ("colour", "gender", "season", "usage", "year")
# Settings that do not change the result.
NOT_IN_RESULT = (
    "config dry_run verbose debug verify strict output_dir overwrite num_workers catalogue portraits "
    "keep_splits new_splits caption_batch_size"
).split()


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    flags.add_flags(parser)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    return flags.check_flags(parser, cli.parse_args(parser, argv))


def check_columns(args: argparse.Namespace, columns: list[str], template: str | None) -> None:
    """Refuse flags that name a missing column."""
    selection.check_columns("--stratify_by", args.stratify_by, columns)
    selection.check_columns("--balance", args.balance, columns)
    used = PLACEHOLDER.findall(args.caption_template or template or "")
    if args.caption_template:
        selection.check_columns("--caption_template", used, columns)
    for name in args.caption_columns or []:
        if name not in used:
            raise UserError(f"--caption_columns {name}: the template has no {{{name}}}; add it to --caption_template")


def warn_of_small_splits(args: argparse.Namespace, counts: dict[str, int]) -> None:
    """Warn of a split without images, and of a test split against which evaluate.py can't judge quality."""
    messages.warn_of_empty_splits(args.split_ratio, counts, "image")
    if not args.portraits and 0 < counts["test"] < LEAST_TO_EVALUATE:
        print(
            f"warning: test gets {counted(counts['test'], 'image')}: evaluate.py judges quality from "
            f"{LEAST_TO_EVALUATE} real images on, a Fréchet distance from {2 * LEAST_TO_EVALUATE}; give it a larger "
            "share with --split_ratio, or more images",
            file=sys.stderr,
        )


def options_of(args: argparse.Namespace, faces: Faces | None) -> dict[str, Any]:
    """The settings that change the result, as metadata.json keeps them."""
    left_out = [*NOT_IN_RESULT, *(() if args.portraits else flags.OF_PORTRAITS)]
    left_out += [] if args.caption_model else ["caption_model", "caption_prompt"]
    names = {"use_aspect_ratio_buckets": "aspect_ratio_buckets"}  # as in datasets that exist
    options = {names.get(key, key): value for key, value in vars(args).items() if key not in left_out}
    options = cli.mask_secrets(options)
    return options | ({"face_detector": file_sha256(faces.detector_file)[:16]} if faces else {})


def framing_of(args: argparse.Namespace, faces: Faces | None) -> Framing:
    rules = None
    if args.portraits:
        limits = portraits.Limits(
            args.min_sharpness, tuple(args.exposure), args.max_enlargement, args.min_face_share, args.any_faces
        )
        shapes = portraits.portrait_shapes(args.resolution, args.use_aspect_ratio_buckets)
        rules = portraits.PortraitRules(shapes, args.face_crop, limits)
    return Framing(args.resolution, args.pad, args.crop, int(args.max_megapixels * 1e6), rules, faces)


def print_plan(args: argparse.Namespace, rows: list[Product] | list[Rejected], images: int, texts: list[str]) -> None:
    """For --dry_run: the shares in the table, and what would be written."""
    for column, counts in report.count_values(rows, SHARES).items():
        first = [f"{name} {count / len(rows):.1%}" for name, count in list(counts.items())[:6]]
        print(f"{column}: {', '.join(first)}")
    if args.analyse_only:
        what = f"would read {counted(images, 'image')} and write {args.output_dir}"
        print(f"{what}: report.txt, analysis.json, figures/")
        return
    if args.caption_model:
        print(f"captions: by {args.caption_model}, asked: {args.caption_prompt}")
    else:
        print(f"first caption, if on white: {next(filter(None, texts), 'none')}")
    if not args.caption_model and (empty := texts.count("")):
        print(portraits.describe_missing_captions(empty, len(texts), args.trigger_word))
    if args.portraits and not args.face_detector:
        print(f"no --face_detector: {portraits.NO_DETECTOR}")
    expected = splits.apportion(images, dict(zip(SPLITS, args.split_ratio)))
    sizes = ", ".join(f"{split} {count:,}" for split, count in expected.items())
    print(f"would write {args.output_dir}: {sizes}, if every image is good")
    if args.write_prompt_plan:
        shares = f", filling up {' and '.join(args.balance)}" if args.balance else " in the training split's shares"
        print(f"would write prompt_plan.jsonl for {counted(args.write_prompt_plan, 'image')}{shares}")
    warn_of_small_splits(args, expected)


def print_result(args: argparse.Namespace, metadata: dict[str, Any]) -> None:
    """The sizes of the splits, and the captions that are too long or missing."""
    counts, lengths = metadata["counts"], metadata["captions"]
    print(", ".join(f"{split} {counts[split]:,}" for split in SPLITS))
    warn_of_small_splits(args, counts)
    longest = f"longest {lengths['longest']}, by {lengths['counted_by']}"
    print(f"captions over {lengths['limit']} tokens: {lengths['over_limit']} ({longest})")
    if lengths["empty"]:
        print(portraits.describe_missing_captions(lengths["empty"], counts["written"], args.trigger_word))


def main(args: argparse.Namespace) -> int:
    if args.verify:
        return messages.report_verification(args.verify, "image", *verify_dataset(args.verify, args.num_workers))
    cli.show_settings(args)
    source = Source(
        args.portraits or args.catalogue,
        "--portraits" if args.portraits else "--catalogue",
        args.image_column,
        args.caption_column,
        args.dataset_config_name,
        args.dataset_split,
        images_needed=not args.analyse_only,
    )
    models = {name: getattr(args, name) for name in ("tokenizer", "face_detector", "caption_model")}
    existing.check_output(args.output_dir, (source.flag, source.name), args.overwrite, args.analyse_only, models)
    if args.caption_model:
        check_name("--caption_model", args.caption_model)
    # Models that may be missing are loaded before any work.
    tokenizer = None if args.analyse_only else captions.load_tokenizer(args.tokenizer)
    faces = load_faces(args.face_detector) if args.face_detector else None

    # Read the catalogue.
    copy = fetch(source.name, args.output_dir.parent / "cache", source.flag)
    found = read_catalogue(replace(source, name=str(copy)))
    print("\n".join(report.catalogue_lines(found)))

    # Choose the products and write their captions.
    products, rejected, categories = selection.select_products(found, args.category, args.category_column)
    rows = products or selection.rows_without_image(rejected)
    columns = [name for name in found.columns if any(one.attributes.get(name) for one in rows)]
    if args.stratify_by is None:
        args.stratify_by = ["colour"] if "colour" in columns else []
    # A photo may show anything, and a model says what it sees.
    template = None if args.portraits or args.caption_model else captions.DEFAULT_TEMPLATE
    check_columns(args, columns, template)
    texts: dict[str, str] = {}
    if not args.analyse_only:
        texts, without = captions.caption_products(
            products, args.caption_template, args.caption_columns, args.trigger_word, template
        )
        products, rejected = [one for one in products if one.id in texts], rejected + without
    if not products and not (args.analyse_only and rows):
        messages.refuse_all(f"{source.flag} {source.name}", "image", rejected)

    # Compare with what the folder holds.
    kept = existing.read_kept_splits(args.output_dir, args.keep_splits, args.new_splits)
    fingerprint = selection.source_fingerprint(found, products, rejected)
    request = existing.make_request(options_of(args, faces), fingerprint, kept if args.keep_splits else None)
    if existing.is_up_to_date(args.output_dir, request, args.new_splits, args.overwrite):
        return 0
    if args.strict:
        messages.refuse_any(rejected, "near duplicate")
    print(messages.describe_work(products, "image", rejected, kept))
    if args.dry_run:
        print_plan(args, rows, len(products), list(texts.values()))
        return 0

    captioner = None
    if args.caption_model:
        captioner = load_captioner(args.caption_model, args.caption_prompt, args.caption_batch_size)

    with replaced_folder(args.output_dir) as folder:
        # Process the images.
        images = None if args.analyse_only else folder / "images"
        if images:
            images.mkdir()
        framing = framing_of(args, faces)
        facts = process_images(products, found.dataset, framing, images, args.num_workers)
        good = [one for one in products if not facts[one.id].fault]
        bad = [reject_product(one, *facts[one.id].fault) for one in products if facts[one.id].fault]
        if args.portraits:
            good = portraits.best_first(good, facts)

        # Find look-alikes, and place the products in splits.
        old_first = sorted(good, key=lambda one: one.id not in kept)  # so that old ones are paired with old ones
        look_alikes = find_look_alikes({one.id: facts[one.id] for one in old_first}, args.duplicate_threshold)
        ratio = dict(zip(SPLITS, args.split_ratio))
        rules = splits.SplitRules(ratio, args.stratify_by, args.min_stratum, args.seed, args.drop_duplicates)
        placed = splits.place_products(good, [pair[:2] for pair in look_alikes.pairs], kept, rules)
        rejected = rejected + bad + placed.rejected
        if args.strict:
            messages.refuse_any(rejected, "near duplicate")
        usable = [one for one in good if one.id in placed.splits]
        if not usable and not args.analyse_only:
            messages.refuse_all(f"{source.flag} {source.name}", "image", rejected)
        if template and not args.caption_template:
            texts = captions.correct_background(products, texts, {one.id for one in usable if facts[one.id].on_white})

        # Let a model describe the images.
        if captioner and images:
            files = {one.id: (images / f"{one.id}.png", facts[one.id].sha256) for one in usable}
            said = caption_images(captioner, files, args.output_dir.parent / "cache")
            texts |= {key: captions.add_trigger(text, args.trigger_word) for key, text in said.items()}
            columns = [*columns, "caption_by"]
            usable = [replace(one, attributes=one.attributes | {"caption_by": args.caption_model}) for one in usable]

        # Write the report.
        analysis = report.Analysis(
            request=request,
            catalogue=found,
            categories=categories,
            usable=len(usable),
            rejected=rejected,
            values=report.count_values(usable or selection.rows_without_image(rejected), SHARES),
            sizes=report.count_sizes([facts[one.id].size for one in usable], args.resolution),
            look_alikes=look_alikes,
            photos=portraits.photo_rows(products, facts, rejected) if args.portraits else None,
            shapes=framing.portraits.shapes if args.portraits else None,
            contradictions=labels.find_contradictions(usable, facts),
        )

        def load_image(product: Product) -> Image.Image:
            if images:
                return Image.open(images / f"{product.id}.png")
            return fit_image(file_or_bytes(found.dataset, product.image), framing).image

        report.write_analysis(folder, analysis, good, load_image)

        # Write the dataset.
        metadata = None
        if args.analyse_only:
            write_manifest(folder)
        else:
            examples = [Example(one, texts[one.id], facts[one.id], placed.splits[one.id]) for one in usable]
            members = {split: [one for one in examples if one.split == split] for split in SPLITS}
            sums = writing.write_splits(folder, members, columns, args.sidecar_captions)
            if args.write_prompt_plan:
                plan = folder / "prompt_plan.jsonl"
                write_prompt_plan(plan, members["train"], args.write_prompt_plan, args.balance)
            write_json(folder / "splits.json", placed.saved)
            in_order = [one.caption for split in SPLITS for one in members[split]]
            lengths = captions.measure_captions(in_order, tokenizer)
            metadata = writing.write_description(folder, source.name, analysis, members, lengths, sums)
    print("\n" + report.findings_text(analysis))
    if metadata:
        print_result(args, metadata)
    print(f"written: {args.output_dir}")
    return 0


if __name__ == "__main__":
    arguments = parse_args()
    cli.run(main, arguments)
