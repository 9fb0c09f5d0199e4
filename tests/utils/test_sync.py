"""A folder and its place elsewhere: what is there at each moment, and which of the two goes on."""

import os
import random
import shutil
import time

import pytest

from tests.s3_server import HANG_UP
from utils import checkpoints, files, storage, sync
from utils.cli import UserError

SETTINGS = {"output_dir": "run", "rank": 4}


@pytest.fixture(autouse=True)
def places(monkeypatch):
    """Those that a test opened are given back at its end, whatever its server says then."""
    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    yield
    for one in [*sync._open]:
        one.lease.ended.set()
        sync._open.remove(one)


def make_run(folder, *steps, best=b"1"):
    """A run folder with settings, records, best/ and checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    files.start_list(folder, "train")
    files.write_text(folder / "config.yaml", "output_dir: run\nrank: 4\n")
    write_unit(folder / "best", best)
    for step in steps:
        add_checkpoint(folder, step)
    return folder


def write_unit(folder, content):
    checkpoints.save_checkpoint(folder, lambda new: (new / "weights").write_bytes(content), {}, {})


def add_checkpoint(run, step):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step}}}\n')
    files.note_written(run / "metrics.jsonl")
    write_unit(run / f"checkpoint-{step}", str(step).encode() * 1000)


def enter(name, folder, limit=None):
    """What the start of a trainer does with the place and the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    one = sync.open_sync(storage.open_place(name, "--sync_to"), folder, "train", limit=limit)
    sync.fetch_run(one, SETTINGS, {"output_dir"})
    return one


def send(name, folder, limit=None):
    one = enter(name, folder, limit)
    assert sync.finish_sending(one, 0)
    return one.place


def there(place):
    """What is there, in whole checkpoints: nothing half, and all of it on the list."""
    names = storage.list_place(place)
    own = storage.read_bytes(place, ".train.written").decode().split()
    assert {one.replace("best.new/", "best/") for one in names if not one.startswith(".")} <= set(own)
    for one in names:
        if one.endswith("/MANIFEST.json"):
            assert names.keys() >= {one.replace("MANIFEST.json", part) for part in ("weights", "state.json")}
    return names


def test_an_empty_folder_is_filled_and_goes_on_from_the_newest_checkpoint(place_name, tmp_path, capsys):
    run = make_run(tmp_path / "run", 5, 10)
    place = send(place_name, run)
    assert ".lease.json" not in there(place)
    shutil.rmtree(run)
    send(place_name, tmp_path / "elsewhere")
    assert "checkpoint-10 is further than" in capsys.readouterr().out
    assert checkpoints.find_checkpoint(tmp_path / "elsewhere", "latest").name == "checkpoint-10"
    for one in ("metrics.jsonl", "config.yaml", ".train.written", "best/weights"):
        assert (tmp_path / "elsewhere" / one).read_bytes() == storage.read_bytes(place, one)


def test_the_further_one_goes_on_whichever_it_is(tmp_path, capsys):
    name, run, other = str(tmp_path / "drive"), tmp_path / "run", tmp_path / "other"
    make_run(run, 5)
    send(name, run)
    add_checkpoint(run, 10)  # further here
    place = send(name, run)
    assert "nothing there is further than step 10" in capsys.readouterr().out
    make_run(other, 5)  # further there
    send(name, other)
    assert "checkpoint-10 is further than" in capsys.readouterr().out
    assert (other / "checkpoint-10/weights").read_bytes() == (run / "checkpoint-10/weights").read_bytes()
    assert storage.read_bytes(place, "metrics.jsonl") == (run / "metrics.jsonl").read_bytes()


def test_a_damaged_checkpoint_there_is_skipped_for_the_one_before(place_name, tmp_path, caplog):
    run = make_run(tmp_path / "run", 5, 10)
    place = send(place_name, run)
    storage.send_bytes(place, "checkpoint-10/weights", b"damaged")
    sync.finish_sending(enter(place_name, tmp_path / "elsewhere"), 0)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "elsewhere")] == ["checkpoint-5"]
    assert "checkpoint-10 is skipped: weights has 7 bytes" in caplog.text


