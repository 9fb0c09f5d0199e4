"""The pinned packages: what a sync by uv or pip-tools, which looks for no requirement by itself, would install."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["training", "cloud", "cuda", "serve", "dev"]
MACHINES = {("linux", "x86_64"): "Linux", ("linux", "aarch64"): "Linux", ("darwin", "arm64"): "Darwin"}
# What all wheels of torch 2.13.0 in the Python package registry declare for Linux (`pip install --dry-run --report`).
CUDA_OF_TORCH = """cuda-toolkit==13.0.3 cuda-bindings>=13.0.3,<14 nvidia-cudnn-cu13==9.20.0.48
    nvidia-cusparselt-cu13==0.8.1 nvidia-nccl-cu13==2.29.7 nvidia-nvshmem-cu13==3.4.5 triton==3.7.1"""
TOOLKIT = "cublas cuda-runtime cufft cufile cuda-cupti curand cusolver cusparse nvjitlink cuda-nvrtc nvtx"


def read(name: str) -> list[Requirement]:
    lines = (line.split(" #")[0].strip() for line in (ROOT / f"requirements-{name}").read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def pins(names: list[str], **environment: str) -> dict[str, str]:
    """{package: version} that these files install in an environment, by default this one."""
    found: dict[str, str] = {}
    for pin in (pin for name in names for pin in read(f"{name}.txt")):
        if pin.marker is None or pin.marker.evaluate(environment):
            (only,) = pin.specifier
            assert found.setdefault(pin.name, only.version) == only.version, f"two versions of {pin.name}"
    return found


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize(("system", "machine"), MACHINES)
def test_one_lock_serves_every_python_and_platform(system, machine, version):
    platform = {"sys_platform": system, "platform_machine": machine, "platform_system": MACHINES[system, machine]}
    environment = {**platform, "python_version": version, "python_full_version": f"{version}.4"}
    found = pins(NAMES, **environment)  # one version of a package in all files, so they go together
    for name in NAMES:
        for wanted in read(f"{name}.in"):
            if wanted.marker is None or wanted.marker.evaluate(environment):
                assert wanted.specifier.contains(found[canonicalize_name(wanted.name)]), wanted
    libraries = {name for name in found if name.startswith(("cuda-", "nvidia-")) or name == "triton"}
    declared = [Requirement(word) for word in CUDA_OF_TORCH.split()] if system == "linux" else []
    assert all(wanted.specifier.contains(found[wanted.name]) for wanted in declared)
    toolkit = {f"nvidia-{part}" for part in TOOLKIT.split()} | {"cuda-pathfinder"} if declared else set()
    assert libraries == toolkit | {wanted.name for wanted in declared}
    assert "torch" in pins(["training"], **environment)
    others = pins(["cloud", "cuda", "serve", "dev"], **environment)
    assert "torch" not in others and not libraries & set(others), "they are added to any build of torch"


def test_a_sync_leaves_no_installed_package_without_what_it_requires():
    found = pins(["training", "cloud", "dev"])
    waiting = [(wanted.name, wanted.extras) for name in ("training", "cloud", "dev") for wanted in read(f"{name}.in")]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        for line in metadata.requires(name) or []:
            wanted = Requirement(line)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                key = canonicalize_name(wanted.name)
                assert wanted.specifier.contains(found[key], prereleases=True), f"{name} needs {wanted}"
                if (key, *sorted(wanted.extras)) not in seen:
                    seen.add((key, *sorted(wanted.extras)))
                    waiting.append((wanted.name, wanted.extras))
    assert len(seen) > 100


@pytest.mark.parametrize("page", ["docs/setup.md", "cloud/Dockerfile"])
def test_another_build_of_torch_is_not_joined_by_the_libraries_of_cuda_13(page):
    (pattern,) = set(re.findall(r"\^\(cuda\|[^)]*\)", (ROOT / page).read_text()))
    removed = {pin.name for pin in read("training.txt") if re.match(pattern, pin.name)}
    linux = pins(["training"], sys_platform="linux", platform_machine="x86_64", platform_system="Linux")
    mac = pins(["training"], sys_platform="darwin", platform_machine="arm64", platform_system="Darwin")
    assert removed == set(linux) - set(mac) and len(removed) > 15


def test_uv_is_told_nothing_that_differs_from_what_the_registry_says():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"] == {"package": False}
