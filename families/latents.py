"""From pixels to the latents that a denoiser sees, and back, by each kind of VAE.

diffusers' AutoencoderKL scales latents by two numbers of its config, AutoencoderKLQwenImage by two for each channel,
and AutoencoderKLFlux2 by a batch norm over patches. Here latents keep the VAE's layout (n, channels, height, width): a
denoiser that reads them in patches is given patches by its family's `predict`.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from diffusers import AutoencoderKLQwenImage, ModelMixin
from einops import rearrange

Module = TypeVar("Module", bound=ModelMixin)
ONE_AT_A_TIME = threading.Lock()  # for a VAE of videos, which keeps what it computes for the next frame in itself


class Scale(NamedTuple):
    """A denoiser sees (latents - shift) * factor; tensors are of one patch, (channels, height, width)."""

    shift: float | torch.Tensor
    factor: float | torch.Tensor


def read_scale(config: dict[str, Any], load: Callable[[], ModelMixin]) -> Scale:
    """That of a VAE of this config; it is loaded only where its weights have the numbers."""
    if "batch_norm_eps" in config:
        norm, (high, wide) = load().bn, config["patch_size"]
        means, variances = (
            rearrange(values.float().cpu(), "(c h w) -> c h w", h=high, w=wide)
            for values in (norm.running_mean, norm.running_var)
        )
        return Scale(means, 1 / torch.sqrt(variances + config["batch_norm_eps"]))
    if "z_dim" in config:
        means, deviations = (torch.tensor(config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
        return Scale(means, 1 / deviations)
    return Scale(config.get("shift_factor") or 0.0, config.get("scaling_factor", 0.18215))


def rescale(scale: Scale, latents: torch.Tensor) -> torch.Tensor:
    """What a denoiser sees of the VAE's latents."""
    return (latents - _spread(scale.shift, latents)) * _spread(scale.factor, latents)


def unscale(vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """What the VAE decodes, in its dtype, of the latents that a denoiser sees."""
    scale, latents = read_scale(vae.config, lambda: vae), latents.to(vae.dtype)
    return latents / _spread(scale.factor, latents) + _spread(scale.shift, latents)


def encode_pixels(vae: ModelMixin, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the latents of images in -1…1, unscaled."""
    if not isinstance(vae, AutoencoderKLQwenImage):
        found = vae.encode(pixels).latent_dist
        return found.mean, found.std
    with ONE_AT_A_TIME:
        found = vae.encode(pixels.unsqueeze(2)).latent_dist  # a video of one frame
    return found.mean.squeeze(2), found.std.squeeze(2)


def decode_pixels(vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """Images in -1…1 of what `unscale` gives."""
    if not isinstance(vae, AutoencoderKLQwenImage):
        return vae.decode(latents, return_dict=False)[0]
    with ONE_AT_A_TIME:
        return vae.decode(latents.unsqueeze(2), return_dict=False)[0].squeeze(2)


def to_channels_last(module: Module) -> Module:
    """The same, its convolutions in the layout that is fastest; those of videos have another, and stay."""
    if all(weight.ndim < 5 for weight in module.parameters()):
        module.to(memory_format=torch.channels_last)
    return module


def _spread(values: float | torch.Tensor, latents: torch.Tensor) -> float | torch.Tensor:
    """The numbers of a patch for all patches of the latents."""
    if not isinstance(values, torch.Tensor):
        return values
    times = [side // own for side, own in zip(latents.shape[-2:], values.shape[-2:])]
    return values.to(latents.device, latents.dtype).repeat(1, *times)
