"""The parts of a model, loaded one after the other, and checkpoints in a single file."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from families import models, sdxl
from families.diffusion import stack
from families.names import FAMILIES
from families.whole_file import save_whole
from tests.tiny_models import build_tiny
from utils.cli import UserError
from utils.files import write_json

CPU = torch.device("cpu")
TEXTS = ["a photo of red boots", "", "heels " * 60]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    built = {family: build_tiny(tmp_path_factory.mktemp(family), family) for family in ("sd2", "sdxl")}
    return {"sd1": models.resolve_model("demo"), **built}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_does(folders, family):
    pipeline = DiffusionPipeline.from_pretrained(folders[family], dtype=torch.float32)
    expected = pipeline.encode_prompt(TEXTS, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False)
    tokenizers, encoders = models.load_text_encoders(folders[family], family, torch.float32)
    found = FAMILIES[family].encode_text(tokenizers, encoders, TEXTS)
    assert models.model_family(folders[family]) == family and len(encoders) == 1 + (family == "sdxl")
    assert torch.equal(stack(found, "embeds"), expected[0]) and len(found[0]["embeds"]) == 32
    assert torch.equal(stack(found, "pooled"), expected[2]) if family == "sdxl" else "pooled" not in found[0]


def encode_by_hand(tokenizers, encoders, text, skipped):
    """The begin, what each part of 30 tokens has between its own begin and end, and the end of the last part."""
    wide, pooled = [], None
    for tokenizer, encoder in zip(tokenizers, encoders):
        words, rows = tokenizer(text, add_special_tokens=False).input_ids, []
        for part in (words[:30], words[30:60]):
            ids = [tokenizer.bos_token_id, *part, tokenizer.eos_token_id]
            ids = torch.tensor([ids + [tokenizer.pad_token_id] * (32 - len(ids))])
            found = encoder(ids, output_hidden_states=True)
            row = found.hidden_states[-1 - skipped - (len(encoders) - 1)][0]
            rows.append(row if len(encoders) > 1 else encoder.final_layer_norm(row))
            pooled = getattr(found, "text_embeds", None) if part == words[:30] else pooled
        wide.append(torch.cat([rows[0][:1], rows[0][1:-1], rows[1][1:-1], rows[1][-1:]]))
    return torch.cat(wide, dim=-1), pooled


@pytest.mark.parametrize("family, skipped", [("sd1", 0), ("sd1", 1), ("sd2", 2), ("sdxl", 0), ("sdxl", 1)])
@torch.no_grad()
def test_a_long_prompt_is_read_in_parts_and_without_the_last_layers(folders, family, skipped):
    tokenizers, encoders = models.load_text_encoders(folders[family], family, torch.float32, 152)
    encode = models.choose_encode(family, skipped)
    texts = ["red leather boots with a low heel " * 3, "boots", "", "heels " * 90]
    assert len(tokenizers[0](texts[0]).input_ids) > 32 and models.too_long(texts, tokenizers[-1])[:2] == (1, 62)
    for text, found in zip(texts, encode(tokenizers, encoders, texts)):
        embeds, pooled = encode_by_hand(tokenizers, encoders, text, skipped)
        assert torch.allclose(found["embeds"], embeds, atol=1e-5) and len(embeds) == 62
        assert family != "sdxl" or torch.allclose(found["pooled"], pooled[0], atol=1e-5)
    size = FAMILIES[family].caption_numbers(lambda name: models.read_config(folders[family], name), 152)
    assert size == sum(value.numel() for value in found.values())

    # with as many tokens as the model reads at once it is what diffusers makes
    pipeline = DiffusionPipeline.from_pretrained(folders[family], dtype=torch.float32)
    if family != "sdxl":  # https://github.com/huggingface/diffusers/issues/14124
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    options = {"device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    expected = pipeline.encode_prompt(TEXTS, **options, clip_skip=skipped or None)[0]
    parts = models.load_text_encoders(folders[family], family, torch.float32)
    assert torch.allclose(stack(encode(*parts, TEXTS), "embeds"), expected, atol=1e-5)


def test_a_number_of_tokens_or_layers_that_a_model_can_not_have_is_refused(folders):
    wrong = [(40, 0, "--max_sequence_length 40: .*; give 77"), (150, 0, "give 152"), (228, 0, "give 302")]
    wrong += [(None, 2, "--clip_skip 2: the text encoder of Stable Diffusion XL has 3 layers here; give 1 at most")]
    for length, skipped, said in wrong:
        with pytest.raises(UserError, match=said):
            models.check_reading(folders["sdxl"], "sdxl", models.TextReading(length, skipped))


@torch.no_grad()
def test_no_prompt_is_what_the_pipeline_takes_for_it(folders):
    for family in ("sd1", "sdxl"):
        pipeline = DiffusionPipeline.from_pretrained(folders[family], dtype=torch.float32)
        parts = models.load_text_encoders(folders[family], family, torch.float32)
        expected = pipeline.encode_prompt(
            "boots", device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        empty, boots = FAMILIES[family].encode_text(*parts, ["", "boots"], models.empty_prompt_is_zero(folders[family]))
        assert torch.equal(empty["embeds"][None], expected[1]) and bool(empty["embeds"].any()) == (family == "sd1")
        # a batch of two rounds differently from one
        assert torch.allclose(boots["embeds"], expected[0], atol=1e-5)
        if family == "sdxl":
            assert torch.equal(empty["pooled"][None], expected[3]) and boots["pooled"].any()


def test_gradients_reach_the_encoders_where_they_are_wanted(folders):
    tokenizers, encoders = models.load_text_encoders(folders["sdxl"], "sdxl", torch.float32)
    assert not sdxl.encode_text(tokenizers, encoders, TEXTS)[0]["embeds"].requires_grad
    for encoder in encoders:
        encoder.requires_grad_(True)
    found = sdxl.encode_text(tokenizers, encoders, TEXTS, empty_is_zero=True)
    sum(value.square().sum() for one in found for value in one.values()).backward()
    for encoder in encoders:
        grads = [p.grad for name, p in encoder.named_parameters() if "layers.0" in name]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_parts_come_frozen_in_their_dtype(folders):
    unet = models.load_denoiser(folders["sd1"], torch.bfloat16)
    vae = models.load_vae(folders["sd1"])
    _, encoders = models.load_text_encoders(folders["sd1"], "sd1", torch.bfloat16)
    for module, dtype in ((unet, torch.bfloat16), (vae, torch.float32), (encoders[0], torch.bfloat16)):
        assert {(p.dtype, p.requires_grad) for p in module.parameters()} == {(dtype, False)} and not module.training


def test_the_noise_schedule_is_the_models_own(folders):
    kinds = [models.load_noise_scheduler(folders[family]).config.prediction_type for family in ("sd1", "sd2")]
    assert kinds == ["epsilon", "v_prediction"]


def test_noise_levels_of_another_kind_are_refused(folders, tmp_path):
    """Playground v2.5 is an SDXL with EDM's; read as DDPM's, it would be trained on wrong noise."""
    other = shutil.copytree(folders["sd1"], tmp_path / "other")
    write_json(other / "scheduler" / "scheduler_config.json", {"_class_name": "EDMDPMSolverMultistepScheduler"})
    with pytest.raises(UserError, match="other: its EDMDPMSolverMultistepScheduler is not supported"):
        models.load_noise_scheduler(str(other))


def test_a_part_that_is_not_there_is_one_line(folders, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(folders["sd2"], broken)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(broken / part)
    for load in (
        lambda: models.load_denoiser(str(broken), torch.float32),
        lambda: models.load_vae(str(broken)),
        lambda: models.load_text_encoders(str(broken), "sd2", torch.float32),
        lambda: models.load_noise_scheduler(str(broken)),
    ):
        with pytest.raises(UserError, match="can't be (loaded|read)") as error:
            load()
        assert str(broken) in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizer_without_its_files_is_refused(folders, tmp_path):
    """transformers makes an empty one from any folder."""
    shutil.copytree(folders["sd1"], tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer"))
    with pytest.raises(UserError, match="--pretrained_model_name_or_path .*model: .*tokenizer/ has no vocabulary"):
        models.load_tokenizers(str(tmp_path / "model"), "sd1")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_whose_file_lacks_a_weight_or_has_it_in_another_shape_is_refused(folders, tmp_path, part, capfd):
    """The libraries load it with random numbers there, and a warning."""
    broken = shutil.copytree(folders["sd1"], tmp_path / "broken")
    (path,) = (broken / part).glob("*.safetensors")
    whole = load_file(path)
    name = max(name for name in whole if name.endswith("weight"))
    for spoilt in ({}, {name: whole[name].repeat(2, *[1] * (whole[name].ndim - 1))}):
        save_file({key: value for key, value in whole.items() if key != name} | spoilt, path, {"format": "pt"})
        with pytest.raises(UserError, match=rf"{broken}: .* lack 1 of the weights of a \w+, such as \S+, or"):
            models.fill_pipeline(str(broken), {}, torch.float32)
    assert "newly initialized" not in capfd.readouterr().err


def test_a_fingerprint_is_of_content_alone(folders, tmp_path):
    shutil.copytree(folders["sd2"], tmp_path / "elsewhere")
    for load in (models.load_vae, lambda folder: models.load_text_encoders(folder, "sd2", torch.float32)[1][0]):
        one, same = load(folders["sd2"]), load(str(tmp_path / "elsewhere"))
        assert models.fingerprint(one) == models.fingerprint(same)
        assert models.fingerprint(one) == models.fingerprint(same.to(memory_format=torch.contiguous_format))
        before = models.fingerprint(same)
        list(same.parameters())[-1].data.view(-1)[-1] += 1e-6
        assert models.fingerprint(same) != before != models.fingerprint(one.to(torch.bfloat16))
    vae = models.load_vae(folders["sd2"])
    before = models.fingerprint(vae)
    vae.register_to_config(scaling_factor=0.13025)
    assert models.fingerprint(vae) != before


def test_the_removed_2_1_models_are_found_at_their_mirror():
    for name in ("stable-diffusion-2-1", "stable-diffusion-2-1-base"):
        assert models.resolve_model(f"stabilityai/{name}") == f"sd2-community/{name}"


def write_single_file(folder, path):
    """The demo model as A1111 keeps one, in float16 as the demo is."""
    save_whole(path, DiffusionPipeline.from_pretrained(folder, dtype=torch.float16), "sd1", {})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "shoes.v1.safetensors"
    write_single_file(models.resolve_model("demo"), path)
    return path


def test_a_single_file_becomes_the_same_model_once(checkpoint, tmp_path):
    demo = models.resolve_model("demo")
    configs = tmp_path / "configs"
    shutil.copytree(demo, configs, ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
    folder = Path(models.resolve_model(str(checkpoint), tmp_path / "cache", str(configs)))
    assert folder.parent == tmp_path / "cache" and models.model_family(str(folder)) == "sd1"
    assert models.load_noise_scheduler(str(folder)).config == models.load_noise_scheduler(demo).config
    for load in (models.load_vae, models.load_denoiser, lambda m, d: models.load_text_encoders(m, "sd1", d)[1][0]):
        one, other = load(str(folder), torch.float32).state_dict(), load(demo, torch.float32).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    written = (folder / "model_index.json").stat()
    assert (folder / "unet/diffusion_pytorch_model.safetensors").stat().st_size < 1.1 * (
        Path(demo) / "unet/diffusion_pytorch_model.safetensors"
    ).stat().st_size  # float16 stays float16
    assert models.resolve_model(str(checkpoint), tmp_path / "cache", str(configs)) == str(folder)
    assert (folder / "model_index.json").stat() == written and len(list(folder.parent.iterdir())) == 1
    shutil.copy(checkpoint, tmp_path / "other.safetensors")
    assert models.resolve_model(str(tmp_path / "other.safetensors"), tmp_path / "cache", str(configs)) != str(folder)
    scheduler = configs / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("epsilon", "v_prediction"))
    other = Path(models.resolve_model(str(checkpoint), tmp_path / "cache", str(configs)))
    assert "v_prediction" in (other / "scheduler/scheduler_config.json").read_text()  # as given now, not as at first


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_a_pipeline_written_as_one_file_is_read_back_by_diffusers(folders, tmp_path, family):
    pipeline = DiffusionPipeline.from_pretrained(folders[family], dtype=torch.float32)
    save_whole(tmp_path / "whole.safetensors", pipeline, family, {"base_model": "tiny"})
    assert (tmp_path / "whole.safetensors").stat().st_mode & 0o044  # others may read it
    folder = models.resolve_model(str(tmp_path / "whole.safetensors"), tmp_path / "cache", folders[family])
    read = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    for part in ("unet", "vae", *FAMILIES[family].TEXT_ENCODERS):
        one, other = (getattr(each, part).state_dict() for each in (read, pipeline))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), part


def test_a_single_file_that_can_not_be_used_says_why(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:1000])
    save_file({"unet.to_q.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file(
        {"model.diffusion_model.out.2.bias": torch.zeros(4), "cond_stage_model.model.ln_final.bias": torch.zeros(4)},
        tmp_path / "v2.safetensors",
    )
    save_file({"model.diffusion_model.layers.0.attention.qkv.weight": torch.zeros(4)}, tmp_path / "flow.safetensors")
    (tmp_path / "empty").mkdir()
    tensors = load_file(checkpoint)
    del tensors["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"]
    save_file(tensors, tmp_path / "lacking.safetensors")
    cases = [
        (tmp_path / "lacking.safetensors", models.resolve_model("demo"), "it lacks 1 of the weights, .*mlp.fc1.weight"),
        (checkpoint, None, "can't be read with the configs of stable-diffusion-v1-5/.*give --model_config"),
        (checkpoint, tmp_path / "empty", "holds no model_index.json"),
        (tmp_path / "cut.safetensors", None, "can't be read"),
        (tmp_path / "lora.safetensors", None, "is it a LoRA or a VAE"),
        (tmp_path / "flow.safetensors", None, "of another model give its diffusers folder"),
        (tmp_path / "v2.safetensors", None, "doesn't say what it predicts"),
    ]
    for path, config, problem in cases:
        with pytest.raises(UserError, match=problem) as error:
            models.resolve_model(str(path), tmp_path / "cache", config)
        assert "\n" not in str(error.value) and not (tmp_path / "cache").exists()
    with pytest.raises(UserError, match="a diffusers folder is needed here"):
        models.resolve_model(str(checkpoint))


@pytest.mark.parametrize("end", [".ckpt", ".bin", ".pt", ".pth"])
def test_a_pickle_is_refused_with_the_reason(tmp_path, end):
    path = tmp_path / f"model{end}"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=r"pickle.*take the \.safetensors"):
        models.resolve_model(str(path), tmp_path)
