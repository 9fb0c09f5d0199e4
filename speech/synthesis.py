"""One utterance from a voice: the durations of its tokens, its latents, its waveform (VITS, Kim et al., 2021).

What transformers' VitsModel gives for one text after torch.manual_seed(seed), bit for bit on a CPU; but the noise is an
argument here, drawn by a generator of the utterance's own. So threads may speak at once, no sound depends on another,
and the global generators stay as they are (transformers draws from torch's, and for its layerdrop from numpy's).
"""

import argparse
import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from transformers import VitsModel
from transformers.models.vits.modeling_vits import VitsStochasticDurationPredictor

from speech import prosody
from speech.parts import Cues, encode_text, make_condition, parts_of
from speech.styles import Styles, Weights, choose_style, token_weight
from speech.voices import Voice, tokenize
from utils.cli import Range, UserError, name_some, read_path, suggest

logger = logging.getLogger(__name__)

SPEAKING_FLAGS = (
    "speaking_rate",
    "noise_scale",
    "noise_scale_duration",
    "pitch",
    "energy",
    "style_reference",
    "style_token",
)
MOST_SECONDS = 600  # of one utterance; a voice whose durations explode would otherwise fill the memory


@dataclass(frozen=True)
class Speaking:
    """How a voice speaks; None is the voice's own scale, and `rate` a factor of the voice's own speaking rate."""

    rate: float = 1.0
    noise_scale: float | None = None
    noise_scale_duration: float | None = None
    speaker: str = ""  # the voice's first one
    vector: tuple[float, ...] = ()  # of who speaks instead, for a voice with a speaker encoder
    pitch: float = 0.0  # semitones above the speaker's own
    energy: float = 0.0  # dB above it
    style: Weights = ()  # of the style tokens, in each head; (): without a style


def add_speaking_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--speaking_rate", type=Range(0.1, 10), default=1.0, help="2: twice as fast as the voice's own")
    group.add_argument("--noise_scale", type=Range(0, 10), help="variety of the sound; default: the voice's own")
    group.add_argument(
        "--noise_scale_duration", type=Range(0, 10), help="variety of the rhythm; default: the voice's own"
    )
    learnt = "of a voice that learnt it by train_tts.py"
    group.add_argument(
        "--pitch", type=Range(-24, 24), default=0.0, help=f"semitones above the voice's own; {learnt} --prosody"
    )
    group.add_argument(
        "--energy", type=Range(-40, 40), default=0.0, help=f"dB above the voice's own level; {learnt} --prosody"
    )
    group.add_argument(
        "--style_reference", type=read_path, metavar="FILE", help=f"a recording to speak like; {learnt} --style_tokens"
    )
    group.add_argument(
        "--style_token", type=token_weight, action="append", metavar="NUMBER:WEIGHT", help="instead; may be repeated"
    )


class Reading(NamedTuple):
    """A text as the encoder reads it; `condition` is who speaks and how, None for a voice of one."""

    hidden: Tensor  # (1, channels, tokens)
    means: Tensor  # (1, tokens, channels), of the prior; so are the log variances
    log_variances: Tensor
    condition: Tensor | None


def speak(voice: Voice, text: str, seed: int, how: Speaking = Speaking()) -> np.ndarray:
    """The waveform of one utterance; the model must be in eval mode."""
    ids = torch.tensor([tokenize(voice, text)], device=voice.model.device)
    return speak_tokens(voice, ids, seed, how)


@torch.no_grad()
def speak_tokens(voice: Voice, ids: Tensor, seed: int, how: Speaking = Speaking()) -> np.ndarray:
    """The waveform of one text's tokens (1, tokens). The noise is drawn on the CPU, so it is the same on any device."""
    model, generator = voice.model, torch.Generator().manual_seed(seed)
    own = model.noise_scale, model.noise_scale_duration
    scale, scale_duration = (
        mine if given is None else given for mine, given in zip(own, (how.noise_scale, how.noise_scale_duration))
    )
    reading = read_tokens(model, ids, find_cues(voice, how))
    noise = torch.randn(1, 2, ids.shape[1], generator=generator) if has_random_durations(model) else torch.zeros(())
    durations = predict_durations(model, reading, noise.to(ids.device) * scale_duration, model.speaking_rate * how.rate)
    means, log_variances = spread_over_frames(reading, durations, most_frames(model))
    # Laid out in the memory as VitsModel's own: the order in which the random numbers are drawn depends on it.
    noise = torch.empty(means.shape).transpose(1, 2).normal_(generator=generator).to(ids.device)
    latents = means.transpose(1, 2) + noise * torch.exp(log_variances.transpose(1, 2)) * scale
    return decode(model, latents, reading.condition)[0].float().cpu().numpy()


