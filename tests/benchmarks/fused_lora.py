"""How much faster generate.py is with a LoRA fused into the weights, and whether the images are the same.

python tests/benchmarks/fused_lora.py --lora runs/demo/lora
python tests/benchmarks/fused_lora.py --lora runs/x --pretrained_model_name_or_path FOLDER --rows 8
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from families import lora_mix, models, sampling
from tests.benchmarks.side_by_side import setting, spread
from utils.devices import describe_device, working_device


def main(args: argparse.Namespace) -> None:
    model, device = models.resolve_model(args.pretrained_model_name_or_path), working_device()
    side, lora = models.read_config(model, "unet/config.json")["sample_size"], lora_mix.parse_lora(args.lora)
    unets = {}
    for name in ("fused", "beside the weights"):
        unet = models.load_denoiser(model, torch.float32)
        schedule = models.load_noise_scheduler(model)
        pipeline = sampling.build_pipeline(models.model_family(model), unet, None, schedule, {})
        if name == "fused":
            lora_mix.apply_loras(pipeline, (lora,))
        else:
            pipeline.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name)
        unets[name] = unet.eval().to(device, memory_format=torch.channels_last)
    torch.manual_seed(0)
    latents = torch.randn(args.rows, unet.config.in_channels, side, side, device=device)
    texts = torch.randn(args.rows, 77, unet.config.cross_attention_dim, device=device)
    times, outcome = {name: [] for name in unets}, {}
    with torch.inference_mode():
        for _ in range(args.repeats + 1):  # the first is for warming up
            for name, unet in unets.items():
                began = time.perf_counter()
                outcome[name] = unet(latents, 500, texts, return_dict=False)[0].cpu()
                times[name].append((time.perf_counter() - began) * 1000)
    fused, beside = (times[name][1:] for name in unets)
    apart = (outcome["fused"] - outcome["beside the weights"]).abs().max() / outcome["fused"].abs().max()
    print(f"{describe_device(device)}; {setting(torch.get_num_threads())}; {args.rows} rows")
    print(f"a step: {spread(fused)} ms with {args.lora} fused, {spread(beside)} ms with it beside the weights")
    print(
        f"{statistics.median(beside) / statistics.median(fused):.2f} times as fast; apart by {apart:.1e} of the largest"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", required=True, help="a run folder or a file, as generate.py takes them")
    for flag, value in {"pretrained_model_name_or_path": "demo", "rows": 16, "repeats": 20}.items():
        parser.add_argument(f"--{flag}", type=type(value), default=value, help=f"default: {value}")
    main(parser.parse_args())
