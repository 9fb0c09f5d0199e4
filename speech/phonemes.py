"""Texts in phonemes, as IPA with stress, by espeak-ng.

espeak-ng is GPL, and no part of this repository or of what its scripts require: whoever asks for phonemes installs it,
and only then is its library loaded or its program started.
"""

import ctypes
import ctypes.util
import functools
import re
import shutil
import subprocess
import textwrap
from collections.abc import Callable

from utils.cli import UserError

FLAG = "--phonemes espeak"
ENGINES = ("espeak",)
HELP = "store the texts as IPA by espeak-ng, which is GPL and which you install: pip install espeakng-loader"
NAMES = {"en": "en-us"}  # of espeak-ng's voices, where they are called otherwise than the language here
LONGEST = 400  # characters of a line, which the program reads at once

# Marks that stay: all but those within a word.
_MARKS = re.compile(r"((?:[^\w\s'’-]|(?<!\w)['’-]|['’-](?!\w))+)")


def phonemise(texts: list[str], language: str) -> list[str]:
    """The texts in phonemes; punctuation stays where it is. A language that espeak-ng does not speak is refused."""
    parts = [_MARKS.split(" ".join(text.split())) for text in texts]
    words = [part for text in parts for part in text if any(map(str.isalnum, part))]
    wrapped = [textwrap.wrap(part, LONGEST, break_on_hyphens=False) for part in words]
    said = iter(_find_espeak()([line for lines in wrapped for line in lines], NAMES.get(language, language)))
    phonemes = iter([" ".join(_clean(next(said)) for _ in lines) for lines in wrapped])

    def read(part: str) -> str:
        if not any(map(str.isalnum, part)):
            return part
        return " " * part.startswith(" ") + next(phonemes) + " " * part.endswith(" ")

    return [" ".join("".join(map(read, text)).split()) for text in parts]


def _clean(line: str) -> str:
    """A line of espeak-ng without its marks for a change of the language, such as (en), and for joined sounds."""
    return " ".join(re.sub(r"\([a-z-]+\)|[\u200d\u0361]", "", line).split())


def _find_espeak() -> Callable[[list[str], str], list[str]]:
    """What says lines: the library, by its package or the system's; else the program."""
    if open_espeak():
        return _ask_library
    if shutil.which("espeak-ng"):
        return _ask_program
    raise UserError(
        f"{FLAG}: espeak-ng is not installed; pip install espeakng-loader (or apt install espeak-ng, or "
        "brew install espeak-ng)"
    )


@functools.cache
def open_espeak() -> tuple[ctypes.CDLL, int] | None:
    """The library, ready, and the rate at which it speaks; None where there is none.

    It is started here alone: a process that starts it twice waits for ever, or ends by a segmentation fault.
    """
    try:
        import espeakng_loader

        path, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    except ImportError:
        path, data = ctypes.util.find_library("espeak-ng"), None
    if not path:
        return None
    library = ctypes.CDLL(path)
    # Sound is returned within the call (2), not played; phonemes are events (1) in IPA (2); an error does not end the
    # process (1 << 15).
    rate = library.espeak_Initialize(2, 0, data.encode() if data else None, 1 | 2 | 1 << 15)
    if rate <= 0:
        raise UserError(
            f"{FLAG}: {path} finds no data in {data or 'the folders of the system'}; install espeak-ng anew"
        )
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    return library, rate


def _ask_library(lines: list[str], name: str) -> list[str]:
    library, _ = open_espeak()
    if library.espeak_SetVoiceByName(name.encode()):
        raise _no_language(name)
    said = []
    for line in lines:
        clauses, rest = [], ctypes.c_char_p(line.encode())
        while rest.value:  # each call reads a clause of UTF-8 (1) as IPA (2), and moves on
            clauses.append(library.espeak_TextToPhonemes(ctypes.byref(rest), 1, 2).decode())
        said.append(" ".join(clauses))
    return said


def _ask_program(lines: list[str], name: str) -> list[str]:
    """Each line of its input is one line of its output."""
    command = ["espeak-ng", "-q", "--ipa", "-b", "1", "-v", name]
    ended = subprocess.run(command, input="".join(f"{line}\n" for line in lines), capture_output=True, encoding="utf-8")
    if ended.returncode and "voice does not exist" in ended.stderr:
        raise _no_language(name)
    said = ended.stdout.split("\n")[:-1]
    if ended.returncode or len(said) != len(lines):
        why = ended.stderr.strip().replace("\n", " ")[:200] or f"it said {len(said):,} of {len(lines):,} lines"
        raise UserError(f"{FLAG}: espeak-ng failed ({why}); install espeakng-loader instead")
    return said


def _no_language(name: str) -> UserError:
    return UserError(f"{FLAG}: espeak-ng does not speak --language {name}; `espeak-ng --voices` lists what it does")
