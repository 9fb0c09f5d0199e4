"""cloud/modal_app.py, as far as it can be checked without an account: what the real SDK asks Modal for, and that the
command lines of its functions run here, stop when a machine is taken away, and resume."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from modal._serialization import deserialize
from modal.app import LocalEntrypoint
from modal.mount import ROOT_DIR
from modal_proto import api_pb2 as api

import evaluate
import generate
import train_dreambooth
from cloud import modal_app
from tests.modal_server import modal_server
from tests.test_cloud import TRACKED, is_in_context, write_command
from tests.tiny_runs import same_bytes

ROOT = Path(__file__).resolve().parent.parent
PERSONA = "train_dreambooth.py --config configs/persona.yaml"


def run_modal(*words: str, **more: str) -> tuple[dict[str, list[Any]], subprocess.CompletedProcess[str]]:
    """Modal's command line on the app; what it asked the server for."""
    with modal_server() as (requests, environment):
        command = [Path(sys.executable).with_name("modal"), *words]
        done = subprocess.run(command, cwd=ROOT, env=environment | more, capture_output=True, text=True, timeout=60)
    return requests, done


def functions(requests: dict[str, list[Any]]) -> dict[str, api.Function]:
    return {request.function.function_name: request.function for request in requests["FunctionCreate"]}


@pytest.fixture(scope="module")
def asked():
    """What `modal run --detach cloud/modal_app.py::train -- --gpu H100 …` asks for, of a user with two Secrets."""
    words = f"run --detach cloud/modal_app.py::train -- --gpu H100 {PERSONA}".split()
    requests, done = run_modal(*words, CLOUD_SECRETS="huggingface-secret,aws-secret")
    assert done.returncode == 0, done.stderr
    return requests


def test_each_function_gets_its_settings(asked):
    made = functions(asked)
    assert set(made) == {f"run_{name}" for name in modal_app.FUNCTIONS}
    for name, plain in modal_app.FUNCTIONS.items():
        function = made[f"run_{name}"]
        has = function.resources
        assert has.gpu_config.gpu_type == plain.get("gpu", "").upper()
        assert (has.milli_cpu, has.memory_mb) == (1000 * plain.get("cpu", 0), plain.get("memory", 0))
        assert (function.timeout_secs, function.retry_policy.retries) == (plain["timeout"], plain.get("retries", 0))
        assert function.single_use_containers and function.schedule.cron.cron_string == plain.get("cron", "")
    train = modal_app.FUNCTIONS["train"]
    assert (train["gpu"], train["timeout"], train["retries"]) == ("A100-80GB", 24 * 3600, 10)
    assert [name for name, plain in modal_app.FUNCTIONS.items() if "cron" in plain] == ["nightly"]


def test_models_data_and_runs_are_volumes_and_secrets_come_by_name_with_their_keys(asked):
    names = {f"vo-{number}": one for number, one in enumerate(asked["VolumeGetOrCreate"], 1)}
    assert all(one.version == api.VOLUME_FS_VERSION_V2 for one in names.values())
    for function in functions(asked).values():
        mounted = {one.mount_path: names[one.volume_id].deployment_name for one in function.volume_mounts}
        assert mounted == modal_app.VOLUMES and len(function.secret_ids) == 3
    of_the_app, *by_name = asked["SecretGetOrCreate"]
    assert {one.deployment_name: list(one.required_keys) for one in by_name} == {
        name: modal_app.SECRETS[name] for name in ("huggingface-secret", "aws-secret")
    }
    # What decides in the container which Secrets there are, as on the user's machine.
    assert dict(of_the_app.env_dict) == {
        "CLOUD_SECRETS": "huggingface-secret,aws-secret",
        "SOURCE_COMMIT": modal_app.source_commit(),
    }
    assert re.fullmatch(r"([0-9a-f]{40}(\+changes)?)?", modal_app.source_commit())


