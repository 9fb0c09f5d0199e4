"""The pages on troubleshooting quote what the code prints; Portuguese pages have the commands of the English ones."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TROUBLES = ROOT / "docs/troubleshooting.md", ROOT / "docs/pt-BR/resolucao-de-problemas.md"
PORTUGUESE = [ROOT / "README.pt-BR.md", *sorted((ROOT / "docs/pt-BR").glob("*.md"))]
ENGLISH = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIELD = re.compile(r"%(?:\.\d+)?[dfgs]")  # of a message for the log


def texts_of(tree: ast.AST) -> set[str]:
    """The strings of some code, with … in place of what differs."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [one.value if isinstance(one, ast.Constant) else "…" for one in node.values]
            found.add("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(FIELD.sub("…", node.value).replace("%%", "%"))
    return found


@cache
def texts_of_the_code() -> set[str]:
    listed = subprocess.check_output(["git", "ls-files", "*.py", ":!tests"], cwd=ROOT, text=True).split()
    return set().union(*(texts_of(ast.parse((ROOT / name).read_text("utf-8"))) for name in listed))


def messages_of(page: str) -> list[str]:
    """What a page quotes: lines that are only a quotation, and the first cells of tables that begin with `printed`."""
    quoted = re.findall(r"^> `(.+)`$", page, re.M)
    for table in re.findall(r"^\| (?:printed|mensagem) \|.*\n(?:\|.*\n)+", page, re.M):
        quoted += re.findall(r"^\| `(.+?)` \|", table, re.M)
    return quoted


def is_printed(message: str, texts: set[str]) -> bool:
    pattern = re.compile(".*".join(map(re.escape, message.split("…"))))
    return any(pattern.search(one) for one in texts)


def commands_of(page: str) -> list[str]:
    """The lines of a page's indented blocks, each in one piece and without its comment."""
    lines = re.findall(r"^    (\S.*)", re.sub(r" *\\\n *", " ", page), re.M)
    return [re.sub(r"\s+#.*", "", one) for one in lines]


@pytest.mark.parametrize("page", [TROUBLES[0], *PORTUGUESE], ids=lambda path: path.name)
def test_every_message_that_is_quoted_is_in_the_code(page):
    messages, texts = messages_of(page.read_text("utf-8")), texts_of_the_code()
    assert all(len(one.replace("…", "")) > 9 for one in messages) and (page not in TROUBLES or len(messages) > 40)
    assert [one for one in messages if not is_printed(one, texts)] == []


def test_a_message_that_no_code_prints_is_found():
    texts = texts_of(
        ast.parse('log("%d of %d are bad: %.0f %%", 1, 2, 3); raise Error(f"{flag}: is {value:g}; give " "more")')
    )
    assert is_printed("… of … are bad: … %", texts) and is_printed("…: is …; give more", texts)
    assert not is_printed("… of … are worse", texts) and not is_printed("is …; give less", texts)


def test_both_languages_have_the_same_messages_and_commands():
    english, portuguese = (path.read_text("utf-8") for path in TROUBLES)
    assert messages_of(english) == messages_of(portuguese)
    assert commands_of(english) == commands_of(portuguese)


@pytest.mark.parametrize("page", PORTUGUESE, ids=lambda path: path.name)
def test_every_command_of_a_portuguese_page_is_one_of_an_english_page(page):
    english = "".join(path.read_text("utf-8") for path in ENGLISH)
    known = {*commands_of(english), *re.findall(r"`(python3 \w+\.py .+?)`", english)}
    commands = commands_of(page.read_text("utf-8"))
    assert commands and [one for one in commands if one not in known] == []


def test_every_portuguese_page_links_to_an_english_one_and_is_linked_from_one():
    pages = {path: path.read_text("utf-8") for path in [*ENGLISH, *PORTUGUESE]}
    for page in PORTUGUESE:
        assert re.search(r"\]\((\.\./)*[\w.]+\.md", pages[page]), page
        assert any(page.name in text for path, text in pages.items() if path != page), page
