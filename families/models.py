"""Find a model, its family and its parts, and load them."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from families.names import DEFAULT_MODEL, DEMO_MODEL, FAMILIES, LABELS, MOVED
from families.single_file import convert_single_file
from utils.cli import UserError
from utils.files import parse_json, read_text
from utils.hub import hide_weight_bars, hub_failure, load_named, load_whole, quiet_hub
from utils.images import bucket_shapes

if TYPE_CHECKING:  # prepare_dataset.py needs the names alone, and not the seconds that these take to import
    import torch
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        DDPMScheduler,
        DiffusionPipeline,
        ModelMixin,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

MODULES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}  # of every family, besides its text encoders
VAE_FLAG = "--pretrained_vae_model_name_or_path"
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
WEIGHTS = (".safetensors", *PICKLES)  # a single file, which is not a hub id

logger = logging.getLogger(__name__)


def resolve_model(name: str, cache: Path | None = None, config: str | None = None) -> str:
    """The folder or hub id that a user's --pretrained_model_name_or_path means.

    A single .safetensors file is made a diffusers folder in `cache`, once; `config` is a folder or hub id with the
    configs of such a model, where those that its family has on the hub won't do or can't be reached.
    """
    if name == "demo":
        return str(DEMO_MODEL)
    path = Path(name)
    if name in MOVED and not path.exists():
        logger.warning("%s no longer exists on the hub; using %s, the same weights", name, MOVED[name])
        return MOVED[name]
    if path.suffix in PICKLES and path.is_file():
        raise UserError(
            f"--pretrained_model_name_or_path {name}: a {path.suffix} file is a pickle, which can run any program when "
            "it is read; take the .safetensors file that most models come with"
        )
    if path.suffix == ".safetensors" and path.is_file():
        if cache is None:
            raise UserError(f"--pretrained_model_name_or_path {name}: a diffusers folder is needed here, not one file")
        return str(convert_single_file(path, cache, config))
    if path.exists() and not (path / "model_index.json").is_file():
        raise UserError(f"--pretrained_model_name_or_path {name}: no model_index.json there; give a diffusers folder")
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~")) or path.suffix in WEIGHTS):
        raise UserError(
            f"--pretrained_model_name_or_path {name}: no such folder, and not a hub id (owner/name); "
            "`demo` means the small model that comes with this repository"
        )
    return name


def read_config(model: str, filename: str) -> dict[str, Any]:
    """One JSON file of a diffusers folder or hub repository; no weights are read."""
    try:
        with quiet_hub():
            path = Path(model) / filename if Path(model).is_dir() else Path(hf_hub_download(model, filename))
        config = parse_json(read_text(path))
        if not isinstance(config, dict):
            raise ValueError(f"expected an object in braces, found a {type(config).__name__}")
        return config
    except (OSError, ValueError, HfHubHTTPError) as error:
        detail = hub_failure(error)
        hint = "`demo` needs no network" if not Path(model).is_dir() else "the folder is incomplete"
        raise UserError(
            f"--pretrained_model_name_or_path {model}: {filename} can't be read ({detail}); {hint}"
        ) from error


def model_family(model: str) -> str:
    """A name of FAMILIES, read from the model's own configs."""
    index = read_config(model, "model_index.json")
    module = next((module for module in FAMILIES.values() if module.is_mine(index)), None)
    if module is None:
        kind, known = index.get("_class_name"), ", ".join(LABELS.values())
        raise UserError(f"{model}: a {kind} has no UNet; supported are {known}")
    return module.find_version(read_config(model, "unet/config.json"))


def vae_step(config: dict[str, Any]) -> int:
    """Pixels that one latent of the VAE of this config stands for, along a side."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def _load(model: str, load: Callable[[], Any]) -> Any:
    """What `load` returns; any error of a missing part, a damaged file or an absent network becomes one line."""
    hide_weight_bars()
    try:
        with quiet_hub():
            return load()
    except Exception as error:  # each library raises its own
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        advice = ""
        if not Path(model).is_dir():
            detail, advice = hub_failure(error), "; `demo` needs no network"
        raise UserError(f"--pretrained_model_name_or_path {model}: can't be loaded ({detail}){advice}") from error


def load_pipeline(name: str, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """The whole pipeline on the device, its VAE in float32 where the rest is float16."""
    import torch

    pipeline = fill_pipeline(resolve_model(name), {}, dtype)
    pipeline.to(device)
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)  # faster, also on a CPU
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fill_pipeline(model: str, parts: dict[str, Any], dtype: torch.dtype) -> DiffusionPipeline:
    """The model's pipeline around these parts; the others are its own, the VAE in float32 where the rest is float16."""
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()  # which counts the parts
    module = FAMILIES[model_family(model)]
    own = {part: kind for part, kind in MODULES.items() | module.TEXT_ENCODERS.items() if part not in parts}
    for part, kind in own.items():
        needed = torch.float32 if part == "vae" and dtype == torch.float16 else dtype
        parts = parts | {part: _load_frozen(kind, model, part, needed)}
    return _load(model, lambda: DiffusionPipeline.from_pretrained(model, **module.PIPELINE_OPTIONS, **parts))


