import json
from collections import Counter

import pytest
from transformers import CLIPTokenizer

from demo.catalogue import write_catalogue
from families.models import DEMO_MODEL, too_long
from generation.prompts import Option, Prompt, expand_template, read_attribute, read_prompts, spread
from prepare_dataset import main, parse_args
from utils.cli import UserError

SHOES = ["colour=red,blue:2,green", "article=boots,sandals"]


def count_values(prompts: list[Prompt], *names: str) -> Counter:
    return Counter(tuple(one.attributes[name] for name in names) for one in prompts)


def draw(count: int, attributes: list[str]) -> list[Prompt]:
    return read_prompts(
        count, template="{" + "} {".join(one.partition("=")[0] for one in attributes) + "}", attributes=attributes
    )


def test_one_prompt_is_repeated():
    assert read_prompts(3, prompt=" red boots ") == [Prompt("red boots", {})] * 3
    assert len(read_prompts(None, prompt="red boots")) == 1


def test_a_text_file_gives_each_line_in_turn(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# shoes\nred boots\n\n  blue boots\r\nred boots\n", encoding="utf-8")
    assert [one.text for one in read_prompts(None, file=path)] == ["red boots", "blue boots", "red boots"]
    assert Counter(one.text for one in read_prompts(30, file=path)) == {"red boots": 20, "blue boots": 10}
    lines = [str(i * 7919 % 1000) for i in range(20_000)]
    path.write_text("\n".join(lines))
    assert [one.text for one in read_prompts(20_001, file=path)] == [*lines, lines[0]]


def test_the_plan_that_prepare_dataset_writes_comes_out_whole(tmp_path):
    write_catalogue(tmp_path / "raw", 60, (32, 32), 0, ["Casual Shoes", "Boots"], damage=False)
    words = f"--catalogue {tmp_path / 'raw'} --output_dir {tmp_path / 'data'} --resolution 32 --num_workers 1"
    assert main(parse_args([*words.split(), "--write_prompt_plan", "97"])) == 0
    plan = tmp_path / "data" / "prompt_plan.jsonl"
    lines = [json.loads(line) for line in plan.read_text().splitlines()]
    prompts = read_prompts(None, plan=plan)
    assert Counter(one.text for one in prompts) == Counter({line["text"]: line["weight"] for line in lines})
    asked = Counter()
    for line in lines:
        asked[line["attributes"]["colour"]] += line["weight"]
    for size in (20, 50):
        colours = Counter(one.attributes["colour"] for one in prompts[:size])
        assert all(abs(colours[colour] - size * n / 97) < 1.5 for colour, n in asked.items())


@pytest.mark.parametrize("count", [1, 7, 16, 50, 3001])
def test_every_value_is_within_one_image_of_its_share(count):
    prompts = draw(count, [*SHOES, "season=winter:0.3,summer:0.7"])
    assert len(prompts) == count
    for name, shares in map(read_attribute, [*SHOES, "season=winter:0.3,summer:0.7"]):
        for value, share in shares.items():
            assert abs(count_values(prompts, name)[value,] - count * share / sum(shares.values())) < 1


def test_a_product_holds_each_combination_once_and_then_evenly():
    attributes = ["a=1,2,3", "b=1,2,3,4", "c=1,2"]
    assert set(count_values(draw(24, attributes), "a", "b", "c").values()) == {1}
    assert len(read_prompts(None, template="{a} {b} {c}", attributes=attributes)) == 24
    assert set(count_values(draw(60, attributes), "a", "b", "c").values()) == {2, 3}


def test_any_beginning_is_in_balance():
    prompts = draw(120, ["a=1,2,3", "b=1,2,3,4", "c=1,2"])
    for size in range(1, 120):
        for names, cells in {("a",): 3, ("b",): 4, ("c",): 2, ("a", "b"): 12, ("b", "c"): 8}.items():
            held = count_values(prompts[:size], *names)
            assert len(held) >= min(cells, size) - 3 and max(held.values()) - size / cells < 2
            assert len(held) < cells or size / cells - min(held.values()) < 2


def test_growing_the_number_keeps_the_earlier_ones():
    few, many = draw(40, SHOES), draw(400, SHOES)
    assert many[:40] == few and draw(400, SHOES) == many


def test_prompts_are_mixed_and_not_in_blocks():
    colours = [one.attributes["colour"] for one in draw(80, SHOES)]
    assert all(len(set(colours[start : start + 4])) == 3 for start in range(0, 80, 4))


def test_a_template_reads_as_english():
    texts = [
        one.text for one in expand_template("a photo of {colour} {article}", ["colour=orange", "article=handbags"])
    ]
    assert texts == ["a photo of an orange handbag"]


def test_a_colon_may_be_part_of_a_value():
    assert read_attribute("scale=1:a:1, b:c:2 ,d") == ("scale", {"1:a": 1, "b:c": 2, "d": 1})


def test_shares_without_a_number_of_images_need_one():
    with pytest.raises(UserError, match="--num_images"):
        read_prompts(None, template="{a}", attributes=["a=x:0.3,y:0.4"])


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"text": "a"', "line 3: not JSON .Expecting ',' delimiter.$"),
        ('{"caption": "a"}', "line 3.*text"),
        ('{"text": "a", "weight": -1}', "line 3.*weight is -1"),
        ('{"text": "a", "weight": true}', "line 3.*weight is true"),
        ('{"text": "a", "weight": NaN}', "line 3.*weight is NaN"),
        ('{"text": "a", "attributes": ["red"]}', "line 3.*attributes"),
    ],
)
def test_a_bad_line_of_a_plan_is_named(tmp_path, line, says):
    path = tmp_path / "plan.jsonl"
    path.write_text('{"text": "a", "weight": 2}\n\n' + line + "\n")
    with pytest.raises(UserError, match=f"--prompt_plan .*plan.jsonl, {says}"):
        read_prompts(4, plan=path)


