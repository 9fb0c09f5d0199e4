"""What a voice with a speaker encoder has in place of a table of speakers: a layer that reads a vector of who speaks.

The encoder itself is frozen and lies elsewhere; a vector is what it hears in recordings (speech/speaker.py).
"""

import math

import torch
from torch import Tensor
from transformers import VitsModel

SPEAKER_ENCODER = "speaker_encoder"  # the part's name in `config.parts`


def add_speaker_encoder(model: VitsModel, encoder: str, size: int, speakers: int) -> None:
    """The part: a layer for vectors of so many numbers, and the vectors of the speakers that it was trained on."""
    model.read_speaker = torch.nn.Linear(size, model.config.speaker_embedding_size)
    model.register_buffer("known_speakers", torch.zeros(speakers, size))


def read_speaker(model: VitsModel, speakers: Tensor | None, vectors: Tensor | None) -> Tensor:
    """The condition (batch, size) of these vectors, or of known speakers by their rows; of the first one without."""
    if vectors is None:
        vectors = model.known_speakers[:1] if speakers is None else model.known_speakers[speakers]
    return model.read_speaker(vectors * math.sqrt(vectors.shape[1]))  # whose numbers are then of about size 1
