"""What the UNet's way forward and back gains by our LoRA layer over peft's, and whether the gradients are the same.

For Stable Diffusion 1.x and 2.x, without gradient checkpointing.

python tests/benchmarks/lora_layer.py
python tests/benchmarks/lora_layer.py --pretrained_model_name_or_path FOLDER --rows 8 --autocast bfloat16
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from peft.tuners.lora import Linear

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from families import lora, models
from families.lora import DirectLinear
from tests.benchmarks.side_by_side import setting, spread
from utils.devices import describe_device, working_device


def main(args: argparse.Namespace) -> None:
    model, device = models.resolve_model(args.pretrained_model_name_or_path), working_device()
    unets, trained, dtype = {}, {}, getattr(torch, args.autocast)
    for kind in (DirectLinear, Linear):
        unets[kind] = models.load_denoiser(model, dtype)
        torch.manual_seed(0)
        trained[kind] = lora.attach_lora(unets[kind], lora.Adapter(args.rank, args.rank))
        for parameter in trained[kind]:  # B begins as 0, and A's gradient with it
            torch.nn.init.normal_(parameter, std=0.02)
        for layer in unets[kind].modules():
            if isinstance(layer, DirectLinear):
                layer.__class__ = kind
        unets[kind].train().to(device)
    config = unets[kind].config
    latents = torch.randn(args.rows, config.in_channels, *2 * [config.sample_size], device=device)
    texts = torch.randn(args.rows, 77, config.cross_attention_dim, device=device)
    times, gradients = {kind: [] for kind in unets}, {}
    for _ in range(args.repeats + 2):  # the first two are for warming up
        for kind, unet in unets.items():
            began = time.perf_counter()
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = unet(latents, 500, texts, return_dict=False)[0].float().square().mean()
            found = torch.autograd.grad(loss, trained[kind])
            gradients[kind] = torch.cat([one.flatten() for one in found]).cpu()  # waits for the device
            times[kind].append((time.perf_counter() - began) * 1000)
    ours, theirs = (times[kind][2:] for kind in unets)
    apart = (gradients[DirectLinear] - gradients[Linear]).norm() / gradients[Linear].norm()
    print(f"{describe_device(device)}; {setting(torch.get_num_threads())}; {args.rows} rows, {args.autocast}")
    print(f"forward and back: {spread(ours)} ms with our layer, {spread(theirs)} ms with peft's")
    print(f"{statistics.median(theirs) / statistics.median(ours):.2f} times as fast; gradients apart by {apart:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autocast", choices=["float32", "float16", "bfloat16"], default="float32")
    for flag, value in {"pretrained_model_name_or_path": "demo", "rank": 8, "rows": 4, "repeats": 60}.items():
        parser.add_argument(f"--{flag}", type=type(value), default=value, help=f"default: {value}")
    main(parser.parse_args())
