import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
DEVICES = {"cpu": "cpu", "cpu_2proc": "cpu", "mps": "mps"}  # the others are for NVIDIA GPUs
HERE = ("cpu", "cpu_2proc")  # what this machine has; other devices are simulated, which takes longer
LAUNCHED = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in HERE else pytest.mark.very_slow)
    for path in CONFIGS
]
SCRIPT = """
import torch
from utils import devices
accelerator, precision = devices.start_accelerator()  # as each script starts
state = accelerator.state
all_ranks = int(accelerator.reduce(torch.tensor([accelerator.process_index])))
seen = state.distributed_type.value, state.num_processes, state.mixed_precision, state.device.type
line = " ".join(map(str, (*seen, state.local_process_index, all_ranks)))
print(line + "\\n", end="")  # in one piece: several processes write to one pipe
accelerator.end_training()
"""


def load(path: Path) -> ClusterConfig:
    return load_config_from_file(str(path))  # refuses unknown keys


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_every_kind_of_hardware_has_a_config_and_a_row_in_the_docs():
    table = re.findall(r"^\| `(\w+)\.yaml`", (ROOT / "docs/setup.md").read_text(), re.M)
    assert sorted(table) == [path.stem for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_loads_it_and_knows_every_key(path):
    config = load(path)
    expected = {"t4": "fp16", "p100": "fp16", "v100": "fp16", "mps": "no", "cpu": "no", "cpu_2proc": "no"}
    assert config.mixed_precision == expected.get(path.stem, "bf16")
    assert not config.deepspeed_config
    assert isinstance(yaml.safe_load(path.read_text())["distributed_type"], str)  # an unquoted NO is YAML for False


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_first_line_alone_says_what_it_is_for(path):
    comments = [line.startswith("#") for line in path.read_text().splitlines()]
    assert comments[0] and not any(comments[1:])


def launch(path: Path, script: Path, kind: str, per_machine: int) -> list[str]:
    """What the processes print, each in a line, that one `accelerate launch` for each machine of the config starts."""
    machines = load(path).num_machines
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--config_file", path]
    command += ["--num_processes", str(machines * per_machine), "--main_process_port", str(free_port())]
    folders = [str(ROOT)] if kind == "cpu" else [str(ROOT / "tests/simulated_device"), str(ROOT)]
    environment = os.environ | {"SIMULATED_DEVICE": f"{kind}:{per_machine}", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "CUDA_VISIBLE_DEVICES": ""}
    ranks = [["--machine_rank", str(rank)] for rank in range(machines)] if machines > 1 else [[]]
    lines, processes = [], []
    for rank in ranks:
        full = [*command, *rank, script]
        processes.append(subprocess.Popen(full, env=environment, stdout=subprocess.PIPE, text=True))
    for process in processes:
        lines += process.communicate(timeout=180)[0].splitlines()
        assert process.returncode == 0
    return lines


@pytest.mark.parametrize("path", LAUNCHED)
def test_what_it_launches_is_what_it_says(tmp_path, path):
    """Each process prints what Accelerator sees there: on this machine's CPU, or on simulated GPUs."""
    config, kind = load(path), DEVICES.get(path.stem, "cuda")
    per_machine = 2 if config.num_machines > 1 else config.num_processes  # 16 processes are many for one machine
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    count = config.num_machines * per_machine
    distributed = "MULTI_CPU" if path.stem == "cpu_2proc" else config.distributed_type.value
    state = f"{distributed} {count} {config.mixed_precision} {kind}"
    expected = [f"{state} {local} {sum(range(count))}" for local in range(per_machine)] * config.num_machines
    assert sorted(launch(path, script, kind, per_machine)) == sorted(expected)
