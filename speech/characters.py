"""What stands for a character that a voice does not know."""

import unicodedata
from collections.abc import Callable

# Marks and letters with what is read alike, the likest first.
_ALIKE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("“”„‟«»″", ('"',)),
    **dict.fromkeys("‘’‚‛´`′", ("'",)),
    **dict.fromkeys("–—―", ("—", "–", "-", ",")),
    **dict.fromkeys("−‐‑", ("-",)),
    **{"…": ("...", "."), "¡": ("!",), "¿": ("?",), ";": (",",), ":": (",",), "!": (".",), "?": (".",)},
    **{"(": (",",), ")": (",",), "[": ("(", ","), "]": (")", ",")},
    **{"æ": ("ae",), "œ": ("oe",), "ß": ("ss",), "ø": ("o",), "ł": ("l",), "đ": ("d",), "ð": ("d",), "þ": ("th",)},
}


def fit_characters(text: str, is_known: Callable[[str], bool]) -> str:
    """The text with what is read alike for characters that are not known: é becomes e only where é itself is not."""
    wanted = {one: _find_alike(one, is_known) for one in set(text) if not (one.isspace() or is_known(one))}
    return "".join(wanted.get(one, one) for one in text) if wanted else text


def _find_alike(one: str, is_known: Callable[[str], bool]) -> str:
    """What stands for it; itself where there is nothing."""
    plain = unicodedata.normalize("NFD", one)[0]
    capital = tuple(text.upper() for text in _ALIKE.get(one.lower(), ())) if one.isupper() else ()
    for alike in (*_ALIKE.get(one, ()), *capital, plain):
        if all(map(is_known, alike)):
            return alike
    return one
