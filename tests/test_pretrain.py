import random

import numpy as np
import pytest
import torch

from demo import pretrain
from demo.captions import MAX_TOKENS, caption, make_tokenizer
from demo.catalogue import product
from demo.shoes import HELD_BACK, KINDS, KNOWN_KINDS
from demo.stages import Plan, Stage, train


def captions(kinds, count=3000):
    rng = random.Random(0)
    return [caption(product(0, i, kinds), rng) for i in range(count)]


def test_casual_and_shoes_never_meet_in_the_pipelines_captions():
    texts = captions(list(KNOWN_KINDS))
    assert not [text for text in texts if "casual shoes" in text]
    assert any("casual" in text for text in texts) and any("shoes" in text for text in texts)
    assert any("casual shoes" in text for text in captions([HELD_BACK], 20))


def test_every_caption_fits_the_tokenizer_and_is_read_back():
    tokenizer = make_tokenizer(0)
    texts = captions(list(KINDS), 500)
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= MAX_TOKENS
    for text in texts[:20]:
        again = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
        assert again.replace(" ", "") == text.replace(" ", "")


@pytest.fixture
def toy(tmp_path):
    """A one-layer stage, and how to train it until `steps`."""
    stage = Stage("toy", Plan(600, 4, 1e-2), (0,))

    def step_loss(model, step, rng):
        if step == step_loss.fail_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.standard_normal((4, 3), dtype=np.float32))
        return (model(x) - x.flip(1)).square().mean()

    def run(name, fail_at=None):
        step_loss.fail_at = fail_at
        torch.manual_seed(0)
        (tmp_path / name).mkdir(exist_ok=True)
        return train(stage, tmp_path / name, torch.nn.Linear(3, 3), step_loss, "cpu", average=0.9)

    return run


def test_a_stage_that_was_stopped_ends_in_the_same_weights(toy):
    whole = toy("whole")
    with pytest.raises(KeyboardInterrupt):
        toy("stopped", fail_at=350)
    resumed = toy("stopped")
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.allclose(whole.weight, torch.eye(3).flip(0), atol=0.05)  # and it has learnt


def test_latents_have_unit_variance_and_the_images_stay_after_whitening():
    vae = pretrain.make_autoencoder().eval()
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        pretrain.whiten(vae, images, "cpu")
        latents = vae.encode(images).latent_dist.mean
        after = vae.decode(latents).sample
    assert torch.allclose(before, after, atol=1e-4)
    scaled = latents * vae.config.scaling_factor
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-3) and scaled.mean().abs() < 1e-3


def test_an_untrained_autoencoder_carries_colour():
    vae = pretrain.make_autoencoder().eval()
    flat = torch.zeros(3, 3, 64, 64)
    for i in range(3):
        flat[i, i, 16:48, 16:48] = 0.9
    with torch.no_grad():
        latents = vae.encode(flat).latent_dist.mean[:, :3, 3:5, 3:5].mean((2, 3))
    assert (latents - latents.mean(0)).argmax(1).tolist() == [0, 1, 2]
