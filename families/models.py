"""Find a model, its family and its parts, and load them."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import math
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from families import sd
from families.names import DEFAULT_MODEL, DEMO_MODEL, FAMILIES, LABELS, MOVED, PUBLISHED
from families.single_file import convert_single_file
from utils.cli import Range, UserError
from utils.files import parse_json, read_text
from utils.hub import find_file, hide_weight_bars, hub_failure, load_named, load_whole, quiet_hub
from utils.images import bucket_shapes

if TYPE_CHECKING:  # prepare_dataset.py needs the names alone, and not the seconds that these take to import
    import torch
    from diffusers import ControlNetModel, DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from families.diffusion import Features

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


@functools.cache
def _download(model: str, filename: str) -> Path:
    """A file of a hub repository; asked for once, as each time is a request, also for a file that is there."""
    return Path(hf_hub_download(model, filename))


def read_config(model: str, filename: str) -> dict[str, Any]:
    """One JSON file of a diffusers folder or hub repository; no weights are read."""
    try:
        with quiet_hub():
            path = Path(model) / filename if Path(model).is_dir() else _download(model, filename)
        config = parse_json(read_text(path))
        if not isinstance(config, dict):
            raise ValueError(f"expected an object in braces, found a {type(config).__name__}")
        return config
    except (OSError, ValueError, HfHubHTTPError) as error:
        detail = hub_failure(error)
        hint = "`demo` needs no network" if not Path(model).is_dir() else "the folder is incomplete"
        if model in PUBLISHED:
            hint = "--dry_run needs its configs alone; docs/models.md#recipes says how to write them without a network"
        raise UserError(
            f"--pretrained_model_name_or_path {model}: {filename} can't be read ({detail}); {hint}"
        ) from error


def model_family(model: str) -> str:
    """A name of FAMILIES, read from the model's own configs."""
    index = read_config(model, "model_index.json")
    module = next((module for module in FAMILIES.values() if module.is_mine(index)), None)
    if module is None:
        kind, known = index.get("_class_name"), ", ".join(LABELS.values())
        raise UserError(f"{model}: a {kind} can't be used; supported are {known}")
    return module.find_version(read_config(model, f"{module.DENOISER}/config.json"))


def denoiser_config(model: str) -> dict[str, Any]:
    return read_config(model, f"{FAMILIES[model_family(model)].DENOISER}/config.json")


def reads_guidance(model: str) -> bool:
    """Whether the denoiser reads a guidance scale as a number in training, as FLUX.1 dev does."""
    module = FAMILIES[model_family(model)]
    return module.TRAINING_GUIDANCE is not None and bool(denoiser_config(model).get("guidance_embeds"))


def vae_step(config: dict[str, Any]) -> int:
    """Pixels that one latent of the VAE of this config stands for, along a side."""
    halvings = config.get("temperal_downsample") or config["block_out_channels"][1:]  # the former of Qwen-Image's
    return 2 ** len(halvings)


def latent_channels(config: dict[str, Any]) -> int:
    """Of the latents of the VAE of this config."""
    return config.get("z_dim") or config.get("latent_channels", 4)


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

    model = resolve_model(name)
    pipeline = fill_pipeline(model, {}, dtype)
    pipeline.to(device)
    for part in (getattr(pipeline, FAMILIES[model_family(model)].DENOISER), pipeline.vae):
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
    own = {part: kind for part, kind in module.MODULES.items() | module.TEXT_ENCODERS.items() if part not in parts}
    for part, kind in own.items():
        needed = torch.float32 if part == "vae" and dtype == torch.float16 else dtype
        parts = parts | {part: _load_frozen(kind, model, part, needed)}
    return _load(model, lambda: DiffusionPipeline.from_pretrained(model, **module.PIPELINE_OPTIONS, **parts))


@dataclass(frozen=True)
class TextReading:
    """How texts are encoded."""

    length: int | None = None  # tokens of each; None: as many as the family reads
    clip_skip: int = 0  # layers of CLIP that are left out at its end, as diffusers' pipelines count them
    quantized: str | None = None  # how the encoders' weights are rounded, see families.quantized


PLAIN_READING = TextReading()


