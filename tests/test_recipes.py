"""Every training recipe in configs/: its trainer's dry run accepts it from its model's published configs alone.

The memory that its comment states is what the dry run prints.
"""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import VitsConfig

from families.names import PUBLISHED
from families.published import write_configs
from speech.audio import write_sound
from speech.voices import new_voice, save_voice
from tests.test_sharding import launch_fsdp
from tests.tiny_runs import ROOT

CONFIGS = ROOT / "configs"
TEXTS = {path.name: path.read_text() for path in sorted(CONFIGS.glob("*.yaml"))}
RECIPES = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
IMAGES = [name for name, keys in RECIPES.items() if "max_train_steps" in keys and "voice" not in name]
QUICK = ("demo_lora.yaml",)  # the others take 4 to 30 seconds each
STATED = r"([\d.]+) GiB in (float32|bf16)( on each of 2 devices)?( with --gradient_checkpointing)?"


@pytest.fixture(autouse=True)
def _encode_one_at_once():
    """As a GPU does, whose memory the recipes state; a CPU encodes an image on each core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_comments(name: str) -> str:
    return " ".join(line.lstrip("# ") for line in TEXTS[name].splitlines() if line.startswith("#"))


def dry_run(name: str, folder: Path, more: list[str], capsys: pytest.CaptureFixture) -> str:
    """What the recipe's trainer prints; as two processes where weights are divided, as the launch config says."""
    keys, photos = RECIPES[name], folder / "photos"
    photos.mkdir(exist_ok=True)
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 90, 90)).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"shoes number {number}")
    teaches = "instance_prompt" in keys
    words = ["--config", str(CONFIGS / name), "--dry_run", "--output_dir", str(folder / "run"), *more]
    words += ["--instance_data_dir" if teaches else "--train_data_dir", str(photos)]
    if keys["pretrained_model_name_or_path"] != "demo":
        family = PUBLISHED[keys["pretrained_model_name_or_path"]]
        words += ["--pretrained_model_name_or_path", str(write_configs(family, folder / "model"))]
    script = "train_dreambooth" if teaches else "train_lora"
    if keys.get("shard"):
        return launch_fsdp(f"{script}.py", words)
    trainer = importlib.import_module(script)
    AcceleratorState._reset_state(True)  # it keeps the first precision of a process
    try:
        assert trainer.main(trainer.parse_args(words)) in (None, 0)
    finally:
        AcceleratorState._reset_state(True)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.very_slow) for name in IMAGES]
)
def test_the_dry_run_accepts_each_recipe_and_prints_the_memory_that_it_states(name, tmp_path, capsys):
    stated = re.findall(STATED, read_comments(name))
    assert stated and "--dry_run estimates" in read_comments(name)
    for figure, precision, divided, checkpointing in stated:
        more = ["--mixed_precision", "no" if precision == "float32" else precision]
        said = dry_run(name, tmp_path, more + checkpointing.split()[1:], capsys)
        mebibytes = re.search(rf"([\d,]+) MiB{divided} at the peak", said)[1].replace(",", "")
        assert int(mebibytes) / 1024 == pytest.approx(float(figure), rel=0.1), (precision, checkpointing)
        assert f"{RECIPES[name]['max_train_steps']:,} steps" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.very_slow
def test_the_dry_run_accepts_the_voices_recipe_and_prints_the_memory_that_it_states(tmp_path, capsys):
    """With utterances of 10 s, and the sizes that facebook/mms-tts-por has: transformers' own defaults."""
    voice, data = tmp_path / "voice", tmp_path / "data"
    save_voice(voice, new_voice(VitsConfig(), "abcdefghijklmnopqrstuvwxyz", 0))
    data.mkdir()
    rows = [{"file_name": f"{number}.wav", "text": "dez segundos de fala " * 7} for number in range(16)]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row in rows:
        write_sound(data / row["file_name"], np.zeros(160_000, np.float32), 16_000)
    words = ["--config", str(CONFIGS / "voice_pt_br.yaml"), "--dry_run", "--output_dir", str(tmp_path / "run")]
    words += ["--pretrained_model_name_or_path", str(voice), "--train_data_dir", str(data), "--mixed_precision", "no"]
    trainer = importlib.import_module("train_tts")
    AcceleratorState._reset_state(True)
    try:
        assert trainer.main(trainer.parse_args(words)) in (None, 0)
    finally:
        AcceleratorState._reset_state(True)
    said = capsys.readouterr().out
    ((figure, *_),) = re.findall(STATED, read_comments("voice_pt_br.yaml"))
    mebibytes = re.search(r"([\d,]+) MiB at the peak", said)[1].replace(",", "")
    assert int(mebibytes) / 1024 == pytest.approx(float(figure), rel=0.1)
    assert "200 steps = 200.0 epochs" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_says_what_it_is_for_and_how_to_run_it(name):
    """Its commands are read by their scripts' parsers."""
    commands = re.findall(rf"python3? (\w+)\.py (.*--config configs/{re.escape(name)}.*)", TEXTS[name])
    commands += re.findall(rf"launch .* (\w+)\.py (.*--config configs/{re.escape(name)}.*)", TEXTS[name])
    assert commands and any(line.startswith("# ") and "python" not in line for line in TEXTS[name].splitlines())
    for script, words in commands:
        importlib.import_module(script).parse_args(words.split())
