"""Whole runs of the scripts on tiny models of flow matching: exact, resumed, and sampled as diffusers samples."""

import json
import os
import re
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from families import lora, lora_mix, models, quantized, sampling
from families.feature_file import FeatureFile
from families.lora import read_lora
from families.names import FAMILIES, LABELS
from families.published import write_configs, write_random_model
from families.sampler import Execution, ImageRequest, SamplerParts, Sampling, generate_images, load_sampler
from tests.tiny_models import OF_FLOW, build_tiny, smaller, tiny_flux1, tiny_flux2_klein
from tests.tiny_runs import (
    LORA,
    PRIOR,
    ROOT,
    cells,
    column,
    difference,
    flags,
    forget_after,
    lora_of,
    make_images,
    same_bytes,
    teach,
    train,
)
from utils.cli import UserError

FAMILY = "z_image"
# Of a tiny model, the changes that make a token wide enough for what an image holds, and the layers beside attention.
WIDER = {
    "z_image": (
        {"dim": 128, "n_heads": 4, "n_kv_heads": 4, "axes_dims": (8, 12, 12)},
        "to_q,to_k,to_v,to_out.0,w1,w2,w3,all_x_embedder.2-1,linear",
    ),
    "flux2_klein": (
        {"attention_head_dim": 32, "num_attention_heads": 2, "axes_dims_rope": (8, 8, 8, 8), "in_channels": 16},
        "to_q,to_k,to_v,to_out.0,to_qkv_mlp_proj,linear_in,linear_out,x_embedder,proj_out,linear",
    ),
    "qwen_image": (
        {"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (8, 12, 12)},
        "to_q,to_k,to_v,to_out.0,net.0.proj,net.2,img_in,proj_out,linear,img_mod.1",
    ),
    "flux1": (
        {"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (8, 12, 12), "in_channels": 16},
        "to_q,to_k,to_v,to_out.0,net.0.proj,net.2,x_embedder,proj_mlp,proj_out,linear",
    ),
}
FROZEN = {  # as published
    "z_image": r"10,26\d,\d{3},\d{3} frozen",
    "flux2_klein": r"7,98\d,\d{3},\d{3} frozen",
    "qwen_image": r"28,8\d\d,\d{3},\d{3} frozen",
    "flux1": r"16,870,599,139 frozen",
}


@pytest.fixture(scope="module", params=OF_FLOW)
def family(request):
    return request.param


# What a trainer does whatever the family is: fast with the first one only.
MOSTLY_SLOW = pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=[pytest.mark.very_slow] * (number > 0)) for number, one in enumerate(OF_FLOW)],
    indirect=True,
)
OF_FIRST = pytest.mark.parametrize("family", [FAMILY], indirect=True)


def plain_pipeline(model, lora=None, weight=1.0):
    pipeline = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        pipeline.load_lora_weights(lora, adapter_name="ours")
        pipeline.set_adapters("ours", weight)
    return pipeline


def apart(image, pipeline, prompt, seed, steps):
    """The largest difference, in levels, of an image from the pipeline's, which is Turbo's: without guidance."""
    options = {"num_inference_steps": steps, "guidance_scale": 0.0, "height": 16, "width": 16}
    wanted = pipeline(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]
    return np.abs(np.asarray(image, int) - np.asarray(wanted, int)).max()


@pytest.fixture(scope="module")
def reference(trainer_data, family, tmp_path_factory):
    """6 steps of 8 samples at once, with checkpoints at 3 and 6, a held-out loss and an image of two prompts."""
    out = tmp_path_factory.mktemp("flow") / "run"
    more = ["--validation_steps", 3, "--num_validation_images", 2, "--validation_guidance_scale", 2.0]
    prompts = ["--validation_prompt", "red boots", "--validation_prompt", "a photo of a blue sandal on grass"]
    assert train(trainer_data, out, *more, *prompts, family=family) == 0
    return out