def load_tokenizers(model: str, family: str) -> list[CLIPTokenizer]:
    from transformers import CLIPTokenizer

    def load(part: str) -> CLIPTokenizer:
        tokenizer = CLIPTokenizer.from_pretrained(model, subfolder=part)
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # made from a folder without files
            raise ValueError(f"{part}/ has no vocabulary")
        return tokenizer

    return [_load(model, functools.partial(load, part)) for part in FAMILIES[family].TOKENIZERS]


def load_text_encoders(model: str, family: str, dtype: torch.dtype) -> tuple[list[CLIPTokenizer], list[CLIPTextModel]]:
    """Tokenizers and frozen text encoders: one of each, two for SDXL."""
    encoders = [_load_frozen(kind, model, part, dtype) for part, kind in FAMILIES[family].TEXT_ENCODERS.items()]
    return load_tokenizers(model, family), encoders


def build_part(model: str, part: str, dtype: torch.dtype | None = None) -> ModelMixin | PreTrainedModel:
    """`unet`, `vae`, `text_encoder` or `text_encoder_2` on the meta device, from its config alone, frozen.

    By default it is in float32.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = read_config(model, f"{part}/config.json")
    with torch.device("meta"):
        if part in ("unet", "vae"):
            module = (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(config)
        else:
            kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
            module = kind._from_config(CLIPTextConfig.from_dict(config))
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype or torch.float32)
    return module.eval().requires_grad_(False)


def _load_frozen(kind: str, model: str, part: str, dtype: torch.dtype) -> Any:
    """A part of a class of diffusers or transformers, with all of its weights."""
    import diffusers
    import transformers

    library = diffusers if hasattr(diffusers, kind) else transformers
    module = _load(model, lambda: load_whole(getattr(library, kind), model, subfolder=part, dtype=dtype))
    return module.eval().requires_grad_(False)


def load_vae(model: str, dtype: torch.dtype | None = None, vae: str | None = None) -> AutoencoderKL:
    """The VAE, frozen; float32 by default. Never load it in float16, where it gives NaN.

    `vae`: another one, by its own hub id or folder (see `check_vae`).
    """
    import torch
    from diffusers import AutoencoderKL

    dtype = dtype or torch.float32
    if vae is None:
        return _load_frozen(MODULES["vae"], model, "vae", dtype)
    found = load_named(VAE_FLAG, vae, "VAE", lambda: load_whole(AutoencoderKL, vae, dtype=dtype))
    return found.eval().requires_grad_(False)


def check_vae(model: str, vae: str) -> None:
    """Refuse a VAE whose latents are not of the form of the model's own; only its config is read."""
    from diffusers import AutoencoderKL

    config = load_named(VAE_FLAG, vae, "VAE", lambda: AutoencoderKL.load_config(vae))
    own, other = (
        (one.get("latent_channels", 4), vae_step(one)) for one in (read_config(model, "vae/config.json"), config)
    )
    if own != other:
        raise UserError(f"{VAE_FLAG} {vae}: its latents are not those of {model}'s VAE; give one of the same family")


