"""Check this machine before training on it: each fault with the command that repairs it, then a recommendation.

    python3 check_environment.py
    python3 check_environment.py --data_dir data --json

The exit code is 0 if every critical check passes, else 1. Packages are imported inside the checks, so that the script
also runs where they are missing or where Python is too old.
"""

from __future__ import annotations  # so that an older Python can start this script and report that it is too old

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from utils import cli

if sys.prefix == sys.base_prefix:  # outside a virtual environment, where pip may not be allowed to install
    PIP = "make setup && .venv/bin/python -m pip"
else:
    PIP = f"{min(sys.executable, os.path.relpath(sys.executable), key=len)} -m pip"
INSTALL, INSTALL_CUDA = f"{PIP} install -r requirements-training.txt", f"{PIP} install -r requirements-cuda.txt"
PREPARE = 'python3 prepare_dataset.py --catalogue data/raw --category "Casual Shoes" --output_dir data/casual_shoes'
USUAL = Path("data/casual_shoes")  # the default of train_lora.py
GIB = 2**30
EFFECTIVE_BATCH = 16  # the default recipe: 2 x 8
# GiB that a LoRA of rank 8 takes in bf16 at the model's own size, one sample at once, as --dry_run estimates: of a
# family (see families/names.py), with flags of train_lora.py
ROUNDED = "--quantize_base nf4 --quantize_text_encoder nf4"
NEEDED = {
    ("sd1", ""): 2.7,
    ("sdxl", "--num_validation_images 0"): 5.6,
    ("sdxl", ""): 8.2,
    ("z_image", ROUNDED): 6.5,
    ("z_image", "--quantize_base nf4"): 7.7,
    ("z_image", "--quantize_base int8"): 9.2,
    ("z_image", ""): 14.9,
    ("flux2_klein", ROUNDED): 5.7,
    ("flux2_klein", "--quantize_base nf4"): 7.7,
    ("flux2_klein", ""): 10.6,
    ("qwen_image", f"{ROUNDED} --num_validation_images 0"): 12.7,
    ("qwen_image", "--quantize_base nf4"): 17.4,
    ("qwen_image", "--quantize_base int8"): 26.5,
    ("qwen_image", ""): 45.4,
    ("flux1", "--quantize_base nf4"): 9.5,
    ("flux1", "--quantize_base int8"): 14.8,
    ("flux1", ""): 25.7,
}


class Check(NamedTuple):
    name: str
    status: str  # ok, info, error
    detail: str
    fix: str = ""
    critical: bool = False


def ok(name: str, detail: str) -> Check:
    return Check(name, "ok", detail)


def info(name: str, detail: str, fix: str = "") -> Check:
    return Check(name, "info", detail, fix)


def error(name: str, detail: str, fix: str, critical: bool = True) -> Check:
    return Check(name, "error", detail, fix, critical)


def describe(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}".rstrip(": ")


def check_package(name: str) -> Check:
    """Import it: an installed package can still fail to load, with whatever error its binary raises."""
    package = {"PIL": "pillow", "dotenv": "python-dotenv"}.get(name, name)
    try:
        module = importlib.import_module(name)
        return ok(name, f"{package} {getattr(module, '__version__', None) or importlib.metadata.version(package)}")
    except Exception as fault:
        missing = isinstance(fault, ModuleNotFoundError)
        repair = INSTALL if missing else f"{PIP} install --force-reinstall {package}"
        return error(name, f"{package} can't be imported: {describe(fault)}", repair)


# The checks of the sections. Each gets --data_dir and returns what it found.


def check_python(_: Path) -> list[Check]:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        wrong = "old" if sys.version_info < (3, 11) else "new"
        fix = "install Python 3.11 to 3.14, then: make setup PYTHON=<that Python>"
        return [error("python", f"Python {version} is too {wrong}", fix)]
    where = "a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    return [ok("python", f"Python {version} on {platform.system()} {platform.machine()}, in {where}")]


