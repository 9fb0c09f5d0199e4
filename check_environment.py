"""Check this machine before training on it: each fault with the command that mends it, then a recommendation.

    python3 check_environment.py
    python3 check_environment.py --data_dir data --json

Exit code 0 when every critical check passes, else 1. Packages are imported inside the checks, so that a machine where
half of them are missing is told which, and what to type.
"""

from __future__ import annotations  # so that it starts on an older Python, to say that it is too old

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

from utils import cli

ROOT = Path(__file__).resolve().parent
if sys.prefix == sys.base_prefix:  # outside a virtual environment, where pip may not be allowed to install
    PIP = "make setup && .venv/bin/python -m pip"
else:
    PIP = f"{min(sys.executable, os.path.relpath(sys.executable), key=len)} -m pip"
INSTALL, INSTALL_CUDA = f"{PIP} install -r requirements-training.txt", f"{PIP} install -r requirements-cuda.txt"
GIB = 2**30
EFFECTIVE_BATCH = 16  # the default recipe: 2 x 8


class Check(NamedTuple):
    name: str
    status: str  # ok, info, error
    detail: str
    fix: str = ""
    critical: bool = False


def ok(name, detail) -> Check:
    return Check(name, "ok", detail)


def info(name, detail, fix="") -> Check:
    return Check(name, "info", detail, fix)


def error(name, detail, fix, critical=True) -> Check:
    return Check(name, "error", detail, fix, critical)


def module_version(name: str, package: str | None = None) -> str:
    """Import it for real: an installed package can still fail to load."""
    module = importlib.import_module(name)
    return getattr(module, "__version__", None) or importlib.metadata.version(package or name)


def describe(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}".removesuffix(": ")


def package_check(name: str, package: str | None = None) -> Check:
    try:
        return ok(name, f"{package or name} {module_version(name, package)}")
    except (
        Exception
    ) as fault:  # a broken binary raises OSError, RuntimeError and others: all of them mean "does not load"
        repair = (
            INSTALL if isinstance(fault, ModuleNotFoundError) else f"{PIP} install --force-reinstall {package or name}"
        )
        return error(name, f"{package or name} can't be imported: {describe(fault)}", repair)


def check_python(args) -> list[Check]:
    version = platform.python_version()
    if sys.version_info < (3, 10):  # noqa: UP036 (this check is for those who run an older one)
        return [error("python", f"Python {version} is too old", "install Python 3.10 or newer, then: make setup")]
    where = "a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    return [ok("python", f"Python {version} on {platform.system()} {platform.machine()}, in {where}")]


def check_torch(args) -> list[Check]:
    found = [package_check("torch")]
    if found[0].status == "error":
        return found
    import torch

    from utils import devices

    mps = torch.backends.mps
    found.append(info("cuda", f"built for CUDA {torch.version.cuda or '-'}, available: {torch.cuda.is_available()}"))
    found.append(info("mps", f"built: {mps.is_built()}, available: {mps.is_available()}"))
    if platform.system() == "Darwin" and platform.machine() == "arm64" and not mps.is_available():
        found.append(error("mps_available", "this Mac has an Apple GPU that torch can't use", INSTALL, critical=False))
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        fix = "install torch's CUDA build for your driver (docs/setup.md, `NVIDIA`)"
        found.append(
            error("cuda_available", "there is an NVIDIA driver, but torch can't use the GPU", fix, critical=False)
        )
    device = devices.pick_device()
    if fault := devices.kernel_error(device):
        detail = f"{devices.describe_device(device)} computes nothing: {fault}"
        fix = "close other programs that use the GPU, or restart; `--debug` shows the whole error"
        if device.type == "cuda":
            detail += f" (this wheel has kernels for {', '.join(torch.cuda.get_arch_list())})"
        if "no kernel image" in fault:
            fix = (
                "install torch's CUDA 12.6 build, which has kernels from sm_50 on (docs/setup.md, `Older NVIDIA GPUs`)"
            )
        return [*found, error("device", detail, fix)]
    return [*found, ok("device", f"{devices.describe_device(device)}: a matrix product computed there is right")]


def check_precision(args) -> list[Check]:
    """What half precision does on this device, and which precision follows from it."""
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
            found.append(info(name, "agrees with float32, but is only emulated on this GPU and so slow"))
        else:
            errors = ", ".join(f"{k} {v:.2%}" for k, v in devices.probe_dtype(device, dtype).items())
            found.append(ok(name, f"agrees with float32 (error: {errors})"))
    return [*found, info("precision", devices.choose_precision(device).reason)]


def check_diffusers(args) -> list[Check]:
    return [package_check("diffusers"), package_check("transformers")]


def check_peft(args) -> list[Check]:
    return [package_check("peft")]


def check_accelerate(args) -> list[Check]:
    found = [package_check("accelerate")]
    if found[0].status == "error":
        return found
    from accelerate.commands.config.config_args import default_json_config_file, default_yaml_config_file

    own = next((path for path in (default_yaml_config_file, default_json_config_file) if Path(path).is_file()), None)
    if own:
        found.append(info("accelerate_config", f"{own} is used where no --config_file is given"))
    else:
        found.append(info("accelerate_config", "no default config: give one of accelerate_configs/ by --config_file"))
    return found


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