def test_a_lora_of_the_transformer_is_trained(trainer_data, family, reference):
    state = lora_of(reference)
    layers = {key.split(".lora_")[0].removeprefix("transformer.") for key in state}
    assert all(key.startswith("transformer.") for key in state)
    transformer = models.build_part(str(trainer_data[family]), "transformer")
    targets = FAMILIES[family].lora_targets(transformer.config)
    linear = {name for name, layer in transformer.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert layers == {name for name in linear if name.endswith(tuple(f".{one}" for one in targets)) or name in targets}
    assert any(value.abs().max() > 0 for key, value in state.items() if ".lora_B." in key)
    shown = f"num_inference_steps=3, {FAMILIES[family].PIPELINE_GUIDANCE.format(2)}).images"
    assert f'pipeline(prompt="red boots", {shown}' in (reference / "README.md").read_text()
    losses = column(reference, "val_loss")
    assert len(losses) == 3 and losses[-1] < losses[0]


def guidance(family, scale):
    """Its pipeline's arguments for a guidance scale without a negative prompt."""
    return {"true_cfg_scale": scale, "negative_prompt": ""} if family == "qwen_image" else {"guidance_scale": scale}


def test_the_validation_images_are_those_of_the_plain_pipeline(trainer_data, family, reference):
    pipeline = plain_pipeline(trainer_data[family])
    options = {"num_inference_steps": 3, "height": 16, "width": 16, **guidance(family, 2.0)}
    made = {"before": cells(reference / "validation/step-000000.png", 2, 16)}
    made["after"] = cells(reference / "validation/step-000006.png", 2, 16)
    for when, found in made.items():
        if when == "after":
            pipeline.load_lora_weights(reference)
        for seed, prompt in enumerate(("red boots", "a photo of a blue sandal on grass")):
            generator = torch.Generator().manual_seed(seed)
            wanted = np.asarray(pipeline(prompt=prompt, generator=generator, **options).images[0], int)
            assert np.abs(found[seed] - wanted).max() <= 1, when
    assert np.abs(made["after"] - made["before"]).max() > 1


def tiny_schnell():
    schnell = tiny_flux1(guidance_embeds=False)
    schnell.tokenizer_2.model_max_length = 256
    return schnell


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, build, length, words",
    [
        ("flux2_klein", None, 40, ["--max_sequence_length", 40]),
        ("flux1", None, 40, ["--max_sequence_length", 40]),
        ("flux1", tiny_schnell, 256, []),
    ],
    indirect=["family"],
)
def test_the_call_in_the_model_card_makes_the_validation_image(trainer_data, family, build, length, words, tmp_path):
    """Also where it reads fewer tokens than the pipeline would: the transformer sees their padding."""
    model, out = trainer_data[family], tmp_path / "run"
    if build:
        model = tmp_path / "model"
        torch.manual_seed(0)
        build().save_pretrained(model, safe_serialization=True)
    words = [*words, "--max_train_steps", 1, "--validation_steps", 1, "--num_validation_images", 1]
    assert train({**trainer_data, family: model}, out, *words, "--validation_prompt", "red boots", family=family) == 0
    call = re.search(r"^pipeline\((.*)\)\.images\[0\]", (out / "README.md").read_text(), re.MULTILINE)[1]
    options = eval(f"dict({call})") | {"height": 16, "width": 16}
    assert options["max_sequence_length"] == length
    pipeline, images = plain_pipeline(model, out), []
    for limit in (length, 512):
        generator, options["max_sequence_length"] = torch.Generator().manual_seed(0), limit
        images.append(np.asarray(pipeline(**options, generator=generator).images[0], int))
    (found,) = cells(out / "validation/step-000001.png", 1, 16)
    assert np.abs(found - images[0]).max() <= 1 < np.abs(found - images[1]).max()


def test_a_run_resumed_on_another_division_trains_the_same(trainer_data, family, reference, tmp_path):
    out = tmp_path / "run"
    words = ["--train_batch_size", 2, "--gradient_accumulation_steps", 4]
    assert train(trainer_data, out, *words, family=family) == 0
    assert difference(reference, out) < 1e-5
    forget_after(out, 3)
    assert train(trainer_data, out, family=family) == 0
    assert difference(reference, out) < 1e-5