def test_a_run_of_other_settings_there_is_refused_with_the_difference(tmp_path):
    send(str(tmp_path / "drive"), make_run(tmp_path / "run", 5))
    one = sync.open_sync(storage.open_place(str(tmp_path / "drive"), "--sync_to"), tmp_path, "train")
    with pytest.raises(UserError, match=r"--sync_to .*drive: was made with other settings \(rank was 4, now 8\)"):
        sync.fetch_run(one, SETTINGS | {"rank": 8}, {"output_dir"})


def test_a_refusal_sends_nothing_and_gives_the_place_back(tmp_path):
    place = send(str(tmp_path / "drive"), make_run(tmp_path / "run", 5))
    before = storage.list_place(place)
    with pytest.raises(UserError), sync.sent_after_fault():
        make_run(tmp_path / "other", 20)
        enter(str(tmp_path / "drive"), tmp_path / "other")
        raise UserError("as for a folder of other settings")
    assert storage.list_place(place) == before


def test_a_fault_sends_what_was_written_until_then(tmp_path):
    run = make_run(tmp_path / "run", 5)
    with pytest.raises(UserError, match="the loss"), sync.sent_after_fault():
        one = enter(str(tmp_path / "drive"), run)
        sync.start_sending(one)
        add_checkpoint(run, 10)
        raise UserError("the loss is not finite")
    assert "checkpoint-10/MANIFEST.json" in there(one.place) and ".lease.json" not in there(one.place)


def test_overwrite_erases_what_the_script_wrote_there_and_nothing_else(place_name, tmp_path):
    run = make_run(tmp_path / "run", 5, 10)
    place = send(place_name, run)
    storage.send_bytes(place, "notes.txt", b"mine")
    storage.send_bytes(place, "checkpoint-5/notes.txt", b"mine")
    sync.erase(sync.open_sync(place, run, "train"))
    kept = storage.list_place(place)
    assert {one for one in kept if not one.startswith(".")} == {"notes.txt", "checkpoint-5/notes.txt"}


def test_a_place_with_files_of_others_is_refused_and_hidden_ones_don_t_count(tmp_path):
    drive = tmp_path / "drive"
    drive.mkdir()
    (drive / ".DS_Store").touch()
    sync.finish_sending(enter(str(drive), tmp_path / "run"), 0)
    (drive / ".train.written").unlink()
    (drive / "photo.png").touch()
    with pytest.raises(UserError, match=r"drive: holds files that this script did not write \(photo.png\)"):
        enter(str(drive), tmp_path / "run")
    assert not (drive / ".lease.json").exists()


def test_old_checkpoints_go_there_too_and_best_stays(place_name, tmp_path):
    run = make_run(tmp_path / "run", 5)
    one = enter(place_name, run, limit=2)
    for step in (10, 15, 20):
        write_unit(run / "best", str(step).encode())
        add_checkpoint(run, step)
        checkpoints.rotate_checkpoints(run, 2)
        assert not sync.send_changes(one)
    folders = {found.partition("/")[0] for found in there(one.place) if "/" in found}
    assert folders == {"best", "checkpoint-15", "checkpoint-20"}
    assert storage.read_bytes(one.place, "best/weights") == b"20"


def test_one_upload_in_five_lost_and_nothing_is_ever_half_there(server, in_s3, tmp_path, caplog):
    run, draw = make_run(tmp_path / "run", 5), random.Random(0)
    one, rounds = enter(in_s3, run, limit=2), 0
    for step in range(10, 30, 5):
        write_unit(run / "best", str(step).encode())
        add_checkpoint(run, step)
        server.fault = lambda request: 500 if request["REQUEST_METHOD"] == "PUT" and draw.random() < 0.4 else None
        for _ in range(3):  # each request is tried twice
            rounds += bool(sync.send_changes(one))
            server.fault = lambda request: None
            whole = sync.whole_checkpoints(there(one.place))
            assert not whole or int(storage.read_bytes(one.place, "best/weights")) >= max(whole)
    assert rounds and whole == [25, 20]


