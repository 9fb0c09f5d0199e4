"""What VITS2 (Kong et al., 2023, arXiv 2307.16430) adds to VITS, each by itself.

Noise on the scores of the alignment, which fades; a transformer block in each layer of the flow; a text encoder that
hears who speaks. Its discriminator of durations is in speech/duration_discriminator.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VitsConfig, VitsModel
from transformers.models.vits.modeling_vits import VitsWaveNet

from speech.layers import zero_

CHOICES = ("mas_noise", "flow_attention", "duration_discriminator", "text_speaker")
NOISE, FADING = 0.01, 2e-6  # section 3.2: the scale of the noise at first, and how much less it is each step


def wants(chosen: list[str], part: str) -> bool:
    return part in chosen or "all" in chosen


def new_parts(chosen: list[str], config: VitsConfig, several: bool) -> dict[str, dict[str, Any]]:
    """The chosen parts that have weights of the voice's own, with their settings; `several`: whether speakers differ.

    The speaker enters the middle of the text encoder: before it the text alone is read (section 3.4).
    """
    found: dict[str, dict[str, Any]] = {}
    if wants(chosen, "flow_attention"):
        found["flow_attention"] = {"heads": config.num_attention_heads}
    if wants(chosen, "text_speaker") and several:
        found["text_speaker"] = {"layer": config.num_hidden_layers // 2}
    return found


def noise_at(scale: float, step: int) -> float:
    """How large the noise on the scores is at a step."""
    return max(0.0, scale - FADING * step)


def add_noise(scores: Tensor, noise: Tensor, there: Tensor) -> Tensor:
    """Scores (batch, text, frames) with noise in proportion to how much each utterance's own differ, where `there`."""
    count = there.sum((1, 2), keepdim=True)
    mean = (scores * there).sum((1, 2), keepdim=True) / count
    variance = ((scores - mean).square() * there).sum((1, 2), keepdim=True) / count
    return scores + noise * variance.sqrt()


def add_flow_attention(model: VitsModel, heads: int) -> None:
    for flow in model.flow.flows:
        flow.wavenet = AttentiveWaveNet(model.config, heads)


def add_text_speaker(model: VitsModel, layer: int) -> None:
    model.text_speaker = torch.nn.Linear(model.config.speaker_embedding_size, model.config.hidden_size)
    zero_(model.text_speaker)


class AttentiveWaveNet(VitsWaveNet):
    """That of a layer of the flow, which first hears the whole utterance: only of the half that stays as it is."""

    def __init__(self, config: VitsConfig, heads: int) -> None:
        super().__init__(config, config.prior_encoder_num_wavenet_layers)
        self.attention = TransformerBlock(config.hidden_size, heads)

    def forward(self, inputs: Tensor, padding_mask: Tensor, global_conditioning: Tensor | None = None) -> Tensor:
        return super().forward(self.attention(inputs, padding_mask), padding_mask, global_conditioning)


class TransformerBlock(torch.nn.Module):
    """Attention over frames, then two layers for each frame; both add zero at first."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(size) for _ in range(2))
        self.query_key_value = torch.nn.Linear(size, 3 * size)
        self.output = torch.nn.Linear(size, size)
        self.wide, self.narrow = torch.nn.Linear(size, 2 * size), torch.nn.Linear(2 * size, size)
        zero_(self.output)
        zero_(self.narrow)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Of (batch, channels, frames) and a mask (batch, 1, frames)."""
        rows = hidden.transpose(1, 2)
        rows = rows + self.attend(self.norms[0](rows), mask)
        rows = rows + self.narrow(F.gelu(self.wide(self.norms[1](rows))))
        return (rows.transpose(1, 2) * mask).contiguous()

    def attend(self, rows: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.query_key_value(rows).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = self.mix(rotate(query), rotate(key), value, mask[:, None].bool())
        return self.output(found.transpose(1, 2).flatten(2))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, heard: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=heard)


def rotate(rows: Tensor) -> Tensor:
    """(…, frames, size), turned by an angle for each frame, so that a product of two tells how far they are apart.

    Rotary positions (Su et al., 2021, arXiv 2104.09864): they need no table, and so fit any length.
    """
    half = rows.shape[-1] // 2
    speeds = 10_000.0 ** (-torch.arange(half, device=rows.device) / half)
    angles = torch.arange(rows.shape[-2], device=rows.device)[:, None] * speeds
    cos, sin = angles.cos().to(rows.dtype), angles.sin().to(rows.dtype)
    a, b = rows[..., :half], rows[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
