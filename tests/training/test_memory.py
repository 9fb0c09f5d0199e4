"""What --dry_run estimates, beside the published numbers and beside real training steps."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import check_environment
import train_lora
from families import models, offloading, quantized, sampling
from families.lora import Adapter
from families.names import FAMILIES
from families.published import write_configs
from families.sampler import Sampling
from tests.tiny_models import OF_FLOW, build_tiny
from training import build, dry_run, memory, setup, starting
from training.memory import Load
from utils import devices

MIB = 2**20


ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = str(models.DEMO_MODEL)
KLEIN_9B = {  # what it has otherwise than 4B
    "transformer/config.json": {
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
    },
    "text_encoder/config.json": {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
}
SCHNELL = {  # what it has otherwise than FLUX.1 dev
    "transformer/config.json": {"guidance_embeds": False},
    "scheduler/scheduler_config.json": {"shift": 1.0, "use_dynamic_shifting": False},
    "tokenizer_2/tokenizer_config.json": {"model_max_length": 256},
}
UNET, TEXT = 4_389_348, 684_032  # the demo's weights


def estimate(model=DEMO, family="sd1", **settings):
    settings = {"adapter": Adapter(8, 16), "micro_batch": 2, "height": 128, "width": 128} | settings
    return memory.estimate_memory(model, family, Load(**settings))


def test_parameters_are_the_published_ones(tmp_path):
    sd15 = str(write_configs("sd1", tmp_path / "sd15"))
    counts = memory.count_parameters(sd15, models.model_family(sd15), Adapter(8, 16), False)
    assert counts == {"unet": (1_594_368, 859_520_964), "text_encoder": (0, 123_060_480), "vae": (0, 83_653_863)}
    sdxl = str(write_configs("sdxl", tmp_path / "sdxl"))
    assert models.model_family(sdxl) == "sdxl"
    counts = memory.count_parameters(sdxl, "sdxl", Adapter(8, 16), True)
    assert [count.total for count in counts.values()] == [2_567_463_684, 123_060_480, 694_659_840, 83_653_863]
    assert counts["text_encoder"].trainable == 12 * 4 * 2 * 8 * 768
    z_image = str(write_configs("z_image", tmp_path / "z_image"))
    counts = memory.count_parameters(z_image, models.model_family(z_image), Adapter(8, 16), False)
    # diffusers' documentation shows 11.46 GiB for the transformer in half precision, and 7.49 for the text encoder
    assert [round(2 * count.total / 2**30, 2) for count in counts.values()] == [11.46, 7.49, 0.16]
    klein = [str(write_configs("flux2_klein", tmp_path / f"klein{len(one)}", one)) for one in ({}, KLEIN_9B)]
    counts = [memory.count_parameters(one, "flux2_klein", Adapter(8, 16), False) for one in klein]
    assert [one["transformer"].total for one in counts] == [3_875_544_576, 9_078_581_248]
    assert counts[0]["text_encoder"].total == 4_022_468_096
    qwen = str(write_configs("qwen_image", tmp_path / "qwen"))
    counts = memory.count_parameters(qwen, models.model_family(qwen), Adapter(8, 16), False)
    assert {name: round(one.total / 1e9, 2) for name, one in counts.items()} == {
        "transformer": 20.43,
        "text_encoder": 8.29,
        "vae": 0.13,
    }
    flux = [str(write_configs("flux1", tmp_path / f"flux{len(one)}", one)) for one in ({}, SCHNELL)]
    counts = [memory.count_parameters(one, models.model_family(one), Adapter(8, 16), False) for one in flux]
    assert [one["transformer"].total for one in counts] == [11_901_408_320, 11_891_178_560]
    assert [count.total for count in list(counts[0].values())[1:]] == [123_060_480, 4_762_310_656, 83_819_683]
    captions = [models.caption_bytes(one, "flux1", None, torch.bfloat16) for one in flux]
    assert captions == [2 * (512 * 4096 + 768), 2 * (256 * 4096 + 768)]
    sd21 = str(write_configs("sd2", tmp_path / "sd21"))
    counts = memory.count_parameters(sd21, models.model_family(sd21), None, False)
    assert [count.total for count in counts.values()] == [865_910_724, 340_387_840, 83_653_863]


def test_without_an_adapter_all_weights_of_what_is_trained_count():
    counts = memory.count_parameters(DEMO, "sd1", None, False)
    assert counts["unet"] == (UNET, UNET) and counts["text_encoder"] == (0, TEXT) and counts["vae"].trainable == 0
    assert memory.count_parameters(DEMO, "sd1", None, True)["text_encoder"] == (TEXT, TEXT)
    training = estimate(adapter=None, ema=True)["training"]
    assert training["frozen weights"] == 0
    assert training["trained weights"] == training["gradients"] == training["EMA"] == 4 * UNET
    assert training["optimizer"] == 8 * UNET


def test_the_memory_of_sd15_on_a_small_gpu_is_estimated_from_configs_alone(tmp_path):
    model = str(write_configs("sd1", tmp_path))
    half = {"dtype": torch.float16, "autocast": torch.float16}
    phases = estimate(model, height=512, width=512, **half)
    training, (name, peak) = phases["training"], memory.peak_phase(phases)
    assert training["frozen weights"] == 2 * 859_520_964 and training["optimizer"] == 8 * 1_594_368
    assert name == "training" and peak == sum(training.values()) and 1.8 < peak / 2**30 < 3.5


@pytest.mark.parametrize("family", OF_FLOW)
def test_the_memory_of_a_transformer_is_estimated_from_configs_alone(tmp_path, family):
    model = build_tiny(tmp_path, family)
    phases = estimate(model, family, height=64, width=64)
    weights = sum(part.numel() for part in models.build_part(model, "transformer").parameters())
    assert phases["training"]["frozen weights"] == 4 * weights and phases["training"]["activations"] > 0
    larger = estimate(model, family, height=128, width=128)["training"]
    assert larger["activations"] > 1.5 * phases["training"]["activations"]


def test_a_rounded_base_takes_a_quarter_or_a_half_of_its_weights_in_half_precision(tmp_path):
    transformer = models.build_part(str(write_configs("z_image", tmp_path)), "transformer", torch.bfloat16)
    whole = sum(weight.nbytes for weight in transformer.parameters())
    left = {kind: (whole - quantized.saved_bytes(transformer, kind)) / 2**30 for kind in quantized.BYTES}
    assert round(whole / 2**30, 2) == 11.46 and left == pytest.approx({"nf4": 2.97, "int8": 5.74}, abs=0.01)


def test_a_rounded_base_counts_in_the_estimate(tmp_path):
    model = build_tiny(tmp_path, "z_image")
    plain, rounded = (estimate(model, "z_image", quantized=kind, height=64, width=64) for kind in (None, "nf4"))
    assert rounded["training"]["frozen weights"] < plain["training"]["frozen weights"]
    smaller = estimate(model, "z_image", quantized_texts="nf4", height=64, width=64)
    assert smaller["text encoding"]["weights"] < plain["text encoding"]["weights"]
    assert rounded["training"]["unpacked weights"] > 0 and "unpacked weights" in plain["training"]


@pytest.mark.very_slow
@pytest.mark.parametrize("family, flags", check_environment.NEEDED)
def test_what_check_environment_says_a_model_takes_is_estimated(tmp_path, family, flags):
    model = str(write_configs(family, tmp_path))
    args = train_lora.parse_args([*flags.split(), "--train_batch_size", "1"])
    args.resolution = sampling.native_size(model)
    args.validation_inference_steps, args.validation_guidance_scale = sampling.default_sampling(model)
    layers = tuple(setup.default_layers(model, family))
    recipe = build.Recipe(Adapter(8, 16, targets=layers), 1e-4, 1e-4, starting.read_optimizer(args), 0)
    precision = devices.Precision("bf16", torch.bfloat16, "as on a GPU")
    load = setup.read_load(args, recipe, precision, [(args.resolution, args.resolution)], 1)
    phases = memory.estimate_memory(model, family, dataclasses.replace(load, vae_batch=1))
    needed = check_environment.NEEDED[family, flags]
    assert memory.peak_phase(phases)[1] / 2**30 == pytest.approx(needed, abs=0.06)


def test_check_environment_knows_every_family_of_which_it_has_published_configs():
    assert {family for family, _ in check_environment.NEEDED} == FAMILIES.keys() - {"sd2"}


def test_weights_and_optimizer_by_their_sizes():
    training = estimate(optimizer="prodigy", ema=True)["training"]
    assert training["frozen weights"] == 4 * UNET
    assert training["trained weights"] == training["gradients"] == training["EMA"] == 4 * 77_056
    assert training["optimizer"] == 16 * 77_056
    half = estimate(dtype=torch.bfloat16, autocast=torch.bfloat16, optimizer="adamw8bit")["training"]
    assert half["frozen weights"] == 2 * UNET and half["trained weights"] == 4 * 77_056
    assert half["optimizer"] == 2 * 77_056 and half["EMA"] == 0
    assert 0.4 < half["activations"] / training["activations"] < 0.8


def test_activations_grow_with_the_batch_and_the_area_and_shrink_by_checkpointing():
    base = estimate(height=512, width=512)["training"]["activations"]
    assert estimate(height=512, width=512, micro_batch=8)["training"]["activations"] == pytest.approx(
        4 * base, rel=0.02
    )
    wide = estimate(height=512, width=1024)["training"]["activations"]
    assert 1.8 * base < wide < 2.2 * base  # and not 4 times: no attention matrix is kept
    plain = estimate(height=512, width=512, gradient_checkpointing=False)["training"]["activations"]
    assert plain > 2 * base


def test_a_run_needs_as_much_as_its_largest_phase():
    phases = estimate(micro_batch=16)
    assert list(phases) == ["text encoding", "VAE encoding", "training"]
    assert phases["VAE encoding"]["weights"] == 4 * 1_797_063
    assert memory.peak_phase(phases) == ("training", sum(phases["training"].values()))
    assert memory.peak_phase(estimate(vae_batch=64))[0] == "VAE encoding"


def test_trained_text_encoders_count(tmp_path):
    without, with_it = estimate()["training"], estimate(train_text_encoder=True)["training"]
    assert with_it["frozen weights"] - without["frozen weights"] == 4 * TEXT
    assert with_it["optimizer"] - without["optimizer"] == 8 * 24_576
    assert with_it["activations"] > without["activations"]
    both = estimate(
        build_tiny(tmp_path, "sdxl"), "sdxl", train_text_encoder=True, adapter=Adapter(8, 16, use_dora=True)
    )
    assert both["text encoding"]["weights"] < both["training"]["frozen weights"]


STEPS = """
import psutil, torch
from families import lora, models
from utils import devices

