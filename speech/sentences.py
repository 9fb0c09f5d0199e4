"""Long texts in pieces that a voice reads one by one, with the pause that follows each."""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Literal, NamedTuple

from speech.normalise import find_language, normalise

Pause = Literal["word", "clause", "sentence", "paragraph"]
MOST_CHARACTERS = 200  # as long as the utterances that voices are trained with

_END = re.compile(r"(?<![.!?…])(?P<mark>[.!?…]++)[\"'”’»)\]]*+ (?=[\"'“‘«(\[¿¡—–-]*+ ?(?P<next>\S))")
_CLAUSE = re.compile(r"[,;:.!?…)]+[\"'”’»]* | (?=[(–—-] ?)")


class Piece(NamedTuple):
    """A text to be read at once, normalised, and what ends with it: the longer the unit, the longer the pause."""

    text: str
    pause: Pause


def split_sentences(text: str, language: str, most_characters: int = MOST_CHARACTERS) -> list[Piece]:
    """The sentences of a text; one that is longer is cut at its commas, or between words.

    An empty line divides paragraphs. What holds no letter once it is normalised is left out.
    """
    rules, pieces = find_language(language), list[Piece]()
    for paragraph in re.split(r"\n[^\S\n]*\n\s*", text):
        start = len(pieces)
        for sentence in _sentences(" ".join(paragraph.split()), rules):
            said = normalise(sentence, language)
            if any(one.isalpha() for one in said):
                pieces += _cut(said, most_characters, "sentence")
        if len(pieces) > start:
            pieces[-1] = pieces[-1]._replace(pause="paragraph")
    return pieces


def _sentences(paragraph: str, rules: ModuleType) -> Iterator[str]:
    start, has_capitals = 0, paragraph != paragraph.lower()
    for found in _END.finditer(paragraph):
        word = re.search(r"[^\s\"'“‘«(\[]*$", paragraph[max(start, found.start() - 20) : found.start()])[0]
        is_label = word.isdigit() and start + len(word) == found.start()  # 1. of a list
        is_short = found["mark"] == "." and (is_label or _is_abbreviation(word, found["next"], rules))
        if not (is_short or (has_capitals and found["next"].islower())):
            yield paragraph[start : found.end()].strip()
            start = found.end()
    yield paragraph[start:]


def _is_abbreviation(word: str, after: str, rules: ModuleType) -> bool:
    """Whether a word with a dot, before what starts with `after`, ends no sentence: Dr. Ana, J. K. Rowling, p. 12."""
    is_initial = re.fullmatch(r"(?:[A-Z]\.)*[A-Z]", word) is not None and word not in ("I", "V", "X")
    titles = {part.rstrip(".") for title in rules.TITLES for part in title.split()}
    return word in titles or (is_initial and after.isupper()) or (after.isdigit() and word in rules.BEFORE_NUMBERS)


def _cut(text: str, most: int, pause: Pause) -> list[Piece]:
    """The text in parts of at most `most` characters, halved where a clause ends, or between words, or anywhere."""
    if len(text) <= most:
        return [Piece(text, pause)]
    middle, first, last = len(text) // 2, len(text) // 4, -(-len(text) * 3 // 4)
    ends = [found.end() for found in _CLAUSE.finditer(text, first, last)]
    between: Pause = "clause" if ends else "word"
    ends = ends or [found.end() for found in re.compile(" ").finditer(text, first, last)] or [middle]
    place = min(ends, key=lambda end: abs(end - middle))
    return _cut(text[:place].strip(), most, between) + _cut(text[place:].strip(), most, pause)
