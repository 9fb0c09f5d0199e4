"""Turn a raw product catalogue into a dataset one can trust: read, clean, split without leakage, caption, write.

The catalogue is a folder with styles.csv + images/, pictures with <name>.txt captions, an imagefolder with metadata.jsonl
or metadata.csv, or a hub dataset id. What is left out is left out with a reason, in metadata.json.

    python prepare_dataset.py --catalogue data/raw --category "Casual Shoes" --output_dir data/casual_shoes
    python prepare_dataset.py --catalogue data/raw --category Sandals --category "Flip Flops" --output_dir data/sandals
    python prepare_dataset.py --verify data/casual_shoes
"""

import argparse
import difflib
import hashlib
import io
import json
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor
from tqdm import tqdm

from utils import captions, catalogue, cli, data, figures, files, images, parallel, report, splits

COLOUR_LIMIT = 3.0  # levels of 255, mean over 16x16 places: the same shoe in another colour is further off
TOKEN_LIMIT = 77
SHARES = ("colour", "gender", "season", "usage", "year")
OURS = ("metadata.json", "analysis.json")  # a folder without either was not written by this script


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    group = parser.add_argument_group("catalogue")
    group.add_argument("--catalogue", metavar="DIR|HUB_ID", help="a folder in one of the layouts above, or a hub id")
    group.add_argument("--category", action="append", metavar="NAME", help="products to take; may be repeated (all)")
    group.add_argument("--category_column", default="article", help="the column that --category looks in")
    group.add_argument("--image_column", help="default: file_name of an imagefolder, image of a hub dataset")
    group.add_argument("--caption_column", default="text", help="captions of an imagefolder or a hub dataset")
    group.add_argument("--dataset_config_name", metavar="NAME", help="of a hub dataset that has several")
    group.add_argument("--dataset_split", default="train", metavar="NAME", help="the split of a hub dataset to read")

    group = parser.add_argument_group("what to do")
    group.add_argument("--analyse_only", action="store_true", help="write report.txt, analysis.json and figures only")
    group.add_argument("--verify", type=Path, metavar="DIR", help="re-read a dataset, check every promise, and stop")

    group = parser.add_argument_group("cleaning and duplicates")
    group.add_argument("--strict", action="store_true", help="anything left out is an error; nothing is written")
    group.add_argument("--max_megapixels", type=float, default=100, help="above this it is a decompression bomb")
    group.add_argument("--duplicate_threshold", type=int, default=16, metavar="BITS", help="of 256 bits, 0 to 64")
    group.add_argument("--drop_duplicates", action="store_true", help="keep one product of each group of look-alikes")

    group = parser.add_argument_group("split")
    group.add_argument("--split_ratio", type=float, nargs=3, default=[70, 15, 15], metavar=("TRAIN", "VAL", "TEST"))
    group.add_argument("--stratify_by", nargs="*", metavar="COLUMN", help="default: colour, if there is such a column")
    group.add_argument("--min_stratum", type=int, default=10, help="values with fewer products are pooled as Other")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--keep_splits", type=Path, metavar="DIR|splits.json", help="default: --output_dir's own, if any"
    )
    group.add_argument("--new_splits", action="store_true", help="forget the splits of the dataset that is replaced")

    group = parser.add_argument_group("pictures")
    group.add_argument("--resolution", type=int, default=512, help="side of the square PNG, pixels")
    group.add_argument("--pad", default="edge", metavar="edge|white|#rrggbb", help="edge: the picture's border colour")
    group.add_argument("--crop", choices=["none", "centre", "foreground"], default="none", help="before it is fitted")

    group = parser.add_argument_group("captions")
    group.add_argument("--caption_template", help=f"with {{column}} placeholders; default: {captions.DEFAULT_TEMPLATE}")
    group.add_argument("--trigger_word", help="put before every caption")
    group.add_argument("--caption_columns", nargs="+", metavar="COLUMN", help="the only ones to fill in (all)")
    group.add_argument("--tokenizer", metavar="DIR|HUB_ID", help="counts tokens; default: the base model's, if cached")

    group = parser.add_argument_group("prompt plan for generate.py")
    group.add_argument("--write_prompt_plan", type=int, metavar="N", help="prompt_plan.jsonl for N pictures")
    group.add_argument(
        "--balance", nargs="+", default=[], metavar="COLUMN", help="fill up what the training split lacks"
    )

    group = parser.add_argument_group("output and performance")
    group.add_argument("--output_dir", type=Path, help="the dataset's folder")
    group.add_argument("--overwrite", action="store_true", help="replace the dataset that is there; splits are kept")
    group.add_argument("--num_workers", type=int, help="processes; default: all cores")
    return check_args(parser, cli.parse_args(parser, argv))


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """What argparse can't check by itself; column names in their short form."""

    def need(condition, message):
        if not condition:
            parser.exit(2, f"{parser.prog}: error: {message}\n")

    args.num_workers = parallel.available_cores() if args.num_workers is None else args.num_workers
    need(args.num_workers >= 1, f"--num_workers {args.num_workers}: expected 1 or more")
    if args.verify:
        return args
    need(args.catalogue and args.output_dir, "--catalogue and --output_dir are both needed (or --verify alone)")
    need(min(args.split_ratio) >= 0 < args.split_ratio[0], f"--split_ratio {args.split_ratio}: expected e.g. 70 15 15")
    need(0 <= args.duplicate_threshold <= 64, f"--duplicate_threshold {args.duplicate_threshold}: expected 0 to 64")
    need(16 <= args.resolution <= 4096, f"--resolution {args.resolution}: expected 16 to 4096 pixels")
    need(args.max_megapixels > 0, f"--max_megapixels {args.max_megapixels:g}: expected more than 0")
    plan = args.write_prompt_plan
    need(plan is None or plan > 0, f"--write_prompt_plan {plan}: expected 1 or more")
    need(plan or not args.balance, "--balance needs --write_prompt_plan N")
    need(not (plan and args.analyse_only), "--write_prompt_plan needs a dataset; leave out --analyse_only")
    need(not (args.keep_splits and args.new_splits), "--keep_splits and --new_splits exclude each other")
    try:
        args.pad == "edge" or ImageColor.getrgb(args.pad)
    except ValueError:
        need(False, f"--pad {args.pad}: expected edge, white, or a colour such as #f0f0f0")
    args.category_column = catalogue.canonical(args.category_column)
    for flag in ("stratify_by", "balance", "caption_columns"):
        if names := getattr(args, flag):
            setattr(args, flag, [catalogue.canonical(name) for name in names])
    return args


