import subprocess
import sys
from pathlib import Path

import pytest

from utils import files, outputs
from utils.cli import UserError
from utils.hub import DEMO

ROOT = Path(__file__).resolve().parent.parent.parent


def write(target, text):
    with outputs.replaced_folder(target) as folder:
        (folder / "a.txt").write_text(text)
        files.write_manifest(folder)


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path):
    for text in ("one", "two"):
        write(tmp_path / "d", text)
        assert (tmp_path / "d/a.txt").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_an_error_while_writing_leaves_the_old_folder(tmp_path):
    write(tmp_path / "d", "one")
    with pytest.raises(ValueError), outputs.replaced_folder(tmp_path / "d") as folder:
        (folder / "a.txt").write_text("two")
        raise ValueError
    assert (tmp_path / "d/a.txt").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["d"]


KILLED = """
import os, sys
from pathlib import Path
from utils import outputs

rename, target = os.rename, Path(sys.argv[1])

def killed_before_the_second(source, name):
    if Path(name) == target and not target.exists():
        os._exit(9)
    rename(source, name)

os.rename = killed_before_the_second
with outputs.replaced_folder(target) as folder:
    (folder / "a.txt").write_text("two")
"""


def test_a_kill_between_the_two_renames_is_recovered_at_the_next_start(tmp_path):
    write(tmp_path / "d", "one")
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "d"], cwd=ROOT).returncode == 9
    assert not (tmp_path / "d").exists()
    with pytest.raises(ValueError), outputs.replaced_folder(tmp_path / "d"):
        assert (tmp_path / "d/a.txt").read_text() == "one"
        raise ValueError
    assert (tmp_path / "d/a.txt").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["d"]


def test_recovery_puts_the_old_folder_back_or_removes_it(tmp_path):
    write(tmp_path / "d", "one")
    (tmp_path / "d").rename(tmp_path / ".d.old")
    outputs.recover_folder(tmp_path / "d")
    assert (tmp_path / "d/a.txt").read_text() == "one" and not (tmp_path / ".d.old").exists()
    write(tmp_path / ".d.old", "older")
    outputs.recover_folder(tmp_path / "d")
    assert (tmp_path / "d/a.txt").read_text() == "one" and not (tmp_path / ".d.old").exists()


def test_what_a_kill_left_behind_does_not_get_in(tmp_path):
    (tmp_path / ".d.partial/sub").mkdir(parents=True)
    (tmp_path / ".d.partial/sub/old.txt").write_text("x")
    write(tmp_path / "d", "one")
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["MANIFEST.json", "a.txt"]


def test_a_second_writer_of_one_folder_is_refused(tmp_path):
    with (
        outputs.replaced_folder(tmp_path / "d") as folder,
        pytest.raises(UserError, match="another process"),
        outputs.replaced_folder(tmp_path / "d"),
    ):
        pass
    del folder


def test_what_is_read_and_the_output_are_apart_through_links_too(tmp_path):
    for name in ("data/train", "model/unet", "runs/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "model/unet/config.json").touch()
    (tmp_path / "link").symlink_to("data")

    def refused(out, data="data", model="model"):
        try:
            given = {"real": tmp_path / data, "extra": None}
            outputs.check_apart(tmp_path / out, given, {"lora": ["hub/id", str(tmp_path / model)]})
        except UserError as error:
            return str(error)

    for out in ("data", "link", "link/new", ".", "data/train"):
        assert "--real" in refused(out)
    assert "is the same as --lora" in refused("model") and "contains --lora" in refused(".", data="../nowhere")
    assert "is inside --lora" in refused("model/unet")  # a part of the model
    assert "contains --real" in refused("runs", data="runs/class")  # which the run would make
    for out in (DEMO, DEMO / "model"):
        with pytest.raises(UserError, match="--pretrained_model_name_or_path demo"):
            outputs.check_apart(out, {}, {"pretrained_model_name_or_path": "demo"})
    assert refused("model/images") is None and refused("runs/x") is None and refused("runs", model="no/model") is None