def test_the_image_has_the_pinned_packages_and_then_the_code_and_nothing_else(asked):
    base, packages, *rest = [list(one.image.dockerfile_commands) for one in asked["ImageGetOrCreate"]]
    assert base[0].startswith("FROM python:3.12-slim") and any("build-essential" in line for line in base)
    assert "uv pip install" in packages[-1] and re.findall(r"requirements-\w+\.txt", packages[-1]) == [
        "requirements-training.txt",
        "requirements-cuda.txt",
        "requirements-cloud.txt",
    ]
    assert [line for step in rest for line in step[1:]] == [
        "ENV HF_HOME=/hf_home",
        "ENV PYTHONUNBUFFERED=1",
        "WORKDIR /workspace",
    ]
    added = {file.filename for one in asked["MountGetOrCreate"] for file in one.files} - {f"{ROOT_DIR}/modal_app.py"}
    assert added >= {f"/app/{name}" for name in TRACKED if is_in_context(name)}
    assert all(name.startswith("/app/") and is_in_context(name.removeprefix("/app/")) for name in added)


def test_what_follows_the_dashes_is_the_script_with_its_command_line(asked):
    (options,) = asked["FunctionBindParams"]
    assert options.function_options.resources.gpu_config.gpu_type == "H100"
    assert called(asked) == tuple(PERSONA.split())
    assert asked["AppCreate"][0].app_state == api.APP_STATE_DETACHED


def called(requests: dict[str, list[Any]]) -> tuple[Any, ...]:
    (call,) = requests["FunctionMap"]
    return deserialize(call.pipelined_inputs[0].input.args, None)[0]


def test_generate_is_split_over_containers_and_finished_by_one():
    words = ("generate.py", "--lora", "runs/x")
    requests, done = run_modal("run", "cloud/modal_app.py::generate", "--", "--containers", "3", *words)
    assert done.returncode == 0, done.stderr
    shares = [(*words, "--shard", f"{number}/3") for number in range(3)]
    assert called(requests) == ("L40S", [*shares, words])
    for share in shares:
        assert generate.parse_args(list(share[1:])).shard == share[-1]
    assert modal_app.split_command(words, 1) == [words]


def test_the_containers_of_a_set_work_at_the_same_time_and_the_last_one_after_them():
    code = "from cloud.modal_app import app, run_generate_set\n"
    code += "with app.run(): run_generate_set.local('T4', [('a', '1'), ('a', '2'), ('a',)])"
    with modal_server() as (requests, environment):
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, check=True, timeout=60)
    assert requests["FunctionBindParams"][0].function_options.resources.gpu_config.gpu_type == "T4"
    at_once, last = requests["FunctionMap"]
    shares = [one.input.args for request in requests["FunctionPutInputs"] for one in request.inputs]
    assert [deserialize(args, None)[0] for args in shares] == [("a", "1"), ("a", "2")]
    assert at_once.function_call_type == api.FUNCTION_CALL_TYPE_MAP and called({"FunctionMap": [last]}) == ("a",)


def test_a_mistake_is_told_in_one_line(monkeypatch, capsys):
    for words, said in {
        (): "no script; `-- train_lora.py --max_train_steps 3000`",
        ("--gpu",): "argument --gpu: expected one argument",
        ("--containers", "0", "generate.py"): "argument --containers: 0: expected 1 to 100",
    }.items():
        with pytest.raises(SystemExit):
            modal_app.read_words("generate", words)
        assert said in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setenv("CLOUD_SECRETS", "wandb-secret,hf")
    with pytest.raises(SystemExit, match="error: CLOUD_SECRETS=hf: expected huggingface-secret, wandb-secret, "):
        modal_app.choose_secrets()


def start_container(folder: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    """What runs in a container of `train`, as a process in this folder, which stands for /workspace."""
    code = "import sys, cloud.modal_app as app; sys.exit(app.run_train.local(*sys.argv[1:]))"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code, *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


# In the place of a trainer: at SIGTERM it saves a checkpoint, and its exit code names the signal.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path

def save(*_):
    print("saved", *sys.argv[1:], flush=True)
    Path("runs/x/checkpoint-7").mkdir(parents=True)
    Path("runs/x/checkpoint-7/MANIFEST.json").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, lambda *_: os._exit(9))  # Modal's signal is not for the script
Path("ready").touch()
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_whose_machine_is_taken_away_saves_and_its_volume_is_committed(tmp_path, number):
    (tmp_path / "script.py").write_text(SCRIPT)
    container = start_container(tmp_path, "script.py", "--flag", "a b")
    while not (tmp_path / "ready").exists():
        assert container.poll() is None, container.stdout.read()
        time.sleep(0.02)
    container.send_signal(number)
    told, _ = container.communicate(timeout=20)
    assert told.splitlines()[:2] == ["saved --flag a b", "modal_app.py: runs/ is committed"]
    # What Modal's runner expects.
    assert container.returncode == -signal.SIGINT and told.endswith("KeyboardInterrupt\n")


