"""Build what is trained: the models with their adapters or all their weights, a new word, the optimizer."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from families import kohya, lora, lora_mix, models, offloading, pipelines, quantized, sampling, shards, tokens
from families.diffusion import Features
from families.init_lora import load_init
from families.models import PLAIN_READING, TextReading, choose_encode, report_long_captions
from families.names import FAMILIES
from training.encoding import encode_distinct
from training.image_files import ImageFiles
from training.optimizers import OptimizerSettings, make_optimizer
from training.state import Training
from utils import devices
from utils.cli import UserError
from utils.devices import Precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewWord:
    """A word whose embedding is learnt: where it starts (None: at random), and its learning rate."""

    text: str
    initializer: str | None
    learning_rate: float


@dataclass(frozen=True)
class Recipe:
    """What is trained of a model, and how. Without an `adapter` all weights of the parts that are trained.

    `shards`: the processes that the weights are divided among; `blocks_on_cpu`: see families/offloading.py.
    """

    adapter: lora.Adapter | None
    learning_rate: float
    text_encoder_lr: float
    optimizer: OptimizerSettings
    seed: int
    train_text_encoder: bool = False
    use_ema: bool = False
    new_word: NewWord | None = None
    gradient_checkpointing: bool = True
    xformers: bool = False
    compiled: bool = False
    kohya_format: bool | None = None  # whether the LoRA is also written for A1111 and ComfyUI; None: where it can be
    single_file: bool = False  # whether a whole pipeline is also written as one file, for the same programs
    schedule_changes: dict[str, str | bool] = field(default_factory=dict)  # of the noise schedule
    vae: str | None = None  # None: the model's own
    reading: TextReading = PLAIN_READING
    shards: int = 1
    blocks_on_cpu: int = 0
    quantized: str | None = None  # nf4 or int8: how the frozen weights of the denoiser are kept
    base_loras: tuple[lora_mix.Lora, ...] = ()  # merged into the model before an adapter is added
    init_lora: lora_mix.Lora | None = None  # whose weights the adapter begins with

    @property
    def trains_texts(self) -> bool:
        """Whether texts must be encoded at every step, since what encodes them changes."""
        return bool(self.train_text_encoder or self.new_word)


@dataclass(frozen=True)
class Built:
    """The training, what encodes texts where that is trained too, and the new word, where there is one."""

    training: Training
    encode: Callable[[list[str]], list[Features]] | None
    token: tokens.Token | None


@dataclass(frozen=True)
class TrainedTexts:
    """The text encoders by name, what encodes texts by them, the new word, and the optimizer's group of it.

    Empty where neither the encoders nor a word are trained.
    """

    encoders: dict[str, lora.Module] = field(default_factory=dict)
    encode: Callable[[list[str]], list[Features]] | None = None
    token: tokens.Token | None = None
    of_word: list[dict[str, Any]] = field(default_factory=list)


def build_training(
    model: str,
    family: str,
    recipe: Recipe,
    precision: Precision,
    device: torch.device,
    texts: list[str],
    facts: dict[str, str],
    identity: dict[str, str],
) -> Built:
    """The models on their device with what is trained in them, and the optimizer.

    `texts` are those of the data; `facts` and `identity`: see Training.
    """
    devices.seed_everything(recipe.seed)  # the adapters' first weights are drawn on the CPU
    dtype = precision.dtype if recipe.adapter else torch.float32  # weights that are trained stay in float32
    denoiser = build_denoiser(model, family, recipe, dtype, device)
    identity = identity | {name: facts[name] for name in ("base_lora", "init_lora") if name in facts}
    trained_texts = build_texts(model, family, recipe, dtype, device, texts)
    if recipe.adapter and recipe.init_lora:
        encoders = trained_texts.encoders.values() if recipe.train_text_encoder else ()
        load_init(recipe.init_lora, recipe.adapter, denoiser, encoders, family)
    modules = {FAMILIES[family].DENOISER: denoiser, **trained_texts.encoders}
    for module in modules.values():
        place(module.train(), device, recipe.shards, recipe.blocks_on_cpu)
    groups = trained_groups(denoiser, trained_texts, recipe)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = make_optimizer(recipe.optimizer, groups, device)
    if recipe.shards > 1:
        shards.keep_state_whole(optimizer)
    training = Training(
        modules=modules,
        parameters=parameters,
        optimizers={"optimizer": optimizer},
        scaler=torch.amp.GradScaler(device.type, enabled=precision.mixed_precision == "fp16"),
        average=[parameter.detach().clone() for parameter in parameters] if recipe.use_ema else None,
        files=result_files(model, family, recipe, modules, facts, trained_texts.token),
        facts=facts,
        identity=identity,
        sharded=recipe.shards > 1,
    )
    return Built(training, trained_texts.encode, trained_texts.token)


def build_denoiser(model: str, family: str, recipe: Recipe, dtype: torch.dtype, device: torch.device) -> lora.Module:
    """The model's denoiser, on the CPU, with LoRAs of the base merged into it, and with what is trained in it."""
    denoiser = models.load_denoiser(model, dtype)
    if recipe.base_loras:
        pipeline = sampling.build_pipeline(family, denoiser, None, models.load_noise_scheduler(model), {})
        lora_mix.merge_loras(pipeline, recipe.base_loras)
    if recipe.quantized:
        quantized.quantize(denoiser, recipe.quantized, dtype)
    lora.choose_parameters(denoiser, recipe.adapter)
    checkpointing = devices.checkpoint_options(device) if recipe.gradient_checkpointing else None
    models.tune_denoiser(denoiser, checkpointing, recipe.xformers, recipe.compiled)
    return denoiser


