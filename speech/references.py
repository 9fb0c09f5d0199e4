"""Recordings that say who is to speak: their vectors, which of them conditions an utterance, and voices that read them.

An utterance is conditioned on another one of its speaker, drawn anew each time by the sample plan: as at the synthesis,
where the reference never says the same sentence. Its own vector would also tell what is said in it and how; the mean of
a speaker is one point for all their sentences, and between few points a voice does not learn what a new one means.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VitsConfig

from speech.audio import read_sound, resample, trim_silence
from speech.cloning import SPEAKER_ENCODER
from speech.convolutions import RATE
from speech.dataset import Utterance
from speech.layers import zero_
from speech.parts import hears_condition, parts_of
from speech.speaker import Encode, encoder_size, load_speaker_encoder
from speech.voices import EMBEDDING_SIZE, Voice, grow
from utils.cli import UserError

SHORTEST = 1.0  # seconds of speech in all references together


def encoder_of(config: VitsConfig) -> str:
    """The speaker encoder that a voice listens by; "" for one with a table of speakers, or of one speaker."""
    return str(parts_of(config).get(SPEAKER_ENCODER, {}).get("encoder", ""))


def hear_reference(path: Path, flag: str) -> np.ndarray:
    """A recording as speaker encoders hear it: without the silence at its ends, at 16 kHz."""
    sound = read_sound(path, flag)
    return resample(trim_silence(sound.samples, sound.rate), sound.rate, RATE)


def add_reference_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        default=[],
        metavar="SOUND",
        help="recordings of who is to speak, of a voice that was trained with --speaker_encoder; only with the consent "
        "of that person (docs/voices.md)",
    )


def load_encoder(voice: Voice, flag: str) -> Encode:
    """The speaker encoder of a voice; `flag` is what an error names, for the user gave the voice alone."""
    name = encoder_of(voice.model.config)
    return load_speaker_encoder(name, voice.model.device, f"{flag}: the voice's speaker encoder")


def encode_references(paths: Sequence[Path], voice: Voice) -> tuple[float, ...]:
    """The vector of who speaks in these recordings; refuses too little speech, and a voice without an encoder."""
    if not encoder_of(voice.model.config):
        raise UserError(
            f"--reference {paths[0]}: this voice does not listen to recordings; train one with train_tts.py "
            "--speaker_encoder, or leave it out"
        )
    sounds = [hear_reference(path, "--reference") for path in paths]
    for path, sound in zip(paths, sounds):
        if not sound.any():
            raise UserError(f"--reference {path}: is silent; give a recording of the speaker")
    if (seconds := sum(map(len, sounds)) / RATE) < SHORTEST:
        few = f"{seconds:.2f} s of speech in all"
        raise UserError(f"--reference {paths[0]}: {few}; expected at least {SHORTEST:g} s, better a minute")
    vectors = torch.from_numpy(load_encoder(voice, "--reference")(sounds))
    return tuple(mean_vector(vectors).tolist())


def mean_vector(vectors: Tensor) -> Tensor:
    """The mean direction (size,) of vectors (count, size)."""
    return F.normalize(vectors.mean(0), dim=0)


@dataclass(frozen=True)
class References:
    """Of each utterance the vectors of its speaker's recordings (count, size), and its own place there; -1 for none."""

    vectors: list[Tensor]
    own: list[int]

    def draw(self, index: int, generator: torch.Generator) -> Tensor:
        """Another recording's vector of the utterance's speaker; its own where there is no other one."""
        vectors, own = self.vectors[index], self.own[index]
        others = len(vectors) - (own >= 0)
        if not others:
            return vectors[own]
        drawn = int(torch.randint(others, (), generator=generator))
        return vectors[drawn + (0 <= own <= drawn)]


def plan_references(
    train: list[Utterance], held_out: list[Utterance], vectors: Tensor | None
) -> list[References] | list[None]:
    """Of the utterances to train on, and of those held out; `vectors` has a row of each. None without vectors.

    A held-out utterance gets the vectors to train on of its speaker; one whose speaker has none, other held-out ones.
    """
    if vectors is None:
        return [None, None]
    known, places = group_vectors(train, vectors[: len(train)])
    others, held_places = group_vectors(held_out, vectors[len(train) :])
    own = [-1 if one.speaker in known else place for one, place in zip(held_out, held_places)]
    return [
        References([known[one.speaker] for one in train], places),
        References([known.get(one.speaker, others[one.speaker]) for one in held_out], own),
    ]


def group_vectors(utterances: list[Utterance], vectors: Tensor) -> tuple[dict[str, Tensor], list[int]]:
    """The vectors of each speaker, and of each utterance its place among them."""
    rows: dict[str, list[int]] = {}
    places = []
    for row, one in enumerate(utterances):
        mine = rows.setdefault(one.speaker, [])
        places.append(len(mine))
        mine.append(row)
    return {name: vectors[some] for name, some in rows.items()}, places


def encoder_settings(config: VitsConfig, encoder: str, speakers: Sequence[str]) -> dict[str, Any]:
    """What the config of a voice with this encoder has otherwise, whose known speakers have these names."""
    part = {"encoder": encoder, "size": encoder_size(encoder), "speakers": max(1, len(speakers))}
    return {
        "num_speakers": 1,
        "speaker_names": list(speakers),
        "speaker_embedding_size": config.speaker_embedding_size or EMBEDDING_SIZE,
        "parts": {**parts_of(config), SPEAKER_ENCODER: part},
    }


@torch.no_grad()
def with_encoder(voice: Voice, encoder: str, utterances: list[Utterance], vectors: Tensor, seed: int = 0) -> Voice:
    """The voice with a speaker encoder, which knows the speakers of these utterances by the means of their vectors.

    One with a table begins with the sound of its first speaker, whoever is to speak; one of a single speaker with its
    own. One with this encoder keeps the speakers that it knows.
    """
    known = {name: mean_vector(rows) for name, rows in group_vectors(utterances, vectors)[0].items()}
    model, had = voice.model, bool(encoder_of(voice.model.config))
    if had and voice.speakers:
        known = dict(zip(voice.speakers, model.known_speakers)) | known
    names = list(known) if len(known) > 1 else []
    grown = grow(voice, encoder_settings(model.config, encoder, names), seed)
    grown.known_speakers.copy_(torch.stack([known[name] for name in names] if names else list(known.values())))
    if not had and hears_condition(model.config):
        zero_(grown.read_speaker)
        if voice.speakers:
            grown.read_speaker.bias.copy_(model.embed_speaker.weight[0])
    return Voice(grown, voice.tokenizer, names)
