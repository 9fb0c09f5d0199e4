"""LoRA adapters: attach them, take their weights out and put them back, write and read the files that hold them."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open

from families.sd import ATTENTION
from families.shards import Module, divide, gather
from utils.cli import UserError
from utils.files import write_safetensors
from utils.runs import command_line

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
ADAPTER = "default"
FILE_NAME = "pytorch_lora_weights.safetensors"  # what load_lora_weights looks for in a folder
# What a file says of an adapter: what peft needs to build it again
SETTINGS: dict[str, tuple[str, ...]] = {
    "LORA": ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora"),
    "LOKR": ("r", "alpha", "decompose_factor"),
    "LOHA": ("r", "alpha"),
}
MARKS = {"lokr": ".lokr_", "loha": ".hada_"}  # in the keys of a file
# Of a layer that has diffusers' name, what other programs write beside it or in place of lora_A and lora_B
OF_OTHERS = re.compile(r"transformer\..+\.(alpha|lora_(down|up)\.weight)")
LABELS = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa"}
SETTINGS_KEY = "lora_adapter_metadata"  # where it looks for rank and alpha; without it, it takes alpha = rank


@dataclass(frozen=True)
class Adapter:
    """The settings of a LoRA (Hu et al., 2021, arXiv 2106.09685), or of a LoKr or LoHa (arXiv 2309.14859).

    `targets`: by default those of a UNet; `factor`: of a LoKr, the size that peft divides a side by, -1: near its root.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ATTENTION
    use_dora: bool = False
    use_rslora: bool = False
    kind: str = "lora"
    factor: int = -1


def attach_lora(module: Module, adapter: Adapter, targets: tuple[str, ...] | None = None) -> list[torch.nn.Parameter]:
    """Freeze a denoiser or a text encoder, add an adapter to it, and return the parameters to train, in float32.

    `targets`: the layers to adapt, where they are not the adapter's. The weights come from torch's global generator:
    seed it first. The adapter changes no output before its first step.
    """
    layers = list(targets or adapter.targets)
    check_targets(module, layers)
    module.requires_grad_(False)
    module.add_adapter(_config(adapter, layers), adapter_name=ADAPTER)
    trained = list(_adapter(module).values())
    for parameter in trained:  # a float16 weight would lose its smallest steps, and GradScaler refuses its gradient
        parameter.data = parameter.data.float()
    return trained


def _config(adapter: Adapter, layers: list[str]) -> PeftConfig:
    """The same settings for peft."""
    if adapter.kind == "lokr":
        return LoKrConfig(r=adapter.rank, alpha=adapter.alpha, target_modules=layers, decompose_factor=adapter.factor)
    if adapter.kind == "loha":
        return LoHaConfig(r=adapter.rank, alpha=adapter.alpha, target_modules=layers)
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=layers,
        init_lora_weights="gaussian",
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
    )


def choose_parameters(
    module: Module, adapter: Adapter | None, targets: tuple[str, ...] | None = None
) -> list[torch.nn.Parameter]:
    """What is trained of a module: a new adapter (see `attach_lora`), or without one all its weights."""
    return attach_lora(module, adapter, targets) if adapter else list(module.requires_grad_(True).parameters())


@contextmanager
def without_adapters(modules: Iterable[Module]) -> Iterator[None]:
    """The modules as they are without their adapters while the block runs."""
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def check_targets(module: Module, targets: list[str]) -> None:
    """Refuse a name that no layer has: peft accepts a list if one of its names matches."""
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    names = [name for name, layer in module.named_modules() if isinstance(layer, layers)]
    short = Counter(re.search(r"[^.]+(\.\d+)*$", name).group() for name in names)
    for target in targets or ["(none)"]:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            near = difflib.get_close_matches(target, short, n=3) + [name for name, _ in short.most_common(12)]
            raise UserError(
                f"--lora_layers {target}: the {type(module).__name__} has no layer of that name; "
                f"there are, for example, {', '.join(dict.fromkeys(near))}"
            )


def _adapter(module: Module) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by the names that they have in a file."""
    parameters = {}
    for name, parameter in module.named_parameters():
        if f".{ADAPTER}." in f"{name}.":
            parameters[name.replace(f".{ADAPTER}", "")] = parameter
    return parameters


def prefix_of(denoiser: Module | None) -> str:
    """What the keys of its adapter begin with in a diffusers file."""
    return "unet" if denoiser is None or isinstance(denoiser, UNet2DConditionModel) else "transformer"


def named_adapters(denoiser: Module | None, text_encoders: Iterable[Module]) -> dict[str, torch.nn.Parameter]:
    """Every adapter's parameters by their keys in a diffusers file."""
    named = (
        {} if denoiser is None else {f"{prefix_of(denoiser)}.{key}": value for key, value in _adapter(denoiser).items()}
    )
    for prefix, encoder in zip(("text_encoder", "text_encoder_2"), text_encoders):
        for key, value in _adapter(encoder).items():
            # transformers 5 dropped this level; files kept it, and older versions need it
            named[f"{prefix}.text_model.{key.removeprefix('text_model.')}"] = value
    return named