def check_optional(args) -> list[Check]:
    purpose = {
        "tensorboard": (try_tensorboard, "the default tracker", INSTALL),
        "wandb": (try_wandb, "--report_to wandb", INSTALL),
        "xformers": (try_xformers, "an alternative to SDPA attention", INSTALL_CUDA),
        "bitsandbytes": (try_bitsandbytes, "8-bit AdamW", INSTALL_CUDA),
    }
    found = []
    for name, (attempt, use, fix) in purpose.items():
        wanted = fix == INSTALL or shutil.which("nvidia-smi")  # a Mac or a CPU has no use for the CUDA packages
        if importlib.util.find_spec(name) is None:
            found.append(info(name, f"not installed; only for {use}", fix if wanted else ""))
            continue
        try:
            attempt()
            found.append(ok(name, f"{importlib.metadata.version(name)}, works ({use})"))
        except Exception as fault:
            found.append(info(name, f"installed, but does not work here: {describe(fault)}", fix if wanted else ""))
    return found


def check_data_packages(args) -> list[Check]:
    found = [
        package_check(*names)
        for names in (("datasets",), ("PIL", "pillow"), ("omegaconf",), ("safetensors",), ("scipy",))
    ]
    if found[1].status == "ok":
        from PIL import features

        missing = [codec for codec in ("jpg", "zlib", "webp") if not features.check(codec)]
        if missing:
            found.append(error("codecs", f"Pillow was built without {', '.join(missing)}", INSTALL))
    return found


