"""A training is saved as a checkpoint and restored from it to the byte; another one is refused."""

import json

import pytest
import torch

from families import lora
from tests.tiny_models import BLOCKS
from training import training
from training.optimizers import make_optimizer
from utils import checkpoints
from utils.cli import UserError


def tiny_training(name="adamw", ema=True, rank=2):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=16, attention_head_dim=4, **BLOCKS)
    parameters = lora.attach_lora(unet, rank, 2 * rank, 0.0, ["to_q", "to_v"])
    groups = [{"params": parameters, "lr": 1.0 if name == "prodigy" else 1e-3}]
    optimizer = make_optimizer(name, groups, (0.9, 0.99), 1e-2, 1e-8, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    average = [parameter.detach().clone() for parameter in parameters] if ema else None
    return training.Training(unet, [], parameters, optimizer, scaler, average, training.new_progress())


def advance(one, steps):
    for _ in range(steps):
        generator = torch.Generator().manual_seed(one.progress["step"])
        for parameter in one.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        one.optimizer.step()
        torch._foreach_lerp_(one.average, one.parameters, 0.1) if one.average else None
        one.progress["step"] += 1


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_a_restored_training_goes_on_to_the_byte(tmp_path, name):
    whole = tiny_training(name)
    advance(whole, 3)
    whole.progress.update(best_loss=0.1 + 0.2, best_step=2, skipped=[1])
    training.save_training(tmp_path / "checkpoint-3", whole, {"data": "abc"}, {"rank": "2"})
    resumed = tiny_training(name)
    training.restore_training(tmp_path / "checkpoint-3", resumed, {"data": "abc"})
    assert resumed.progress == whole.progress
    advance(whole, 2), advance(resumed, 2)
    for one, folder in ((whole, "a"), (resumed, "b")):
        training.save_training(tmp_path / folder, one, {"data": "abc"}, {"rank": "2"})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoint-1"
    one = tiny_training()
    advance(one, 1)
    training.save_training(folder, one, {"data": "abc"}, {})
    return folder


def test_a_checkpoint_of_something_else_is_one_line(checkpoint, tmp_path):
    cases = [
        (tiny_training(), {"data": "other"}, "the data has changed"),
        (tiny_training(ema=False), {"data": "abc"}, "--use_ema"),
        (tiny_training(rank=3), {"data": "abc"}, "--rank"),
    ]
    two = tiny_training()
    two.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    cases.append((two, {"data": "abc"}, "--train_text_encoder"))
    for one, identity, said in cases:
        with pytest.raises(UserError, match=said):
            training.restore_training(checkpoint, one, identity)


def test_best_is_no_checkpoint_to_resume_from(tmp_path):
    one = tiny_training()
    advance(one, 1)
    training.save_best(tmp_path / "best", one, {})
    assert checkpoints.find_checkpoint(tmp_path, "best") == tmp_path / "best"  # whole, but
    with pytest.raises(UserError, match="holds a LoRA alone.*checkpoint-<step>"):
        training.restore_training(tmp_path / "best", one, {"data": "abc"})


def test_best_holds_the_average_and_leaves_the_training_as_it_was(tmp_path):
    one = tiny_training()
    advance(one, 3)
    before = [parameter.detach().clone() for parameter in one.parameters]
    training.save_best(tmp_path / "best", one, {})
    assert all(torch.equal(a, b) for a, b in zip(before, one.parameters))
    state, _ = lora.read_lora(tmp_path / "best")
    with training.averaged_weights(one):
        expected = lora.lora_state(one.unet)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert not all(torch.equal(state[key], value) for key, value in lora.lora_state(one.unet).items())


def test_an_error_under_the_average_puts_the_weights_back():
    one = tiny_training()
    advance(one, 2)
    before = [parameter.detach().clone() for parameter in one.parameters]
    with pytest.raises(ValueError), training.averaged_weights(one):
        assert torch.equal(one.parameters[0], one.average[0])
        raise ValueError
    assert all(torch.equal(a, b) for a, b in zip(before, one.parameters))


def test_a_checkpoint_made_without_a_scaler_is_resumed_with_one(checkpoint):
    one = tiny_training()
    one = one._replace(scaler=torch.amp.GradScaler("cpu", enabled=True))
    training.restore_training(checkpoint, one, {"data": "abc"})
    assert one.scaler.get_scale() == 65536


def test_rolling_back_keeps_the_step_and_what_is_known(checkpoint):
    one = tiny_training()
    training.restore_training(checkpoint, one, {"data": "abc"})
    weights = [parameter.detach().clone() for parameter in one.parameters]
    advance(one, 5)
    one.progress.update(skipped=[3, 4], skipped_in_a_row=3, best_loss=0.5)
    training.roll_back(checkpoint, one, {"data": "abc"})
    assert all(torch.equal(a, b) for a, b in zip(weights, one.parameters))
    assert one.progress["step"] == 6 and one.progress["skipped"] == [3, 4] and one.progress["best_loss"] == 0.5
    assert one.progress["rolled_back"] and one.progress["skipped_in_a_row"] == 0


def test_a_checkpoint_holds_no_pickle(checkpoint):
    assert sorted(contents(checkpoint)) == [
        "MANIFEST.json",
        "average.safetensors",
        "optimizer.safetensors",
        lora.FILE_NAME,
        "state.json",
    ]
    assert json.loads((checkpoint / "state.json").read_text())["progress"]["step"] == 1
