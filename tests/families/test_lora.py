"""LoRA files: what is saved is what was trained, to the bit, for us and for those who read it."""

import datetime
import hashlib
import json
from itertools import product

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open

from families import kohya, lora, models, sd, sdxl
from families.diffusion import stack
from families.lora import Adapter
from families.published import read_published
from tests.tiny_models import build_tiny
from training.build import writes_kohya
from utils.cli import UserError

FACTS = {"base_model": "demo", "trigger_word": "a photo of", "rank": "4", "resolution": "512", "images": "7"}
FACTS |= {"training_started_at": "1700000000.5"}
CPU = torch.device("cpu")
# The published configuration of Stable Diffusion 1.5's UNet, where it differs from the class's defaults.
SD15_UNET = {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: build_tiny(tmp_path_factory.mktemp(family), family) for family in ("sd1", "sd2", "sdxl")}


def train(folder, family, text=False, **options):
    """The parts with adapters that do something, as after training: rank 4, alpha 6."""
    unet = models.load_denoiser(folder, torch.float32)
    tokenizers, encoders = models.load_text_encoders(folder, family, torch.float32)
    torch.manual_seed(0)
    adapter = Adapter(4, 6, **options)
    trained = lora.attach_lora(unet, adapter)
    for encoder in encoders if text else []:
        trained += lora.attach_lora(encoder, adapter, lora.TEXT_TARGETS)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return unet.eval(), tokenizers, encoders


@torch.no_grad()
def denoise(unet, embeds, pooled):
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    more = {"text_embeds": pooled, "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64.0]] * 2)}
    return unet(x, torch.tensor(400), embeds, added_cond_kwargs=more if pooled is not None else None).sample


@torch.no_grad()
def outputs_of_ours(unet, tokenizers, encoders):
    found = (sdxl if len(encoders) == 2 else sd).encode_text(tokenizers, encoders, ["red boots", "a heel"])
    return denoise(unet, stack(found, "embeds"), stack(found, "pooled") if "pooled" in found[0] else None)


@torch.no_grad()
def outputs_of_diffusers(folder, lora_folder=None, **options):
    pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.unet.to(memory_format=torch.channels_last)  # as ours is: another layout rounds differently
    if lora_folder is not None:
        pipeline.load_lora_weights(lora_folder, **options)
    encoded = pipeline.encode_prompt(
        ["red boots", "a heel"], device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return denoise(pipeline.unet, encoded[0], encoded[2] if len(encoded) == 4 else None)


def test_sd15_at_rank_8_has_1_594_368_parameters():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in lora.attach_lora(unet, Adapter(8, 16))) == 1_594_368


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_only_the_adapter_trains_in_float32_and_changes_nothing_at_first(folders, dtype):
    unet = models.load_denoiser(folders["sd1"], dtype)
    embeds, x = torch.randn(1, 32, 16, dtype=dtype), torch.randn(1, 4, 16, 16, dtype=dtype)
    before = unet(x, torch.tensor(5), embeds).sample
    trained = lora.attach_lora(unet, Adapter(4, 8))
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in trained}
    assert {p.dtype for p in trained} == {torch.float32} and unet.conv_in.weight.dtype == dtype
    after = unet(x, torch.tensor(5), embeds).sample
    assert torch.equal(before, after) and after.dtype == dtype
    after.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)


def test_one_seed_one_adapter(folders):
    states = []
    for seed in (0, 0, 1):
        unet = models.load_denoiser(folders["sd1"], torch.float32)
        torch.manual_seed(seed)
        lora.attach_lora(unet, Adapter(4, 8))
        states.append(lora.lora_state(unet))
    same = [all(torch.equal(states[0][key], other[key]) for key in states[0]) for other in states[1:]]
    assert same == [True, False]


def test_dropout_is_of_the_adapter_in_training_alone(folders):
    unet, _, _ = train(folders["sd1"], "sd1", dropout=0.5)
    embeds = torch.ones(2, 32, 16)
    assert torch.equal(denoise(unet, embeds, None), denoise(unet, embeds, None))
    unet.train()
    assert not torch.equal(denoise(unet, embeds, None), denoise(unet, embeds, None))


