"""Prompts from the command line, a text file, a prompt plan or a template; as many as asked for, in given shares."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.cli import UserError, counted
from utils.wording import PLACEHOLDER, fill_template

MOST = 1_000_000  # the number in an image's name has six digits
RESERVED = {"id", "file_name", "text", "seed"}  # columns that a generated set has of its own


def read_prompts(
    count: int | None, prompt: str | None = None, file: Path | None = None, plan: Path | None = None,
    template: str | None = None, attributes: list[str] | None = None
) -> list[dict]:  # fmt: skip
    """`count` prompts ({"text", "attributes"}) from the one source that is given; each prompt's own number without it.

    They stand in an order of which any beginning is in balance too, and which does not depend on `count`.
    """
    sources = {"--prompt": prompt, "--prompts_file": file, "--prompt_plan": plan, "--template": template}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) != 1:
        said = f"{' and '.join(given)} exclude each other" if given else "there is nothing to draw"
        raise UserError(f"{said}; give one of {', '.join(sources)}")
    if attributes and template is None:
        raise UserError(f"--attribute {attributes[0]}: belongs to --template; give one, or leave it out")
    if prompt is not None:
        if not prompt.strip():
            raise UserError("--prompt: is empty; say what is to be seen")
        options = [{"text": prompt.strip(), "attributes": {}, "weight": 1}]
    elif template is not None:
        options = expand_template(template, attributes or [])
    else:
        options = read_lines(file) if plan is None else read_plan(plan)
    if count is None:
        if any(one["weight"] % 1 for one in options):
            raise UserError(f"{given[0]}: the shares don't say how many images to make; add --num_images")
        count = sum(one["weight"] for one in options)
    if count < 1:
        raise UserError(f"--num_images {count}: must be 1 or more")
    if count > MOST:
        raise UserError(
            f"{count:,} images are asked for, and a set has {MOST:,} at most; give a smaller --num_images, and make "
            "several sets, each with an --output_dir and a --seed of its own"
        )
    for name in {key for one in options for key in one["attributes"]} & RESERVED:
        raise UserError(f"{given[0]}: an attribute is called `{name}`, as a column of the set is; call it otherwise")
    return spread(options, int(count))


def _read_text(flag: str, path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() breaks at characters of a text too
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 text (byte {error.start:,}); save it as UTF-8") from None


def read_lines(path: Path) -> list[dict]:
    """One prompt a line, blank lines and those that begin with # left out; the order of the file is kept."""
    lines = [line.strip() for line in _read_text("--prompts_file", path)]
    options = [{"text": text, "attributes": {}, "weight": 1} for text in lines if text and not text.startswith("#")]
    if not options:
        raise UserError(f"--prompts_file {path}: holds no prompt; write one a line")
    return options


def read_plan(path: Path) -> list[dict]:
    """The lines of a prompt plan, checked; those of weight 0 left out."""
    options = []
    for number, line in enumerate(_read_text("--prompt_plan", path), 1):
        if line.strip():
            try:
                options.append(_plan_line(json.loads(line)))
            except ValueError as error:
                # JSON's own message counts lines too, and each line of a plan is its first.
                said = f"no JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"--prompt_plan {path}, line {number}: {said}") from None
    options = [one for one in options if one["weight"]]
    if not options:
        raise UserError(f"--prompt_plan {path}: asks for no image; `prepare_dataset.py --write_prompt_plan` makes one")
    return options


def _plan_line(line) -> dict:
    if not isinstance(line, dict) or not isinstance(line.get("text"), str) or not line["text"].strip():
        raise ValueError('expected {"text": a prompt, "attributes": {…}, "weight": a number}')
    attributes, weight = line.get("attributes") or {}, line.get("weight", 1)
    if not isinstance(attributes, dict) or any(isinstance(value, (dict, list)) for value in attributes.values()):
        raise ValueError(f"attributes is {json.dumps(attributes)[:60]}; expected names and plain values")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ValueError(f"weight is {json.dumps(weight)}; expected a number, 0 or more")
    return {"text": line["text"].strip(), "attributes": attributes, "weight": weight}


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
        if not value or value in shares or not float(share):
            problem = "twice" if value in shares else "of share 0" if value else "without a name"
            raise UserError(f"--attribute {words}: a value {value} {problem}; expected name=value,value:share,…")
        shares[value] = float(share)
    if not equals or not re.fullmatch(r"\w+", name.strip()):
        raise UserError(f"--attribute {words}: expected name=value,value:share,… with a name of letters and digits")
    return name.strip(), shares


