"""Does it speak? The distance to held-out recordings at fixed noise, and sounds and pictures to judge it by."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import VitsModel

from speech.audio import SYNTHETIC, write_sound
from speech.batches import Loader, Position, load_batch
from speech.features import FeatureSettings, log_mel, spectrogram
from speech.losses import mel_distances
from speech.parts import make_condition
from speech.synthesis import Speaking, predict_durations, read_tokens, speak
from speech.vits import Utterances, align, encode_speech, expand, length_mask, read_text
from speech.voices import Voice
from utils import devices
from utils.files import replaced_file


@dataclass(frozen=True)
class Listener:
    """What a validation listens to: held-out utterances one by one, and texts, each spoken with a seed of its own."""

    voice: Voice
    held_out: list[Utterances]
    settings: FeatureSettings
    texts: list[tuple[str, str]]  # each with its speaker
    recordings: list[Utterances]  # of the texts, where they are of the data


@dataclass(frozen=True)
class Spoken:
    """An utterance spoken as long as its recording."""

    waveform: torch.Tensor  # (samples,)
    durations: list[int]  # the frames of each token in the recording
    distance: float  # of the log-mel spectrograms
    duration_error: float  # of the predicted length, relative


def plan_listening(
    voice: Voice, held_out: Loader, train: Loader, texts: list[str], samples: int, sounds: int
) -> Listener:
    """The first `samples` held-out utterances, and `sounds` texts: those given, or the first utterances'.

    Where nothing is held out, these are of what is trained on.
    """
    shown = held_out if held_out.utterances else train
    own = [(one.text, one.speaker if voice.speakers else "") for one in shown.utterances[:sounds]]
    given = [(text, "") for text in texts[:sounds]]
    measured = load_first(held_out, samples)
    return Listener(voice, measured, train.settings, given or own, [] if given else load_first(shown, sounds))


def load_first(loader: Loader, count: int) -> list[Utterances]:
    """Utterances one by one, each at the same noise in every validation, in the voice's own prosody and no style."""
    found = range(min(count, len(loader.utterances)))
    batches = [load_batch([Position(i, 0.0, ("validation", i))], loader) for i in found]
    return [replace(one, prosody=None, styled=None) for one in batches]


@torch.no_grad()
def speak_along(voice: Voice, utterance: Utterances, settings: FeatureSettings) -> Spoken:
    """The text of one utterance with the durations of its recording, from the prior, at the utterance's own noise."""
    model = voice.model
    text_mask = length_mask(utterance.text_lengths, utterance.tokens.shape[1])
    mask = length_mask(utterance.frame_lengths, utterance.spectrograms.shape[2])
    condition = make_condition(model, utterance.cues)
    _, prior = read_text(model, utterance.tokens, text_mask, condition)
    flowed = model.flow(encode_speech(model, utterance.spectrograms, mask, condition).mean, mask, condition)
    durations = align(prior, flowed, utterance.text_lengths, utterance.frame_lengths)
    mean, log_deviation = expand(prior, durations, flowed.shape[2])
    sampled = mean + utterance.noise * log_deviation.exp() * model.noise_scale
    waveform = model.decoder(model.flow(sampled, mask, condition, reverse=True), condition)[:, 0]
    distance = mel_distances(waveform, utterance.waveforms, settings).item()
    return Spoken(waveform[0].cpu(), durations[0].tolist(), distance, length_error(model, utterance))


def length_error(model: VitsModel, utterance: Utterances) -> float:
    """How far the predicted length of one utterance is off, as a share of the recording's."""
    reading = read_tokens(model, utterance.tokens, utterance.cues)
    noise = utterance.duration_noise * model.noise_scale_duration
    predicted = predict_durations(model, reading, noise, model.speaking_rate).sum().item()
    real = utterance.frame_lengths.item()
    return abs(predicted - real) / real


def listen(listener: Listener, shown: Path | None, stopped: Callable[[], bool]) -> dict[str, float] | None:
    """The means over the held-out utterances; None where it was stopped.

    What is spoken and drawn gets names that begin with `shown`, nothing is written without.
    """
    device = listener.voice.model.device
    cores = devices.share_cores(2 * len(listener.held_out)) if device.type == "cpu" else None

    def speak_one(utterance: Utterances) -> Spoken | None:
        return None if stopped() else speak_along(listener.voice, utterance.to(device), listener.settings)

    spoken = list((cores.pool.map if cores else map)(speak_one, listener.held_out))
    if None in spoken:
        return None
    if shown:
        shown.parent.mkdir(exist_ok=True)
        write_sounds(listener, shown)
        if spoken:
            draw(listener, spoken[0], shown.with_suffix(".png"))
    if not spoken:
        return {}
    distance, error = mean(one.distance for one in spoken), mean(one.duration_error for one in spoken)
    return {"val_loss": distance, "val_duration_error": error}


def write_sounds(listener: Listener, shown: Path) -> None:
    """Each text as the voice speaks it by itself, and once for all validations the recordings of the same sentences."""
    rate = listener.settings.rate
    for i, (text, speaker) in enumerate(listener.texts):
        samples = speak(listener.voice, text, i, Speaking(speaker=speaker))
        write_sound(shown.with_name(f"{shown.name}_{i + 1}.wav"), samples, rate, SYNTHETIC)
    if not any(shown.parent.glob("*_real.wav")):
        for i, recording in enumerate(listener.recordings):
            write_sound(shown.with_name(f"{shown.name}_{i + 1}_real.wav"), recording.waveforms[0].numpy(), rate)


def draw(listener: Listener, spoken: Spoken, path: Path) -> None:
    """The first held-out utterance: its spectrogram, that of the voice, and the frames of each character."""
    recording = listener.held_out[0]
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    sounds = {"recording": recording.waveforms, "voice, with the recording's durations": spoken.waveform[None]}
    for axis, (title, sound) in zip(axes, sounds.items()):
        bands = log_mel(spectrogram(sound, listener.settings), listener.settings)[0].numpy()
        axis.imshow(bands, origin="lower", aspect="auto")
        axis.set(title=title, ylabel="mel band")
    ends = np.cumsum(spoken.durations)
    axes[2].step(np.concatenate([[0], ends]), np.arange(len(ends) + 1), where="post")
    axes[2].set(title=f"alignment of {recording.samples[0]}", xlabel="frame", ylabel="token")
    with replaced_file(path) as file:
        figure.savefig(file, format="png", dpi=80, metadata={"Software": None})