def token_limit(model: str, family: str, length: int | None = None) -> int:
    """How many tokens of a text are read: `length`, or else the family's own; refuses a --max_sequence_length.

    Of a UNet, one that is not of whole parts of 75 tokens; of a transformer, one that is more than it reads.
    """
    module = FAMILIES[family]
    most = module.MAX_SEQUENCE_LENGTH
    if module.DENOISER == "unet":
        if length and (length < most or (length - most) % (most - 2)):
            fits = 2 + (most - 2) * math.ceil((length - 2) / (most - 2))
            reads = f"{LABELS[family]} reads begin and end of a text with 75 tokens between them, or 150, 225, …"
            raise UserError(f"--max_sequence_length {length}: {reads}; give {fits}, or leave it out")
        return length or most
    # The last tokenizer's own limit may be lower: that of FLUX.1 schnell is half of dev's.
    most = min(most, read_config(model, f"{[*module.TOKENIZERS][-1]}/tokenizer_config.json")["model_max_length"])
    if length and length > most:
        problem = f"{LABELS[family]} reads at most {most} tokens of a text; give {most} at most, or leave it out"
        raise UserError(f"--max_sequence_length {length}: {problem}")
    return length or most


def check_reading(model: str, family: str, reading: TextReading) -> None:
    """Refuse a --max_sequence_length or --clip_skip that the model can't have."""
    token_limit(model, family, reading.length)
    if not (skip := reading.clip_skip):
        return
    module, flag = FAMILIES[family], f"--clip_skip {skip}"
    if module.DENOISER != "unet":
        raise UserError(f"{flag}: not for {LABELS[family]}, whose texts it does not change; leave it out")
    layers = min(read_config(model, f"{part}/config.json")["num_hidden_layers"] for part in module.TEXT_ENCODERS)
    most = layers - (2 if family == "sdxl" else 1)  # SDXL leaves out one more
    if skip > most:
        raise UserError(f"{flag}: the text encoder of {LABELS[family]} has {layers} layers here; give {most} at most")


def choose_encode(family: str, clip_skip: int = 0) -> Callable[..., list[Features]]:
    """The family's `encode_text`, without so many layers of CLIP."""
    encode = FAMILIES[family].encode_text
    return functools.partial(encode, clip_skip=clip_skip) if clip_skip else encode


def load_tokenizers(model: str, family: str, length: int | None = None) -> list[PreTrainedTokenizerBase]:
    """They cut texts off at `token_limit`; those that read less, at their own limit."""
    import transformers

    limit = token_limit(model, family, length)
    cut = sd.joined_length if FAMILIES[family].DENOISER == "unet" else min

    def load(part: str, kind: str) -> PreTrainedTokenizerBase:
        tokenizer = getattr(transformers, kind).from_pretrained(model, subfolder=part)
        # One made from a folder without files has only special tokens; T5's also begins a word.
        if not set(tokenizer.get_vocab()) - {*tokenizer.all_special_tokens, "▁"}:
            raise ValueError(f"{part}/ has no vocabulary")
        tokenizer.model_max_length = cut(limit, tokenizer.model_max_length)  # one that names none has 10^30
        return tokenizer

    return [_load(model, functools.partial(load, *one)) for one in FAMILIES[family].TOKENIZERS.items()]


def load_text_encoders(
    model: str, family: str, dtype: torch.dtype, length: int | None = None
) -> tuple[list[PreTrainedTokenizerBase], list[PreTrainedModel]]:
    """Tokenizers (see `load_tokenizers`) and frozen text encoders, as many of each as the family has."""
    encoders = [_load_frozen(kind, model, part, dtype) for part, kind in FAMILIES[family].TEXT_ENCODERS.items()]
    return load_tokenizers(model, family, length), encoders


def build_part(model: str, part: str, dtype: torch.dtype | None = None) -> ModelMixin | PreTrainedModel:
    """A part of the model (`unet`, `vae`, `text_encoder`…) on the meta device, from its config alone, frozen.

    By default it is in float32.
    """
    import diffusers
    import torch
    import transformers

    config, module = read_config(model, f"{part}/config.json"), FAMILIES[model_family(model)]
    with torch.device("meta"):
        if part in module.MODULES:
            built = getattr(diffusers, module.MODULES[part]).from_config(config)
        else:
            kind = getattr(transformers, module.TEXT_ENCODERS[part])
            built = kind._from_config(kind.config_class.from_dict(config))
    for parameter in built.parameters():
        parameter.data = parameter.data.to(dtype or torch.float32)
    return built.eval().requires_grad_(False)


