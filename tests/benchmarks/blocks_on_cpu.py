"""A transformer of a family's published size, with random weights: seconds a step and peak memory by --blocks_on_cpu.

The weights are made in memory, the same each time. Beside the measured peak stands what --dry_run estimates, and
whether the gradients of the first step are those of the first row, to the byte. On a GPU in bfloat16; on a CPU, where
nothing is saved, with --small in float32.

python tests/benchmarks/blocks_on_cpu.py --small
python tests/benchmarks/blocks_on_cpu.py --family z_image --blocks_on_cpu 0 0 10 34
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without which cuBLAS is not deterministic

import diffusers
import torch
from accelerate import init_empty_weights

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from families import lora, models, offloading
from families.names import FAMILIES
from families.published import write_configs
from tests.tiny_models import OF_FLOW, smaller_flow
from training import build, memory
from utils.devices import checkpoint_options, describe_device, peak_memory_gib, seed_everything, working_device


def random_transformer(model: str, family: str, dtype: torch.dtype, device: torch.device) -> lora.Module:
    """On the CPU, with weights that keep the size of what goes through each layer."""
    kind = getattr(diffusers, FAMILIES[family].MODULES["transformer"])
    with init_empty_weights(include_buffers=False):
        transformer = kind.from_config(models.read_config(model, "transformer/config.json"))
    generator, state = torch.Generator(device).manual_seed(0), {}
    for name, weight in transformer.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator, device=device, dtype=dtype)
        scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.02
        state[name] = (drawn * scale + (weight.ndim == 1 and name.endswith("weight"))).cpu()
    assert not transformer.load_state_dict(state, strict=False, assign=True).unexpected_keys
    return transformer


def measure(model: str, args: argparse.Namespace, count: int) -> tuple[torch.Tensor, list[float], float]:
    """The first step's gradients, the seconds of the later ones, and the peak in GiB."""
    device, family = working_device(), FAMILIES[args.family]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    transformer = random_transformer(model, args.family, dtype, device)
    seed_everything(0)
    targets = family.lora_targets(transformer.config)
    for parameter in lora.attach_lora(transformer, lora.Adapter(args.rank, args.rank, targets=targets)):
        torch.nn.init.normal_(parameter, std=0.02)
    models.tune_denoiser(transformer, checkpoint_options(device), xformers=False, compiled=False)
    build.place(transformer.train(), device, 1, count)
    trained = [one for one in transformer.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    vae = models.read_config(model, "vae/config.json")
    side = args.resolution // models.vae_step(vae)
    noisy = torch.randn(args.train_batch_size, models.latent_channels(vae), side, side).to(device)
    width = family.caption_numbers(lambda name: models.read_config(model, name), 1)
    texts = [{"embeds": torch.randn(args.tokens, width).to(device, dtype)} for _ in noisy]
    times = torch.linspace(0.2, 0.8, len(noisy)).to(device)
    first, seconds = torch.empty(0), []
    for number in range(args.repeats + 2):  # the first two are for warming up
        torch.use_deterministic_algorithms(number == 0, warn_only=True)
        began = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = family.predict(transformer, noisy, times, texts)
        found.float().square().mean().backward()
        if number == 0:
            first = torch.cat([one.grad.flatten() for one in trained]).cpu()
        optimizer.step()
        optimizer.zero_grad()
        trained[0].sum().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return first, seconds[2:], peak_memory_gib(device)


def estimate(model: str, args: argparse.Namespace, count: int) -> float:
    """GiB of the training, as a dry run has them."""
    half = torch.bfloat16 if working_device().type == "cuda" else None
    targets = FAMILIES[args.family].lora_targets(models.denoiser_config(model))
    load = memory.Load(
        adapter=lora.Adapter(args.rank, args.rank, targets=targets),
        micro_batch=args.train_batch_size,
        height=args.resolution,
        width=args.resolution,
        dtype=half or torch.float32,
        autocast=half,
        text_length=args.tokens,
        blocks_on_cpu=count,
    )
    return sum(memory.estimate_memory(model, args.family, load)["training"].values()) / 2**30


def main(args: argparse.Namespace) -> None:
    device = working_device()
    with tempfile.TemporaryDirectory() as name:
        model = str(write_configs(args.family, Path(name), smaller_flow(args.family) if args.small else {}))
        size = f"{args.resolution} pixels, {args.tokens} tokens, {args.train_batch_size} at once"
        sizes = offloading.block_bytes(models.build_part(model, "transformer"))
        what = f"{args.family} with {len(sizes)} blocks; {size}, rank {args.rank}"
        print(f"{describe_device(device)}; {what}", flush=True)
        wanted = None
        for count in args.blocks_on_cpu:
            if device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            first, seconds, peak = measure(model, args, count)
            wanted = first if wanted is None else wanted
            apart = ((first - wanted).norm() / wanted.norm()).item()
            same = "the same to the byte" if torch.equal(first, wanted) else f"apart by {apart:.1e}"
            shown = f"{statistics.median(seconds):.3f} s a step ({min(seconds):.3f} to {max(seconds):.3f})"
            if device.type == "cuda":
                shown += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB in tensors"
            guess = f"{peak:.2f} GiB at the peak, {estimate(model, args, count):.2f} estimated"
            print(f"--blocks_on_cpu {count}: {shown}, {guess}, gradients {same}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(OF_FLOW), default="z_image")
    parser.add_argument("--small", action="store_true", help="a tiny model of the family's kind")
    parser.add_argument("--blocks_on_cpu", type=int, nargs="+", default=[0, 0, 2, 4], help="default: 0 0 2 4")
    for flag, value in {"resolution": 1024, "tokens": 512, "train_batch_size": 1, "rank": 8, "repeats": 5}.items():
        parser.add_argument(f"--{flag}", type=int, default=value, help=f"default: {value}")
    main(parser.parse_args())
