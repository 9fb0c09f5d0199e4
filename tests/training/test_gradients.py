"""Gradients of a step: the same on any number of cores; what is done where numbers or memory run out."""

import contextlib
import dataclasses
import functools
import math

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from families import diffusion, lora, models, sd
from families.sampler import Sampling
from tests.tiny_models import NOISE, build_tiny
from training import gradients
from training.batches import Batch
from training.gradients import Diagnosis
from training.state import Progress
from training.validation import Checks, batch_losses
from utils import devices
from utils.cli import UserError

HOW = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.58 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.2 GB, other allocations: 1.1 GB, max allowed: 18.1 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried"),
]


@pytest.mark.parametrize("error", HOW, ids=lambda error: str(error)[:30])
def test_every_way_of_running_out_of_memory_is_known(error):
    assert devices.out_of_memory(error)


def test_this_machines_own_allocator_is_understood():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert devices.out_of_memory(error.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_no_other_error_is_taken_for_it(error):
    assert not devices.out_of_memory(error)


def diagnosis(samples=("a", "b"), in_loss=False, activation=900.0, layer="mid"):
    return Diagnosis(list(samples), in_loss, activation, layer)


def test_three_steps_in_a_row_are_skipped_and_the_fourth_ends_the_run(caplog):
    progress = Progress()
    for step in (4, 5, 6):
        progress.step = step
        gradients.skip_step(progress, "skip", math.nan, diagnosis())
    assert progress.skipped == [4, 5, 6] and progress.skipped_in_a_row == 3
    assert [message.split(":")[0] for message in caplog.messages] == ["step 4", "step 5", "step 6"]
    assert all(message.endswith(": skip") for message in caplog.messages)
    progress.step = 7
    with pytest.raises(UserError, match=r"^step 7: .*; skipped before: \[4, 5, 6\]\. .*--learning_rate"):
        gradients.skip_step(progress, "skip", math.nan, diagnosis())
    assert progress.skipped == [4, 5, 6]


def test_a_step_between_that_is_finite_starts_the_count_again():
    progress = Progress(step=9, skipped=[1, 2, 3])  # as after a step that was trained
    gradients.skip_step(progress, "skip", math.nan, diagnosis())
    assert progress.skipped == [1, 2, 3, 9] and progress.skipped_in_a_row == 1


def test_the_policy_stop_ends_the_run_at_once():
    progress = Progress(step=2)
    with pytest.raises(UserError, match=r"^step 2: the gradient is not finite .*; skipped before: none\."):
        gradients.skip_step(progress, "stop", math.inf, diagnosis())
    assert progress.skipped == [] and progress.skipped_in_a_row == 0


@pytest.mark.parametrize(
    "rows, norm, finite, scaled",
    [
        ([[0.5, 3.0], [0.1, 9.0]], 2.0, True, False),
        ([[0.5, 3.0], [0.1, 9.0]], math.inf, False, True),  # only the gradient: a smaller scale may do
        ([[0.5, 3.0], [0.1, 9.0]], math.nan, False, True),
        ([[0.5, 3.0], [math.nan, 9.0]], math.nan, False, False),
        ([[math.inf, 3.0]], 1.0, False, False),
        ([[0.5, math.nan]], 1.0, True, False),  # of a row only the loss counts
    ],
)
def test_a_step_is_repeated_at_half_the_scale_only_where_that_can_help(rows, norm, finite, scaled):
    assert gradients.all_finite(rows, norm) == finite
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(1))  # only now has it a scale
    assert gradients.overflowed(scaler, rows, norm) == scaled
    assert not gradients.overflowed(torch.amp.GradScaler("cpu", enabled=False), rows, norm)
    smallest = torch.amp.GradScaler("cpu", init_scale=1.0)
    smallest.scale(torch.ones(1))
    assert not gradients.overflowed(smallest, rows, norm)