def _load_frozen(kind: str, model: str, part: str, dtype: torch.dtype) -> Any:
    """A part of a class of diffusers or transformers, with all of its weights."""
    import diffusers
    import transformers

    library = diffusers if hasattr(diffusers, kind) else transformers
    module = _load(model, lambda: load_whole(getattr(library, kind), model, subfolder=part, dtype=dtype))
    return module.eval().requires_grad_(False)


def load_vae(model: str, dtype: torch.dtype | None = None, vae: str | None = None) -> ModelMixin:
    """The VAE, frozen; float32 by default. Never load it in float16, where it gives NaN.

    `vae`: another one, by its own hub id or folder (see `check_vae`).
    """
    import diffusers
    import torch

    dtype, kind = dtype or torch.float32, FAMILIES[model_family(model)].MODULES["vae"]
    if vae is None:
        return _load_frozen(kind, model, "vae", dtype)
    found = load_named(VAE_FLAG, vae, "VAE", lambda: load_whole(getattr(diffusers, kind), vae, dtype=dtype))
    return found.eval().requires_grad_(False)


def check_vae(model: str, vae: str) -> None:
    """Refuse a VAE whose latents are not of the form of the model's own; only its config is read."""
    import diffusers

    kind = getattr(diffusers, FAMILIES[model_family(model)].MODULES["vae"])
    config = load_named(VAE_FLAG, vae, "VAE", lambda: kind.load_config(vae))
    own, other = ((latent_channels(one), vae_step(one)) for one in (read_config(model, "vae/config.json"), config))
    if own != other:
        raise UserError(f"{VAE_FLAG} {vae}: its latents are not those of {model}'s VAE; give one of the same family")


def load_denoiser(model: str, dtype: torch.dtype) -> ModelMixin:
    """The UNet or transformer, frozen."""
    module = FAMILIES[model_family(model)]
    return _load_frozen(module.MODULES[module.DENOISER], model, module.DENOISER, dtype)


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


def tune_denoiser(denoiser: ModelMixin, checkpointing: dict[str, Any] | None, xformers: bool, compiled: bool) -> None:
    """Switch on what saves memory or time in training; `checkpointing`: options for torch's checkpoint, if wanted."""
    if checkpointing:
        from torch.utils.checkpoint import checkpoint

        denoiser.enable_gradient_checkpointing(functools.partial(checkpoint, **checkpointing))
    if xformers:
        denoiser.enable_xformers_memory_efficient_attention()
    if compiled:
        denoiser.compile_repeated_blocks()