def test_an_upload_cut_in_the_middle_leaves_a_checkpoint_that_does_not_count(server, in_s3, tmp_path):
    run = make_run(tmp_path / "run", 5)
    one = enter(in_s3, run)
    sync.send_changes(one)
    add_checkpoint(run, 10)

    def cut(request):
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("checkpoint-10/weights"):
            request["wsgi.input"].read(100)
            return HANG_UP

    server.fault = cut
    left = sync.send_changes(one)
    assert set(left) == {f"checkpoint-10/{part}" for part in ("weights", "MANIFEST.json")}
    assert sync.whole_checkpoints(there(one.place)) == [5]
    server.fault = lambda request: None
    assert not sync.send_changes(one) and sync.whole_checkpoints(there(one.place)) == [10, 5]


@pytest.mark.parametrize("status", [403, 503, HANG_UP])
def test_what_could_not_be_sent_is_listed_and_sent_by_the_next_run(status, server, in_s3, tmp_path, caplog):
    run = make_run(tmp_path / "run", 5)
    one = enter(in_s3, run)
    assert not sync.send_changes(one)
    add_checkpoint(run, 10)
    server.fault = lambda request: status if request["REQUEST_METHOD"] == "PUT" else None
    assert not sync.finish_sending(one, 0)
    said = caplog.messages[-1]
    assert "checkpoint-10/, " in said and "not sent; the same command sends the rest" in said
    assert server.environment["AWS_SECRET_ACCESS_KEY"] not in caplog.text and "\n" not in said
    server.fault = lambda request: None
    place = send(in_s3, run)
    assert sync.whole_checkpoints(there(place)) == [10, 5]
    assert storage.read_bytes(place, "metrics.jsonl") == (run / "metrics.jsonl").read_bytes()


def test_a_drive_that_vanishes_gets_no_folder_in_its_place_and_all_of_it_when_it_is_back(tmp_path, caplog):
    drive, run = tmp_path / "mnt", make_run(tmp_path / "run", 5)
    drive.mkdir()
    one = enter(str(drive / "runs"), run)
    assert not sync.send_changes(one)
    drive.rename(tmp_path / "away")
    drive.mkdir()  # its mount point
    add_checkpoint(run, 10)
    assert "checkpoint-10/weights" in sync.send_changes(one)
    assert not list(drive.iterdir())
    drive.rmdir()
    assert sync.send_changes(one) and not drive.exists()
    (tmp_path / "away").rename(drive)
    assert not sync.send_changes(one) and sync.whole_checkpoints(there(one.place)) == [10, 5]


def test_a_folder_that_is_removed_here_stays_there(place_name, tmp_path):
    run = make_run(tmp_path / "run", 5)
    one = enter(place_name, run)
    assert not sync.send_changes(one)
    before = there(one.place)
    shutil.rmtree(run)
    sync.finish_sending(one, 0)
    assert there(one.place) == {found: size for found, size in before.items() if found != ".lease.json"}


def test_a_file_that_the_script_removed_goes_there_too(tmp_path):
    run = make_run(tmp_path / "run", 5)
    files.write_text(run / "run_kohya.safetensors", "of fewer steps")
    one = enter(str(tmp_path / "drive"), run)
    assert not sync.send_changes(one) and "run_kohya.safetensors" in there(one.place)
    (run / "run_kohya.safetensors").unlink()
    assert sync.finish_sending(one, 0) and "run_kohya.safetensors" not in there(one.place)


def test_a_run_whose_place_was_taken_over_says_that_it_sent_nothing(tmp_path, caplog):
    run = make_run(tmp_path / "run", 5)
    one = enter(str(tmp_path / "drive"), run)
    storage.send_bytes(one.place, ".lease.json", b'{"owner": "another"}')
    assert not sync.finish_sending(one, 60)  # at once
    assert "another process has taken the place over) not sent" in caplog.text
    assert storage.list_place(one.place).keys() == {".lease.json", ".train.written"}


