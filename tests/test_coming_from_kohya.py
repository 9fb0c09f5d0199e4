"""The page for users of kohya's scripts names flags that there are."""

import re
from pathlib import Path

import generate
import prepare_dataset
import train_dreambooth
import train_lora

PAGE = Path(__file__).resolve().parent.parent / "docs/coming_from_kohya.md"


def test_every_flag_on_our_side_of_the_tables_is_one():
    rows = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    scripts = (train_lora, train_dreambooth, prepare_dataset, generate)
    known = {flag for script in scripts for flag in script.make_parser()._option_string_actions}
    asked = {flag for row in rows for flag in re.findall(r"--[\w-]+", row[-1])}
    assert len(rows) > 40 and all(len(row) == 2 for row in rows) and len(asked) > 40
    assert asked <= known
    parser = train_lora.make_parser()  # what the recipe beside data.toml has
    recipe = re.search(r"is here\n\n((?:    .+\n)+)", PAGE.read_text())[1]
    assert {line.split(":")[0].strip() for line in recipe.splitlines()} <= vars(parser.parse_args([])).keys()
