"""The published configs of a model of each family, and random models of their sizes.

They are Stable Diffusion 1.5, 2.1 and XL, Z-Image-Turbo, FLUX.2 Klein base 4B, Qwen-Image, FLUX.1 dev.

The configs are in published/<family>.json: {file of the diffusers folder: its content}, without the safety checker, and
of the tokenizers only the settings.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from families.models import DEMO_MODEL, build_part
from families.names import FAMILIES
from utils.cli import UserError
from utils.devices import working_device
from utils.files import list_files, parse_json, read_object, read_text, save_model, write_json
from utils.hub import hide_weight_bars
from utils.outputs import replaced_folder

Configs: TypeAlias = dict[str, dict[str, Any]]  # by the name of the file in a diffusers folder
PUBLISHED = Path(__file__).resolve().parent / "published"
# As Qwen3's for a user's turn: its answer would begin here, behind a thought that is empty where none is wanted.
CHAT = """{% for one in messages %}<|im_start|>{{ one.role }}
{{ one.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
RECORD = "random_weights.json"  # in a folder with random weights: what they were made from, and the size of every file


def read_published(family: str, changes: Configs | None = None) -> Configs:
    """The configs of a family's model; `changes` replace single keys of them, to make a smaller model of its kind."""
    configs = parse_json(read_text(PUBLISHED / f"{family}.json"))
    return {name: config | (changes or {}).get(name, {}) for name, config in configs.items()}


def write_configs(family: str, folder: Path, changes: Configs | None = None) -> Path:
    """A diffusers folder that holds configs and no weights: a dry run needs no more."""
    for name, config in read_published(family, changes).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, config)
    return folder


def write_random_model(family: str, folder: Path, dtype: torch.dtype, changes: Configs | None = None) -> Path:
    """A whole diffusers folder of the published sizes with random weights: it trains and generates, but only noise.

    Equal arguments give equal weights on the same kind of device. A folder that is there is used again if it was made
    from the same and is whole; any other is refused. `changes`: see `read_published`.
    """
    configs = read_published(family, changes)
    origin = {"family": family, "dtype": str(dtype).removeprefix("torch."), "configs": configs}
    if folder.is_dir() and any(folder.iterdir()):
        _check_made(folder, origin)
        return folder
    hide_weight_bars()
    with replaced_folder(folder) as new:
        write_configs(family, new, changes)
        parts = {
            part: build_part(str(new), part, dtype)
            for part in (*FAMILIES[family].MODULES, *FAMILIES[family].TEXT_ENCODERS)
        }
        _check_room(folder, new, parts)
        device = working_device()
        generator = torch.Generator(device if device.type == "cuda" else "cpu").manual_seed(0)
        for part, module in parts.items():
            _fill(module.to_empty(device="cpu"), generator)
            save_model(module, new / part)
            module.to("meta")  # one part at a time in memory
        for part in FAMILIES[family].TOKENIZERS:
            _make_tokenizer(configs, part).save_pretrained(new / part)
        write_json(new / RECORD, origin | {"files": {name: found.st_size for name, found in list_files(new).items()}})
    return folder


def _check_made(folder: Path, origin: dict[str, Any]) -> None:
    """Refuse a folder that does not hold exactly what `write_random_model` makes from this origin."""
    advice = "delete it, or give another folder"
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: holds something else than a model with random weights; {advice}")
    record = read_object(folder / RECORD, "what a model with random weights was made from")
    files = record.pop("files", {})
    if record != json.loads(json.dumps(origin)):
        made, wanted = (f"{one.get('family')} in {one.get('dtype')}" for one in (record, origin))
        what = f"{made}, not {wanted}" if made != wanted else f"{made} from other configs"
        raise UserError(f"{folder}: holds random weights of {what}; {advice}")
    found = {name: stat.st_size for name, stat in list_files(folder).items()}
    if damaged := [name for name, size in files.items() if found.get(name) != size]:
        raise UserError(f"{folder}: {damaged[0]} is missing or has another size; {advice}")


def _check_room(folder: Path, new: Path, parts: dict[str, torch.nn.Module]) -> None:
    needed = sum(weight.numel() * weight.element_size() for module in parts.values() for weight in module.parameters())
    free = shutil.disk_usage(new).free
    if free < needed + 2**26:  # some room for the tokenizers and the other small files
        raise UserError(
            f"{folder}: the random weights take {needed / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB free; "
            "give a folder on another disk"
        )


@torch.no_grad()
def _fill(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of what goes through each layer, so that nothing overflows in float16."""
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            values = torch.randn(weight.shape, generator=generator, device=generator.device, dtype=weight.dtype)
            weight.copy_(values * weight[0].numel() ** -0.5)
        else:  # of a normalisation, or a bias
            weight.fill_(float(name.endswith("weight")))
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # whose statistics are no parameters
            part.reset_running_stats()


def bytes_tokenizer(size: int, **settings: Any) -> Qwen2Tokenizer:
    """Of Qwen's kind: a token for every byte, then unused ones, at last those that part the turns of a chat."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = list(bytes_to_unicode().values())
    words += [f"<unused{n}>" for n in range(size - len(words) - len(special))] + special
    vocab = {word: number for number, word in enumerate(words)}
    return Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=special[1:], chat_template=CHAT, **settings)


def letters_tokenizer(size: int, **settings: Any) -> T5Tokenizer:
    """Of T5's kind: its special tokens, one for the start of a word, one for every printable letter, unused ones."""
    words = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    words += [f"<unused{n}>" for n in range(size - len(words))]
    return T5Tokenizer(vocab=[(word, -float(number)) for number, word in enumerate(words)], extra_ids=0, **settings)


def _make_tokenizer(configs: Configs, part: str) -> CLIPTokenizer | Qwen2Tokenizer | T5Tokenizer:
    """The demo's tokenizer with as many tokens as the encoder knows; the special ones come last, as in CLIP."""
    encoder = configs[f"{part.replace('tokenizer', 'text_encoder')}/config.json"]
    settings = configs[f"{part}/tokenizer_config.json"]
    if settings["tokenizer_class"] == "Qwen2Tokenizer":
        limits = {name: settings[name] for name in ("model_max_length", "eos_token", "pad_token")}
        return bytes_tokenizer(encoder.get("text_config", encoder)["vocab_size"], **limits)
    if settings["tokenizer_class"] == "T5Tokenizer":
        return letters_tokenizer(encoder["vocab_size"], model_max_length=settings["model_max_length"])
    model = parse_json(read_text(DEMO_MODEL / "tokenizer" / "tokenizer.json"))["model"]
    special = (settings["bos_token"], settings["eos_token"])
    words = [word for word in sorted(model["vocab"], key=model["vocab"].get) if word not in special]
    unused = [f"<unused{n}>" for n in range(encoder["vocab_size"] - len(words) - len(special))]
    vocab = {word: number for number, word in enumerate((*words, *unused, *special))}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], **settings)
