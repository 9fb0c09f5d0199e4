"""Text for people: attributes in readable English, templates filled with them, and jinja2's pages and cards."""

import base64
import html
import json
import re
from pathlib import Path

import jinja2

from utils.cli import counted

PLACEHOLDER = re.compile(r"\{(\w+)\}")
GENDERS = {"men": "men's", "women": "women's", "boys": "boys'", "girls": "girls'", "male": "men's", "female": "women's"}
COLOURS = {"multi": "multicoloured", "skin": "skin-coloured", "off white": "off-white"}
ARTICLES = {"tshirts": "T-shirts", "shoes": "shoes"}
# Worn or sold as a pair, or plural in themselves: "black trousers", never "a black trouser".
PLURAL = set(
    "shoes sandals heels flats flops boots sneakers loafers slippers clogs mules socks trousers jeans shorts pants "
    "leggings jeggings tights stockings sunglasses glasses earrings gloves mittens cufflinks briefs boxers trunks "
    "capris laces pyjamas suspenders overalls dungarees joggers chinos headphones booties goggles".split()
)
MASS = set("polish mist deodorant gloss care makeup jewellery perfume footwear swimwear innerwear lingerie".split())
SINGULAR = {"ties": "tie", "scarves": "scarf", "dresses": "dress", "watches": "watch", "sarees": "saree"}


def has_stray_brace(template: str) -> bool:
    """Whether a template has a brace that is not part of a {placeholder}: it would become text."""
    return bool(re.search(r"[{}]", PLACEHOLDER.sub("", template)))


def singular(noun: str) -> str:
    """`handbags` -> `handbag`: the last word's plural taken off."""
    head, space, last = noun.rpartition(" ")
    if last.lower() in SINGULAR:
        last = SINGULAR[last.lower()]
    elif re.search(r"[^aeiou]ies$", last):
        last = last[:-3] + "y"
    elif re.search(r"(ss|x|ch|sh)es$", last):
        last = last[:-2]
    elif re.search(r"[^su]s$", last):
        last = last[:-1]
    return head + space + last


def name_article(article: str | None) -> tuple[str, bool]:
    """The words for an article type, and whether they take `a` or `an`."""
    if not article:
        return "product", True
    noun = ARTICLES.get(article.lower(), article.lower())
    last = noun.rpartition(" ")[2].lower()
    if last in PLURAL or last in MASS:
        return noun, False
    return singular(noun), True


def word_value(key: str, value: str | None) -> str | None:
    """An attribute's value as it reads in a sentence; names and unknown attributes stay as they are."""
    if value is None:
        return None
    low = value.lower()
    if key == "gender":
        return GENDERS.get(low, low)
    if key == "colour":
        return COLOURS.get(low, low)
    return low if key in ("season", "usage") else value


def fill_template(template: str, attributes: dict[str, str | None]) -> str:
    """The template with its {placeholders} filled; a clause (between commas) that has only missing values is dropped.

    `a`/`an` stands before a singular {article} and its adjectives, whether the template has it or not.
    """
    noun, countable = name_article(attributes.get("article"))
    words = {key: word_value(key, value) for key, value in attributes.items()} | {"article": noun}
    clauses = []
    for index, clause in enumerate(template.split(",")):
        keys = PLACEHOLDER.findall(clause)
        if index and keys and not any(words.get(key) for key in keys):
            continue
        clause = re.sub(
            r"(?:\b([Aa])n? )?((?:\{\w+\} )*\{article\})",
            lambda found: _with_article(found[2], words, countable, bool(found[1]) and found[1].isupper()),
            clause,
        )
        clause = PLACEHOLDER.sub(lambda found: words.get(found[1]) or "", clause)
        clauses.append(re.sub(r" +([.;:!?])", r"\1", " ".join(clause.split())))
    text = ", ".join(clause for clause in clauses if clause)
    return re.sub(r"\s*,[\s,]*", ", ", text).strip(", ")  # a product's name may bring commas of its own


def _with_article(phrase: str, words: dict[str, str | None], countable: bool, capital: bool) -> str:
    filled = " ".join(PLACEHOLDER.sub(lambda found: words.get(found[1]) or "", phrase).split())
    determiner = ("an " if filled[0].lower() in "aeiou" and not filled.startswith("uni") else "a ") if countable else ""
    return (determiner.capitalize() if capital else determiner) + filled


PAGES = Path(__file__).parent / "templates"  # what the HTML pages of all packages extend: base.html, its style


def data_address(content: bytes, kind: str) -> str:
    """The address of a file inside a page; `kind` is its media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def make_environment(*folders: Path) -> jinja2.Environment:
    """The templates of these folders; a name that a template uses and that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": escape_cell, "code": escape_code, "counted": counted, "plain": escape_text}
    environment.filters["quoted"] = quote_text
    return environment


def quote_text(text: object) -> str:
    """A Python literal of the text."""
    return json.dumps(str(text), ensure_ascii=False)


def escape_text(value: object) -> str:
    """Text of a Markdown page: in one line, and neither HTML nor a link or an image."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("[", "\\[")


def escape_cell(value: object) -> str:
    """Text that stays in its cell of a Markdown table."""
    return escape_text(value).replace("|", "\\|")


def escape_code(value: object) -> str:
    """Text that stays between two backticks of a Markdown page."""
    return " ".join(str(value).split()).replace("`", "'")
