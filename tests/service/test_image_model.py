"""The mixes of a served model: which stay on the device, and that one request's lack of memory is no other's."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from families import sampling
from families.models import load_denoiser, load_vae, resolve_model
from families.sampler import Execution, ImageRequest, Sampler, SamplerParts, Sampling
from service import image_model
from service.image_model import ImageModel, Mix
from service.image_queue import Settings

SETTINGS = Sampling(4, 7.5, 64)
CPU = torch.device("cpu")


def mix_of(weights) -> Mix:
    sampler = Sampler(
        SETTINGS, None, "sd1", None, None, None, None, None, {}, {}, None, 8, ["vae_slicing", "cpu_offload"]
    )
    return Mix(SamplerParts("demo", "sd1"), None, sampler, OrderedDict())


class FakeLoading(ImageModel):
    """Loads no weights; `full` are the counts of loaded mixes at which memory runs out."""

    def __init__(self, most_mixes: int, full: tuple[int, ...] = ()):
        self._execution, self._most_mixes, self._mixes = Execution(CPU, torch.float32, 8), most_mixes, OrderedDict()
        self.loaded, self.full = [], full

    def _load_mix(self, weights):
        self.loaded.append((*self._mixes, weights))
        if len(self._mixes) in self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mix_of(weights)

    def _encode(self, mix, prompt, negative):
        return {}


@pytest.fixture
def made(monkeypatch):
    """What the sampler was for each request; those of two prompts have no memory for it."""
    made, disabled = [], []

    def generate(sampler, requests):
        made.append((sampler.batch_size, list(sampler.unused_savers)))
        if len(requests) == 2:
            sampler.batch_size = 1
            sampler.unused_savers.pop(0)
        return []

    monkeypatch.setattr(image_model, "generate_images", generate)
    monkeypatch.setattr(sampling, "disable_memory_saver", lambda name, *parts: disabled.append(name))
    return SimpleNamespace(made=made, disabled=disabled)


def ask(model: ImageModel, name: str, count: int = 1) -> None:
    model.make(Settings(SETTINGS, ((name, 1.0),)), [ImageRequest("boots", seed) for seed in range(count)])


def test_the_mix_that_was_used_longest_ago_makes_room(made):
    model = FakeLoading(2)
    for name in "abacb":
        ask(model, name)
    a, b, c = (((name, 1.0),) for name in "abc")
    assert model.loaded == [(a,), (a, b), (a, c), (c, b)]


def test_a_mix_for_which_there_is_no_memory_takes_that_of_the_others(made, caplog):
    model = FakeLoading(3, full=(2,))
    for name in "abc":
        ask(model, name)
    a, b, c = (((name, 1.0),) for name in "abc")
    assert model.loaded == [(a,), (a, b), (a, b, c), (c,)]
    assert "all others leave the device" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        ask(FakeLoading(2, full=(0,)), "a")


def test_a_request_that_ran_out_of_memory_changes_nothing_for_the_next_one(made):
    model = FakeLoading(1)
    for count in (1, 2, 1):
        ask(model, "a", count)
    assert made.made == [(8, ["vae_slicing", "cpu_offload"])] * 3 and made.disabled == ["vae_slicing"]


def test_memory_savers_leave_nothing_behind():
    model = resolve_model("demo")
    denoiser, vae = load_denoiser(model, torch.float32), load_vae(model)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, denoiser.config.in_channels, 8, 8, generator=generator)
    text = torch.randn(2, 7, denoiser.config.cross_attention_dim, generator=generator)

    @torch.no_grad()
    def result() -> torch.Tensor:
        return vae.decode(denoiser(noise, 500, text).sample).sample

    before = result()
    for name in sampling.MEMORY_SAVERS:
        sampling.enable_memory_saver(name, denoiser, vae, None, CPU)
    assert vae.use_slicing and vae.use_tiling and hasattr(denoiser.conv_in, "_hf_hook")
    processors = {type(one).__name__ for one in denoiser.attn_processors.values()}
    assert processors == {"SlicedAttnProcessor"}
    for name in sampling.MEMORY_SAVERS:
        sampling.disable_memory_saver(name, denoiser, vae, CPU)
    assert not (vae.use_slicing or vae.use_tiling)
    for module in (*denoiser.modules(), *vae.modules()):
        assert not hasattr(module, "_hf_hook") and all(one.device == CPU for one in module.parameters())
    assert {type(one).__name__ for one in denoiser.attn_processors.values()} == {"AttnProcessor2_0"}
    assert torch.equal(result(), before)
