"""ControlNets: loaded, and checked against the model."""

import torch
from diffusers import ControlNetModel

from families.models import read_config
from utils.cli import UserError
from utils.hub import load_named


def load_controlnet(name: str, model: str, dtype: torch.dtype) -> ControlNetModel:
    """The ControlNet of a hub id or folder; refuses one that does not fit the model's UNet."""

    def load() -> ControlNetModel:
        kind = ControlNetModel.load_config(name).get("_class_name")
        if kind != "ControlNetModel":
            raise ValueError(f"its config.json is of a {kind}")
        net = ControlNetModel.from_pretrained(name, dtype=dtype, use_safetensors=True)
        if missing := [key for key, weight in net.named_parameters() if weight.is_meta]:
            raise ValueError(f"its file lacks {len(missing)} of the weights, such as {missing[0]}")
        return net

    net, unet = load_named("--controlnet", name, "ControlNet", load), read_config(model, "unet/config.json")
    for key in ("cross_attention_dim", "block_out_channels", "in_channels"):
        theirs, ours = (list(one) if isinstance(one, (list, tuple)) else one for one in (net.config[key], unet[key]))
        if theirs != ours:
            raise UserError(
                f"--controlnet {name}: made for another family of models ({key} {theirs}, this model's is {ours})"
            )
    return net