def test_a_checkpoint_whose_files_are_not_all_listed_yet_is_sent_whole(tmp_path):
    run = make_run(tmp_path / "run", 5)
    listed = run / ".train.written"
    lines = listed.read_text().splitlines()
    listed.write_text("".join(f"{line}\n" for line in lines if line != "checkpoint-5/weights"))
    one = enter(str(tmp_path / "drive"), run)
    assert not sync.send_changes(one) and "checkpoint-5/weights" in storage.list_place(one.place)


def test_a_checkpoint_that_goes_while_it_is_sent_never_counts_there(server, in_s3, tmp_path, monkeypatch):
    """On a drive without hard links its files can't be held."""

    def no_links(*args, **kwargs):
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    run = make_run(tmp_path / "run", 5)
    one = enter(in_s3, run)

    def rotate(request):
        if request["PATH_INFO"].endswith("checkpoint-5/state.json"):
            shutil.rmtree(run / "checkpoint-5", ignore_errors=True)

    server.fault = rotate
    monkeypatch.setattr(storage, "AT_ONCE", 1)
    sync.send_changes(one)
    assert sync.whole_checkpoints(storage.list_place(one.place)) == []


def test_a_best_that_was_sent_but_not_put_in_place_is_found(place_name, tmp_path):
    run = make_run(tmp_path / "run", 5)
    place = send(place_name, run)
    write_unit(run / "best", b"2")
    for part in ("weights", "state.json", "MANIFEST.json"):
        storage.send_bytes(place, f"best.new/{part}", (run / "best" / part).read_bytes())
    send(place_name, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/best/weights").read_bytes() == b"2"
    storage.send_bytes(place, "best.new/weights", b"2")  # a kill before the last of it was removed
    send(place_name, tmp_path / "elsewhere")
    assert not any(found.startswith("best.new") for found in there(place))


# A server with faults while the work goes on


def test_a_slow_server_delays_nothing_here_and_has_all_at_the_end(in_s3, server, tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "EVERY", 0.05)
    run = make_run(tmp_path / "run", 5)
    one = enter(in_s3, run)
    server.fault = lambda request: time.sleep(0.1)
    sync.start_sending(one)
    time.sleep(0.2)  # it has begun to send
    began = time.monotonic()
    add_checkpoint(run, 10)
    assert time.monotonic() - began < 1
    assert sync.finish_sending(one, 0)
    assert there(one.place).keys() >= {"checkpoint-5/weights", "checkpoint-10/weights"}


@pytest.mark.parametrize("seconds", [3, pytest.param(61, marks=pytest.mark.very_slow)])
def test_a_server_that_was_gone_has_all_once_it_is_back(in_s3, server, tmp_path, monkeypatch, caplog, seconds):
    monkeypatch.setattr(sync, "EVERY", 0.1)
    run = make_run(tmp_path / "run", 5)
    one = enter(in_s3, run, limit=2)
    sync.start_sending(one)
    back = time.monotonic() + seconds
    server.fault = lambda request: HANG_UP if time.monotonic() < back else None
    step = 5
    while time.monotonic() < back:
        step += 5
        add_checkpoint(run, step)
        checkpoints.rotate_checkpoints(run, 2)
        time.sleep(0.5)
    assert sync.finish_sending(one, 30)
    assert {path.split("/")[0] for path in there(one.place) if path.startswith("checkpoint")} == {
        f"checkpoint-{step}",
        f"checkpoint-{step - 5}",
    }
    assert "not sent yet; tried again" in caplog.text


def test_a_place_that_is_taken_over_in_the_middle_of_a_checkpoint_gets_no_manifest_of_it(in_s3, server, tmp_path):
    one = enter(in_s3, make_run(tmp_path / "run", 5))

    def lose(request):
        if request["REQUEST_METHOD"] == "PUT" and "checkpoint-5" in request["PATH_INFO"]:
            one.lease.lost.set()

    server.fault = lose
    assert "checkpoint-5/MANIFEST.json" in sync.send_changes(one)
    server.fault = lambda request: None
    assert "checkpoint-5/MANIFEST.json" not in storage.list_place(one.place)
