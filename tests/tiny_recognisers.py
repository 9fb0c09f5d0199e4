"""Recognisers of random weights, built from configs and saved as the hub has them."""

import json
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

RATE = 16_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = ["startoftranscript", "en", "pt", "translate", "transcribe", "notimestamps"]
SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


def save_whisper(folder: Path, **generation: object) -> str:
    """A Whisper of random weights, with the tokens that the published ones have."""
    folder.mkdir()
    words = {character: number for number, character in enumerate(["!", "Ġ", *LETTERS])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|{mark}|>" for mark in MARKS]})
    ids = {mark: tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for mark in [*MARKS, "endoftext"]}
    ends = {key: ids["endoftext"] for key in ("eos_token_id", "pad_token_id", "bos_token_id")}
    start = {"decoder_start_token_id": ids["startoftranscript"]}
    sizes = {f"{part}_{key}": size for part in ("encoder", "decoder") for key, size in SIZES.items()}
    texts = {"suppress_tokens": None, "begin_suppress_tokens": None, "max_target_positions": 16}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=len(tokenizer), d_model=16, **sizes, **ends, **start, **texts)
    )
    asked = {
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": ids[code] for code in ("en", "pt")},
        "task_to_id": {task: ids[task] for task in ("transcribe", "translate")},
        "no_timestamps_token_id": ids["notimestamps"],
    }
    model.generation_config = GenerationConfig(**(asked | generation), **ends, **start, max_length=12)
    for part in (model, tokenizer, WhisperFeatureExtractor()):
        part.save_pretrained(folder)
    return str(folder)


def save_ctc(folder: Path, rate: int = RATE, **options: object) -> str:
    """A Wav2Vec2 of random weights."""
    folder.mkdir()
    words = {character: number for number, character in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}
    (folder / "vocab.json").write_text(json.dumps(words))
    torch.manual_seed(0)
    layers = {"conv_dim": (16, 16), "conv_stride": (16, 20), "conv_kernel": (16, 20), "num_feat_extract_layers": 2}
    inner = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    some = {
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": len(words),
        "pad_token_id": 0,
    }
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**layers, **inner, **some, **options))
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=rate)
    for part in (model, Wav2Vec2CTCTokenizer(str(folder / "vocab.json")), extractor):
        part.save_pretrained(folder)
    return str(folder)
