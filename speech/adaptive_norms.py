"""Style-Adaptive Layer Norm (Min et al., 2021, arXiv 2106.03153): gain and bias of the text encoder's layer norms
depend on the condition, that is on the speaker, the prosody and the style.

What is learnt is the difference from the gain and bias of the layer itself, at first zero: the sound stays at first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VitsModel
from transformers.models.vits.modeling_vits import VitsEncoderLayer

from speech.layers import zero_

NAME = "style_adaptive_norm"  # of the part


def add_adaptive_norms(model: VitsModel) -> None:
    """For each layer of the text encoder what makes of a condition the gains and biases of its two norms."""
    size, hidden = model.config.speaker_embedding_size, model.config.hidden_size
    layers = [torch.nn.Linear(size, 4 * hidden, bias=False) for _ in model.text_encoder.encoder.layers]
    for layer in layers:
        zero_(layer)
    model.text_norms = torch.nn.ModuleList(layers)


def adapted_layer(
    layer: VitsEncoderLayer, hidden: Tensor, mask: Tensor, attention: Tensor | None, changes: Tensor
) -> Tensor:
    """As the layer's own forward; `changes` (batch or 1, 1, 4 * channels): of gain and bias of its two norms."""
    gain, bias, last_gain, last_bias = changes.chunk(4, -1)
    attended, _ = layer.attention(hidden_states=hidden, attention_mask=attention)
    hidden = adapted_norm(layer.layer_norm, hidden + layer.dropout(attended), gain, bias)
    made = layer.dropout(layer.feed_forward(hidden, mask))
    return adapted_norm(layer.final_layer_norm, hidden + made, last_gain, last_bias)


def adapted_norm(norm: torch.nn.LayerNorm, hidden: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return norm(hidden) + gain * F.layer_norm(hidden, norm.normalized_shape, eps=norm.eps) + bias
