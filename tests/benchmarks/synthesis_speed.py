"""How much faster than it plays a voice speaks, on one core: as it is loaded, with folded weights, by onnxruntime.

    python tests/benchmarks/synthesis_speed.py
    python tests/benchmarks/synthesis_speed.py --pretrained_model_name_or_path runs/voice --sentences 20 --repeats 5

Each way takes its turn in every repeat, and the median of the repeats counts.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import onnxruntime
import torch

from speech.onnx_voice import example_inputs, export_onnx
from speech.synthesis import fold_weight_norm, speak
from speech.voices import load_voice, tokenize

SENTENCE = "a casa azul do rio tem uma janela e dez flores na mesa perto da porta"


def time_once(say: Callable[[int], np.ndarray], sentences: int, rate: int) -> float:
    """Seconds of sound for each second of work."""
    began = time.perf_counter()
    samples = sum(len(say(i)) for i in range(sentences))
    return samples / rate / (time.perf_counter() - began)


def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default="demo-voice", help="the voice that speaks")
    parser.add_argument("--text", default=SENTENCE)
    parser.add_argument("--sentences", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = args.pretrained_model_name_or_path
    plain, folded = load_voice(name), load_voice(name)
    fold_weight_norm(folded.model)
    inputs = {key: one.numpy() for key, one in example_inputs(folded).items()}
    inputs["input_ids"] = np.array([tokenize(folded, args.text)])
    if "duration_noise" in inputs:
        inputs["duration_noise"] = np.zeros((1, 2, inputs["input_ids"].shape[1]), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(Path(folder, "voice.onnx"), folded)
        session = onnx_session(Path(folder, "voice.onnx"))
    ways: dict[str, Callable[[int], np.ndarray]] = {
        "as loaded": lambda seed: speak(plain, args.text, seed),
        "folded, as synthesize.py": lambda seed: speak(folded, args.text, seed),
        "onnxruntime": lambda seed: session.run(None, inputs)[0][0],
    }
    rate = plain.model.config.sampling_rate
    for say in ways.values():
        say(0)
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, say in ways.items():
            speeds[way].append(time_once(say, args.sentences, rate))
    parameters = sum(one.numel() for one in folded.model.parameters()) / 1e6
    seconds = len(speak(folded, args.text, 0)) / rate
    print(f"{name}: {parameters:.2f} M parameters, {seconds:.2f} s each")
    for way, found in speeds.items():
        print(f"{way:25} {statistics.median(found):6.1f} x real time ({min(found):.1f} to {max(found):.1f})")
    print(
        f"one thread of {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"onnxruntime {version('onnxruntime')}"
    )


if __name__ == "__main__":
    main()
