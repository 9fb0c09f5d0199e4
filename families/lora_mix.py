"""LoRAs to generate with: found, checked against the model, loaded, and fused into its weights."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin

from families.lora import FILE_NAME, read_lora
from families.models import read_config
from families.names import DEMO_MODEL, FAMILIES, LABELS, MOVED
from utils.cli import UserError

WIDTHS = {module.TEXT_WIDTHS[name]: name for name, module in FAMILIES.items()}


class Lora(NamedTuple):
    path: Path  # of the file
    weight: float


def split_weight(spec: str) -> tuple[str, str]:
    """`runs/x:0.8` -> ("runs/x", "0.8"); the weight is 1 where none is given."""
    name, colon, weight = spec.rpartition(":")
    return (name, weight) if colon and "/" not in weight and not Path(spec).exists() else (spec, "1")


def parse_lora(spec: str) -> Lora:
    """`runs/x`, `runs/x/best` or `file.safetensors`, each with or without a weight, as in `runs/x:0.8`."""
    name, weight = split_weight(spec)
    if not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?", weight) or abs(float(weight)) > 100:
        raise UserError(f"--lora {spec}: its weight is `{weight}`; expected a number, -100 to 100, as in {name}:0.8")
    path = Path(name)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.is_file():
            advice = "name a finished run, its best/, or a file"
            if (path.parent / "model_index.json").is_file():
                advice = "it is a complete pipeline: give it as --pretrained_model_name_or_path"
            raise UserError(f"--lora {spec}: {name} holds no {FILE_NAME}; {advice}")
    elif not path.is_file():
        raise UserError(f"--lora {spec}: no such file or folder; name a run folder, its best/, or a .safetensors file")
    elif path.suffix != ".safetensors":
        raise UserError(f"--lora {spec}: not a .safetensors file; other kinds are pickles, which can run any program")
    return Lora(path, float(weight))


def lora_family(state: dict[str, torch.Tensor], facts: dict[str, str], own: str, width: int) -> tuple[str | None, int]:
    """The family that a LoRA was made for (None: no known one), and the width of the text features it reads.

    `own` and `width` are those of the model; they are returned where the LoRA says nothing else.
    """
    named = facts.get("ss_base_model_version", "")
    family = next((one for one, module in FAMILIES.items() if named.startswith(module.KOHYA_BASES[one][0])), None)
    if any(re.search(r"text_encoder_2|lora_te2_", key) for key in state):
        family = family or "sdxl"
    found = [
        value.shape[1]
        for key, value in state.items()
        if re.search(r"attn2[._](processor\.)?to_[kv]", key) and re.search(r"lora_A|lora_down|lora\.down", key)
    ]
    if not found:
        return family or own, width  # it has no layer that reads texts
    return family or (own if found[0] == width else WIDTHS.get(found[0])), found[0]


def same_base(first: str, second: str) -> bool:
    def place(name: str) -> str:
        name = str(DEMO_MODEL) if name == "demo" else MOVED.get(name, name)
        return str(Path(name).resolve()) if Path(name).exists() else name

    return place(first) == place(second)


def check_whole(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Refuse a LoRA where a layer has one matrix of two (peft would fill in random numbers), or NaN."""
    halves: dict[bool, set[str]] = {True: set(), False: set()}
    for key, value in state.items():
        if found := re.search(r"[._]lora([._])(A|B|down|up)\b", key):
            halves[found[2] in ("A", "down")].add(key[: found.start()])
        if not value.isfinite().all():
            raise UserError(f"--lora {path}: {key} holds NaN or infinity; take an earlier checkpoint, or train again")
    if odd := sorted(halves[True] ^ halves[False]):
        raise UserError(
            f"--lora {path}: {len(odd)} layers have one matrix of two, such as {odd[0]}; the file is damaged"
        )


def check_base(lora: Lora, model_name: str) -> None:
    """Refuse a LoRA whose file names another base model than this one."""
    base = read_lora(lora.path)[1].get("base_model")
    if base and not same_base(base, model_name):
        raise UserError(
            f"--lora {lora.path}: trained on {base}, and --pretrained_model_name_or_path is {model_name}; give that "
            "one, or add --allow_other_base where the two are known to go together"
        )


def check_lora(lora: Lora, model_name: str, model: str, family: str) -> None:
    """Refuse a LoRA that is damaged or was made for another family of models."""
    state, facts = read_lora(lora.path)
    check_whole(lora.path, state)
    width = read_config(model, "unet/config.json")["cross_attention_dim"]
    theirs, reads = lora_family(state, facts, family, width)
    if theirs != family or reads != width:
        made_for = LABELS.get(theirs, "another kind of model")
        raise UserError(
            f"--lora {lora.path}: made for {made_for} (text features {reads} wide), but {model_name} is "
            f"{LABELS[family]} ({width} wide); take the base model that it was trained on"
            + (f", {facts['base_model']}" if facts.get("base_model") else "")
        )


def apply_loras(pipeline: StableDiffusionLoraLoaderMixin, loras: Sequence[Lora]) -> None:
    """Load them and fuse them into the weights; several stay unfused where one of them is a DoRA.

    Fused, a step costs what it costs without a LoRA. Sums of plain LoRAs are the same either way, DoRA's norms are not.
    """
    # diffusers warns of a LoRA of one part alone for each other part, and lists every layer of one that doesn't fit:
    # the errors below say what matters.
    for module in ("lora_base", "peft"):
        logger = logging.getLogger(f"diffusers.loaders.{module}")
        logger.addFilter(lambda record: not re.search("No LoRA keys|was unsuccessful", record.getMessage()))
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras):
        try:
            pipeline.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, adapter_name=name)
        except (ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"--lora {lora.path}: doesn't fit this model ({_misfit(str(error))})") from error
        if not any(name in adapters for adapters in pipeline.get_list_adapters().values()):
            raise UserError(f"--lora {lora.path}: has no layer of this model; is it a LoRA?")
    pipeline.set_adapters(names, [lora.weight for lora in loras])
    parts = [part for part in ("unet", "text_encoder", "text_encoder_2") if getattr(pipeline, part, None) is not None]
    if len(loras) == 1 or not any(_has_dora(getattr(pipeline, part)) for part in parts):
        pipeline.fuse_lora(components=parts, adapter_names=names)
        pipeline.unload_lora_weights()


def _misfit(message: str) -> str:
    """The first layer that differs, of an error that lists them all."""
    found = re.search(r"size mismatch for (\S+?)\.lora\S*: .*?Size\((.+?)\).*?Size\((.+?)\)", message, re.DOTALL)
    if found:
        return f"{found[1]} has {found[2]} numbers, and {found[3]} here; take the base model that it was trained on"
    return " ".join(message.split())[:200]


def _has_dora(module: torch.nn.Module) -> bool:
    return any(config.use_dora for config in getattr(module, "peft_config", {}).values())
