"""A loss that can be compared, and images that are looked at before they are believed."""

import contextlib
import dataclasses
import threading
import types

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image

from families import diffusion, models, sampler, sampling
from families.names import FAMILIES
from families.sampler import Sampling
from tests.tiny_models import DDPM, build_tiny
from training import validation
from training.batches import Batch, Loader
from training.examples import Example, View, time_ids
from training.state import Progress, Training, note_loss
from training.validation import Checks
from utils import image_checks
from utils.cli import UserError
from utils.parallel import available_cores

SEEDS = [3, 4, 5]
TEXTS = ["red boots", "heels", "sandals"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: build_tiny(tmp_path_factory.mktemp(family), family) for family in ("sd1", "sd2", "sdxl")}


class Parts:
    def __init__(self, model, family):
        self.model, self.family = model, family
        self.unet = models.load_denoiser(model, torch.float32)
        self.scheduler = models.load_noise_scheduler(model)
        self.encoders = models.load_text_encoders(model, family, torch.float32)

    @torch.no_grad()
    def encode(self, texts):
        return FAMILIES[self.family].encode_text(*self.encoders, texts, models.empty_prompt_is_zero(self.model))

    def checks(self, texts=TEXTS, seeds=SEEDS, held_out=(), scheduler=None):
        return Checks(
            held_out=list(held_out),
            prompts=texts,
            seeds=seeds,
            model=self.model,
            family=self.family,
            sampling=Sampling(3, 5.0, 32),
            noising=diffusion.Diffusion(scheduler or self.scheduler),
            encode=self.encode,
            autocast=contextlib.nullcontext,
        )

    def images(self, texts=TEXTS, seeds=SEEDS, scheduler=None):
        return validation.generate_images(self.unet, self.checks(texts, seeds, scheduler=scheduler), lambda: False)


@pytest.fixture(scope="module")
def parts(folders):
    return {family: Parts(folders[family], family) for family in folders}


def half(latents):
    return latents * 0.5


def pixels(images):
    return np.stack([np.asarray(one, dtype=np.int16) for one in images])


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_images_are_those_of_the_models_own_pipeline(folders, parts, family):
    pipeline = DiffusionPipeline.from_pretrained(folders[family], dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    made = parts[family].images()
    assert len(made) == 3
    for image, text, seed in zip(made, TEXTS, SEEDS):
        generator = torch.Generator().manual_seed(seed)
        expected = pipeline(
            text, num_inference_steps=3, guidance_scale=5.0, height=32, width=32, generator=generator
        ).images
        assert image.size == (32, 32) and np.abs(pixels([image]) - pixels(expected)).max() <= 1


def test_an_image_depends_on_its_seed_and_not_on_its_company(parts):
    whole = parts["sd1"].images()
    alone = parts["sd1"].images(TEXTS[2:], SEEDS[2:])
    assert np.array_equal(pixels(whole[2:]), pixels(alone))
    given = {"prompt_embeds": diffusion.stack(parts["sd1"].encode(TEXTS), "embeds")}
    given["negative_prompt_embeds"] = diffusion.stack(parts["sd1"].encode([""] * 3), "embeds")
    vae = models.load_vae(parts["sd1"].model)
    pipeline = sampling.build_pipeline("sd1", parts["sd1"].unet, vae, parts["sd1"].scheduler, {})
    for batch in (1, 2, 3):
        made = sampling.generate(pipeline, SEEDS, 3, 5.0, batch, 32, **given)
        assert np.abs(pixels(made) - pixels(whole)).max() <= 1
    assert not np.array_equal(pixels(parts["sd1"].images(TEXTS[:1], [9])), pixels(whole[:1]))


def test_the_vae_decodes_in_float32_under_autocast(parts):
    vae = models.load_vae(parts["sd1"].model)
    pipeline = sampling.build_pipeline("sd1", parts["sd1"].unet, vae, parts["sd1"].scheduler, {})
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    dtypes = []
    vae.decoder.conv_out.register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (half,) = sampling.decode_latents(pipeline.vae, latents)
    with torch.no_grad():
        (whole,) = sampling.decode_latents(pipeline.vae, latents)
    assert dtypes == [torch.float32] * 2 and np.array_equal(pixels([half]), pixels([whole]))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_latents_that_are_not_finite_make_an_image_that_is_reported(parts, value):
    vae = models.load_vae(parts["sd1"].model)
    pipeline = sampling.build_pipeline("sd1", parts["sd1"].unet, vae, parts["sd1"].scheduler, {})
    with torch.no_grad():
        (image,) = sampling.decode_latents(pipeline.vae, torch.full((1, 4, 16, 16), float(value)))
    assert image_checks.image_fault(image) == "black (or NaN)"


@pytest.mark.parametrize(
    "left, said", [(1, None), (2, "no memory saver is left; give --num_validation_images 0, lower")]
)
def test_a_full_memory_at_one_image_is_met_by_vae_tiling_and_then_says_what_to_do(parts, monkeypatch, left, said):
    wrapped = validation.wrap_denoiser(parts["sd1"].unet, parts["sd1"].checks())
    assert wrapped.unused_savers == []  # on a CPU, where memory does not run out so
    wrapped.unused_savers = ["vae_tiling"]
    faults, decode = left, sampling.decode

    def decode_where_there_is_room(vae, latents):
        nonlocal faults
        faults -= 1
        if faults >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert vae.use_tiling
        return decode(vae, latents)

    monkeypatch.setattr(sampling, "decode", decode_where_there_is_room)
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        (made,) = sampler.generate_images(wrapped, [sampler.ImageRequest(TEXTS[0], SEEDS[0])])
        assert made.is_finite and image_checks.image_fault(made.image) is None


def test_zero_terminal_snr_starts_from_pure_noise(parts):
    rescaled = diffusion.training_scheduler(models.load_noise_scheduler(parts["sd2"].model), None, True)
    pipeline = sampling.build_pipeline("sd2", parts["sd2"].unet, models.load_vae(parts["sd2"].model), rescaled, {})
    pipeline.scheduler.set_timesteps(3)
    assert pipeline.scheduler.timesteps[0] == 999 and pipeline.scheduler.alphas_cumprod[-1] < 1e-6
    made = parts["sd2"].images(scheduler=rescaled)
    assert len(made) == 3 and all(image_checks.image_fault(image) is None for image in made)


def test_each_core_of_a_cpu_generates_images_of_its_own(parts):
    if available_cores() < 2:
        pytest.skip("needs two cores")
    alone, threads = parts["sd1"].images(), []
    hook = parts["sd1"].unet.register_forward_hook(
        lambda *_: threads.append((threading.get_ident(), torch.get_num_threads()))
    )
    torch.set_num_threads(2)
    try:
        shared = parts["sd1"].images()
    finally:
        torch.set_num_threads(1)
        hook.remove()
    assert np.abs(pixels(shared) - pixels(alone)).max() <= 1
    assert {count for _, count in threads} == {1} and len(set(threads)) == 2  # no two threads wait for each other


def test_a_signal_ends_a_validation_between_two_images(parts):
    signals, calls = [], []

    def count_steps(*_):
        calls.append(1)
        if len(calls) == 2:  # in the middle of the first image
            signals.append(15)

    hook = parts["sd1"].unet.register_forward_hook(count_steps)
    try:
        assert validation.generate_images(parts["sd1"].unet, parts["sd1"].checks(), lambda: bool(signals)) is None
    finally:
        hook.remove()
    assert len(calls) == 3  # the steps of one image: it was finished, and no other begun


def random_image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8))


