"""LoRAs to generate with: found, checked against the model, loaded, and fused into its weights."""

import copy
import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from transformers import PreTrainedTokenizerBase

from families import lycoris, tokens
from families.lora import FILE_NAME, adapter_kind, fold_alphas, is_dora, is_half_renamed, read_keys, read_lora
from families.lora import LABELS as LABELS_OF_KIND
from families.models import TextReading, build_part, read_config
from families.names import DEMO_MODEL, FAMILIES, LABELS, MOVED
from utils.cli import UserError, is_remote
from utils.files import file_sha256
from utils.storage import fetch

logger = logging.getLogger(__name__)
WHOLE = "model_index.json"  # of a complete pipeline
OF_LAYER = r"\.(?:lora|lokr|hada)_"  # what follows a layer's name in a key
WIDTHS = {width: name for module in FAMILIES.values() for name, width in module.TEXT_WIDTHS.items()}


class Lora(NamedTuple):
    path: Path  # of the file
    weight: float
    word: str | None = None  # what prompts say for the word that was learnt with it; None: the word itself
    flag: str = "--lora"  # that it was given by


def split_spec(spec: str) -> tuple[str, str, str | None]:
    """`runs/x:0.8:word=<b>` -> ("runs/x", "0.8", "<b>"); the weight is 1 where none is given, the word None."""
    if Path(spec).exists():
        return spec, "1", None
    rest, renames, word = spec.partition(":word=")
    name, colon, weight = rest.rpartition(":")
    if not colon or "/" in weight or Path(rest).exists():
        name, weight = rest, "1"
    return name, weight, word if renames else None


def run_folder(place: Path) -> Path:
    """The run of a LoRA that is given as its folder, its best/, or the file in one of them; another file itself."""
    place = place.parent if place.name == FILE_NAME else place
    return place.parent if place.name == "best" else place


def run_name(place: str) -> str:
    """The name of a run by its folder, also of its best/ or of a file in it."""
    path = run_folder(Path(place))
    if path.suffix == ".safetensors":
        return path.stem
    return path.name if is_remote(place) else path.resolve().name


def fetch_lora(spec: str, cache: Path, flag: str = "--lora") -> str:
    """The same with the path of a copy, where the LoRA lies in a bucket; of a run, what `parse_lora` looks for."""
    name = split_spec(spec)[0]
    if not is_remote(name):
        return spec
    folder, _, file = name.rpartition("/") if name.endswith(".safetensors") else (name, "", "")
    copy = fetch(folder, cache, flag, (file or FILE_NAME, *tokens.FILES, WHOLE))
    return spec.replace(name, str(copy / file), 1)


def parse_lora(spec: str, flag: str = "--lora") -> Lora:
    """`runs/x`, `runs/x/best` or `file.safetensors`, each with or without a weight, as in `runs/x:0.8`."""
    name, weight, word = split_spec(spec)
    if word is not None and not re.fullmatch(r"[^\s:]+", word):
        raise UserError(f"{flag} {spec}: its word is `{word}`; expected one word, last, as in {name}:0.8:word=<b>")
    if not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?", weight) or abs(float(weight)) > 100:
        raise UserError(f"{flag} {spec}: its weight is `{weight}`; expected a number, -100 to 100, as in {name}:0.8")
    if not float(weight):
        raise UserError(f"{flag} {spec}: a LoRA of weight 0 does nothing; leave it out, or give another weight")
    path = Path(name)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.is_file():
            advice = "name a finished run, its best/, or a file"
            if (path.parent / WHOLE).is_file():
                advice = "it is a complete pipeline: give it as --pretrained_model_name_or_path"
            raise UserError(f"{flag} {spec}: {name} holds no {FILE_NAME}; {advice}")
    elif not path.is_file():
        raise UserError(f"{flag} {spec}: no such file or folder; name a run folder, its best/, or a .safetensors file")
    elif path.suffix != ".safetensors":
        raise UserError(f"{flag} {spec}: not a .safetensors file; other kinds are pickles, which can run any program")
    return Lora(path, float(weight), word, flag)


def named_base(loras: Sequence[Lora]) -> str | None:
    """The base model that the LoRAs' files name, if any of them does; refuses those that name several."""
    found = {
        str(lora.path): base for lora in loras if (base := read_lora(lora.path, facts_only=True)[1].get("base_model"))
    }
    first = next(iter(found.values()), None)
    if other := next((path for path, base in found.items() if not same_base(base, first)), None):
        raise UserError(
            f"--lora {next(iter(found))} was trained on {first}, and {other} on {found[other]}; choose one with "
            "--pretrained_model_name_or_path, and add --allow_other_base where they are known to go together"
        )
    return first


