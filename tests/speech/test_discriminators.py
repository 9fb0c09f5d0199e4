import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import VitsConfig

from speech.discriminators import (
    PUBLISHED,
    DiscriminatorConfig,
    Discriminators,
    check_discriminators,
    load_discriminators,
    new_discriminators,
    open_discriminators,
    save_discriminators,
)
from speech.losses import discriminator_losses, feature_distances, generator_losses
from tests.tiny_voices import DISCRIMINATORS
from utils.cli import UserError

ALL_KINDS = DiscriminatorConfig((2, 3), (4, 8), (4, 64, 256), (256,), 4)
WAVES = torch.randn(3, 2048, generator=torch.Generator().manual_seed(0)) * 0.1


def test_a_segment_is_judged_alone_as_beside_others():
    judges = new_discriminators(ALL_KINDS, 0)
    together, alone = judges(WAVES), judges(WAVES[1:2])
    assert len(together.scores) == 4  # one scale, two periods, one spectrogram
    for one, other in zip(together.scores + together.features, alone.scores + alone.features):
        assert torch.allclose(one[1:2], other, atol=1e-5)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (new_discriminators(DISCRIMINATORS, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, second[name]) for name, one in first.items())
    assert not all(torch.equal(one, other[name]) for name, one in first.items())


def test_a_folder_keeps_sizes_and_weights(tmp_path):
    judges = new_discriminators(ALL_KINDS, 0)
    save_discriminators(tmp_path, judges)
    found = load_discriminators(str(tmp_path))
    assert found.config == ALL_KINDS
    assert all(torch.equal(one, found.state_dict()[name]) for name, one in judges.state_dict().items())
    save_discriminators(tmp_path, judges, torch.float16)
    assert next(load_discriminators(str(tmp_path)).parameters()).dtype == torch.float32


def test_a_voice_that_brings_discriminators_goes_on_with_them_unless_others_are_asked_for(tmp_path):
    save_discriminators(tmp_path, new_discriminators(DISCRIMINATORS, 0))
    small, large = (VitsConfig(upsample_initial_channel=size) for size in (128, 512))
    assert open_discriminators(str(tmp_path), "auto", small, 0).config == DISCRIMINATORS
    assert open_discriminators(str(tmp_path), "small", large, 0).config == DiscriminatorConfig()
    assert open_discriminators(None, "auto", small, 0).config == DiscriminatorConfig()
    with torch.device("meta"):
        assert open_discriminators(None, "auto", large, 0).config == PUBLISHED


def test_damaged_discriminators_are_refused_in_one_line_before_a_training_and_as_it_begins(tmp_path):
    save_discriminators(tmp_path, new_discriminators(DISCRIMINATORS, 0))
    path = tmp_path / "discriminators.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    said = (
        "^--pretrained_model_name_or_path .*discriminators.safetensors is damaged: .*; copy the voice again, or remove"
    )
    with pytest.raises(UserError, match=said):
        check_discriminators(str(tmp_path), "auto")
    check_discriminators(str(tmp_path), "small")  # which leaves them aside
    with pytest.raises(UserError, match="; copy the voice again, or remove its discriminators.safetensors"):
        open_discriminators(str(tmp_path), "auto", VitsConfig(), 0)


def test_a_voice_without_discriminators_is_told_that_they_begin_with_random_weights(tmp_path, caplog):
    small = VitsConfig(upsample_initial_channel=128)
    open_discriminators(str(tmp_path), "auto", small, 0)
    (said,) = caplog.messages
    assert str(tmp_path) in said and "discriminators.safetensors" in said and "random weights" in said
    open_discriminators(None, "auto", small, 0)
    open_discriminators(str(tmp_path), "small", small, 0)
    assert len(caplog.messages) == 1


def test_a_folder_without_discriminators_has_none(tmp_path):
    save_file({"decoder.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert load_discriminators(str(tmp_path)) is None


@pytest.mark.parametrize("split", [False, True], ids=["plain weights", "weight norm"])
def test_a_published_checkpoint_for_training_is_read(tmp_path, split):
    """Beside its voice it holds one discriminator by scale, then those by period; its config has their sizes."""
    config = DiscriminatorConfig((2, 5), (4, 8), (4, 64, 256), ())
    judges = new_discriminators(config, 0)
    weights = {"text_encoder.weight": torch.zeros(2)}
    for name, layer in judges.named_modules():
        if isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d)):
            parts = layer.parametrizations.weight
            names = {"weight_g": parts.original0, "weight_v": parts.original1} if split else {"weight": layer.weight}
            names["bias"] = layer.bias
            weights |= {f"discriminator.{name}.{kind}": value.detach().clone() for kind, value in names.items()}
    assert "discriminator.discriminators.0.convs.0.bias" in weights
    assert "discriminator.discriminators.2.final_conv.bias" in weights
    save_file(weights, tmp_path / "model.safetensors")
    sizes = {"periods": [2, 5], "period_channels": [4, 8], "scale_channels": [4, 64, 256]}
    sizes = {f"discriminator_{name}": value for name, value in sizes.items()}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    found = load_discriminators(str(tmp_path))
    assert found.config == config
    for one, other in zip(found(WAVES).scores, judges(WAVES).scores):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_published_sizes_are_those_of_vits():
    """VITS trains one discriminator by scale and five by period."""
    with torch.device("meta"):
        judges = Discriminators(PUBLISHED)
    assert len(judges.discriminators) == 6
    scale, period = judges.discriminators[0].convs, judges.discriminators[1].convs
    assert [conv.groups for conv in scale] == [1, 4, 16, 64, 256, 1] and scale[4].weight.shape == (1024, 4, 41)
    assert [tuple(conv.weight.shape) for conv in period][-1] == (1024, 1024, 5, 1)


def test_spectrograms_are_judged_in_float32_under_autocast():
    judge = new_discriminators(DiscriminatorConfig((), (), (), (256,), 4), 0).discriminators[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert judge.view(WAVES).dtype == torch.float32 and judge(WAVES)[0].dtype == torch.bfloat16


def test_losses_are_zero_for_who_is_right_and_grow_for_who_is_wrong():
    ones, zeros = [torch.ones(2, 5)], [torch.zeros(2, 5)]
    assert discriminator_losses(ones, zeros).tolist() == [0, 0] and discriminator_losses(zeros, ones).tolist() == [2, 2]
    assert generator_losses(ones).tolist() == [0, 0] and generator_losses(zeros).tolist() == [1, 1]
    assert feature_distances([*ones, *zeros], [*zeros, *zeros]).tolist() == [1, 1]


def test_a_feature_distance_moves_the_decoded_side_alone():
    real, decoded = (torch.ones(1, 3, requires_grad=True) for _ in range(2))
    feature_distances([real], [decoded * 2]).sum().backward()
    assert real.grad is None and decoded.grad.abs().sum() > 0