def free_disk(path: Path) -> int:
    """Free bytes of the disk on which the path is, or would be made."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_memory(args) -> list[Check]:
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

        device = devices.pick_device()
        if device.type != "cpu" and not devices.kernel_error(device):
            total, free = devices.device_memory(device)
            found.append(info("device_memory", f"{total / GIB:.1f} GiB on the device, {free / GIB:.1f} GiB free"))
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    for name, path, need in (("cache_disk", cache, 10), ("runs_disk", ROOT / "runs", 5)):
        free = free_disk(path) / GIB
        if free < need:
            fix = "free some space, or point HF_HOME and --output_dir to a larger disk"
            found.append(error(name, f"{free:.1f} GiB free under {path}; {need} GiB are wanted", fix, critical=False))
        else:
            found.append(ok(name, f"{free:.0f} GiB free under {path}"))
    return found


def check_datasets(args) -> list[Check]:
    prepare = 'python3 prepare_dataset.py --catalogue data/raw --category "Casual Shoes" --output_dir data/casual_shoes'
    if not args.data_dir.is_dir():
        return [info("data", f"--data_dir {args.data_dir}: no such folder, so no dataset is prepared yet", prepare)]
    candidates = [args.data_dir, *sorted(path for path in args.data_dir.iterdir() if path.is_dir())]
    found = []
    for folder in candidates:
        splits = [split for split in ("train", "val", "test") if (folder / split / "images").is_dir()]
        if not splits:
            continue
        counts = {split: len(os.listdir(folder / split / "images")) for split in splits}
        detail = f"{folder}: " + ", ".join(f"{split} {count}" for split, count in counts.items())
        try:
            promised = json.loads((folder / "metadata.json").read_text("utf-8"))["counts"]
        except (OSError, ValueError, KeyError, TypeError):
            promised = {}
        if any(promised.get(split) != count for split, count in counts.items()):
            verify = f"python3 prepare_dataset.py --verify {folder}"
            found.append(
                error(f"data/{folder.name}", f"{detail}: not what its metadata.json says", verify, critical=False)
            )
        elif not counts.get("train"):
            found.append(error(f"data/{folder.name}", f"{detail}: nothing to train on", prepare, critical=False))
        else:
            found.append(ok(f"data/{folder.name}", detail))
    return found or [info("data", f"--data_dir {args.data_dir}: holds no prepared dataset", prepare)]


def check_components(args) -> list[Check]:
    """Every part of Stable Diffusion, small: one noised latent through the UNet with LoRA, and back."""
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
    scheduler = DDPMScheduler()
    latent = vae.encode(torch.randn(2, 3, 8, 8).to(device)).latent_dist.mean
    context = text(torch.randint(0, 100, (2, 8)).to(device)).last_hidden_state
    noise, steps = torch.randn(latent.shape).to(device), torch.tensor([10, 900], device=device)
    loss = (unet(scheduler.add_noise(latent, noise, steps), steps, context).sample - noise).square().mean()
    loss.backward()
    trained = [p for p in unet.parameters() if p.requires_grad]
    norm = sum(p.grad.norm().item() for p in trained)
    assert norm > 0 and loss.isfinite(), f"loss {loss.item()}, gradient {norm}"
    detail = f"CLIP, VAE, UNet and LoRA built; forward and backward on {device.type}: loss {loss.item():.3f}"
    return [ok("components", detail)]


# Beyond the ten


def check_hub(args) -> list[Check]:
    """Information only: a local folder, or the demo model, needs no hub."""
    from huggingface_hub import HfApi, get_token, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from families.models import DEFAULT_MODEL

    found = []
    try:
        HfApi(token=False).model_info(DEFAULT_MODEL, timeout=3)
        found.append(ok("hub", "the Hugging Face hub answers, and has the default model"))
    except Exception as fault:
        fix = "train from a local folder or with --pretrained_model_name_or_path demo, or mend the connection"
        found.append(info("hub", f"the hub can't be reached ({type(fault).__name__})", fix))
    try:
        cached = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        cached = []
    found.append(info("cached_models", ", ".join(cached) or "none"))
    tokens = {"Hugging Face": get_token(), "Weights & Biases": os.environ.get("WANDB_API_KEY")}
    present = [name for name, token in tokens.items() if token]
    found.append(info("tokens", f"present: {', '.join(present) or 'none'}"))
    return found


SECTIONS = [
    ("Python", check_python),
    ("PyTorch and the device", check_torch, check_precision),
    ("Diffusers and Transformers", check_diffusers),
    ("Accelerate", check_accelerate),
    ("PEFT", check_peft),
    ("Optional packages", check_optional),
    ("Datasets and Pillow", check_data_packages),
    ("Memory and disk", check_memory),
    ("Prepared datasets", check_datasets),
    ("Stable Diffusion components", check_components),
    ("Hub and tokens", check_hub),
]
CRITICAL = (
    check_python,
    check_torch,
    check_diffusers,
    check_accelerate,
    check_peft,
    check_data_packages,
    check_components,
)


def recommend() -> dict:
    """Precision, batch and launch command for the default recipe on this machine."""
    import torch

    from utils import devices

    device = devices.working_device()
    precision = devices.choose_precision(device)
    total, _ = devices.device_memory(device)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    share = max(1, EFFECTIVE_BATCH // count)
    batch = devices.suggest_batch(device.type, total / GIB, share)
    accumulation = share // batch
    config = devices.suggest_config(device.type, torch.cuda.get_device_name() if device.type == "cuda" else "", count)
    launch = f"accelerate launch --config_file {config} --mixed_precision {precision.mixed_precision}"
    if count > 1:
        launch += f" --num_processes {count}"
    return {
        "device": devices.describe_device(device),
        "mixed_precision": precision.mixed_precision,
        "reason": precision.reason,
        "train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "effective_batch_size": batch * accumulation * count,
        "accelerate_config": config,
        "command": f"{launch} train_lora.py --train_batch_size {batch} --gradient_accumulation_steps {accumulation}",
    }


def run_check(check, args) -> list[Check]:
    """A check that raises has failed; the others still run. Only what training needs is critical."""
    name, critical = check.__name__.removeprefix("check_"), check in CRITICAL
    try:
        return check(args)
    except ImportError as fault:
        return [error(name, f"needs a missing package: {fault}", INSTALL, critical)]
    except Exception as fault:
        if args.debug:
            traceback.print_exc()
        return [error(name, f"failed: {describe(fault)}", "run again with --debug to see where", critical)]


def print_check(check: Check) -> None:
    print(f"  [{check.status.upper()}] {check.name}: {check.detail}")
    if check.fix:
        print(f"         to mend it: {check.fix}")


def main(args) -> int:
    if args.dry_run and args.json:
        raise cli.UserError("--dry_run lists the sections for people to read; leave out --json")
    if args.dry_run:
        for number, (title, *_) in enumerate(SECTIONS, 1):
            print(f"{number}. {title}")
        return 0
    checks, say = [], not args.json
    for number, (title, *functions) in enumerate(SECTIONS, 1):
        with contextlib.redirect_stdout(sys.stderr):  # libraries print; with --json, stdout is one object and no more
            found = [item for function in functions for item in run_check(function, args)]
        if say:
            print(f"\n{number}. {title}", flush=True)
            for item in found:
                print_check(item)
        checks += found
    recommendation = None
    with contextlib.redirect_stdout(sys.stderr):
        try:
            recommendation = recommend()
        except Exception as fault:
            checks.append(info("recommendation", f"none: {describe(fault)}"))
    ready = not any(check.critical and check.status == "error" for check in checks)
    if args.json:
        result = {"ready": ready, "checks": [c._asdict() for c in checks], "recommendation": recommendation}
        print(json.dumps(result, indent=2))
        return 0 if ready else 1
    print("\nStatus")
    for check in checks:
        if check.status != "info":
            print(f"  [{check.status.upper()}] {check.name}")
    if recommendation:
        print("\nRecommended for the default recipe (a starting point; the first steps show what really fits)")
        for key, value in recommendation.items():
            print(f"  {key}: {value}")
    print(f"\n{'Ready to train.' if ready else 'Not ready: mend the errors above and run this again.'}")
    return 0 if ready else 1


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where prepared datasets lie")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    cli.run(main, cli.parse_args(parser))