def test_what_is_wrong_with_an_image():
    assert image_checks.image_fault(random_image()) is None
    assert image_checks.image_fault(Image.new("RGB", (32, 32), (3, 5, 2))) == "black (or NaN)"
    assert image_checks.image_fault(Image.new("RGB", (32, 32), (130, 128, 127))) == "of one colour"
    assert image_checks.image_fault(Image.new("RGB", (32, 32), "white")) == "of one colour"
    shoe = Image.new("RGB", (32, 32), "white")
    shoe.paste((235, 235, 235), (8, 16, 24, 24))
    assert image_checks.image_fault(shoe) is None


def test_the_grid_is_one_file_that_counts_the_invalid(tmp_path):
    made = [
        random_image(),
        Image.new("RGB", (32, 32)),
        random_image(1),
        Image.new("RGB", (32, 32), "white"),
        random_image(2),
    ]
    prompts = ["a\nshoe of two lines", "x", "a very long prompt " * 20, "y", "Größe 42"]
    path = tmp_path / "validation/step-000500.png"
    assert validation.save_grid(path, made, prompts) == 2
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    grid = Image.open(path)
    assert grid.format == "PNG" and grid.width == 4 * 32 + 3 * 4 and grid.height > 2 * 32
    assert np.array_equal(np.asarray(grid)[:32, :32], np.asarray(made[0]))


class Echo(torch.nn.Module):
    """Predicts nothing but zeros; `device` as a model of diffusers has it."""

    device = torch.device("cpu")

    def forward(self, noisy, timesteps, embeds, added_cond_kwargs=None):
        return types.SimpleNamespace(sample=torch.zeros_like(noisy))


def batch(value, size, side=2):
    return Batch(
        latents=torch.zeros(size, 4, side, side),
        noise=torch.full((size, 4, side, side), float(value)),
        times=torch.zeros(size, dtype=torch.long),
        time_ids=torch.zeros(size, 6),
        texts=[""] * size,
        samples=["a"] * size,
        index=torch.zeros(size, dtype=torch.long),
    )


def test_every_held_out_sample_has_one_weight_however_they_are_batched(parts):
    checks = parts["sd1"].checks(held_out=[batch(1, 3), batch(3, 1)])
    checks = dataclasses.replace(checks, encode=lambda texts: [{"embeds": torch.zeros(1, 1)}] * len(texts))
    assert validation.held_out_loss(Echo(), checks) == pytest.approx((3 * 1 + 9) / 4)