def check_torch(_: Path) -> list[Check]:
    import torch

    has_cuda, mps = torch.cuda.is_available(), torch.backends.mps
    found = [info("cuda", f"built for CUDA {torch.version.cuda or '-'}, available: {has_cuda}")]
    found.append(info("mps", f"built: {mps.is_built()}, available: {mps.is_available()}"))
    if torch.version.hip:
        found.append(info("rocm", f"built for ROCm {torch.version.hip}, which is not tested with these scripts"))
    if platform.system() == "Darwin" and platform.machine() == "arm64" and not mps.is_available():
        found.append(error("mps_available", "this Mac has an Apple GPU that torch can't use", INSTALL, critical=False))
    if shutil.which("nvidia-smi") and not has_cuda:
        fix = "install torch's CUDA build for your driver (docs/setup.md, `NVIDIA`)"
        detail = "there is an NVIDIA driver, but torch can't use the GPU"
        found.append(error("cuda_available", detail, fix, critical=False))
    return [*found, check_device()]


def check_device() -> Check:
    import torch

    from utils import devices

    try:
        device = devices.pick_device()
    except cli.UserError as refused:
        return error("device", str(refused), "export ACCELERATE_USE_CPU=true")
    fault = devices.kernel_error(device)
    if not fault:
        return ok("device", f"{devices.describe_device(device)}: a matrix product computed there is right")
    detail = f"this build of torch can't compute on {devices.describe_device(device)}: {fault}"
    fix = "close other programs that use the GPU, or restart; `--debug` shows the complete error"
    if device.type == "cuda":
        detail += f" (this wheel has kernels for {', '.join(torch.cuda.get_arch_list())})"
    if "no kernel image" in fault:
        fix = "install torch's CUDA 12.6 build, which has kernels from sm_50 on (docs/setup.md, `Older NVIDIA GPUs`)"
    return error("device", detail, fix)


def check_precision(_: Path) -> list[Check]:
    """The accuracy of half precision on this device, and the precision that follows from it."""
    import torch

    from utils import devices

    device = devices.pick_device()
    if devices.kernel_error(device):
        return []
    found = []
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        if failure := devices.probe_failure(device, dtype):
            found.append(info(name, failure))
        elif name == "bfloat16" and not devices.has_real_bf16(device):
            found.append(info(name, "agrees with float32, but this GPU only emulates it, which is slow"))
        else:
            errors = ", ".join(f"{k} {v:.2%}" for k, v in devices.probe_dtype(device, dtype).items())
            found.append(ok(name, f"agrees with float32 (error: {errors})"))
    return [*found, info("precision", devices.choose_precision(device).reason)]


def check_accelerate(_: Path) -> list[Check]:
    from accelerate.commands.config.config_args import default_json_config_file, default_yaml_config_file

    own = [path for path in (default_yaml_config_file, default_json_config_file) if Path(path).is_file()]
    if own:
        return [info("accelerate_config", f"{own[0]} is used if no --config_file is given")]
    return [info("accelerate_config", "no default config: choose one of accelerate_configs/ with --config_file")]


def try_tensorboard() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            writer.add_scalar("x", 1.5, 3)
        events = EventAccumulator(folder).Reload().Scalars("x")
    assert events[0].value == 1.5, "a value written can't be read back"


def try_wandb() -> None:
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, project="check", settings=wandb.Settings(silent=True))
        run.log({"x": 1.5})
        run.finish()
        assert list(Path(folder).rglob("*.wandb")), "an offline run left no file"


def try_xformers() -> None:
    import torch
    from xformers.ops import memory_efficient_attention

    q = torch.randn(1, 64, 4, 32, device="cuda", dtype=torch.float16)
    assert torch.isfinite(memory_efficient_attention(q, q, q)).all(), "its attention gives NaN"


def try_bitsandbytes() -> None:
    import bitsandbytes
    import torch

    from utils import devices

    weight = torch.nn.Parameter(torch.ones(4096, device=devices.pick_device()))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    assert bool((weight < 1).all()), "its optimizer changed nothing"


