"""The catalogue of texts: which language is spoken, and that no text lacks a translation."""

import re
import string
from pathlib import Path

import pytest

from service.language import LANGUAGES, choose_language, read_texts, translate, write_number

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = [ROOT / "report_run.py", ROOT / "serve.py"]
CODE += [*(ROOT / "service").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]
TEMPLATES = sorted((ROOT / "service").rglob("*.html"))
SAME = {"LoRA", "Prompt", "Seed"}  # words that are the same in both languages


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_text_is_there_in_every_language_with_the_same_values():
    for key, texts in read_texts().items():
        assert texts.keys() == set(LANGUAGES) and all(text.strip() for text in texts.values()), key
        assert len({frozenset(placeholders(text)) for text in texts.values()}) == 1, key
        assert texts["en"] != texts["pt"] or texts["en"] in SAME, key


def test_the_code_asks_for_all_texts_of_the_catalogue_and_for_no_other():
    sections = "|".join(sorted({key.partition(".")[0] for key in read_texts()}))
    quoted = {name for path in [*CODE, *TEMPLATES] for name in find_keys(path.read_text("utf-8"), sections)}
    assert quoted == read_texts().keys()


def find_keys(source: str, sections: str) -> list[str]:
    return re.findall(rf"""["']((?:{sections})\.[a-z_0-9]+)["']""", source)


def test_the_keys_of_some_code_are_found():
    source = """translate(language, "report.title", run=1); t('page.send'); "report.md"; "other.title" """
    assert find_keys(source.replace('"report.md"', ""), "page|report") == ["report.title", "page.send"]


def words_in(template: str) -> list[str]:
    """The words of a template that are neither asked for by a key nor hidden from readers."""
    text = re.sub(r"(?s)\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<!--.*?-->|<(script|style)\b.*?</\1>", " ", template)
    shown = re.findall(r"""\b(?:title|alt|placeholder|aria-label)=(?:"([^"]*)"|'([^']*)')""", text)
    text = re.sub(r"(?s)<[^>]*>", " ", text) + " ".join(one or other for one, other in shown)
    return re.findall(r"[^\W\d_]{2,}", re.sub(r"&#?\w+;", " ", text))


def test_words_in_a_template_are_found():
    assert words_in('<p class="big">{{ t("a.b") }} {% if x %}&nbsp;{% endif %}</p><style>p { x }</style>') == []
    assert words_in('<p>Hello {{ name }}</p><img alt="a shoe">') == ["Hello", "shoe"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_page_has_no_word_that_is_not_in_the_catalogue(path):
    assert words_in(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("asked", "accepted", "locale", "expected"),
    [
        ("pt", "en", "en_US.UTF-8", "pt"),
        (None, "pt-BR,pt;q=0.9,en;q=0.8", "en_US.UTF-8", "pt"),
        (None, "en;q=0.3, pt-PT;q=0.7", "", "pt"),
        (None, "fr,de;q=0.5", "pt_BR.UTF-8", "pt"),
        (None, "", "pt_BR", "pt"),
        (None, "", "C.UTF-8", "en"),
        (None, "ptx,;;q=,", "", "en"),
    ],
)
def test_the_language_is_the_one_asked_for_then_the_browsers_then_the_environments(
    asked, accepted, locale, expected, monkeypatch
):
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    monkeypatch.setenv("LANG", locale)
    assert choose_language(asked, accepted) == expected


def test_lc_all_comes_before_lang(monkeypatch):
    monkeypatch.setenv("LANG", "pt_BR.UTF-8")
    monkeypatch.setenv("LC_ALL", "en_GB.UTF-8")
    assert choose_language() == "en"


def test_numbers_are_written_as_the_language_writes_them(monkeypatch):
    assert [write_number(one, 1234.5) for one in LANGUAGES] == ["1,234.5", "1.234,5"]
    texts = {"en": "{n:,} {n:step|steps}, loss {loss:.3g} in {run}", "pt": "{n:,} {n:passo|passos}, {loss:.3g}, {run}"}
    monkeypatch.setattr("service.language.read_texts", lambda: {"a.b": texts})
    assert translate("en", "a.b", n=1, loss=0.1234, run="1.5") == "1 step, loss 0.123 in 1.5"
    assert translate("pt", "a.b", n=2000, loss=0.1234, run="1.5") == "2.000 passos, 0,123, 1.5"


def test_a_key_that_is_missing_is_an_error():
    with pytest.raises(KeyError):
        translate("en", "report.no_such_text")


@pytest.mark.parametrize(
    ("rate", "shown"), [(1e-3, "1e-3"), (2.5e-5, "2,5e-5"), (1e-4, "1e-4"), (0.1, "0,1"), (3.0, "3"), (0.0, "0")]
)
def test_learning_rates_are_written_alike(rate, shown):
    text = translate("pt", "finding.rate_above", rate=rate, low=rate, high=rate)
    assert f"de {shown} está" in text and f"({shown} a {shown})" in text