def lora_state(denoiser: Module | None = None, text_encoders: Iterable[Module] = ()) -> dict[str, torch.Tensor]:
    """The adapters' weights, whole (see shards.gather), on the CPU in float32, by their keys in a diffusers file."""
    named = named_adapters(denoiser, text_encoders)
    whole = {key: gather(value) for key, value in named.items()}
    return {key: value.detach().to("cpu", torch.float32, copy=True).contiguous() for key, value in whole.items()}


@torch.no_grad()
def load_lora_state(
    state: dict[str, torch.Tensor], denoiser: Module | None = None, text_encoders: Iterable[Module] = ()
) -> None:
    """Put back what `lora_state` gave, to the byte, into adapters attached with the same settings."""
    named = named_adapters(denoiser, text_encoders)
    missing, unexpected = sorted(named.keys() - state.keys()), sorted(state.keys() - named.keys())
    wrong = [key for key in named.keys() & state.keys() if named[key].shape != state[key].shape]
    for keys, problem in ((missing, "lacks"), (unexpected, "has, unlike this model,"), (wrong, "differs in shape in")):
        if keys:
            raise UserError(
                f"these LoRA weights don't fit: the file {problem} {len(keys)} tensors, the first being {min(keys)}; "
                "base model, --rank, --lora_layers, --adapter and --train_text_encoder must be those it was made with"
            )
    for key, parameter in named.items():
        parameter.copy_(divide(state[key], parameter))


def _settings(denoiser: Module | None, text_encoders: Iterable[Module]) -> dict[str, Any]:
    """The settings of every adapter, in the shape in which diffusers reads them from a file.

    Only those that matter: an older peft refuses a file with a setting that it doesn't know.
    """
    parts = {prefix_of(denoiser): denoiser, **dict(zip(("text_encoder", "text_encoder_2"), text_encoders))}
    settings = {}
    for prefix, module in parts.items():
        if module is not None and ADAPTER in getattr(module, "peft_config", {}):
            config = module.peft_config[ADAPTER]
            settings[f"{prefix}.target_modules"] = sorted(config.target_modules)
            for key in SETTINGS[config.peft_type]:
                settings[f"{prefix}.{key}"] = getattr(config, key)
    return settings


def adapter_kind(keys: Iterable[str]) -> str:
    """Whether a file with these keys is a lora, a lokr or a loha."""
    names = list(keys)
    return next((kind for kind, mark in MARKS.items() if any(mark in name for name in names)), "lora")


def is_dora(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a DoRA, of ours or of another program."""
    return any(re.search("lora_magnitude|dora_scale", key) for key in keys)


def is_half_renamed(keys: Iterable[str]) -> bool:
    """Whether layers of a transformer have diffusers' names, but alphas of their own, or matrices by kohya's names."""
    names = list(keys)
    return adapter_kind(names) == "lora" and any(OF_OTHERS.fullmatch(name) for name in names)


def fold_alphas(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of such a file by diffusers' names alone, each alpha multiplied in, with others as they are.

    Of such a file diffusers' pipelines leave out the alphas (FLUX.1), or know no layer.
    """
    if not is_half_renamed(state):
        return state
    folded = {}
    for key, value in state.items():
        name = key.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")
        alpha = state.get(f"{name.split('.lora_')[0]}.alpha")
        if ".lora_B." in name and alpha is not None:
            value = (value.float() * (float(alpha) / value.shape[1])).to(value.dtype)
        if not name.endswith(".alpha"):
            folded[name] = value
    return folded


def describe_training(base: str, data: str, **facts: object) -> dict[str, str]:
    """What a file says of itself; `data` is the fingerprint of what trained it. Empty facts are left out."""
    known = {name: str(value) for name, value in facts.items() if value}
    return {"command": command_line(), "base_model": base, "data_fingerprint": data, **known}


def save_lora(
    folder: Path,
    state: dict[str, torch.Tensor],
    denoiser: Module | None,
    text_encoders: Iterable[Module],
    facts: dict[str, str],
) -> Path:
    """Write the file that `pipeline.load_lora_weights(folder)` reads, with rank, alpha and our own facts.

    `state` may differ from what the adapters hold now (an average of it, say); the modules give the settings.
    """
    settings = json.dumps(_settings(denoiser, list(text_encoders)), sort_keys=True)
    path = Path(folder) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, state, {"format": "pt", SETTINGS_KEY: settings, **facts})
    return path


def read_keys(path: Path) -> list[str]:
    """The keys of a LoRA file's tensors."""
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def read_lora(
    path: Path, facts_only: bool = False, flag: str = "--lora"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the facts of a LoRA file, or of the one in a run folder."""
    path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            keys = () if facts_only else file.keys()
            return {key: file.get_tensor(key) for key in keys}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{flag} {path}: can't be read ({' '.join(str(error).split())[:200]}); copy or train it again"
        ) from None
