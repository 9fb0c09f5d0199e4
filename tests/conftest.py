import os
import signal

import pytest
import torch

os.environ["PYTHON_DOTENV_DISABLED"] = "1"  # no test reads a developer's own .env
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores what some tests send
torch.set_num_threads(1)  # as in the processes that some tests start: what is computed depends on it

# Left out of `make test-fast` as whole files: they start scripts or train, for up to minutes each. Slow tests of other
# files have the marker themselves.
SLOW_FILES = {
    "test_train_lora.py",
    "test_train_lora_survives.py",
    "test_train_flow.py",
    "test_train_dreambooth.py",
    "test_train_classifier.py",
    "test_generate.py",
    "test_evaluate.py",
    "test_prepare_dataset.py",
    "test_prepare_speech.py",
    "test_demo.py",
    "test_pretrain.py",
    "test_sync_survives.py",
    "test_lora.py",
    "test_encoding.py",
    "test_memory.py",
    "test_mps.py",
    "test_validation.py",
}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    """Signals do what they do in a new process, whatever a script that ran here for an earlier test made of them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("very_slow"):
            item.add_marker(pytest.mark.timeout(2400))


@pytest.fixture(scope="session")
def trainer_data(tmp_path_factory):
    """Where the trainer's tests find tiny pipelines, a prepared dataset, a folder of all proportions, and a cache."""
    import prepare_dataset
    from demo.catalogue import write_catalogue
    from demo.shoes import draw_shoe
    from tests.tiny_models import OF_FLOW, build_tiny

    root = tmp_path_factory.mktemp("trainer")
    folders = {name: root / name for name in ("sd1", "sd2", "sdxl", *OF_FLOW, "raw", "prepared", "folder", "cache")}
    for family in ("sd1", "sd2", "sdxl", *OF_FLOW):
        build_tiny(folders[family], family)
    write_catalogue(folders["raw"], 32, (48, 64), 0, ["Casual Shoes", "Boots"], damage=False)
    words = f"--catalogue {folders['raw']} --output_dir {folders['prepared']} --resolution 32 --num_workers 1"
    assert prepare_dataset.main(prepare_dataset.parse_args(words.split())) == 0
    folders["folder"].mkdir()
    for i in range(14):
        kind, colour, size = (
            ("Sandals", "Heels")[i % 2],
            ("Red", "Blue")[i % 4 // 2],
            [(32, 32), (32, 48), (48, 32)][i % 3],
        )
        draw_shoe(kind, colour, str(i), (64, 64)).resize(size).save(folders["folder"] / f"{i}.png")
        (folders["folder"] / f"{i}.txt").write_text(f"a photo of {colour} {kind}".lower())
    for name, kind, colour, count in (("subject", "Casual Shoes", "Purple", 5), ("class", "Boots", "Grey", 5)):
        folders[name] = root / name
        folders[name].mkdir()
        for i in range(count):
            draw_shoe(kind, colour, str(i), (32, 32)).save(folders[name] / f"shoe{i}.png")
    return folders


@pytest.fixture(scope="module")
def server():
    """A local S3 server with an empty bucket, and the environment to reach it."""
    from tests.s3_server import s3_server  # here: most tests need neither, and importing them takes a second
    from utils import storage

    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        storage.open_place("s3://bucket/x", "--sync_to").fs.makedirs("bucket", exist_ok=True)
        yield server


@pytest.fixture
def hub():
    """A stand-in for the hub, with a token for it in the environment."""
    from tests.hub_server import hub_server

    with hub_server() as server:
        yield server


@pytest.fixture
def in_s3(server, tmp_path):
    """The name of an empty place in S3, whose server may be given faults."""
    yield f"s3://bucket/{tmp_path.name}"
    server.fault = lambda request: None


@pytest.fixture(params=["s3", "drive"])
def place_name(request, tmp_path):
    """The name of an empty place: in S3, and a folder, as on a mounted drive."""
    return request.getfixturevalue("in_s3") if request.param == "s3" else str(tmp_path / "drive")
