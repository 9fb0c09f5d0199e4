"""The training forward of transformers' VitsModel, which has the parts but refuses `labels` (VITS, arXiv 2106.06103).

Every random number is an argument, and what is computed of an utterance does not depend on those beside it. Its losses
are sums over the utterance: divided by the counts of a whole step, they don't depend on how it is cut into batches.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from transformers import VitsModel
from transformers.models.vits.modeling_vits import (
    VitsAttention,
    VitsEncoder,
    VitsHifiGan,
    VitsStochasticDurationPredictor,
)

from speech.alignment import monotonic_path
from speech.features import in_float32
from speech.parts import Cues, encode_text, make_condition
from speech.styles import Styles
from speech.vits2 import add_noise
from utils.devices import Rows, checkpoint_options

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Utterances(Rows):
    """Utterances padded with zeros to the longest, and every random number of a training forward."""

    tokens: torch.Tensor  # (batch, text)
    text_lengths: torch.Tensor  # (batch,)
    spectrograms: torch.Tensor  # (batch, bins, frames), each computed from its own waveform alone
    frame_lengths: torch.Tensor  # (batch,)
    waveforms: torch.Tensor  # (batch, frames * hop), each cut to its whole frames
    noise: torch.Tensor  # (batch, flow_size, frames), of the posterior's sample
    starts: torch.Tensor  # (batch,), the frame where each one's segment begins
    duration_noise: torch.Tensor | None = None  # (batch, 2, text), for a stochastic duration predictor
    speakers: torch.Tensor | None = None  # (batch,), of a model with several
    vectors: torch.Tensor | None = None  # (batch, size), of who speaks, for a model with a speaker encoder
    prosody: torch.Tensor | None = None  # (batch, 2), see Cues
    styled: torch.Tensor | None = None  # (batch,), 1 where a voice with styles hears that of the recording, 0: none
    step_frames: torch.Tensor | None = None  # (batch,), of all utterances of the step that it belongs to
    step_tokens: torch.Tensor | None = None
    score_noise: torch.Tensor | None = None  # (batch, text, frames), of the alignment; see speech/vits2.py

    @property
    def cues(self) -> Cues:
        own = Styles(self.spectrograms, self.frame_lengths, self.styled)
        return Cues(self.speakers, self.vectors, self.prosody, None if self.styled is None else own)

    def split(self, size: int) -> list[Self]:
        """In parts of at most `size` utterances, each padded to its own longest."""
        return [part.trim() for part in super().split(size)]

    def trim(self) -> Self:
        """Without the padding that none of the utterances needs."""
        text, frames = int(self.text_lengths.max()), int(self.frame_lengths.max())
        hop = self.waveforms.shape[1] // self.spectrograms.shape[2]
        shorter = {"tokens": text, "duration_noise": text, "spectrograms": frames, "noise": frames}
        shorter["waveforms"] = frames * hop
        rows = {name: getattr(self, name) for name in shorter}
        trimmed = {name: None if one is None else one[..., : shorter[name]] for name, one in rows.items()}
        noise = None if self.score_noise is None else self.score_noise[:, :text, :frames]
        return replace(self, **trimmed, score_noise=noise)


class Gaussian(NamedTuple):
    """Independent normal distributions: means and logarithms of standard deviations, (batch, channels, length)."""

    mean: torch.Tensor
    log_deviation: torch.Tensor


@dataclass(frozen=True)
class Forward:
    """What a training forward computes: a segment of each utterance, and sums over each utterance (batch,)."""

    segment: torch.Tensor  # (batch, samples), decoded
    real: torch.Tensor  # (batch, samples), the recording in the same place
    kl: torch.Tensor  # (batch,), over channels and frames: to be divided by the frames of the step
    duration: torch.Tensor  # (batch,), over characters: to be divided by the characters of the step
    durations: torch.Tensor  # (batch, text), the frames of each character, as the alignment found them
    hidden: torch.Tensor  # (batch, channels, text), what the duration predictor reads
    condition: torch.Tensor | None  # (batch, size, 1), who speaks


def no_dropout(model: torch.nn.Module) -> None:
    """Set every dropout and the layerdrop to 0: what they leave out would depend on the micro-batch."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, VitsAttention):
            module.dropout = 0.0
        elif isinstance(module, VitsEncoder):
            module.layerdrop = 0.0


