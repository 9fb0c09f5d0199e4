"""Captions by a vision-language model: every image is described once, and captions are cached."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils.cli import UserError
from utils.console import show_progress
from utils.hub import load_named, model_key
from utils.metrics_log import append_metrics, read_metrics

# Of Idefics3's kind, whose images transformers reads by Pillow: many others need torchvision.
DEFAULT_MODEL = "HuggingFaceTB/SmolVLM-500M-Instruct"
DEFAULT_PROMPT = "Describe this image in one sentence: what it shows, its colours, and what is behind it."
MOST_TOKENS = 120  # of a caption


@dataclass(frozen=True)
class Captioner:
    """What describes images, several at once; `key` stands for the model, its weights and what it is asked."""

    name: str
    describe: Callable[[list[Image.Image]], list[str]]
    batch_size: int
    key: str


def load_captioner(name: str, prompt: str, batch_size: int) -> Captioner:
    """The model on the best device, which always says the likeliest words; refuses one that takes no chat."""
    import torch
    from transformers import pipeline

    from utils.devices import choose_precision, working_device

    device = working_device()
    dtype = choose_precision(device).dtype if device.type == "cuda" else torch.float32

    def load() -> Callable[[list[Image.Image]], list[str]]:
        # It advises to give chats, of which it would take one at a time, and lists all models where one won't do.
        logging.getLogger("transformers.pipelines").setLevel(logging.CRITICAL)
        options = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
        model = pipeline("image-text-to-text", model=name, device=device, dtype=dtype, **options)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        asked = model.processor.apply_chat_template([turn], add_generation_prompt=True)
        model.processor.tokenizer.padding_side = "left"  # the answer follows on the right

        def describe(images: list[Image.Image]) -> list[str]:
            how = {"do_sample": False, "max_new_tokens": MOST_TOKENS}
            said = model(images=images, text=[asked] * len(images), return_full_text=False, generate_kwargs=how)
            return [" ".join(one["generated_text"].split()) for one in said]

        return describe

    describe = load_named("--caption_model", name, "vision-language model of transformers with a chat template", load)
    facts = repr((model_key(name), prompt, MOST_TOKENS, str(dtype)))
    return Captioner(name, describe, batch_size, hashlib.sha256(facts.encode()).hexdigest()[:16])


def caption_images(captioner: Captioner, images: dict[str, tuple[Path, str]], cache: Path) -> dict[str, str]:
    """{id: caption} of {id: (file, its checksum)}; by the checksum the cache keeps what was said."""
    kept = cache / f"captions-{captioner.key}.jsonl"
    said = {one["image"]: one["caption"] for one in read_metrics(kept)}
    todo = list({digest: path for path, digest in images.values() if digest not in said}.items())
    if todo:
        cache.mkdir(parents=True, exist_ok=True)
    with show_progress(len(images), "images", "captioning", len(images) - len(todo), bool(todo)) as bar:
        for start in range(0, len(todo), captioner.batch_size):
            batch = todo[start : start + captioner.batch_size]
            found = captioner.describe([_open(path) for _, path in batch])
            for (digest, path), caption in zip(batch, found, strict=True):
                if not caption:
                    problem = f"wrote no text for {path.name}; give another --caption_prompt"
                    raise UserError(f"--caption_model {captioner.name}: {problem}")
                append_metrics(kept, {"image": digest, "caption": caption})
                said[digest] = caption
            bar.update(len(batch))
    return {key: said[digest] for key, (_, digest) in images.items()}


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
