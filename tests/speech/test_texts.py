"""speech/texts.py: what a file asks for, and the pieces of a text."""

from pathlib import Path

import pytest

from speech.texts import Line, cut_text, read_lines, rules_of
from utils.cli import UserError


def read(folder: Path, name: str, content: str) -> list[Line]:
    (folder / name).write_text(content, "utf-8")
    return read_lines(None, folder / name)


def test_the_three_kinds_of_files_give_the_same_lines(tmp_path):
    plain = read(tmp_path, "a.txt", "um\n\n  dois \n")
    assert plain == [Line("000000", "um"), Line("000001", "dois")]
    assert read(tmp_path, "a.jsonl", '{"text": "um"}\n{"text": "dois"}\n') == plain
    assert read(tmp_path, "a.csv", "text\num\ndois\n") == plain


def test_a_row_has_its_own_id_speaker_and_seed(tmp_path):
    rows = '{"id": "x", "text": "um", "speaker": "ana", "seed": 4}\n'
    dataset = '{"file_name": "audio/ab.flac", "text": "dois", "raw_text": "2", "seconds": 1.5}\n'
    assert read(tmp_path, "a.jsonl", rows + dataset) == [Line("x", "um", "ana", 4), Line("ab", "2")]
    assert read(tmp_path, "a.csv", 'id,text,speaker,seed\nx,"um, e",ana,4\n') == [Line("x", "um, e", "ana", 4)]


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.txt", "\n", "holds no text"),
        ("a.csv", "id;text\n1;a\n", "its first line is `id;text`; expected the names of columns"),
        ("a.jsonl", '{"text": ""}', "line 1: `text` is ''; expected what is to be spoken"),
        ("a.jsonl", '{"txt": "x", "id": 3}', "line 1: there is no `text` among txt, id; expected what is to be spoken"),
        ("a.jsonl", "[1]", r"line 1: expected an object with `text`, found \[1\]"),
        ("a.jsonl", '{"text": "a", "seed": "x"}', "line 1: `seed` is x: expected a whole number"),
        ("a.csv", "id,text\n1,a\n1,b\n", "`id: 1` is there twice"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, told):
    with pytest.raises(UserError, match=told):
        read(tmp_path, name, content)


def test_text_comes_from_one_place(tmp_path):
    with pytest.raises(UserError, match="there is no text; give --text or --text_file"):
        read_lines(None, None)
    with pytest.raises(UserError, match="--text excludes --text_file lines.txt; leave one out"):
        read_lines("o rio", Path("lines.txt"))
    with pytest.raises(UserError, match="--text: is empty"):
        read_lines(" ", None)
    with pytest.raises(UserError, match="nope.txt: No such file"):
        read_lines(None, tmp_path / "nope.txt")


def test_without_rules_sentences_are_divided_and_read_as_they_are_written():
    assert [tuple(one) for one in cut_text("Il a 3 ans. Bien !\n\nOui", "none")] == [
        ("Il a 3 ans.", "sentence"),
        ("Bien !", "paragraph"),
        ("Oui", "paragraph"),
    ]
    long = cut_text("mot " * 200, "none")
    assert max(len(one.text) for one in long) <= 200
    assert " ".join(one.text for one in long) == " ".join(["mot"] * 200)
    assert cut_text("Custa 3.", "pt-br")[0].text == "Custa três."


def test_a_voice_names_its_language_in_several_ways():
    assert [rules_of(one) for one in ("por", "pt-br", "eng", "fra", None)] == ["pt-br", "pt-br", "en", "none", "none"]