# Read -----------------------------------------------------------------------------------------------------------------


def read_catalogue(name: str, image_column, caption_column, config, split) -> catalogue.Catalogue:
    """Whatever the layout is: styles.csv wins over metadata.*, that over what `datasets` has saved, that over pictures."""
    folder = Path(name)
    if folder.is_file():
        raise cli.UserError(f"--catalogue {name}: is a file; give the folder it is in")
    if folder.is_dir():
        if (folder / "styles.csv").exists():
            return catalogue.read_styles(folder)
        tables = [path for path in sorted(folder.glob("metadata.*")) if path.suffix in (".jsonl", ".csv")]
        tables = tables or [path for path in sorted(folder.glob("*/metadata.*")) if path.suffix in (".jsonl", ".csv")]
        if tables:
            return catalogue.read_imagefolder(tables, image_column or "file_name", caption_column)
        saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
        if not saved and not any(folder.rglob("*.parquet")):
            return catalogue.read_folder(folder)
    return data.read_hub(name, config, split, image_column or "image", caption_column)


def select(found: catalogue.Catalogue, wanted: list[str] | None, column: str) -> tuple[list[dict], list[dict], Counter]:
    """The products and the rejected rows of the wanted categories, and how many there are of each category."""
    value = lambda entry: entry["attributes"].get(column)  # noqa: E731
    counts = Counter(value(entry) for entry in [*found.products, *found.rejected] if value(entry))
    if not wanted:
        return found.products, found.rejected, counts
    names = {name.lower(): name for name in counts}
    if not names:
        raise cli.UserError(f"--category: the catalogue has no column `{column}` (found: {', '.join(found.columns)})")
    for name in wanted:
        if name.lower() not in names:
            near = difflib.get_close_matches(name.lower(), names, n=3) or [
                key.lower() for key, _ in counts.most_common(5)
            ]
            choice = ", ".join(f'"{names[key]}" ({counts[names[key]]})' for key in near)
            raise cli.UserError(f'--category "{name}": no product has this {column}; there are {choice}')
    lower = {name.lower() for name in wanted}
    products = [one for one in found.products if (value(one) or "").lower() in lower]
    rejected = [one for one in found.rejected if not value(one) or value(one).lower() in lower]
    return products, rejected, counts


