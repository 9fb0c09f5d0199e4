import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import check_environment
from utils import devices

ROOT = Path(__file__).resolve().parent.parent
TITLES = [section.title for section in check_environment.SECTIONS]


def run(*words, hide=()):
    """The script as a user runs it, on a machine where the packages in `hide` are missing."""
    blocked = f"import sys, runpy; sys.modules.update(dict.fromkeys({list(hide)!r})); "
    code = blocked + "sys.argv[0] = 'check_environment.py'; runpy.run_path('check_environment.py', run_name='__main__')"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}  # or each run would wait for a hub that may not answer
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_this_machine_is_ready_and_every_section_is_shown(tmp_path):
    (tmp_path / "shoes/train/images").mkdir(parents=True)
    (tmp_path / "shoes/train/images/1.png").touch()
    (tmp_path / "shoes/metadata.json").write_text('{"counts": {"train": 1}}')
    (tmp_path / "empty/train/images").mkdir(parents=True)
    (tmp_path / "empty/metadata.json").write_text('{"counts": {"train": 0}}')
    (tmp_path / "broken/train/images").mkdir(parents=True)
    (tmp_path / "broken/metadata.json").write_text("junk")
    result = run("--data_dir", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    for number, title in enumerate(TITLES, 1):
        assert f"\n{number}. {title}\n" in result.stdout
    assert "[OK] data/shoes" in result.stdout and "train 1" in result.stdout
    assert "[ERROR] data/broken" in result.stdout and "--verify" in result.stdout
    assert "[ERROR] data/empty" in result.stdout and "prepare_dataset.py" in result.stdout
    assert "[OK] components" in result.stdout and "accelerate launch --config_file" in result.stdout
    assert "configs/demo_lora.yaml --train_data_dir" in result.stdout  # the hub is not asked: see `run`
    assert result.stdout.rstrip().endswith("(the hub can't be reached and the cache doesn't have it).")


def test_the_recommended_command_can_run_here_now():
    launch, batch = "accelerate launch", "--train_batch_size 2"
    usual = check_environment.recommend_command(launch, batch, Path("data/casual_shoes"), True)
    assert usual == "accelerate launch train_lora.py --train_batch_size 2"
    other = check_environment.recommend_command(launch, batch, Path("data/boots"), False)
    assert other.endswith(
        "train_lora.py --config configs/demo_lora.yaml --train_data_dir data/boots --output_dir runs/boots"
    )
    first, second, last = check_environment.recommend_command(launch, batch, None, True).split(" && ")
    assert "demo/catalogue.py" in first and "--catalogue data/drawn_catalogue" in second and "data/drawn " in last
    needs = check_environment.describe_readiness(True, None, True)
    assert "needs a dataset (python3 prepare_dataset.py" in needs
    assert check_environment.describe_readiness(True, Path("data/casual_shoes"), True) == "Ready to train."
    hub = [check_environment.ok("hub", ""), check_environment.info("cached_models", "none")]
    assert check_environment.has_default_model(hub) and not check_environment.has_default_model(hub[1:])


@pytest.mark.slow
def test_json_is_one_object_and_nothing_else():
    result = run("--json")
    found = json.loads(result.stdout)
    assert result.returncode == 0 and found["ready"] is True
    assert {"name", "status", "critical", "detail", "fix"} == set(found["checks"][0])
    critical = {check["name"] for check in found["checks"] if check["critical"]}
    assert {"python", "torch", "device", "diffusers", "components"} <= critical and "runs_disk" not in critical
    assert {check["status"] for check in found["checks"]} <= {"ok", "info", "error"}
    recommended = found["recommendation"]
    assert recommended["effective_batch_size"] == 16 and "--mixed_precision no" in recommended["command"]
    assert (ROOT / recommended["accelerate_config"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "hide",
    [
        pytest.param(["peft"], marks=pytest.mark.very_slow),
        ["diffusers", "psutil"],
        ["torch", "transformers", "diffusers", "accelerate", "omegaconf", "numpy"],
    ],
)
def test_missing_packages_are_named_with_the_command_that_installs_them(hide):
    result = run("--json", hide=hide)
    found = json.loads(result.stdout)
    failed = {check["name"]: check for check in found["checks"] if check["status"] == "error"}
    assert result.returncode == 1 and not found["ready"]
    for name in set(hide) & {"peft", "diffusers", "torch", "transformers", "accelerate"}:
        assert failed[name]["critical"] and "pip install -r requirements-training.txt" in failed[name]["fix"]
    assert any(check["name"] == "python" and check["status"] == "ok" for check in found["checks"])


def find_python(version: str) -> str | None:
    """An interpreter that starts: pyenv has names on the PATH also for versions that are not installed or chosen."""
    paths = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    works = (path for path in paths if path and not subprocess.run([path, "-c", ""], capture_output=True).returncode)
    return next(works, None)


@pytest.mark.parametrize("version", ["3.8", "3.10"])
def test_an_older_python_is_named_as_too_old(version):
    older = find_python(version)
    if older is None:
        pytest.skip(f"no Python {version} on this machine")
    done = subprocess.run([older, "check_environment.py", "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    first = json.loads(done.stdout)["checks"][0]
    assert first["name"] == "python" and "too old" in first["detail"] and "3.11 to 3.14" in first["fix"]


def test_an_intel_gpu_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    last = check_environment.check_torch(Path())[-1]
    assert last.status == "error" and last.critical and "XPU" in last.detail and "ACCELERATE_USE_CPU" in last.fix


def test_a_gpu_without_kernels_is_an_error_with_a_way_out(monkeypatch):
    fault = "CUDA error: no kernel image is available for execution on the device"
    monkeypatch.setattr(devices, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(devices, "kernel_error", lambda device: fault)
    monkeypatch.setattr(devices, "describe_device", lambda device: "Tesla P100 (sm_60)")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    last = check_environment.check_torch(Path())[-1]
    assert last.status == "error" and last.critical and "CUDA 12.6" in last.fix
    assert "Tesla P100" in last.detail and "sm_75" in last.detail and fault in last.detail


def test_half_precision_that_breaks_is_reported_with_the_consequence(monkeypatch):
    monkeypatch.setattr(devices, "probe_failure", lambda device, dtype: "vae_decode gives NaN or infinity")
    found = check_environment.check_precision(Path())
    assert [check.status for check in found] == ["info"] * 3 and found[0].detail == "vae_decode gives NaN or infinity"


@pytest.mark.slow
def test_tokens_are_never_printed(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secret_value")
    result = run()
    assert "present: Hugging Face, Weights & Biases" in result.stdout
    assert "secret_value" not in result.stdout + result.stderr


def test_what_is_for_information_only_never_stops_training(monkeypatch):
    def broken(data_dir):
        raise PermissionError("no access")

    broken.__name__ = "check_hub"
    (found,) = check_environment.run_check(broken, Path("data"))
    assert found.status == "error" and not found.critical and "PermissionError: no access" in found.detail


def test_several_gpus_are_all_used_at_the_precision_they_have(monkeypatch):
    for name, value in {"device_count": 4, "get_device_name": "Tesla T4"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(devices, "working_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(devices, "describe_device", lambda device: "Tesla T4 (sm_75)")
    monkeypatch.setattr(devices, "device_memory", lambda device: (16 * 2**30, 15 * 2**30))
    monkeypatch.setattr(devices, "probe_failure", lambda device, dtype: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    found = check_environment.recommend(Path("data/casual_shoes"), True)
    assert found["effective_batch_size"] == 16 and found["mixed_precision"] == "fp16"
    assert "models" not in found  # of fp16 nothing is known
    assert "multi_gpu.yaml --mixed_precision fp16 --num_processes 4 " in found["command"]


def test_the_models_that_fit_are_named():
    small, middle, large, all_ = (set(check_environment.fitting_models(gib)) for gib in (7.8, 11.8, 23.6, 79.2))
    rounded = "with --quantize_base nf4 --quantize_text_encoder nf4"
    assert small == {
        "Stable Diffusion 1.x",
        "Stable Diffusion XL with --num_validation_images 0",
        f"Z-Image {rounded}",
        f"FLUX.2 Klein {rounded}",
    }
    assert {"Stable Diffusion XL", "Z-Image with --quantize_base int8", "FLUX.2 Klein"} < middle - small
    assert large - middle == {
        "Z-Image",
        f"Qwen-Image {rounded} --num_validation_images 0",
        "Qwen-Image with --quantize_base nf4",
        "FLUX.1 with --quantize_base int8",
    }
    assert all_ - large == {"Qwen-Image with --quantize_base int8", "Qwen-Image", "FLUX.1"}


def test_an_env_file_that_others_can_read_is_named_with_the_command_that_closes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ".env"
    path.touch()
    for mode, is_open in ((0o640, True), (0o604, True), (0o600, False)):
        path.chmod(mode)
        fixes = [check.fix for check in check_environment.check_env_files(tmp_path)]
        assert (f"chmod 600 {path}" in fixes) == is_open
