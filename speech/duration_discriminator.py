"""Which durations are of a recording, which did the voice predict? The discriminator of VITS2 (arXiv 2307.16430, 2.1).

It sees of each character what the text encoder says, who speaks, and a duration, and gives each character a score.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import VitsConfig, VitsModel

from speech.features import in_float32
from speech.layers import zero_
from speech.synthesis import Reading, has_random_durations, sample_durations
from speech.vits import Forward, Utterances, length_mask
from speech.voices import load_from
from utils.files import write_safetensors
from utils.hub import find_file

FILE = "duration_discriminator.safetensors"  # beside a voice's own weights
ADVICE = f"copy the voice again, or remove its {FILE} to train with a new one"


class DurationDiscriminator(torch.nn.Module):
    """As wide as the duration predictor, and with as many layers."""

    def __init__(self, config: VitsConfig) -> None:
        super().__init__()
        size, kernel = config.duration_predictor_filter_channels, config.duration_predictor_kernel_size
        self.text, self.duration = torch.nn.Conv1d(config.hidden_size, size, 1), torch.nn.Conv1d(1, size, 1)
        self.cond = None
        if config.speaker_embedding_size:
            self.cond = torch.nn.Conv1d(config.speaker_embedding_size, size, 1)
            zero_(self.cond)
        convs = (torch.nn.Conv1d(size, size, kernel, padding=kernel // 2) for _ in range(2))
        self.convs = torch.nn.ModuleList(convs)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(size) for _ in range(2))
        self.score = torch.nn.Conv1d(size, 1, 1)

    def forward(self, hidden: Tensor, durations: Tensor, mask: Tensor, condition: Tensor | None) -> Tensor:
        """Scores (batch, 1, text) of logarithms of durations."""
        found = self.text(hidden) + self.duration(durations)
        if self.cond is not None and condition is not None:
            found = found + self.cond(condition)
        for conv, norm in zip(self.convs, self.norms):
            found = norm(F.leaky_relu(conv(found * mask), 0.1).transpose(1, 2)).transpose(1, 2)
        return self.score(found * mask)


def judge_durations(
    judge: DurationDiscriminator, model: VitsModel, batch: Utterances, found: Forward
) -> tuple[Tensor, Tensor]:
    """Sums over each utterance: the loss of the discriminator, and that of the duration predictor (least squares).

    A recording's durations are whole frames. As a voice rounds up what it predicts, anything from one frame less is the
    same to hear; each is moved down by a random part of a frame, or the discriminator would look for whole numbers.
    """
    with in_float32(found.hidden.device):
        mask = length_mask(batch.text_lengths, batch.tokens.shape[1])
        hidden, condition = found.hidden.detach(), None if found.condition is None else found.condition.detach()
        part = torch.special.ndtr(batch.duration_noise[:, :1])  # of a normal number one that is uniform in 0 … 1
        real = torch.log1p(found.durations[:, None] - part)
        predicted = F.softplus(predict_logarithms(model, hidden, mask, condition, batch.duration_noise))
        real, predicted = (judge(hidden, one, mask, condition) for one in (real, predicted))
        judging = (((1 - real).square() + predicted.square()) * mask).sum((1, 2))
        return judging, ((1 - predicted).square() * mask).sum((1, 2))


def predict_logarithms(
    model: VitsModel, hidden: Tensor, mask: Tensor, condition: Tensor | None, noise: Tensor
) -> Tensor:
    """(batch, 1, text) of the durations that the voice predicts, by random numbers where it needs them."""
    if not has_random_durations(model):
        return model.duration_predictor(hidden, mask, condition)
    reading = Reading(hidden, hidden, hidden, condition)  # whose prior is of no use here
    return sample_durations(model.duration_predictor, reading, noise * mask, mask)


def open_duration_discriminator(model: str | None, config: VitsConfig, seed: int) -> DurationDiscriminator:
    """That which a voice brings (None: one from nothing), or a new one, with weights that depend on the seed alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        judge = DurationDiscriminator(config)

    def load(source: str) -> None:
        if path := find_file(source, FILE):
            missing, more = judge.load_state_dict(load_file(path), strict=False)
            if more or any(not name.startswith("cond.") for name in missing):  # one that it hears only now is silent
                raise ValueError(f"{FILE} does not fit the voice")

    if model:
        load_from(model, load, advice=ADVICE)
    return judge


def save_duration_discriminator(folder: Path, judge: DurationDiscriminator) -> None:
    write_safetensors(folder / FILE, judge.state_dict())