def source_fingerprint(found: catalogue.Catalogue, products: list[dict], rejected: list[dict]) -> str:
    """Changes with any row, and with the size or time of any picture; no picture is read."""
    digest = hashlib.sha256()
    if found.dataset is not None:
        digest.update(found.dataset._fingerprint.encode())
    for one in products:
        stat = one["image"].stat() if isinstance(one["image"], Path) else None
        facts = [one["id"], one["row"], one["text"], one["attributes"], stat and (stat.st_size, stat.st_mtime_ns)]
        digest.update(json.dumps(facts).encode())
    digest.update(json.dumps(rejected).encode())
    return digest.hexdigest()


# Look at every picture ------------------------------------------------------------------------------------------------


def square_picture(source: Path | bytes, side: int, pad: str, crop: str, max_pixels: int) -> tuple[Image.Image, tuple]:
    """A picture as it goes into the dataset, and the size it had; raises BadImage."""
    reduced = {"none": {"longest": side}, "centre": {"shortest": side}, "foreground": {}}[crop]
    image, size = images.read_image(source, max_pixels, **reduced)
    if images.is_blank(image):
        raise images.BadImage("blank or near uniform", f"{size[0]}x{size[1]}")
    if crop == "centre":
        short, (width, height) = min(image.size), image.size
        left, top = (width - short) // 2, (height - short) // 2
        image = image.crop((left, top, left + short, top + short))
    elif crop == "foreground":
        image = image.crop(images.foreground_box(image))
    return images.fit_square(image, side, pad), size


def process_picture(job: tuple[str, Path | bytes], folder: Path | None, **how) -> dict:
    """Read, clean, compare, and write <folder>/<id>.png (no folder: write nothing). Runs in a worker process."""
    product_id, source = job
    try:
        image, size = square_picture(source, **how)
    except images.BadImage as error:
        return {"reason": error.reason, "detail": error.detail}
    result = {"size": size, "hash": images.perceptual_hash(image), "thumb": images.colour_thumb(image)}
    if folder:
        png = io.BytesIO()
        image.save(png, "PNG")
        (folder / f"{product_id}.png").write_bytes(png.getvalue())
        result["sha256"] = hashlib.sha256(png.getvalue()).hexdigest()
    return result


def process_all(products: list[dict], dataset, work, workers: int) -> list[dict]:
    """The rows of those that can't be used; the others get what `work` found out."""
    jobs = (
        (one["id"], one["image"] if isinstance(one["image"], Path) else data.hub_bytes(dataset, one["image"]))
        for one in products
    )
    rejected = []
    bar = tqdm(total=len(products), unit=" images", desc="pictures", smoothing=0.05)
    with bar:
        for one, result in zip(products, parallel.parallel_map(work, jobs, workers)):
            bar.update()
            if "reason" in result:
                kept = {key: one[key] for key in ("id", "row", "attributes")}
                rejected.append(kept | {"reason": result["reason"], "detail": result["detail"]})
            else:
                one |= result
    return rejected


# Say what is there ----------------------------------------------------------------------------------------------------


def find_look_alikes(products: list[dict], bits: int) -> tuple[list[tuple], list[tuple]]:
    """Pairs within the threshold, and those a little beyond it, by which a person can judge it: (id, id, bits, colour)."""
    if len(products) < 2:
        return [], []
    hashes, thumbs = (np.stack([one[key] for one in products]) for key in ("hash", "thumb"))
    pairs = images.near_pairs(hashes, thumbs, bits + 12, COLOUR_LIMIT + 2)
    named = [(products[i]["id"], products[j]["id"], distance, colour) for i, j, distance, colour in pairs]
    within = [pair for pair in named if pair[2] <= bits and pair[3] <= COLOUR_LIMIT]
    return within, [pair for pair in named if pair[2] > bits or pair[3] > COLOUR_LIMIT]


def catalogue_facts(found: catalogue.Catalogue) -> dict:
    unreadable = [
        one["row"] for one in found.rejected if one["reason"] in ("row can't be read", "no id", "no file_name")
    ]
    return {
        "kind": found.kind,
        "rows": found.rows,
        "columns": found.columns,
        "recovered_rows": found.recovered,
        "unreadable_rows": unreadable,
        "notes": found.notes,
    }


