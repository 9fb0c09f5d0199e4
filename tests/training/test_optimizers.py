"""Learning rates as diffusers makes them, and optimizers whose state survives a checkpoint to the byte."""

import copy
import json
import sys

import pytest
import torch
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file

from training import optimizers
from training.flags import IMAGE_OPTIMIZERS, SCHEDULES
from training.optimizers import OptimizerSettings, Schedule
from utils.checkpoints import pack_optimizer, unpack_optimizer
from utils.cli import UserError
from utils.files import write_safetensors

CPU = torch.device("cpu")


@pytest.mark.parametrize("warmup,steps", [(0, 30), (7, 30), (30, 30)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_diffusers_own_at_every_step(name, warmup, steps):
    rates = [1e-3, 4e-4]
    at = optimizers.rate_schedule(Schedule(name, warmup, cycles=3, power=2.0), rates, steps)
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, lr=rates[0])
    theirs = get_scheduler(name, optimizer, None, warmup, steps, num_cycles=3, power=2.0)
    for step in range(steps):
        assert at(step) == pytest.approx([group["lr"] for group in optimizer.param_groups], rel=1e-12), step
        if step + 1 < steps:  # theirs fails at the end where all is warm-up
            optimizer.step()
            theirs.step()


def test_warm_up_rises_in_a_line_for_each_group():
    at = optimizers.rate_schedule(Schedule("constant_with_warmup", 500, 1, 1.0), [1e-4, 2e-5], 3000)
    assert at(0) == [0, 0] and at(250) == pytest.approx([5e-5, 1e-5])
    assert at(500) == at(2999) == [1e-4, 2e-5]


def test_both_groups_of_a_polynomial_fall_in_proportion():
    at = optimizers.rate_schedule(Schedule("polynomial", 0, 1, 1.0), [1e-3, 1e-5], 100)
    for step in range(100):
        one, other = at(step)
        assert other == pytest.approx(one / 100) and one == pytest.approx((1e-3 - 1e-7) * (1 - step / 100) + 1e-7)


def test_a_rate_too_low_for_the_polynomial_schedule_is_one_line():
    with pytest.raises(UserError, match=r"--lr_scheduler polynomial.*--learning_rate 1e-08"):
        optimizers.rate_schedule(Schedule("polynomial", 0, 1, 1.0), [1e-8], 100)


def test_a_rate_is_a_function_of_the_step_and_of_nothing_before_it():
    at = optimizers.rate_schedule(Schedule("cosine_with_restarts", 5, 2, 1.0), [1e-3], 50)
    assert [at(step) for step in reversed(range(50))][::-1] == [at(step) for step in range(50)]


def make(name, rates=(1e-3, 1e-3), **options):
    torch.manual_seed(0)
    shapes = (4, 3), (5, 1) if name == "muon" else (5,), (80, 64)  # 8-bit Adam leaves small ones be
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    groups = [{"params": parameters[:2], "lr": rates[0]}, {"params": parameters[2:], "lr": rates[1]}]
    return parameters, optimizers.make_optimizer(
        OptimizerSettings(name, (0.9, 0.99), 1e-2, 1e-8, tuple(options.items())), groups, CPU
    )


def take_steps(parameters, optimizer, first, last, rate):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.set_rates(optimizer, [rate * step, rate * step])  # 0 at first, as a warm-up has it
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", IMAGE_OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_to_the_byte(name, tmp_path):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    parameters, optimizer = make(name)
    before = [parameter.detach().clone() for parameter in parameters]
    rate = 1.0 if name == "prodigy" else 1e-3
    take_steps(parameters, optimizer, 0, 4, rate)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters))
    assert all(parameter.isfinite().all() for parameter in parameters)

    saved = [parameter.detach().clone() for parameter in parameters]
    tensors, rest = pack_optimizer(optimizer.state_dict())
    write_safetensors(tmp_path / "optimizer.safetensors", tensors)
    state = unpack_optimizer(load_file(tmp_path / "optimizer.safetensors"), json.loads(json.dumps(rest)))
    resumed, other = make(name)
    with torch.no_grad():
        for parameter, value in zip(resumed, saved):
            parameter.copy_(value)
    other.load_state_dict(state)
    again, plain = pack_optimizer(other.state_dict())
    assert json.dumps(plain) == json.dumps(rest) and again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) and again[key].dtype == tensors[key].dtype for key in tensors)

    take_steps(parameters, optimizer, 4, 8, rate)
    take_steps(resumed, other, 4, 8, rate)
    assert all(torch.equal(a, b) for a, b in zip(parameters, resumed))


def test_a_state_in_two_levels_as_bitsandbytes_has_it_is_packed_too():
    inner = {"state1": torch.arange(3, dtype=torch.uint8), "absmax1": torch.ones(1), "note": 2}
    state = {
        "state": {0: {"step": 4, "quantised": inner}, 1: {"step": 1}},
        "param_groups": [{"lr": 1.0, "params": [0, 1]}],
    }
    tensors, rest = pack_optimizer(state)
    assert set(tensors) == {"0.quantised/state1", "0.quantised/absmax1"}
    again = unpack_optimizer(tensors, json.loads(json.dumps(rest)))
    assert torch.equal(again["state"][0]["quantised"].pop("state1"), inner.pop("state1")) and again == state


