"""Prepare, train, generate and evaluate on Modal's machines (docs/cloud.md).

    modal run --detach cloud/modal_app.py::train -- train_dreambooth.py --config configs/persona.yaml
    modal run --detach cloud/modal_app.py::train -- --gpu H100 train_lora.py --max_train_steps 3000
    modal run --detach cloud/modal_app.py::generate -- --containers 8 generate.py --lora runs/persona --num_images 1000
    modal deploy cloud/modal_app.py     # each night: images of the newest run, compared with those of the night before

What follows `--` is a script of this repository with its own command line, as on any other machine. The folders data/
and runs/ are Volumes. A script that is stopped is started again with the same words, and resumes.
"""

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import modal

ROOT = Path(__file__).resolve().parent.parent if modal.is_local() else Path("/app")
NAME = "accelerate-finetuning-scripts"
HOUR = 3600

# What each function gets, handed to @app.function by `options`. Retries are for machines that fail and for the time
# limit, after which the script resumes; a preempted machine is replaced by Modal itself and does not count.
FUNCTIONS: dict[str, dict[str, Any]] = {
    "prepare": {"cpu": 8.0, "memory": 16_384, "timeout": 6 * HOUR, "retries": 2},
    "train": {"gpu": "A100-80GB", "cpu": 8.0, "memory": 32_768, "timeout": 24 * HOUR, "retries": 10},
    "generate": {"gpu": "L40S", "cpu": 4.0, "memory": 16_384, "timeout": 24 * HOUR, "retries": 10},
    "generate_set": {"timeout": 24 * HOUR},  # starts `generate`, and waits
    "evaluate": {"gpu": "L4", "cpu": 4.0, "memory": 16_384, "timeout": 6 * HOUR, "retries": 2},
    "nightly": {"gpu": "L40S", "cpu": 4.0, "memory": 16_384, "timeout": 6 * HOUR, "retries": 2, "cron": "0 3 * * *"},
}
# Version 2 of Volumes, since many containers may write to one at once, and one may have any number of files.
VOLUMES = {"/hf_home": f"{NAME}-hub", "/workspace/data": f"{NAME}-data", "/workspace/runs": f"{NAME}-runs"}
# Secrets of your workspace, and the keys that each must have: `modal secret create huggingface-secret HF_TOKEN=…`.
# Only those that CLOUD_SECRETS names, with commas, are used.
SECRETS = {
    "huggingface-secret": ["HF_TOKEN"],
    "wandb-secret": ["WANDB_API_KEY"],
    "aws-secret": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    "googlecloud-secret": ["SERVICE_ACCOUNT_JSON"],
}
# The image: the same Python, packages and files as in cloud/Dockerfile.
PYTHON, UV = "3.12", "0.13.9"
REQUIREMENTS = ["requirements-training.txt", "requirements-cuda.txt", "requirements-cloud.txt"]
ENVIRONMENT = {"HF_HOME": "/hf_home", "PYTHONUNBUFFERED": "1"}


def build_image() -> modal.Image:
    """The packages, and last the code, which is added when a container starts: a change of it builds nothing anew."""
    image = modal.Image.debian_slim(PYTHON)  # with a C++ compiler, which --compile needs
    image = image.uv_pip_install(requirements=[str(ROOT / name) for name in REQUIREMENTS], uv_version=UV)
    image = image.env(ENVIRONMENT).workdir("/workspace")
    for path in code_paths() if modal.is_local() else []:
        if path.is_dir():
            image = image.add_local_dir(path, f"/app/{path.name}", ignore=["**/__pycache__", "**/.*"])
        else:
            image = image.add_local_file(path, f"/app/{path.name}")
    return image