def analyse(found, args, products: list[dict], rejected: list[dict], categories: Counter, look_alikes) -> dict:
    """analysis.json."""
    within, beyond = look_alikes
    groups = splits.group_linked([one["id"] for one in products], [pair[:2] for pair in within])
    sizes = Counter("{}x{}".format(*one["size"]) for one in products)
    shares = report.count_values(products, list(SHARES))
    return {
        "catalogue": catalogue_facts(found),
        "categories": dict(categories.most_common()),
        "selection": {
            "categories": args.category,
            "rows": len(products) + len(rejected),
            "usable": len(products),
        },
        "problems": dict(Counter(one["reason"] for one in rejected).most_common()),
        "rejected": [{key: one[key] for key in ("id", "row", "reason", "detail")} for one in rejected],
        "shares": {column: report.with_shares(counts) for column, counts in shares.items()},
        "sizes": {
            "counts": dict(sizes.most_common()),
            "side": args.resolution,
            "enlarged": sum(max(one["size"]) < args.resolution for one in products),
        },
        "duplicates": {
            "bits": args.duplicate_threshold,
            "colour": COLOUR_LIMIT,
            "pairs": within,
            "groups": [group for group in groups if len(group) > 1],
            "beyond": beyond[:40],
        },
    }


def write_analysis(folder: Path, analysis: dict, products: list[dict], dataset, how: dict) -> str:
    """report.txt, analysis.json and figures/; the report's text."""
    text = report.report_text(analysis)
    (folder / "report.txt").write_text(text, encoding="utf-8")
    files.write_json(folder / "analysis.json", analysis)
    (folder / "figures").mkdir()
    shares = {column: {name: v["count"] for name, v in counts.items()} for column, counts in analysis["shares"].items()}
    figures.bar_panels(folder / "figures/shares.png", shares | {"image size": analysis["sizes"]["counts"]})
    by_id = {one["id"]: one for one in products}

    def tile(product_id, side=160):
        source = by_id[product_id]["image"]
        source = source if isinstance(source, Path) else data.hub_bytes(dataset, source)
        return square_picture(source, **how)[0].resize((side, side), Image.Resampling.LANCZOS)

    by_hash = sorted(by_id, key=lambda one: hashlib.sha256(f"{one}".encode()).digest())
    if by_hash:
        labels = [captions.word_value("colour", by_id[one]["attributes"].get("colour")) or one for one in by_hash[:24]]
        images.make_grid([tile(one) for one in by_hash[:24]], 6, labels).save(folder / "figures/samples.png")
    found = analysis["duplicates"]
    # The pairs nearest to the threshold, on either side of it: there is where one must look.
    pairs = [(*pair, "taken") for pair in found["pairs"][-18:]] + [
        (*pair, "not taken") for pair in found["beyond"][:18]
    ]
    if pairs:
        tiles = [images.make_grid([tile(a), tile(b)], 2, gap=0) for a, b, *_ in pairs]
        labels = [f"{a} {b}: {bits} bits, {colour:.1f}, {verdict}" for a, b, bits, colour, verdict in pairs]
        images.make_grid(tiles, 3, labels, gap=12).save(folder / "figures/pairs.png")
    return text


# Write ----------------------------------------------------------------------------------------------------------------


def caption_products(products: list[dict], args, columns: list[str]) -> list[dict]:
    """Give every product its caption; the rows of those for which there is nothing to say."""
    template = args.caption_template or captions.DEFAULT_TEMPLATE
    used = re.findall(r"\{(\w+)\}", template)
    unknown = [key for key in used if key not in columns]
    if args.caption_template and unknown:
        raise cli.UserError(f"--caption_template: no column `{unknown[0]}`; there are {', '.join(columns) or 'none'}")
    chosen = args.caption_columns or used
    for name in chosen:
        if name not in used:
            raise cli.UserError(
                f"--caption_columns {name}: the template has no {{{name}}}; add it to --caption_template"
            )
    rejected = []
    for one in products:
        said = {key: value for key, value in one["attributes"].items() if key in chosen and key in used}
        if one["text"] and not args.caption_template:
            text = one["text"]
        elif any(said.values()) or (args.caption_template and not used):
            text = captions.fill_template(template, said)
        else:
            detail = "no text of its own and nothing for the template to fill in"
            kept = {key: one[key] for key in ("id", "row", "attributes")}
            rejected.append(kept | {"reason": "no caption", "detail": detail})
            continue
        one["caption"] = captions.add_trigger(text, args.trigger_word)
    return rejected


