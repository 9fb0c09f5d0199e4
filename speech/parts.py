"""What a voice has beyond VITS: the parts that its config names, and the condition, a vector of who speaks and how."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import VitsConfig, VitsModel
from transformers.masking_utils import create_bidirectional_mask

from speech import adaptive_norms, prosody, styles
from speech.cloning import SPEAKER_ENCODER, add_speaker_encoder, read_speaker
from speech.styles import Styles
from speech.vits2 import add_flow_attention, add_text_speaker

# By the name of a part in `config.parts`, what adds it to a model: a function of the model and the part's settings.
PARTS: dict[str, Callable[..., None]] = {
    SPEAKER_ENCODER: add_speaker_encoder,
    "flow_attention": add_flow_attention,
    "text_speaker": add_text_speaker,
    prosody.NAME: prosody.add_prosody,
    styles.NAME: styles.add_style_tokens,
    adaptive_norms.NAME: adaptive_norms.add_adaptive_norms,
}
CUED = {prosody.NAME, styles.NAME}  # parts that add to the condition, also in a voice of one speaker


class VoiceConfig(VitsConfig):
    """Of a voice with parts: another kind of model, which a program that would leave out the parts refuses."""

    model_type = "vits_with_parts"


class VoiceModel(VitsModel):
    """VITS with the parts that its config names: {name: settings} in `config.parts`."""

    config_class = VoiceConfig

    def __init__(self, config: VitsConfig):
        super().__init__(config if isinstance(config, VoiceConfig) else VoiceConfig(**config.to_dict()))
        for name, settings in parts_of(config).items():
            if name not in PARTS:
                raise ValueError(f"its part {name} is unknown to this version")
            PARTS[name](self, **settings)


def read_config(source: str) -> VitsConfig:
    """The config in a folder or hub repository; ValueError where it is of another kind of model."""
    kinds = {kind.model_type: kind for kind in (VitsConfig, VoiceConfig)}
    kind = VitsConfig.get_config_dict(source)[0].get("model_type")
    if kind not in kinds:
        raise ValueError("its config.json is not of a VITS model")
    return kinds[kind].from_pretrained(source)


def parts_of(config: VitsConfig) -> dict[str, dict[str, Any]]:
    return getattr(config, "parts", None) or {}


def hears_condition(config: VitsConfig) -> bool:
    """Whether anything says who speaks or how; layers that would hear it may be there, never used, in any voice."""
    return config.num_speakers > 1 or bool(parts_of(config).keys() & {SPEAKER_ENCODER, *CUED})


def model_class(config: VitsConfig) -> type[VitsModel]:
    """transformers' own for a plain voice."""
    return VoiceModel if parts_of(config) else VitsModel


@dataclass(frozen=True)
class Cues:
    """Who speaks some utterances and how, as far as the voice has something that listens to it."""

    speakers: Tensor | None = None  # (batch,), rows of the table of a voice of several
    vectors: Tensor | None = None  # (batch, size), of who speaks, for a voice with a speaker encoder
    prosody: Tensor | None = None  # (batch, 2), pitch and energy in deviations from the speaker's own; None: as those
    styles: Styles | None = None  # None: without one


def make_condition(model: VitsModel, cues: Cues) -> Tensor | None:
    """(batch or 1, size, 1): the sum of what the voice makes of the cues; None for a voice that listens to none."""
    parts, summands = parts_of(model.config), []
    if SPEAKER_ENCODER in parts:
        summands.append(read_speaker(model, cues.speakers, cues.vectors))
    elif cues.speakers is not None:
        summands.append(model.embed_speaker(cues.speakers))
    if cues.prosody is not None:
        summands.append(prosody.hear_prosody(model, cues.prosody))
    if cues.styles is not None:
        summands.append(styles.hear_styles(model, cues.styles))
    if not summands and CUED & parts.keys():
        summands.append(torch.zeros(1, model.config.speaker_embedding_size, device=model.device))
    return sum(summands[1:], summands[0])[:, :, None] if summands else None


class EncodedText(NamedTuple):
    """What the text encoder says of each token; means and log variances are of the prior."""

    hidden: Tensor  # (batch, channels, tokens)
    means: Tensor  # (batch, tokens, channels)
    log_variances: Tensor


def encode_text(model: VitsModel, tokens: Tensor, mask: Tensor, condition: Tensor | None, padded: bool) -> EncodedText:
    """As the text encoder's own forward, but without its layerdrop; `mask` is (batch, 1, tokens).

    `padded` is False where the mask, all ones, needs no attention.
    """
    encoder, mask = model.text_encoder, mask.transpose(1, 2)
    hidden = encoder.embed_tokens(tokens) * math.sqrt(model.config.hidden_size)
    attention = None
    if padded:
        attention = create_bidirectional_mask(model.config, hidden, mask[:, :, 0].long())
    hidden = hidden * mask
    parts = parts_of(model.config)
    adapted, speaker_layer = adaptive_norms.NAME in parts, parts.get("text_speaker", {}).get("layer")
    for number, layer in enumerate(encoder.encoder.layers):
        if number == speaker_layer:
            hidden = hidden + model.text_speaker(condition.transpose(1, 2)) * mask
        if adapted:
            changes = model.text_norms[number](condition.transpose(1, 2))
            hidden = adaptive_norms.adapted_layer(layer, hidden, mask, attention, changes)
        else:
            hidden = layer(hidden, padding_mask=mask, attention_mask=attention)[0]
    hidden = hidden * mask
    stats = encoder.project(hidden.transpose(1, 2)).transpose(1, 2) * mask
    return EncodedText(hidden.transpose(1, 2), *stats.split(model.config.flow_size, dim=2))
