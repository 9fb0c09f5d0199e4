"""Families of flow matching against diffusers' own pipelines, and against its training scripts, written out by hand."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, Flux2KleinPipeline, FluxPipeline, QwenImagePipeline

import train_lora
from families import latents as latent_scales
from families import models, sampling
from families.flow import Flow, Weighting, sigma_levels
from families.lora import Adapter
from families.names import FAMILIES
from tests.tiny_models import OF_FLOW, build_tiny, tiny_flux1, tiny_flux2_klein
from training import memory, setup
from utils.cli import UserError

CPU = torch.device("cpu")
TEXTS = ["a photo of red boots", "", "heels " * 200]
TURN = [{"role": "user", "content": ""}]
SIZE = (128, 64)  # in pixels
CHANNELS = {
    "z_image": 16,
    "flux2_klein": 4,
    "qwen_image": 4,
    "flux1": 4,
}  # of the tiny VAE's latents, of two pixels each
STEPS = {"z_image": 4, "flux2_klein": 50, "qwen_image": 50, "flux1": 4}  # of the pipeline; Klein's and Qwen's count
OF_CHATS = [one for one in OF_FLOW if one != "flux1"]


@pytest.fixture(scope="module", params=OF_FLOW)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"), family)


@pytest.fixture(scope="module")
def pipeline(folder):
    found = DiffusionPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def parts_of(pipeline, names):
    return [getattr(pipeline, name) for name in names]


def encode(pipeline, family, texts):
    module = FAMILIES[family]
    tokenizers, encoders = parts_of(pipeline, module.TOKENIZERS), parts_of(pipeline, module.TEXT_ENCODERS)
    tokenizers[-1].model_max_length = 512  # as models.load_tokenizers does
    with torch.no_grad():
        return module.encode_text(tokenizers, encoders, texts)


def noise_of(family, scheduler, scheme="none"):
    """The tiny VAE makes a latent of two pixels."""
    mu = functools.partial(FAMILIES[family].mu, scheduler.config)
    levels = sigma_levels(scheduler, "auto", lambda size: mu(size[0] // 2, size[1] // 2))
    return Flow(scheduler, levels, Weighting(scheme))


def drawn(family):
    """Latents and their noise."""
    return torch.randn(2, 3, CHANNELS[family], 8, 12, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_captions_are_encoded_as_the_pipeline_does(pipeline, family, folder):
    for length in (512, 40):
        wanted, mask, *_ = (*pipeline.encode_prompt(list(TEXTS), device=CPU, max_sequence_length=length), None)
        if family == "qwen_image" and mask is not None:  # which pads them
            wanted = [row[: kept.sum()] for row, kept in zip(wanted, mask)]
        tokenizers = models.load_tokenizers(folder, family, length)
        encoded = FAMILIES[family].encode_text(tokenizers, parts_of(pipeline, FAMILIES[family].TEXT_ENCODERS), TEXTS)
        found = [one["embeds"] for one in encoded]
        if family == "flux1":  # whose limit of tokens is not CLIP's
            assert torch.allclose(torch.stack([one["pooled"] for one in encoded]), mask, atol=1e-6)
        assert [len(one) for one in found] == [len(one) for one in wanted] and len(found[2]) == length
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, wanted))


@pytest.mark.parametrize("family", OF_CHATS, indirect=True)
def test_what_stands_around_a_caption_counts_towards_its_limit(folder, family):
    (tokenizer,) = models.load_tokenizers(folder, family, 40)
    around = len(tokenizer(tokenizer.apply_chat_template(TURN, tokenize=False, add_generation_prompt=True)).input_ids)
    fits, over = "b" * (40 - around), "b" * (41 - around)
    assert models.too_long([fits, over], tokenizer) == (1, 40 - around, over) and around > 8


def z_image_by_hand(pipeline, mixed, timesteps):
    """As train_dreambooth_lora_z_image.py computes the prediction."""
    texts = pipeline.encode_prompt(list(TEXTS), CPU, False)[0]
    shown = pipeline.transformer([one[:, None] for one in mixed], (1000 - timesteps) / 1000, texts, return_dict=False)[
        0
    ]
    return -torch.cat([one.transpose(0, 1) for one in shown])


def flux2_klein_by_hand(pipeline, mixed, timesteps, guidance=3.5):
    """As train_dreambooth_lora_flux2_klein.py computes the prediction, which it leaves in patches."""
    embeds, text_ids = pipeline.encode_prompt(list(TEXTS), CPU)
    patches = Flux2KleinPipeline._patchify_latents(mixed)
    ids = Flux2KleinPipeline._prepare_latent_ids(patches)
    found = pipeline.transformer(
        hidden_states=Flux2KleinPipeline._pack_latents(patches),
        timestep=timesteps / 1000,
        guidance=torch.tensor([guidance]).expand(len(mixed)) if pipeline.transformer.config.guidance_embeds else None,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    return Flux2KleinPipeline._unpatchify_latents(Flux2KleinPipeline._unpack_latents_with_ids(found, ids))


def qwen_image_by_hand(pipeline, mixed, timesteps):
    """As train_dreambooth_lora_qwen_image.py computes the prediction."""
    embeds, mask = pipeline.encode_prompt(list(TEXTS), CPU)
    count, channels, height, width = mixed.shape
    found = pipeline.transformer(
        hidden_states=QwenImagePipeline._pack_latents(mixed[:, :, None].permute(0, 2, 1, 3, 4), *mixed.shape),
        encoder_hidden_states=embeds[:, :512],
        encoder_hidden_states_mask=mask[:, :512],
        timestep=timesteps / 1000,
        img_shapes=[(1, height // 2, width // 2)] * count,
        return_dict=False,
    )[0]
    return QwenImagePipeline._unpack_latents(found, height * 2, width * 2, 2)[:, :, 0]


def flux1_by_hand(pipeline, mixed, timesteps, guidance=3.5):
    """As train_dreambooth_lora_flux.py computes the prediction."""
    embeds, pooled, text_ids = pipeline.encode_prompt(list(TEXTS), device=CPU)
    count, channels, height, width = mixed.shape
    found = pipeline.transformer(
        hidden_states=FluxPipeline._pack_latents(mixed, count, channels, height, width),
        timestep=timesteps / 1000,
        guidance=torch.tensor([guidance]).expand(count) if pipeline.transformer.config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, CPU, torch.float32),
        return_dict=False,
    )[0]
    return FluxPipeline._unpack_latents(found, height * 2, width * 2, 2)


BY_HAND = {
    "z_image": z_image_by_hand,
    "flux2_klein": flux2_klein_by_hand,
    "qwen_image": qwen_image_by_hand,
    "flux1": flux1_by_hand,
}


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt"])
def test_prediction_target_and_weight_are_those_of_diffusers_script(pipeline, family, scheme):
    """On given latents, noise and times, with captions of different lengths."""
    latents, noise = drawn(family)
    flow = noise_of(family, pipeline.scheduler, scheme)
    times = flow.sigmas(SIZE)[[0, 400, 990]]
    sigmas = times[:, None, None, None]
    wanted = BY_HAND[family](pipeline, (1 - sigmas) * latents + sigmas * noise, times * 1000)

    texts = encode(pipeline, family, TEXTS)
    found = FAMILIES[family].predict(pipeline.transformer, flow.add_noise(latents, noise, times), times, texts)
    assert torch.allclose(found, wanted, atol=1e-6) and found.std() > 0.01
    assert torch.equal(flow.target(latents, noise, times), noise - latents)
    weights = times**-2 if scheme == "sigma_sqrt" else torch.ones(3)
    assert torch.allclose(flow.loss_weights(times), weights, rtol=1e-5)


def stop_after_10(pipeline, step, time, values):
    """The times are known then, and the other steps take as long."""
    pipeline._interrupt = step == 9
    return values


def levels_at_steps(family, scheduler, flow):
    """The levels of training that are steps of the pipeline; of a stretched schedule some lie between two levels."""
    stretched = scheduler.config.shift_terminal is not None
    places = np.linspace(0, 999, 50) if stretched else np.arange(0, 1000, 1000 // STEPS[family])
    return torch.from_numpy(np.interp(places, np.arange(1000), flow.sigmas(SIZE))).float()


@torch.no_grad()
def test_a_trainer_draws_the_levels_of_the_pipeline_at_this_resolution(pipeline, family, folder):
    """As train_lora.py reads them from the model's folder."""
    (width, height), guided = SIZE, {} if family == "qwen_image" else {"guidance_scale": 0.0}
    options = {"output_type": "latent", "width": width, "height": height, "callback_on_step_end": stop_after_10}
    pipeline(prompt="boots", num_inference_steps=STEPS[family], **options, **guided)
    flow = setup.read_noising(train_lora.parse_args(["--pretrained_model_name_or_path", folder]), folder, family)
    levels = levels_at_steps(family, pipeline.scheduler, flow)
    assert torch.allclose(levels, pipeline.scheduler.sigmas[:-1], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_model_is_given_the_times_of_the_pipeline(pipeline, family, dynamic):
    """At the steps of the pipeline that are levels of training."""
    own = type(pipeline.scheduler).from_config(pipeline.scheduler.config, use_dynamic_shifting=dynamic)
    sampled = type(pipeline)(**pipeline.components | {"scheduler": own})
    sampled.set_progress_bar_config(disable=True)
    seen = []
    watch = pipeline.transformer.register_forward_pre_hook(
        lambda _, given, named: seen.append(named["timestep"] if "timestep" in named else given[1]), with_kwargs=True
    )
    width, height = SIZE
    options = {"output_type": "latent", "width": width, "height": height, "callback_on_step_end": stop_after_10}
    options |= {} if family == "qwen_image" else {"guidance_scale": 0.0}
    steps = STEPS[family]
    sampled(prompt="boots", num_inference_steps=steps, **options)
    times = levels_at_steps(family, own, noise_of(family, own))
    noisy = torch.zeros(len(seen), CHANNELS[family], 8, 8)
    texts = encode(pipeline, family, ["boots"]) * len(seen)
    FAMILIES[family].predict(pipeline.transformer, noisy, times[: len(seen)], texts)
    watch.remove()
    *by_pipeline, ours = seen
    assert len(by_pipeline) == min(steps, 10) and torch.allclose(times, own.sigmas[:-1], atol=1e-5)
    assert torch.allclose(ours, torch.cat(by_pipeline), atol=1e-5)


@torch.no_grad()
def test_latents_are_scaled_as_the_pipeline_does(pipeline, family, folder):
    latents, _ = drawn(family)
    vae = pipeline.vae
    if family == "flux2_klein":
        patches = Flux2KleinPipeline._patchify_latents(latents)
        mean, variance = (one.view(1, -1, 1, 1) for one in (vae.bn.running_mean, vae.bn.running_var))
        wanted = (patches - mean) / torch.sqrt(variance + vae.config.batch_norm_eps)
        wanted = Flux2KleinPipeline._unpatchify_latents(wanted)
    elif family == "qwen_image":
        mean, deviation = (
            torch.tensor(one).view(1, -1, 1, 1) for one in (vae.config.latents_mean, vae.config.latents_std)
        )
        wanted = (latents - mean) / deviation
    else:
        wanted = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    found = models.latent_scaler(folder)(latents)
    assert torch.allclose(found, wanted, atol=1e-6) and not torch.allclose(found, latents, atol=0.1)
    assert torch.allclose(latent_scales.unscale(vae, found), latents, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name, build", [("flux1", tiny_flux1), ("flux2_klein", tiny_flux2_klein)])
@pytest.mark.parametrize("embeds", [True, False])
def test_only_a_transformer_with_guidance_embeds_reads_the_guidance(name, build, embeds):
    torch.manual_seed(0)
    pipeline, (latents, noise), times = build(guidance_embeds=embeds), drawn(name), torch.tensor([0.9, 0.5, 0.1])
    noisy = noise_of(name, pipeline.scheduler).add_noise(latents, noise, times)
    texts, made = encode(pipeline, name, TEXTS), {}
    for scale in (1.0, 3.5):
        made[scale] = FAMILIES[name].predict(pipeline.transformer, noisy, times, texts, guidance=scale)
        assert torch.allclose(made[scale], BY_HAND[name](pipeline, noisy, times * 1000, scale), atol=1e-6)
    assert torch.allclose(made[1.0], made[3.5], atol=1e-4) != embeds


@pytest.mark.parametrize("name", OF_FLOW)
def test_a_family_says_whether_guidance_is_read_in_training(name, tmp_path):
    """Qwen-Image's transformer can't, whatever its config says; Z-Image's config has no word for it."""
    folder = Path(build_tiny(tmp_path, name))
    for embeds in (False, True):
        path = folder / "transformer/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance_embeds": embeds}))
        assert models.reads_guidance(str(folder)) == (embeds and name in ("flux1", "flux2_klein"))