torch.manual_seed(0)
model = models.resolve_model("demo")
unet = models.load_denoiser(model, torch.float32).train()
trained = lora.attach_lora(unet, lora.Adapter(8, 16))
optimizer = torch.optim.AdamW(trained)

def step(batch):
    out = unet(torch.randn(batch, 4, 16, 16), torch.randint(0, 1000, (batch,)), torch.randn(batch, 32, 128)).sample
    torch.nn.functional.mse_loss(out, torch.randn_like(out)).backward()
    optimizer.step()

step(1)
before = psutil.Process().memory_info().rss
for checkpointing in (True, False):  # the one that needs more last, since only the highest mark is kept
    (unet.enable_gradient_checkpointing if checkpointing else unet.disable_gradient_checkpointing)()
    step(32)
    print(round(devices.peak_memory_gib(torch.device('cpu')) * 2**30) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted otherwise elsewhere")
def test_a_real_step_takes_the_memory_that_was_estimated():
    # glibc would keep what was freed, in pieces; this has it give everything back
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for line, checkpointing in zip(done.stdout.splitlines()[-2:], (True, False)):
        settings = {"micro_batch": 32, "gradient_checkpointing": checkpointing}
        expected = estimate(**settings)["training"]["activations"]
        assert int(line) / MIB == pytest.approx(expected / MIB, rel=0.25)


def test_each_of_several_devices_holds_its_share_and_the_blocks_that_compute():
    whole, half = (estimate(adapter=None, shards=shards)["training"] for shards in (1, 2))
    for name in ("frozen weights", "trained weights", "gradients", "optimizer"):
        assert half[name] == whole[name] // 2
    assert half["activations"] == whole["activations"] and not whole["gathered weights"]
    assert 0 < half["gathered weights"] < whole["trained weights"] / 2


def test_checkpointing_and_blocks_on_the_cpu_are_chosen_as_far_as_they_are_needed(caplog):
    """Of 4 blocks of 20, with 300 of activations or 20, beside 100 of weights."""

    def estimate_with(checkpointing):
        return {"training": {"frozen weights": 100, "activations": 20 if checkpointing else 300}}

    assert dry_run.choose_savers(450, 4 * [20], estimate_with) == (False, 0)
    assert dry_run.choose_savers(440, 4 * [20], estimate_with) == (True, 0)
    assert dry_run.choose_savers(134, 4 * [20], estimate_with) == (True, 0)
    assert dry_run.choose_savers(133, 4 * [20], estimate_with) == (True, 3)  # of which 2 are on the device at once
    assert dry_run.choose_savers(111, 4 * [20], estimate_with) == (True, 4) and not caplog.records
    assert dry_run.choose_savers(88, 4 * [20], estimate_with) == (True, 4) and "some 0.0 GiB" in caplog.text
    caplog.clear()
    assert dry_run.choose_savers(110, [], estimate_with) == (True, 0) and "--quantize_base nf4" in caplog.text


@pytest.mark.parametrize(
    "phase, advice",
    [
        ("text encoding", "--quantize_text_encoder nf4"),
        ("VAE encoding", "a lower --resolution"),
        ("validation", "--num_validation_images 0"),
    ],
)
def test_where_more_blocks_on_the_cpu_do_not_help_what_helps_the_largest_phase_is_named(caplog, phase, advice):
    phases = {phase: {"weights": 90}, "training": {"frozen weights": 120}}
    assert dry_run.choose_savers(80, 6 * [20], lambda on: phases)[1] == 4
    (said,) = (record.getMessage() for record in caplog.records)
    assert f"{phase} needs some" in said and f"changes the result: {advice}" in said
    assert ("--quantize_base" in said) == (phase == "validation")


@pytest.mark.parametrize("family", ["sd1", *OF_FLOW])
def test_a_validation_image_counts_where_one_is_made(tmp_path, family):
    model = DEMO if family == "sd1" else build_tiny(tmp_path, family)
    small, large = (
        estimate(model, family, height=64, width=64, sampling=Sampling(2, 4.0, side))["validation"]
        for side in (64, 256)
    )
    vae = models.build_part(model, "vae")
    assert small["weights of the VAE"] == 4 * sum(one.numel() for one in vae.parameters())
    assert large["activations"] > 4 * small["activations"] and small["gradients"] == 0
    assert large["activations"] >= 4 * 3 * 256**2  # the image itself
    trained = estimate(model, family, height=64, width=64)
    assert "validation" not in trained and small["frozen weights"] == trained["training"]["frozen weights"]


@pytest.mark.parametrize(
    "flags, counts", [("", True), ("--num_validation_images 0", False), ("--validation_steps 0", False)]
)
def test_the_memory_of_a_validation_counts_if_it_makes_images(flags, counts):
    args = train_lora.parse_args(["--resolution", "128", *flags.split()])
    args.validation_inference_steps, args.validation_guidance_scale = 2, 4.0
    recipe = build.Recipe(Adapter(8, 16), 1e-4, 1e-4, starting.read_optimizer(args), 0)
    load = setup.read_load(args, recipe, devices.choose_precision(torch.device("cpu")), [(128, 64)], 1)
    assert bool(load.sampling) == counts and (not counts or load.sampling.size == 128)


@pytest.mark.parametrize(
    "more, kept", [("", 3), ("--compile", 0), ("--quantize_base nf4", 0), ("--blocks_on_cpu 1", 1)]
)
def test_memory_auto_keeps_blocks_on_the_cpu_where_nothing_else_changes(tmp_path, monkeypatch, caplog, more, kept):
    """With a GPU in words alone, whose free memory is what 3 of 4 blocks on the CPU leave."""
    model = build_tiny(tmp_path, "z_image")
    args = train_lora.parse_args(["--memory", "auto", *more.split()])
    gpu = SimpleNamespace(device=torch.device("cuda"), is_main_process=True, num_processes=1)
    precision = SimpleNamespace(dtype=torch.float32)
    start = SimpleNamespace(accelerator=gpu, model=model, family="z_image", precision=precision)
    recipe = build.Recipe(
        Adapter(8, 16), 1e-4, 1e-4, starting.read_optimizer(args), 0, blocks_on_cpu=args.blocks_on_cpu
    )

    def estimate_now(micro):
        settings = {"gradient_checkpointing": args.gradient_checkpointing, "blocks_on_cpu": args.blocks_on_cpu}
        phases = estimate(model, "z_image", micro_batch=micro, height=64, width=64, **settings)
        return {"training": phases["training"]}

    args.blocks_on_cpu, given = 3, args.blocks_on_cpu
    free = memory.peak_phase(estimate_now(1))[1] / 0.9 + 10
    args.blocks_on_cpu = given
    monkeypatch.setattr(devices, "device_memory", lambda device: (2 * free, free))
    found = setup.fit_memory(args, recipe, start, estimate_now)
    assert found.blocks_on_cpu == args.blocks_on_cpu == kept
    assert found.gradient_checkpointing and args.gradient_checkpointing
    assert ("; --blocks_on_cpu 3" in caplog.text) == (kept == 3)


@pytest.mark.parametrize("family", OF_FLOW)
def test_blocks_on_the_cpu_leave_the_device_but_for_two(tmp_path, family):
    model = build_tiny(tmp_path, family)
    plain, kept = (estimate(model, family, height=64, width=64, blocks_on_cpu=count) for count in (0, 3))
    sizes = offloading.block_bytes(models.build_part(model, "transformer"))
    of_three = offloading.spread(sizes, 3)
    assert plain["training"]["frozen weights"] - kept["training"]["frozen weights"] == sum(of_three)
    assert kept["training"]["brought weights"] == 2 * max(of_three) and plain["training"]["brought weights"] == 0
    assert plain["training"]["activations"] == kept["training"]["activations"]
    shown = estimate(model, family, height=64, width=64, blocks_on_cpu=3, sampling=Sampling(2, 4.0, 64))["validation"]
    assert shown["frozen weights"] == kept["training"]["frozen weights"] and shown["brought weights"] > 0


def test_the_largest_batch_divides_the_share_and_fits():
    def estimate_at(size: int) -> dict:
        return {"encoding": {"weights": 250}, "training": {"weights": 100, "activations": 50 * size}}

    assert dry_run.largest_batch(16, 10_000, estimate_at) == 16
    assert dry_run.largest_batch(16, 600, estimate_at) == 8  # 0.9 x 600 leaves room for 8.8
    assert dry_run.largest_batch(12, 400, estimate_at) == 4
    assert dry_run.largest_batch(16, 10, estimate_at) == 1  # the guard against running out has the last word


def test_a_dry_run_needs_configs_alone(tmp_path, capsys):
    model = str(write_configs("sd1", tmp_path / "sd15"))
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), name == "a" and "red" or "blue").save(tmp_path / "data" / f"{name}.png")
        (tmp_path / "data" / f"{name}.txt").write_text(f"an image of {name}")
    words = ["--pretrained_model_name_or_path", model, "--train_data_dir", str(tmp_path / "data"), "--dry_run"]
    train_lora.main(train_lora.parse_args([*words, "--output_dir", str(tmp_path / "run")]))
    said = capsys.readouterr().out
    assert "1,594,368 trainable" in said and "2 images, 0 held out" in said and "16 a step = 2 at once x 8" in said
    assert not (tmp_path / "run").exists()
