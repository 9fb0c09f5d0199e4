"""Places elsewhere: what is refused, what passes by itself, and who may write."""

import json
import os
import time

import pytest

from tests.s3_server import HANG_UP
from utils import storage
from utils.cli import UserError


@pytest.fixture
def place(place_name):
    """An empty place, in S3 and on a drive."""
    return storage.open_place(place_name, "--sync_to")


@pytest.fixture
def bucket(in_s3):
    return storage.open_place(in_s3, "--sync_to")


@pytest.fixture(autouse=True)
def short_leases(monkeypatch):
    monkeypatch.setattr(storage, "RENEWED", 0.1)
    monkeypatch.setattr(storage, "EXPIRES", 5.0)
    monkeypatch.setattr(storage, "PATIENCE", 0.0)


def take(place, folder):
    folder.mkdir(exist_ok=True)
    return storage.take_lease(place, ".lease.json", folder)


def abandon(lease):
    """As a machine that has died: the lease stays and is not renewed."""
    lease.ended.set()


@pytest.mark.parametrize(
    "name, said",
    [
        ("ftp://host/x", "expected s3://bucket/folder"),
        ("s3://bucket", "expected a folder in a bucket, as s3://bucket/folder"),
        ("s3://bucket/", "expected a folder in a bucket"),
        ("s3://me:password-1@bucket/x", "s3://\\*\\*\\*@bucket/x: expected letters.* and no password"),
        ("s3://bucket/../x", "no `..`"),
        ("s3:/bucket/x", "expected s3://bucket/folder"),
        ("", "'': expected s3://bucket/folder"),
        ("{tmp}/nowhere/run", "{tmp}/nowhere does not exist; mount the drive"),
        ("{tmp}/file", "is a file; give a folder"),
    ],
)
def test_a_place_that_can_t_be_one_is_refused_in_one_line(name, said, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=said.format(tmp=tmp_path)) as error:
        storage.open_place(name.format(tmp=tmp_path), "--sync_to")
    assert str(error.value).startswith("--sync_to ") and "password-1" not in str(error.value)


def test_the_files_of_a_place_are_those_that_were_sent(place, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PART_BYTES", 5 << 20)
    take(place, tmp_path / "run")
    (tmp_path / "large").write_bytes(os.urandom(11 << 20))  # in parts
    storage.send_file(place, "a/large", tmp_path / "large")
    storage.send_bytes(place, "b", b"1")
    storage.send_bytes(place, "half.partial", b"1")
    there = storage.list_place(place)
    assert there.pop(".lease.json") and there == {"a/large": 11 << 20, "b": 1}
    storage.fetch_files(place, ["a/large", "b"], tmp_path / "back")
    assert (tmp_path / "back/a/large").read_bytes() == (tmp_path / "large").read_bytes()
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["a", "b"]
    storage.remove_files(place, there)
    assert storage.list_place(place).keys() == {".lease.json"}


@pytest.mark.parametrize("fault", [500, 503, HANG_UP])
def test_a_fault_that_passes_is_waited_for_and_one_that_lasts_is_one_line(fault, server, bucket, monkeypatch, caplog):
    monkeypatch.setattr(storage, "PATIENCE", 5.0)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    server.fault = lambda request: None if caplog.text.count("trying again") == 2 else fault
    assert storage.patiently(bucket, lambda: storage.list_place(bucket)) == {}

    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    server.fault = lambda request: fault
    with pytest.raises(UserError, match=r"^--sync_to s3://bucket/.*: can't be reached \(.+\); check the connection"):
        storage.patiently(bucket, lambda: storage.list_place(bucket))


def test_a_place_without_rights_is_one_line_without_secrets(server, bucket, tmp_path):
    server.fault = lambda request: 403
    with pytest.raises(UserError, match="--sync_to .*Access Denied; give the credentials of an account") as error:
        take(bucket, tmp_path / "run")
    assert not any(value in str(error.value) for name, value in server.environment.items() if "KEY" in name)


def test_no_credentials_and_no_bucket_are_one_line(server, monkeypatch, tmp_path):
    gone = storage.open_place("s3://no-such-bucket/x", "--sync_to")
    with pytest.raises(UserError, match="--sync_to s3://no-such-bucket/x: .*bucket does not exist"):
        take(gone, tmp_path / "run")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="--sync_to s3://bucket/x: .*credentials"):
        take(storage.open_place("s3://bucket/x", "--sync_to"), tmp_path / "run")