def latent_scaler(model: str, vae: str | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes latents of the VAE (see `load_vae`) those that the denoiser sees."""
    from families.latents import read_scale, rescale

    config = read_config(vae, "config.json") if vae else read_config(model, "vae/config.json")
    return functools.partial(rescale, read_scale(config, lambda: load_vae(model, vae=vae)))


def load_noise_scheduler(model: str) -> DDPMScheduler | FlowMatchEulerDiscreteScheduler:
    """The noise schedule that the model was trained with, and what it predicts; one of another kind is refused."""
    import diffusers

    kind = str(read_config(model, "scheduler/scheduler_config.json").get("_class_name", ""))
    wanted = FAMILIES[model_family(model)].SCHEDULER
    # Its noise levels would be read as those of the other kind. All schedulers of DDPM's noise have its settings.
    if kind.startswith("EDM") or kind.startswith("FlowMatch") != wanted.startswith("FlowMatch"):
        raise UserError(f"{model}: its {kind} is not supported, only the noise of a {wanted}; give another model")
    return _load(model, lambda: getattr(diffusers, wanted).from_pretrained(model, subfolder="scheduler"))


def empty_prompt_is_zero(model: str) -> bool:
    """Whether the model's pipeline takes zeros for no prompt, and not what the encoders make of an empty text."""
    return FAMILIES[model_family(model)].empty_prompt_is_zero(read_config(model, "model_index.json"))


def caption_bytes(model: str, family: str, length: int | None, dtype: torch.dtype) -> int:
    """An entry of the cache of encoded captions of so many tokens (None: the most)."""
    limit = token_limit(model, family, length)
    return FAMILIES[family].caption_numbers(functools.partial(read_config, model), limit) * dtype.itemsize


def _lasting_settings(config: dict[str, Any]) -> str:
    """A config without where it was loaded from, and by which version."""
    kept = {key: value for key, value in config.items() if key[0] != "_" and key != "transformers_version"}
    return json.dumps(kept, sort_keys=True, default=str)


def part_sha256(model: str, part: str, sha256: Callable[[Path], str]) -> str:
    """A checksum of a part's settings and of the files that its weights are read from; no weight is loaded.

    `part`: its folder in the model; empty for a VAE of its own. `sha256` gives that of a file.
    """
    settings = read_config(model, posixpath.join(part, "config.json"))
    files = _load(model, lambda: {path.name: sha256(path) for path in _weight_files(model, part)})
    return hashlib.sha256(f"{_lasting_settings(settings)} {json.dumps(files, sort_keys=True)}".encode()).hexdigest()


def _weight_files(model: str, part: str) -> list[Path]:
    """The files that a text encoder or a VAE is read from, fetched if need be: one, or an index and what it names."""
    name = "model.safetensors" if part.startswith("text_encoder") else "diffusion_pytorch_model.safetensors"
    whole, index = (find_file(model, posixpath.join(part, one)) for one in (name, f"{name}.index.json"))
    names = sorted(set(parse_json(read_text(index))["weight_map"].values())) if index else []
    shards = [find_file(model, posixpath.join(part, one)) for one in names]
    return [path for path in (whole, index, *shards) if path]


def fingerprint(module: ModelMixin | PreTrainedModel) -> str:
    """A sha256 over the module's settings and weights, whatever its folder, device or layout it has."""
    import torch

    config = module.config if isinstance(module.config, dict) else module.config.to_dict()
    digest = hashlib.sha256(_lasting_settings(config).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def too_long(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, str]:
    """How many of the distinct texts a tokenizer cuts off, its limit in tokens, and one of them as an example."""
    limit, distinct = tokenizer.model_max_length, list(dict.fromkeys(texts))
    if tokenizer.chat_template:  # what stands around a text counts too
        turn = [{"role": "user", "content": ""}]
        empty = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        limit -= len(tokenizer(empty)["input_ids"])
    lengths = map(len, tokenizer(distinct, verbose=False)["input_ids"])
    over = [text for text, length in zip(distinct, lengths) if length > limit]
    return len(over), limit, over[0] if over else ""


def report_long_captions(tokenizer: PreTrainedTokenizerBase, texts: list[str], what: str = "captions") -> int:
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
        help="Stable Diffusion 1.x, 2.x or XL, Z-Image, FLUX.2 Klein, Qwen-Image, FLUX.1: a hub id, a diffusers "
        "folder, a .safetensors file, or demo"
        + f"; default: the one that the LoRA was trained on, else {DEFAULT_MODEL}"
        * of_lora,
    )
    group.add_argument("--model_config", metavar="DIR|HUB_ID", help="configs for a single file, if the hub's won't do")
    group.add_argument(
        "--prediction_type",
        choices=["epsilon", "v_prediction", "sample"],
        help="what the UNet predicts; default: as the model says",
    )
    group.add_argument(
        "--zero_terminal_snr",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="rescale the noise schedule of the UNet to end in pure noise",
    )
    group.add_argument(
        "--max_sequence_length",
        type=Range(16, 512, int),
        metavar="TOKENS",
        help="that are read of a text; default: as many as the model can read, at most 512, a UNet 77; "
        "152, 227, …: a UNet reads 75 at a time, so many times",
    )
    group.add_argument(
        "--clip_skip",
        type=Range(1, 30, int),
        metavar="LAYERS",
        help="of CLIP that are left out at its end, counted as in diffusers: 1 is what A1111 and kohya call 2",
    )


def side_step(model: str) -> int:
    """What an image's sides must be multiples of, so that the VAE and the denoiser can divide them."""
    vae, denoiser = read_config(model, "vae/config.json"), denoiser_config(model)
    return vae_step(vae) * FAMILIES[model_family(model)].latent_multiple(denoiser)


def training_shapes(model: str, resolution: int, buckets: bool) -> list[tuple[int, int]]:
    """The (width, height) that images are fitted to: the square, with `buckets` also other shapes of its area."""
    step = side_step(model)
    if resolution % step:
        near = max(step, round(resolution / step) * step)
        raise UserError(f"--resolution {resolution}: this model takes multiples of {step}, such as {near}")
    return bucket_shapes(resolution, step) if buckets else [(resolution, resolution)]
