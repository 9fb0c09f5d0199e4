"""What the page at / is made of: its errors' texts and the ranges of its sliders."""

import re
from pathlib import Path

import pytest

from service.measures import Measures
from service.page_api import ERRORS, group_pickers, slider_of
from service.pages import TEMPLATES
from service.pickers import Pickers
from service.site import Site

SERVICE = TEMPLATES.parent


def test_the_page_explains_only_errors_that_the_api_has():
    code = "".join(path.read_text("utf-8") for path in Path(SERVICE).glob("*.py") if path.name != "page_api.py")
    of_the_api = {name for name in (key.partition(".")[2] for key in ERRORS) if name not in ("other", "unreachable")}
    assert len(of_the_api) > 4 and all(f'"{name}"' in code for name in of_the_api)
    script = (TEMPLATES / "page.js").read_text("utf-8")
    assert set(re.findall(r'code: "(\w+)"|errors\.(\w+)', script)) == {("unreachable", ""), ("", "other")}


@pytest.mark.parametrize(
    ("weight", "low", "high", "step"),
    [(1.0, 0, 1.5, 0.05), (0.35, 0, 1.5, 0.05), (2.0, 0, 2.0, 0.05), (-1.0, -1.0, 1.5, 0.05), (0.333, 0, 1.5, "any")],
)
def test_a_slider_can_show_the_weight_that_was_given(weight, low, high, step):
    assert slider_of(weight) == {"min": low, "max": high, "step": step}


@pytest.mark.parametrize(
    ("images", "speech", "title"),
    [(1, 1, "pages.both"), (1, None, "pages.images"), (None, 1, "pages.speech"), (None, None, None)],
)
def test_the_title_names_what_is_made(images, speech, title):
    assert Site(Measures(), images, speech).title == title


def test_loras_of_one_dataset_share_their_attributes_and_those_without_a_choice_have_none():
    def of(word: str, *colours: str) -> Pickers:
        chosen = {"colour": colours[0]}
        return Pickers("{colour} shoes", f"{word} {{}}".format, {"colour": list(colours)}, "", chosen)

    pickers = {"a": of("sks", "red", "blue"), "b": of("other", "red", "blue"), "c": of("sks", "red", "blue")}
    found = group_pickers(pickers | {"d": of("sks", "red")})
    assert found == [(["a", "c"], pickers["a"]), (["b"], pickers["b"])]