def test_held_out_samples_go_fewer_at_once_through_a_full_memory(parts):
    sizes = []

    class Small(Echo):
        def forward(self, noisy, *args, **kwargs):
            sizes.append(len(noisy))
            if len(noisy) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(noisy, *args, **kwargs)

    nothing = {"embeds": torch.zeros(1, 1)}
    checks = dataclasses.replace(parts["sd1"].checks(), encode=lambda texts: [nothing] * len(texts))
    six = batch(1, 6)
    six.noise.mul_(torch.arange(6).view(6, 1, 1, 1))
    assert validation.losses_in_memory(Small(), checks, six).tolist() == [0, 1, 4, 9, 16, 25]
    assert sizes == [6, 3, 2, 1, 3, 2, 1]


def test_held_out_samples_are_fixed_and_seen_in_the_centre():
    images = [Example(f"p{i}", None, f"shoe {i}", f"{i:064d}", (90, 64), (64, 64)) for i in range(3)]

    def moments(example, view):
        assert view == View()
        return torch.stack([torch.full((4, 8, 8), float(int(example.sha256))), torch.ones(4, 8, 8)])

    training = Loader(images[:1], moments, half, crops=0, noise_offset=0.1)  # the run's own crops have no part in it
    first, again = (validation.held_out_batches(images, 20, DDPM, training) for _ in range(2))
    assert [len(one) for one in first] == [8, 8, 4]
    assert sorted(name for one in first for name in one.samples) == ["p0"] * 7 + ["p1"] * 7 + ["p2"] * 6
    for one, other in zip(first, again):
        assert torch.equal(one.latents, other.latents) and torch.equal(one.noise, other.noise)
        assert torch.equal(one.times, other.times) and one.texts == [f"shoe {i}" for i in one.index]
        assert torch.equal(one.latents[:, 0, 0, 0], one.index * 0.5)  # the mean, without the deviation
        assert one.time_ids.tolist() == [time_ids(images[i], View()) for i in one.index]
    assert len({int(time) for one in first for time in one.times}) == 20
    assert validation.held_out_batches([], 20, DDPM, training) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_held_out_batches_go_to_the_models_device(parts):
    unet = models.load_denoiser(parts["sd1"].model, torch.float32).cuda()

    def encode(texts):
        return [{"embeds": one["embeds"].cuda()} for one in parts["sd1"].encode(texts)]

    checks = dataclasses.replace(parts["sd1"].checks(held_out=[batch(1, 2, 16)]), encode=encode)
    assert validation.held_out_loss(unet, checks) > 0


def test_the_best_loss_is_kept_and_what_is_worse_is_counted():
    progress = Progress()
    best = []
    for step, loss in enumerate([float("nan"), 0.5, 0.6, 0.5, None, float("nan"), 0.4]):
        progress.step = step
        best.append(note_loss(progress, loss))
    assert best == [False, True, False, False, False, False, True]
    assert progress.best_loss == 0.4 and progress.best_step == 6 and progress.worse_in_a_row == 0
    progress.step = 7
    assert not note_loss(progress, 0.4) and progress.worse_in_a_row == 1 and progress.validated == 7


def test_validation_leaves_the_training_as_it_was(parts, tmp_path):
    unet = models.load_denoiser(parts["sd1"].model, torch.float32).train()
    (parameter,) = (value for name, value in unet.named_parameters() if name == "conv_out.bias")
    average, facts = [parameter.detach() + 1], {"base_model": "tiny"}
    training = Training({"unet": unet}, [parameter], {}, None, average, None, facts, {})
    checks = parts["sd1"].checks(TEXTS[:2], SEEDS[:2], [batch(1, 2, 16)])
    before, state = parameter.detach().clone(), torch.get_rng_state()
    found = validation.validate(training, checks, tmp_path / "grid", lambda: False)
    losses = {"val_loss", "val_loss_without_ema"}
    assert found.keys() == losses | {"validation/invalid_images"} and (tmp_path / "grid.png").exists()
    assert torch.equal(parameter, before) and unet.training and torch.equal(torch.get_rng_state(), state)
    own = dataclasses.replace(training, average=None)
    other = validation.validate(own, checks, tmp_path / "grid", lambda: False)
    # Both the average and the weights in training are looked at.
    assert other["val_loss"] == found["val_loss_without_ema"] != found["val_loss"]
    assert validation.validate(training, checks, tmp_path / "no.png", lambda: True) is None
    assert torch.equal(parameter, before) and not (tmp_path / "no.png").exists()
    without_images = dataclasses.replace(checks, prompts=[], seeds=[])
    assert validation.validate(training, without_images, tmp_path / "no.png", lambda: False) == {
        name: found[name] for name in losses
    }
    assert not (tmp_path / "no.png").exists() and unet.training
