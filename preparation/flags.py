"""The flags of prepare_dataset.py, in groups, for a catalogue and for portraits."""

import argparse
from argparse import BooleanOptionalAction as OnOff
from pathlib import Path

from PIL import ImageColor

from preparation.captions import DEFAULT_TEMPLATE
from preparation.messages import check_beside_verify, describe_ratio
from preparation.model_captions import DEFAULT_MODEL, DEFAULT_PROMPT
from utils import cli
from utils.catalogue import canonical
from utils.cli import Parser, Range, pixels, seed_number, share, workers, zero_or_more
from utils.faces import add_face_flags
from utils.parallel import available_cores
from utils.wording import PLACEHOLDER, has_stray_brace

OF_PORTRAITS = (
    "face_detector face_crop use_aspect_ratio_buckets min_sharpness exposure max_enlargement min_face_share any_faces"
).split()
RENAMED = {
    "aspect_ratio_buckets": "is now --use_aspect_ratio_buckets",
    "no-aspect_ratio_buckets": "is now --no-use_aspect_ratio_buckets",
}
OF_CATALOGUES = "crop pad category dataset_config_name balance write_prompt_plan".split()


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_catalogue_flags(parser)
    add_portrait_flags(parser)
    add_cleaning_flags(parser)
    add_split_flags(parser)
    add_result_flags(parser)


def add_catalogue_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("catalogue")
    group.add_argument(
        "--catalogue", metavar="DIR|HUB_ID|s3://…", help="a folder in one of the layouts above, or a hub id"
    )
    group.add_argument(
        "--category", nargs="+", action="extend", metavar="NAME", help="categories to include (default: all)"
    )
    group.add_argument("--category_column", default="article", help="the column that --category looks in")
    group.add_argument("--image_column", help="default: file_name of an imagefolder, image of a hub dataset")
    group.add_argument("--caption_column", default="text", help="captions of an imagefolder or a hub dataset")
    group.add_argument("--dataset_config_name", metavar="NAME", help="of a hub dataset that has several")
    group.add_argument("--dataset_split", default="train", metavar="NAME", help="the split of a hub dataset to read")


def add_portrait_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("portraits (in place of --catalogue)")
    group.add_argument("--portraits", metavar="DIR|s3://…", help="photos of one person or subject, to check and crop")
    add_face_flags(group)
    group.add_argument("--use_aspect_ratio_buckets", action=OnOff, default=True, help="keep proportions, same area")
    cli.add_refused_flags(parser, RENAMED)
    group.add_argument("--min_sharpness", type=Range(0, 1_000_000), default=5, help="variance of the Laplacian")
    group.add_argument(
        "--exposure",
        type=Range(0, 255),
        nargs=2,
        default=[25, 245],
        metavar=("LOW", "HIGH"),
        help="mean brightness, of 255",
    )
    group.add_argument(
        "--max_enlargement", type=Range(1, 100), default=2, help="largest factor by which a crop may be enlarged"
    )
    group.add_argument("--min_face_share", type=share, default=0.02, help="of the crop's area")
    group.add_argument("--any_faces", action=OnOff, default=False, help="keep photos with no face, or with several")


def add_cleaning_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to do")
    group.add_argument(
        "--analyse_only", action="store_true", help="write report.txt, analysis.json and figures; images may be missing"
    )
    group.add_argument("--verify", type=Path, metavar="DIR", help="read a dataset again, check every file, and stop")

    group = parser.add_argument_group("cleaning and duplicates")
    group.add_argument(
        "--strict", action=OnOff, default=False, help="anything left out is an error; nothing is written"
    )
    group.add_argument(
        "--max_megapixels", type=Range(0, 10_000, above=True), default=100, help="larger images are left out"
    )
    group.add_argument(
        "--duplicate_threshold",
        type=Range(0, 64, int),
        default=16,
        metavar="BITS",
        help="look-alikes: images whose hashes differ in no more of 256 bits",
    )
    group.add_argument(
        "--drop_duplicates", action=OnOff, help="keep one of each group of look-alikes; default: of portraits"
    )