def load_unet(model: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet, frozen."""
    return _load_frozen(MODULES["unet"], model, "unet", dtype)


def load_controlnet(name: str, model: str, dtype: torch.dtype) -> ControlNetModel:
    """The ControlNet of a hub id or folder; refuses one that does not fit the model's UNet."""
    from diffusers import ControlNetModel

    def load() -> ControlNetModel:
        kind = ControlNetModel.load_config(name).get("_class_name")
        if kind != "ControlNetModel":
            raise ValueError(f"its config.json is of a {kind}")
        return load_whole(ControlNetModel, name, dtype=dtype)

    net, unet = load_named("--controlnet", name, "ControlNet", load), read_config(model, "unet/config.json")
    for key in ("cross_attention_dim", "block_out_channels", "in_channels"):
        theirs, ours = (list(one) if isinstance(one, (list, tuple)) else one for one in (net.config[key], unet[key]))
        if theirs != ours:
            raise UserError(
                f"--controlnet {name}: made for another family of models ({key} {theirs}, this model's is {ours})"
            )
    return net


def tune_unet(unet: UNet2DConditionModel, checkpointing: dict[str, Any] | None, xformers: bool, compiled: bool) -> None:
    """Switch on what saves memory or time in training; `checkpointing`: options for torch's checkpoint, if wanted."""
    if checkpointing:
        from torch.utils.checkpoint import checkpoint

        unet.enable_gradient_checkpointing(functools.partial(checkpoint, **checkpointing))
    if xformers:
        unet.enable_xformers_memory_efficient_attention()
    if compiled:
        unet.compile_repeated_blocks()


def latent_scale(model: str, vae: str | None = None) -> float:
    """The factor of the VAE (see `load_vae`) from its latents to those of the UNet."""
    config = read_config(vae, "config.json") if vae else read_config(model, "vae/config.json")
    return config.get("scaling_factor", 0.18215)


def load_noise_scheduler(model: str) -> DDPMScheduler:
    """The noise schedule that the model was trained with, and what it predicts; one of another kind is refused."""
    from diffusers import DDPMScheduler

    kind = read_config(model, "scheduler/scheduler_config.json").get("_class_name", "")
    if str(kind).startswith(("EDM", "FlowMatch")):  # its noise levels would be read as those of DDPM
        raise UserError(f"{model}: its {kind} is not supported, only DDPM's noise; give another model")
    return _load(model, lambda: DDPMScheduler.from_pretrained(model, subfolder="scheduler"))


def empty_prompt_is_zero(model: str) -> bool:
    """Whether the model's pipeline takes zeros for no prompt, and not what the encoders make of an empty text."""
    return FAMILIES[model_family(model)].empty_prompt_is_zero(read_config(model, "model_index.json"))


def fingerprint(module: ModelMixin | PreTrainedModel) -> str:
    """A sha256 over the module's settings and weights, whatever its folder, device or layout it has."""
    import torch

    config = module.config if isinstance(module.config, dict) else module.config.to_dict()
    # not where it was loaded from, nor by which version
    config = {key: value for key, value in config.items() if key[0] != "_" and key != "transformers_version"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def too_long(texts: list[str], tokenizer: CLIPTokenizer) -> tuple[int, int, str]:
    """How many of the distinct texts a tokenizer cuts off, its limit in tokens, and one of them as an example."""
    limit = min(77, tokenizer.model_max_length)  # a tokenizer that doesn't know its own says 10^30
    distinct = list(dict.fromkeys(texts))
    lengths = map(len, tokenizer(distinct, verbose=False)["input_ids"])
    over = [text for text, length in zip(distinct, lengths) if length > limit]
    return len(over), limit, over[0] if over else ""


def report_long_captions(tokenizer: CLIPTokenizer, texts: list[str], what: str = "captions") -> int:
    """Warn of texts that pass the tokenizer's limit, since what is beyond it is not seen; how many there are."""
    distinct = [text for text in dict.fromkeys(texts) if text]
    over, limit, example = too_long(distinct, tokenizer) if distinct else (0, 0, "")
    if over:
        longest = max(map(len, tokenizer(distinct, verbose=False).input_ids))
        message = "%d of %d %s are longer than the tokenizer's limit of %d tokens (up to %d) and cut off there, as: %s"
        logger.warning(message, over, len(distinct), what, limit, longest, shorten(example, 200))
    return over


def add_model_flags(parser: argparse.ArgumentParser, of_lora: bool = False) -> None:
    """`of_lora`: where no model is named, it is the one that the LoRA was trained on."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--pretrained_model_name_or_path",
        default=None if of_lora else DEFAULT_MODEL,
        metavar="HUB_ID|DIR|FILE|demo",
        help="Stable Diffusion 1.x, 2.x or XL: a hub id, a diffusers folder, a .safetensors file, or demo"
        + f"; default: the one that the LoRA was trained on, else {DEFAULT_MODEL}" * of_lora,
    )
    group.add_argument("--model_config", metavar="DIR|HUB_ID", help="configs for a single file, if the hub's won't do")
    group.add_argument(
        "--prediction_type",
        choices=["epsilon", "v_prediction", "sample"],
        help="what the UNet predicts; default: as the model says",
    )


def side_step(model: str) -> int:
    """What an image's sides must be multiples of, so that the VAE and every level of the UNet can halve them."""
    vae, unet = (read_config(model, f"{part}/config.json") for part in ("vae", "unet"))
    levels = unet.get("block_out_channels", (320, 640, 1280, 1280))  # a config may leave out diffusers' defaults
    return vae_step(vae) * 2 ** (len(levels) - 1)


def training_shapes(model: str, resolution: int, buckets: bool) -> list[tuple[int, int]]:
    """The (width, height) that images are fitted to: the square, with `buckets` also other shapes of its area."""
    step = side_step(model)
    if resolution % step:
        near = max(step, round(resolution / step) * step)
        raise UserError(f"--resolution {resolution}: this model takes multiples of {step}, such as {near}")
    return bucket_shapes(resolution, step) if buckets else [(resolution, resolution)]