def code_paths() -> list[Path]:
    """What .dockerignore lets into an image; each folder by itself, so that the data beside them is not searched."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return sorted(path for line in lines if line.startswith("!") for path in ROOT.glob(line[1:]))


def choose_secrets() -> list[modal.Secret]:
    """Those that CLOUD_SECRETS names, and what the container, which reads this file too, must know of this machine."""
    names = [name for name in os.environ.get("CLOUD_SECRETS", "").split(",") if name]
    if unknown := [name for name in names if name not in SECRETS]:
        sys.exit(f"modal_app.py: error: CLOUD_SECRETS={unknown[0]}: expected {', '.join(SECRETS)}, with commas")
    known = {"CLOUD_SECRETS": ",".join(names), "SOURCE_COMMIT": source_commit()}
    return [modal.Secret.from_dict(known), *(modal.Secret.from_name(one, required_keys=SECRETS[one]) for one in names)]


def source_commit() -> str:
    """The commit of this repository, which the environment.json of a run records; empty if it can't be known."""
    describe = "git describe --always --abbrev=40 --exclude='*' --dirty=+changes 2>/dev/null"
    return subprocess.run(describe, shell=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def options(name: str) -> dict[str, Any]:
    """The arguments of @app.function for one of FUNCTIONS. A container serves one call, and is not used again."""
    plain = {"single_use_containers": True, "startup_timeout": HOUR // 2, **FUNCTIONS[name]}
    cron = plain.pop("cron", None)
    return plain | ({"schedule": modal.Cron(cron)} if cron else {})


volumes = {place: modal.Volume.from_name(name, create_if_missing=True, version=2) for place, name in VOLUMES.items()}
app = modal.App(NAME, image=build_image(), volumes=volumes, secrets=choose_secrets())


def run_script(words: tuple[str, ...], every: float = 5) -> int:
    """Run a script of the repository, or any other command; its exit code.

    When Modal takes the machine away or the call is cancelled, the script gets SIGTERM, saves a checkpoint and ends.
    A script that a signal ended is an error, so that Modal tries again and it resumes. One that ended with a message
    of its own is not: it would say the same again.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises, as SIGINT does, which announces a preemption
    command = ["bash", str(ROOT / "cloud/entrypoint.sh"), *words]
    script = subprocess.Popen(command, env=script_environment(), start_new_session=True)  # so that it gets one signal
    try:
        saved = find_checkpoints()
        while (code := wait(script, every)) is None:
            if (now := find_checkpoints()) - saved:
                commit_runs()
            saved = now
    except BaseException:
        script.terminate()
        script.wait()
        commit_runs()
        raise
    if code < 0 or code > 128:
        raise RuntimeError(f"{words[0]} was stopped (exit code {code}); the same command resumes")
    return code


def wait(script: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code; None if the script still runs after so many seconds."""
    try:
        return script.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def find_checkpoints() -> set[Path]:
    """The complete checkpoints of all runs: a manifest is written last."""
    return set(Path("runs").glob("*/checkpoint-*/MANIFEST.json"))


def commit_runs() -> None:
    """Commit the Volume of runs/, so that a checkpoint outlives its machine from now on.

    By `sync`, which the newer kind of Volume understands: `Volume.commit` may also reload the Volume, which then looks
    empty to the script for a while. Modal commits by itself, too: every few seconds, and when a container ends.
    """
    if subprocess.run(["sync", "runs"]).returncode == 0:
        print("modal_app.py: runs/ is committed", flush=True)


def script_environment() -> dict[str, str]:
    """The environment, with Google's account in a file, as gcsfs expects it."""
    if not (account := os.environ.get("SERVICE_ACCOUNT_JSON")):
        return dict(os.environ)
    path = Path(tempfile.mkdtemp(), "account.json")  # a folder that only this user can open
    path.write_text(account)
    return {**os.environ, "GOOGLE_APPLICATION_CREDENTIALS": str(path)}


@app.function(**options("prepare"))
def run_prepare(*words: str) -> int:
    return run_script(words)


@app.function(**options("train"))
def run_train(*words: str) -> int:
    return run_script(words)


@app.function(**options("generate"))
def run_generate(*words: str) -> int:
    return run_script(words)


@app.function(**options("evaluate"))
def run_evaluate(*words: str) -> int:
    return run_script(words)


@app.function(**options("generate_set"))
def run_generate_set(gpu: str, commands: list[tuple[str, ...]]) -> int:
    """Run all commands but the last at the same time, and then the last, each in a container of its own."""
    generate = run_generate.with_options(gpu=gpu)
    codes = list(generate.starmap(commands[:-1]))
    return max(codes, default=0) or generate.remote(*commands[-1])


def split_command(words: tuple[str, ...], containers: int) -> list[tuple[str, ...]]:
    """A command for each container's share, and last the one that finds the set complete and finishes it."""
    shares = [(*words, "--shard", f"{number}/{containers}") for number in range(containers)]
    return [*(shares if containers > 1 else []), words]


@app.function(**options("nightly"))
def run_nightly() -> None:
    """Generate the validation prompts of the newest run, evaluate the images, and compare with the night before."""
    night = Path("runs/nightly", datetime.datetime.now(datetime.UTC).date().isoformat())
    for words in nightly_commands(newest_run(), night, previous_night(night)):
        if code := run_script(words):
            raise RuntimeError(f"{words[0]} ended with exit code {code}; its message is above")


def newest_run() -> Path:
    """The run that was finished last: summary.json is the last file that a trainer writes."""
    finished = sorted(Path("runs").glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise RuntimeError("runs/ has no finished run yet; train one first")
    return finished[-1].parent


def previous_night(night: Path) -> Path | None:
    """The newest evaluation of an earlier night; None in the first."""
    nights = sorted(
        path.parent for path in night.parent.glob("*/evaluation/metrics.json") if path.parts[-3] < night.name
    )
    return nights[-1] if nights else None


def nightly_commands(
    run: Path, night: Path, before: Path | None, images: int = 32, encoders: str = "clip"
) -> list[tuple[str, ...]]:
    """The scripts' command lines of one night, whose folder gets images/, evaluation/ and comparison/."""
    import yaml  # of the image

    settings = yaml.safe_load((run / "config.yaml").read_text())
    night.mkdir(parents=True, exist_ok=True)
    (night / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in validation_prompts(settings)))
    is_lora = (run / "pytorch_lora_weights.safetensors").exists()
    options = {
        "--lora" if is_lora else "--pretrained_model_name_or_path": run,
        "--prompts_file": night / "prompts.txt",
        "--num_images": images,
        "--num_inference_steps": settings["validation_inference_steps"],
        "--guidance_scale": settings["validation_guidance_scale"],
        "--output_dir": night / "images",
    }
    generate = ("generate.py", *(str(word) for pair in options.items() for word in pair))
    evaluate = ("evaluate.py", "--overwrite", "--encoders", encoders, "--generated", f"{night}/images")
    evaluate += ("--output_dir", f"{night}/evaluation")
    compare = ("evaluate.py", "--overwrite", "--compare", str(before), f"{night}/evaluation")
    compare += ("--output_dir", f"{night}/comparison")
    return [generate, evaluate, *([compare] if before else [])]


def validation_prompts(settings: dict[str, Any]) -> list[str]:
    """What a run was validated with: its prompts, its instance prompt, or else the first captions of its dataset."""
    prompts = settings.get("validation_prompt") or [settings.get("instance_prompt")]
    if not prompts[0]:
        folders = settings["train_data_dir"]  # one, or several with their repeats, as data/shoes:3
        data = re.sub(r":\d+$", "", folders[0] if isinstance(folders, list) else folders)
        tables = [table for split in ("val", "train") if (table := Path(data, split, "captions.json")).exists()]
        if not tables:  # of a bucket or the hub
            raise RuntimeError(f"{data} holds no captions here; train with --validation_prompt, which the nights draw")
        captions = json.loads(tables[0].read_text())
        prompts = list(dict.fromkeys(captions.values()))[:4]
    return [" ".join(prompt.split()) for prompt in prompts]


# What `modal run cloud/modal_app.py::NAME -- …` calls on the user's machine.


@app.local_entrypoint()
def prepare(*words: str) -> None:
    start("prepare", run_prepare, words)


@app.local_entrypoint()
def train(*words: str) -> None:
    start("train", run_train, words)


@app.local_entrypoint()
def generate(*words: str) -> None:
    args = read_words("generate", words)
    commands = split_command(tuple(args.command), args.containers)
    exit_after_error(run_generate_set.spawn(args.gpu, commands).get(), args.command)


@app.local_entrypoint()
def evaluate(*words: str) -> None:
    start("evaluate", run_evaluate, words)


@app.local_entrypoint()
def nightly() -> None:
    run_nightly.spawn().get()


def start(name: str, function: modal.Function, words: tuple[str, ...]) -> None:
    """Run the command in the cloud; with `modal run --detach` it goes on when this machine is switched off."""
    args = read_words(name, words)
    exit_after_error(function.with_options(gpu=args.gpu).spawn(*args.command).get(), args.command)


def read_words(name: str, words: tuple[str, ...]) -> argparse.Namespace:
    """The script with its command line, and what stands before it: --gpu, for generate --containers."""
    parser = argparse.ArgumentParser(f"modal run cloud/modal_app.py::{name} --", allow_abbrev=False)
    parser.add_argument("--gpu", default=FUNCTIONS[name].get("gpu"), help="such as L4, A100-80GB, H100 or H100:4")
    if name == "generate":
        parser.add_argument("--containers", type=up_to_100, default=1, metavar="N", help="that share the images")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="SCRIPT …", help="a script and its command line")
    args = parser.parse_args(words)
    if not args.command:
        parser.error("no script; `-- train_lora.py --max_train_steps 3000`")
    return args


def up_to_100(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 100):
        raise argparse.ArgumentTypeError(f"{text}: expected 1 to 100")
    return int(text)


def exit_after_error(code: int, command: list[str]) -> None:
    if code:
        sys.exit(f"modal_app.py: {command[0]} ended with exit code {code}; its message is above")
