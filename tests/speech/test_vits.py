import copy
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as closed_form

from speech.dataset import Utterance
from speech.features import settings_of
from speech.losses import mel_distances
from speech.synthesis import Reading, predict_durations
from speech.vits import (
    Forward,
    Gaussian,
    align,
    cut,
    decode,
    duration_losses,
    expand,
    forward_train,
    kl_divergence,
    length_mask,
    no_dropout,
    stochastic_durations,
)
from speech.voice_memory import build_step
from tests.tiny_voices import DISCRIMINATORS, RATE, tiny_voice, utterances

KINDS = [(0, False), (2, False), (0, True), (2, True)]
SEGMENT = 8


def values(found: Forward) -> dict[str, torch.Tensor]:
    return {name: getattr(found, name) for name in ("segment", "real", "kl", "duration")}


def total(model: torch.nn.Module, found: Forward) -> torch.Tensor:
    mel = mel_distances(found.segment, found.real, settings_of(model.config))
    return 45 * mel.mean() + found.kl.sum() / 200 + found.duration.sum() / 80


@pytest.mark.parametrize("speakers, stochastic", KINDS)
def test_an_utterance_does_not_depend_on_those_beside_it(speakers, stochastic):
    voice = tiny_voice(0, speakers, stochastic)
    seeds = [1, 2, 3, 5]
    together = forward_train(voice.model, utterances(voice, seeds), SEGMENT)
    for i, seed in enumerate(seeds):
        alone = forward_train(voice.model, utterances(voice, [seed]), SEGMENT)
        for name, value in values(alone).items():
            assert torch.allclose(value[0], getattr(together, name)[i], rtol=1e-5, atol=1e-5), name
        assert torch.equal(alone.durations[0], together.durations[i, : alone.durations.shape[1]])


@pytest.mark.parametrize("speakers, stochastic", KINDS)
def test_every_weight_learns_and_no_global_generator_decides(speakers, stochastic):
    voice = tiny_voice(0, speakers, stochastic)
    model, batch = voice.model.train(), utterances(voice, [1, 2])
    first = forward_train(model, batch, SEGMENT)
    torch.manual_seed(1)
    again = forward_train(model, batch, SEGMENT)
    assert all(torch.equal(one, getattr(again, name)) for name, one in values(first).items())
    total(model, first).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("speakers", [0, 2])
def test_the_stochastic_loss_is_that_of_the_model_with_the_same_noise(speakers):
    model = tiny_voice(0, speakers, stochastic=True).model
    for flow in model.duration_predictor.modules():  # which would be the identity
        if hasattr(flow, "conv_proj") and hasattr(flow, "conv_dds"):
            torch.nn.init.normal_(flow.conv_proj.weight, std=0.1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 16, 9, generator=generator)
    speaker = torch.randn(3, 256, 1, generator=generator) if speakers else None
    mask = length_mask(torch.tensor([9, 4, 7]), 9)
    durations = torch.randint(1, 9, (3, 1, 9), generator=generator) * mask
    torch.manual_seed(3)
    noise = torch.randn(3, 2, 9)
    found = stochastic_durations(model.duration_predictor, hidden, mask, durations, noise, speaker)
    torch.manual_seed(3)
    expected = model.duration_predictor(hidden, mask, speaker, durations=durations)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("speakers", [0, 2])
def test_decoding_equals_that_of_the_model_also_where_it_is_computed_again(speakers):
    decoder = tiny_voice(0, speakers).model.decoder
    latents = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(0))
    speaker = torch.ones(2, 256, 1) if speakers else None
    expected = decoder(latents, speaker)[:, 0]
    expected.square().sum().backward()
    wanted = [weight.grad.clone() for weight in decoder.parameters()]
    for checkpointing in (False, True):
        decoder.zero_grad()
        found = decode(decoder, latents, speaker, checkpointing)
        assert torch.allclose(found, expected, atol=1e-7)
        found.square().sum().backward()
        for weight, gradient in zip(decoder.parameters(), wanted):
            assert torch.allclose(weight.grad, gradient, rtol=1e-4, atol=1e-9)


