"""The captions that the demo models are trained on, and the tokenizer that is trained on them."""

import json
import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from demo.catalogue import product
from demo.shoes import KINDS

MAX_TOKENS = 32
OWNER = {"Men": "men's", "Women": "women's", "Unisex": "unisex", "Boys": "boys'", "Girls": "girls'"}


def caption(row: dict[str, str], rng: random.Random) -> str:
    """A caption in one of several forms; "casual" and "shoes" are both in it only if the kind has that name."""
    colour, kind, season = row["baseColour"].lower(), row["articleType"].lower(), row["season"].lower()
    usage = row["usage"].lower()
    if usage == "casual" and kind.endswith("shoes"):
        usage = "everyday"
    return rng.choice(
        [
            f"a professional product photo of {colour} {kind}, {season} collection, {OWNER[row['gender']]}, "
            "centered on white background",
            f"a professional product photo of {colour} {kind}",
            f"a product photo of {usage} {colour} {kind}",
            f"a photo of {colour} {kind}",
            f"{colour} {kind}",
            f"{kind} in {colour}, on white background",
        ]
        + ([] if kind.endswith("shoes") else [f"{colour} shoes, {kind}"])
    )


def make_tokenizer(seed: int) -> CLIPTokenizer:
    """A byte-level BPE with CLIP's special tokens and its end-of-word mark, trained on the captions alone."""
    rng = random.Random(seed)
    rows = [product(seed, index, list(KINDS)) for index in range(4000)]
    start, end = "<|startoftext|>", "<|endoftext|>"
    learner = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=alphabet, special_tokens=[], end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator((caption(row, rng) for row in rows), trainer)
    trained = json.loads(learner.to_str())["model"]
    # CLIP's vocabulary holds every byte alone and ending a word, so that no text is unknown.
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [token for token in sorted(trained["vocab"], key=trained["vocab"].get) if token not in set(tokens)]
    vocab = {token: index for index, token in enumerate([*tokens, start, end])}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in trained["merges"]], model_max_length=MAX_TOKENS)


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, padded to the full length: (n, 32)."""
    padded = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return padded.input_ids
