"""A step's utterances as tensors: the sample plan says which, and with which noise; their lengths, who gets them."""

import hashlib
import math
from collections.abc import Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import soundfile
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from speech import prosody, styles
from speech.audio import read_sound
from speech.dataset import Utterance
from speech.features import FeatureSettings, settings_of, spectrogram
from speech.parts import parts_of
from speech.references import References
from speech.vits import Utterances
from speech.voices import Voice, tokenize
from utils.cli import UserError
from utils.devices import keyed_generator
from utils.files import file_sha256


class Position(NamedTuple):
    """What a position of the sample plan means; `start` in [0, 1) is where the segment lies, `key` of all noise."""

    index: int  # type: ignore[assignment]  # of the utterance; a tuple has a method of that name
    start: float
    key: tuple[Hashable, ...]
    score_noise: float = 0.0  # the scale of the alignment's noise


@dataclass(frozen=True)
class Loader:
    """Where a batch's tensors come from: of each utterance its tokens and whole frames, the number of its speaker."""

    utterances: list[Utterance]
    tokens: list[list[int]]
    frames: list[int]
    speakers: list[int] | None  # None for a voice of one
    settings: FeatureSettings
    channels: int  # of the latents
    segment: int  # frames that are decoded
    references: References | None  # of a voice with a speaker encoder
    prosody: list[list[float]] | None  # as the voice hears it, of one that does
    styled: bool  # whether the voice hears styles


def make_loader(
    utterances: list[Utterance], voice: Voice, segment: int, references: References | None = None
) -> Loader:
    """Refuses an utterance of another rate than the voice's, and one with more characters than frames."""
    settings = settings_of(voice.model.config)
    tokens, frames = [], []
    for one in utterances:
        if one.rate != settings.rate:
            raise UserError(
                f"--train_data_dir: {one.path} has {one.rate:,} samples a second, the voice {settings.rate:,}; prepare "
                f"the data with --sampling_rate {settings.rate}"
            )
        tokens.append(tokenize(voice, one.text))
        frames.append(soundfile.info(one.path).frames // settings.hop)
        if len(tokens[-1]) > frames[-1] or frames[-1] * settings.hop < settings.shortest:
            raise UserError(
                f"--train_data_dir: {one.path} is {one.seconds:g} s long, too short for its text {one.text[:60]!r}; "
                "correct the text, or remove it from metadata.jsonl"
            )
    speakers = [voice.speakers.index(one.speaker) for one in utterances] if voice.speakers else None
    parts = parts_of(voice.model.config)
    heard = parts.get(prosody.NAME)
    asked = [prosody.standardise(heard, one, voice.speakers) for one in utterances] if heard else None
    channels, styled = voice.model.config.flow_size, styles.NAME in parts
    return Loader(utterances, tokens, frames, speakers, settings, channels, segment, references, asked, styled)


def data_fingerprint(utterances: list[Utterance]) -> str:
    """A checksum of what is trained on: texts, speakers and sounds."""
    facts = [f"{one.id}\0{one.text}\0{one.speaker}\0{one.sha256 or file_sha256(one.path)}\n" for one in utterances]
    return hashlib.sha256("".join(facts).encode()).hexdigest()


def load_waveform(loader: Loader, index: int) -> torch.Tensor:
    """The samples of an utterance, cut to whole frames."""
    samples = read_sound(loader.utterances[index].path, "--train_data_dir").samples
    return torch.from_numpy(samples[: loader.frames[index] * loader.settings.hop])


def load_batch(positions: Sequence[Position], loader: Loader, step: Sequence[Position] = ()) -> Utterances:
    """The utterances of some positions, on the CPU, padded to the longest; `step`: all those of their step."""
    tokens = [torch.tensor(loader.tokens[position.index]) for position in positions]
    frames = [loader.frames[position.index] for position in positions]
    waveforms = [load_waveform(loader, position.index) for position in positions]
    spectrograms = [spectrogram(waveform[None], loader.settings)[0].T for waveform in waveforms]
    generators = [keyed_generator(*position.key) for position in positions]
    noise = [torch.randn(size, loader.channels, generator=one) for size, one in zip(frames, generators)]
    duration_noise = [torch.randn(len(ids), 2, generator=one) for ids, one in zip(tokens, generators)]
    score_noise = [
        torch.randn(len(ids), size, generator=one) * position.score_noise
        for ids, size, position, one in zip(tokens, frames, positions, generators)
        if position.score_noise
    ]
    rooms = [max(1, size - loader.segment + 1) for size in frames]
    speakers = [loader.speakers[position.index] for position in positions] if loader.speakers else None
    vectors = None
    if known := loader.references:
        vectors = torch.stack([known.draw(position.index, one) for position, one in zip(positions, generators)])
    asked = [loader.prosody[position.index] for position in positions] if loader.prosody else None
    styled = [torch.rand((), generator=one) >= styles.DROPPED for one in generators] if loader.styled else None

    def pad(rows: list[torch.Tensor]) -> torch.Tensor:
        """(batch, channels, length) of rows (length, channels)."""
        return pad_sequence(rows, batch_first=True).transpose(1, 2).contiguous()

    def pad_both(tables: list[torch.Tensor]) -> torch.Tensor:
        """(batch, text, frames) of tables (text, frames)."""
        text, longest = max(map(len, tokens)), max(frames)
        return torch.stack([F.pad(one, (0, longest - one.shape[1], 0, text - len(one))) for one in tables])

    return Utterances(
        samples=[loader.utterances[position.index].id for position in positions],
        tokens=pad_sequence(tokens, batch_first=True),
        text_lengths=torch.tensor([len(one) for one in tokens]),
        spectrograms=pad(spectrograms),
        frame_lengths=torch.tensor(frames),
        waveforms=pad_sequence(waveforms, batch_first=True),
        noise=pad(noise),
        starts=torch.tensor([math.floor(one.start * room) for one, room in zip(positions, rooms)]),
        duration_noise=pad(duration_noise),
        speakers=None if speakers is None else torch.tensor(speakers),
        vectors=vectors,
        prosody=None if asked is None else torch.tensor(asked),
        styled=None if styled is None else torch.stack(styled).float(),
        step_frames=torch.full([len(frames)], sum(loader.frames[one.index] for one in step)),
        step_tokens=torch.full([len(frames)], sum(len(loader.tokens[one.index]) for one in step)),
        score_noise=pad_both(score_noise) if score_noise else None,
    )


def split_step(
    positions: list[Position], frames: list[int], micro_batch: int, rank: int, processes: int
) -> list[list[Position]]:
    """One process's share of a step in micro-batches, each of about one length; every share has all lengths."""
    by_length = sorted(positions, key=lambda position: frames[position.index])
    share = by_length[rank::processes]
    return [share[start : start + micro_batch] for start in range(0, len(share), micro_batch)]


def load_steps(
    steps: Iterable[list[Position]], micro_batch: int, rank: int, processes: int, loader: Loader
) -> Generator[list[Utterances], None, None]:
    """One process's micro-batches of every step; `steps` are the positions of all processes."""
    for positions in steps:
        parts = split_step(positions, loader.frames, micro_batch, rank, processes)
        yield [load_batch(part, loader, positions) for part in parts]
