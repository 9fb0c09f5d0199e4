"""Models with random weights: whole, the same every time, fit to train and to generate with."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from families import models
from families.names import FAMILIES, PUBLISHED, published_model
from families.published import read_published, write_configs, write_random_model
from families.sampler import Execution, ImageRequest, SamplerParts, Sampling, generate_images, load_sampler
from tests.tiny_models import smaller
from tests.tiny_runs import LORA, train
from utils.cli import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small model of each family."""
    place = tmp_path_factory.mktemp("random")
    return {one: write_random_model(one, place / one, torch.float32, smaller(one)) for one in FAMILIES}


def weights(folder):
    return {path.relative_to(folder): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_trains_and_generates(trainer_data, folders, family, tmp_path):
    model = str(folders[family])
    assert models.model_family(model) == family
    data = {**trainer_data, family: model}
    assert train(data, tmp_path / "run", "--max_train_steps", 1, family=family) == 0
    assert (tmp_path / "run" / LORA).is_file()
    parts, how = SamplerParts(model, family), Sampling(2, 7.5, 64)
    execution = Execution(torch.device("cpu"), torch.float32, 2)
    requests = [ImageRequest("red shoes", seed) for seed in (0, 1)]
    made = generate_images(load_sampler(parts, how, execution, ["red shoes"]), requests)
    first, other = (np.asarray(one.image, float) for one in made)
    assert first.shape == (64, 64, 3) and np.abs(first - other).mean() > 10  # each from its own seed
    for values in (first, other):
        assert values.std() > 20 and ((values == 0) | (values == 255)).mean() < 0.3  # neither flat nor overflown


def has(found, wanted):
    """Whether it has all of the keys, at every level, with these values."""
    if isinstance(wanted, dict):
        return all(key in found and has(found[key], value) for key, value in wanted.items())
    return found == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_published_model_by_whose_defaults_its_configs_sample(folders, family):
    """Turbo, schnell and other distilled models have others than those that they were made of."""
    name = published_model(family)
    assert PUBLISHED[name] == family == models.model_family(str(folders[family]))
    if FAMILIES[family].DENOISER == "transformer":
        found = FAMILIES[family].default_sampling(read_published(family).__getitem__)
        assert (found[0] <= 8) == ("Turbo" in name or "schnell" in name)


def test_the_configs_of_a_random_model_are_the_published_ones(folders):
    for family, folder in folders.items():
        for name, wanted in read_published(family, smaller(family)).items():
            found = json.loads((folder / name).read_text())
            assert has(found, json.loads(json.dumps(wanted))), (family, name)


def test_the_tokens_of_a_random_t5_are_those_that_its_encoder_expects(folders):
    tokenizers, encoders = models.load_text_encoders(str(folders["flux1"]), "flux1", torch.float32)
    assert [len(one) for one in tokenizers] == [700, 120] and tokenizers[1].model_max_length == 512
    ids = tokenizers[1]("red shoes!").input_ids
    assert (ids[-1], tokenizers[1].pad_token_id) == (1, 0) and tokenizers[1].unk_token_id not in ids
    red, blue = FAMILIES["flux1"].encode_text(tokenizers, encoders, ["red shoes", "blue shoes"])
    assert all(not torch.allclose(red[name], blue[name]) for name in ("embeds", "pooled"))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_tokens_of_a_random_model_are_those_that_its_encoders_expect(folders, family):
    tokenizers, encoders = models.load_text_encoders(str(folders[family]), family, torch.float32)
    for tokenizer, encoder in zip(tokenizers, encoders):
        assert len(tokenizer) == encoder.config.vocab_size
        first, *_, end = tokenizer("shoes", max_length=77, truncation=True).input_ids
        assert (first, end) == (len(tokenizer) - 2, len(tokenizer) - 1)  # the highest: where CLIP pools
        assert tokenizer.model_max_length == encoder.config.max_position_embeddings == 77
    red, blue, again = FAMILIES[family].encode_text(tokenizers, encoders, ["red shoes", "blue shoes", "red shoes"])
    for name in FAMILIES[family].FEATURES:
        assert torch.equal(red[name], again[name]) and not torch.allclose(red[name], blue[name])


def test_equal_arguments_give_equal_weights_and_half_precision_is_kept(folders, tmp_path):
    again = weights(write_random_model("sd1", tmp_path / "again", torch.float32, smaller("sd1")))
    for name, tensors in weights(folders["sd1"]).items():
        assert all(torch.equal(tensor, again[name][key]) for key, tensor in tensors.items())
    half = weights(write_random_model("sd1", tmp_path / "half", torch.float16, smaller("sd1")))
    assert {tensor.dtype for tensors in half.values() for tensor in tensors.values()} == {torch.float16}


def test_a_whole_model_is_used_again_and_any_other_folder_is_refused(tmp_path):
    folder, small = tmp_path / "model", smaller("sd1")
    write_random_model("sd1", folder, torch.float32, small)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_random_model("sd1", folder, torch.float32, small) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(UserError, match="holds random weights of sd1 in float32, not sd1 in float16; delete it"):
        write_random_model("sd1", folder, torch.float16, small)
    with pytest.raises(UserError, match="of sd1 in float32 from other configs; delete it"):
        write_random_model("sd1", folder, torch.float32)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="vae/diffusion_pytorch_model.safetensors is missing or has another size"):
        write_random_model("sd1", folder, torch.float32, small)
    write_configs("sd1", tmp_path / "other")
    with pytest.raises(UserError, match="other: holds something else than a model with random weights"):
        write_random_model("sd1", tmp_path / "other", torch.float32)


def test_a_disk_that_is_too_small_is_named_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3_000_000_000}))
    with pytest.raises(UserError, match=r"xl: the random weights take 6.9 GB, and the disk has 3.0 GB free; give a "):
        write_random_model("sdxl", tmp_path / "xl", torch.float16)
    assert list(tmp_path.iterdir()) == []
