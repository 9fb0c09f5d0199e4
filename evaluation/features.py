"""Encoders that turn images and texts into features: CLIP, DINOv2, Inception, and the demo's own; cached on disk.

Images of any size and mode become upright RGB and are reduced by Pillow, which averages over all pixels (most tensor
libraries skip some by default): the same way for every set. Each encoder sees square images in full.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from evaluation import metrics
from evaluation.feature_cache import cached_rows, content_keys
from families import models
from utils import image_checks, images
from utils.cli import UserError
from utils.console import show_progress
from utils.files import file_sha256
from utils.hub import load_named, load_whole
from utils.parallel import thread_map

NAMES = ("clip", "dinov2", "inception", "demo")
CLIPS = ("clip", "demo")  # whose features of images and of texts can be compared
HUB = {"clip": "openai/clip-vit-base-patch32", "dinov2": "facebook/dinov2-base"}
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_SIDE = 299


class Encoder(NamedTuple):
    name: str
    source: str  # hub id, folder or file it was loaded from
    fingerprint: str  # of weights and transform: part of the cache key
    size: int  # features per image
    prepare: Callable[[Image.Image], np.ndarray]  # an RGB image as the model takes it; runs in threads
    forward: Callable[[np.ndarray], np.ndarray]  # a batch of those -> float32 (n, size)
    embed_texts: Callable[[list[str]], np.ndarray] | None = None  # None where the encoder knows no texts


def load_encoder(
    name: str,
    source: str | None = None,
    device: torch.device | str = "cpu",
    flag: str = "--encoders",
    sha256: str = INCEPTION_SHA256,
) -> Encoder:
    """An encoder of NAMES; `source` is a hub id or folder, or for Inception a file or URL with that `sha256`."""
    if name in CLIPS:
        return _load_clip(name, source or HUB.get(name, "demo"), device, flag)
    if name == "dinov2":
        return _load_dinov2(source or HUB[name], device, flag)
    if name == "inception":
        return _load_inception(source or INCEPTION_URL, device, sha256)
    raise UserError(f"{flag} {name}: no such encoder; choose among {', '.join(NAMES)}")


def parse_encoders(words: Sequence[str], inception: str | None) -> dict[str, str | None]:
    """{name: its source, if one is given} of --encoders and --inception."""
    sources: dict[str, str | None] = {}
    for word in [*([] if list(words) == ["none"] else words), *([f"inception={inception}"] if inception else [])]:
        name, _, source = word.partition("=")
        if name not in NAMES:
            raise UserError(f"--encoders {word}: no such encoder; choose among {', '.join(NAMES)}, or `none`")
        if name in sources:
            raise UserError(f"--encoders {word}: {name} twice; give it once (--inception adds it, too)")
        sources[name] = source or None
    return sources


def _fingerprint(weights: str, transform: object) -> str:
    facts = {"weights": weights, "transform": transform}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _as_forward(
    function: Callable[[torch.Tensor], torch.Tensor], device: torch.device | str
) -> Callable[[np.ndarray], np.ndarray]:
    """A model's function of a batch of tensors as one of arrays."""

    def forward(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return function(torch.from_numpy(batch).to(device)).float().cpu().numpy()

    return forward


def _load_clip(name: str, source: str, device: torch.device | str, flag: str) -> Encoder:
    clip = image_checks.load_clip(source, device, flag, describe_alternatives(name, source, flag))
    return Encoder(
        name,
        source,
        _fingerprint(models.fingerprint(clip.model), clip.processor.to_dict()),
        clip.model.config.projection_dim,
        prepare=lambda image: clip.processor(image, return_tensors="np").pixel_values[0],
        forward=_as_forward(lambda pixels: clip.model.get_image_features(pixels).pooler_output, device),
        embed_texts=lambda texts: image_checks.embed_texts(clip, texts),
    )


def _load_dinov2(source: str, device: torch.device | str, flag: str) -> Encoder:
    from transformers import BitImageProcessorPil, Dinov2Model  # here: it takes a second

    def load() -> tuple[Dinov2Model, BitImageProcessorPil]:
        model = load_whole(Dinov2Model, source, dtype=torch.float32)
        return model, BitImageProcessorPil.from_pretrained(source)

    model, processor = load_named(flag, source, "DINOv2", load, describe_alternatives("dinov2", source, flag))
    # The published transform cuts off an eighth of each side's length, where a product may be; here all is seen.
    processor.size = {"shortest_edge": processor.crop_size["height"]}
    model.eval().requires_grad_(False).to(device)
    return Encoder(
        "dinov2",
        source,
        _fingerprint(models.fingerprint(model), processor.to_dict()),
        model.config.hidden_size,
        prepare=lambda image: processor(image, return_tensors="np").pixel_values[0],
        forward=_as_forward(lambda pixels: model(pixels).pooler_output, device),  # the class token, normalised
    )


def describe_alternatives(name: str, source: str, flag: str) -> str:
    """How to get a model that can't be downloaded here, and what can be done without it."""
    return (
        f"run `hf download {source}` on a machine with a network, copy the folder and give it here: {flag} "
        f"{name}=FOLDER; without any download: failures, near-copies by hash and measured colours, which need "
        "no encoder (--encoders none); `demo` knows the demo's drawn shoes only"
    )


def _prepare_inception(image: Image.Image) -> np.ndarray:
    """As clean-fid does; at this size the network's own, aliased resizing changes nothing."""
    small = image.resize((INCEPTION_SIDE, INCEPTION_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(small).transpose(2, 0, 1)


def _load_inception(source: str, device: torch.device | str, sha256: str) -> Encoder:
    path = _download(source, sha256) if source.startswith(("https://", "http://")) else Path(source)
    if not path.is_file():
        raise UserError(f"--inception {source}: no such file; give the FID network as TorchScript, or its URL")
    if (found := file_sha256(path)) != sha256:
        raise UserError(
            f"--inception {source}: its sha256 is {found}, expected {sha256}; it is another file or incomplete "
            "(for another network that you trust, give its --inception_sha256)"
        )
    try:
        network = torch.jit.load(path, map_location=device).eval()
        forward = _as_forward(lambda pixels: network(pixels, return_features=True), device)
        size = forward(np.zeros((1, 3, INCEPTION_SIDE, INCEPTION_SIDE), np.uint8)).shape[1]
    except Exception as error:  # TorchScript's own, of whatever the file computes
        detail = " ".join(str(error).split())[-200:]
        raise UserError(f"--inception {source}: does not give features of images ({detail})") from error
    fingerprint = _fingerprint(sha256, f"bicubic {INCEPTION_SIDE}")
    return Encoder("inception", source, fingerprint, size, _prepare_inception, forward)


def _download(url: str, sha256: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{sha256[:16]}-{url.rpartition('/')[2]}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except (OSError, RuntimeError) as error:  # no network; another checksum
            raise UserError(
                f"--inception {url}: {' '.join(str(error).split())}; download the file on a machine with a network "
                "and give its path"
            ) from error
    return path


def image_features(
    encoder: Encoder,
    files: Sequence[Path],
    cache: Path | None,
    batch_size: int = 32,
    workers: int = 1,
    keys: Sequence[str] | None = None,
    change: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> np.ndarray:
    """float32 (n, size), rows in the files' order; `workers` threads decode while the model works.

    `cache` is a folder that encoders share; `keys` are the files' sha256, if they are known already, and others where
    images are to be changed first. A file that can't be read, or has a feature that is not a number, is refused by its
    name.
    """

    def prepare(path: Path) -> np.ndarray:
        try:
            return encoder.prepare(change(images.read_image(path)[0]))
        except images.BadImage as error:
            raise UserError(f"{path}: {error}; remove or replace the file") from None

    def compute(places: list[int]) -> Iterator[np.ndarray]:
        prepared = thread_map(prepare, (files[i] for i in places), workers)
        with show_progress(len(places), "images", f"encoding with {encoder.name}") as bar:
            for start in range(0, len(places), batch_size):
                part = places[start : start + batch_size]
                rows = encoder.forward(np.stack([next(prepared) for _ in part]))
                metrics.as_features(rows, [files[i] for i in part], f"{encoder.name} features")
                bar.update(len(part))
                yield rows

    keys = keys or content_keys(files, workers)
    folder = cache / f"{encoder.name}-{encoder.fingerprint[:16]}" if cache else None
    return cached_rows(folder, keys, encoder.size, compute)


def text_features(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """float32 (n, size), each distinct text computed once; one that is too long is cut and keeps its end token."""
    if encoder.embed_texts is None:
        raise UserError(f"{encoder.name}: has no text encoder; `clip` and `demo` have one")
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    distinct = list(places)
    parts = [encoder.embed_texts(distinct[start : start + 256]) for start in range(0, len(distinct), 256)]
    return np.concatenate(parts)[[places[text] for text in texts]] if texts else np.empty((0, encoder.size), np.float32)
