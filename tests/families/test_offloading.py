"""Blocks in the CPU's memory: the same gradients to the byte, and on the device only while a block computes."""

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from families import lora, models, offloading
from families.names import FAMILIES
from families.shards import find_blocks
from tests.tiny_models import OF_FLOW, build_tiny
from training.memory import most_live_bytes
from utils.devices import checkpoint_options

CPU = torch.device("cpu")
ELSEWHERE = torch.device("meta")  # a device whose tensors are no others, though without values


@pytest.fixture(scope="module", params=OF_FLOW)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny") / family, family)


def load(family, model, dtype=torch.float32, **adapter):
    """The transformer with a LoRA whose matrices are both random, and gradient checkpointing."""
    denoiser = models.load_denoiser(model, dtype).train()
    torch.manual_seed(0)
    targets = FAMILIES[family].lora_targets(denoiser.config)
    for parameter in lora.attach_lora(denoiser, lora.Adapter(4, 8, targets=targets, **adapter)):
        torch.nn.init.normal_(parameter, std=0.1)
    options = checkpoint_options(ELSEWHERE)
    denoiser.enable_gradient_checkpointing(lambda block, *args: checkpoint(block, *args, **options))
    return denoiser


def compute(family, model, denoiser, seed=1):
    """The loss of two samples."""
    generator, device, dtype = torch.Generator().manual_seed(seed), denoiser.device, denoiser.dtype
    channels = models.latent_channels(models.read_config(model, "vae/config.json"))
    config = denoiser.config
    sizes = {"embeds": (6, FAMILIES[family].caption_numbers(lambda name: models.read_config(model, name), 1))}
    if family == "flux1":
        sizes = {"embeds": (6, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}
    noisy = torch.randn(2, channels, 4, 4, generator=generator).to(device)
    texts = [
        {name: torch.randn(*size, generator=generator).to(device, dtype) for name, size in sizes.items()}
        for _ in range(2)
    ]
    with torch.autocast("cpu", dtype, dtype != torch.float32):
        found = FAMILIES[family].predict(denoiser, noisy, torch.linspace(0.2, 0.8, 2).to(device), texts)
    return found.float().square().mean()


def gradients(family, model, denoiser, seed=1):
    trained = [one for one in denoiser.parameters() if one.requires_grad]
    return torch.autograd.grad(compute(family, model, denoiser, seed), trained)


def equal(first, second):
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True)) and any(one.any() for one in first)


HALF, DORA = (torch.bfloat16, {}), (torch.float32, {"use_dora": True})


@pytest.mark.parametrize("dtype, adapter", [(torch.float32, {}), HALF, DORA])
def test_loss_and_gradients_are_the_same_to_the_byte(family, model, dtype, adapter):
    plain, kept = (load(family, model, dtype, **adapter) for _ in range(2))
    offloading.keep_on_cpu(kept, len(find_blocks(kept)), CPU)
    assert equal(*(gradients(family, model, one) for one in (plain, kept)))
    with torch.no_grad():  # as a validation computes
        assert compute(family, model, plain.eval()) == compute(family, model, kept.eval())


def test_threads_compute_the_same_as_one(family, model):
    plain, kept = (load(family, model) for _ in range(2))
    offloading.keep_on_cpu(kept, len(find_blocks(kept)), CPU)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: gradients(family, model, kept, seed), range(16)))
    assert all(equal(gradients(family, model, plain, seed), one) for seed, one in enumerate(found))


class Copies(TorchDispatchMode):
    """Counts the copies of each tensor on the other device, and refuses any other operation on tensors of both."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor) and one.dim()]
        if len({one.device for one in tensors}) > 1 and function is not torch.ops.aten.empty_like.default:
            assert function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default), function
            self.of.update(one.data_ptr() for one in tensors if one.device == CPU)
        return result


def step_elsewhere(family, model, denoiser):
    """A forward and a backward pass on the other device; what was copied there."""
    with Copies() as copies:
        gradients(family, model, denoiser)
    return copies.of


def test_a_block_is_on_the_device_only_while_it_computes(family, model):
    kept, count = load(family, model), 2
    weights = {name: one.clone() for name, one in kept.named_parameters()}
    offloading.keep_on_cpu(kept, count, ELSEWHERE)
    blocks = offloading.spread(find_blocks(kept), count)
    staying = {one.data_ptr() for block in blocks for one in offloading.frozen(block)}
    assert sum(one.nbytes for one in kept.parameters() if one.device == CPU) == offloading.kept_bytes(
        offloading.block_bytes(kept), count
    )
    copied = step_elsewhere(family, model, kept)
    assert {copied[one] for one in staying} == {2}  # forward, and for the way back
    left = {name: one for name, one in kept.named_parameters() if one.device == CPU}
    assert {one.data_ptr() for one in left.values()} == staying and kept.device == ELSEWHERE
    assert all(torch.equal(one, weights[name]) for name, one in left.items())


def bytes_of_a_step(family, model, denoiser):
    return most_live_bytes(lambda: gradients(family, model, denoiser))


def test_the_device_holds_no_more_than_one_block_of_those_that_are_brought(family, model):
    whole, kept = (load(family, model) for _ in range(2))
    sizes = offloading.block_bytes(kept)
    offloading.keep_on_cpu(kept, len(sizes), ELSEWHERE)
    whole.to(ELSEWHERE)
    needs = [bytes_of_a_step(family, model, one) for one in (whole, kept)]
    assert max(sizes) // 2 < needs[1] - needs[0] <= max(sizes)


@pytest.fixture
def streams(monkeypatch):
    """The other device in a GPU's place, whose streams have always done at once what is begun on them."""

    class Stream:
        def __init__(self, device):
            pass

        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return Stream


def test_the_next_block_is_copied_ahead(family, model, streams, monkeypatch):
    """Forward and back, so that two are on the device, and none at the end; and with the same gradients."""
    init, made = offloading._Kept.__init__, []

    def with_stream(kept, blocks, device):
        init(kept, blocks, device)
        kept.stream = streams(device)
        made.append(kept)

    monkeypatch.setattr(offloading._Kept, "__init__", with_stream)
    plain, here, elsewhere, whole = (load(family, model) for _ in range(4))
    sizes = offloading.block_bytes(plain)
    offloading.keep_on_cpu(here, len(sizes), CPU)
    wanted = gradients(family, model, plain)
    assert all(equal(wanted, gradients(family, model, here)) for _ in range(2))
    offloading.keep_on_cpu(elsewhere, len(sizes), ELSEWHERE)
    staying = {one.data_ptr() for block in find_blocks(elsewhere) for one in offloading.frozen(block)}
    whole.to(ELSEWHERE)
    needs = [bytes_of_a_step(family, model, one) for one in (whole, elsewhere)]
    assert max(sizes) < needs[1] - needs[0] <= offloading.brought_bytes(sizes, len(sizes))
    copied = step_elsewhere(family, model, elsewhere)
    assert {copied[one] for one in staying} == {2}  # none in vain
    assert all(not one.ahead for one in made)