def test_the_last_layer_keeps_float32_under_autocast():
    """Rounded to bfloat16, a waveform has steps of 1/256 of its loudness."""
    decoder = copy.deepcopy(tiny_voice().model.decoder)
    latents = torch.randn(1, 16, 30, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = decode(decoder, latents, None)
    assert found.dtype == torch.float32 and not torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_a_predictor_near_what_it_learns_speaks_as_many_frames(frames):
    model = tiny_voice(0, 0, stochastic=False).model
    output, hidden, mask = model.duration_predictor.proj, torch.zeros(1, 16, 5), torch.ones(1, 1, 5)
    with torch.no_grad():
        output.weight.zero_()
        output.bias.zero_()
    duration_losses(model, hidden, mask, torch.full((1, 5), frames), None, None).backward()
    learnt = -output.bias.grad.item() / (2 * 5)  # the minimum of a parabola
    for error in (-0.05, 0.05):
        torch.nn.init.constant_(output.bias, learnt + error)
        assert predict_durations(model, Reading(hidden, hidden, hidden, None), mask, 1.0).tolist() == [5 * [frames]]


def test_durations_that_made_the_latents_are_found():
    generator = torch.Generator().manual_seed(0)
    prior = Gaussian(3 * torch.randn(2, 16, 5, generator=generator), torch.zeros(2, 16, 5))
    durations = torch.tensor([[3, 1, 4, 2, 6], [2, 7, 1, 0, 0]])
    flowed = expand(prior, durations, 16).mean + 0.1 * torch.randn(2, 16, 16, generator=generator)
    found = align(prior, flowed, torch.tensor([5, 3]), torch.tensor([16, 10]))
    assert torch.equal(found, durations)


def test_the_kl_of_samples_is_on_average_the_closed_form():
    prior = Gaussian(torch.tensor([[[0.5, -1.0]]]), torch.tensor([[[0.2, -0.3]]]))
    posterior = Gaussian(torch.tensor([[[0.1, 0.4]]]), torch.tensor([[[-0.5, 0.1]]]))
    noise = torch.randn(100_000, 1, 2, generator=torch.Generator().manual_seed(0))
    samples = posterior.mean + noise * posterior.log_deviation.exp()
    found = kl_divergence(samples, posterior, prior, torch.ones(1, 1, 2)).mean()
    normals = [Normal(one.mean, one.log_deviation.exp()) for one in (posterior, prior)]
    assert abs(found - closed_form(*normals).sum()) < 0.02


def test_a_segment_is_cut_where_it_starts_and_followed_by_zeros_if_short():
    whole = torch.arange(12.0).reshape(2, 1, 6)
    assert cut(whole, torch.tensor([1, 3]), 3).tolist() == [[[1, 2, 3]], [[9, 10, 11]]]
    assert cut(whole, torch.tensor([0, 0]), 8)[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]


def test_a_short_utterance_is_decoded_in_a_long_segment():
    voice = tiny_voice()
    batch = replace(utterances(voice, [1]), starts=torch.tensor([0]))
    found = forward_train(voice.model, batch, 100)
    frames = int(batch.frame_lengths[0])
    assert found.segment.shape == found.real.shape == (1, 100 * 256)
    assert not found.real[0, frames * 256 :].any() and torch.equal(found.real[0, : frames * 256], batch.waveforms[0])


def test_training_lowers_the_losses():
    voice = tiny_voice()
    batch = utterances(voice, list(range(8)))
    optimizer = torch.optim.AdamW(voice.model.parameters(), 3e-3, (0.8, 0.99))
    settings = settings_of(voice.model.config)
    seen = []
    for _ in range(25):
        found = forward_train(voice.model, batch, SEGMENT)
        mel = mel_distances(found.segment, found.real, settings).mean()
        kl, duration = found.kl.sum() / batch.frame_lengths.sum(), found.duration.sum() / batch.text_lengths.sum()
        seen.append([mel.item(), kl.item(), duration.item()])
        optimizer.zero_grad()
        (45 * mel + kl + duration).backward()
        optimizer.step()
    assert seen[-1][0] < 0.8 * seen[0][0] and seen[-1][1] < 0.5 * seen[0][1], seen


def test_no_dropout_leaves_nothing_out_in_training():
    model = tiny_voice().model
    model.text_encoder.encoder.layerdrop = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    no_dropout(model)
    batch = utterances(tiny_voice(), [1])
    found = [forward_train(model.train(), batch, SEGMENT).duration for _ in range(4)]
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_step_has_sizes_on_the_meta_device(tmp_path, stochastic):
    """By which --dry_run and benchmark.py estimate memory."""
    utterance = Utterance("a", tmp_path, "casa", "", 0.5, RATE)
    step = build_step(tiny_voice(stochastic=stochastic).model.config, DISCRIMINATORS, utterance, 2, 8)
    for checkpointing in (False, True):
        step.run(checkpointing)
    assert all(one.grad.is_meta for one in step.modules["discriminators"].parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_in_half_precision_stay_near_those_in_float32(dtype):
    voice = tiny_voice(0, 2, True)
    batch, settings = utterances(voice, [1, 2, 3]), settings_of(voice.model.config)
    expected = forward_train(voice.model, batch, SEGMENT)
    with torch.autocast("cpu", dtype):
        found = forward_train(voice.model, batch, SEGMENT)
    assert {one.dtype for one in values(found).values()} == {torch.float32}
    for name in ("kl", "duration"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=0.05), name
    assert mel_distances(found.segment, expected.segment, settings).max() < 0.2
    total(voice.model, found).backward()
    assert all(weight.grad.isfinite().all() for weight in voice.model.parameters())
