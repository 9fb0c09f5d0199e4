"""Targets and weights against values worked out by hand."""

import pytest
import torch
from diffusers import DDPMScheduler

from families import diffusion
from tests.tiny_models import NOISE
from utils.cli import UserError

STEPS = torch.tensor([0, 100, 500, 999])


def scheduler(kind="epsilon", **more):
    return DDPMScheduler(prediction_type=kind, **NOISE, **more)


def snr(step):
    """Of the schedule in NOISE: betas are the squares of a line."""
    line = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = (1 - line).cumprod(0)[step].item()
    return alpha / (1 - alpha)


@pytest.mark.parametrize(
    "kind,weight",
    [
        ("epsilon", lambda s: min(s, 5) / s),
        ("v_prediction", lambda s: min(s, 5) / (s + 1)),
        ("sample", lambda s: min(s, 5)),
    ],
)
def test_min_snr_weights_are_those_worked_out_by_hand(kind, weight):
    found = diffusion.snr_weights(scheduler(kind), STEPS, 5.0)
    assert found.tolist() == pytest.approx([weight(snr(int(step))) for step in STEPS], rel=1e-4)
    assert found.dtype == torch.float32 and diffusion.snr_weights(scheduler(kind), STEPS, None) is None


def test_pure_noise_has_weight_one_where_velocity_is_predicted():
    rescaled = diffusion.training_scheduler(scheduler("v_prediction"), zero_terminal_snr=True)
    weights = diffusion.snr_weights(rescaled, STEPS, 5.0)
    assert weights[-1] == 1 and weights.isfinite().all()


def test_zero_terminal_snr_ends_at_zero_and_is_what_diffusers_makes():
    rescaled = diffusion.training_scheduler(scheduler(), "v_prediction", zero_terminal_snr=True)
    theirs = scheduler("v_prediction", rescale_betas_zero_snr=True)
    assert rescaled.alphas_cumprod[-1] == 0 and torch.equal(rescaled.alphas_cumprod, theirs.alphas_cumprod)
    assert rescaled.alphas_cumprod[0] == pytest.approx(scheduler().alphas_cumprod[0].item())
    assert rescaled.config.rescale_betas_zero_snr and rescaled.config.timestep_spacing == "trailing"
    noise, latents = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([999])
    assert torch.equal(rescaled.add_noise(latents, noise, last), noise)
    assert torch.equal(diffusion.prediction_target(rescaled, latents, noise, last), -latents)


def test_epsilon_can_not_be_learnt_from_pure_noise():
    for prepared, zero in ((scheduler(), True), (scheduler(rescale_betas_zero_snr=True), False)):
        with pytest.raises(UserError, match=r"--zero_terminal_snr.*--prediction_type v_prediction"):
            diffusion.training_scheduler(prepared, None, zero)
    assert diffusion.training_scheduler(scheduler(rescale_betas_zero_snr=True), "v_prediction")


def test_a_models_own_schedule_is_left_as_it_is():
    own = diffusion.training_scheduler(scheduler("v_prediction"))
    assert torch.equal(own.alphas_cumprod, scheduler().alphas_cumprod) and own.config.prediction_type == "v_prediction"
    assert diffusion.training_scheduler(scheduler(), "sample").config.prediction_type == "sample"


def test_targets_by_hand():
    latents, noise = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 3.0)
    step = torch.tensor([500])
    alpha = snr(500) / (1 + snr(500))
    expected = {"epsilon": 3.0, "sample": 2.0, "v_prediction": alpha**0.5 * 3 - (1 - alpha) ** 0.5 * 2}
    for kind, value in expected.items():
        target = diffusion.prediction_target(scheduler(kind), latents, noise, step)
        assert target.flatten().tolist() == pytest.approx([value] * 16, rel=1e-4)


def test_losses_are_of_each_sample_in_float32():
    target = torch.zeros(2, 4, 2, 2)
    prediction = torch.stack([torch.full((4, 2, 2), 1.0), torch.full((4, 2, 2), 300.0)]).half()
    assert diffusion.sample_losses(prediction, target).tolist() == [1, 90000]  # infinite in float16
    assert diffusion.sample_losses(prediction, target, torch.tensor([0.5, 0.0])).tolist() == [0.5, 0]


def test_huber_losses_are_those_of_the_formula():
    prediction, target = torch.tensor([3.0, -0.01]).reshape(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    root = (9 + 0.25) ** 0.5 - 0.5
    found = {kind: diffusion.sample_losses(prediction, target, None, None, kind, 0.5) for kind in diffusion.LOSSES}
    assert [found[kind][0].item() for kind in diffusion.LOSSES] == pytest.approx([9, root, 2 * root])
    assert found["huber"][1].item() == pytest.approx(0.01**2, rel=1e-2)  # small errors count squared
    assert found["smooth_l1"][1].item() == pytest.approx(0.01**2 / 0.5, rel=1e-2)
    mask = torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1)
    assert diffusion.sample_losses(prediction, target, None, mask, "huber", 0.5).equal(found["huber"])


def test_quarters_of_the_timesteps():
    means = diffusion.mean_losses([(1.0, 0), (3.0, 249), (5.0, 250), (7.0, 999)], 1000)
    assert means == {"loss": 4.0, "loss_q1": 2.0, "loss_q2": 5.0, "loss_q4": 7.0}
