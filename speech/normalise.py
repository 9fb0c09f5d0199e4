"""Text as it is read aloud: numbers, signs and abbreviations in words."""

import re
import unicodedata
from functools import lru_cache
from types import ModuleType

from speech import english, portuguese
from speech.spoken import Read, Rule, alternatives, say_acronyms, say_digits
from utils.cli import UserError

LANGUAGES: dict[str, ModuleType] = {"pt-br": portuguese, "en": english}
KEPT = "ºª°¹²³´¨…“”"  # which NFKC would make something else of: 1º, m², a mark of its own
RAISED = re.compile(r"[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")


def normalise(text: str, language: str) -> str:
    """The text as a reader says it, in one line and without a digit; case and punctuation stay.

    Read again, it stays as it is: what one rule wrote, such as a space, may show another one what to read.
    """
    find_language(language)
    text = _clean(text)
    while (said := _read_once(text, language)) != text:
        text = said
    return text


def plain_text(text: str, language: str) -> str:
    """A text as it is compared: numbers in words where the language has rules, lower case, no punctuation."""
    said = normalise(text, language) if language in LANGUAGES else text
    return " ".join(re.sub(r"[^\w\s]|_", " ", said.casefold()).split())


def _read_once(text: str, language: str) -> str:
    for pattern, read in _compiled(language):
        text = pattern.sub(read, text)
    text = say_acronyms(text, LANGUAGES[language].LETTERS)
    return " ".join(re.sub(r" +([.,;:!?…])", r"\1", text).split())


def find_language(language: str) -> ModuleType:
    """The rules of a language; one that has none is refused."""
    if language not in LANGUAGES:
        raise UserError(f"--language {language}: expected one of {', '.join(LANGUAGES)}")
    return LANGUAGES[language]


@lru_cache
def _compiled(language: str) -> list[tuple[re.Pattern[str], Read]]:
    rules = LANGUAGES[language]
    signs: Rule = (alternatives(rules.SIGNS), lambda found: f" {rules.SIGNS[found[0]]} ")
    rest = [(r"(?<=\w)/(?=\w)|[_*|\\^~`©®™¹]", " "), (r"\d+", lambda found: say_digits(found[0], rules.SMALL))]
    return [(re.compile(pattern), read) for pattern, read in [*rules.RULES, signs, *rest]]


def _is_invisible(one: str) -> bool:
    """A control character, one of no meaning, or an accent that no letter took."""
    return unicodedata.category(one) in ("Cc", "Cf", "Co", "Cn", "Cs") or "\u0300" <= one <= "\u036f"


def _write_power(found: re.Match[str]) -> str:
    """`10³²` as `10^32`. ² and ³ alone are signs of their own; after a word, or ¹ alone, it is the number of a note.

    `Ca²⁺` as `Ca 2+`, a charge.
    """
    raised, before = found[0], found.string[: found.start()]
    if raised in ("¹", "²", "³"):
        return raised
    written = unicodedata.normalize("NFKC", raised)
    if raised[-1] in "⁺⁻":
        return f" {written}"
    is_power = raised[0] == "⁻" or re.search(r"\d\)?$|\b([^\W\d_]|[cdhkm]?m|s)$", before)
    return f"^{written}" if is_power else " "


def _clean(text: str) -> str:
    """One line of composed characters, with the digits 0 to 9 for those of any script."""
    text = RAISED.sub(_write_power, text)
    text = re.sub(rf"[^{KEPT}]+", lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = "".join(str(unicodedata.digit(one)) if one.isdigit() and one not in "¹²³" else one for one in text)
    text = "".join(one for one in text if one.isspace() or not _is_invisible(one))
    return " ".join(text.replace("⁄", "/").replace("º C", "°C").replace("ºC", "°C").split())
