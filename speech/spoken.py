"""What reading a text aloud needs in every language: Roman numerals, letters, addresses, which acronyms are words."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

Read = str | Callable[[re.Match[str]], str]  # what stands in place of a match
Rule = tuple[str, Read]  # a pattern, and how its matches are read
# What is no part of a number stands apart from it: MP3, COVID-19, 221B.
APART: list[Rule] = [(r"[ºª]", " "), (r"(?<=[^\W\d_])-?(?=\d)|(?<=\d)-?(?=[^\W\d_])", " ")]
LONGEST = 15  # digits of a number that is read as one; a longer one is read digit by digit

# What stands before the exponent of a power: 3e, 3 × 10^, or ^ after any number, letter or bracket.
POWER = r"(?:(?<![\w.,])(?P<factor>\d++(?:[.,]\d++)?)(?: ?[x×·] ?10\^|[eE])|(?<=[\w)])\^)"
EXPONENT = r"(?:(?P<minus>[-−])|\+)?(?P<exponent>\d{1,15})"
ROMAN = re.compile(r"(?=[IVXLCDM])M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
ROMAN_VALUES = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}
# An acronym is read as a word if it is made of syllables: a consonant or two, vowels, at most one consonant after.
ONSET = r"(?:[bcdfgptv][lr]|[cglnst]h|qu|[bcdfghjklmnpqrstvwxyzç])"
SYLLABLES = re.compile(
    rf"{ONSET}?(?:[aeiouáéíóúâêôãõ]{{1,2}}[lmnrsz]?{ONSET})*[aeiouáéíóúâêôãõ]{{1,2}}[bcdfgklmnprstxz]?s?"
)


class Letters(NamedTuple):
    """How the letters, digits and marks of a language are named, and the acronyms that its syllables do not decide."""

    names: dict[str, str]
    digits: list[str]
    marks: dict[str, str]
    words: set[str]  # read as a word
    spelled: set[str]


def table(text: str) -> dict[str, str]:
    """`a one, b two three` as {"a": "one", "b": "two three"}; a key with a blank ends with a dot: `V. Exa`."""
    rows = [row.split() for row in text.split(",")]
    ends = [2 if len(row) > 2 and row[0] in ("V.", "p.") else 1 for row in rows]
    return {" ".join(row[:end]): " ".join(row[end:]) for row, end in zip(rows, ends)}


def alternatives(words: Iterable[str]) -> str:
    """A pattern for any of the words, the longest first."""
    return f"(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})"


def split_number(text: str, thousands: str, decimal: str) -> tuple[str, str]:
    """What stands before and after the decimal mark; a mark of thousands without three digits after it is one too."""
    plain = re.sub(rf"{re.escape(thousands)}(?=\d{{3}}(?!\d))", "", text)
    whole, _, decimals = plain.replace(thousands, decimal).partition(decimal)
    return whole, decimals


def roman(text: str) -> int:
    """The value of a Roman numeral in its usual form; 0 for any other text."""
    if not ROMAN.fullmatch(text):
        return 0
    values = [ROMAN_VALUES[letter] for letter in text]
    return sum(-one if one < after else one for one, after in zip(values, [*values[1:], 0]))


def say_digits(text: str, digits: list[str], between: str = ", ") -> str:
    """Every digit by itself, with a pause between the groups."""
    return between.join(" ".join(digits[int(one)] for one in group) for group in re.findall(r"\d+", text))


def spell(word: str, letters: Letters) -> str:
    """The names of a word's letters."""
    return " ".join(letters.names.get(letter, letter) for letter in word.lower() if letter.isalpha())


def is_word(acronym: str, letters: Letters) -> bool:
    """Whether an acronym is read as a word: NASA is, FBI is not."""
    known = acronym in letters.words or SYLLABLES.fullmatch(acronym.lower()) is not None
    return known and acronym not in letters.spelled


def say_address(text: str, letters: Letters) -> str:
    """An address of the web or of mail: words as they are, digits, marks and what is no word by their names."""
    said = []
    for part in re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text):
        if part.isdecimal():
            said.append(letters.digits[int(part)])
        elif not part.isalpha():
            said.append(letters.marks.get(part, ""))
        else:
            said.append(part.lower() if len(part) > 3 or is_word(part.upper(), letters) else spell(part, letters))
    return " ".join(filter(None, said))


def address_rules(letters: Letters) -> list[Rule]:
    """Addresses of mail and of the web."""
    web = (
        r"(?i)\b(?:https?://)?((?:www\.|(?<=//))[^\s<>\"]*[\w/]|"
        r"[\w-]{1,63}\.(?:com|org|net|gov|edu)(?:\.[a-z]{2})?(?:/[\w./-]*)?)(?!\w)"
    )
    mail = r"(?<![\w.+-])[\w.+-]{1,64}+@[\w-]{1,63}(?:\.[\w-]{1,63})+"
    return [(mail, lambda found: say_address(found[0], letters)), (web, lambda found: say_address(found[1], letters))]


def abbreviation_rules(titles: dict[str, str], closings: dict[str, str], capital: str) -> list[Rule]:
    """Abbreviations with a dot, which is kept where it also ends the text, or a closing's where a `capital` follows."""
    ends = alternatives(closings)
    return [
        (rf"(?<![\w.])({ends})\.(?=$| (?!{ends}\.){capital})", lambda found: f"{closings[found[1]]}."),
        (rf"(?<![\w.])({ends})\.", lambda found: closings[found[1]]),
        (rf"(?<![\w.])({alternatives(titles)})\.(?=$)", lambda found: f"{titles[found[1]]}."),
        (rf"(?<![\w.])({alternatives(titles)})\. ?", lambda found: f"{titles[found[1]]} "),
    ]


def say_acronyms(text: str, letters: Letters) -> str:
    """The text with the letters of its acronyms named; more than two words in capitals are no acronyms.

    What has no vowel is spelled anywhere, and first: then a second reading finds the same words in capitals.
    """

    def name(found: re.Match[str]) -> str:
        return spell(found[0], letters)

    def name_unless_shouted(found: re.Match[str]) -> str:
        words = found[0].split(" ")
        if len(words) > 2:
            return found[0]
        return " ".join(one if is_word(one, letters) else spell(one, letters) for one in words)

    text = re.sub(r"(?<![\w.])(?:[A-Z]\.){2,}+(?=$)", lambda found: f"{name(found)}.", text)
    text = re.sub(r"(?<![\w.])(?:(?:[A-Z]\.){2,}+|[A-Z]\. ?(?=[A-Z][a-z.]))", lambda found: f"{name(found)} ", text)
    text = re.sub(r"(?<![\w'’])[B-DF-HJ-NP-TV-XZ]{1,6}(?![\w'’])", name, text)
    capitals = r"(?<![\w'’])[A-ZÀ-ÖØ-Þ]{2,}+(?![\w'’])(?: [A-ZÀ-ÖØ-Þ]++(?![\w'’]))*+"
    return re.sub(capitals, name_unless_shouted, text)
