"""The demo pipeline, loaded and used as users do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.measure import judge_images
from demo.sample_grid import load_demo_pipeline
from demo.shoes import COLOURS, KINDS, KNOWN_KINDS, draw_shoe
from families import models
from families.sampling import generate
from utils.images import foreground_colour

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pipeline():
    return load_demo_pipeline("demo", torch.device("cpu"), torch.float32)


@pytest.mark.very_slow
def test_it_generates_the_kind_and_the_colour_of_the_prompt(pipeline):
    wanted = [(kind, colour) for kind in KNOWN_KINDS for colour in list(COLOURS)[::2]]
    prompts = [f"a photo of {c.lower()} {k.lower()}" for k, c in wanted]
    images = generate(pipeline, list(range(len(wanted))), prompt=prompts)
    judged = judge_images(images)
    assert np.mean([j[0] == w[0] for j, w in zip(judged, wanted)]) >= 0.9
    assert np.mean([j[1] == w[1] for j, w in zip(judged, wanted)]) >= 0.8
    assert np.mean([foreground_colour(p, COLOURS) == w[1] for p, w in zip(images, wanted)]) >= 0.8


def test_one_seed_one_image_whatever_the_batch(pipeline):
    prompts, seeds = ["red boots", "blue heels", "white sandals"], [5, 6, 7]
    one, three = (generate(pipeline, seeds, steps=6, batch=batch, prompt=prompts) for batch in (1, 3))
    for a, b in zip(one, three):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    assert one[0] != generate(pipeline, [8], steps=6, prompt=prompts[:1])[0]


def test_the_judge_recognises_all_six_kinds():
    wanted = [(kind, colour) for kind in KINDS for colour in COLOURS]
    judged = judge_images([draw_shoe(kind, colour, "unseen", (128, 128)) for kind, colour in wanted])
    assert np.mean([j[0] == w[0] for j, w in zip(judged, wanted)]) >= 0.97
    assert np.mean([j[1] == w[1] for j, w in zip(judged, wanted)]) >= 0.9


def test_the_tokenizer_knows_its_limit_and_every_character(pipeline):
    tokenizer = pipeline.tokenizer
    assert tokenizer.model_max_length == 32 == pipeline.text_encoder.config.max_position_embeddings
    assert tokenizer.decode(tokenizer("zebra → 3").input_ids, skip_special_tokens=True).strip() == "zebra → 3"


def test_weights_are_float16_safetensors_and_small():
    for folder in (models.DEMO_MODEL, ROOT / "demo/clip"):
        weights = [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
        assert not weights and list(folder.rglob("*.safetensors"))
    tracked = subprocess.run(["git", "ls-files", "-z", "demo"], cwd=ROOT, capture_output=True, text=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in tracked.split("\0") if name}
    of_voice = sum(size for name, size in sizes.items() if name.startswith("demo/voice/"))
    assert of_voice < 20e6 and sum(sizes.values()) - of_voice < 20e6


@pytest.mark.very_slow
def test_the_demo_command_runs_and_makes_its_folder_again(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "demo.txt").touch()  # as an earlier demo left it
    (out / "mine.txt").touch()
    command = [sys.executable, "demo/run.py", "--output_dir", str(out), "--train_steps", "5", "--num_images", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (out / "mine.txt").exists(), done.stderr
    for line in done.stdout.splitlines()[-6:]:
        assert Path(line.split()[-1]).is_file(), line
    assert json.loads((out / "base_model.json").read_text())["packages"]["torch"] == torch.__version__


def test_the_demo_command_never_removes_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    command = [sys.executable, "demo/run.py", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no earlier demo" in done.stderr and (tmp_path / "thesis.txt").is_file()


SAVES_FIRST = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
try:
    (folder / "began").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    (folder / "saved").touch()
"""
STARTS_IT = """
import pathlib, sys
from demo.run import Step, run_steps
from utils import cli
folder = pathlib.Path(sys.argv.pop())
step = Step("save", f"{folder}/child.py {folder}", folder)
cli.run(lambda args: run_steps([step]), cli.parse_args(cli.make_parser("A demo.")))
"""


def test_a_step_that_saves_at_ctrl_c_is_waited_for(tmp_path):
    """A terminal sends it to every process."""
    (tmp_path / "child.py").write_text(SAVES_FIRST)
    words = [sys.executable, "-c", STARTS_IT, tmp_path]
    demo = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (tmp_path / "began").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(demo.pid, signal.SIGINT)
    said = demo.communicate(timeout=60)[1]
    assert demo.returncode == 130 and said.endswith("interrupted (Ctrl-C)\n")
    assert (tmp_path / "saved").exists()
