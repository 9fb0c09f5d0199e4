"""A voice too small to speak, and a dataset of sounds that it can learn something of."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import VitsConfig

from speech.discriminators import DiscriminatorConfig
from speech.features import settings_of, spectrogram
from speech.vits import Utterances, no_dropout
from speech.voices import Voice, new_voice, tokenize
from utils.devices import keyed_generator

CHARACTERS = " abcdefghijklmnopqrstuvwxyzáâãàçéêíóôõú'-"
RATE, HOP = 16_000, 256
WORDS = "a casa do rio azul tem uma janela e dez flores na mesa perto da porta velha".split()
SPEAKERS = ("ana", "rui")
SIZES = {
    "hidden_size": 16,
    "flow_size": 16,
    "num_hidden_layers": 1,
    "ffn_dim": 32,
    "duration_predictor_filter_channels": 16,
    "duration_predictor_num_flows": 2,
    "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 1,
    "posterior_encoder_num_wavenet_layers": 1,
    "upsample_initial_channel": 16,
    "upsample_rates": [16, 16],
    "upsample_kernel_sizes": [32, 32],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "speaker_embedding_size": 0,
}
DISCRIMINATORS = DiscriminatorConfig((2, 3), (4, 8), (), (512,), 4)


def tiny_voice(seed: int = 0, speakers: int = 0, stochastic: bool = False) -> Voice:
    """16 kHz, 256 samples a frame; `speakers` 0 for one without a name."""
    config = VitsConfig(**SIZES, use_stochastic_duration_prediction=stochastic)
    names = [SPEAKERS[i] if i < len(SPEAKERS) else f"speaker{i}" for i in range(speakers)]
    voice = new_voice(config, CHARACTERS, seed, "por", names)
    no_dropout(voice.model)
    return voice


def hum(text: str, speaker: str = "", seed: int = 0) -> np.ndarray:
    """A sound of `text`: for each character 0.08 s of harmonics whose pitch is the character's; a blank is silent."""
    rng = np.random.default_rng(seed)
    length = int(0.08 * RATE)
    pitches = [0.0 if one == " " else 120.0 + 6 * (ord(one) % 40) + 60 * (speaker == SPEAKERS[1]) for one in text]
    phase = 2 * np.pi * np.cumsum(np.repeat(pitches, length)) / RATE
    loud = np.repeat([float(pitch > 0) for pitch in pitches], length)
    sound = sum(np.sin(k * phase) / k for k in range(1, 6)) * loud * 0.25
    return (sound + 0.001 * rng.normal(size=len(sound))).astype(np.float32)


def sentence(seed: int, words: int = 3) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def write_speech(folder: Path, count: int = 12, held_out: int = 3, speakers: tuple[str, ...] = ("",)) -> Path:
    """A prepared dataset: `count` sounds to train on, `held_out` others in `val` and in `test`; speakers take turns."""
    for split, first, size in (("train", 0, count), ("val", 1000, held_out), ("test", 2000, held_out)):
        (folder / split / "audio").mkdir(parents=True)
        rows = []
        for i in range(first, first + size):
            text, speaker = sentence(i), speakers[i % len(speakers)]
            sound, name = hum(text, speaker, i), f"audio/{i:06d}.flac"
            soundfile.write(folder / split / name, sound, RATE)
            row = {"file_name": name, "text": text, "raw_text": text, "speaker": speaker}
            rows.append(row | {"seconds": round(len(sound) / RATE, 3)})
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / split / "metadata.jsonl").write_text("".join(lines), "utf-8")
    return folder


def utterances(voice: Voice, seeds: list[int], segment: int = 8) -> Utterances:
    """A batch of hums, each with noise of its own seed."""
    settings, pad = settings_of(voice.model.config), torch.nn.utils.rnn.pad_sequence
    texts = [sentence(seed) for seed in seeds]
    sounds = [torch.from_numpy(hum(text, seed=seed)) for text, seed in zip(texts, seeds)]
    frames = [len(sound) // settings.hop for sound in sounds]
    tokens = [torch.tensor(tokenize(voice, text)) for text in texts]
    generators = [keyed_generator("tiny", seed) for seed in seeds]
    flow = voice.model.config.flow_size
    noise = [torch.randn(size, flow, generator=one) for size, one in zip(frames, generators)]
    duration_noise = [torch.randn(len(ids), 2, generator=one) for ids, one in zip(tokens, generators)]
    several = len(voice.speakers) > 1
    return Utterances(
        samples=[str(seed) for seed in seeds],
        tokens=pad(tokens, True),
        text_lengths=torch.tensor([len(ids) for ids in tokens]),
        spectrograms=pad([spectrogram(sound[None], settings)[0].T for sound in sounds], True).transpose(1, 2),
        frame_lengths=torch.tensor(frames),
        waveforms=pad([sound[: size * settings.hop] for sound, size in zip(sounds, frames)], True),
        noise=pad(noise, True).transpose(1, 2),
        starts=torch.tensor(
            [int(torch.randint(size - segment + 1, (), generator=one)) for size, one in zip(frames, generators)]
        ),
        duration_noise=pad(duration_noise, True).transpose(1, 2)
        if voice.model.config.use_stochastic_duration_prediction
        else None,
        speakers=torch.tensor([seed % len(voice.speakers) for seed in seeds]) if several else None,
    )
