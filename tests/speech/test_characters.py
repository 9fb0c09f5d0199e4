import pytest

from speech.characters import fit_characters

LETTERS = set("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    ("known", "text", "fitted"),
    [
        ("\"',.-", "“oi”… ‘eu’ – a", "\"oi\"... 'eu' - a"),
        ("é", "café à ñ ç", "café a n c"),
        ("", "É æ Æ ß ø", "É ae Æ ss o"),
        (".", "vem! quem?", "vem. quem."),
        (",", "a; b: (c)", "a, b, ,c,"),
        ("!?;:", "vem! quem? a; b:", "vem! quem? a; b:"),
        ("", "日本 ☃ € 5", "日本 ☃ € 5"),
    ],
)
def test_what_is_read_alike_stands_for_what_is_unknown(known, text, fitted):
    assert fit_characters(text, (LETTERS | set(known)).__contains__) == fitted


def test_capitals_become_capitals_where_those_are_known():
    assert fit_characters("ÉÆ", (LETTERS | set("EA")).__contains__) == "EAE"