def keep_handler(function, *words, **more):
    """Call a function that, as the only one of its container, sets what SIGTERM does."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return function(*words, **more)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("ends", "again"), [("exit 0", False), ("exit 1", False), ("exit 143", True), ("kill -9 $$", True)]
)
def test_only_a_script_that_a_signal_ended_is_tried_again(ends, again):
    words = ("bash", "-c", ends)
    if again:
        with pytest.raises(RuntimeError, match="the same command resumes"):
            keep_handler(modal_app.run_script, words)
    else:
        assert keep_handler(modal_app.run_script, words) == int(ends[-1])


def test_each_new_checkpoint_is_committed_once(tmp_path, monkeypatch):
    write_command(tmp_path, "sync", 'echo "$@" >> committed')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    for name in ("old/checkpoint-1", "x/checkpoint-1", "x/checkpoint-2", "x/best"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs/old/checkpoint-1/MANIFEST.json").touch()
    script = """
    touch committed runs/x/best/MANIFEST.json
    for step in 1 2; do
      touch runs/x/checkpoint-$step/MANIFEST.json
      until (($(wc -l < committed) == step)); do sleep 0.02; done
    done
    rm runs/x/checkpoint-1/MANIFEST.json
    sleep 0.2
    """
    assert keep_handler(modal_app.run_script, ("timeout", "20", "bash", "-c", script), 0.03) == 0
    assert (tmp_path / "committed").read_text() == "runs\n" * 2


def test_googles_account_comes_to_the_script_in_a_file_of_its_own(monkeypatch, capfd):
    monkeypatch.setenv("SERVICE_ACCOUNT_JSON", '{"private_key": "s"}')
    show = "cat $GOOGLE_APPLICATION_CREDENTIALS; stat -c %a $(dirname $GOOGLE_APPLICATION_CREDENTIALS)"
    assert keep_handler(modal_app.run_script, ("bash", "-c", show)) == 0
    assert capfd.readouterr().out == '{"private_key": "s"}700\n'
    monkeypatch.delenv("SERVICE_ACCOUNT_JSON")
    assert modal_app.script_environment() == dict(os.environ)


def test_the_persona_recipe_is_a_training_of_sdxl_that_its_docs_describe():
    args = train_dreambooth.parse_args(["--config", str(ROOT / "configs/persona.yaml")])
    keys = yaml.safe_load((ROOT / "configs/persona.yaml").read_text())
    assert {name: str(getattr(args, name)) for name in keys} == {name: str(value) for name, value in keys.items()}
    persona = yaml.safe_load((ROOT / "configs/persona_prompts.yaml").read_text())["template"]
    subject = re.search(r"PERSONA,([^}]+)}", persona)[1]
    assert subject in args.instance_prompt and subject not in args.class_prompt
    assert args.checkpointing_steps <= args.max_train_steps / 10  # a lost machine costs minutes
    assert any(subject in prompt for prompt in args.validation_prompt)
    assert "configs/persona.yaml" in (ROOT / "docs/portraits.md").read_text()


def test_the_page_calls_only_functions_and_volumes_that_exist():
    page = (ROOT / "docs/cloud.md").read_text()
    named = set(re.findall(r"modal_app\.py::(\w+)", page))
    assert named == {"prepare", "train", "generate", "evaluate", "nightly"}
    assert all(isinstance(getattr(modal_app, name), LocalEntrypoint) for name in named)
    assert set(re.findall(rf"{modal_app.NAME}-\w+", page)) == set(modal_app.VOLUMES.values())
    assert set(re.findall(r"\w+-secret\b", page)) == set(modal_app.SECRETS)


@pytest.fixture
def nights(tmp_path, monkeypatch):
    """A folder with two finished runs, of which `new` was finished last, and an unfinished one."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new", "old", "unfinished")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        settings = {"validation_prompt": [f"{name} one", f"{name} two\nlines"], "train_data_dir": "data/x"}
        settings |= {"validation_inference_steps": 20, "validation_guidance_scale": 3.0}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        (run / "pytorch_lora_weights.safetensors").touch()
        if name != "unfinished":
            (run / "summary.json").touch()
            os.utime(run / "summary.json", (10**9 - age, 10**9 - age))
    return tmp_path / "runs/nightly"