def forward_train(
    model: VitsModel,
    batch: Utterances,
    segment_frames: int,
    checkpointing: bool = False,
    durations: torch.Tensor | None = None,
) -> Forward:
    """Encode text and speech, align them, and decode a segment of each utterance.

    `checkpointing` computes the decoder's stages again in the backward pass instead of keeping them; `durations`
    (batch, text) are those of the characters, where they need not be found.
    """
    text_mask = length_mask(batch.text_lengths, batch.tokens.shape[1])
    mask = length_mask(batch.frame_lengths, batch.spectrograms.shape[2])
    condition = make_condition(model, batch.cues)
    hidden, prior = read_text(model, batch.tokens, text_mask, condition)
    posterior = encode_speech(model, batch.spectrograms, mask, condition)
    latents = (posterior.mean + batch.noise * posterior.log_deviation.exp()) * mask
    flowed = model.flow(latents, mask, condition).float()

    with in_float32(latents.device):
        if durations is None:
            durations = align(prior, flowed, batch.text_lengths, batch.frame_lengths, batch.score_noise)
        kl = kl_divergence(flowed, posterior, expand(prior, durations, flowed.shape[2]), mask)
        duration = duration_losses(model, hidden, text_mask, durations, batch.duration_noise, condition)

    hop = math.prod(model.config.upsample_rates)
    segment = decode(model.decoder, cut(latents, batch.starts, segment_frames), condition, checkpointing)
    real = cut(batch.waveforms[:, None], batch.starts * hop, segment_frames * hop)
    return Forward(segment, real[:, 0], kl, duration, durations, hidden, condition)


