import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from tests.hub_server import pushed_files
from training.model_card import CardFacts, files_to_push, push_folder, read_facts, write_card
from utils import runs
from utils.cli import UserError

FACTS = {
    "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "trigger_word": "casual shoe",
    "prompt": 'a "red" casual shoe',
    "command": "python train_lora.py --hub_token hf_secret --rank 8",
    "data": "casual_shoes",
    "data_fingerprint": "0123abcd",
    "rank": 8,
    "alpha": 16,
    "counts": {"train": 2000, "val": 250},
    "settings": {"learning_rate": 1e-4, "lr scheduler": "constant|warmup"},
}
RESULTS = {"validation loss": "best 0.3 at step 10"}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for name in ("validation", "checkpoint-10", "best", "logs/wandb"):
        (folder / name).mkdir(parents=True)
    for name in ("validation/step-000000.png", "validation/step-000010.png", "loss_curve.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    for name in ("", "checkpoint-10/", "best/"):
        (folder / f"{name}pytorch_lora_weights.safetensors").write_bytes(b"\x00" * 64)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "logs/wandb/debug.log", ".README.md.7"):
        (folder / name).write_text("{}")
    return folder


def card_of(run, **more) -> str:
    write_card(run, RESULTS, read_facts(FACTS | more))
    return (run / "README.md").read_text()


def test_the_card_is_valid_and_its_images_exist(run):
    card_of(run)
    card, version = ModelCard.load(run / "README.md"), runs.package_versions()["diffusers"]
    assert card.data.base_model == FACTS["base_model"] and card.data.library_name == "diffusers"
    assert card.data.license is None and {"lora", "text-to-image", "diffusers"} <= set(card.data.tags)
    targets = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.text)
    assert targets == ["validation/step-000000.png", "validation/step-000010.png", "loss_curve.png"]
    assert all((run / target).is_file() for target in targets)
    for fact in (
        "0123abcd",
        "2,000 train, 250 val",
        "casual shoe",
        "| alpha | 16 |",
        "0.3 at step 10",
        f"diffusers {version}",
    ):
        assert fact in card.text, fact
    assert "constant\\|warmup" in card.text and "hf_secret" not in card.text and "--hub_token *** --rank 8" in card.text


def test_no_text_of_the_user_becomes_html_or_ends_its_code(run):
    evil = "a `<img src=x>` [b](http://c)\n```\n<script>"
    names = ("base_model", "data", "instance_prompt", "trigger_word", "prompt", "command")
    card = card_of(run, settings={"prompt": evil}, **dict.fromkeys(names, evil))
    page = MarkdownIt().enable("table").parse(card.partition("\n---\n")[2])
    parts = [part for block in page for part in (block, *(block.children or []))]
    assert not {"html_block", "html_inline", "link_open"} & {part.type for part in parts}
    assert [part.info for part in parts if part.type == "fence"] == ["python", "bash"]


def test_the_snippet_is_python_that_names_this_lora(run):
    code = re.search(r"```python\n(.*?)```", card_of(run, repo_id="me/shoes"), re.S).group(1)
    compile(code, "card", "exec")
    assert 'load_lora_weights("me/shoes", weight_name="pytorch_lora_weights.safetensors")' in code
    assert 'from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=torch.float32)' in code


def test_what_is_not_known_is_left_out_and_a_local_base_is_no_hub_id(run, tmp_path):
    (run / "loss_curve.png").unlink()
    shutil.rmtree(run / "validation")
    write_card(run, {}, CardFacts(base_model=str(tmp_path), prompt="a", command="c"))
    card = (run / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in front and "license" not in front
    assert "![" not in card and "None" not in card and "| result" not in card


def test_only_what_is_meant_is_pushed(run):
    assert files_to_push(run) == [
        "config.yaml",
        "loss_curve.png",
        "pytorch_lora_weights.safetensors",
        "validation/step-000000.png",
        "validation/step-000010.png",
    ]


def test_a_push_sends_the_files_with_the_token_of_the_environment(run, hub):
    card_of(run)
    assert push_folder(run, "me/shoes", private=True).endswith("/me/shoes")
    (create,) = [json.loads(body) for path, _, body in hub.seen if path == "/api/repos/create"]
    assert create["name"] == "shoes" and (create.get("private") is True or create.get("visibility") == "private")
    assert {token for _, token, _ in hub.seen} == {"Bearer hf_testtoken"}
    sent = pushed_files(hub)
    assert sorted(sent) == sorted(files_to_push(run)) and "README.md" in sent
    assert all(data == (run / name).read_bytes() for name, data in sent.items())


def test_a_push_that_fails_says_so_and_leaves_the_run(run, hub, monkeypatch):
    hub.status = 403
    with pytest.raises(UserError, match="--push_to_hub me/shoes: .*403.*the run is complete"):
        push_folder(run, "me/shoes", private=False)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="HF_TOKEN is not set"):
        push_folder(run, "me/shoes", private=False)
    assert (run / "pytorch_lora_weights.safetensors").is_file()


def test_the_token_itself_is_never_pushed(run, hub):
    (run / "config.yaml").write_text("note: hf_testtoken")
    with pytest.raises(UserError, match="config.yaml contains"):
        push_folder(run, "me/shoes", private=False)
    assert not hub.seen
