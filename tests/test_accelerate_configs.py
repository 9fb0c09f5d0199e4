import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
ACCELERATE = Path(sys.executable).with_name("accelerate")
SCRIPT = """
import torch
from accelerate import Accelerator
from utils import devices
accelerator = Accelerator(cpu=devices.pick_device().type == "cpu")
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]))
if accelerator.is_main_process:
    print("result", accelerator.num_processes, accelerator.mixed_precision, accelerator.device.type, total.item())
accelerator.end_training()
"""


def test_every_kind_of_hardware_has_a_config():
    names = "a100 cpu cpu_2proc h100 mps multi_gpu multi_node p100 t4 v100".split()
    assert [path.stem for path in CONFIGS] == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_loads_it_and_knows_every_key(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert not config.fsdp_config and not config.deepspeed_config  # the trainers sum gradients by themselves
    expected = {"t4": "fp16", "p100": "fp16", "v100": "fp16", "mps": "no", "cpu": "no", "cpu_2proc": "no"}
    assert config.mixed_precision == expected.get(path.stem, "bf16")
    assert isinstance(yaml.safe_load(path.read_text())["distributed_type"], str)  # an unquoted NO is YAML for False


@pytest.mark.slow
@pytest.mark.parametrize(("name", "result"), [("cpu", "1 no cpu 1.0"), ("cpu_2proc", "2 no cpu 3.0")])
def test_it_starts_as_many_processes_as_it_says(tmp_path, name, result):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [
        ACCELERATE,
        "launch",
        "--config_file",
        f"accelerate_configs/{name}.yaml",
        "--main_process_port",
        "0",
        script,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"result {result}" in done.stdout