@pytest.mark.parametrize("part", ["unet", "encoder"])
def test_without_an_adapter_all_weights_are_chosen(folders, part):
    if part == "unet":
        module, targets = models.load_denoiser(folders["sd1"], torch.float32), None
    else:
        module = models.load_text_encoders(folders["sd1"], "sd1", torch.float32)[1][0]
        targets = lora.TEXT_TARGETS
    chosen = lora.choose_parameters(module, None, targets)
    assert {id(one) for one in chosen} == {id(one) for one in module.parameters()}
    assert all(one.requires_grad for one in chosen)
    adapted = lora.choose_parameters(module, Adapter(4, 8), targets)
    assert {id(one) for one in adapted} == {id(one) for one in module.parameters() if one.requires_grad}
    assert 0 < len(adapted) < len(chosen)


@pytest.mark.parametrize("targets", [("to_k", "to_kk"), ("attn1",), ("q",), ()])
def test_a_layer_name_that_matches_nothing_is_named_with_some_that_exist(folders, targets):
    unet = models.load_denoiser(folders["sd1"], torch.float32)
    with pytest.raises(UserError, match="--lora_layers.*there are, for example,.* to_[kqv]") as error:
        lora.attach_lora(unet, Adapter(4, 8, targets=targets))
    assert (targets or ("(none)",))[-1] in str(error.value)
    assert not any("lora" in name for name, _ in unet.named_parameters())


WAYS = [{}, {"use_rslora": True}, {"use_dora": True}]


@pytest.mark.parametrize("family, text, way", product(("sd1", "sd2", "sdxl"), (False, True), range(3)))
def test_an_unmodified_pipeline_gives_the_very_outputs_of_the_trained_adapter(folders, tmp_path, family, text, way):
    parts = train(folders[family], family, text, **WAYS[way])
    unet, _, encoders = parts
    encoders = encoders if text else []
    lora.save_lora(tmp_path, lora.lora_state(unet, encoders), unet, encoders, FACTS)
    ours = outputs_of_ours(*parts)
    # Not to the bit: ours adds in another order, and where a weight lies in memory decides which kernel multiplies.
    assert torch.allclose(ours, outputs_of_diffusers(folders[family], tmp_path), atol=5e-5)
    assert (ours - outputs_of_diffusers(folders[family])).abs().max() > 1e-3


@pytest.mark.parametrize("family, text, rslora", product(("sd1", "sd2", "sdxl"), (False, True), (False, True)))
def test_a_kohya_file_keeps_alpha_and_the_outputs(folders, tmp_path, family, text, rslora):
    parts = train(folders[family], family, text, use_rslora=rslora)
    unet, _, encoders = parts
    encoders = encoders if text else []
    path = tmp_path / "shoes.safetensors"
    kohya.save_kohya(path, lora.lora_state(unet, encoders), unet, encoders, family, FACTS)
    ours, theirs = outputs_of_ours(*parts), outputs_of_diffusers(folders[family], tmp_path, weight_name=path.name)
    assert torch.allclose(ours, theirs, atol=5e-5)
    tensors, facts = lora.read_lora(path)
    assert facts["ss_network_dim"] == "4" and facts["ss_output_name"] == "shoes"
    assert float(facts["ss_network_alpha"]) == (12 if rslora else 6)
    alphas = {value.item() for key, value in tensors.items() if key.endswith(".alpha")}
    assert alphas == {12.0 if rslora else 6.0} and len(tensors) % 3 == 0