def test_schnell_reads_as_many_tokens_as_its_tokenizer_and_draws_times_of_a_fixed_shift(tmp_path):
    schnell, folder = tiny_flux1(guidance_embeds=False), str(tmp_path)
    schnell.tokenizer_2.model_max_length = 256
    schnell.save_pretrained(folder, safe_serialization=True)
    assert [one.model_max_length for one in models.load_tokenizers(folder, "flux1")] == [32, 256]
    with pytest.raises(UserError, match="--max_sequence_length 512: FLUX.1 reads at most 256 .*; give 256 at most"):
        models.load_tokenizers(folder, "flux1", 512)
    adapter = Adapter(4, 4, targets=("attn.to_k",))
    most, given = (
        memory.estimate_memory(folder, "flux1", memory.Load(adapter, 1, 16, 16, text_length=length))
        for length in (None, 256)
    )
    assert most == given and models.caption_bytes(folder, "flux1", None, torch.float32) == 4 * (256 * 16 + 16)
    assert sampling.default_sampling(folder) == (4, 0.0) and not models.reads_guidance(folder)
    levels = noise_of("flux1", schnell.scheduler).sigmas(SIZE)
    assert torch.allclose(levels, torch.linspace(1, 0.001, 1000), atol=1e-6)


def test_the_limit_of_flux1_is_that_of_t5(tmp_path):
    tokenizers = models.load_tokenizers(build_tiny(tmp_path, "flux1"), "flux1", 40)
    fits, over = "b" * 38, "b" * 39  # beside the start of a word and the end of the text
    assert models.too_long([fits, over], tokenizers[-1]) == (1, 40, over)
