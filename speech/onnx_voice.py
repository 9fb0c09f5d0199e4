"""A voice as one ONNX file: numbers of characters in, a waveform out, the durations inside; the noise is an input."""

import copy
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus
from transformers.models.vits.modeling_vits import VitsAttention, VitsConvFlow

from speech import prosody
from speech.parts import Cues, parts_of
from speech.synthesis import (
    decode,
    fold_weight_norm,
    has_random_durations,
    most_frames,
    predict_durations,
    read_tokens,
    spread_over_frames,
)
from speech.vits2 import TransformerBlock
from speech.voices import Voice
from utils.cli import UserError
from utils.files import replaced_file

MOST_TOKENS, MOST_NOISE = 100_000, 10_000_000
OPSET = 18
LEAST = 1e-3  # the smallest width, height and slope of a spline, as VITS has them


class AnyLength(VitsAttention):
    """The same attention, whose relative positions are looked up: torch.export can't follow views of padded rows."""

    def _get_relative_embeddings(self, relative_embeddings: Tensor, length: int) -> Tensor:
        offsets = torch.arange(1 - length, length)
        places = (offsets + self.window_size).clamp(0, 2 * self.window_size)
        return relative_embeddings[:, places] * (offsets.abs() <= self.window_size)[:, None]

    def _relative_position_to_absolute_position(self, x: Tensor) -> Tensor:
        numbers = torch.arange(x.shape[1])
        places = numbers[None] - numbers[:, None] + (x.shape[1] - 1)
        return x.gather(2, places.expand(x.shape[0], -1, -1))

    def _absolute_position_to_relative_position(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        places = torch.arange(1 - length, length)[None] + torch.arange(length)[:, None]
        found = x.gather(2, places.clamp(0, length - 1).expand(x.shape[0], -1, -1))
        return found * ((places >= 0) & (places < length))


class AnyFrames(TransformerBlock):
    """The same block, in the steps of its attention: torch.export can't follow the whole at a length not known yet."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor, heard: Tensor) -> Tensor:
        return (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(3) @ value  # every frame is there


class AnyValue(VitsConvFlow):
    """The same flow, which computes all values and then chooses, since torch.onnx can't compute only some."""

    def forward(
        self, inputs: Tensor, padding_mask: Tensor, global_conditioning: Tensor | None = None, reverse: bool = True
    ) -> tuple[Tensor, None]:
        first, second = inputs.split(self.half_channels, dim=1)
        hidden = self.conv_dds(self.conv_pre(first), padding_mask, global_conditioning)
        hidden = (self.conv_proj(hidden) * padding_mask).unflatten(1, (self.half_channels, -1)).transpose(2, 3)
        bins, root = self.num_bins, math.sqrt(self.filter_channels)
        widths, heights, slopes = hidden.split([bins, bins, bins - 1], dim=-1)
        second = invert_spline(second, widths / root, heights / root, slopes, self.tail_bound)
        return torch.cat([first, second], dim=1) * padding_mask, None


def invert_spline(values: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float) -> Tensor:
    """Where a rational-quadratic spline has these values (Durkan et al., 2019, arXiv 1906.04032, equations 6 to 8).

    Outside of ±bound the spline is the identity, with a slope of 1 at both ends.
    """
    left, width = _bins(widths, bound)
    bottom, height = _bins(heights, bound)
    one = math.log(math.exp(1 - LEAST) - 1)  # which softplus makes a slope of 1 of
    slopes = LEAST + softplus(pad(slopes, (1, 1), value=one))
    inside = values.clamp(-bound, bound)
    number = (inside[..., None] >= bottom[..., 1:]).sum(-1, keepdim=True)
    left, width, bottom, height, slope, next_slope = (
        one.gather(-1, number)[..., 0] for one in (left, width, bottom, height, slopes[..., :-1], slopes[..., 1:])
    )
    mean = height / width
    up = (inside - bottom) * (slope + next_slope - 2 * mean)
    a, b, c = height * (mean - slope) + up, height * slope - up, -mean * (inside - bottom)
    found = 2 * c / (-b - torch.sqrt(b.square() - 4 * a * c)) * width + left
    return torch.where(values.abs() <= bound, found, values)


def _bins(sizes: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Where each bin begins, and its size: a share of -bound to bound."""
    count = sizes.shape[-1]
    shares = LEAST + (1 - LEAST * count) * sizes.softmax(-1)
    edges = 2 * bound * pad(shares.cumsum(-1)[..., :-1], (1, 1)) - bound
    edges[..., -1] = bound
    return edges[..., :-1], edges[..., 1:] - edges[..., :-1]


class WholeVoice(torch.nn.Module):
    """The voice as one function of tensors, for torch.onnx."""

    def __init__(self, voice: Voice):
        super().__init__()
        self.model = copy.deepcopy(voice.model).cpu()
        for layer in self.model.text_encoder.encoder.layers:
            layer.attention.__class__ = AnyLength
        for flow in self.model.duration_predictor.flows[1:] if has_random_durations(self.model) else ():
            flow.__class__ = AnyValue
        for module in self.model.flow.modules():
            if isinstance(module, TransformerBlock):
                module.__class__ = AnyFrames

    def forward(
        self,
        input_ids: Tensor,
        scales: Tensor,
        noise: Tensor,
        duration_noise: Tensor | None = None,
        speaker: Tensor | None = None,
        prosody: Tensor | None = None,
    ) -> Tensor:
        noise_scale, noise_scale_duration, rate = scales.unbind()
        cues = Cues(None if speaker is None else speaker.reshape(1), prosody=prosody)
        reading = read_tokens(self.model, input_ids, cues)
        drawn = torch.zeros(()) if duration_noise is None else duration_noise * noise_scale_duration
        durations = predict_durations(self.model, reading, drawn, rate)
        means, log_variances = spread_over_frames(reading, durations, most_frames(self.model))
        given = torch.ones_like(noise[0, :, 0], dtype=torch.int64).sum()  # a tensor: of a number, no rest is computed
        noise = noise[:, torch.arange(means.shape[1]) % given]
        latents = means + noise * torch.exp(log_variances) * noise_scale
        return decode(self.model, latents.transpose(1, 2), reading.condition)


def example_inputs(voice: Voice, tokens: int = 40, frames: int = 100) -> dict[str, Tensor]:
    """Inputs of an exported voice, by name; the file takes any number of tokens, and of frames of noise."""
    model = voice.model
    scales = [model.noise_scale, model.noise_scale_duration, model.speaking_rate]
    inputs = {
        "input_ids": torch.arange(tokens)[None] % model.config.vocab_size,
        "scales": torch.tensor(scales, dtype=torch.float32),
        "noise": torch.zeros(1, frames, model.config.flow_size),
    }
    if has_random_durations(model):
        inputs["duration_noise"] = torch.zeros(1, 2, tokens)
    if voice.speakers:
        inputs["speaker"] = torch.zeros(1, dtype=torch.int64)
    if prosody.NAME in parts_of(model.config):
        inputs["prosody"] = torch.zeros(1, 2)
    return inputs


def describe_voice(voice: Voice) -> dict[str, str]:
    """What a program needs to know beside the file's inputs: as text, since that is what ONNX keeps."""
    model, tokenizer = voice.model, voice.tokenizer
    heard = parts_of(model.config).get(prosody.NAME)
    scales = [model.noise_scale, model.noise_scale_duration, model.speaking_rate]
    return {
        "sampling_rate": str(model.config.sampling_rate),
        "language": tokenizer.language or "",
        "vocab": json.dumps(tokenizer.get_vocab(), ensure_ascii=False),
        "add_blank": json.dumps(tokenizer.add_blank),
        "lower_case": json.dumps(tokenizer.normalize),
        "scales": json.dumps(scales),  # noise_scale, noise_scale_duration, speaking_rate
        "speakers": json.dumps(voice.speakers, ensure_ascii=False),
        **({"prosody": json.dumps(prosody.in_units(heard["deviations"]))} if heard else {}),  # semitones, dB of 1
    }


@torch.no_grad()
def export_onnx(path: Path, voice: Voice) -> None:
    """Write the voice for onnxruntime, with `describe_voice` in its metadata_props; it can't be trained after this."""
    fold_weight_norm(voice.model)  # not of a copy: torch would remove it from the original's class, too
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ModuleNotFoundError:
        raise UserError(f"--export_onnx {path}: the package onnxscript is missing; pip install onnxscript") from None
    inputs = example_inputs(voice)
    tokens, frames = torch.export.Dim("tokens", max=MOST_TOKENS), torch.export.Dim("frames", max=MOST_NOISE)
    shapes: dict[str, Any] = {"input_ids": {1: tokens}, "scales": None, "noise": {1: frames}}
    shapes |= {"duration_noise": {2: tokens}, "speaker": None, "prosody": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            WholeVoice(voice).eval(),
            kwargs=inputs,
            dynamic_shapes={name: shapes[name] for name in inputs},
            input_names=list(inputs),
            output_names=["waveform"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(describe_voice(voice))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        file.write(program.model_proto.SerializeToString())
