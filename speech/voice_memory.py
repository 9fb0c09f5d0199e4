"""A training step of a voice on the meta device, where tensors have sizes and no content: for estimates of memory."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.fx.experimental import _config as meta
from torch.overrides import TorchFunctionMode
from transformers import VitsConfig

from speech import prosody, styles
from speech.adaptation import freeze_others
from speech.dataset import Utterance
from speech.discriminators import DiscriminatorConfig, Discriminators
from speech.duration_discriminator import DurationDiscriminator, judge_durations
from speech.features import settings_of
from speech.losses import discriminator_losses, feature_distances, generator_losses, mel_distances
from speech.parts import model_class, parts_of
from speech.vits import Utterances, forward_train, no_dropout
from speech.voices import speaker_names


class MetaStep(NamedTuple):
    """What is trained, and what runs a step of it; checkpointing or not is its argument."""

    modules: dict[str, torch.nn.Module]
    run: Callable[[bool], None]


class _NoContent(TorchFunctionMode):
    """Tensors have no content here: a check of their values passes."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return True if function is torch.Tensor.item else function(*args, **(kwargs or {}))


def build_step(
    config: VitsConfig,
    sizes: DiscriminatorConfig,
    longest: Utterance,
    micro: int,
    segment: int,
    judges_durations: bool = False,
    adapt: str = "all",
) -> MetaStep:
    """Forward and backward of so many utterances, all as long as the longest; `adapt`: see speech.adaptation."""
    settings, parts = settings_of(config), parts_of(config)
    text, frames = 2 * len(longest.text) + 1, math.ceil(longest.seconds * settings.rate / settings.hop)
    with torch.device("meta"):
        model, discriminators = model_class(config)(config), Discriminators(sizes)
        judge = DurationDiscriminator(config) if judges_durations else None
        no_dropout(model)
        trained = freeze_others(model, adapt)
        batch = Utterances(
            samples=[longest.id] * micro,
            tokens=torch.zeros(micro, text, dtype=torch.long),
            text_lengths=torch.zeros(micro, dtype=torch.long),
            spectrograms=torch.zeros(micro, settings.n_fft // 2 + 1, frames),
            frame_lengths=torch.zeros(micro, dtype=torch.long),
            waveforms=torch.zeros(micro, frames * settings.hop),
            noise=torch.zeros(micro, config.flow_size, frames),
            starts=torch.zeros(micro, dtype=torch.long),
            duration_noise=torch.zeros(micro, 2, text),
            speakers=torch.zeros(micro, dtype=torch.long) if len(speaker_names(config)) > 1 else None,
            prosody=torch.zeros(micro, 2) if prosody.NAME in parts else None,
            styled=torch.zeros(micro) if styles.NAME in parts else None,
        )
        durations = torch.zeros(micro, text, dtype=torch.long)

    # The spline of stochastic durations chooses by a mask.
    @meta.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    def run(checkpointing: bool) -> None:
        with _NoContent():
            found = forward_train(model, batch, segment, checkpointing, durations)
            judged = judge_durations(judge, model, batch, found) if judge else None
        real, decoded = discriminators(found.real), discriminators(found.segment)
        losses = mel_distances(found.segment, found.real, settings) + found.kl + found.duration
        losses = losses + generator_losses(decoded.scores) + feature_distances(real.features, decoded.features)
        judging, judges = discriminator_losses(real.scores, decoded.scores).sum(), list(discriminators.parameters())
        if judge and judged:
            judging, judges = judging + judged[0].sum(), judges + list(judge.parameters())
            losses = losses + judged[1]
        judging.backward(inputs=judges, retain_graph=True)
        losses.sum().backward(inputs=trained)

    modules = {"voice": model, "discriminators": discriminators}
    return MetaStep(modules | ({"duration_discriminator": judge} if judge else {}), run)
