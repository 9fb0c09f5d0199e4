import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from utils import files
from utils.cli import UserError
from utils.parallel import parallel_map

ROOT = Path(__file__).resolve().parent.parent.parent


def square(value: int) -> int:
    return value * value


def fail(value: int) -> int:
    raise ValueError(f"item {value}")


def write(target, text):
    with files.replaced_folder(target) as folder:
        (folder / "a.txt").write_text(text)
        files.write_manifest(folder)


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path):
    for text in ("one", "two"):
        write(tmp_path / "d", text)
        assert (tmp_path / "d/a.txt").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_an_error_while_writing_leaves_the_old_folder(tmp_path):
    write(tmp_path / "d", "one")
    with pytest.raises(ValueError), files.replaced_folder(tmp_path / "d") as folder:
        (folder / "a.txt").write_text("two")
        raise ValueError
    assert (tmp_path / "d/a.txt").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["d"]


KILLED = """
import os, sys
from pathlib import Path
from utils import files

rename, target = os.rename, Path(sys.argv[1])

def killed_before_the_second(source, name):
    if Path(name) == target and not target.exists():
        os._exit(9)
    rename(source, name)

os.rename = killed_before_the_second
with files.replaced_folder(target) as folder:
    (folder / "a.txt").write_text("two")
"""


def test_a_kill_between_the_two_renames_is_recovered_at_the_next_start(tmp_path):
    write(tmp_path / "d", "one")
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "d"], cwd=ROOT).returncode == 9
    assert not (tmp_path / "d").exists()
    with pytest.raises(ValueError), files.replaced_folder(tmp_path / "d"):
        assert (tmp_path / "d/a.txt").read_text() == "one"
        raise ValueError
    assert (tmp_path / "d/a.txt").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["d"]


def test_recovery_puts_the_old_folder_back_or_removes_it(tmp_path):
    write(tmp_path / "d", "one")
    (tmp_path / "d").rename(tmp_path / ".d.old")
    files.recover_folder(tmp_path / "d")
    assert (tmp_path / "d/a.txt").read_text() == "one" and not (tmp_path / ".d.old").exists()
    write(tmp_path / ".d.old", "older")
    files.recover_folder(tmp_path / "d")
    assert (tmp_path / "d/a.txt").read_text() == "one" and not (tmp_path / ".d.old").exists()


def test_what_a_kill_left_behind_does_not_get_in(tmp_path):
    (tmp_path / ".d.partial/sub").mkdir(parents=True)
    (tmp_path / ".d.partial/sub/old.txt").write_text("x")
    write(tmp_path / "d", "one")
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["MANIFEST.json", "a.txt"]


def test_a_second_writer_of_one_folder_is_refused(tmp_path):
    with (
        files.replaced_folder(tmp_path / "d") as folder,
        pytest.raises(UserError, match="another process"),
        files.replaced_folder(tmp_path / "d"),
    ):
        pass
    del folder


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    assert list(parallel_map(square, range(50), workers)) == [value * value for value in range(50)]


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for value in range(200):
            taken.append(value)
            yield value

    results = parallel_map(square, items(), 2)
    assert next(results) == 0 and len(taken) < 20
    results.close()


def test_a_failure_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match="item 0"):
        list(parallel_map(fail, range(3), 2))


def test_what_is_read_and_the_output_are_apart_through_links_too(tmp_path):
    for name in ("data/train", "model/unet", "runs/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "model/unet/config.json").touch()
    (tmp_path / "link").symlink_to("data")

    def refused(out, data="data", model="model"):
        try:
            given = {"real": tmp_path / data, "extra": None}
            files.check_apart(tmp_path / out, given, {"lora": ["hub/id", str(tmp_path / model)]})
        except UserError as error:
            return str(error)

    for out in ("data", "link", "link/new", ".", "data/train"):
        assert "--real" in refused(out)
    assert "is the same as --lora" in refused("model") and "contains --lora" in refused(".", data="nowhere")
    assert "is inside --lora" in refused("model/unet")  # a part of the model
    assert refused("model/images") is None and refused("runs/x") is None and refused("runs", model="no/model") is None


def test_tensors_are_written_whole_and_read_back_to_the_byte(tmp_path):
    import torch  # here: the worker processes of other tests in this file import it too
    from safetensors.torch import load_file

    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(3, 4).T, "a": torch.tensor(7), "half": torch.randn(2).bfloat16(), "none": torch.ones(0)}
    files.write_safetensors(path, tensors, {"rank": "8"})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) and found[key].dtype == tensors[key].dtype for key in found)
    files.write_safetensors(path, {"a": torch.tensor(8)})
    assert load_file(path)["a"] == 8 and [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "write", [lambda path: files.write_text(path, "x"), lambda path: files.write_safetensors(path, {})]
)
def test_a_file_that_can_not_be_put_in_its_place_leaves_nothing_behind(tmp_path, write):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write(tmp_path / "taken")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_a_text_that_can_not_be_encoded_leaves_the_old_one(tmp_path):
    files.write_text(tmp_path / "a.txt", "one")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(tmp_path / "a.txt", "\udc80")
    assert (tmp_path / "a.txt").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


def test_a_lock_is_exclusive_and_ends_with_its_descriptor(tmp_path):
    lock = files.lock_folder(tmp_path)
    with pytest.raises(UserError, match=f"--output_dir {tmp_path}: another process"):
        files.lock_folder(tmp_path)
    os.close(lock)
    os.close(files.lock_folder(tmp_path))


def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)  # a network drive, which isn't here
    os.close(files.lock_folder(tmp_path))
    assert "can't be locked (Operation not supported)" in caplog.text
    with files.locked_folder(tmp_path):
        pass


def test_a_waiting_lock_is_given_when_the_other_process_has_left(tmp_path):
    lock = files.lock_folder(tmp_path)
    threading.Timer(0.1, os.close, [lock]).start()
    with files.locked_folder(tmp_path), pytest.raises(UserError, match="another process"):
        files.lock_folder(tmp_path)


@pytest.mark.parametrize("read", [files.read_file, files.file_sha256])
def test_only_a_regular_file_is_read(tmp_path, read):
    """A pipe would wait for a writer, and a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match=f"Not a regular file: .*{name}"):
            read(tmp_path / name)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="Larger than 4 bytes"):
        files.read_file(tmp_path / "a", 4)


def test_json_that_is_nested_beyond_all_sense_is_a_mistake_in_the_file(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="a.json: damaged .nested too deeply.; expected a list"):
        files.read_object(tmp_path / "a.json", "a list")
