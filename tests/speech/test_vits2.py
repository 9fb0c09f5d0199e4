"""The parts of VITS2: what they must not change, and what each of them does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModel

from speech.batches import Position, load_batch, make_loader
from speech.dataset import read_utterances
from speech.duration_discriminator import (
    DurationDiscriminator,
    judge_durations,
    open_duration_discriminator,
    save_duration_discriminator,
)
from speech.synthesis import Speaking, speak
from speech.vits import align, encode_speech, forward_train, length_mask, read_text
from speech.vits2 import add_noise, new_parts, noise_at
from speech.voices import Voice, load_voice, save_voice, with_parts
from tests.tiny_voices import tiny_voice, utterances, write_speech
from utils.cli import UserError

TEXT, SEGMENT = "a casa do rio azul", 8


def grown(voice: Voice, learnt: bool = False) -> Voice:
    """The voice with all parts, `learnt`: such that they are heard."""
    found = with_parts(voice, new_parts(["all"], voice.model.config, bool(voice.speakers)), 1)
    torch.manual_seed(5)
    for name, parameter in found.model.named_parameters() if learnt else ():
        if name not in voice.model.state_dict() or ".conv_post" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return found


@pytest.mark.parametrize("speakers, stochastic", [(0, True), (2, False)])
def test_a_voice_with_parts_begins_with_the_same_sound_to_the_byte(tmp_path, speakers, stochastic):
    voice = tiny_voice(0, speakers, stochastic)
    save_voice(tmp_path / "grown", grown(voice))
    with pytest.raises(ValueError, match="vits_with_parts"):  # rather than to speak without them
        AutoModel.from_pretrained(tmp_path / "grown")
    for found in (grown(voice), load_voice(str(tmp_path / "grown"))):
        assert len(found.model.state_dict()) > len(voice.model.state_dict())
        assert speak(found, TEXT, 3).tobytes() == speak(voice, TEXT, 3).tobytes()


def test_parts_that_were_learnt_are_heard_kept_and_not_added_twice(tmp_path):
    voice = tiny_voice(0, 2)
    found = grown(voice, learnt=True)
    save_voice(tmp_path / "grown", found)
    loaded, sounds = load_voice(str(tmp_path / "grown")), [speak(one, TEXT, 3, Speaking()) for one in (voice, found)]
    assert not np.array_equal(*(one[:500] for one in sounds))
    assert grown(loaded) is loaded and np.array_equal(speak(loaded, TEXT, 3), sounds[1])


def test_a_flow_with_attention_is_undone_and_hears_the_whole_utterance_but_no_padding():
    voice = grown(tiny_voice(0, 2), learnt=True)
    flow, mask = voice.model.flow, length_mask(torch.tensor([40, 25]), 40)
    latents, speaker = torch.randn(2, 16, 40) * mask, voice.model.embed_speaker(torch.tensor([0, 1]))[:, :, None]
    with torch.no_grad():
        flowed = flow(latents, mask, speaker)
        assert torch.allclose(flow(flowed, mask, speaker, reverse=True), latents, atol=1e-4)
        alone = flow(latents[1:, :, :25], mask[1:, :, :25], speaker[1:])
        assert torch.allclose(alone, flowed[1:, :, :25], atol=1e-5)
        changed = latents.clone()
        changed[0, :, 39] += 1
        assert (flow(changed, mask, speaker) - flowed)[0, :, 0].abs().max() > 1e-6


def test_the_text_encoder_hears_who_speaks_only_with_its_part():
    voice = tiny_voice(0, 2)
    batch = utterances(voice, [2, 3])
    mask = length_mask(batch.text_lengths, batch.tokens.shape[1])
    for one, differs in ((voice, False), (grown(voice, learnt=True), True)):
        tables = one.model.embed_speaker(torch.tensor([[0, 0], [1, 1]]))[..., None]
        first, other = (read_text(one.model, batch.tokens, mask, condition)[0] for condition in tables)
        assert torch.equal(first, other) != differs


@pytest.mark.parametrize("stochastic", [False, True])
def test_an_utterance_with_all_parts_does_not_depend_on_those_beside_it(stochastic):
    voice = grown(tiny_voice(0, 2, stochastic), learnt=True)
    judge = DurationDiscriminator(voice.model.config)

    def losses(seeds: list[int]) -> list[torch.Tensor]:
        batch = utterances(voice, seeds)
        if batch.duration_noise is None:
            batch = replace(batch, duration_noise=torch.zeros(len(seeds), 2, batch.tokens.shape[1]))
        text, frames = batch.tokens.shape[1], batch.spectrograms.shape[2]
        table = torch.linspace(-1, 1, 400 * 400).reshape(1, 400, 400).sin()[:, :text, :frames]
        batch = replace(batch, score_noise=0.1 * table.expand(len(seeds), -1, -1))
        found = forward_train(voice.model, batch, SEGMENT)
        return [found.kl, found.duration, *judge_durations(judge, voice.model, batch, found)]

    together = losses([1, 2, 3])
    for i, seed in enumerate([1, 2, 3]):
        for one, other in zip(losses([seed]), together):
            assert torch.allclose(one[0], other[i], rtol=1e-4, atol=1e-5)


def test_noise_on_the_scores_has_their_own_scale_and_finds_other_paths():
    voice = tiny_voice()
    batch, scores = utterances(voice, [1, 2]), torch.randn(2, 9, 30)
    there = torch.ones_like(scores)
    noise = torch.randn_like(scores)
    assert torch.allclose(add_noise(7 * scores, noise, there), 7 * add_noise(scores, noise, there), atol=1e-4)
    mask = length_mask(batch.text_lengths, batch.tokens.shape[1])
    frames = length_mask(batch.frame_lengths, batch.spectrograms.shape[2])
    prior = read_text(voice.model, batch.tokens, mask, None)[1]
    flowed = voice.model.flow(encode_speech(voice.model, batch.spectrograms, frames, None).mean, frames)
    noise = torch.randn(2, batch.tokens.shape[1], batch.spectrograms.shape[2])
    plain, none, other = (
        align(prior, flowed, batch.text_lengths, batch.frame_lengths, one) for one in (None, 0 * noise, noise)
    )
    assert torch.equal(plain, none) and not torch.equal(plain, other)
    assert torch.equal(other.sum(1), batch.frame_lengths)


def test_the_noise_of_the_scores_fades_and_leaves_all_else_that_is_drawn_as_it_was(tmp_path):
    assert [noise_at(0.01, step) for step in (0, 2500, 5000, 9000)] == pytest.approx([0.01, 0.005, 0, 0])
    voice = tiny_voice()
    loader = make_loader(read_utterances(write_speech(tmp_path / "data", 4, 1), "--train_data_dir")[0], voice, SEGMENT)
    plain, noisy, late = (
        load_batch([Position(i, 0.5, ("k", i), scale) for i in (0, 1)], loader) for scale in (0, 0.01, 0.005)
    )
    assert plain.score_noise is None and torch.equal(plain.noise, noisy.noise)
    assert torch.equal(plain.duration_noise, noisy.duration_noise)
    assert torch.allclose(noisy.score_noise, 2 * late.score_noise)
    part = noisy.split(1)[1]
    assert part.score_noise.shape == (1, int(noisy.text_lengths[1]), int(noisy.frame_lengths[1]))
    assert part.score_noise.std() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_discriminator_of_durations_tells_real_ones_and_only_the_predictor_learns_of_it(stochastic):
    voice = tiny_voice(0, 2, stochastic)
    judge, batch = DurationDiscriminator(voice.model.config), utterances(voice, [1, 2])
    if not stochastic:
        torch.manual_seed(0)
        batch = replace(batch, duration_noise=torch.randn(2, 2, batch.tokens.shape[1]))
    found, optimizer = forward_train(voice.model, batch, SEGMENT), torch.optim.Adam(judge.parameters(), 1e-2)
    found = replace(found, durations=found.durations + 6)  # than which it predicts less
    first = judge_durations(judge, voice.model, batch, found)[0].sum()
    for _ in range(60):
        optimizer.zero_grad()
        judge_durations(judge, voice.model, batch, found)[0].sum().backward(
            inputs=list(judge.parameters()), retain_graph=True
        )
        optimizer.step()
    judging, own = judge_durations(judge, voice.model, batch, found)
    assert judging.sum() < 0.3 * first
    found = torch.autograd.grad(own.sum(), list(voice.model.parameters()), allow_unused=True)
    heard = {name for (name, _), one in zip(voice.model.named_parameters(), found) if one is not None and one.any()}
    assert heard and all(name.startswith("duration_predictor.") for name in heard)


def test_the_discriminator_of_durations_is_kept_beside_a_voice_and_a_damaged_one_is_refused(tmp_path):
    voice = tiny_voice(0, 2)
    save_voice(tmp_path, voice)
    judge = DurationDiscriminator(voice.model.config)
    save_duration_discriminator(tmp_path, judge)
    loaded = open_duration_discriminator(str(tmp_path), voice.model.config, 7)
    assert all(torch.equal(one, loaded.state_dict()[name]) for name, one in judge.state_dict().items())
    path = tmp_path / "duration_discriminator.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="remove its duration_discriminator"):
        open_duration_discriminator(str(tmp_path), voice.model.config, 7)