@pytest.mark.parametrize(
    "source, says",
    [
        ({}, "there is no prompt; give one of --prompt"),
        ({"prompt": "a", "template": "b"}, "--prompt and --template exclude"),
        ({"prompt": " "}, "--prompt: is empty"),
        ({"prompt": "a", "attributes": ["b=c"]}, "--attribute b=c: belongs to --template"),
        ({"template": "{a} {b}", "attributes": ["a=1"]}, "no values for {b}"),
        ({"template": "{a}", "attributes": ["a=1", "b=1"]}, "has no {b}"),
        ({"template": "{a}", "attributes": ["a=1", "a=2"]}, "a is given twice"),
        ({"template": "{a}", "attributes": ["a=1,1"]}, "value 1 twice"),
        ({"template": "{a}", "attributes": ["a=1:0"]}, "1 of share 0"),
        ({"template": "{a}", "attributes": ["a="]}, "without a name"),
        ({"template": "{a}", "attributes": ["a"]}, "expected name=value"),
        ({"template": "{a}", "attributes": ["a=red:-1"]}, "--attribute a=red:-1: red has the share `-1`"),
        ({"template": "{a}", "attributes": ["a=1,2:x"]}, "2 has the share `x`"),
        ({"template": "{a}", "attributes": [f"a=1:{'9' * 400}"]}, "1 of share 999"),
        ({"template": "{a} {a", "attributes": ["a=1"]}, "--template {a} {a: a brace"),
    ],
)
def test_a_mistake_names_its_flag(source, says):
    with pytest.raises(UserError, match=says):
        read_prompts(4, **source)


def test_files_that_hold_no_prompts_are_errors(tmp_path):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("# nothing\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, says in ((empty, "no prompt"), (binary, "UTF-8"), (tmp_path / "none.txt", "No such file")):
        with pytest.raises(UserError, match=f"--prompts_file .*{path.name}.*{says}"):
            read_prompts(4, file=path)


def test_more_images_than_names_have_digits_are_refused_at_once():
    with pytest.raises(UserError, match="--prompt: asks for 10,000,000 images; a set can have 1,000,000"):
        read_prompts(10**7, prompt="a")


def test_attributes_are_each_image_s_own():
    first, second = spread([Option("a", {"colour": "red"})], 2)
    first.attributes["colour"] = "blue"
    assert second.attributes["colour"] == "red"


def test_prompts_beyond_the_limit_are_counted():
    tokenizer = CLIPTokenizer.from_pretrained(DEMO_MODEL / "tokenizer")
    long = "red boots " * 20
    assert too_long(["red boots", long, long], tokenizer) == (1, 32, long)
    assert too_long(["red boots"], tokenizer)[0] == 0
    fits = "boots " * 30
    assert len(tokenizer(fits).input_ids) == 32 and too_long([fits], tokenizer)[0] == 0