def test_a_kohya_file_has_the_metadata_that_other_programs_show(folders, tmp_path):
    unet, _, _ = train(folders["sd2"], "sd2", targets=("to_q", "conv1"), dropout=0.25)
    path, state = tmp_path / "shoes_kohya.safetensors", lora.lora_state(unet)
    for kind, spec in (("v_prediction", "stable-diffusion-v2-768-v/lora"), ("epsilon", "stable-diffusion-v2-512/lora")):
        kohya.save_kohya(path, state, unet, [], "sd2", FACTS | {"prediction_type": kind})
        facts = lora.read_lora(path)[1]
        assert facts["modelspec.architecture"] == spec and facts["modelspec.prediction_type"] == kind.split("_")[0]
        assert facts["ss_base_model_version"] == ("sd_v2_v" if kind == "v_prediction" else "sd_v2")
    data = path.read_bytes()
    content = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert facts["sshs_model_hash"] == content and facts["modelspec.hash_sha256"] == f"0x{content}"
    assert json.loads(facts["ss_tag_frequency"]) == {"1_a photo of": {"a photo of": 7}}
    assert json.loads(facts["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "6.0", "dropout": "0.25"}
    assert datetime.datetime.fromisoformat(facts["modelspec.date"]).tzinfo
    expected = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": "shoes_kohya",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": "512x512",
        "modelspec.trigger_phrase": "a photo of",
        "ss_sd_model_name": "demo",
        "ss_resolution": "(512, 512)",
        "ss_num_train_images": "7",
        "ss_training_started_at": "1700000000.5",
    }
    assert expected.items() <= facts.items()


def test_kohya_names_are_those_that_others_read(folders, tmp_path):
    names = {}
    for family in ("sd1", "sdxl"):
        unet, _, encoders = train(folders[family], family, text=True)
        path = kohya.save_kohya(
            tmp_path / f"{family}.safetensors", lora.lora_state(unet, encoders), unet, encoders, family, {}
        )
        names[family] = {key.split(".")[0] for key in lora.read_lora(path)[0]}
    attention = "transformer_blocks_0_attn1_to_q"
    assert f"lora_unet_down_blocks_1_attentions_0_{attention}" in names["sd1"]
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in names["sd1"]
    assert {
        f"lora_unet_{place}_1_{attention}" for place in ("input_blocks_3", "middle_block", "output_blocks_1")
    } <= names["sdxl"]
    assert {f"lora_te{i}_text_model_encoder_layers_0_self_attn_q_proj" for i in (1, 2)} <= names["sdxl"]


MORE_LAYERS = (
    "to_k proj_in ff.net.0.proj ff.net.2 conv1 conv2 time_emb_proj conv_shortcut conv conv_in conv_out".split()
)
MORE_LAYERS += ["linear_1", "linear_2"]


def test_more_layers_keep_their_outputs_in_both_formats(folders, tmp_path):
    for family in ("sd1", "sdxl"):
        parts = train(folders[family], family, targets=MORE_LAYERS)
        state = lora.lora_state(parts[0])
        (tmp_path / family / "kohya").mkdir(parents=True)
        lora.save_lora(tmp_path / family, state, parts[0], [], {})
        path = kohya.save_kohya(tmp_path / family / "kohya" / "k.safetensors", state, parts[0], [], family, {})
        ours = outputs_of_ours(*parts)
        for theirs in (
            outputs_of_diffusers(folders[family], tmp_path / family),
            outputs_of_diffusers(folders[family], path.parent, weight_name=path.name),
        ):
            assert torch.allclose(ours, theirs, atol=1e-5)


def published_layers(config):
    """The names of all layers that a LoRA may train in the UNet of this configuration."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config["unet/config.json"])
    return [name for name, layer in unet.named_modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))]


def test_every_layer_of_sdxl_has_the_kohya_name_that_stability_ai_gave_it():
    names = {layer: sdxl.kohya_layer(layer, 2) for layer in published_layers(read_published("sdxl"))}
    assert len(names) == 794 and len(set(names.values())) == 794 and None not in names.values()
    known = {  # from the keys of the published sd_xl_base_1.0.safetensors
        "conv_in": "input_blocks.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
        "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
        "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
        "down_blocks.2.attentions.1.proj_out": "input_blocks.8.1.proj_out",
        "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.2.resnets.2.conv2": "output_blocks.8.0.out_layers.3",
        "conv_out": "out.2",
    }
    assert known.items() <= names.items()
    assert sdxl.kohya_layer("up_blocks.0.motion_modules.0.proj_in", 2) is None


def test_a_lora_that_has_no_kohya_format_says_why(folders):
    for family, options, obstacle in (
        ("sdxl", {"targets": ("conv1", "conv", "linear_1", "to_q")}, None),
        ("sd1", {"use_dora": True}, "DoRA"),
    ):
        unet, _, encoders = train(folders[family], family, **options)
        found = kohya.find_obstacle(unet, family)
        assert found is None if obstacle is None else obstacle in found
        modules = {"unet": unet, "text_encoder": encoders[0]}
        assert writes_kohya(None, modules, family) is (obstacle is None) and not writes_kohya(False, modules, family)
        if obstacle:
            with pytest.raises(UserError, match="--output_kohya_format: .*DoRA.*; leave one"):
                writes_kohya(True, modules, family)


@pytest.mark.parametrize("way", range(3))
def test_the_way_back_is_exact(folders, way):
    unet, _, encoders = train(folders["sdxl"], "sdxl", text=True, **WAYS[way])
    state = lora.lora_state(unet, encoders)
    fresh, _, fresh_encoders = train(folders["sdxl"], "sdxl", text=True, **WAYS[way])
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter += parameter.requires_grad
    lora.load_lora_state(state, fresh, fresh_encoders)
    again = lora.lora_state(fresh, fresh_encoders)
    assert state.keys() == again.keys() and all(torch.equal(state[key], again[key]) for key in state)
    state[min(state)].zero_()
    assert again[min(state)].abs().sum() > 0  # a copy, and not the parameter itself


def test_weights_that_do_not_fit_are_refused(folders):
    unet, _, encoders = train(folders["sd1"], "sd1", text=True)
    state = lora.lora_state(unet, encoders)
    first = min(state)
    for changed, problem in (
        ({key: value for key, value in state.items() if key != first}, f"lacks 1 tensors, the first being {first}"),
        ({**state, "unet.more": torch.zeros(1)}, "unlike this model, 1 tensors, the first being unet.more"),
        ({**state, first: torch.zeros(3, 3)}, "differs in shape"),
    ):
        with pytest.raises(UserError, match=problem):
            lora.load_lora_state(changed, unet, encoders)


def test_equal_content_is_equal_bytes_and_facts_come_back(folders, tmp_path):
    unet, _, encoders = train(folders["sd1"], "sd1", text=True)
    state = lora.lora_state(unet, encoders)
    facts = {f"fact {i}": str(i) * i for i in range(9)} | {"author": "Zoë → 靴"}
    for name in "abc":
        (tmp_path / name).mkdir()
    paths = [lora.save_lora(tmp_path / name, state, unet, encoders, facts) for name in "abc"]
    assert len({path.read_bytes() for path in paths}) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["pytorch_lora_weights.safetensors"]
    for place in (tmp_path / "a", paths[0]):
        back, found = lora.read_lora(place)
        assert all(torch.equal(state[key], back[key]) for key in state) and facts.items() <= found.items()
    with safe_open(paths[0], framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["unet.r"] == 4 and settings["unet.lora_alpha"] == 6 == settings["text_encoder.lora_alpha"]
    assert str(tmp_path.parent) not in json.dumps(settings)


def test_a_file_that_can_not_be_read_is_named(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    for name in ("cut.safetensors", "none.safetensors", ""):
        with pytest.raises(UserError, match="can't be read"):
            lora.read_lora(tmp_path / name)


def test_a_failed_write_leaves_the_old_file_whole(folders, tmp_path, monkeypatch):
    unet, _, _ = train(folders["sd1"], "sd1")
    path = lora.save_lora(tmp_path, lora.lora_state(unet), unet, [], {})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        lora.save_lora(tmp_path, lora.lora_state(unet), unet, [], {"new": "fact"})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
