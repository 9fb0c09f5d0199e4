"""What flags name in a bucket: fetched once from S3 (a local server), verified, and used as what lies here."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.s3_server import CUT, HANG_UP
from tests.tiny_runs import LORA, PRIOR, ROOT, same_bytes, teach, train
from utils import cli, storage
from utils.cli import UserError
from utils.files import list_files, write_manifest

NAMES = [f"train/images/{i}.png" for i in range(6)] + ["train/metadata.jsonl", "test/images/a.png", "metadata.json"]
FLAG = "--train_data_dir"


@pytest.fixture(autouse=True)
def forget():
    """What a process remembers of its fetching; each test begins as a new one."""
    storage.fetch.cache_clear()
    yield
    storage.fetch.cache_clear()


def send(folder: Path, name: str) -> storage.Place:
    """Copy a folder into the bucket, under a name."""
    place = storage.open_place(name, "--sync_to")
    for file in list_files(folder):
        storage.send_file(place, file, folder / file)
    return place


@pytest.fixture
def dataset(server, tmp_path):
    """The name of a dataset in the bucket, with a manifest, and the files that it was made from."""
    for number, file in enumerate(NAMES):
        (tmp_path / "set" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / file).write_bytes(os.urandom(3000 + number))
    shutil.copytree(tmp_path / "set/train/images", tmp_path / "set/images")  # as in a generated set
    write_manifest(tmp_path / "set")
    name = f"s3://bucket/{tmp_path.name}/set"
    send(tmp_path / "set", name)
    server.requests.clear()
    yield name
    server.fault = lambda request: None


def fetch(name: str, cache: Path, *wanted: str, flag: str = FLAG) -> Path:
    """As a new process would."""
    storage.fetch.cache_clear()
    return storage.fetch(name, cache, flag, wanted)


def fetched(server) -> list[str]:
    """The files that were asked for, but for the manifest that is read first."""
    own = [one.split("/set/")[1] for one in server.requests if one.startswith("GET ") and "/set/" in one]
    return [name for name in own if name != "MANIFEST.json"]


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_files(folder)}


def test_a_dataset_is_fetched_once_and_again_where_it_has_changed(dataset, server, tmp_path):
    first = fetch(dataset, tmp_path / "cache")
    assert content(first) == content(tmp_path / "set")
    assert len(fetched(server)) == len(NAMES)  # equal files once
    server.requests.clear()
    assert fetch(dataset, tmp_path / "cache") == first
    assert len(server.requests) <= 2 and fetched(server) == []

    (tmp_path / "set/metadata.json").write_text("{}")
    write_manifest(tmp_path / "set")
    send(tmp_path / "set", dataset)
    second = fetch(dataset, tmp_path / "cache")
    assert second != first and content(second) == content(tmp_path / "set")
    assert (first / "metadata.json").read_bytes() != b"{}"  # another process may be reading it


def test_a_split_comes_with_the_metadata_of_its_dataset(dataset, tmp_path):
    split = fetch(f"{dataset}/test", tmp_path / "cache")
    assert split.name == "test"
    assert list_files(split.parent).keys() == {"test/images/a.png", "metadata.json", "MANIFEST.json"}


def test_a_folder_without_a_manifest_is_fetched_by_its_sizes(dataset, server, tmp_path, caplog):
    place = storage.open_place(dataset, FLAG)
    for name in ("train/images/", "train/images/empty/"):  # as a provider's web page makes folders
        storage.send_bytes(place, name, b"")
    first = fetch(f"{dataset}/train/images", tmp_path / "cache")
    assert content(first) == content(tmp_path / "set/train/images")
    assert "nothing but sizes can be verified" in caplog.text
    one = fetch(f"{dataset}/train/images/3.png", tmp_path / "cache")
    assert one.read_bytes() == (first / "3.png").read_bytes() and len(list_files(one.parent)) == 1
    storage.send_bytes(place, "train/images/3.png", b"another of 3003 bytes" * 143)
    assert (fetch(f"{dataset}/train/images", tmp_path / "cache") / "3.png").read_bytes().startswith(b"another")


def test_one_request_in_five_may_be_refused_cut_or_lost(dataset, server, tmp_path):
    faults = itertools.cycle([*[None] * 4, CUT, *[None] * 4, 503, *[None] * 4, HANG_UP])
    server.fault = lambda request: next(faults)
    assert content(fetch(dataset, tmp_path / "cache")) == content(tmp_path / "set")


def test_a_killed_download_goes_on_where_it_was(dataset, server, tmp_path):
    killed = threading.Event()
    server.fault = lambda request: killed.wait(20) and None if request["PATH_INFO"].endswith("5.png") else None
    code = "import sys, pathlib, utils.storage as one; one.fetch(sys.argv[1], pathlib.Path(sys.argv[2]), '--real')"
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", code, dataset, cache], cwd=ROOT)
    while not [path for path in cache.rglob("*.png") if path.name[0] != "."]:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    killed.set()
    whole = {path.name for path in cache.rglob("*.png") if path.name[0] != "."}
    assert whole and "5.png" not in whole
    server.requests.clear()
    folder = fetch(dataset, cache)
    assert content(folder) == content(tmp_path / "set")
    assert not {Path(name).name for name in fetched(server)} & whole
    assert not list(cache.rglob("*.partial"))


def test_several_processes_fetch_it_once(dataset, server, tmp_path):
    storage.fetch.cache_clear()
    with ThreadPoolExecutor(3) as pool:  # each through a descriptor of its own, as processes
        names = [pool.submit(storage.fetch.__wrapped__, dataset, tmp_path / "cache", FLAG) for _ in range(3)]
    assert len({one.result() for one in names}) == 1
    assert len(fetched(server)) == len(NAMES)


def test_a_damaged_file_is_fetched_again_once_then_refused(dataset, server, tmp_path):
    place, good = storage.open_place(dataset, FLAG), (tmp_path / "set/test/images/a.png").read_bytes()
    storage.send_bytes(place, "test/images/a.png", good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match=f"^{FLAG} {dataset}: test/images/a.png there is damaged: .*upload it again"):
        fetch(dataset, tmp_path / "cache")
    assert fetched(server).count("test/images/a.png") == 2
    storage.remove_files(place, ["test/images/a.png"])
    with pytest.raises(UserError, match="test/images/a.png is missing there; upload it again"):
        fetch(dataset, tmp_path / "cache")
    storage.send_bytes(place, "test/images/a.png", good)
    assert content(fetch(dataset, tmp_path / "cache")) == content(tmp_path / "set")


def test_what_can_not_be_fetched_is_one_line(dataset, server, tmp_path, monkeypatch):
    def refusal(name: str) -> str:
        with pytest.raises(UserError) as error:
            fetch(name, tmp_path / "cache")
        assert "\n" not in str(error.value) and "secret" not in str(error.value)
        return str(error.value)

    assert "no such file or folder; check the names" in refusal("s3://bucket/nothing/here")
    assert "The specified bucket does not exist; correct the name, or create it" in refusal("s3://elsewhere/x")
    assert "expected a folder in a bucket" in refusal("s3://bucket")
    assert "holds none of a.txt" in pytest.raises(UserError, fetch, dataset, tmp_path, "a.txt").value.args[0]
    manifest = json.dumps({"../../out.txt": {"bytes": 1, "sha256": "a"}}).encode()
    storage.send_bytes(storage.open_place("s3://bucket/evil", FLAG), "MANIFEST.json", manifest)
    assert "which leads elsewhere" in refusal("s3://bucket/evil")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gcsfs", None)
        assert "pip install -r requirements-cloud.txt" in refusal("gs://bucket/x")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
        assert "MB to fetch, and" in refusal(dataset)
    server.fault = lambda request: 403
    assert "Forbidden; give the credentials" in refusal(dataset)


def test_an_error_names_what_the_user_gave(dataset, tmp_path):
    copy = fetch(dataset, tmp_path / "cache")
    assert cli.name_copies(f"x.py: error: {FLAG} {copy}: has no rows") == f"x.py: error: {FLAG} {dataset}: has no rows"
    said = cli.name_copies(f"{copy}/a.png has changed")
    assert said == f"{copy}/a.png has changed ({copy} is a copy of {dataset}: removed, it is fetched anew)"


# What the scripts make of it


def test_a_flag_that_reads_no_bucket_says_so(capsys):
    import train_lora

    with pytest.raises(SystemExit):
        train_lora.parse_args(["--latent_cache_dir", "s3://bucket/x"])
    said = capsys.readouterr().err
    assert "error: --latent_cache_dir s3://bucket/x: expected a file or folder here" in said


@pytest.mark.slow
def test_data_and_lora_in_a_bucket_train_and_generate_as_those_here(trainer_data, server, tmp_path, capsys):
    import generate

    data, base = dict(trainer_data), f"s3://bucket/{tmp_path.name}"
    send(trainer_data["prepared"], f"{base}/shoes")
    assert train(trainer_data, tmp_path / "here/run") == 0
    data["prepared"] = f"{base}/shoes"
    assert train(data, tmp_path / "there/run") == 0
    assert same_bytes(tmp_path / "here/run", tmp_path / "there/run")
    assert yaml.safe_load((tmp_path / "there/run/config.yaml").read_text())["train_data_dir"] == f"{base}/shoes"
    card = (tmp_path / "there/run/README.md").read_text()
    assert f"{base}/shoes" in card and "fetched/" not in card

    place = send(tmp_path / "there/run", f"{base}/run")
    server.requests.clear()
    words = ["--lora", f"{base}/run:0.8", f"{base}/run/{LORA}:0.5", "--prompt", "a shoe", "--dry_run", "--verbose"]
    words += ["--output_dir", str(tmp_path / "images/set"), "--resolution", "16"]
    assert generate.main(generate.parse_args(words)) == 0
    assert f"lora:\n- {base}/run:0.8\n" in capsys.readouterr().out
    gets = [one.rpartition("/")[2] for one in server.requests if one.startswith(f"GET /bucket/{tmp_path.name}/run/")]
    assert {*gets} == {LORA, "summary.json"}
    storage.send_bytes(place, LORA, b"cut")
    storage.fetch.cache_clear()
    with pytest.raises(UserError, match=f"^--lora {base}/run: {LORA} there is damaged"):
        generate.main(generate.parse_args(words))


@pytest.mark.slow
def test_photos_and_complete_class_images_may_lie_in_a_bucket(trainer_data, server, tmp_path, capsys):
    data, base = dict(trainer_data), f"s3://bucket/{tmp_path.name}"
    for name in ("subject", "class"):
        send(trainer_data[name], f"{base}/{name}")
        data[name] = f"{base}/{name}"
    assert teach(data, tmp_path / "run", *PRIOR, "--dry_run") == 0
    assert "5: 5 in" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"--class_data_dir {base}/class: 5 images there, and none is generated"):
        teach(data, tmp_path / "run", *PRIOR, "--num_class_images", 6, "--dry_run")


@pytest.mark.slow
def test_sets_in_a_bucket_are_classified_and_evaluated(trainer_data, server, tmp_path, capsys):
    import evaluate
    import prepare_dataset
    import train_classifier

    base = f"s3://bucket/{tmp_path.name}"
    send(trainer_data["prepared"], f"{base}/real")
    send(trainer_data["folder"], f"{base}/made")
    words = f"--real {base}/real/test --train {base}/real/train --generated {base}/made --encoders none --dry_run"
    assert evaluate.main(evaluate.parse_args(f"{words} --output_dir {tmp_path}/evaluation".split())) == 0
    assert "generated: 14 images" in capsys.readouterr().out
    words = f"--real {base}/made --synthetic {base}/made --target colour --output_dir {tmp_path}/utility --dry_run"
    command = train_classifier.parse_args(words.split())
    with pytest.raises(SystemExit):
        cli.run(train_classifier.main, command)
    assert f"error: --real {base}/made: the split `train` is missing" in capsys.readouterr().err
    words = f"--catalogue {base}/made --output_dir {tmp_path}/data/x --dry_run --num_workers 1"
    assert prepare_dataset.main(prepare_dataset.parse_args(words.split())) == 0
    assert "if every image is good" in capsys.readouterr().out
