import ctypes.util
import subprocess
import sys
from pathlib import Path

import pytest

from speech import phonemes
from speech.phonemes import phonemise
from utils.cli import UserError


def test_words_become_ipa_with_stress_and_punctuation_stays():
    said = phonemise(["Bom dia, senhor! — “Guarda-chuva”...", "d'água", "(sim)", "", "?!"], "pt-br")
    assert said == ["bˈoŋ dʒˈiæ, seɲˈor! — “ɡwˈaɾədæʃˈuvæ”...", "dˈaɡwæ", "(sˈiŋ)", "", "?!"]
    assert phonemise(["Hello, world."], "en") == ["həlˈoʊ, wˈɜːld."]


def test_a_word_of_another_language_has_no_mark_of_it():
    assert not set("()") & set(phonemise(["o shopping center do website"], "pt-br")[0])


def test_a_text_longer_than_a_line_is_read_whole():
    assert phonemise(["casa " * 300], "pt-br") == [" ".join(phonemise(["casa"], "pt-br") * 300)]


def test_a_language_that_espeak_does_not_speak_is_refused():
    with pytest.raises(UserError, match="--phonemes espeak: espeak-ng does not speak --language xx"):
        phonemise(["a"], "xx")


def write_program(folder: Path, body: str) -> None:
    """A program with espeak-ng's command line, which reads lines and writes lines."""
    program = folder / "espeak-ng"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(0o755)


def test_the_program_is_asked_where_there_is_no_library(tmp_path, monkeypatch):
    write_program(
        tmp_path, "print(*sys.argv[1:], file=sys.stderr)\nfor line in sys.stdin: print(' ' + line[::-1].strip())"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert phonemes._ask_program(["abc; rm -rf x", "é"], "pt-br") == [" x fr- mr ;cba", " é"]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("print('once')", r"espeak-ng failed \(it said 1 of 2 lines\)"),
        ("sys.exit('no data')", r"espeak-ng failed \(no data\)"),
        ("sys.exit('Error: The specified espeak-ng voice does not exist.')", "does not speak --language pt-br"),
    ],
)
def test_a_program_that_fails_is_named_with_its_reason(body, found, tmp_path, monkeypatch):
    write_program(tmp_path, body)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"--phonemes espeak: .*{found}"):
        phonemes._ask_program(["a", "b"], "pt-br")


@pytest.mark.skipif(bool(ctypes.util.find_library("espeak-ng")), reason="the system has espeak-ng")
def test_without_espeak_one_line_says_how_to_install_it(tmp_path):
    """And the module alone imports nothing of it."""
    code = (
        "import sys; from speech.phonemes import phonemise; assert 'espeakng_loader' not in sys.modules\n"
        "sys.modules['espeakng_loader'] = None\nphonemise(['a'], 'pt-br')"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert "UserError: --phonemes espeak: espeak-ng is not installed; pip install espeakng-loader" in ended.stderr
