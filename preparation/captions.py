"""Captions from attributes, in readable English, and their length in tokens."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from families.models import DEFAULT_MODEL, DEMO_MODEL
from utils.catalogue import Product, Rejected, reject_product
from utils.hub import load_named
from utils.wording import PLACEHOLDER, fill_template

ON_WHITE = ", centered on white background"
DEFAULT_TEMPLATE = "A professional product photo of {colour} {article}, {season} collection, {gender}" + ON_WHITE


class TokenCounter(NamedTuple):
    count_tokens: Callable[[list[str]], list[int]]
    limit: int
    name: str


@dataclass(frozen=True)
class CaptionLengths:
    """How many captions are empty or longer than a text encoder reads."""

    limit: int
    over_limit: int
    longest: int
    counted_by: str
    empty: int


def add_trigger(caption: str, trigger: str | None) -> str:
    """`sks, a professional …`: the trigger word first, where no truncation reaches it; a caption with it stays."""
    if not (trigger and caption) or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    rest = caption[:1].lower() + caption[1:] if caption[1:2] in (" ", "n") or caption[1:2].islower() else caption
    return f"{trigger}, {rest}"


def caption_products(
    products: list[Product],
    template: str | None,
    only: list[str] | None,
    trigger: str | None,
    default: str | None = DEFAULT_TEMPLATE,
) -> tuple[dict[str, str], list[Rejected]]:
    """{id: caption}, and the products for which there is none.

    A product's own text is its caption, unless a template is given. A template that opens with a clause of plain words
    captions every product. Without a `default` no product is rejected: its caption may be empty.
    """
    pattern = template or default or ""
    opening = pattern.split(",")[0]
    plain = opening.strip() and not PLACEHOLDER.search(opening)
    used = PLACEHOLDER.findall(pattern)
    captions, rejected = {}, []
    for one in products:
        values = {key: one.attributes.get(key) for key in only or used}
        if one.text and not template:
            text = one.text
        elif any(values.values()) or plain:
            text = fill_template(pattern, values)
        elif default is None:
            text = ""
        else:
            detail = "no text of its own, and nothing for the template to fill in"
            rejected.append(reject_product(one, "no caption", detail))
            continue
        captions[one.id] = add_trigger(text, trigger)
    return captions, rejected


def correct_background(products: list[Product], captions: dict[str, str], on_white: set[str]) -> dict[str, str]:
    """The default template's captions, without their clause on the background for products that are not `on_white`."""
    own = {one.id for one in products if one.text}
    return {
        key: text if key in own or key in on_white else text.removesuffix(ON_WHITE) for key, text in captions.items()
    }


def estimate_tokens(text: str) -> int:
    """CLIP tokens, counted high: one for 4 letters or fewer, each digit and each mark, and the two around the text."""
    pieces = re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text)
    return 2 + sum((len(piece.encode()) + 3) // 4 for piece in pieces)


def measure_captions(texts: list[str], counter: TokenCounter) -> CaptionLengths:
    lengths = counter.count_tokens(texts)
    over = sum(length > counter.limit for length in lengths)
    return CaptionLengths(counter.limit, over, max(lengths), counter.name, texts.count(""))


def load_tokenizer(name: str | None) -> TokenCounter:
    """A counter of tokens: the named tokenizer; without a name the base model's if it is cached, else an estimate."""
    from huggingface_hub import try_to_load_from_cache

    if name is None and not isinstance(try_to_load_from_cache(DEFAULT_MODEL, "tokenizer/vocab.json"), str):
        return TokenCounter(lambda texts: list(map(estimate_tokens, texts)), 77, "an estimate on the high side")
    from transformers import CLIPTokenizer

    model = str(DEMO_MODEL) if name == "demo" else name or DEFAULT_MODEL

    def load() -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(_find_tokenizer(model, cached=name is None))

    tokenizer = load_named("--tokenizer", model, "CLIP tokenizer", load)
    limit = min(77, tokenizer.model_max_length)  # a tokenizer that doesn't know its own says 10^30
    counter = f"the tokenizer of {name or DEFAULT_MODEL}"
    return TokenCounter(lambda texts: [len(ids) for ids in tokenizer(texts)["input_ids"]], limit, counter)


def _find_tokenizer(name: str, cached: bool) -> Path:
    """The folder of its files; from any other folder from_pretrained makes an empty tokenizer without a warning."""
    from huggingface_hub import snapshot_download

    files = ["tokenizer/*", "vocab.json", "merges.txt", "tokenizer*.json"]
    if Path(name).is_dir():
        folder = Path(name)
    else:
        folder = Path(snapshot_download(name, allow_patterns=files, local_files_only=cached))
    for place in (folder / "tokenizer", folder):
        if (place / "vocab.json").exists() or (place / "tokenizer.json").exists():
            return place
    raise FileNotFoundError("no vocab.json or tokenizer.json")