@pytest.mark.very_slow
def test_two_processes_train_the_same(trainer_data, family, reference, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", "accelerate_configs/cpu_2proc.yaml", "--main_process_port", "0", "train_lora.py"]
    words = ["--train_batch_size", 2, "--gradient_accumulation_steps", 2]
    launch += flags(trainer_data, tmp_path / "two", *words, family=family)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.allclose(column(tmp_path / "two", "loss"), column(reference, "loss"), rtol=1e-5)
    assert difference(reference, tmp_path / "two") < 1e-5


def test_a_resumed_run_equals_the_uninterrupted_one(trainer_data, family, reference, tmp_path):
    out = tmp_path / "run"
    assert train(trainer_data, out, family=family) == 0
    assert same_bytes(reference, out)
    forget_after(out, 3)
    assert train(trainer_data, out, family=family) == 0
    assert same_bytes(reference, out)


def test_a_flag_of_the_other_kind_of_noise_is_refused(trainer_data, tmp_path):
    cases = [(["--zero_terminal_snr"], FAMILY), (["--snr_gamma", 5], FAMILY)]
    cases += [(["--timestep_shift", 3], "sd1"), (["--weighting_scheme", "mode"], "sd1")]
    for words, family in cases:
        with pytest.raises(UserError, match=f"^{' '.join(map(str, words))}(.0)?: does nothing for"):
            train(trainer_data, tmp_path / "run", *words, family=family)
        assert not (tmp_path / "run").exists()


@OF_FIRST
def test_a_key_of_the_other_kind_of_noise_in_a_recipe_is_warned_of(trainer_data, reference, tmp_path, caplog):
    """A recipe may serve several families."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text("snr_gamma: 5\nzero_terminal_snr: true\n")
    assert train(trainer_data, out, "--config", recipe, "--max_train_steps", 1, family=FAMILY) == 0
    for key in ("snr_gamma: 5.0", "zero_terminal_snr: True"):
        assert f"--config: `{key}` does nothing for Z-Image, whose noise is that of flow matching" in caplog.text
    assert column(out, "loss")[0] == column(reference, "loss")[0]
    assert "snr_gamma" not in (out / "README.md").read_text()


@OF_FIRST
def test_a_limit_of_tokens_cuts_captions_and_has_its_own_cache(trainer_data, reference, tmp_path, caplog):
    out = tmp_path / "run"
    assert train(trainer_data, out, "--max_sequence_length", 16, "--max_train_steps", 1, family=FAMILY) == 0
    assert column(out, "loss")[0] != column(reference, "loss")[0]
    assert "captions are longer than the tokenizer's limit" in caplog.text


@pytest.mark.parametrize("family, length, said", [("sd1", 40, "Stable Diffusion 1.x reads begin and end .*; give 77")])
def test_a_limit_of_tokens_that_a_family_can_not_have_is_refused(trainer_data, tmp_path, family, length, said):
    with pytest.raises(UserError, match=f"--max_sequence_length {length}: {said}"):
        train(trainer_data, tmp_path / "run", "--max_sequence_length", length, family=family)
    assert not (tmp_path / "run").exists()


@OF_FIRST
def test_a_lora_in_the_base_is_merged_before_training_and_named(trainer_data, reference, tmp_path):
    out, given = tmp_path / "run", f"{reference}:0.5"
    words = ["--base_lora", given, "--validation_steps", 6, "--num_validation_images", 1]
    words += ["--validation_prompt", "red boots"]
    assert train(trainer_data, out, *words, family=FAMILY) == 0
    pipeline = plain_pipeline(trainer_data[FAMILY], reference, weight=0.5)
    image = cells(out / "validation/step-000000.png", 1, 16)[0]
    assert apart(image, pipeline, "red boots", 0, 3) <= 1
    assert column(out, "loss")[0] != column(reference, "loss")[0]
    assert re.search(rf"{LORA}:0.5 \(sha256 [0-9a-f]{{16}}\)", read_lora(out)[1]["base_lora"])
    forget_after(out, 3)
    shutil.copytree(out, tmp_path / "resumed")
    for folder in (out, tmp_path / "resumed"):
        assert train(trainer_data, folder, *words, family=FAMILY) == 0
    assert same_bytes(out, tmp_path / "resumed")


@OF_FIRST
def test_a_base_lora_of_other_programs_is_merged(trainer_data, reference, tmp_path):
    """As ai-toolkit names layers, which makes Turbo's training adapter."""
    state = {key.replace("transformer.", "diffusion_model."): value for key, value in lora_of(reference).items()}
    save_file(state, tmp_path / "adapter.safetensors")
    assert train(trainer_data, tmp_path / "run", "--base_lora", tmp_path / "adapter.safetensors", family=FAMILY) == 0
    assert column(tmp_path / "run", "loss")[0] != column(reference, "loss")[0]


@pytest.mark.parametrize("family", OF_FLOW)
def test_an_alpha_beside_layers_of_diffusers_names_counts(family, tmp_path):
    model = build_tiny(tmp_path / "model", family)
    torch.manual_seed(0)
    layers = DiffusionPipeline.from_pretrained(model).transformer.named_modules()
    name, layer = next((name, one) for name, one in layers if name.endswith("to_k"))
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    key = f"transformer.{name}"
    states = [
        {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": 3 * up},
        {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(6.0)},
        {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(6.0)},
    ]
    for state in states:
        save_file(state, tmp_path / "lora.safetensors")
        one = lora_mix.Lora(tmp_path / "lora.safetensors", 1)
        lora_mix.check_lora(one, model, model, family)
        pipeline = DiffusionPipeline.from_pretrained(model)
        lora_mix.merge_loras(pipeline, [one])
        merged = pipeline.transformer.get_submodule(name).weight
        torch.testing.assert_close(merged, layer.weight + 3 * up @ down)


@OF_FIRST
def test_a_base_lora_that_can_not_be_merged_is_refused(trainer_data, reference, tmp_path):
    of_unet = {"unet.x.lora_A.weight": torch.ones(1), "unet.x.lora_B.weight": torch.ones(1)}
    save_file(of_unet, tmp_path / "unet.safetensors")
    save_file(lora_of(reference) | {"transformer.x.dora_scale": torch.ones(1)}, tmp_path / "dora.safetensors")
    cases = {"missing": "no such file", f"{reference}:0": "weight 0", tmp_path / "unet.safetensors": "has no layer of"}
    cases[tmp_path / "dora.safetensors"] = "a DoRA of another program"
    for given, said in cases.items():
        with pytest.raises(UserError, match=f"^--base_lora {given}.*{said}"):
            train(trainer_data, tmp_path / "run", "--base_lora", given, family=FAMILY)
    assert not (tmp_path / "run").exists()


@OF_FIRST
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_lora_on_a_rounded_base_learns_and_fits_the_whole_one(trainer_data, reference, tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    out, words = tmp_path / "run", ["--quantize_base", kind, "--validation_steps", 3, "--base_lora", f"{reference}:0.1"]
    assert train(trainer_data, out, *words, family=FAMILY) == 0
    losses = column(out, "val_loss")
    assert losses[-1] < losses[0] and losses[0] != column(reference, "val_loss")[0]
    assert read_lora(out)[1]["quantized_base"] == kind
    pipeline = plain_pipeline(trainer_data[FAMILY], out)
    assert lora_of(out).keys() == lora_of(reference).keys() and pipeline.get_list_adapters() == {
        "transformer": ["ours"]
    }
    shutil.copytree(out, tmp_path / "resumed")
    forget_after(tmp_path / "resumed", 3)
    assert train(trainer_data, tmp_path / "resumed", *words, family=FAMILY) == 0
    assert same_bytes(out, tmp_path / "resumed")


@pytest.mark.parametrize("family", [FAMILY, "flux1"], indirect=True)
def test_captions_of_a_rounded_encoder_change_a_little_and_have_their_own_cache(
    trainer_data, family, reference, tmp_path
):
    pytest.importorskip("bitsandbytes")
    kind = "int8" if family == FAMILY else "nf4"
    words = ["--quantize_text_encoder", kind, "--max_train_steps", 1]
    assert train(trainer_data, tmp_path / "run", *words, family=family) == 0
    loss, whole = column(tmp_path / "run", "loss")[0], column(reference, "loss")[0]
    assert loss != whole and loss == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_rounded_t5_reads_nearly_the_same(kind):
    """Its layer that asks for its weights' dtype, which rounded weights would mislead, stays as it is."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_ff": 128, "d_kv": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
    encoder = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval().requires_grad_(False)
    ids = torch.arange(1, 41)[None]
    whole = encoder(ids).last_hidden_state
    quantized.quantize(encoder, kind, torch.float32)
    apart = (encoder.to("cpu")(ids).last_hidden_state - whole).norm() / whole.norm()
    assert 0 < apart < 0.2 and encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32


def test_rounding_without_its_package_says_what_to_do(trainer_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="--quantize_base nf4: bitsandbytes can't be used .*requirements-cuda.txt"):
        train(trainer_data, tmp_path / "run", "--quantize_base", "nf4", family=FAMILY)
    assert not (tmp_path / "run").exists()


@MOSTLY_SLOW
def test_what_saves_memory_changes_nothing_but_rounding(trainer_data, family, reference, tmp_path):
    assert train(trainer_data, tmp_path / "checkpointing", "--gradient_checkpointing", family=family) == 0
    assert difference(reference, tmp_path / "checkpointing") < 1e-5
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the first precision that it was given
    assert train(trainer_data, tmp_path / "half", "--mixed_precision", "bf16", family=family) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert np.allclose(column(tmp_path / "half", "loss"), column(reference, "loss"), rtol=0.02)


@MOSTLY_SLOW
def test_blocks_on_the_cpu_change_nothing_and_a_resumed_run_may_have_others(trainer_data, family, tmp_path):
    words = ["--gradient_checkpointing", "--num_validation_images", 1, "--validation_prompt", "red boots"]
    words += ["--validation_steps", 3]
    for name, count in (("without", 0), ("with", 1)):
        assert train(trainer_data, tmp_path / name, *words, "--blocks_on_cpu", count, family=family) == 0
    assert same_bytes(tmp_path / "without", tmp_path / "with")
    grids = [cells(tmp_path / name / "validation/step-000006.png", 1, 16) for name in ("without", "with")]
    assert np.array_equal(*grids)
    forget_after(tmp_path / "with", 3)
    assert train(trainer_data, tmp_path / "with", *words, "--blocks_on_cpu", 2, family=family) == 0
    assert same_bytes(tmp_path / "without", tmp_path / "with")
    assert column(tmp_path / "without", "val_loss") == column(tmp_path / "with", "val_loss")


@pytest.mark.parametrize("family", OF_FLOW)
def test_one_step_is_refused_where_it_gives_nan(family, tmp_path):
    """A schedule that is stretched to an end of its own divides by what is left after the first step."""
    pipeline = OF_FLOW[family]()
    pipeline.scheduler.save_pretrained(tmp_path / "scheduler")
    pipeline.scheduler.set_timesteps(1, mu=1.0)
    if pipeline.scheduler.sigmas.isfinite().all():
        assert sampling.choose_steps(str(tmp_path), family, "num_inference_steps", 1) == 1
    else:
        with pytest.raises(UserError, match=f"^--num_inference_steps 1: {LABELS[family]} .*; give 2 or more"):
            sampling.choose_steps(str(tmp_path), family, "num_inference_steps", 1)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--blocks_on_cpu", 5], "--blocks_on_cpu 5: the transformer of Z-Image has 4 blocks here; give 4 at most"),
        (["--blocks_on_cpu", 2, "--shard"], "--shard: not with --blocks_on_cpu 2; leave that out, or leave --shard"),
    ],
)
def test_blocks_that_can_not_be_kept_on_the_cpu_are_refused(trainer_data, tmp_path, words, said):
    with pytest.raises(UserError, match=f"^{said}"):
        train(trainer_data, tmp_path / "run", "--gradient_checkpointing", *words, family=FAMILY)
    assert not (tmp_path / "run").exists()


def test_blocks_of_a_unet_are_not_kept_on_the_cpu(trainer_data, tmp_path):
    with pytest.raises(UserError, match=r"^--blocks_on_cpu 1: not for Stable Diffusion 1\.x, whose UNet"):
        train(trainer_data, tmp_path / "run", "--gradient_checkpointing", "--blocks_on_cpu", 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.very_slow
def test_four_images_are_overfitted(trainer_data, family, tmp_path):
    wider, layers = WIDER[family]
    sizes = smaller(family)
    sizes["transformer/config.json"] |= wider
    if FAMILIES[family].PADS_CAPTIONS:  # FLUX: a narrow model can't keep the noise of 64 or 128 numbers a patch
        sizes["vae/config.json"] = sizes["vae/config.json"] | {"latent_channels": 4}
    data = {**trainer_data, family: write_random_model(family, tmp_path / "model", torch.float32, sizes)}
    if FAMILIES[family].SAMPLES_POSTERIOR:  # which of a random VAE is so wide that there is nothing to learn
        path = data[family] / "vae/diffusion_pytorch_model.safetensors"
        state = load_file(path)
        last = "quant_conv.bias" if "quant_conv.bias" in state else "encoder.conv_out.bias"
        state[last][len(state[last]) // 2 :] = -20
        save_file(state, path, {"format": "pt"})
    words = "--max_train_samples 4 --max_train_steps 240 --learning_rate 5e-3 --rank 128 --caption_dropout 0"
    words += f" --resolution 32 --lora_layers {layers} --checkpointing_steps 0 --logging_steps 20"
    words += " --max_sequence_length 64" * FAMILIES[family].PADS_CAPTIONS
    assert train(data, tmp_path / "run", *words.split(), family=family) == 0
    losses = column(tmp_path / "run", "loss")
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.very_slow
def test_flux1_dev_is_trained_with_the_guidance_that_is_given(trainer_data, tmp_path):
    for name, words in (("default", []), ("same", ["--guidance_scale", 3.5]), ("other", ["--guidance_scale", 1])):
        words += ["--max_train_steps", 2, "--validation_steps", 1]
        assert train(trainer_data, tmp_path / name, *words, family="flux1") == 0
    assert same_bytes(tmp_path / "default", tmp_path / "same")
    for losses in ("loss", "val_loss"):
        assert column(tmp_path / "default", losses)[0] != column(tmp_path / "other", losses)[0]
    with pytest.raises(UserError, match="guidance_scale"):  # another training
        train(trainer_data, tmp_path / "other", "--max_train_steps", 3, "--guidance_scale", 2, family="flux1")


def test_a_guidance_scale_of_diffusers_commands_is_warned_of(trainer_data, tmp_path, caplog):
    assert train(trainer_data, tmp_path / "run", "--guidance_scale", 5, "--dry_run", family="z_image") == 0
    assert "--guidance_scale 5 does nothing for Z-Image" in caplog.text


def test_a_guidance_scale_that_is_refused_is_not_warned_of_too(trainer_data, tmp_path, caplog):
    for value in (5, 0):
        with pytest.raises(UserError, match=f"--guidance_scale {value}.0: does nothing for Stable Diffusion 1.x"):
            train(trainer_data, tmp_path / "run", "--guidance_scale", value, "--dry_run", family="sd1")
    assert "--guidance_scale" not in caplog.text


@MOSTLY_SLOW
def test_another_way_to_draw_times_trains_otherwise(trainer_data, family, reference, tmp_path):
    for words in (["--weighting_scheme", "logit_normal", "--logit_mean", 1], ["--timestep_shift", "none"]):
        out = tmp_path / words[1]
        assert train(trainer_data, out, *words, "--max_train_steps", 2, family=family) == 0
        assert column(out, "loss")[0] != column(reference, "loss")[0]


@MOSTLY_SLOW
def test_what_only_a_unet_can_be_trained_for_is_refused(trainer_data, family, tmp_path, capsys):
    name = LABELS[family]
    alone = f"not for {name}, of which the transformer alone is trained; leave it out"
    for word, problem in (("--train_text_encoder", alone), ("--output_kohya_format", f"it has no names for {name}")):
        with pytest.raises(UserError, match=f"^{word}: {problem}"):
            train(trainer_data, tmp_path / "run", word, "--dry_run", family=family)
    with pytest.raises(UserError, match=f"^--method full: not for {name}, .*only a LoRA is .*leave --method out"):
        teach(trainer_data, tmp_path / "run", "--method", "full", "--dry_run", family=family)
    capsys.readouterr()
    with pytest.raises(UserError, match=f"^--train_token <sks>: {alone}"):  # first of all, before the settings
        teach(trainer_data, tmp_path / "run", "--train_token", "<sks>", "--shard", family=family)
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_images_with_a_lora_are_those_of_the_plain_pipeline(trainer_data, family, reference):
    model, prompts = str(trainer_data[family]), ["red boots", "a photo of a blue sandal on grass"]
    parts = SamplerParts(model, family, (lora_mix.parse_lora(f"{reference}:0.5"),))
    how, execution = Sampling(3, 2.0, 16, negative_prompt="grey"), Execution(torch.device("cpu"), torch.float32, 2)
    lora_mix.check_lora(parts.loras[0], model, model, family)
    requests = [ImageRequest(prompt, seed) for seed, prompt in enumerate(prompts)]
    made = generate_images(load_sampler(parts, how, execution, prompts), requests)
    pipeline = plain_pipeline(model, reference, weight=0.5)
    options = {"num_inference_steps": 3, "height": 16, "width": 16, **guidance(family, 2.0)}
    if family == "flux1":  # of which negative prompts are not supported here
        pass
    elif family == "flux2_klein":  # its pipeline takes no text for it
        options["negative_prompt_embeds"] = pipeline.encode_prompt("grey")[0]
    else:
        options["negative_prompt"] = "grey"
    for one, request in zip(made, requests):
        generator = torch.Generator().manual_seed(request.seed)
        wanted = pipeline(prompt=request.prompt, generator=generator, **options).images[0]
        assert np.abs(np.asarray(one.image, int) - np.asarray(wanted, int)).max() <= 1 and one.is_finite


@OF_FIRST
def test_text_encoders_may_be_rounded_and_are_gone_before_the_transformer_is_loaded(
    trainer_data, reference, monkeypatch
):
    pytest.importorskip("bitsandbytes")
    model, encoders, left = str(trainer_data[FAMILY]), [], []
    load_texts, load_denoiser = models.load_text_encoders, models.load_denoiser

    def note_encoders(*args):
        tokenizers, loaded = load_texts(*args)
        encoders.extend(map(weakref.ref, loaded))
        return tokenizers, loaded

    def note_what_is_left(*args):
        left.append([one() for one in encoders])
        return load_denoiser(*args)

    monkeypatch.setattr(models, "load_text_encoders", note_encoders)
    monkeypatch.setattr(models, "load_denoiser", note_what_is_left)
    how, execution = Sampling(3, 0.0, 16), Execution(torch.device("cpu"), torch.float32, 1)
    loras = (lora_mix.parse_lora(str(reference)),)
    read = []
    for kind in (None, "nf4"):
        parts = SamplerParts(model, FAMILY, loras, reading=models.TextReading(quantized=kind))
        read.append(load_sampler(parts, how, execution, ["red boots"]).features["red boots"]["embeds"])
    assert left == [[None], [None, None]]
    apart = (read[1] - read[0]).norm() / read[0].norm()
    assert 0 < apart < 0.5


@OF_FIRST
def test_what_images_of_one_prompt_share_is_read_once(trainer_data, family, monkeypatch):
    read, at_once = [], Execution(torch.device("cpu"), torch.float32, 3)
    sampler = load_sampler(SamplerParts(str(trainer_data[family]), family), Sampling(1, 2.0, 16), at_once, ["boots"])
    sampler.cores, find = None, FeatureFile.__getitem__
    monkeypatch.setattr(FeatureFile, "__getitem__", lambda self, text: read.append(text) or find(self, text))
    assert len(generate_images(sampler, [ImageRequest("boots", seed) for seed in range(3)])) == 3
    assert sorted(read) == ["", "boots"]


def test_images_of_a_model_that_stays_on_the_cpu_are_the_same(trainer_data, family):
    """Its parts come to the device one at a time; the device is the CPU here, too."""
    made, parts = [], SamplerParts(str(trainer_data[family]), family)
    for savers in ((), ("cpu_offload",)):
        execution = Execution(torch.device("cpu"), torch.float32, 2, savers)
        sampler = load_sampler(parts, Sampling(3, 2.0, 16), execution, ["red boots"])
        assert {one.is_meta for one in sampler.denoiser.parameters()} == {bool(savers)}
        made.append(generate_images(sampler, [ImageRequest("red boots", 1)])[0].image)
    assert np.array_equal(*made)


@pytest.fixture(scope="module")
def smooth(trainer_data, tmp_path_factory):
    """The same with a VAE of larger steps, of whose images of 16 pixels not all are rejected as noise."""
    model = write_random_model(FAMILY, tmp_path_factory.mktemp("smooth") / "model", torch.float32, smaller(FAMILY))
    return {**trainer_data, FAMILY: model}


def test_a_subject_is_taught_beside_class_images_that_the_model_draws(smooth, tmp_path):
    words = [*PRIOR, "--class_data_dir", tmp_path / "class", "--num_class_images", 2]
    assert teach(smooth, tmp_path / "run", *words, family=FAMILY) == 0
    pipeline = plain_pipeline(smooth[FAMILY])
    for number in range(2):
        image = Image.open(tmp_path / f"class/{number:06d}.png")
        assert apart(image, pipeline, "a photo of shoes", int(image.info["seed"]), 3) <= 1
    assert all(key.startswith("transformer.") for key in lora_of(tmp_path / "run"))
    assert len(column(tmp_path / "run", "prior_loss")) == 6
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    forget_after(tmp_path / "resumed", 3)
    assert teach(smooth, tmp_path / "resumed", *words, family=FAMILY) == 0
    assert same_bytes(tmp_path / "run", tmp_path / "resumed")


def test_a_mask_weights_the_loss_of_a_transformer(trainer_data, tmp_path):
    (tmp_path / "masks").mkdir()
    for path in trainer_data["subject"].iterdir():
        mask = Image.new("L", (32, 32))
        mask.paste(255, (0, 0, 32, 16))
        mask.save(tmp_path / "masks" / path.name)
    for name, more in (("plain", []), ("masked", ["--mask_loss", tmp_path / "masks"])):
        assert teach(trainer_data, tmp_path / name, *more, "--max_train_steps", 2, family=FAMILY) == 0
    assert column(tmp_path / "plain", "loss")[0] != column(tmp_path / "masked", "loss")[0]


@OF_FIRST
def test_generated_images_and_their_records_are_those_of_the_pipeline(smooth, reference, tmp_path, capsys):
    """Without flags of the sampling: Turbo's own."""
    out, model = tmp_path / "set", smooth[FAMILY]
    words = ["--pretrained_model_name_or_path", model, "--lora", reference, "--allow_other_base", "--resolution", 16]
    words += ["--max_retries", 100]
    assert make_images(*words, "--prompt", "red boots", "--num_images", 2, "--output_dir", out) == 0
    pipeline = plain_pipeline(model, reference)
    records = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    for record in records:
        assert apart(Image.open(out / record["file_name"]), pipeline, "red boots", record["seed"], 8) <= 1
        shown = record["steps"], record["guidance_scale"], record["scheduler"]
        assert shown == (8, 0.0, "flow_match_euler") and record["model"] == str(model)
    capsys.readouterr()
    assert make_images("--config", out / "config.yaml") == 0 and "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["--scheduler", "ddim"], "--scheduler ddim: not for Z-Image; choose from flow_match_euler"),
        (["--compile"], "--compile: not for Z-Image"),
        (["--negative_prompt", "grey"], "--negative_prompt grey: does nothing at a guidance scale of 0; give"),
        (["--prediction_type", "sample"], "--prediction_type sample: not for Z-Image"),
    ],
)
def test_what_images_of_a_transformer_can_not_have_is_refused(trainer_data, tmp_path, words, said):
    model = ["--pretrained_model_name_or_path", trainer_data[FAMILY], "--prompt", "boots"]
    with pytest.raises(UserError, match=re.escape(said)):
        make_images(*model, "--output_dir", tmp_path / "set", *words)
    assert not (tmp_path / "set").exists()


def test_a_negative_prompt_of_flux1_is_refused(trainer_data):
    words = ["--pretrained_model_name_or_path", trainer_data["flux1"], "--prompt", "boots", "--dry_run"]
    with pytest.raises(UserError, match="^--negative_prompt grey: not supported here for FLUX.1; leave it out"):
        make_images(*words, "--negative_prompt", "grey")


@pytest.mark.parametrize(
    "family, pipeline",
    [("flux1", tiny_flux1(guidance_embeds=False)), ("flux2_klein", tiny_flux2_klein(distilled=True))],
    indirect=["family"],
)
def test_guidance_of_a_distilled_model_is_refused(trainer_data, family, pipeline, tmp_path, caplog):
    model, name = tmp_path / "model", LABELS[family]
    pipeline.save_pretrained(model, safe_serialization=True)
    words = ["--pretrained_model_name_or_path", model, "--prompt", "boots", "--dry_run"]
    own, none = sampling.default_sampling(str(model))[1], f"does nothing for a {name} without guidance; leave it out"
    assert make_images(*words, "--guidance_scale", own) == 0
    with pytest.raises(UserError, match=f"^--guidance_scale 4: {none}"):
        make_images(*words, "--guidance_scale", 4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("guidance_scale: 4\n")
    assert make_images(*words, "--config", recipe) == 0
    assert f"--config: `guidance_scale: 4` {none}" in caplog.text
    with pytest.raises(UserError, match=f"^--negative_prompt grey: (not supported here for {name}; |{none})"):
        make_images(*words, "--negative_prompt", "grey")
    data = {**trainer_data, family: model}
    with pytest.raises(UserError, match=f"^--validation_guidance_scale 4: {none}"):
        train(data, tmp_path / "run", "--validation_guidance_scale", 4, family=family)
    assert train(data, tmp_path / "run", "--guidance_scale", 1, "--dry_run", family=family) == 0
    assert f"--guidance_scale 1 does nothing for {name} that reads none" in caplog.text


def test_a_unet_is_not_sampled_by_the_scheduler_of_flow_matching(tmp_path):
    words = ["--pretrained_model_name_or_path", "demo", "--prompt", "boots", "--output_dir", tmp_path / "set"]
    with pytest.raises(UserError, match=r"--scheduler flow_match_euler: not for Stable Diffusion 1\.x; choose"):
        make_images(*words, "--scheduler", "flow_match_euler")


@MOSTLY_SLOW
def test_photos_teach_a_subject_which_generate_draws(trainer_data, family, tmp_path):
    """By the commands that a user gives."""
    run, words = tmp_path / "run", ["--max_train_steps", 2, *PRIOR]
    assert teach(trainer_data, run, *words, family=family) == 0
    assert any(value.any() for key, value in lora_of(run).items() if ".lora_B." in key)
    command = f"--pretrained_model_name_or_path {trainer_data[family]} --lora {run} --num_images 2 --resolution 16"
    command += f" --num_inference_steps 2 --guidance_scale 2 --max_retries 0 --output_dir {tmp_path / 'set'}"
    with pytest.raises(UserError, match="rejected .*noise"):  # which is all that so small a model draws
        make_images(*command.split(), "--prompt", "a photo of <sks> shoes")
    assert len(list((tmp_path / "set").rglob("*.png"))) == 2


def test_a_lora_of_a_unet_is_refused(trainer_data, tmp_path):
    model = str(trainer_data[FAMILY])
    save_file(
        {"unet.x.lora_A.weight": torch.ones(1), "unet.x.lora_B.weight": torch.ones(1)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(UserError, match="has no layer of .*, Z-Image"):
        lora_mix.check_lora(lora_mix.parse_lora(str(tmp_path / "x.safetensors")), model, model, FAMILY)


@pytest.mark.parametrize("made_for", [*OF_FLOW, "sd1"])
def test_a_lora_of_another_family_is_refused_before_anything_is_loaded(trainer_data, made_for, tmp_path):
    """Families share names and sizes of some layers, which diffusers would load without a word on the others."""
    own = str(trainer_data[made_for])
    denoiser = models.load_denoiser(own, torch.float32)
    targets = tuple(FAMILIES[made_for].lora_targets(models.denoiser_config(own)))
    lora.attach_lora(denoiser, lora.Adapter(2, 2, 0.0, targets, False, False))
    lora.save_lora(tmp_path, lora.lora_state(denoiser), denoiser, (), {"base_model": own})
    given = lora_mix.parse_lora(str(tmp_path))
    lora_mix.check_lora(given, own, own, made_for)
    for family in {*OF_FLOW, "sd1"} - {made_for}:
        model = str(trainer_data[family])
        said = rf"^--lora \S+: [^\n]* {model}\b[^\n]*{LABELS[family]}[^\n]*; take the base model .* on, {own}$"
        with pytest.raises(UserError, match=said):
            lora_mix.check_lora(given, model, model, family)


def test_a_lora_of_kohya_for_flux1_changes_its_layer(trainer_data, tmp_path):
    model, layer = str(trainer_data["flux1"]), "lora_unet_double_blocks_0_img_attn_proj"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    state = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(1.0)}
    save_file(state, tmp_path / "x.safetensors")
    given = lora_mix.parse_lora(f"{tmp_path / 'x.safetensors'}:0.5")
    lora_mix.check_lora(given, model, model, "flux1")
    execution = Execution(torch.device("cpu"), torch.float32, 1)
    plain, mixed = (
        load_sampler(SamplerParts(model, "flux1", loras), Sampling(1, 3.5, 16), execution, ["boots"]).denoiser
        for loras in ((), (given,))
    )
    name = "transformer_blocks.0.attn.to_out.0.weight"
    change = mixed.get_parameter(name) - plain.get_parameter(name)
    assert torch.allclose(change, 0.5 * 0.5 * up @ down, atol=1e-5)  # alpha 1 of rank 2, at half weight


def test_a_lora_for_another_width_is_refused(trainer_data, tmp_path):
    model, layer = str(trainer_data[FAMILY]), "transformer.layers.0.attention.to_q"
    state = {f"{layer}.lora_A.weight": torch.ones(2, 48), f"{layer}.lora_B.weight": torch.ones(48, 2)}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"to_q\.lora_A\.weight for 48 numbers, not the 32 of "):
        lora_mix.check_lora(lora_mix.parse_lora(str(tmp_path / "x.safetensors")), model, model, FAMILY)


@MOSTLY_SLOW
def test_a_dry_run_needs_configs_alone(trainer_data, family, tmp_path, capsys):
    model = write_configs(family, tmp_path / "model")
    data = {**trainer_data, family: model}
    words = ["--dry_run", "--resolution", 1024, "--gradient_checkpointing", "--blocks_on_cpu", 20]
    assert train(data, tmp_path / "run", *words, family=family) == 0
    shown = capsys.readouterr().out
    assert LABELS[family] in shown and re.search(FROZEN[family], shown) and not (tmp_path / "run").exists()
    assert re.search(r"in the CPU's memory: [\d,]+ MiB of weights, of 20 of the \d\d blocks", shown)
    assert ("at most" in re.search(r"latents, (.*) of captions", shown)[1]) != FAMILIES[family].PADS_CAPTIONS
