"""Who speaks: a unit vector of each sound, near to those of the same voice."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from speech.convolutions import RATE, Convolutions, hear, load_network, pad, read_size
from speech.resemblyzer import SIZE, load_resemblyzer
from utils.cli import UserError
from utils.files import file_sha256
from utils.hub import DEMO, load_named, load_whole, model_key

DEFAULT_ENCODER = "microsoft/wavlm-base-plus-sv"
DEMO_ENCODER = DEMO / "voice" / "speaker"
FLAG = "--speaker_encoder"
RESEMBLYZER = ".pt"  # the ending of its file of weights
SHORTEST = RATE // 4  # samples; silence is added after shorter sounds
Encode = Callable[[Sequence[np.ndarray]], np.ndarray]
EncodeOne = Callable[[np.ndarray], torch.Tensor]


def embed(network: Convolutions, mels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Unit rows: the mean over time of what the network gives, padding left out."""
    outputs, mask = network(mels, lengths)
    return F.normalize((outputs.float() * mask).sum(1) / mask.sum(1), dim=-1)


def load_speaker_encoder(name: str, device: torch.device | str, flag: str = FLAG) -> Encode:
    """What turns sounds at 16 kHz into unit rows: `demo`, a hub id, a folder, or the pretrained.pt of Resemblyzer.

    One sound at a time, so that no other one in a batch changes its vector.
    """
    if name == "demo":
        encode_one = _load_demo(device, flag)
    elif name.endswith(RESEMBLYZER):
        encode_one = load_resemblyzer(Path(name), flag, device)
    else:
        encode_one = load_named(flag, name, "speaker encoder", lambda: _load_published(name, device))

    @torch.no_grad()
    def encode(sounds: Sequence[np.ndarray]) -> np.ndarray:
        rows = [encode_one(np.asarray(sound, np.float32)) for sound in sounds]
        return F.normalize(torch.stack(rows).float(), dim=-1).cpu().numpy() if rows else np.zeros((0, 1), np.float32)

    return encode


def encoder_size(name: str) -> int:
    """How many numbers its vectors have, without its weights."""
    if name == "demo":
        return read_size(DEMO_ENCODER, FLAG).outputs
    if name.endswith(RESEMBLYZER):
        if not Path(name).is_file():
            raise UserError(f"{FLAG} {name}: no such file; give the pretrained.pt of Resemblyzer")
        return SIZE

    def read() -> int:
        from transformers import AutoConfig

        return int(AutoConfig.from_pretrained(name).xvector_output_dim)

    return load_named(FLAG, name, "speaker encoder", read)


def encoder_key(name: str) -> str:
    """Distinguishes what encoders hear: by the content of a folder or file, or by the name on the hub."""
    if name.endswith(RESEMBLYZER) and Path(name).is_file():
        return file_sha256(Path(name))[:16]
    return model_key(name, DEMO_ENCODER)


def _load_demo(device: torch.device | str, flag: str) -> EncodeOne:
    network, _ = load_network(DEMO_ENCODER, flag, device)
    return lambda sound: embed(network, *pad([hear(sound, device)]))[0]


def _load_published(name: str, device: torch.device | str) -> EncodeOne:
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    model = load_whole(AutoModelForAudioXVector, name, dtype=torch.float32).to(device).eval()
    extractor = AutoFeatureExtractor.from_pretrained(name)

    def encode_one(sound: np.ndarray) -> torch.Tensor:
        padded = np.pad(sound, (0, max(0, SHORTEST - len(sound))))
        inputs = extractor(padded, sampling_rate=RATE, return_tensors="pt").to(device)
        return model(**inputs).embeddings[0]

    return encode_one
