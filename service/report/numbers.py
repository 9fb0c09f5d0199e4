"""Whether the numbers of a text follow from given ones: equal, rounded, or a difference or ratio of two of them."""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Digits that are no part of a name such as fp16 or adamw8bit; and what makes them larger.
FOUND = re.compile(
    r"(?<![\w.,])((?:\d+(?:[.,]\d+)*|[.,]\d+)(?:e[-+−]?\d+)?)\s?"
    r"(%|per\s?cent(?:age)?\b|por\s?cento\b|pontos\spercentuais\b|k\b|mil\b|thousand\b|million\b|milh\w+)?",
    re.IGNORECASE,
)
OF_A_HUNDRED = ("%", "per", "por", "pontos")  # how its units begin
SCALES = {"k": 1e3, "mil": 1e3, "thousand": 1e3, "million": 1e6}
WORDS = {
    2: "two twice double doubled dois duas dobro dobrou",
    3: "three triple tripled três triplo triplicou",
    4: "four quatro",
    5: "five cinco",
    6: "six seis",
    7: "seven sete",
    8: "eight oito",
    9: "nine nove",
    10: "ten dez",
    11: "eleven onze",
    12: "twelve doze",
    15: "fifteen quinze",
    20: "twenty vinte",
    30: "thirty trinta",
    40: "forty quarenta",
    50: "fifty cinquenta",
    60: "sixty sessenta",
    70: "seventy setenta",
    80: "eighty oitenta",
    90: "ninety noventa",
    100: "hundred cem cento",
    1000: "thousand mil",
}
SPELT = {word: number for number, words in WORDS.items() for word in words.split()}
LOOSE = 0.02  # how far a number of one digit may be off a difference or ratio


class Reading(NamedTuple):
    """A number as it may be meant, half of its last digit's worth, and how many of its digits say something."""

    value: float
    half: float
    digits: int


def find_invented(text: str, given: Iterable[float], alike: Iterable[Sequence[float]]) -> list[str]:
    """The numbers of a text, as they stand there, that are none of the given ones, rounded at most.

    Nor a difference or a ratio of two that are `alike`: what has no unit in common, or nothing to do with each other,
    gives so many that nearly every number would be among them.
    """
    known, derived = sorted(map(abs, given)), sorted(derive(alike))
    invented = [
        shown for shown, readings in read_numbers(text) if not any(follows(one, known, derived) for one in readings)
    ]
    invented += [one for one in text if unicodedata.category(one) in ("No", "Nl")]  # such as ½ and ²
    return list(dict.fromkeys(invented))


def derive(alike: Iterable[Sequence[float]]) -> set[float]:
    """The differences and ratios within each group."""
    pairs = [(a, b) for group in alike for a in group for b in group]
    return {abs(a - b) for a, b in pairs} | {abs(a / b) for a, b in pairs if b}


def follows(reading: Reading, known: list[float], derived: list[float]) -> bool:
    if is_near(reading.value, reading.half, known):
        return True
    half = reading.half if reading.digits > 1 else min(reading.half, LOOSE * reading.value)
    return is_near(reading.value, half, derived)


def is_near(value: float, half: float, known: list[float]) -> bool:
    """Whether one of the sorted numbers rounds to the value."""
    room = half * (1 + 1e-9) + 1e-12 * value
    place = bisect_left(known, value - room)
    return place < len(known) and known[place] <= value + room


def read_numbers(text: str) -> list[tuple[str, list[Reading]]]:
    """Each number of a text with what it may mean; the numbers of a list's items are left out."""
    text = re.sub(r"(?m)^\s*\d{1,2}[.)]\s", " ", text)
    found = []
    for match in FOUND.finditer(text):
        unit = (match[2] or "").lower()
        readings = [reading for plain in plain_forms(match[1]) for reading in readings_of(plain, unit)]
        found.append((match[0].strip(), readings))
    words = re.findall(r"[^\W\d_]+", FOUND.sub(" ", text).lower())
    return found + [(word, [Reading(SPELT[word], 0.0, 1)]) for word in words if word in SPELT]


def plain_forms(shown: str) -> list[str]:
    """`1.234,5` and `1,234.5` as Python writes them; `1.234` may be either of two numbers."""
    shown = shown.lower().replace("−", "-")
    forms = [shown.replace(thousands, "").replace(decimal, ".") for thousands, decimal in (",.", ".,")]
    grouped = r"[1-9]\d{0,2}(%s\d{3})+(%s\d+)?(e.*)?"
    plain = r"\d*(%s\d+)?(e.*)?"
    fits = [
        re.fullmatch(grouped % (re.escape(thousands), re.escape(decimal)), shown)
        or re.fullmatch(plain % re.escape(decimal), shown)
        for thousands, decimal in (",.", ".,")
    ]
    return list(dict.fromkeys(form for form, fit in zip(forms, fits) if fit))


def readings_of(plain: str, unit: str) -> list[Reading]:
    """A number, rounded to its last digit, or if it ends in zeros and has two other digits, to the first of those."""
    mantissa, _, power = plain.partition("e")
    whole, _, decimals = mantissa.partition(".")
    scale = 10.0 ** int(power or 0)
    is_share = unit.startswith(OF_A_HUNDRED)
    if unit and not is_share:
        scale *= SCALES.get(unit, 1e6)
    said = (whole + decimals).lstrip("0")
    digits = said if decimals else said.rstrip("0")
    zeros = 0 if decimals or len(digits) < 2 else len(said) - len(digits)
    reading = Reading(float(mantissa) * scale, 0.5 * 10.0 ** (zeros - len(decimals)) * scale, len(digits))
    as_share = Reading(reading.value / 100, reading.half / 100, reading.digits)
    return [reading, as_share] if is_share else [reading]