def add_split_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("split")
    group.add_argument(
        "--split_ratio",
        type=Range(0, cli.MANY),
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares, any unit; default: 70 15 15, and 100 0 0 for portraits",
    )
    group.add_argument("--stratify_by", nargs="*", metavar="COLUMN", help="default: colour, if there is such a column")
    group.add_argument("--min_stratum", type=zero_or_more, default=10, help="values with fewer are pooled as Other")
    group.add_argument("--seed", type=seed_number, default=0, help="another seed gives other splits; kept splits stay")
    group.add_argument(
        "--keep_splits", type=Path, metavar="DIR|splits.json", help="default: --output_dir's own, if any"
    )
    group.add_argument("--new_splits", action="store_true", help="ignore the splits of the dataset that is replaced")


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "--resolution", type=pixels, default=512, help="side of the square PNG in pixels; of portraits: about this area"
    )
    group.add_argument(
        "--pad", default="edge", metavar="edge|COLOUR", help="edge: the image's border; or white, #f0f0f0 …"
    )
    group.add_argument("--crop", choices=["none", "centre", "foreground"], default="none", help="before it is fitted")

    group = parser.add_argument_group("captions")
    group.add_argument(
        "--caption_template", help=f"with {{column}} placeholders; default: of photos none, or {DEFAULT_TEMPLATE}"
    )
    group.add_argument(
        "--sidecar_captions", action=OnOff, default=False, help="<id>.txt beside each image, for kohya and others"
    )
    group.add_argument(
        "--caption_model",
        nargs="?",
        const=DEFAULT_MODEL,
        metavar="HUB_ID|DIR",
        help=f"a vision-language model that describes each image, in place of other captions; {DEFAULT_MODEL} if none "
        "is named",
    )
    group.add_argument("--caption_prompt", metavar="TEXT", help=f"what it is asked; default: {DEFAULT_PROMPT}")
    group.add_argument(
        "--caption_batch_size", type=cli.at_once, default=4, metavar="N", help="images that it sees at once"
    )
    group.add_argument("--trigger_word", help="put before every caption without it")
    group.add_argument("--caption_columns", nargs="+", metavar="COLUMN", help="the only ones to fill in (default: all)")
    group.add_argument(
        "--tokenizer", metavar="DIR|HUB_ID|demo", help="counts tokens; default: the base model's, if cached"
    )

    group = parser.add_argument_group("prompt plan for generate.py")
    group.add_argument("--write_prompt_plan", type=Range(1, 1_000_000, int), metavar="N", help="for N images")
    group.add_argument(
        "--balance", nargs="+", default=[], metavar="COLUMN", help="fill up what is rare in the training split"
    )

    group = parser.add_argument_group("output and performance")
    group.add_argument("--output_dir", type=Path, help="the dataset's folder")
    group.add_argument(
        "--overwrite", action="store_true", help="replace what is there; what no script wrote is moved aside"
    )
    group.add_argument("--num_workers", type=workers, help="processes; default: all cores")


