"""A recording through a voice's own encoder and decoder: what its decoder can reach, whatever its text encoder does."""

import numpy as np
import torch

from speech.features import settings_of, spectrogram
from speech.parts import make_condition
from speech.synthesis import Speaking, find_cues
from speech.vits import decode, encode_speech, length_mask
from speech.voices import Voice


@torch.no_grad()
def copy_sound(voice: Voice, samples: np.ndarray, how: Speaking) -> np.ndarray:
    """The waveform that the decoder makes of the posterior's mean; at the voice's rate, and cut to whole frames.

    Of `how` it uses who speaks: pitch, energy and style are those of the recording.
    """
    model, settings = voice.model, settings_of(voice.model.config)
    padded = np.pad(samples, (0, max(0, settings.shortest - len(samples))))
    spectra = spectrogram(torch.from_numpy(padded)[None].to(model.device), settings)
    mask = length_mask(torch.tensor([spectra.shape[2]], device=model.device), spectra.shape[2])
    condition = make_condition(model, find_cues(voice, Speaking(speaker=how.speaker, vector=how.vector)))
    posterior = encode_speech(model, spectra, mask, condition)
    return decode(model.decoder, posterior.mean, condition)[0].float().cpu().numpy()
