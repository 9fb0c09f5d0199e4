"""Prompts from the command line, a text file, a prompt plan or a template; as many as requested, in given shares."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.cli import MANY, UserError, counted
from utils.files import parse_json, read_text
from utils.wording import PLACEHOLDER, fill_template, has_stray_brace

MOST = 1_000_000  # the number in an image's name has six digits
RESERVED = {"id", "file_name", "text", "seed"}  # columns that a generated set has of its own


@dataclass(frozen=True)
class Prompt:
    """What one image should show."""

    text: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Option:
    """A prompt that may be used for several images, and its share of them."""

    text: str
    attributes: dict[str, Any] = field(default_factory=dict)
    weight: float = 1


def read_prompts(
    count: int | None,
    prompt: str | None = None,
    file: Path | None = None,
    plan: Path | None = None,
    template: str | None = None,
    attributes: list[str] | None = None,
) -> list[Prompt]:
    """`count` prompts from the one source that is given; without it, as many as the source says.

    Any beginning of them is balanced too, and does not depend on `count`.
    """
    sources = {"--prompt": prompt, "--prompts_file": file, "--prompt_plan": plan, "--template": template}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) != 1:
        problem = f"{' and '.join(given)} exclude each other" if given else "there is no prompt"
        raise UserError(f"{problem}; give one of {', '.join(sources)}")
    if attributes and template is None:
        raise UserError(f"--attribute {attributes[0]}: belongs to --template; give one, or leave it out")
    if prompt is not None:
        if not prompt.strip():
            raise UserError("--prompt: is empty; say what the image should show")
        options = [Option(prompt.strip())]
    elif template is not None:
        options = expand_template(template, attributes or [])
    else:
        options = read_lines(file) if plan is None else read_plan(plan)
    for name in {key for one in options for key in one.attributes} & RESERVED:
        raise UserError(f"{given[0]}: an attribute is called `{name}`, as a column of the set is; rename it")
    return spread(options, count_images(given[0], count, options))


def count_images(source: str, count: int | None, options: list[Option]) -> int:
    if count is None:
        if any(one.weight % 1 for one in options):
            raise UserError(f"{source}: the shares don't say how many images to make; add --num_images")
        count = int(sum(one.weight for one in options))
    if count > MOST:
        raise UserError(
            f"{source}: asks for {count:,} images; a set can have {MOST:,}; generate several sets, each with its own "
            "--output_dir and --seed"
        )
    return count


def _read_text(flag: str, path: Path) -> list[str]:
    try:
        return read_text(path, "utf-8-sig").split("\n")  # splitlines() breaks at characters of a text too
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 text (byte {error.start:,}); save it as UTF-8") from None


def read_lines(path: Path) -> list[Option]:
    """One prompt per line, in the order of the file; blank lines and those that begin with # are left out."""
    lines = [line.strip() for line in _read_text("--prompts_file", path)]
    options = [Option(text) for text in lines if text and not text.startswith("#")]
    if not options:
        raise UserError(f"--prompts_file {path}: contains no prompts; write one per line")
    return options


def read_plan(path: Path) -> list[Option]:
    """The lines of a prompt plan, checked; those of weight 0 left out."""
    options = []
    for number, line in enumerate(_read_text("--prompt_plan", path), 1):
        if line.strip():
            try:
                options.append(_plan_line(parse_json(line)))
            except ValueError as error:
                # JSON's own message counts lines too, and each line of a plan is its first.
                said = f"not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"--prompt_plan {path}, line {number}: {said}") from None
    options = [one for one in options if one.weight]
    if not options:
        raise UserError(f"--prompt_plan {path}: requests no images; `prepare_dataset.py --write_prompt_plan` makes one")
    return options


def _plan_line(line: Any) -> Option:
    if not isinstance(line, dict) or not isinstance(line.get("text"), str) or not line["text"].strip():
        raise ValueError('expected {"text": a prompt, "attributes": {…}, "weight": a number}')
    attributes, weight = line.get("attributes") or {}, line.get("weight", 1)
    if not isinstance(attributes, dict) or any(isinstance(value, (dict, list)) for value in attributes.values()):
        raise ValueError(
            f"attributes is {json.dumps(attributes, ensure_ascii=False)[:60]}; expected names and plain values"
        )
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= MANY:
        raise ValueError(f"weight is {json.dumps(weight, ensure_ascii=False)}; expected a number, 0 to {MANY:,}")
    return Option(line["text"].strip(), attributes, weight)


def read_attribute(words: str) -> tuple[str, dict[str, float]]:
    """`colour=red,blue:2` -> ("colour", {"red": 1, "blue": 2}): each value's share of the images."""
    name, equals, listed = words.partition("=")
    shares = {}
    for item in listed.split(","):
        value, colon, share = (item if ":" in item else f"{item}:1").rpartition(":")
        value, share = value.strip(), share.strip()
        if not re.fullmatch(r"\d+(\.\d+)?|\.\d+", share):
            raise UserError(
                f"--attribute {words}: {value} has the share `{share}`; expected a number, as in value:2 (a colon of "
                "the value's own needs a share after it, as in 16:9:1)"
            )
        if not value or value in shares or not 0 < float(share) <= MANY:
            problem = "twice" if value in shares else f"of share {share}" if value else "without a name"
            raise UserError(f"--attribute {words}: a value {value} {problem}; expected name=value,value:share,…")
        shares[value] = float(share)
    if not equals or not re.fullmatch(r"\w+", name.strip()):
        raise UserError(f"--attribute {words}: expected name=value,value:share,… with a name of letters and digits")
    return name.strip(), shares


