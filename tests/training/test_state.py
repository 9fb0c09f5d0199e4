"""A training is saved as a checkpoint and restored from it to the byte; another one is refused."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

from families import lora
from families.lora import FILE_NAME as FILE
from families.pipelines import BaseModel
from tests.tiny_models import BLOCKS
from training import state
from training.image_files import ImageFiles
from training.optimizers import OptimizerSettings, make_optimizer
from training.state import Progress, Training
from utils import checkpoints
from utils.cli import UserError
from utils.files import write_safetensors
from utils.metrics_log import smooth


def tiny_training(name="adamw", ema=True, rank=2, data="abc"):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=16, attention_head_dim=4, **BLOCKS)
    parameters = lora.attach_lora(unet, lora.Adapter(rank, 2 * rank, targets=("to_q", "to_v")))
    groups = [{"params": parameters, "lr": 1.0 if name == "prodigy" else 1e-3}]
    optimizer = make_optimizer(OptimizerSettings(name, (0.9, 0.99), 1e-2, 1e-8), groups, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    average = [parameter.detach().clone() for parameter in parameters] if ema else None
    facts, identity = {"rank": str(rank)}, {"data": data}
    files = ImageFiles({"unet": unet}, facts)
    return Training({"unet": unet}, parameters, {"optimizer": optimizer}, scaler, average, files, facts, identity)


def advance(one, steps):
    for _ in range(steps):
        generator = torch.Generator().manual_seed(one.progress.step)
        for parameter in one.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        one.optimizers["optimizer"].step()
        if one.average:
            state.update_average(one.average, one.parameters, 0.9, one.progress.step)
        one.progress.step += 1


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_a_restored_training_goes_on_to_the_byte(tmp_path, name):
    whole = tiny_training(name)
    advance(whole, 3)
    whole.progress.best_loss, whole.progress.best_step, whole.progress.skipped = 0.1 + 0.2, 2, [1]
    state.save_training(tmp_path / "checkpoint-3", whole, state.take_snapshot(whole))
    resumed = tiny_training(name)
    state.restore_training(tmp_path / "checkpoint-3", resumed)
    assert resumed.progress == whole.progress == Progress(3, best_loss=0.1 + 0.2, best_step=2, skipped=[1])
    advance(whole, 2), advance(resumed, 2)
    for one, folder in ((whole, "a"), (resumed, "b")):
        state.save_training(tmp_path / folder, one, state.take_snapshot(one))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_average_is_that_of_diffusers_and_forgets_the_untrained_weights():
    one = tiny_training()
    theirs = EMAModel(one.parameters, decay=0.95)
    for step in range(30):
        for parameter in one.parameters:
            parameter.data += 1
        theirs.step(one.parameters)
        state.update_average(one.average, one.parameters, 0.95, step)
        assert all(torch.allclose(a, b) for a, b in zip(one.average, theirs.shadow_params))
    lag = (one.parameters[0] - one.average[0]).mean().item()
    assert 0 < lag < 5  # behind by a few of its 30 steps


def test_the_smoothed_loss_is_a_mean_from_the_first_record_on():
    progress = Progress()
    for count, loss in enumerate((0.287, 0.0985, 0.12), 1):
        progress.add_loss(loss)
        assert progress.loss_smooth == pytest.approx(smooth([0.287, 0.0985, 0.12][:count])[-1])
    assert 0.0985 < progress.loss_smooth < 0.175
    progress.update({"loss_smooth": 0.27, "step": 3})  # a checkpoint of an earlier version
    assert progress.step == 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoint-1"
    one = tiny_training()
    advance(one, 1)
    state.save_training(folder, one, state.take_snapshot(one))
    return folder


def test_a_checkpoint_of_something_else_is_one_line(checkpoint, tmp_path):
    cases = [
        (tiny_training(data="other"), "the data has changed"),
        (tiny_training(ema=False), "--use_ema"),
        (tiny_training(rank=3), "--rank"),
    ]
    two = tiny_training()
    two.optimizers["optimizer"].add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    cases.append((two, "--train_text_encoder"))
    for one, expected in cases:
        with pytest.raises(UserError, match=expected) as error:
            state.restore_training(checkpoint, one)
        assert "\n" not in str(error.value)


def test_best_is_no_checkpoint_to_resume_from(tmp_path):
    one = tiny_training()
    advance(one, 1)
    state.save_best(tmp_path / "best", one, one.files.gather())
    assert checkpoints.find_checkpoint(tmp_path, "best") == tmp_path / "best"  # whole, but
    with pytest.raises(UserError, match="holds a LoRA alone.*checkpoint-<step>"):
        state.restore_training(tmp_path / "best", one)


def test_best_holds_the_average_and_leaves_the_training_as_it_was(tmp_path):
    one = tiny_training()
    advance(one, 3)
    before = [parameter.detach().clone() for parameter in one.parameters]
    with state.averaged_weights(one):
        state.save_best(tmp_path / "best", one, one.files.gather())
    assert all(torch.equal(a, b) for a, b in zip(before, one.parameters))
    found, _ = lora.read_lora(tmp_path / "best")
    with state.averaged_weights(one):
        expected = lora.lora_state(one.modules["unet"])
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not all(torch.equal(found[key], value) for key, value in lora.lora_state(one.modules["unet"]).items())


def test_an_error_under_the_average_puts_the_weights_back():
    one = tiny_training()
    advance(one, 2)
    before = [parameter.detach().clone() for parameter in one.parameters]
    with pytest.raises(ValueError), state.averaged_weights(one):
        assert torch.equal(one.parameters[0], one.average[0])
        raise ValueError
    assert all(torch.equal(a, b) for a, b in zip(before, one.parameters))


def test_a_checkpoint_made_without_a_scaler_is_resumed_with_one(checkpoint):
    one = tiny_training()
    one = dataclasses.replace(one, scaler=torch.amp.GradScaler("cpu", enabled=True))
    state.restore_training(checkpoint, one)
    assert one.scaler.get_scale() == 65536


def test_what_an_earlier_version_kept_with_the_progress_is_ignored(checkpoint, tmp_path):
    folder = tmp_path / "checkpoint-1"
    files, saved = checkpoints.load_checkpoint(checkpoint)
    saved["progress"] = {"step": 1, "skipped": [0], "rolled_back": True}
    weights = files.pop("pytorch_lora_weights")
    checkpoints.save_checkpoint(folder, lambda partial: write_safetensors(partial / FILE, weights), files, saved)
    one = tiny_training()
    state.restore_training(folder, one)
    assert one.progress == Progress(1, skipped=[0])


def test_all_weights_are_restored_from_the_folders_of_a_checkpoint_and_from_an_earlier_versions_files(tmp_path):
    unet = UNet2DConditionModel(cross_attention_dim=16, attention_head_dim=4, **BLOCKS)
    unet.to(memory_format=torch.channels_last)  # as on a GPU
    optimizer, scaler = torch.optim.SGD(unet.parameters(), 1e-3), torch.amp.GradScaler("cpu", enabled=False)
    files = ImageFiles({"unet": unet}, {}, whole=BaseModel("demo", {}))
    optimizers = {"optimizer": optimizer}
    one = Training({"unet": unet}, [*unet.parameters()], optimizers, scaler, None, files, {}, {})
    folder, wanted = (
        tmp_path / "checkpoint-1",
        {key: value.clone().contiguous() for key, value in unet.state_dict().items()},
    )
    state.save_training(folder, one, state.take_snapshot(one))
    found = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="checkpoint-1/unet").state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    shutil.copytree(folder, tmp_path / "earlier", ignore=shutil.ignore_patterns("unet"))
    save_file(wanted, tmp_path / "earlier/unet.safetensors")
    for place in (folder, tmp_path / "earlier"):
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.zero_()
        state.restore_training(place, one)
        assert all(torch.equal(unet.state_dict()[key], value) for key, value in wanted.items())
    (folder / "unet/config.json").write_text("{}")
    assert checkpoints.checkpoint_damage(folder).startswith("unet/config.json has ")
    shutil.rmtree(folder / "unet")
    with pytest.raises(UserError, match="holds no unet"):
        state.restore_training(folder, one)


def test_an_average_moves_by_its_share():
    average, weights = [torch.zeros(2)], [torch.nn.Parameter(torch.ones(2))]
    for expected in (0.1, 0.19):
        state.update_average(average, weights, 0.9, step=1000)
        assert average[0].tolist() == pytest.approx([expected] * 2) and not average[0].requires_grad
    assert weights[0].tolist() == [1, 1]


def test_a_checkpoint_holds_no_pickle(checkpoint):
    assert sorted(contents(checkpoint)) == [
        "MANIFEST.json",
        "average.safetensors",
        "optimizer.safetensors",
        FILE,
        "state.json",
    ]
    assert json.loads((checkpoint / "state.json").read_text())["progress"]["step"] == 1
