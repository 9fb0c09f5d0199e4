"""Does evaluate.py rank good above bad? On the demo: real images < LoRA < base pipeline < noise, by every metric.

    python tests/benchmarks/good_from_bad.py --output_dir runs/good_from_bad
    python tests/benchmarks/good_from_bad.py --output_dir runs/good_from_bad --lora runs/demo/lora --num_images 150

Half of a test split is the reference; the other half, and sets of as many images that the LoRA, the base pipeline and
a generator of noise make for the same prompts, are each evaluated against it. Existing sets are used again.
Writes results.json and table.md; exits with 1 if a metric puts two of them in the wrong order.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from utils.dataset import read_split
from utils.files import write_json
from utils.runs import git_commit

SETS = ("real", "LoRA", "base", "noise")
# Figures with a better end; each should get worse from left to right.
ORDERED = "frechet kid cmmd precision recall density coverage clip_score clip_score_lowest colour_accuracy".split()
ORDERED += ["wrong_colour"]


def run(command: str, done: Path) -> None:
    if done.exists():
        return
    print(f"\n$ python {command}", flush=True)
    subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True)


def write_folder(folder: Path, records: list[dict], images: list[Path | Image.Image]) -> None:
    """Images with texts and attributes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (one, image) in enumerate(zip(records, images)):
        name = f"{i:06d}.png"
        if isinstance(image, Path):
            (folder / name).write_bytes(image.read_bytes())
        else:
            image.save(folder / name)
        rows.append({"file_name": name, "text": one["text"], **{key: one.get(key) for key in ("article", "colour")}})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_sets(out: Path, count: int, lora: Path | None, seed: int) -> dict[str, Path]:
    """{name: folder}, `reference` among them."""
    catalogue, dataset = out / "catalogue", out / "dataset"
    drawn = round(count * 2 / 0.5 / 0.18)  # of six kinds one is wanted, and half of it for the test
    run(f"demo/catalogue.py --output_dir {catalogue} --num_images {drawn} --size 128 --seed {seed}", catalogue)
    run(
        f'prepare_dataset.py --catalogue {catalogue} --category "Casual Shoes" --output_dir {dataset} --resolution 128 '
        f"--tokenizer demo --split_ratio 0.4 0.1 0.5 --write_prompt_plan {count}",
        dataset,
    )
    if lora is None:
        lora = out / "lora"
        run(
            f"train_lora.py --config configs/demo_lora.yaml --train_data_dir {dataset} --output_dir {lora}",
            lora / "pytorch_lora_weights.safetensors",
        )
    folders = {name: out / name for name in ("reference", *SETS)}
    for name, more in (("LoRA", f"--lora {lora}"), ("base", "")):
        run(
            f"generate.py --pretrained_model_name_or_path demo {more} --prompt_plan {dataset}/prompt_plan.jsonl "
            f"--num_inference_steps 20 --guidance_scale 3 --batch_size 16 --output_dir {folders[name]} --seed {seed}",
            folders[name] / "MANIFEST.json",
        )
    test = read_split(dataset, "test")
    order = np.random.default_rng(seed).permutation(len(test))
    for name, half in (("reference", order[::2][:count]), ("real", order[1::2][:count])):
        write_folder(folders[name], [test[i] for i in half], [test[i]["path"] for i in half])
    asked = [json.loads(line) for line in (folders["LoRA"] / "metadata.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(seed)
    noise = [Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)) for _ in asked]
    write_folder(folders["noise"], [{"text": one["text"], **one["attributes"]} for one in asked], noise)
    return folders


def evaluate(folders: dict[str, Path], out: Path, resamples: int) -> dict[str, dict[str, dict]]:
    """{set: {figure: entry}}."""
    found = {}
    for name in SETS:
        command = (
            f"evaluate.py --real {folders['reference']} --generated {folders[name]} --encoders demo "
            f"--resamples {resamples} --output_dir {out / f'evaluation_{name}'} --overwrite"
        )
        subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        metrics = json.loads((out / f"evaluation_{name}" / "metrics.json").read_text())
        found[name] = {one["id"]: one for one in metrics["figures"]}
    return found


def verdict(entries: list[dict], better: str) -> str:
    """`in order`, or which neighbours are not: in the wrong order, or with intervals that overlap."""
    said = []
    for names, (one, other) in zip(zip(SETS, SETS[1:]), zip(entries, entries[1:])):
        if better == "lower":
            one, other = other, one
        if one["high"] < other["low"]:
            said.append(f"{names[0]}/{names[1]} the wrong way round")
        elif one["low"] <= other["high"]:
            said.append(f"{names[0]}/{names[1]} not apart")
    return "; ".join(said) or "in order, apart"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--lora", type=Path, help="a trained one; else it is trained here")
    parser.add_argument("--num_images", type=int, default=250, help="in each set")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=11, help="of the catalogue and of the images")
    args = parser.parse_args()
    out = args.output_dir.resolve()
    folders = make_sets(out, args.num_images, args.lora and args.lora.resolve(), args.seed)
    found = evaluate(folders, out, args.resamples)
    lines, wrong = [f"| figure | {' | '.join(SETS)} | |", "|---" * (len(SETS) + 2) + "|"], False
    results = []
    for key, first in found["real"].items():
        entries = [found[name][key] for name in SETS]
        if key.partition("/")[0] not in ORDERED or any(one["value"] is None for one in entries):
            continue
        better = "higher" if key.startswith("density") else first["better"]
        said = verdict(entries, better)
        wrong |= "wrong way" in said
        cells = [f"{one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})" for one in entries]
        lines.append(f"| {first['name']} | {' | '.join(cells)} | {said} |")
        kept = ("value", "low", "high", "n")
        results.append(
            {"figure": key, "verdict": said}
            | {name: {part: one[part] for part in kept} for name, one in zip(SETS, entries)}
        )
    (out / "table.md").write_text("\n".join(lines) + "\n")
    facts = {"commit": git_commit(), "cores": os.cpu_count(), "num_images": args.num_images, "seed": args.seed}
    write_json(out / "results.json", {**facts, "figures": results})
    print("\n".join(lines))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