OPTIONAL = {
    "tensorboard": (try_tensorboard, "the default tracker", INSTALL),
    "wandb": (try_wandb, "--report_to wandb", INSTALL),
    "xformers": (try_xformers, "an alternative to SDPA attention", ""),
    "bitsandbytes": (try_bitsandbytes, "8-bit AdamW", INSTALL_CUDA),
}


def check_optional(_: Path) -> list[Check]:
    found = []
    for name, (attempt, use, install) in OPTIONAL.items():
        # Without an NVIDIA GPU the CUDA packages do nothing.
        fix = install if install == INSTALL or shutil.which("nvidia-smi") else ""
        if importlib.util.find_spec(name) is None:
            found.append(info(name, f"not installed; only for {use}", fix))
            continue
        try:
            attempt()
            found.append(ok(name, f"{importlib.metadata.version(name)}, works ({use})"))
        except Exception as fault:
            found.append(info(name, f"installed, but does not work here: {describe(fault)}", fix))
    return found


def check_codecs(_: Path) -> list[Check]:
    from PIL import features

    missing = [codec for codec in ("jpg", "zlib", "webp") if not features.check(codec)]
    return [error("codecs", f"Pillow was built without {', '.join(missing)}", INSTALL)] if missing else []


def check_memory(_: Path) -> list[Check]:
    found = []
    if importlib.util.find_spec("psutil"):
        import psutil

        memory = psutil.virtual_memory()
        detail = f"{memory.total / GIB:.1f} GiB of RAM, {memory.available / GIB:.1f} GiB free"
        if memory.total < 12 * GIB:
            advice = "use --train_batch_size 1 and close other programs"
            found.append(info("ram", f"{detail}: little for Stable Diffusion 1.5", advice))
        else:
            found.append(ok("ram", detail))
    if importlib.util.find_spec("torch"):
        from utils import devices

        device = devices.working_device()
        if device.type != "cpu":
            total, free = devices.device_memory(device)
            found.append(info("device_memory", f"{total / GIB:.1f} GiB on the device, {free / GIB:.1f} GiB free"))
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return [*found, check_disk("cache_disk", cache, 10), check_disk("runs_disk", Path("runs").resolve(), 5)]


def check_disk(name: str, path: Path, needed: int) -> Check:
    """The free space of the disk on which the path is, or would be created; `needed` is in GiB."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / GIB
    if free >= needed:
        return ok(name, f"{free:.0f} GiB free under {path}")
    fix = "free some space, or point HF_HOME and --output_dir to a larger disk"
    return error(name, f"{free:.1f} GiB free under {path}; {needed} GiB are needed", fix, critical=False)


def check_datasets(data_dir: Path) -> list[Check]:
    if not data_dir.is_dir():
        return [info("data", f"--data_dir {data_dir}: no such folder, so no dataset is prepared yet", PREPARE)]
    found = [check_dataset(folder, counts) for folder, counts in find_datasets(data_dir).items()]
    return found or [info("data", f"--data_dir {data_dir}: holds no prepared dataset", PREPARE)]


def find_datasets(data_dir: Path) -> dict[Path, dict[str, int]]:
    """The prepared datasets in a folder, or the one that it is, with the number of images in each split."""
    found = {}
    folders = sorted(path for path in data_dir.iterdir() if path.is_dir()) if data_dir.is_dir() else []
    for folder in (data_dir, *folders):
        images = {split: folder / split / "images" for split in ("train", "val", "test")}
        if counts := {split: len(list(path.glob("*.png"))) for split, path in images.items() if path.is_dir()}:
            found[folder] = counts
    return found


def check_dataset(folder: Path, counts: dict[str, int]) -> Check:
    """Compare the number of images in each split with the dataset's metadata.json."""
    name = f"data/{folder.name}"
    detail = f"{folder}: " + ", ".join(f"{split} {count}" for split, count in counts.items())
    try:
        promised = json.loads((folder / "metadata.json").read_text("utf-8"))["counts"]
    except (OSError, ValueError, KeyError, TypeError):
        promised = {}
    if any(promised.get(split) != count for split, count in counts.items()):
        verify = f"python3 prepare_dataset.py --verify {folder}"
        return error(name, f"{detail}: differs from its metadata.json", verify, critical=False)
    if not counts.get("train"):
        return error(name, f"{detail}: nothing to train on", PREPARE, critical=False)
    return ok(name, detail)