def length_tokenizer(tokenizers: Sequence[PreTrainedTokenizerBase], loras: Sequence[Lora]) -> PreTrainedTokenizerBase:
    """A tokenizer that tells which prompts are cut off: of several the last, which reads the most; a copy.

    It has the words that the LoRAs have learnt.
    """
    tokenizer = copy.deepcopy(tokenizers[-1])
    tokenizer.add_tokens(list(learnt_words(loras).values()))
    return tokenizer


def learnt_words(loras: Sequence[Lora]) -> dict[Path, str]:
    """The words that come with LoRAs, by their folder, as prompts say them; refuses one that comes with two folders."""
    words: dict[Path, str] = {}
    for lora in loras:
        folder = lora.path.parent
        own = tokens.learnt_word(folder)
        if lora.word and not own:
            raise UserError(f"--lora {folder}:word={lora.word}: comes with no learnt word; leave `:word=` out")
        if not own:
            continue
        word = lora.word or words.get(folder, own)
        for other in words:
            if other != folder and words[other].lower() == word.lower():  # CLIP's tokenizers ignore case
                raise UserError(
                    f"--lora {other} and --lora {folder} both come with the word {word}; give one of them another, as "
                    f"{folder}:word=<b>, and write <b> in prompts for what it has learnt"
                )
        words[folder] = word
    return words


def lora_family(state: dict[str, torch.Tensor], facts: dict[str, str], own: str, width: int) -> tuple[str | None, int]:
    """The family that a LoRA was made for (None: no known one), and the width of the text features it reads.

    `own` and `width` are those of the model; they are returned where the LoRA says nothing else.
    """
    named = facts.get("ss_base_model_version", "")
    family = next(
        (one for module in FAMILIES.values() for one, base in module.KOHYA_BASES.items() if named.startswith(base[0])),
        None,
    )
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


def check_whole(lora: Lora, state: dict[str, torch.Tensor]) -> None:
    """Refuse a LoRA where a layer has one matrix of two (peft would fill in random numbers), or NaN."""
    halves: dict[bool, set[str]] = {True: set(), False: set()}
    for key, value in state.items():
        if found := re.search(r"[._]lora([._])(A|B|down|up)\b", key):
            halves[found[2] in ("A", "down")].add(key[: found.start()])
        if not value.isfinite().all():
            raise UserError(
                f"{lora.flag} {lora.path}: {key} holds NaN or infinity; take an earlier checkpoint, or train again"
            )
    if odd := sorted(halves[True] ^ halves[False]):
        raise UserError(
            f"{lora.flag} {lora.path}: {len(odd)} layers have one matrix of two, such as {odd[0]}; the file is damaged"
        )


def describe(lora: Lora) -> str:
    """Its file and its weight, unless that is always 1, with a checksum of the file."""
    weight = "" if lora.flag == "--init_lora" else f":{lora.weight:g}"
    return f"{lora.path}{weight} (sha256 {file_sha256(lora.path)[:16]})"


def check_base(lora: Lora, model_name: str) -> None:
    """Refuse a LoRA whose file names another base model than this one."""
    base = read_lora(lora.path, facts_only=True, flag=lora.flag)[1].get("base_model")
    if base and not same_base(base, model_name):
        raise UserError(
            f"{lora.flag} {lora.path}: trained on {base}, and --pretrained_model_name_or_path is {model_name}; give "
            "that one, or add --allow_other_base where the two are known to go together"
        )