def write_split(folder: Path, split: str, products: list[dict], columns: list[str]) -> dict[str, str]:
    """images/, ids.txt, captions.json and metadata.jsonl of one split; {file: sha256} of the pictures."""
    (folder / split / "images").mkdir(parents=True)
    sums, lines = {}, []
    for one in products:
        name = f"images/{one['id']}.png"
        (folder / "pictures" / f"{one['id']}.png").rename(folder / split / name)
        sums[f"{split}/{name}"] = one["sha256"]
        facts = {column: one["attributes"].get(column) for column in columns}
        lines.append({"file_name": name, "text": one["caption"], "id": one["id"], **facts})
    jsonl = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / split / "metadata.jsonl").write_text(jsonl, encoding="utf-8")
    (folder / split / "ids.txt").write_text("".join(f"{one['id']}\n" for one in products), encoding="utf-8")
    files.write_json(folder / split / "captions.json", {one["id"]: one["caption"] for one in products})
    return sums


def write_prompt_plan(path: Path, train: list[dict], count: int, level: list[str]) -> None:
    """One line per distinct prompt; `weight` is how many pictures of it the plan asks for."""
    plan_columns = [column for column in ("article", "colour", "gender", "season") if column not in level] + level
    records = [{"text": one["caption"], **one["attributes"]} for one in train]
    for column in level:
        if not any(record.get(column) for record in records):
            raise cli.UserError(f"--balance {column}: no product of the training split has this column")
    plan = captions.plan_prompts(records, count, plan_columns, level)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in plan), encoding="utf-8")


def wanted_options(args: argparse.Namespace) -> dict:
    """All that decides what is written; where to, how fast and how loud does not."""
    other = (
        ["config", "dry_run", "debug", "verify", "strict", "output_dir", "overwrite", "num_workers", "catalogue", "keep_splits", "new_splits"]
    )
    return {key: value for key, value in vars(args).items() if key not in other}