@pytest.mark.parametrize("name", ["adamw", "prodigy", "adafactor"])
def test_a_state_before_the_first_step_is_saved_too(name, tmp_path):
    rate = 1.0 if name == "prodigy" else 1e-3
    parameters, optimizer = make(name)
    tensors, rest = pack_optimizer(copy.deepcopy(optimizer.state_dict()))
    write_safetensors(tmp_path / "optimizer.safetensors", tensors)
    written = load_file(tmp_path / "optimizer.safetensors")
    assert written.keys() == tensors.keys()

    resumed, other = make(name)
    take_steps(resumed, other, 0, 2, rate)  # so that what is loaded must replace something
    assert other.state_dict()["state"]
    other.load_state_dict(unpack_optimizer(written, json.loads(json.dumps(rest))))
    loaded = pack_optimizer(other.state_dict())
    assert json.dumps(loaded[1]) == json.dumps(rest) and loaded[0] == tensors and not other.state_dict()["state"]
    with torch.no_grad():
        for parameter, value in zip(resumed, parameters):
            parameter.copy_(value)
    take_steps(parameters, optimizer, 0, 4, rate)
    take_steps(resumed, other, 0, 4, rate)
    assert all(torch.equal(a, b) for a, b in zip(parameters, resumed))


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("adamw", {"amsgrad": True}, None),
        ("muon", {"ns_steps": 6, "adjust_lr_fn": "original", "momentum": 0}, None),
        ("adamw", {"ns_steps": 6}, "ns_steps=6: --optimizer adamw has no such argument; it has amsgrad, capturable"),
        ("adamw", {"weight_decay": 0.1}, "weight_decay=0.1: use --adam_weight_decay"),
        ("adamw", {"lr": 0.1}, "lr=0.1: use --learning_rate"),
        ("prodigy", {"use_bias_correction": False}, "it is always set here; leave it out"),
        ("muon", {"momentum": "much"}, "momentum=much: expected something like 0.95, its default"),
        ("muon", {"momentum": 1}, "momentum=1: expected a number, 0 or more, below 1"),
        ("muon", {"ns_steps": 0}, "ns_steps=0: expected a whole number, 1 to 99"),
        ("adamw", {"foreach": True}, "foreach=True: .*fused"),
        ("muon", {"ns_coefficients": (1, 2)}, "exactly 3 values; change or leave it out"),
        ("adamwschedulefree", {"weight_lr_power": -1e9, "r": 5}, "out of range.*; change or leave it out"),
    ],
)
def test_further_arguments_reach_the_optimizer_or_are_refused_by_their_name(name, options, said):
    if said:
        with pytest.raises(UserError, match=f"^--optimizer_args .*{said}"):
            make(name, **options)
    else:
        assert options.items() <= make(name, **options)[1].param_groups[0].items()


def test_a_further_argument_that_is_given_twice_is_refused():
    settings = OptimizerSettings("muon", (0.9, 0.99), 1e-2, 1e-8, (("ns_steps", 6), ("ns_steps", 5)))
    with pytest.raises(UserError, match="^--optimizer_args ns_steps=6: ns_steps is given twice; give it once"):
        optimizers.check_options(settings)


def test_muon_refuses_what_is_no_matrix():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(5))], "lr": 1e-3}]
    with pytest.raises(UserError, match=r"^--optimizer muon: .*shape \(5,\)"):
        optimizers.make_optimizer(OptimizerSettings("muon", (0.9, 0.99), 1e-2, 1e-8), groups, CPU)


def test_the_memory_estimate_knows_what_each_optimizer_keeps():
    from training.memory import OPTIMIZER_BYTES

    for name in ("adamw", "adamwschedulefree", "muon", "prodigy"):
        parameters, optimizer = make(name)
        take_steps(parameters, optimizer, 0, 2, 1e-3)
        kept = sum(
            value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
        )
        assert kept / sum(one.numel() for one in parameters) == pytest.approx(OPTIMIZER_BYTES[name], rel=0.01), name


def test_adamw_runs_fused():
    assert make("adamw")[1].defaults["fused"]


def test_each_group_has_its_own_rate():
    _, optimizer = make("adamw", (1e-3, 1e-4))
    optimizers.set_rates(optimizer, [3.0, 4.0])
    assert [group["lr"] for group in optimizer.param_groups] == [3.0, 4.0]


def test_prodigy_with_two_rates_is_refused_before_it_fails_in_a_step():
    with pytest.raises(UserError, match=r"--optimizer prodigy.*--text_encoder_lr"):
        make("prodigy", (1.0, 0.5))


def test_prodigy_with_a_rate_for_adam_is_warned_of(caplog):
    make("prodigy", (1.0, 1.0))
    assert not caplog.records
    make("prodigy", (1e-4, 1e-4))
    assert "--learning_rate 0.0001" in caplog.text


def test_a_missing_bitsandbytes_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"--optimizer adamw8bit: .*requirements-cuda.txt"):
        make("adamw8bit")
