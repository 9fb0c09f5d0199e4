import errno
import fcntl
import hashlib
import os
import threading

import pytest
import torch
from safetensors.torch import load_file

from utils import files
from utils.cli import UserError


def test_tensors_are_written_whole_and_read_back_to_the_byte(tmp_path):
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


def test_json_that_is_nested_too_deeply_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="a.json: damaged .nested too deeply.; expected a list"):
        files.read_object(tmp_path / "a.json", "a list")


def test_a_link_to_a_folder_above_is_not_followed_round_and_round(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        (tmp_path / name / "up").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert set(files.list_files(tmp_path)) == {"a/file", "b/file", "c/file"}
    assert "file" in files.list_files(tmp_path / "c")


@pytest.fixture
def hashed(monkeypatch):
    """The files that were really read for their checksum, in their order."""
    done = []
    real = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: done.append(path) or real(path))
    return done


def test_a_checksum_is_kept_until_its_file_is_another(tmp_path, hashed):
    path, table = tmp_path / "weights", tmp_path / "cache" / files.CHECKSUMS

    def write(content):
        path.write_bytes(content)
        os.utime(path, (1, 1))

    def same():
        return files.kept_sha256(path, table) == hashlib.sha256(path.read_bytes()).hexdigest()

    write(b"one")
    assert same() and same() and len(hashed) == 1
    write(b"two")  # of the same size, time and place
    assert same() and same() and len(hashed) == 2
    other = tmp_path / "other"
    other.symlink_to(path)
    assert files.kept_sha256(other, table) and len(hashed) == 2  # a link is its file, as in the hub's cache
    table.write_text("{half")
    assert same() and len(hashed) == 3
    assert same() and len(hashed) == 3


def test_the_checksum_of_a_file_that_was_changed_just_now_is_not_kept(tmp_path, hashed):
    path, table = tmp_path / "weights", tmp_path / files.CHECKSUMS
    path.write_bytes(b"one")
    assert files.kept_sha256(path, table) == files.kept_sha256(path, table)
    assert len(hashed) == 2 and not table.exists()


def test_a_table_that_can_not_be_written_costs_a_checksum_each_time(tmp_path, hashed):
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", (1, 1))
    for _ in range(2):
        assert files.kept_sha256(tmp_path / "file", tmp_path / "file" / files.CHECKSUMS)
    assert len(hashed) == 2