def is_current(folder: Path, request: dict, overwrite: bool) -> bool:
    """Whether the folder holds just what is asked for; an error where it holds something that may not be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    ours = next((folder / name for name in OURS if (folder / name).is_file()), None)
    if ours is None or not (folder / "MANIFEST.json").is_file():
        raise cli.UserError(f"--output_dir {folder}: exists and was not written by this script; name a new folder")
    try:
        old = json.loads(ours.read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in json.loads((folder / "MANIFEST.json").read_text()).items()}
        there = {name: stat.st_size for name, stat in files.list_files(folder).items() if name != "MANIFEST.json"}
        changes = [] if there == sizes else ["files in it are missing or changed (see --verify)"]
        was, now = old["request"], request
        changes += [
            f"{key} was {was['options'].get(key)}, now {value}"
            for key, value in now["options"].items()
            if was["options"].get(key) != value
        ]
        changes += ["the catalogue has changed"] if was["source"] != now["source"] else []
        changes += ["the splits to keep have changed"] if was["keep"] != now["keep"] else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        changes = ["it is damaged"]
    if changes and not overwrite:
        raise cli.UserError(
            f"--output_dir {folder} exists: {'; '.join(changes)}; add --overwrite to replace it (products keep their splits)"
        )
    return not changes


def place_products(products: list[dict], pairs: list[tuple], kept: dict[str, str], args) -> tuple[list, dict]:
    """Give products their splits; (those left out, {id: split} of every product that ever had a place)."""
    by_id = {one["id"]: one for one in products}
    reasons = {
        one: ("near duplicate across splits", why)
        for one, why in splits.settle_conflicts(list(by_id), pairs, kept).items()
    }
    ids = [one for one in by_id if one not in reasons]
    groups = splits.group_linked(ids, [(a, b) for a, b in pairs if a not in reasons and b not in reasons])
    twins = {}
    if args.drop_duplicates:
        groups = [sorted(group, key=lambda one: one not in kept) for group in groups]  # the one that was there stays
        twins = {twin: group[0] for group in groups for twin in group[1:]}
        reasons |= {twin: ("near duplicate", f"kept {first}") for twin, first in twins.items()}
        groups = [group[:1] for group in groups]
    members = [one for group in groups for one in group]
    values = [tuple(by_id[one]["attributes"].get(column) for column in args.stratify_by) for one in members]
    strata = dict(zip(members, splits.pool_rare(values, args.min_stratum)))
    ratio = dict(zip(splits.SPLITS, args.split_ratio))
    placed = splits.assign_splits(groups, strata, ratio, args.seed, kept)
    for one in members:
        by_id[one]["split"] = placed[one]
    placed |= {twin: placed[first] for twin, first in twins.items()}
    out = [
        {key: by_id[one][key] for key in ("id", "row", "attributes")} | {"reason": reason, "detail": detail}
        for one, (reason, detail) in reasons.items()
    ]
    return out, dict(sorted((kept | placed).items()))


def write_dataset(folder: Path, found, args, request: dict, analysis: dict, products: list[dict], places: dict) -> dict:
    """Everything but the report; metadata.json's content."""
    columns = [name for name in found.columns if any(one["attributes"].get(name) for one in products)]
    columns = [name for name in columns if name not in ("file_name", "text", "id")]
    sums, members = {}, {}
    for split in splits.SPLITS:
        members[split] = [one for one in products if one["split"] == split]
        sums |= write_split(folder, split, members[split], columns)
    for unused in (folder / "pictures").iterdir():
        unused.unlink()
    (folder / "pictures").rmdir()
    if args.write_prompt_plan:
        write_prompt_plan(folder / "prompt_plan.jsonl", members["train"], args.write_prompt_plan, args.balance)
    files.write_json(folder / "splits.json", places)
    count_tokens, counter = captions.load_tokenizer(args.tokenizer)
    lengths = count_tokens([one["caption"] for one in products])
    for split in splits.SPLITS:
        for name in ("metadata.jsonl", "ids.txt", "captions.json"):
            sums[f"{split}/{name}"] = files.file_sha256(folder / split / name)
    counts = {split: len(members[split]) for split in splits.SPLITS}
    metadata = {
        "format": data.FORMAT,
        "source": {"catalogue": args.catalogue, **analysis["catalogue"]},
        "options": request["options"],
        "counts": {**analysis["selection"], "written": len(products), "left_out": len(analysis["rejected"]), **counts},
        "shares": {
            column: analysis["shares"][column] for column in ("colour", "gender") if column in analysis["shares"]
        },
        "train_shares": {
            column: report.with_shares(values)
            for column, values in report.count_values(members["train"], ["colour", "gender", "season"]).items()
        },
        "captions": {
            "limit": TOKEN_LIMIT,
            "over_limit": sum(length > TOKEN_LIMIT for length in lengths),
            "longest": max(lengths),
            "counted_by": counter,
        },
        "duplicates": {key: analysis["duplicates"][key] for key in ("bits", "colour", "groups")},
        "excluded": analysis["rejected"],
        "fingerprint": data.content_fingerprint(sums),
        "request": request,
    }
    files.write_json(folder / "metadata.json", metadata)
    some = list(dict.fromkeys(one["caption"] for one in members["train"]))[:5]
    pictures = [f"figures/{path.name}" for path in (folder / "figures").iterdir()]
    (folder / "README.md").write_text(report.dataset_card(metadata, some, pictures), encoding="utf-8")
    files.write_manifest(folder, sums)
    return metadata


def verify(folder: Path, workers: int) -> int:
    """Re-read a dataset and list every promise that it breaks."""
    metadata = data.read_metadata(folder)
    side, limits = metadata["options"]["resolution"], metadata["duplicates"]
    broken, manifest, _ = data.verify_layout(folder, metadata)
    names = [name for name in manifest if "/images/" in name and (folder / name).is_file()]
    checks = parallel.parallel_map(
        data.check_picture, ((folder / name, manifest[name], side) for name in names), workers
    )
    seen = []
    for name, (wrong, bits, thumb) in zip(names, tqdm(checks, total=len(names), unit=" images", desc="verify")):
        broken += [f"{name}: {what}" for what in wrong]
        if bits is not None:
            seen.append((name, bits, thumb))
    if seen:
        broken += data.verify_disjoint(*zip(*seen), limits["bits"], limits["colour"])
    for line in broken:
        print(line)
    print(
        f"{folder}: {len(broken)} broken promises"
        if broken
        else f"{folder}: {len(names):,} pictures, every promise holds"
    )
    return 1 if broken else 0


