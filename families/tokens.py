"""A new word for the text encoders: one embedding in each, trained by itself, kept in a file of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from families.lora import read_lora
from utils.cli import UserError
from utils.files import write_safetensors

logger = logging.getLogger(__name__)
FILES = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")  # of the first text encoder, and SDXL's second


class Token(NamedTuple):
    """A word and its embeddings."""

    text: str
    vectors: list[torch.nn.Parameter]  # (1, width), one for each text encoder, in float32


def first_vector(tokenizer: CLIPTokenizer, table: torch.Tensor, like: str | None) -> torch.Tensor:
    """(1, width): the mean of what the words of `like` have, or a random one that resembles the other embeddings."""
    table = table.detach().float().cpu()
    if like is None:
        return table.mean(0, keepdim=True) + table.std(0, keepdim=True) * torch.randn(1, table.shape[1])
    ids = tokenizer(like, add_special_tokens=False).input_ids
    if not ids:
        raise UserError(f"--initializer_token {like!r}: the tokenizer finds no word in it; give one, such as shoes")
    return table[ids].mean(0, keepdim=True)


def check_unknown(tokenizer: CLIPTokenizer, word: str, flag: str) -> None:
    """Refuse a word that has an embedding already; `flag` is what gave it."""
    if len(tokenizer.tokenize(word)) == 1:
        raise UserError(f"{flag}{word}: the tokenizer knows this word already; choose another, as <sks>")


def add_token(
    tokenizers: list[CLIPTokenizer], encoders: list[CLIPTextModel], text: str, vectors: list[torch.Tensor], flag: str
) -> Token:
    """Add the word to tokenizers and encoders. Gradients flow to its embedding alone; all others stay as they are."""
    trained = []
    for tokenizer, encoder, vector in zip(tokenizers, encoders, vectors):
        check_unknown(tokenizer, text, flag)
        tokenizer.add_tokens(text)
        number = tokenizer.convert_tokens_to_ids(text)
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings()
        table.weight.requires_grad_(False)
        parameter = torch.nn.Parameter(vector.to(table.weight.device, torch.float32).clone())

        table.register_forward_hook(_replace_embedding(number, parameter))
        trained.append(parameter)
    return Token(text, trained)


def _replace_embedding(
    number: int, vector: torch.nn.Parameter
) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    """A hook for the table of embeddings: the vector in the place of the word's number."""

    def replace(_table: torch.nn.Module, ids: tuple[torch.Tensor, ...], embeddings: torch.Tensor) -> torch.Tensor:
        return torch.where((ids[0] == number)[..., None], vector.to(embeddings), embeddings)

    return replace


def new_token(tokenizers: list[CLIPTokenizer], encoders: list[CLIPTextModel], text: str, like: str | None) -> Token:
    """A word with its first embedding; a random one comes from torch's global generator."""
    pairs = zip(tokenizers, encoders)
    tables = [first_vector(tokenizer, encoder.get_input_embeddings().weight, like) for tokenizer, encoder in pairs]
    return add_token(tokenizers, encoders, text, tables, "--train_token ")


def write_token(folder: Path, token: Token, facts: dict[str, str]) -> None:
    """The files that `pipeline.load_textual_inversion(folder)` reads: {word: (1, width)}."""
    for name, vector in zip(FILES, token.vectors):
        state = {token.text: vector.detach().to("cpu", torch.float32, copy=True)}
        write_safetensors(folder / name, state, {"format": "pt", **facts})


@torch.no_grad()
def load_token(files: dict[str, dict[str, torch.Tensor]], token: Token) -> None:
    """Put back what `write_token` wrote, from a checkpoint's files."""
    for name, vector in zip(FILES, token.vectors):
        state = files.get(Path(name).stem, {})
        if token.text not in state:
            raise UserError(f"--train_token {token.text}: the checkpoint holds no embedding of it; give the same word")
        vector.copy_(state[token.text])


def token_files(folder: Path) -> list[Path]:
    """The files of a word that was trained with the LoRA in a folder."""
    return [folder / name for name in FILES if (folder / name).is_file()]


def learnt_word(folder: Path) -> str | None:
    """The word that was trained with the LoRA in a folder, if there is one."""
    return next((word for path in token_files(folder)[:1] for word in read_lora(path)[0]), None)


def warn_missing_word(folder: Path, word: str, texts: list[str]) -> None:
    """Warn where texts lack the word that comes with the LoRA in a folder; CLIP's tokenizers ignore case."""
    without = [text for text in dict.fromkeys(texts) if word.lower() not in text.lower()]
    if without:
        message = "--lora %s comes with the word %s, and %d of %d prompts lack it, as: %s"
        logger.warning(message, folder, word, len(without), len(set(texts)), shorten(without[0], 200))


def read_token(folder: Path, word: str, tokenizers: list[CLIPTokenizer], encoders: list[CLIPTextModel]) -> Token:
    """What was trained with the LoRA in a folder, added to tokenizers and encoders as this word."""
    states = [read_lora(path)[0] for path in token_files(folder)[: len(encoders)]]
    if len(states) < len(encoders):
        raise UserError(f"--lora {folder}: holds one of {' and '.join(FILES)}, and SDXL needs both; bring the other")
    vectors = [vector for state in states for vector in state.values()]
    return add_token(tokenizers, encoders, word, vectors, f"--lora {folder}:word=")
