"""Captions from attributes, in readable English; their length in tokens; and a plan of prompts in given shares."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from families.models import DEFAULT_MODEL, DEMO_MODEL
from utils.catalogue import left_out
from utils.cli import UserError
from utils.hub import hub_failure
from utils.wording import PLACEHOLDER, fill_template

DEFAULT_TEMPLATE = (
    "A professional product photo of {colour} {article}, {season} collection, {gender}, centered on white background"
)


def add_trigger(caption: str, trigger: str | None) -> str:
    """`sks, a professional …`: the trigger word first, where no truncation reaches it; as it is where it is there."""
    if not (trigger and caption) or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    rest = caption[:1].lower() + caption[1:] if caption[1:2] in (" ", "n") or caption[1:2].islower() else caption
    return f"{trigger}, {rest}"


def caption_products(
    products: list[dict],
    template: str | None,
    only: list[str] | None,
    trigger: str | None,
    default: str | None = DEFAULT_TEMPLATE,
) -> tuple[list[dict], list[dict]]:
    """The products with their captions, and those about which there is nothing to say.

    A product's own text is its caption, unless a template is given. A template that opens with a clause of plain words
    has something to say of all. With no `default`, nothing to say is an empty caption.
    """
    pattern = template or default or ""
    opening = pattern.split(",")[0]
    plain = opening.strip() and not PLACEHOLDER.search(opening)
    used = PLACEHOLDER.findall(pattern)
    good, rejected = [], []
    for one in products:
        said = {key: one["attributes"].get(key) for key in only or used}
        if one["text"] and not template:
            text = one["text"]
        elif any(said.values()) or plain:
            text = fill_template(pattern, said)
        elif default is None:
            text = ""
        else:
            detail = "no text of its own, and nothing for the template to fill in"
            rejected.append(left_out(one, "no caption", detail))
            continue
        good.append(one | {"caption": add_trigger(text, trigger)})
    return good, rejected


def estimate_tokens(text: str) -> int:
    """CLIP tokens, counted high: one for 4 letters begun, every digit, every mark, and the two around the text."""
    pieces = re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text)
    return 2 + sum((len(piece.encode()) + 3) // 4 for piece in pieces)


def plan_prompts(records: list[dict], count: int, columns: list[str], level: list[str]) -> list[dict]:
    """`count` images over the distinct captions of `records`: [{"text", "attributes", "weight"}], the weights whole.

    Shares follow the records: every column's shares are kept as near as whole numbers allow, not the joint ones alone.
    With `level`, the records together with the planned images are to hold as many of each value of those columns.
    """
    held = Counter((record["text"], tuple(record.get(column) for column in columns)) for record in records)
    share = {option: number / len(records) for option, number in held.items()}
    if level:
        share = _level_shares(held, count, [columns.index(column) for column in level])
    # The marginal and the joint shares, each image going where most is lacking; so any beginning is in balance too.
    features = {option: [("", option), *zip(columns, option[1])] for option in held if share[option] > 0}
    due = Counter()
    for option in features:
        for feature in features[option]:
            due[feature] += share[option]
    taken, weight = Counter(), Counter()
    for step in range(1, count + 1):
        best = max(features, key=lambda option: sum(step * due[f] - taken[f] for f in features[option]))
        weight[best] += 1
        taken.update(features[best])
    plan = [(*option, weight[option]) for option in features if weight[option]]
    return [{"text": text, "attributes": dict(zip(columns, values)), "weight": n} for text, values, n in plan]


def _level_shares(held: Counter, count: int, at: list[int]) -> dict[tuple, float]:
    """The share of `count` that each (text, values) gets, so that the values at these places come to be level."""
    cell = {option: tuple(option[1][i] for i in at) for option in held}
    size = Counter()
    for option, number in held.items():
        size[cell[option]] += number
    lacking = fill_level(size, count)
    return {option: lacking[cell[option]] * held[option] / size[cell[option]] / count for option in held}


def fill_level(sizes: dict, count: int) -> dict[object, float]:
    """How many each class is to get of `count`, so that all come up to one level as far as `count` reaches."""
    level, rest = 0.0, float(count)
    ordered = sorted(sizes.values())
    for index, size in enumerate(ordered):
        upto = ordered[index + 1] if index + 1 < len(ordered) else float("inf")
        need = (upto - size) * (index + 1)
        if rest <= need:
            level = size + rest / (index + 1)
            break
        rest -= need
    return {key: max(0.0, level - size) for key, size in sizes.items()}


def write_prompt_plan(path: Path, train: list[dict], count: int, level: list[str]) -> None:
    """One line per distinct prompt; `weight` is how many images of it the plan asks for."""
    records = [{**one["attributes"], "text": one["caption"]} for one in train]
    columns = [*level, *(column for column in ("article", "colour", "gender", "season") if column not in level)]
    plan = plan_prompts(records, count, columns, level)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in plan), encoding="utf-8")


def measure(texts: list[str], count_tokens: Callable[[list[str]], list[int]], limit: int, counter: str) -> dict:
    """How many captions are empty or would be cut off by a tokenizer, and by whose count."""
    lengths = count_tokens(texts)
    over = sum(length > limit for length in lengths)
    empty = texts.count("")
    return {"limit": limit, "over_limit": over, "longest": max(lengths), "counted_by": counter, "empty": empty}


def load_tokenizer(name: str | None) -> tuple[Callable[[list[str]], list[int]], int, str]:
    """What counts the tokens of texts, their limit, and its name; without a name the base model's, if cached."""
    from huggingface_hub import try_to_load_from_cache

    if name is None and not isinstance(try_to_load_from_cache(DEFAULT_MODEL, "tokenizer/vocab.json"), str):
        return lambda texts: [estimate_tokens(text) for text in texts], 77, "an estimate on the high side"
    from transformers import CLIPTokenizer

    model = str(DEMO_MODEL) if name == "demo" else name or DEFAULT_MODEL
    try:
        tokenizer = CLIPTokenizer.from_pretrained(_tokenizer_place(model, cached=name is None))
    except Exception as error:  # of the network, the hub, the file format
        hint = "give the folder or hub id of a CLIP tokenizer"
        raise UserError(f"--tokenizer {name}: {hub_failure(error)}; {hint}") from error
    limit = min(77, tokenizer.model_max_length)  # a tokenizer that doesn't know its own says 10^30
    counter = f"the tokenizer of {name or DEFAULT_MODEL}"
    return lambda texts: [len(ids) for ids in tokenizer(texts)["input_ids"]], limit, counter


def _tokenizer_place(name: str, cached: bool) -> Path:
    """Its folder: from_pretrained makes an empty tokenizer, without a word, of a folder that holds none."""
    from huggingface_hub import snapshot_download

    files = ["tokenizer/*", "vocab.json", "merges.txt", "tokenizer*.json"]
    if Path(name).is_dir():
        folder = Path(name)
    elif name.count("/") != 1:
        raise FileNotFoundError("no such folder, and not a hub id (owner/name)")
    else:
        folder = Path(snapshot_download(name, allow_patterns=files, local_files_only=cached))
    for place in (folder / "tokenizer", folder):
        if (place / "vocab.json").exists() or (place / "tokenizer.json").exists():
            return place
    raise FileNotFoundError("there is no vocab.json or tokenizer.json")
