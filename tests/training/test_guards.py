"""When numbers or memory give out."""

import pytest
import torch
from accelerate import Accelerator

from training import guards
from utils import devices

HOW = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.58 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.2 GB, other allocations: 1.1 GB, max allowed: 18.1 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried"),
]  # fmt: skip


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


@pytest.mark.parametrize(
    "policy,before,rolled_back,has_checkpoint,action",
    [
        ("stop", 0, False, True, "stop"),
        ("skip", 0, False, True, "skip"),
        ("skip", 2, False, False, "skip"),
        ("skip", 3, False, True, "rollback"),  # three in a row were skipped
        ("skip", 3, False, False, "stop"),
        ("skip", 3, True, True, "stop"),  # once
        ("skip", 0, True, True, "skip"),
        ("rollback", 0, False, True, "rollback"),
        ("rollback", 0, True, True, "stop"),
        ("rollback", 0, False, False, "stop"),
    ],
)
def test_what_is_done_about_a_step_that_is_not_finite(policy, before, rolled_back, has_checkpoint, action):
    progress = {"skipped_in_a_row": before, "rolled_back": rolled_back}
    assert guards.nonfinite_action(policy, progress, has_checkpoint) == action


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
    with guards.watched_activations(net) as largest:
        net(torch.tensor([[1.0, -2.0]]))
        net(torch.tensor([[1.0, 0.0]]))
    assert largest == {"first": 3.0, "second": 30.0, "third": 60.0}
    net(torch.full((1, 2), 100.0))
    assert largest["first"] == 3.0  # it looks no more


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_first_layer_that_is_not_finite_is_found(value):
    net = Net()
    net.second.weight.data[0, 0] = float(value)
    with pytest.raises(ValueError), guards.watched_activations(net) as largest:
        net(torch.ones(1, 2))
        raise ValueError
    assert largest["first"] == 6.0 and largest["second"] == largest["third"] == float("inf")
    assert max(largest, key=largest.get) == "second"


def test_the_story_is_that_of_the_process_where_it_went_wrong():
    causes = [
        {"samples": ["a", "b"], "in_loss": False, "activation": 900.0, "layer": "mid"},
        {"samples": ["c"], "in_loss": True, "activation": 70.0, "layer": "down.0"},
    ]
    story = guards.tell_nonfinite(12, float("nan"), causes)
    assert story.startswith("step 12: the loss is not finite (gradient norm nan); samples c;")
    assert story.endswith("largest activation 70 in down.0")
    assert "the gradient is not finite" in guards.tell_nonfinite(12, float("inf"), causes[:1])


def test_one_process_alone_has_nothing_to_add():
    accelerator = Accelerator(cpu=True)
    parameter, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    guards.reduce_gradients(accelerator, [parameter, unused])
    assert parameter.grad.tolist() == [3, 3] and unused.grad is None
    assert guards.any_process(accelerator, True) is True and guards.any_process(accelerator, False) is False
