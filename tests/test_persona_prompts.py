"""configs/persona_prompts.yaml: what a user gets who runs it."""

import re
from collections import Counter
from pathlib import Path

import generate
from generation.prompts import Prompt, read_prompts

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs/persona_prompts.yaml"


def plan() -> list[Prompt]:
    args = generate.parse_args(["--config", str(RECIPE)])
    return read_prompts(
        args.num_images, args.prompt, args.prompts_file, args.prompt_plan, args.template, args.attribute
    )


def test_forty_prompts_of_four_seeds_each_in_balance(monkeypatch):
    monkeypatch.delenv("PERSONA", raising=False)
    made = plan()
    counts = Counter(one.text for one in made)
    assert len(counts) == 40 and set(counts.values()) == {4}
    for name, values in (("place", 5), ("clothes", 2), ("light", 2), ("pose", 2)):
        shares = Counter(one.attributes[name] for one in made)
        assert len(shares) == values and set(shares.values()) == {160 // values}
    assert all(one.text.startswith("sks person ") and not re.search(r"[{}$]|  ", one.text) for one in made)


def test_the_persona_is_the_users_and_its_prompts_keep_their_order(monkeypatch):
    monkeypatch.delenv("PERSONA", raising=False)
    usual = [one.text for one in plan()]
    monkeypatch.setenv("PERSONA", "<me> woman")
    assert [one.text for one in plan()] == [text.replace("sks person", "<me> woman") for text in usual]


def test_a_dry_run_with_the_demo_pipeline_tells_the_plan(tmp_path, capsys):
    words = ["--pretrained_model_name_or_path", "demo", "--output_dir", str(tmp_path / "out"), "--dry_run"]
    assert generate.main(generate.parse_args(["--config", str(RECIPE), *words])) == 0
    assert "160 images of 40 prompts" in capsys.readouterr().out and not (tmp_path / "out").exists()