def length_mask(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """(batch, 1, longest), 1 within each length and 0 beyond."""
    return (torch.arange(longest, device=lengths.device) < lengths[:, None])[:, None].float()


def read_text(
    model: VitsModel, tokens: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor | None
) -> tuple[torch.Tensor, Gaussian]:
    """What the duration predictor reads (batch, channels, text), and the prior of each character."""
    padded = not mask.is_meta  # where a mask has no content to look at
    found = encode_text(model, tokens, mask, condition, padded)
    prior = Gaussian(found.means.transpose(1, 2).float(), found.log_variances.transpose(1, 2).float())
    return found.hidden.float(), prior


def encode_speech(
    model: VitsModel, spectrograms: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor | None
) -> Gaussian:
    """The posterior of each frame. The encoder's own sample, of the global generator, is left."""
    _, mean, log_deviation = model.posterior_encoder(spectrograms, mask, condition)
    return Gaussian(mean.float(), log_deviation.float())


@torch.no_grad()
def align(
    prior: Gaussian,
    flowed: torch.Tensor,
    text_lengths: torch.Tensor,
    frame_lengths: torch.Tensor,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """The frames (batch, text) that each character takes on the most likely path through the flowed latents.

    `noise` (batch, text, frames) lets other paths be tried.
    """
    precision = (-2 * prior.log_deviation).exp()
    constant = (-HALF_LOG_2PI - prior.log_deviation - 0.5 * prior.mean.square() * precision).sum(1)
    scores = constant[:, :, None] + (prior.mean * precision).transpose(1, 2) @ flowed
    scores -= 0.5 * precision.transpose(1, 2) @ flowed.square()
    if noise is not None:
        text, frames = length_mask(text_lengths, scores.shape[1]), length_mask(frame_lengths, scores.shape[2])
        scores = add_noise(scores, noise, text.transpose(1, 2) * frames)
    lengths = text_lengths.cpu().numpy(), frame_lengths.cpu().numpy()
    return torch.from_numpy(monotonic_path(scores.cpu().numpy(), *lengths)).to(flowed.device)


def expand(prior: Gaussian, durations: torch.Tensor, frames: int) -> Gaussian:
    """The prior of each frame: that of its character."""
    ends = durations.cumsum(1)[:, :, None]
    frame = torch.arange(frames, device=durations.device)
    path = ((frame < ends) & (frame >= ends - durations[:, :, None])).float()  # (batch, text, frames)
    return Gaussian(prior.mean @ path, prior.log_deviation @ path)


def kl_divergence(flowed: torch.Tensor, posterior: Gaussian, prior: Gaussian, mask: torch.Tensor) -> torch.Tensor:
    """Of the posterior from the prior, summed over each utterance (eq. 4): of the sample, not in closed form."""
    squares = 0.5 * (flowed - prior.mean).square() * (-2 * prior.log_deviation).exp()
    return ((prior.log_deviation - posterior.log_deviation - 0.5 + squares) * mask).sum((1, 2))


def duration_losses(
    model: VitsModel,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    durations: torch.Tensor,
    noise: torch.Tensor | None,
    condition: torch.Tensor | None,
) -> torch.Tensor:
    """Summed over each utterance: the squared error of log durations, or of a stochastic predictor its likelihood.

    A voice rounds what is predicted up, so the middle between a number of frames and the one below is what is learnt.
    VITS learns the number itself; then half of the shortest characters get a second frame.
    """
    frames = durations[:, None].float()
    if model.config.use_stochastic_duration_prediction:
        return stochastic_durations(model.duration_predictor, hidden, mask, frames, noise, condition)
    predicted = model.duration_predictor(hidden, mask, condition)
    return ((predicted - (frames - 0.5).clamp(min=0.5).log()) * mask).square().sum((1, 2))


def stochastic_durations(
    predictor: VitsStochasticDurationPredictor,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    durations: torch.Tensor,
    noise: torch.Tensor,
    condition: torch.Tensor | None,
) -> torch.Tensor:
    """The variational bound (eq. 7) of the negative log-likelihood of the durations, summed over each utterance.

    The predictor's own forward draws `noise` (batch, 2, text) from the global generator.
    """
    text = predictor.conv_pre(hidden.detach())
    if condition is not None:
        text = text + predictor.cond(condition.detach())
    text = predictor.conv_proj(predictor.conv_dds(text, mask)) * mask
    spoken = predictor.post_conv_dds(predictor.post_conv_pre(durations), mask)
    spoken = predictor.post_conv_proj(spoken) * mask

    noise = noise * mask
    latents, log_q = run_flows(predictor.post_flows, noise, mask, text + spoken)
    u, v = latents.split(1, 1)
    log_q = log_q + ((F.logsigmoid(u) + F.logsigmoid(-u)) * mask).sum((1, 2))
    rest = ((durations - torch.sigmoid(u)) * mask).clamp(min=1e-5).log() * mask  # durations made continuous
    latents, log_p = run_flows(predictor.flows, torch.cat([rest, v], 1), mask, text)
    log_p = log_p - rest.sum((1, 2))
    normals = ((latents.square() - noise.square()) * 0.5 * mask).sum((1, 2))  # their constants cancel
    return normals - log_p - log_q


def run_flows(
    flows: torch.nn.ModuleList, latents: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents after all flows, and the sum of the logarithms of their determinants (batch,)."""
    total = torch.zeros(len(latents), device=latents.device)
    for flow in flows:
        latents, log_determinant = flow(latents, mask, global_conditioning=condition)
        latents = latents.flip(1)
        total = total + log_determinant
    return latents, total


def decode(
    decoder: VitsHifiGan, latents: torch.Tensor, condition: torch.Tensor | None, checkpointing: bool = False
) -> torch.Tensor:
    """Waveforms (batch, samples) in float32. As the decoder's own forward, but for two things.

    Its stages can be computed again in the backward pass; and the last layer is not in half precision, whose rounding
    would be a noise in the waveform.
    """
    hidden = decoder.conv_pre(latents)
    if condition is not None:
        hidden = hidden + decoder.cond(condition)
    for stage in range(decoder.num_upsamples):
        if checkpointing:
            options = checkpoint_options(hidden.device)
            hidden = torch.utils.checkpoint.checkpoint(upsample, decoder, stage, hidden, **options)
        else:
            hidden = upsample(decoder, stage, hidden)
    with in_float32(hidden.device):
        return torch.tanh(decoder.conv_post(F.leaky_relu(hidden.float())))[:, 0]


def upsample(decoder: VitsHifiGan, stage: int, hidden: torch.Tensor) -> torch.Tensor:
    """One stage of the decoder: more samples, and the mean of its residual blocks."""
    hidden = decoder.upsampler[stage](F.leaky_relu(hidden, decoder.config.leaky_relu_slope))
    blocks = decoder.resblocks[stage * decoder.num_kernels : (stage + 1) * decoder.num_kernels]
    return sum(block(hidden) for block in blocks) / decoder.num_kernels


def cut(whole: torch.Tensor, starts: torch.Tensor, size: int) -> torch.Tensor:
    """`size` values from each start on, of (batch, channels, length); zeros follow what is shorter."""
    whole = F.pad(whole, (0, max(0, size - whole.shape[2])))
    places = starts[:, None] + torch.arange(size, device=whole.device)
    return whole.gather(2, places[:, None].expand(-1, whole.shape[1], -1))