def expand_template(template: str, attributes: list[str]) -> list[Option]:
    """The template with each combination of the attributes' values; its weight is the product of their shares."""
    lists = {}
    for words in attributes:
        name, shares = read_attribute(words)
        if name in lists:
            raise UserError(f"--attribute {words}: {name} is given twice; put its values into one list")
        lists[name] = shares
    used = set(PLACEHOLDER.findall(template))
    if has_stray_brace(template):
        raise UserError(f"--template {template}: a brace outside a {{name}} placeholder; close it, or leave it out")
    if missing := sorted(used - lists.keys()):
        raise UserError(f"--template {template}: no values for {{{missing[0]}}}; add --attribute {missing[0]}=…")
    if unused := sorted(lists.keys() - used):
        raise UserError(f"--attribute {unused[0]}=…: the template has no {{{unused[0]}}}; add it, or leave this out")
    options = []
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values))
        weight = math.prod(lists[name][value] for name, value in chosen.items())
        options.append(Option(fill_template(template, chosen), chosen, weight))
    return options


class Feature(NamedTuple):
    """An attribute whose values are to be balanced."""

    value_of: np.ndarray  # for each option, the number of its value
    shares: np.ndarray  # of each value


def spread(options: list[Option], count: int) -> list[Prompt]:
    """`count` prompts by the options' weights, well mixed: any beginning is balanced, a larger count keeps the earlier.

    Each step takes what is furthest behind its share: of the options, of each attribute's values, of their pairs. No
    option exceeds its share rounded up, so whole weights come out exactly where `count` is a multiple of their sum.
    In 450 random templates of 1 to 4 attributes every value was within one of its share, in any beginning within 2.4
    (a largest remainder over the options and a shuffle: 1.3, and 35 in a beginning of 3,001).
    """
    weights = np.array([one.weight for one in options], dtype=np.float64)
    shares = weights / weights.sum()
    features = list(_features(options, shares))
    pairs = [  # pairs too, or the red ones might be boots more often than the rest
        Feature(joint, np.bincount(joint, shares))
        for joint in (a.value_of * len(b.shares) + b.value_of for a, b in itertools.combinations(features, 2))
    ]
    whole = int(weights.sum()) if (weights % 1 == 0).all() else count
    full_round = list(range(len(options)))  # the result for equal weights, and fast for the many lines of a file
    if features or weights.min() < weights.max():
        full_round = _order(shares, features + pairs, min(count, whole))  # after that it would repeat by itself
    order = _settle(list(itertools.islice(itertools.cycle(full_round), count)), shares, features)
    return [Prompt(options[i].text, dict(options[i].attributes)) for i in order]


def _features(options: list[Option], shares: np.ndarray) -> Iterator[Feature]:
    """Each attribute that varies."""
    for name in dict.fromkeys(name for one in options for name in one.attributes):
        numbers: dict[Any, int] = {}
        value_of = np.array([numbers.setdefault(one.attributes.get(name), len(numbers)) for one in options])
        if 1 < len(numbers) < len(options):
            yield Feature(value_of, np.bincount(value_of, shares))


def _order(shares: np.ndarray, features: list[Feature], count: int) -> list[int]:
    """The options in turn, at each step the one that is furthest behind."""
    taken, values_taken = np.zeros(len(shares)), [np.zeros(len(one.shares)) for one in features]
    order = []
    for step in range(1, count + 1):
        behind = step * shares - taken
        for feature, had in zip(features, values_taken):
            behind += (step * feature.shares - had)[feature.value_of]
        behind[taken + 1 > np.ceil(step * shares - 1e-9)] = -np.inf
        best = int(np.round(behind, 9).argmax())  # rounded, so that ties go to the first and not to rounding errors
        order.append(best)
        taken[best] += 1
        for feature, had in zip(features, values_taken):
            had[feature.value_of[best]] += 1
    return order


def _settle(order: list[int], shares: np.ndarray, features: list[Feature]) -> list[int]:
    """Exchange some of the last 64 options, where needed, so that each value ends within one of its share."""
    order, taken = list(order), np.bincount(order, minlength=len(shares))
    while True:
        full = taken + 1 > np.ceil(len(order) * shares - 1e-9)
        late = list({option: place for place, option in enumerate(order[-64:], max(0, len(order) - 64))}.items())
        change = np.zeros((len(late), len(shares)))  # of what is beyond one, by putting an option for a late one
        for feature in features:
            off = np.bincount(feature.value_of, taken, len(feature.shares)) - len(order) * feature.shares
            less, now, more = (np.maximum(np.abs(off + step) - 1 + 1e-3, 0) for step in (-1, 0, 1))
            moved = (less - now)[:, None] + (more - now)[None]
            np.fill_diagonal(moved, 0)
            change += moved[feature.value_of[[option for option, _ in late]]][:, feature.value_of]
        change[:, full] = 0
        row, new = np.unravel_index(change.argmin(), change.shape)
        if change[row, new] > -1e-4:
            return order
        old, place = late[row]
        order[place] = int(new)
        taken[old], taken[new] = taken[old] - 1, taken[new] + 1


def describe_plan(prompts: list[Prompt]) -> Iterator[str]:
    """Lines that say how many images of what."""
    yield f"{counted(len(prompts), 'image')} of {counted(len({one.text for one in prompts}), 'prompt')}"
    for name in dict.fromkeys(name for one in prompts for name in one.attributes):
        counts = Counter(str(one.attributes.get(name)) for one in prompts).most_common()
        yield f"  {name}: {', '.join(f'{value} {count:,}' for value, count in counts)}"