def test_micro_batches_are_halved_until_one_sample_is_left(caplog):
    sizes = [16]
    while sizes[-1] > 1:
        sizes.append(gradients.smaller_micro_batch(sizes[-1], False))
    assert sizes == [16, 8, 4, 2, 1] and gradients.smaller_micro_batch(5, False) == 3
    assert "out of memory: 8 samples at once from here on" in caplog.messages[0]
    with pytest.raises(UserError, match="out of memory with one sample at once; .*--gradient_checkpointing"):
        gradients.smaller_micro_batch(1, False)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(2, 2, bias=False) for _ in range(3))
        self.third.register_forward_hook(lambda *_: None)
        for layer, scale in ((self.first, 3), (self.second, 5), (self.third, 1)):
            torch.nn.init.constant_(layer.weight, scale)

    def forward(self, x):
        return self.third(self.second(self.first(x))), (x > 0,)


def test_the_largest_activation_of_each_layer_is_seen():
    net = Net()
    with gradients.watch_activations(net) as largest:
        net(torch.tensor([[1.0, -2.0]]))
        net(torch.tensor([[1.0, 0.0]]))
    assert largest == {"first": 3.0, "second": 30.0, "third": 60.0}
    net(torch.full((1, 2), 100.0))
    assert largest["first"] == 3.0  # it is no longer watched


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_first_layer_that_is_not_finite_is_found(value):
    net = Net()
    net.second.weight.data[0, 0] = float(value)
    with pytest.raises(ValueError), gradients.watch_activations(net) as largest:
        net(torch.ones(1, 2))
        raise ValueError
    assert largest["first"] == 6.0 and largest["second"] == largest["third"] == float("inf")
    assert max(largest, key=largest.get) == "second"


def test_the_message_is_of_the_process_where_it_went_wrong(monkeypatch, caplog):
    there = [diagnosis(), diagnosis(["c"], True, 70.0, "down.0")]
    monkeypatch.setattr(gradients, "gather_object", lambda own: there)  # as from two processes
    gradients.skip_step(Progress(step=12), "skip", math.nan, there[0])
    (message,) = caplog.messages
    assert message.startswith("step 12: the loss is not finite (gradient norm nan); samples c;")
    assert message.endswith("largest activation 70 in down.0: skip")


def test_the_samples_and_the_layer_that_are_not_finite_are_found(tiny):
    unet, batch, encode = tiny
    how = Sampling(steps=1, guidance_scale=1.0, size=16)
    checks = Checks(
        [], [], [], "", "sd1", how, diffusion.Diffusion(DDPMScheduler(**NOISE)), encode, contextlib.nullcontext
    )
    losses_of, device = functools.partial(batch_losses, unet, checks), torch.device("cpu")
    found = gradients.diagnose(unet, losses_of, [batch], device)
    assert found.samples == batch.samples and not found.in_loss and math.isfinite(found.activation)
    sick = dataclasses.replace(batch, latents=batch.latents.clone())
    sick.latents[2] = math.nan
    found = gradients.diagnose(unet, losses_of, sick.split(3), device)
    assert found == Diagnosis(["p2"], True, math.inf, found.layer) and found.layer.startswith("conv_in")
    assert all(parameter.grad is None for parameter in unet.parameters())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A UNet with a LoRA that does something, a batch of 16 samples, and what encodes their texts."""
    unet = models.load_denoiser(build_tiny(tmp_path_factory.mktemp("tiny"), "sd1"), torch.float32)
    torch.manual_seed(0)
    for parameter in lora.attach_lora(unet, lora.Adapter(4, 8)):
        torch.nn.init.normal_(parameter, std=0.1)
    batch = Batch(
        latents=torch.randn(16, 4, 8, 8),
        noise=torch.randn(16, 4, 8, 8),
        times=torch.arange(16) * 60,
        time_ids=torch.zeros(16, 6),
        texts=[str(i % 3) for i in range(16)],
        samples=[f"p{i}" for i in range(16)],
        index=torch.arange(16),
    )
    texts = torch.randn(3, 32, 16)
    return unet.train(), batch, lambda names: [{"embeds": texts[int(name)]} for name in names]


@pytest.fixture
def two_cores(monkeypatch):
    """Two threads of one core each, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(devices, "available_cores", lambda: 2)
    cores = devices.share_cores(16)
    assert cores.parts == 2
    yield cores
    cores.pool.shutdown()
    torch.set_num_threads(before)