def test_a_secret_in_an_error_is_masked_also_where_the_line_is_cut(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b" * 40)
    assert "bbb" not in storage.describe(OSError("x" * 180 + " " + "b" * 40))


def test_an_upload_that_is_cut_in_the_middle_leaves_nothing(server, bucket, tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(8 << 20))

    def cut(request):
        request["wsgi.input"].read(1 << 20)
        return HANG_UP

    server.fault = cut
    with pytest.raises(Exception, match="onnect"):
        storage.send_file(bucket, "file", tmp_path / "file")
    server.fault = lambda request: None
    assert storage.list_place(bucket) == {}


# The lease


def test_a_second_process_is_refused_while_the_first_lives(place, tmp_path):
    first = take(place, tmp_path / "first")
    with pytest.raises(UserError, match="--sync_to .*another process, on .*, writes there; wait for its end, or give"):
        take(place, tmp_path / "second")
    assert storage.holds(first)
    storage.give_back(first)
    assert storage.list_place(place) == {}
    second = take(place, tmp_path / "second")  # at once
    assert storage.holds(second)
    abandon(second)


def test_a_dead_machine_s_lease_is_taken_over_and_it_sends_nothing_more(place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(storage, "EXPIRES", 0.3)
    first = take(place, tmp_path / "first")
    abandon(first)
    second = take(place, tmp_path / "second")
    assert storage.holds(second) and not storage.holds(first) and first.lost.is_set()
    assert "another process has taken it over" in caplog.text
    storage.give_back(first)
    assert storage.holds(second)
    abandon(second)


def test_the_same_folder_started_again_takes_its_own_lease_at_once(place, tmp_path, monkeypatch):
    abandon(take(place, tmp_path / "run"))
    monkeypatch.setattr(storage, "EXPIRES", 100.0)
    began = time.monotonic()
    abandon(take(place, tmp_path / "run"))
    assert time.monotonic() - began < 5


def test_a_lease_that_is_given_back_while_it_is_renewed_stays_away(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "RENEWED", 0.0005)
    place = storage.open_place(str(tmp_path / "drive"), "--sync_to")
    for _ in range(40):
        lease = take(place, tmp_path / "run")
        time.sleep(0.002)
        storage.give_back(lease)
        time.sleep(0.002)
        assert storage.list_place(place) == {}


def test_a_lease_half_written_by_a_kill_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "EXPIRES", 0.3)
    place = storage.open_place(str(tmp_path / "drive"), "--sync_to")
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive/.lease.json").touch()
    lease = take(place, tmp_path / "run")
    assert json.loads((tmp_path / "drive/.lease.json").read_text())["owner"] == lease.owner
    abandon(lease)


def test_a_drive_that_is_unmounted_is_not_written_to_and_comes_back(tmp_path):
    """Its mount point is then an empty folder, or none."""
    mounted = tmp_path / "mnt"
    mounted.mkdir()
    place = storage.open_place(str(mounted / "runs"), "--sync_to")
    lease = take(place, tmp_path / "run")
    abandon(lease)
    mounted.rename(tmp_path / "away")
    for is_there in (False, True):
        if is_there:
            mounted.mkdir()
        with pytest.raises(FileNotFoundError, match="not mounted"):
            storage.send_bytes(place, "a/b", b"1")
        with pytest.raises(FileNotFoundError, match="not mounted"):
            storage.holds(lease)
        storage.give_back(lease)
        assert mounted.exists() == is_there and not (mounted / "runs").exists()
    mounted.rmdir()
    (tmp_path / "away").rename(mounted)
    assert storage.holds(lease) and not lease.lost.is_set()


def test_a_folder_replaces_another_with_all_that_is_in_it(place, tmp_path):
    take(place, tmp_path / "run")
    for folder, names in (("best", ("a", "old", "MANIFEST.json")), ("best.new", ("a", "sub/b", "MANIFEST.json"))):
        for name in names:
            storage.send_bytes(place, f"{folder}/{name}", folder.encode())
    storage.replace_folder(place, "best.new", "best")
    there = {name for name in storage.list_place(place) if name != ".lease.json"}
    assert there == {"best/a", "best/sub/b", "best/MANIFEST.json"}
    assert all(storage.read_bytes(place, name) == b"best.new" for name in there)


def test_names_that_lead_out_of_a_place_are_not_fetched(bucket):
    bucket.fs.pipe_file(f"{bucket.root}/a/../../evil", b"1")
    assert storage.list_place(bucket) == {}
