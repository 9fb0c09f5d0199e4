"""What is said in a sound, and how sure that is: by Whisper, a CTC model of transformers, or the embedded recogniser.

With a list of sounds, each transcript is what the sound gets alone.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from speech.audio import HOP, frame_levels
from utils.hub import DEMO, load_named, load_whole, quiet_hub

FLAG, RATE = "--asr", 16_000
DEFAULT = "openai/whisper-small"
DEMO_RECOGNISER = DEMO / "voice" / "recogniser"
SHORTEST, LONGEST = 0.1, 30  # seconds: a CTC model's first layers need some, Whisper's encoder takes in no more
LAST = 10  # seconds of a piece in which a longer sound may be cut
AT_ONCE = 8  # sounds that Whisper transcribes together


class Transcript(NamedTuple):
    text: str
    confidence: float  # 0 to 1: the mean probability of what was written; 0 where nothing was


Recogniser = Callable[[Sequence[np.ndarray]], list[Transcript]]


def load_recogniser(name: str, device: torch.device | str, language: str) -> Recogniser:
    """A function from sounds at 16 kHz to their transcripts.

    `name`: the hub id or folder of a Whisper or a CTC model, or `demo`. `language`: `pt`, `pt-br`, `en`, …, which
    Whisper is asked for; what a CTC model writes depends on its training alone.
    """
    if name == "demo":
        return in_parts(_load_demo(DEMO_RECOGNISER, device))
    kind = "Whisper or CTC model of transformers"
    return in_parts(load_named(FLAG, name, kind, lambda: _load_published(name, device, language)))


# Long and short sounds


def in_parts(recognise: Recogniser) -> Recogniser:
    """The same for sounds of any length: in pieces of at most 30 s, and not below a tenth of a second."""

    def recognise_all(sounds: Sequence[np.ndarray]) -> list[Transcript]:
        parts = [list(split_long(one)) for one in sounds]
        heard = iter(recognise([part for of_one in parts for part in of_one]))
        return [_join([next(heard) for _ in of_one]) for of_one in parts]

    return recognise_all


def split_long(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of at most 30 s, cut where it is quietest in the last 10 s of each."""
    while len(samples) > LONGEST * RATE:
        first = (LONGEST - LAST) * RATE
        at = first + round(int(frame_levels(samples[first : LONGEST * RATE], RATE).argmin() + 1) * HOP * RATE)
        yield samples[:at]
        samples = samples[at:]
    yield np.pad(samples, (0, max(0, round(SHORTEST * RATE) - len(samples))))


def _join(parts: list[Transcript]) -> Transcript:
    """One transcript; its confidence is the mean over the letters."""
    letters = sum(len(one.text) for one in parts)
    confidence = sum(len(one.text) * one.confidence for one in parts) / max(letters, 1)
    return Transcript(" ".join(one.text for one in parts if one.text), confidence)


def _transcript(text: str, probabilities: torch.Tensor) -> Transcript:
    """`probabilities`: of what was written. Their geometric mean is what Whisper's own thresholds are about."""
    text = " ".join(text.split())
    return Transcript(text, float(probabilities.log().mean().exp()) if text and len(probabilities) else 0.0)


# Models


def _load_demo(folder: Path, device: torch.device | str) -> Recogniser:
    from speech.ctc import load_ctc  # here: other recognisers don't need it

    hear = load_ctc(folder, FLAG, device)
    return lambda sounds: [Transcript(*one) for one in hear(sounds)]


def _load_published(name: str, device: torch.device | str, language: str) -> Recogniser:
    from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

    config = AutoConfig.from_pretrained(name)
    if config.model_type != "whisper" and config.model_type not in MODEL_FOR_CTC_MAPPING_NAMES:
        raise ValueError(f"its config.json is of a {config.model_type}")
    if getattr(config, "adapter_attn_dim", None):
        raise ValueError("it has an adapter for each language, and none is loaded here")
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    if extractor.sampling_rate != RATE:
        raise ValueError(f"it hears sounds of {extractor.sampling_rate:,} Hz; expected {RATE:,}")
    if config.model_type == "whisper":
        return _load_whisper(name, device, language, extractor, tokenizer)
    return _load_ctc(name, device, extractor, tokenizer)


def _load_whisper(name: str, device: torch.device | str, language: str, extractor: Any, tokenizer: Any) -> Recogniser:
    from transformers import WhisperForConditionalGeneration

    model = load_whole(WhisperForConditionalGeneration, name, dtype=torch.float32)
    model.eval().requires_grad_(False).to(device)
    asked = _ask_whisper(model.generation_config, language)
    asked |= {"num_beams": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    special = torch.tensor(tokenizer.all_special_ids, device=device)

    @torch.inference_mode()
    def recognise(sounds: Sequence[np.ndarray]) -> list[Transcript]:
        heard = extractor(list(sounds), sampling_rate=RATE, return_tensors="pt").to(device)  # each filled up to 30 s
        with quiet_hub():  # `generate` warns of flags that it sets itself
            written = model.generate(heard.input_features, **asked)
        tokens = written.sequences[:, -len(written.logits) :]
        each = torch.stack(written.logits, 1).float().softmax(-1).gather(-1, tokens[..., None])[..., 0]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        said = [row[keep] for row, keep in zip(each, ~torch.isin(tokens, special))]
        return [_transcript(text, one) for text, one in zip(texts, said)]

    def recognise_all(sounds: Sequence[np.ndarray]) -> list[Transcript]:
        return [one for at in range(0, len(sounds), AT_ONCE) for one in recognise(sounds[at : at + AT_ONCE])]

    return recognise_all


def _ask_whisper(generation: Any, language: str) -> dict[str, Any]:
    """What Whisper's `generate` is asked to write; ValueError for a language that it doesn't know."""
    code = language.lower().partition("-")[0]
    if not getattr(generation, "is_multilingual", True):  # then it takes neither a language nor a task
        if code != "en":
            raise ValueError(f"it knows English only, not --language {language}")
        return {}
    if f"<|{code}|>" not in generation.lang_to_id:
        raise ValueError(f"it doesn't know --language {language}")
    return {"language": code, "task": "transcribe"}


def _load_ctc(name: str, device: torch.device | str, extractor: Any, tokenizer: Any) -> Recogniser:
    from transformers import AutoModelForCTC

    model = load_whole(AutoModelForCTC, name, dtype=torch.float32)
    model.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def recognise(sound: np.ndarray) -> Transcript:
        heard = extractor(sound, sampling_rate=RATE, return_tensors="pt").to(device)
        best = model(**heard).logits[0].float().softmax(-1).max(-1)
        return _transcript(tokenizer.decode(best.indices), best.values[best.indices != model.config.pad_token_id])

    # One at a time: many of these models know no mask, and hear the silence that a batch is filled up with.
    return lambda sounds: [recognise(one) for one in sounds]