def build_texts(
    model: str, family: str, recipe: Recipe, dtype: torch.dtype, device: torch.device, texts: list[str]
) -> TrainedTexts:
    """The text encoders with what is trained in them, if anything is; warns of texts that are too long."""
    if not recipe.trains_texts:
        return TrainedTexts()
    tokenizers, encoders = models.load_text_encoders(model, family, dtype, recipe.reading.length)
    token, of_word = None, []
    if recipe.new_word:
        token, group = _add_word(recipe.new_word, tokenizers, encoders, device)
        of_word = [group]
    for encoder in encoders:
        if recipe.train_text_encoder:
            lora.choose_parameters(encoder, recipe.adapter, lora.TEXT_TARGETS)
        if recipe.gradient_checkpointing:
            encoder.activation_checkpointing_enable(devices.checkpoint_options(device))
    report_long_captions(tokenizers[-1], texts)
    encode_text = choose_encode(family, recipe.reading.clip_skip)
    encode = make_encode(encode_text, tokenizers, encoders, models.empty_prompt_is_zero(model))
    return TrainedTexts(dict(zip(FAMILIES[family].TEXT_ENCODERS, encoders)), encode, token, of_word)


def result_files(
    model: str,
    family: str,
    recipe: Recipe,
    modules: dict[str, lora.Module],
    facts: dict[str, str],
    token: tokens.Token | None,
) -> ImageFiles:
    """What the run writes: the LoRA, also for other programs, or all weights as a pipeline."""
    if recipe.adapter is None:
        whole = pipelines.BaseModel(model, recipe.schedule_changes, recipe.vae)
        return ImageFiles(modules, facts, token, whole=whole, single_file=recipe.single_file)
    for_others = writes_kohya(recipe.kohya_format, modules, family)
    return ImageFiles(modules, facts, token, kohya=family if for_others else None)


def place(module: lora.Module, device: torch.device, processes: int, blocks_on_cpu: int) -> None:
    """Bring a module to the device, of several processes' module this one's share, or all but so many blocks."""
    if processes > 1:
        shards.shard_module(module, device, processes)
        return
    if blocks_on_cpu:
        offloading.keep_on_cpu(module, blocks_on_cpu, device)
        return
    module.to(device)
    if device.type == "cuda" and isinstance(module, UNet2DConditionModel):
        module.to(memory_format=torch.channels_last)  # which its convolutions prefer there; on a CPU it is slower


def trained_groups(denoiser: lora.Module, texts: TrainedTexts, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimizer's groups: of the denoiser, of a new word, of each text encoder that is trained."""
    groups = [trained_group(denoiser, recipe.learning_rate), *texts.of_word]
    if recipe.train_text_encoder:
        groups += [trained_group(encoder, recipe.text_encoder_lr) for encoder in texts.encoders.values()]
    return groups


def trained_group(module: lora.Module, rate: float) -> dict[str, Any]:
    """The optimizer's group of what is trained of a module."""
    return {"params": [one for one in module.parameters() if one.requires_grad], "lr": rate}


def writes_kohya(wanted: bool | None, modules: dict[str, lora.Module], family: str) -> bool:
    """Whether the LoRA is also written for A1111 and ComfyUI; refused where it is wanted and can't be."""
    if wanted is False:
        return False
    unet, *_ = modules.values()
    obstacle = kohya.find_obstacle(unet, family)
    if obstacle and wanted:
        raise UserError(f"--output_kohya_format: {obstacle}; leave one of the two out")
    if obstacle:
        logger.warning("no file for A1111 and ComfyUI (--output_kohya_format) is written: %s", obstacle)
    return not obstacle


def make_encode(
    encode_text: Callable[..., list[Features]],
    tokenizers: list[PreTrainedTokenizerBase],
    encoders: list[PreTrainedModel],
    empty_is_zero: bool,
) -> Callable[[list[str]], list[Features]]:
    """What encodes texts by these encoders, with gradients."""

    def encode_all(texts: list[str]) -> list[Features]:
        return encode_text(tokenizers, encoders, texts, empty_is_zero)

    return lambda texts: encode_distinct(encode_all, texts)


def _add_word(
    word: NewWord, tokenizers: list[PreTrainedTokenizerBase], encoders: list[PreTrainedModel], device: torch.device
) -> tuple[tokens.Token, dict[str, Any]]:
    """The new word in tokenizers and encoders, and the optimizer's group of its embeddings."""
    for encoder in encoders:
        encoder.to(device)
    token = tokens.new_token(tokenizers, encoders, word.text, word.initializer)
    # Without weight decay: nothing should pull a word towards 0.
    return token, {"params": token.vectors, "lr": word.learning_rate, "weight_decay": 0.0}