def test_a_night_draws_the_prompts_of_the_newest_run_and_compares_with_the_night_before(nights):
    run = modal_app.newest_run()
    assert run == Path("runs/new")
    first, second = (Path("runs/nightly", day) for day in ("2026-11-29", "2026-11-30"))
    assert modal_app.previous_night(first) is None
    assert [words[0] for words in modal_app.nightly_commands(run, first, None)] == ["generate.py", "evaluate.py"]
    assert (first / "prompts.txt").read_text() == "new one\nnew two lines\n"
    (first / "evaluation").mkdir()
    (first / "evaluation/metrics.json").touch()
    assert modal_app.previous_night(second) == first / "evaluation"
    assert modal_app.previous_night(first) is None  # tried again, it is not compared with itself
    draw, judge, compare = modal_app.nightly_commands(run, second, first / "evaluation")
    drawn = generate.parse_args(list(draw[1:]))
    assert (drawn.lora, drawn.prompts_file, drawn.num_images) == (["runs/new"], second / "prompts.txt", 32)
    assert (drawn.num_inference_steps, drawn.guidance_scale, drawn.seed) == (20, 3.0, 0)
    judged, compared = (evaluate.parse_args(list(words[1:])) for words in (judge, compare))
    assert judged.generated == drawn.output_dir and judged.encoders == ["clip"]
    assert compared.compare == [first / "evaluation", judged.output_dir]


def test_the_prompts_of_a_run_are_those_of_its_validation(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val/captions.json").write_text(json.dumps(dict(zip("abcdef", "one one two three four five".split()))))
    prompts = modal_app.validation_prompts
    assert prompts({"validation_prompt": ["a"], "instance_prompt": "b"}) == ["a"]
    assert prompts({"validation_prompt": None, "instance_prompt": "b"}) == ["b"]
    assert prompts({"train_data_dir": str(tmp_path)}) == ["one", "two", "three", "four"]
    with pytest.raises(RuntimeError, match="s3://b/shoes holds no captions here; train with --validation_prompt"):
        prompts({"train_data_dir": "s3://b/shoes"})


@pytest.mark.very_slow
def test_the_functions_command_lines_run_on_the_demo_and_a_preempted_training_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def run(*words: str) -> None:
        assert keep_handler(modal_app.run_script, words) == 0, words

    run(*"demo/subject.py --output_dir data/photos".split())
    run(*"prepare_dataset.py --portraits data/photos --resolution 128 --output_dir data/subject".split())

    # The same training, whole and with its machine taken away after the first checkpoint.
    train = "train_dreambooth.py --config configs/demo_dreambooth.yaml --instance_data_dir data/subject"
    train += " --class_data_dir data/class_images --num_class_images 8 --max_train_steps 24 --checkpointing_steps 8"
    train += " --validation_steps 0 --validation_inference_steps 4 --output_dir"
    run(*train.split(), "runs/whole")
    container = start_container(tmp_path, *train.split(), "runs/cut")
    while not (tmp_path / "runs/cut/checkpoint-8/MANIFEST.json").exists():
        assert container.poll() is None, container.stdout.read()
        time.sleep(0.02)
    container.send_signal(signal.SIGTERM)
    told, _ = container.communicate(timeout=60)
    assert "the same command resumes" in told and "modal_app.py: runs/ is committed" in told, told
    assert not (tmp_path / "runs/cut/summary.json").exists()
    run(*train.split(), "runs/cut")
    assert same_bytes(tmp_path / "runs/whole", tmp_path / "runs/cut")
    assert modal_app.newest_run() == Path("runs/cut")

    generate = ("generate.py", "--lora", "runs/cut", "--prompt", "a photo of sks shoes", "--num_images", "8")
    generate += ("--num_inference_steps", "4", "--output_dir", "runs/cut/images")
    for words in modal_app.split_command(generate, 2):
        run(*words)
    assert json.loads(Path("runs/cut/images/report.json").read_text())["made"] == 8

    for night in (Path("runs/nightly/2026-11-29"), Path("runs/nightly/2026-11-30")):
        before = modal_app.previous_night(night)
        for words in modal_app.nightly_commands(modal_app.newest_run(), night, before, 20, "demo"):
            run(*words)
        assert (night / "evaluation/report.html").is_file()
    assert "2026-11-29" in (night / "comparison/comparison.html").read_text()
