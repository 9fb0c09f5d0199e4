import json
import re

import pytest

from preparation.captions import DEFAULT_TEMPLATE, add_trigger, estimate_tokens, load_tokenizer
from utils.cli import UserError
from utils.wording import fill_template

FULL = {"colour": "Navy Blue", "article": "Casual Shoes", "season": "Fall", "gender": "Men"}


def test_a_full_caption_reads_as_english():
    assert fill_template(DEFAULT_TEMPLATE, FULL) == (
        "A professional product photo of navy blue casual shoes, fall collection, men's, centered on white background"
    )


@pytest.mark.parametrize("missing", [[], ["colour"], ["season"], ["gender"], ["season", "gender"], list(FULL)])
def test_a_missing_attribute_leaves_no_trace(missing):
    text = fill_template(DEFAULT_TEMPLATE, {key: None if key in missing else value for key, value in FULL.items()})
    assert not re.search(r"nan|none|,\s*,|\s\s|\s,|[{}]", text.lower())
    assert ("collection" in text) == ("season" not in missing) and ("men's" in text) == ("gender" not in missing)
    assert text.endswith("centered on white background")


@pytest.mark.parametrize(
    "article, colour, expected",
    [
        ("Handbags", "Orange", "of an orange handbag,"),
        ("Watches", "Multi", "of a multicoloured watch,"),
        ("Dresses", None, "of a dress,"),
        ("Tshirts", "White", "of a white T-shirt,"),
        ("Heels", "Red", "of red heels,"),
        ("Flip Flops", "Blue", "of blue flip flops,"),
        ("Trousers", None, "of trousers,"),
        ("Ties", "Green", "of a green tie,"),
        ("Scarves", "Grey", "of a grey scarf,"),
        ("Nail Polish", "Pink", "of pink nail polish,"),
        ("Umbrellas", None, "of an umbrella,"),
        ("Accessory Gift Set", None, "of an accessory gift set,"),
    ],
)
def test_singular_plural_and_article(article, colour, expected):
    assert expected in fill_template(DEFAULT_TEMPLATE, {"article": article, "colour": colour})


def test_an_article_in_the_template_is_put_right():
    template = "a photo of a {colour} {article}"
    assert fill_template(template, {"colour": "Olive", "article": "Belts"}) == "a photo of an olive belt"
    assert fill_template(template, {"colour": "Olive", "article": "Heels"}) == "a photo of olive heels"


@pytest.mark.parametrize(
    "value, word",
    [("Men", "men's"), ("Women", "women's"), ("Unisex", "unisex"), ("Boys", "boys'"), ("Girls", "girls'")],
)
def test_gender_is_a_possessive(value, word):
    assert fill_template("{gender} {article}", {"gender": value, "article": "Shoes"}) == f"{word} shoes"


def test_commas_in_a_name_are_not_doubled():
    assert fill_template("{name}, new", {"name": "Rook, red, "}) == "Rook, red, new"


def test_the_trigger_comes_first_and_names_keep_their_capital():
    assert add_trigger("A professional photo", "sks") == "sks, a professional photo"
    assert add_trigger("USB stick", "sks") == "sks, USB stick"
    assert add_trigger("A photo", None) == "A photo"
    assert add_trigger("A photo of Sks, person", "sks") == "A photo of Sks, person"
    assert add_trigger("Two desks", "sks") == "sks, two desks" and add_trigger("", "sks") == ""


def test_the_estimate_grows_with_the_text_and_finds_long_captions():
    assert estimate_tokens("red shoes") == 2 + 1 + 2
    assert estimate_tokens(", ".join(["comfortable"] * 30)) > 77


def test_a_tokenizer_that_is_given_is_the_one_that_counts(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["<|startoftext|>", "<|endoftext|>", "red</w>", "shoes</w>"])}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    count, limit, counter = load_tokenizer(str(tmp_path))
    assert str(tmp_path) in counter and limit == 77
    assert load_tokenizer("demo")[1] == 32
    short, long = count(["red", "red red red"])
    assert short < long


def test_a_tokenizer_that_is_not_there_is_an_error_and_no_estimate(tmp_path):
    with pytest.raises(UserError, match="--tokenizer"):
        load_tokenizer(str(tmp_path))