def check_components(_: Path) -> list[Check]:
    """Every part of Stable Diffusion, small: a training step of a LoRA on random images and captions."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextConfig, CLIPTextModel

    from utils import devices

    device = devices.working_device()
    devices.seed_everything(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=100, bos_token_id=98, eos_token_id=99, **size)).to(device)
    vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=8).to(device)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).to(device)
    for part in (text, vae, unet):
        part.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    latent = vae.encode(torch.randn(2, 3, 8, 8).to(device)).latent_dist.mean
    context = text(torch.randint(0, 100, (2, 8)).to(device)).last_hidden_state
    noise, steps = torch.randn(latent.shape).to(device), torch.tensor([10, 900], device=device)
    noisy = DDPMScheduler().add_noise(latent, noise, steps)
    loss = (unet(noisy, steps, context).sample - noise).square().mean()
    loss.backward()
    norm = sum(p.grad.norm().item() for p in unet.parameters() if p.requires_grad)
    assert norm > 0 and loss.isfinite(), f"loss {loss.item()}, gradient {norm}"
    detail = f"CLIP, VAE, UNet and LoRA built; forward and backward on {device.type}: loss {loss.item():.3f}"
    return [ok("components", detail)]


def check_hub(_: Path) -> list[Check]:
    """For information: a local folder, or the demo model, needs no hub."""
    from huggingface_hub import HfApi, get_token, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from families.models import DEFAULT_MODEL

    try:
        HfApi(token=False).model_info(DEFAULT_MODEL, timeout=3)
        answer = ok("hub", "the Hugging Face hub answers, and has the default model")
    except Exception as fault:
        fix = "train from a local folder or with --pretrained_model_name_or_path demo, or repair the connection"
        answer = info("hub", f"the hub can't be reached ({type(fault).__name__})", fix)
    cached: list[str] = []
    with contextlib.suppress(CacheNotFound):
        cached = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    tokens = {"Hugging Face": get_token(), "Weights & Biases": os.environ.get("WANDB_API_KEY")}
    present = ", ".join(name for name, token in tokens.items() if token)
    return [answer, info("cached_models", ", ".join(cached) or "none"), info("tokens", f"present: {present or 'none'}")]


def check_env_files(_: Path) -> list[Check]:
    """The files with secrets that others on this machine can read."""
    found = {path.resolve() for path in cli.ENV_FILES if path.is_file() and path.stat().st_mode & 0o044}
    return [info("env_file", f"{path} can be read by others on this machine", f"chmod 600 {path}") for path in found]


def has_default_model(checks: list[Check]) -> bool:
    """Whether the base model of the default recipe can be loaded: from the cache, or from a hub that answers."""
    from families.models import DEFAULT_MODEL

    by_name = {check.name: check for check in checks}
    cached = by_name["cached_models"].detail.split(", ") if "cached_models" in by_name else []
    return DEFAULT_MODEL in cached or ("hub" in by_name and by_name["hub"].status == "ok")


class Section(NamedTuple):
    title: str
    packages: list[str]  # all must load before the checks can run
    checks: list[Callable[[Path], list[Check]]]


SECTIONS = [
    Section("Python", [], [check_python]),
    Section("PyTorch and the device", ["torch"], [check_torch, check_precision]),
    Section("Diffusers and Transformers", ["diffusers", "transformers"], []),
    Section("Accelerate", ["accelerate"], [check_accelerate]),
    Section("PEFT", ["peft"], []),
    Section("Optional packages", [], [check_optional]),
    Section("Datasets and Pillow", ["datasets", "PIL", "omegaconf", "rich", "safetensors", "scipy"], [check_codecs]),
    Section("Memory and disk", [], [check_memory]),
    Section("Prepared datasets", [], [check_datasets]),
    Section("Stable Diffusion components", [], [check_components]),
    Section("Hub and tokens", ["dotenv"], [check_hub, check_env_files]),
]
NOT_CRITICAL = ("precision", "optional", "memory", "datasets", "hub", "env_files")


def run_check(check: Callable[[Path], list[Check]], data_dir: Path, debug: bool = False) -> list[Check]:
    """A check that raises counts as failed, and the others still run."""
    name = check.__name__.replace("check_", "")
    critical = name not in NOT_CRITICAL
    try:
        found = check(data_dir)
        return [one._replace(critical=critical) if one.status == "ok" else one for one in found]
    except ImportError as fault:
        return [error(name, f"needs a missing package: {fault}", INSTALL, critical)]
    except Exception as fault:
        if debug:
            traceback.print_exc()
        return [error(name, f"failed: {describe(fault)}", "run again with --debug to see where", critical)]


def run_section(section: Section, data_dir: Path, debug: bool) -> list[Check]:
    found = [check_package(name)._replace(critical=True) for name in section.packages]
    if all(package.status == "ok" for package in found):
        found += [one for check in section.checks for one in run_check(check, data_dir, debug)]
    return found


def suggest_batch(device_type: str, memory_gib: float, effective: int) -> int:
    """A micro-batch that divides the effective one: the recipe's 2 on MPS and CPU, on CUDA what should fit.

    SD 1.5 at 512, LoRA, gradient checkpointing: some 5 GiB, and half a GiB per example. A rule of thumb, not measured.
    """
    fits = 2 if device_type != "cuda" else max(1, int((memory_gib * 0.9 - 5) / 0.5))
    return max(size for size in range(1, effective + 1) if effective % size == 0 and size <= fits)


def fitting_models(memory_gib: float) -> list[str]:
    """The models whose LoRA is estimated to fit, with some room for the device itself."""
    from families.names import LABELS

    fitting = [key for key, needed in NEEDED.items() if needed + 0.5 <= 0.95 * memory_gib]
    return [f"{LABELS[family]} with {flags}" if flags else LABELS[family] for family, flags in fitting]


def suggest_config(device_type: str, gpu_name: str, memory_gib: float, count: int) -> str:
    """The file of accelerate_configs/ for this hardware."""
    import torch

    from utils import devices

    known = {"T4", "P100", "V100", "L4"} & set(re.findall(r"\w+", gpu_name))  # whole words: L40S is no L4, T400 no T4
    if device_type != "cuda":
        name = device_type
    elif count > 1:
        name = "multi_gpu"
    elif known:
        name = known.pop().lower()
    elif re.search(r"\bG?H[12]00\b", gpu_name):
        name = "h100"
    elif not devices.has_real_bf16(torch.device("cuda")):
        name = "t4"
    else:
        name = "rtx_4090" if memory_gib < 36 else "a100_40gb" if memory_gib < 60 else "a100"
    return f"accelerate_configs/{name}.yaml"


def recommend_command(launch: str, batch: str, dataset: Path | None, model: bool) -> str:
    """A line that can run here now: on drawn images without a dataset, with the demo pipeline without the model."""
    first = ""
    if dataset is None:
        catalogue, dataset = "data/drawn_catalogue", Path("data/drawn")
        first = f"python3 demo/catalogue.py --output_dir {catalogue} --num_images 300 && "
        first += f"python3 prepare_dataset.py --catalogue {catalogue} --output_dir {dataset} && "
    recipe = batch if model else "--config configs/demo_lora.yaml"
    data = "" if dataset == USUAL else f" --train_data_dir {dataset} --output_dir runs/{dataset.name}"
    return f"{first}{launch} train_lora.py {recipe}{data}"


def usable_dataset(folder: Path) -> Path | None:
    """The usual dataset if it is intact, or else the first one that is."""
    found = find_datasets(folder).items()
    usable = [dataset for dataset, counts in found if check_dataset(dataset, counts).status == "ok"]
    return USUAL if USUAL in usable else next(iter(usable), None)


def recommend(dataset: Path | None, model: bool) -> dict[str, Any]:
    """Precision and batch for the default recipe on this machine, and a command that can run now."""
    import torch

    from utils import devices

    device = devices.working_device()
    precision = devices.choose_precision(device)
    total, _ = devices.device_memory(device)
    on_cuda = device.type == "cuda"
    count = torch.cuda.device_count() if on_cuda else 1
    share = max(1, EFFECTIVE_BATCH // count)
    batch = suggest_batch(device.type, total / GIB, share)
    accumulation = share // batch
    config = suggest_config(device.type, torch.cuda.get_device_name() if on_cuda else "", total / GIB, count)
    launch = f"accelerate launch --config_file {config} --mixed_precision {precision.mixed_precision}"
    if count > 1:
        launch += f" --num_processes {count}"
    flags = f"--train_batch_size {batch} --gradient_accumulation_steps {accumulation}"
    in_bf16 = on_cuda and precision.mixed_precision == "bf16"
    models = {"models": ", ".join(fitting_models(total / GIB)) + " (estimated: docs/memory.md)"} if in_bf16 else {}
    return models | {
        "device": devices.describe_device(device),
        "mixed_precision": precision.mixed_precision,
        "reason": precision.reason,
        "train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "effective_batch_size": batch * accumulation * count,
        "accelerate_config": config,
        "command": recommend_command(launch, flags, dataset, model),
    }


def print_section(number: int, title: str, found: list[Check]) -> None:
    print(f"\n{number}. {title}", flush=True)
    for check in found:
        print(f"  [{check.status.upper()}] {check.name}: {check.detail}")
        if check.fix:
            print(f"         to repair it: {check.fix}")


def describe_readiness(ready: bool, dataset: Path | None, model: bool) -> str:
    """The last line: whether the default recipe can be trained here, and what it lacks."""
    if not ready:
        return "Not ready: repair the errors above and run this again."
    if dataset and model:
        return "Ready to train."
    lacks = [] if dataset else [f"a dataset ({PREPARE})"]
    lacks += [] if model else ["its base model (the hub can't be reached and the cache doesn't have it)"]
    return f"This machine is ready; the default recipe still needs {' and '.join(lacks)}."


def print_summary(checks: list[Check], recommendation: dict[str, Any] | None, verdict: str) -> None:
    print("\nStatus")
    for check in checks:
        if check.status != "info":
            print(f"  [{check.status.upper()}] {check.name}")
    if recommendation:
        print("\nRecommended for the default recipe (a starting point; the first steps show what really fits)")
        for key, value in recommendation.items():
            print(f"  {key}: {value}")
    print(f"\n{verdict}")


def main(args: argparse.Namespace) -> int:
    if args.dry_run and args.json:
        raise cli.UserError("--dry_run lists the sections for people to read; leave out --json")
    if args.dry_run:
        for number, section in enumerate(SECTIONS, 1):
            print(f"{number}. {section.title}")
        return 0
    checks: list[Check] = []
    for number, section in enumerate(SECTIONS, 1):
        with contextlib.redirect_stdout(sys.stderr):  # what libraries print; with --json, stdout is one object only
            found = run_section(section, args.data_dir, args.debug)
        if not args.json:
            print_section(number, section.title, found)
        checks += found
    recommendation, model, dataset = None, False, usable_dataset(args.data_dir)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            model = has_default_model(checks)
            recommendation = recommend(dataset, model)
        except Exception as fault:
            checks.append(info("recommendation", f"none: {describe(fault)}"))
    ready = not any(check.critical and check.status == "error" for check in checks)
    if args.json:
        result = {"ready": ready, "checks": [one._asdict() for one in checks], "recommendation": recommendation}
        print(json.dumps(result, indent=2))
    else:
        print_summary(checks, recommendation, describe_readiness(ready, dataset, model))
    return 0 if ready else 1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of prepared datasets")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    return cli.parse_args(parser, argv)


if __name__ == "__main__":
    cli.run(main, parse_args())