def check_flags(parser: Parser, args: argparse.Namespace) -> argparse.Namespace:
    """What argparse can't check by itself; column names in their short form."""
    if args.verify:
        check_beside_verify(parser, args)
        args.num_workers = args.num_workers or available_cores()
        return args
    if args.split_ratio is None:
        args.split_ratio = [100, 0, 0] if args.portraits else [70, 15, 15]
    args.drop_duplicates = bool(args.portraits) if args.drop_duplicates is None else args.drop_duplicates
    if args.portraits:
        check_portraits(parser, args)
    else:
        ignore(parser, args, OF_PORTRAITS, "--portraits")
    args.num_workers = args.num_workers or available_cores()
    if not (args.catalogue or args.portraits):
        parser.error("--catalogue DIR, --portraits DIR or --verify DIR: give one of them")
    if not args.output_dir:
        place = args.catalogue or args.portraits
        parser.error(f"--output_dir: is missing; give the folder to write, not inside {place}")
    check_values(parser, args)
    check_caption_model(parser, args)
    if not args.write_prompt_plan:
        ignore(parser, args, ["balance"], "--write_prompt_plan")
    args.category_column = canonical(args.category_column)
    for flag in ("stratify_by", "balance", "caption_columns"):
        if names := getattr(args, flag):
            setattr(args, flag, [canonical(name) for name in names])
    if args.caption_template:
        if has_stray_brace(args.caption_template):
            what = "a brace outside a {column} placeholder; a placeholder holds a column's name alone"
            parser.error(f"--caption_template {args.caption_template}: {what}")
        args.caption_template = PLACEHOLDER.sub(lambda key: f"{{{canonical(key[1])}}}", args.caption_template)
    return args


def ignore(parser: Parser, args: argparse.Namespace, names: list[str], needed: str) -> None:
    """Refuse flags that do nothing here; those of a recipe get a warning and their default."""
    cli.report_ignored(parser, args, {name: (needed, False) for name in names})
    for name in names:
        setattr(args, name, parser.get_default(name))


def check_caption_model(parser: Parser, args: argparse.Namespace) -> None:
    """What does not go with captions by a model, or does nothing without them; what it is asked by default."""
    for name in ("caption_model", "caption_prompt"):
        if (value := getattr(args, name)) is not None and not value.strip():
            parser.error(f"--{name} '{value}': is empty; give another value, or leave --{name} out")
    if not args.caption_model:
        return ignore(parser, args, ["caption_prompt", "caption_batch_size"], "--caption_model")
    for name in ("caption_template", "caption_columns", "analyse_only"):
        if value := getattr(args, name):
            parser.error(f"{cli.spell_flag(name, value)}: not with --caption_model {args.caption_model}; leave one out")
    args.caption_prompt = args.caption_prompt or DEFAULT_PROMPT


def check_values(parser: Parser, args: argparse.Namespace) -> None:
    """Values that are out of range, and flags that exclude each other."""
    ratio, plan = args.split_ratio, args.write_prompt_plan
    if not ratio[0]:
        parser.error(f"{describe_ratio(ratio)}: expected e.g. 70 15 15")
    if plan and args.analyse_only:
        parser.error("--write_prompt_plan needs a dataset; leave out --analyse_only")
    if args.keep_splits and args.new_splits:
        parser.error("--keep_splits and --new_splits exclude each other")
    try:
        args.pad == "edge" or ImageColor.getrgb(args.pad)
    except ValueError:
        parser.error(f"--pad {args.pad}: expected edge, white, or a colour such as #f0f0f0")


def check_portraits(parser: Parser, args: argparse.Namespace) -> None:
    """The flags of --portraits; those of catalogues do nothing with it."""
    if args.catalogue:
        parser.error(f"--catalogue {args.catalogue}: does not go with --portraits; give one of them")
    ignore(parser, args, OF_CATALOGUES, "--catalogue in place of --portraits")
    low, high = args.exposure
    if low >= high:
        parser.error(f"--exposure {low:g} {high:g}: expected the first number below the second")
    side = args.resolution
    if side % 8:
        near = f"such as {round(side / 8) * 8}; Stable Diffusion itself takes multiples of 64"
        parser.error(f"--resolution {side}: expected a multiple of 8, {near}")
    args.face_detector = args.face_detector or ("yunet" if args.face_crop else None)
    if not args.face_detector:
        ignore(parser, args, ["min_face_share", "any_faces"], "--face_detector")
    elif args.num_workers not in (None, 1):
        parser.error(f"--num_workers {args.num_workers}: --face_detector works in 1 process; leave --num_workers out")
    else:
        args.num_workers = 1
