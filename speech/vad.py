"""Where somebody speaks: silero-vad, whose weights come with its package, run by onnxruntime."""

import functools
import importlib.metadata
from typing import TYPE_CHECKING

import numpy as np

from speech.audio import resample

if TYPE_CHECKING:
    import onnxruntime

RATE, STEP, CONTEXT = 16_000, 512, 64  # what the network was trained on: 32 ms, and 4 ms of what comes before them
STEP_SECONDS = STEP / RATE


@functools.cache
def _load_network() -> "onnxruntime.InferenceSession":
    """In one thread, since several processes work beside each other. The package itself is not imported: it needs a
    second for torch."""
    import onnxruntime

    package = importlib.metadata.distribution("silero-vad")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = str(package.locate_file("silero_vad/data/silero_vad_16k_op15.onnx"))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def speech_probabilities(samples: np.ndarray, rate: int) -> np.ndarray:
    """How probable it is that somebody speaks, for each 32 ms of a sound."""
    network, sixteen = _load_network(), np.array(RATE)
    heard = resample(samples, rate, RATE).astype(np.float32)
    padded = np.pad(heard, (CONTEXT, -len(heard) % STEP))
    state, found = np.zeros((2, 1, 128), np.float32), []
    for start in range(0, len(padded) - CONTEXT, STEP):
        piece = padded[None, start : start + CONTEXT + STEP]
        probability, state = network.run(None, {"input": piece, "state": state, "sr": sixteen})
        found.append(probability[0, 0])
    return np.array(found, np.float32)