def read_speaking(args: argparse.Namespace, voice: Voice, speaker: str) -> Speaking:
    """What the flags of `add_speaking_flags` ask of a voice; refuses what it has not learnt."""
    asked = {"pitch": args.pitch, "energy": args.energy}
    style = choose_style(voice.model, args.style_reference, args.style_token)
    how = Speaking(args.speaking_rate, args.noise_scale, args.noise_scale_duration, speaker, **asked, style=style)
    heard = find_cues(voice, how).prosody is not None
    if heard and (far := prosody.describe_far(parts_of(voice.model.config)[prosody.NAME], asked)):
        logger.warning("%s", far)
    return how


def find_cues(voice: Voice, how: Speaking) -> Cues:
    """What the voice hears of who speaks and how; refuses what it has not learnt."""
    number, device = speaker_number(voice, how.speaker), voice.model.device
    asked = find_prosody(voice, how)
    return Cues(
        None if number is None else torch.tensor([number], device=device),
        torch.tensor([how.vector], device=device) if how.vector else None,
        None if asked is None else torch.tensor([asked], device=device),
        Styles(weights=torch.tensor([how.style], device=device)) if how.style else None,
    )


def find_prosody(voice: Voice, how: Speaking) -> list[float] | None:
    """Pitch and energy as the voice hears them, None for its own; refuses what it has not learnt."""
    known = parts_of(voice.model.config).get(prosody.NAME)
    return prosody.asked_prosody(known, {"pitch": how.pitch, "energy": how.energy})


def speaker_number(voice: Voice, name: str) -> int | None:
    """The row of a speaker in the voice's embedding; None for a voice of one. Refuses one whom the voice lacks."""
    if not voice.speakers:
        if name:
            raise UserError(f"--speaker {name}: this voice has one speaker, without a name; leave it out")
        return None
    if name and name not in voice.speakers:
        some = name_some(voice.speakers) + suggest(name, voice.speakers)
        raise UserError(f"--speaker {name}: the voice has no such speaker; it has {some}")
    return voice.speakers.index(name) if name else 0


def has_random_durations(model: VitsModel) -> bool:
    return model.config.use_stochastic_duration_prediction


def most_frames(model: VitsModel) -> int:
    return MOST_SECONDS * model.config.sampling_rate // math.prod(model.config.upsample_rates)


def read_tokens(model: VitsModel, ids: Tensor, cues: Cues) -> Reading:
    """What the text encoder says of each token."""
    all_there = torch.ones(1, 1, ids.shape[1], device=ids.device)
    condition = make_condition(model, cues)
    return Reading(*encode_text(model, ids, all_there, condition, padded=False), condition)


def predict_durations(model: VitsModel, reading: Reading, noise: Tensor, rate: float | Tensor) -> Tensor:
    """The frames of each token (1, tokens), whole numbers; `noise` (1, 2, tokens) is that of random durations."""
    all_there = torch.ones_like(reading.hidden[:, :1])
    predictor = model.duration_predictor
    if has_random_durations(model):
        logs = sample_durations(predictor, reading, noise, all_there)
    else:
        logs = predictor(reading.hidden, all_there, reading.condition)
    return torch.ceil(torch.exp(logs[:, 0]) * (1.0 / rate)).nan_to_num(nan=1.0)


def sample_durations(
    predictor: VitsStochasticDurationPredictor, reading: Reading, noise: Tensor, mask: Tensor
) -> Tensor:
    """The logarithms of durations that the stochastic predictor draws: its flows from this noise, backwards."""
    hidden = predictor.conv_pre(reading.hidden)
    if reading.condition is not None:
        hidden = hidden + predictor.cond(reading.condition)
    hidden = predictor.conv_proj(predictor.conv_dds(hidden, mask))
    first, _, *others = predictor.flows  # the second one is not used backwards
    for flow in (*reversed(others), first):
        noise, _ = flow(noise.flip(1), mask, global_conditioning=hidden, reverse=True)
    return noise[:, :1]


def spread_over_frames(reading: Reading, durations: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Means and log variances of each frame (1, frames, channels), at most so many frames: each token's, repeated."""
    ends = durations.cumsum(1)[0]
    frames = ends[-1].clamp(1, most).long().item()  # not int(…), which torch.export can't follow
    torch._check(frames >= 1)
    token_of = (torch.arange(frames, device=ends.device)[:, None] >= ends).sum(1).clamp(max=ends.shape[0] - 1)
    return reading.means[:, token_of], reading.log_variances[:, token_of]


def decode(model: VitsModel, latents: Tensor, condition: Tensor | None) -> Tensor:
    """The waveform (1, samples) of latents (1, channels, frames) of the prior."""
    latents = model.flow(latents, torch.ones_like(latents[:, :1]), condition, reverse=True)
    return model.decoder(latents, condition)[:, 0]


def fold_weight_norm(model: VitsModel) -> None:
    """Replace each weight that is divided by its norm by the result: the same sound in less time, no more training.

    transformers' own remove_weight_norm fails, since it expects torch's former kind of weight norm.
    """
    for module in list(model.modules()):
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight")
