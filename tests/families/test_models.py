import json
import logging
import shutil

import pytest
import torch

from families import models
from utils.cli import UserError


def write_model(folder, cross_attention_dim, **parts):
    (folder / "unet").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet/config.json").write_text(json.dumps({"cross_attention_dim": cross_attention_dim}))
    return str(folder)


def test_demo_means_the_model_in_this_repository():
    assert (
        models.resolve_model("demo").endswith("demo/model")
        and models.model_family(models.resolve_model("demo")) == "sd1"
    )


def test_a_hub_id_that_moved_is_mapped_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert models.resolve_model("runwayml/stable-diffusion-v1-5") == models.DEFAULT_MODEL
    assert "no longer exists" in caplog.text


def test_hub_ids_and_diffusers_folders_stay_as_they_are(tmp_path):
    folder = write_model(tmp_path / "model", 768)
    for name in ("stabilityai/stable-diffusion-xl-base-1.0", models.DEFAULT_MODEL, folder):
        assert models.resolve_model(name) == name


@pytest.mark.parametrize("name", ["./none", "/no/such/model", "demi", "a/b/c", "models/sd15.safetensors"])
def test_a_path_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match="no such folder") as error:
        models.resolve_model(name)
    assert name in str(error.value)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no model_index.json"):
        models.resolve_model(str(tmp_path))


def test_family_is_read_from_the_model(tmp_path):
    second = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    assert models.model_family(write_model(tmp_path / "sd1", 768)) == "sd1"
    assert models.model_family(write_model(tmp_path / "sd2", 1024)) == "sd2"
    assert models.model_family(write_model(tmp_path / "sdxl", 2048, **second)) == "sdxl"


def test_a_model_without_a_unet_is_refused(tmp_path):
    folder = tmp_path / "flux"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxFillPipeline"}')
    with pytest.raises(UserError, match="FluxFillPipeline can't be used"):
        models.model_family(str(folder))
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(UserError, match=r"flux: model_index.json can't be read \(expected an object in braces"):
        models.model_family(str(folder))


def test_a_damaged_folder_is_named(tmp_path):
    folder = write_model(tmp_path / "model", 768)
    (tmp_path / "model/unet/config.json").write_text("{")
    with pytest.raises(UserError, match=r"unet/config.json can't be read"):
        models.model_family(folder)


def test_weights_cut_short_are_one_line(tmp_path):
    shutil.copytree(models.DEMO_MODEL, tmp_path / "model")
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(UserError, match="can't be loaded") as error:
        models.load_pipeline(str(tmp_path / "model"), torch.device("cpu"), torch.float32)
    assert "\n" not in str(error.value)


def test_a_hub_that_can_not_be_reached_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for read in models.model_family, models.load_noise_scheduler:  # diffusers says "does not appear to have a file"
        with pytest.raises(UserError, match="the hub can't be reached, .*`demo` needs no network"):
            read("nobody/no-such-model")
    with pytest.raises(UserError, match="the hub can't be reached, .*docs/models.md#recipes"):
        models.model_family("Tongyi-MAI/Z-Image")