def main(args: argparse.Namespace) -> int:
    if args.verify:
        return verify(args.verify, args.num_workers)
    cli.show_settings(args)
    files.recover_folder(args.output_dir)
    found = read_catalogue(
        args.catalogue, args.image_column, args.caption_column, args.dataset_config_name, args.dataset_split
    )
    products, rejected, categories = select(found, args.category, args.category_column)
    print("\n".join(report.catalogue_lines(catalogue_facts(found))))
    columns = [name for name in found.columns if any(one["attributes"].get(name) for one in products)]
    if args.stratify_by is None:
        args.stratify_by = ["colour"] if "colour" in columns else []
    for name in args.stratify_by:
        if name not in columns:
            raise cli.UserError(
                f"--stratify_by {name}: no product has this column; there are {', '.join(columns) or 'none'}"
            )
    if not args.analyse_only:
        rejected = rejected + caption_products(products, args, columns)
        products = [one for one in products if "caption" in one]
    if not products:
        why = Counter(one["reason"] for one in rejected).most_common(3)
        raise cli.UserError(
            f"--catalogue {args.catalogue}: no usable product ({', '.join(f'{n}: {what}' for what, n in why)})"
        )

    own = args.output_dir / "splits.json"
    keep_from = args.keep_splits or (own if own.exists() and not args.new_splits else None)
    kept = data.read_saved_splits(keep_from) if keep_from else {}
    request = {
        "options": wanted_options(args),
        "source": source_fingerprint(found, products, rejected),
        "keep": hashlib.sha256(json.dumps(kept).encode()).hexdigest() if args.keep_splits else None,
    }
    if is_current(args.output_dir, request, args.overwrite or args.dry_run) and not args.new_splits:
        print(f"{args.output_dir} is up to date: same catalogue, same options. Nothing to do.")
        return 0
    print(f"{len(products):,} products to read, {len(rejected):,} left out already; {len(kept):,} have a split to keep")
    if args.dry_run:
        expected = splits.apportion(len(products), dict(zip(splits.SPLITS, args.split_ratio)))
        for column, counts in report.count_values(products, list(SHARES)).items():
            print(f"{column}: {', '.join(f'{name} {n / len(products):.1%}' for name, n in list(counts.items())[:6])}")
        print(
            f"would write {args.output_dir}: {expected}, if every picture is good and none is a look-alike. Stopping."
        )
        return 0

    how = {"side": args.resolution, "pad": args.pad, "crop": args.crop, "max_pixels": int(args.max_megapixels * 1e6)}
    with files.replaced_folder(args.output_dir) as folder:
        if not args.analyse_only:
            (folder / "pictures").mkdir()
        work = partial(process_picture, folder=None if args.analyse_only else folder / "pictures", **how)
        rejected = rejected + process_all(products, found.dataset, work, args.num_workers)
        looked_at = [one for one in products if "hash" in one]
        within, beyond = find_look_alikes(looked_at, args.duplicate_threshold)
        out, places = place_products(looked_at, [pair[:2] for pair in within], kept, args)
        asked = [one for one in out if one["reason"] == "near duplicate"]  # by --drop_duplicates: no fault
        if args.strict and len(rejected) + len(out) > len(asked):
            listed = [
                f"{one['id'] or '?'} (row {one['row']}): {one['reason']}"
                for one in [*rejected, *out]
                if one not in asked
            ]
            print("\n".join(listed), file=sys.stderr)
            raise cli.UserError(f"--strict: {len(listed)} left out (listed above); nothing was written")
        kept_products = [one for one in looked_at if "split" in one]
        if not kept_products:
            raise cli.UserError(
                f"--catalogue {args.catalogue}: not one usable picture ({rejected[0]['reason']} and others)"
            )
        analysis = analyse(found, args, kept_products, rejected + out, categories, (within, beyond))
        text = write_analysis(folder, analysis | {"request": request}, looked_at, found.dataset, how)
        if args.analyse_only:
            files.write_manifest(folder)
        else:
            metadata = write_dataset(folder, found, args, request, analysis, kept_products, places)
    print(text)
    if not args.analyse_only:
        tokens = metadata["captions"]
        print(", ".join(f"{split} {metadata['counts'][split]:,}" for split in splits.SPLITS))
        print(
            f"captions over {TOKEN_LIMIT} tokens: {tokens['over_limit']} (longest {tokens['longest']}; by {tokens['counted_by']})"
        )
    print(f"written: {args.output_dir}")
    return 0


if __name__ == "__main__":
    arguments = parse_args()
    cli.run(main, arguments)