def expand_template(template: str, attributes: list[str]) -> list[dict]:
    """The template with each combination of the attributes' values; its weight is the product of their shares."""
    lists = {}
    for words in attributes:
        name, shares = read_attribute(words)
        if name in lists:
            raise UserError(f"--attribute {words}: {name} is given twice; put its values into one list")
        lists[name] = shares
    used = set(PLACEHOLDER.findall(template))
    if re.search(r"[{}]", PLACEHOLDER.sub("", template)):
        raise UserError(f"--template {template}: a brace that is none of a {{name}}; close it, or leave it out")
    if missing := sorted(used - lists.keys()):
        raise UserError(f"--template {template}: no values for {{{missing[0]}}}; add --attribute {missing[0]}=…")
    if unused := sorted(lists.keys() - used):
        raise UserError(f"--attribute {unused[0]}=…: the template has no {{{unused[0]}}}; add it, or leave this out")
    options = []
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values))
        weight = math.prod(lists[name][value] for name, value in chosen.items())
        options.append({"text": fill_template(template, chosen), "attributes": chosen, "weight": weight})
    return options


def spread(options: list[dict], count: int) -> list[dict]:  # fmt: skip
    """`count` of the options by their weights, well mixed: any beginning is in balance, growing it keeps the earlier.

    At each step goes what is most lacking: of the options, of each attribute's values, of their pairs. No option is
    more than its share rounded up, so whole weights come out exactly where `count` is their sum or a multiple of it.
    In 450 random templates of 1 to 4 attributes every value was within one of its share, in any beginning within 2.4.
    """
    weights = np.array([one["weight"] for one in options], dtype=np.float64)
    shares = weights / weights.sum()
    features = list(_features(options, shares))
    whole = int(weights.sum()) if (weights % 1 == 0).all() else count
    # Pairs too, or the red ones might come to be boots more often than the rest.
    pairs = [a * len(due) + b for (a, _), (b, due) in itertools.combinations(features, 2)]
    joint = [(value_of, np.bincount(value_of, shares)) for value_of in pairs]
    full_round = range(len(options))  # what comes out for equals, and at once for the many lines of a file
    if features or weights.min() < weights.max():
        full_round = _order(shares, features + joint, min(count, whole))  # after that it would repeat by itself
    order = _settle(list(itertools.islice(itertools.cycle(full_round), count)), shares, features)
    return [{"text": options[i]["text"], "attributes": dict(options[i]["attributes"])} for i in order]


def _features(options: list[dict], shares: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each attribute that varies: which of its values each option has, and the share of every value."""
    for name in dict.fromkeys(name for one in options for name in one["attributes"]):
        numbers = {}
        value_of = np.array([numbers.setdefault(one["attributes"].get(name), len(numbers)) for one in options])
        if 1 < len(numbers) < len(options):
            yield value_of, np.bincount(value_of, shares)


def _order(shares: np.ndarray, features: list[tuple[np.ndarray, np.ndarray]], count: int) -> list[int]:
    taken, values_taken = np.zeros(len(shares)), [np.zeros(len(due)) for _, due in features]
    order = []
    for step in range(1, count + 1):
        lacking = step * shares - taken
        for (value_of, due), had in zip(features, values_taken):
            lacking += (step * due - had)[value_of]
        lacking[taken + 1 > np.ceil(step * shares - 1e-9)] = -np.inf
        best = int(np.round(lacking, 9).argmax())  # rounded, so that ties go to the first and not to rounding errors
        order.append(best)
        taken[best] += 1
        for (value_of, _), had in zip(features, values_taken):
            had[value_of[best]] += 1
    return order


def _settle(order: list[int], shares: np.ndarray, features: list[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    """Exchange some of the last images, where need be, so that each value is within one of its share in the end."""
    order, taken = list(order), np.bincount(order, minlength=len(shares))
    while True:
        full = taken + 1 > np.ceil(len(order) * shares - 1e-9)
        late = list({option: place for place, option in enumerate(order[-64:], max(0, len(order) - 64))}.items())
        change = np.zeros((len(late), len(shares)))  # of what is beyond one, by putting an option for a late one
        for value_of, due in features:
            off = np.bincount(value_of, taken, len(due)) - len(order) * due
            beyond = [np.maximum(np.abs(off + step) - 1 + 1e-3, 0) for step in (-1, 0, 1)]
            moved = (beyond[0] - beyond[1])[:, None] + (beyond[2] - beyond[1])[None]
            np.fill_diagonal(moved, 0)
            change += moved[value_of[[option for option, _ in late]]][:, value_of]
        change[:, full] = 0
        row, new = np.unravel_index(change.argmin(), change.shape)
        if change[row, new] > -1e-4:
            return order
        old, place = late[row]
        order[place] = int(new)
        taken[old], taken[new] = taken[old] - 1, taken[new] + 1


def tell_plan(prompts: list[dict], mine: list[int], share: int, shares: int) -> None:
    """How many images of what."""
    print(f"{counted(len(prompts), 'image')} of {counted(len({one['text'] for one in prompts}), 'prompt')}")
    if shares > 1:
        print(f"this process is {share} of {shares} and makes {len(mine):,} of them")
    names = dict.fromkeys(name for one in prompts for name in one["attributes"])
    for name in names:
        counts = Counter(str(one["attributes"].get(name)) for one in prompts).most_common()
        print(f"  {name}: {', '.join(f'{value} {count:,}' for value, count in counts)}")
