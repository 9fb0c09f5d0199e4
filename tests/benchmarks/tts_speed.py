"""Steps of a voice's training: train_tts.py beside ylacombe/finetune-hf-vits, and what the alignment search takes.

Both train a voice of the embedded one's sizes from nothing, with VITS' own discriminators, on the same utterances, as
many at once and as long segments, with all cores. Of each the steps after the first two are timed, the validation is
left out. What the baseline reads is made ready before its loop; ours reads and computes its spectrograms while it
trains. Two more rows show what train_tts.py does otherwise: in bfloat16, and with the discriminators that it takes by
itself for a voice of this size.

    python tests/benchmarks/tts_speed.py --baseline ../finetune-hf-vits --repeats 3
    python tests/benchmarks/tts_speed.py --train_data_dir data/voice --train_batch_size 4

The baseline's monotonic_align must be built: `cd monotonic_align && mkdir monotonic_align && python setup.py build_ext
--inplace`, which needs Cython and a compiler. Without --baseline only ours are measured.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarking.costs import all_steps
from demo.pretrain_voice import VOICE, VOICE_CHARACTERS
from speech.alignment import monotonic_path
from speech.batches import Loader, Position, load_batch, make_loader
from speech.dataset import read_utterances
from speech.voices import Voice, new_voice, save_voice
from tests.benchmarks.side_by_side import count_cores, setting, spread
from utils.metrics_log import read_metrics

BASELINE, OURS = "finetune-hf-vits' step", "train_tts.py"
WAYS = {
    OURS: "--discriminators published --mixed_precision no",
    "train_tts.py in bfloat16": "--discriminators published --mixed_precision bf16",
    "train_tts.py with its own choice of discriminators": "--discriminators auto --mixed_precision no",
}


def time_ours(args: argparse.Namespace, voice: Path, folder: Path, way: str) -> list[float]:
    """The seconds of each step, with those that it waited for its data."""
    words = f"{way} --segment_frames {args.segment_frames} --max_train_steps {args.steps}"
    words += f" --train_batch_size {args.train_batch_size} --effective_batch_size {args.train_batch_size}"
    words += " --validation_steps 0 --checkpointing_steps 0 --logging_steps 1 --report_to none --lr_scheduler constant"
    words += " --lr_warmup_steps 0"
    place = ["--pretrained_model_name_or_path", voice, "--train_data_dir", args.train_data_dir, "--output_dir", folder]
    run([str(ROOT / "train_tts.py"), *words.split(), *map(str, place)], args.threads, ROOT)
    return all_steps(read_metrics(folder / "metrics.jsonl"))


def time_baseline(args: argparse.Namespace, voice: Voice, loader: Loader, folder: Path) -> list[float]:
    """The same of its model and losses."""
    size, batches = args.train_batch_size, []
    for start in range(0, len(loader.utterances) - size + 1, size):
        batch = load_batch([Position(i, 0.0, ("speed", i)) for i in range(start, start + size)], loader)
        lengths = {"frames": batch.frame_lengths, "lengths": batch.text_lengths}
        batches.append({"tokens": batch.tokens, "waveforms": batch.waveforms, **lengths})
    config = {name: value for name, value in VOICE.to_diff_dict().items() if not name.startswith("_")}
    config |= {"segment_size": args.segment_frames * loader.settings.hop, "hop_length": loader.settings.hop}
    job = {"config": config | {"vocab_size": voice.model.config.vocab_size}, "batches": batches, "steps": args.steps}
    torch.save(job, folder)
    start = f"import sys; sys.path[:0] = [{str(args.baseline)!r}, {str(Path(__file__).parent)!r}]; import hf_vits_loop"
    run(["-c", f"{start}; hf_vits_loop.main()", str(folder)], args.threads, args.baseline)
    return torch.load(folder)


def run(words: list[str], threads: int, folder: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])


def time_alignment(loader: Loader, size: int) -> float:
    """The seconds of the search for a batch of the first utterances."""
    text, frames = (torch.tensor(one[:size]).numpy() for one in ([*map(len, loader.tokens)], loader.frames))
    scores = torch.randn(size, int(text.max()), int(frames.max())).numpy()
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        monotonic_path(scores, text, frames)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, metavar="PATH", help="a checkout of ylacombe/finetune-hf-vits")
    data = ROOT / "demo/voice/corpus/held_back/train"
    parser.add_argument("--train_data_dir", type=Path, default=data, help="default: the demo's held-back voice")
    values = {"train_batch_size": 8, "segment_frames": 32, "steps": 30, "repeats": 1, "threads": os.cpu_count() or 1}
    for name, value in values.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    args = parser.parse_args()
    args.train_data_dir, args.baseline = args.train_data_dir.resolve(), args.baseline and args.baseline.resolve()
    return args


def main(args: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {name: [] for name in ([BASELINE] if args.baseline else []) + [*WAYS]}
    utterances = read_utterances(args.train_data_dir, "--train_data_dir")[0]
    voice = new_voice(VOICE, VOICE_CHARACTERS, 0)
    loader = make_loader(utterances, voice, args.segment_frames)
    search, cores, steps = time_alignment(loader, args.train_batch_size), [count_cores()], []
    with tempfile.TemporaryDirectory() as name:
        save_voice(Path(name) / "voice", voice)
        for turn in range(args.repeats):
            for who in rates:
                place = Path(name) / f"{turn}-{who}".replace(" ", "_").replace("'", "")
                if who == BASELINE:
                    seconds = time_baseline(args, voice, loader, place)
                else:
                    seconds = time_ours(args, Path(name) / "voice", place, WAYS[who])
                step = statistics.median(seconds[2:])
                steps += [step] if who == OURS else []
                rates[who].append(args.train_batch_size / step)
                print(f"{who}: {step:.3f} s a step, {rates[who][-1]:.2f} samples/s", flush=True)
    cores.append(count_cores())
    print(f"\n{setting(args.threads)}; {statistics.mean(cores):.1f} cores given; {args.train_batch_size} at once")
    print("\n| | samples/s | against the first |\n|---|---|---|")
    for who, found in rates.items():
        against = [rate / first for rate, first in zip(found, next(iter(rates.values())))]
        print(f"| {who} | {spread(found, 2)} | {spread(against, 2)} |")
    print(f"\nalignment search: {1000 * search:.1f} ms, {search / statistics.median(steps):.1%} of a step of {OURS}")


if __name__ == "__main__":
    main(parse_args())
