import random

import pytest

from speech.normalise import LANGUAGES, normalise
from speech.sentences import Piece, split_sentences


def texts(text: str, language: str = "pt-br", most: int = 200) -> list[str]:
    return [piece.text for piece in split_sentences(text, language, most)]


def test_sentences_and_paragraphs_end_with_their_pauses():
    pieces = split_sentences("Bom dia! Tudo\nbem?\n\n  \nSim, tudo.", "pt-br", 200)
    assert pieces == [Piece("Bom dia!", "sentence"), Piece("Tudo bem?", "paragraph"), Piece("Sim, tudo.", "paragraph")]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("pt-br", "O Dr. Paulo e a Sra. Ana moram na Av. Brasil."),
        ("pt-br", "A autora J. K. Rowling escreveu a p. 12, etc. e foi embora."),
        ("pt-br", "Em 3 de jan. 2021 ele pagou R$ 1.234,50 na loja."),
        ("pt-br", "1. Abra a porta."),
        ("pt-br", "Ela disse “Vem cá!” e saiu... sem dizer nada."),
        ("pt-br", "Diga a V. Exa. Paulo que o no. é outro."),
        ("en", "Mr. Smith met Dr. J. R. Lee of the U.S. Navy at No. 5."),
        ("en", "On Jan. 3 it cost 3.50, i.e. Too much."),
        ("en", "“Really?” she asked."),
    ],
)
def test_a_dot_that_ends_no_sentence_divides_nothing(language, text):
    assert len(texts(text, language)) == 1


def test_a_sentence_ends_before_a_capital_a_digit_or_a_quotation():
    text = "Ele veio. “Oi!” Ela riu… Depois, nada. 20 pessoas viram (todas). – E agora? ¿Que? Foi em 1999. Fim"
    assert texts(text) == [
        "Ele veio.",
        "“Oi!”",
        "Ela riu…",
        "Depois, nada.",
        "vinte pessoas viram (todas).",
        "– E agora?",
        "¿Que?",
        "Foi em mil novecentos e noventa e nove.",
        "Fim",
    ]


def test_a_text_without_capitals_is_divided_too():
    assert texts("oi. tudo bem? sim") == ["oi.", "tudo bem?", "sim"]


def test_a_long_sentence_is_cut_at_its_clauses_then_between_words():
    text = "Fomos ao mercado da esquina, compramos pão, queijo e leite; depois voltamos para casa a pé."
    pieces = split_sentences(text, "pt-br", 50)
    assert [piece.pause for piece in pieces] == ["clause", "paragraph"]
    assert [piece.text for piece in pieces][0].endswith(",")
    words = split_sentences("palavra " * 20, "pt-br", 50)
    assert {piece.pause for piece in words[:-1]} == {"word"} and max(len(piece.text) for piece in words) <= 50
    assert texts("a" * 120, most=50) == ["a" * 30] * 4


def test_the_limit_is_one_of_the_text_that_is_read():
    assert all(len(text) <= 60 for text in texts("Custa R$ 987.654.321,98 hoje e R$ 123.456.789,12 amanhã.", most=60))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_word_is_lost_or_moved(language):
    chooser = random.Random(0)
    parts = ["casa", "A", "b", "“Ela", "ele”", "fim.", "já?", "não!", "...", ",", "(sim)", "—", "\n\n", "12", ";"]
    for _ in range(100):
        text = " ".join(chooser.choice(parts) for _ in range(40))
        pieces = split_sentences(text, language, 30)
        assert all(len(piece.text) <= 30 and piece.text == normalise(piece.text, language) for piece in pieces)

        def letters(said: str) -> str:
            return "".join(filter(str.isalpha, said))

        parts_said = letters("".join(piece.text for piece in pieces))
        assert parts_said == "".join(letters(normalise(one, language)) for one in text.split("\n\n"))


def test_what_has_nothing_to_read_is_left_out():
    assert split_sentences("", "pt-br") == [] == split_sentences("* * *\n\n…\n\n—", "en")
    assert texts("Oi.\n\n* * *\n\nTchau.") == ["Oi.", "Tchau."]