def check_lora(lora: Lora, model_name: str, model: str, family: str) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA; one that is damaged or was made for another family of models is refused."""
    state, facts = read_lora(lora.path, flag=lora.flag)
    check_whole(lora, state)
    if any(key.endswith(".dora_scale") for key in state):
        raise UserError(
            f"{lora.flag} {lora.path}: a DoRA of another program's names, whose magnitudes can't be read; give "
            f"{FILE_NAME} of a run, or a LoRA"
        )
    advice = "take the base model that it was trained on" + (f", {base}" if (base := facts.get("base_model")) else "")
    if FAMILIES[family].DENOISER != "unet":
        if misfit := find_misfit(state, model, family):
            raise UserError(f"{lora.flag} {lora.path}: {misfit} {model_name}, {LABELS[family]}; {advice}")
        return state
    if any(key.startswith("transformer.") for key in state):
        raise UserError(f"{lora.flag} {lora.path}: is of a transformer, and {model_name} is {LABELS[family]}; {advice}")
    width = read_config(model, "unet/config.json")["cross_attention_dim"]
    theirs, reads = lora_family(state, facts, family, width)
    if theirs != family or reads != width:
        made_for = LABELS.get(theirs, "another kind of model")
        raise UserError(
            f"{lora.flag} {lora.path}: made for {made_for} (text features {reads} wide), but {model_name} is "
            f"{LABELS[family]} ({width} wide); {advice}"
        )
    return state


def find_misfit(state: dict[str, torch.Tensor], model: str, family: str) -> str | None:
    """Why a LoRA is not of the model's transformer, whatever names that diffusers reads its layers have.

    Families share names of layers: diffusers would load those, and leave the others out.
    """
    module = FAMILIES[family]
    try:
        if not lycoris.has_own_names(state):  # which few pipelines name
            state = getattr(diffusers, module.PIPELINE).lora_state_dict(dict(fold_alphas(state)))
    except (ValueError, KeyError):  # what it can't name is of another model
        return "has no layer of"
    layers = {f"{module.DENOISER}.{name}": layer for name, layer in build_part(model, module.DENOISER).named_modules()}
    matrices = {key: value for key, value in state.items() if re.match(rf"{module.DENOISER}\..*{OF_LAYER}", key)}
    named = {re.split(OF_LAYER, key)[0] for key in matrices}
    lacking = sorted(named - layers.keys())
    if len(lacking) == len(named):
        return "has no layer of"
    if lacking:
        return f"has {len(lacking)} layers, such as {lacking[0]}, that are not in"
    for key, value in matrices.items():
        layer = layers[re.split(OF_LAYER, key)[0]]
        if key.endswith(".lora_A.weight") and value.shape[1] != getattr(layer, "in_features", value.shape[1]):
            return f"has {key} for {value.shape[1]} numbers, not the {layer.in_features} of"
    return None


def check_mergeable(lora: Lora, model_name: str, model: str, family: str) -> None:
    """Refuse a LoRA that can't be merged into the frozen denoiser alone."""
    state = check_lora(lora, model_name, model, family)
    if lora.word or tokens.learnt_word(lora.path.parent):
        raise UserError(f"{lora.flag} {lora.path}: comes with a learnt word, which can't be merged; give another LoRA")
    if has_text_layers(state):
        raise UserError(
            f"{lora.flag} {lora.path}: has layers of a text encoder, which are not merged; give another LoRA"
        )


def check_noise(lora: Lora, model: str, prediction_type: str | None, zero_terminal_snr: bool) -> None:
    """Refuse a LoRA whose file says that it predicts something else, or on another schedule, than will be sampled."""
    facts = read_lora(lora.path, facts_only=True, flag=lora.flag)[1]
    theirs = facts.get("prediction_type")
    if "zero_terminal_snr" in facts and not zero_terminal_snr:
        raise UserError(f"{lora.flag} {lora.path}: trained with --zero_terminal_snr; add it here, too")
    own = prediction_type or read_config(model, "scheduler/scheduler_config.json").get("prediction_type", "epsilon")
    if theirs and theirs != own:
        raise UserError(
            f"{lora.flag} {lora.path}: trained to predict {theirs}, and the model predicts {own} here; add "
            f"--prediction_type {theirs}, or --allow_other_base where the two are known to go together"
        )


def check_reading(lora: Lora, reading: TextReading) -> None:
    """Refuse a LoRA of ours that was trained on another layer of CLIP than will be read.

    Warn of a number of tokens that it was trained with, and of a clip skip that another program names, if they differ.
    """
    facts = read_lora(lora.path, facts_only=True)[1]
    flag, skip, length = f"{lora.flag} {lora.path}", facts.get("clip_skip"), facts.get("max_sequence_length")
    if skip and skip != str(reading.clip_skip):
        raise UserError(f"{flag}: trained with --clip_skip {skip}; add it here, too")
    if not skip and reading.clip_skip and "data_fingerprint" in facts:
        raise UserError(f"{flag}: trained without --clip_skip; leave it out here, too, or add --allow_other_base")
    if not skip and facts.get("ss_clip_skip", "1") not in ("1", "None", str(reading.clip_skip + 1)):
        message = "%s: trained with a clip skip of %s, as kohya's scripts count: one more than --clip_skip counts"
        logger.warning(message, flag, facts["ss_clip_skip"])
    if length and length != str(reading.length):
        logger.warning("%s: trained with --max_sequence_length %s; images differ without it", flag, length)


