"""A whole pipeline of Stable Diffusion 1.x, 2.x or XL in one file, by the names that A1111 and ComfyUI read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from families.kohya import model_spec
from families.sdxl import kohya_layer
from utils.files import replaced_file

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel

State = dict[str, torch.Tensor]
# Parts of blocks, by their names there
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}


def whole_name(run: str) -> str:
    return f"{run}_whole.safetensors"


def save_whole(path: Path, pipeline: DiffusionPipeline, family: str, facts: dict[str, str]) -> None:
    """Write UNet, VAE and text encoders in their own precision; `facts` go into the metadata."""
    tensors = {f"model.diffusion_model.{name}": value for name, value in _unet_tensors(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in _vae_tensors(pipeline.vae).items()}
    first = _clip_tensors(pipeline.text_encoder)
    if family == "sdxl":
        second = _open_clip_tensors(_clip_tensors(pipeline.text_encoder_2))
        tensors |= {f"conditioner.embedders.0.transformer.text_model.{name}": one for name, one in first.items()}
        tensors |= {f"conditioner.embedders.1.model.{name}": one for name, one in second.items()}
    elif family == "sd2":
        tensors |= {f"cond_stage_model.model.{name}": one for name, one in _open_clip_tensors(first).items()}
    else:
        tensors |= {f"cond_stage_model.transformer.text_model.{name}": one for name, one in first.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = model_spec(path.stem, "", {}, family, facts)
    with replaced_file(path) as file:
        save_file(tensors, file.name, {"format": "pt", **facts, **about})
        os.chmod(file.name, os.fstat(file.fileno()).st_mode)  # safetensors' own can be read by its owner alone


def _unet_tensors(unet: UNet2DConditionModel) -> State:
    attends = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    layers = unet.config.layers_per_block
    return {_unet_name(name, layers, attends): value for name, value in unet.state_dict().items()}


def _unet_name(name: str, layers: int, attends: list[bool]) -> str:
    """`attends`: whether each up block has attention, which then stands before its upsampler."""
    layer, _, tensor = name.rpartition(".")
    theirs = kohya_layer(layer, layers) or ""
    block = re.match(r"up_blocks\.(\d+)\.upsamplers", layer)
    if block and not attends[int(block[1])]:
        theirs = theirs.removesuffix("2.conv") + "1.conv"
    return f"{theirs}.{tensor}"


def _vae_tensors(vae: AutoencoderKL) -> State:
    """Its attention is of convolutions there."""
    levels = len(vae.config.block_out_channels)
    return {
        _vae_name(name, levels): value[:, :, None, None] if ".attentions." in name and value.ndim == 2 else value
        for name, value in vae.state_dict().items()
    }


def _vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions" in name:
        part = re.search(r"attentions\.0\.(.+)\.\w+$", name)[1]
        return name.replace(f"mid_block.attentions.0.{part}", f"mid.attn_1.{ATTENTION[part]}")
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", name)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)


def _clip_tensors(encoder: torch.nn.Module) -> State:
    """By names without the level that transformers 5 has in one of its two classes of text encoders alone."""
    return {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}


def _open_clip_tensors(state: State) -> State:
    """A text encoder by OpenCLIP's names, its projection transposed, queries, keys and values in one."""
    tensors = {}
    for name, value in state.items():
        if found := re.fullmatch(r"(.*self_attn)\.q_proj\.(weight|bias)", name):
            parts = [state[f"{found[1]}.{part}_proj.{found[2]}"] for part in "qkv"]
            tensors[f"{_open_clip_name(found[1])}.in_proj_{found[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            tensors[_open_clip_name(name)] = value.T if name == "text_projection.weight" else value
    return tensors


def _open_clip_name(name: str) -> str:
    for ours, theirs in OPEN_CLIP.items():
        name = name.replace(ours, theirs)
    return name