def add_all(forward_backward, batches, parameters, cores):
    """The rows of a step's micro-batches, their gradients added up as the trainers do."""
    rows = [gradients.add_gradients(forward_backward, one, n, parameters, cores) for n, one in enumerate(batches)]
    return torch.cat(rows)


def add_up(tiny, cores, *sizes):
    """The rows and the gradients of a step in micro-batches of these sizes, and how many samples each call had."""
    unet, batch, encode = tiny
    scheduler, seen = DDPMScheduler(**NOISE), []
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]

    def forward_backward(part, number, backward):
        seen.append((number, len(part)))
        noisy = scheduler.add_noise(part.latents, part.noise, part.times)
        prediction = sd.predict(unet, noisy, part.times, encode(part.texts), part.time_ids)
        losses = diffusion.sample_losses(prediction, part.noise)
        backward(losses.sum() / 16)
        return torch.stack([losses.detach(), part.times], 1)

    parts, start = [], 0
    for size in sizes:
        parts.append(Batch(**{k: v if v is None else v[start : start + size] for k, v in vars(batch).items()}))
        start += size
    rows = add_all(forward_backward, parts, parameters, cores)
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return rows, found, sorted(seen)


def test_cores_that_share_a_micro_batch_give_the_gradients_of_one_and_twice_the_same_bytes(tiny, two_cores):
    rows, alone, seen = add_up(tiny, None, 8, 8)
    assert seen == [(0, 8), (1, 8)] and rows[:, 1].tolist() == [60 * i for i in range(16)]
    shared, gradient, parts = add_up(tiny, two_cores, 8, 8)
    assert parts == [(0, 4), (0, 4), (1, 4), (1, 4)]  # so it was another way
    assert torch.allclose(shared, rows, rtol=1e-5)  # in the order of the samples
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(alone, gradient))
    assert max(one.abs().max() for one in alone) > 1e-4
    again, same, _ = add_up(tiny, two_cores, 8, 8)
    assert torch.equal(again, shared) and all(torch.equal(a, b) for a, b in zip(same, gradient))


def test_a_micro_batch_too_small_to_share_is_trained_whole(tiny, two_cores):
    rows, alone, _ = add_up(tiny, None, 13, 3)
    shared, gradient, parts = add_up(tiny, two_cores, 13, 3)
    assert parts == [(0, 6), (0, 7), (1, 3)]
    assert torch.allclose(shared, rows, rtol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(alone, gradient))


def test_an_error_on_one_core_is_raised(two_cores):
    batch = Batch(["a"] * 4 + ["b"] * 4, *[torch.zeros(8, 1)] * 4, ["x"] * 8, torch.arange(8))

    def forward_backward(part, number, backward):
        if "b" in part.samples:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(len(part), 2)

    with pytest.raises(torch.OutOfMemoryError):
        add_all(forward_backward, [batch], [], two_cores)


def test_parameters_that_a_loss_does_not_reach_keep_no_gradient_on_several_cores(two_cores):
    used, unused = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    batch = Batch(["a"] * 8, *[torch.ones(8, 1)] * 4, ["x"] * 8, torch.arange(8))

    def forward_backward(part, number, backward):
        backward((used * part.latents).sum())
        return torch.zeros(len(part), 2)

    add_all(forward_backward, [batch, batch], [used, unused], two_cores)
    assert used.grad.item() == 16 and unused.grad is None


@pytest.mark.parametrize("threads, samples", [(1, 16), (2, 7)])
def test_cores_are_shared_only_where_it_pays(monkeypatch, threads, samples):
    monkeypatch.setattr(devices, "available_cores", lambda: threads)
    assert devices.share_cores(samples) is None


def test_rows_come_back_as_they_were_with_the_norm():
    rows = torch.tensor([[0.25, 3.0, 1.0], [0.5, 999.0, 0.0]])
    found, norm = gradients.gather_rows(Accelerator(cpu=True), rows, torch.tensor(1.5))
    assert found == rows.tolist() and norm == 1.5


def test_one_process_alone_has_nothing_to_add():
    accelerator = Accelerator(cpu=True)
    parameter, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    gradients.sum_gradients(accelerator, [parameter, unused])
    assert parameter.grad.tolist() == [3, 3] and unused.grad is None
    assert gradients.any_process(accelerator, True) is True and gradients.any_process(accelerator, False) is False