def adapts_texts(lora: Lora) -> bool:
    """Whether it has layers of a text encoder, as some of other programs for FLUX.1 have."""
    return has_text_layers(read_keys(lora.path))


def has_text_layers(names: Iterable[str]) -> bool:
    return any(re.match(r"text_encoder|lora_te", name) for name in names)


def apply_loras(pipeline: StableDiffusionLoraLoaderMixin, loras: Sequence[Lora]) -> None:
    """Load them and fuse them into the weights; several stay unfused where one of them is a DoRA.

    Fused, a step costs what it costs without a LoRA. Sums of plain LoRAs are the same either way, DoRA's norms are not.
    """
    loras = merge_lycoris(pipeline, loras)
    if not loras:
        return
    for module in ("diffusers.loaders.lora_base", "diffusers.loaders.peft", "transformers.integrations.peft"):
        logging.getLogger(module).addFilter(_says_what_matters)
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # which is what mixing means
                if is_half_renamed(read_keys(lora.path)):
                    pipeline.load_lora_weights(fold_alphas(read_lora(lora.path)[0]), adapter_name=name)
                else:
                    pipeline.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, adapter_name=name)
        except (ValueError, RuntimeError, KeyError) as error:
            if (kind := adapter_kind(read_keys(lora.path))) != "lora":
                message = f"a {LABELS_OF_KIND[kind]} of another program's names; only {FILE_NAME} of a run can be used"
                raise UserError(f"{lora.flag} {lora.path}: {message}") from error
            raise UserError(f"{lora.flag} {lora.path}: doesn't fit this model ({_misfit(str(error))})") from error
        if not any(name in adapters for adapters in pipeline.get_list_adapters().values()):
            raise UserError(f"{lora.flag} {lora.path}: has no layer of this model; is it a LoRA?")
    pipeline.set_adapters(names, [lora.weight for lora in loras])
    parts = [part for part in pipeline._lora_loadable_modules if getattr(pipeline, part, None) is not None]
    if len(loras) == 1 or not any(_has_dora(getattr(pipeline, part)) for part in parts):
        pipeline.fuse_lora(components=parts, adapter_names=names)
        pipeline.unload_lora_weights()


def merge_lycoris(pipeline: StableDiffusionLoraLoaderMixin, loras: Sequence[Lora]) -> list[Lora]:
    """Add those of ours that are a LoKr or a LoHa to the denoiser's weights; the others, which diffusers loads."""
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    others = []
    dora = next((one.path for one in loras if is_dora(read_keys(one.path))), None)
    for lora in loras:
        state, facts = read_lora(lora.path, facts_only=not lycoris.has_own_names(read_keys(lora.path)))
        settings = lycoris.read_settings(facts, denoiser)
        if not (settings and state):
            others.append(lora)
            continue
        if dora:  # whose norms are those of the model's own weights
            label = LABELS_OF_KIND[adapter_kind(state)]
            raise UserError(f"{lora.flag} {lora.path}: a {label} is not mixed with a DoRA, {dora}; give one")
        try:
            lycoris.merge(denoiser, state, settings, lora.weight)
        except UserError as error:
            raise UserError(f"{lora.flag} {lora.path}: {error}") from error
    return others


def merge_loras(pipeline: StableDiffusionLoraLoaderMixin, loras: Sequence[Lora]) -> None:
    """Add them to the weights for good; several are refused where one of them is a DoRA."""
    apply_loras(pipeline, loras)
    if any(pipeline.get_list_adapters().values()):
        raise UserError(f"{loras[0].flag}: of several LoRAs none may be a DoRA; merge them one by one, or give one")


def _says_what_matters(record: logging.LogRecord) -> bool:
    """False for what diffusers and transformers say of every part that a LoRA lacks, and of the LoRAs loaded before.

    Of one that doesn't fit they list every layer; the errors of `apply_loras` name the first.
    """
    return not re.search("No LoRA keys|was unsuccessful|LOAD REPORT", record.getMessage())


def _misfit(message: str) -> str:
    """The first layer that differs, of an error that lists them all."""
    found = re.search(r"size mismatch for (\S+?)\.lora\S*: .*?Size\((.+?)\).*?Size\((.+?)\)", message, re.DOTALL)
    if found:
        return f"{found[1]} has {found[2]} numbers, and {found[3]} here; take the base model that it was trained on"
    return " ".join(message.split())[:200]


def _has_dora(module: torch.nn.Module) -> bool:
    return any(config.use_dora for config in getattr(module, "peft_config", {}).values())
