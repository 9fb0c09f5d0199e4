"""Every script with an Apple GPU in the device's place (tests/fake_mps.py): only what MPS can do, all in float32."""

import json
import sys
from pathlib import Path

import pytest
from diffusers import ControlNetModel, UNet2DConditionModel
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from demo.catalogue import write_catalogue
from families.models import DEMO_MODEL
from tests import fake_mps
from tests.test_evaluate import draw_set
from tests.tiny_models import build_tiny
from tests.tiny_runs import PRIOR, flags, subject_flags

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it takes libc10.so; a Mac has the device itself")
SHORT = "--max_train_steps 2 --train_batch_size 1 --effective_batch_size 2 --gradient_checkpointing".split()
SHORT += "--num_validation_samples 1 --validation_steps 2 --num_validation_images 1".split()
SHORT += "--held_out 0.2 --checkpointing_steps 2".split()  # and a cache of its own: the last bits are the device's
OURS = {"torch.float32", "torch.int64", "torch.int32", "torch.uint8", "torch.bool"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("mps_sets")
    (root / "real").mkdir()
    for name in ("real/train", "real/test", "made"):
        draw_set(root / name, 12, name)
    return root


def check(report: fake_mps.Report, computes: set[str]) -> None:
    """That no rule was broken, and that the device really computed these operators."""
    assert not report.broken
    assert report.dtypes <= OURS
    assert {f"aten::{name}" for name in computes} <= report.operators


def run(script: str, words: list, folder: Path, *computes: str) -> fake_mps.Report:
    report = fake_mps.run(script, words, folder)
    check(report, set(computes))
    return report


BACKWARD = ("mps_convolution_backward", "native_group_norm_backward", "_softmax_backward_data", "_fused_adamw_")


def test_train_lora(trainer_data, tmp_path):
    words = flags(trainer_data, tmp_path / "run", *SHORT, "--latent_cache_dir", tmp_path / "cache")
    run("train_lora", words, tmp_path / "mps", *BACKWARD)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {one["memory_gib"] for one in records if "memory_gib" in one} == {3.0}  # what torch.mps says


@pytest.mark.very_slow
def test_train_lora_of_sdxl(trainer_data, tmp_path):
    words = flags(trainer_data, tmp_path / "run", *SHORT, "--latent_cache_dir", tmp_path / "cache", family="sdxl")
    run("train_lora", words, tmp_path / "mps", *BACKWARD)


@pytest.mark.very_slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_train_dreambooth(trainer_data, tmp_path, method):
    more = ("--method", "full") if method == "full" else ("--train_token", "<sks>", *PRIOR)
    words = subject_flags(trainer_data, tmp_path / "run", *SHORT, "--latent_cache_dir", tmp_path / "cache", *more)
    run("train_dreambooth", words, tmp_path / "mps", *BACKWARD)


def test_generate(tmp_path):
    words = ["--pretrained_model_name_or_path", "demo", "--prompt", "a photo of red boots", "--num_images", 2]
    words += ["--resolution", 64, "--num_inference_steps", 4, "--num_workers", 1, "--output_dir", tmp_path / "set"]
    run("generate", words, tmp_path / "mps", "_scaled_dot_product_attention_math_for_mps", "_mps_convolution")


@pytest.mark.very_slow
def test_generate_with_a_controlnet(sets, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(DEMO_MODEL, subfolder="unet")
    ControlNetModel.from_unet(unet, conditioning_channels=3).save_pretrained(tmp_path / "net")
    words = ["--pretrained_model_name_or_path", "demo", "--prompt", "a photo of red boots", "--num_images", 1]
    words += ["--resolution", 64, "--num_inference_steps", 2, "--num_workers", 1, "--output_dir", tmp_path / "set"]
    words += ["--controlnet", tmp_path / "net", "--control_images", sets / "real/test"]
    run("generate", words, tmp_path / "mps", "_scaled_dot_product_attention_math_for_mps", "_mps_convolution")


def test_evaluate(sets, tmp_path):
    words = ["--generated", sets / "made", "--real", sets / "real/test", "--train", sets / "real/train"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **sizes)).save_pretrained(tmp_path / "net")
    BitImageProcessorPil(crop_size={"height": 56, "width": 56}).save_pretrained(tmp_path / "net")
    words += ["--encoders", "demo", f"dinov2={tmp_path / 'net'}"]
    words += ["--resamples", 20, "--num_workers", 1, "--output_dir", tmp_path / "evaluation"]
    run("evaluate", words, tmp_path / "mps", "_scaled_dot_product_attention_math_for_mps")


@pytest.mark.very_slow
def test_benchmark(tmp_path):
    model, out = build_tiny(tmp_path / "tiny", "sd1"), tmp_path / "benchmark"
    words = "--resolution 16 --effective_batch_size 1 --max_train_steps 4 --repeats 1 --generate_batch_sizes 1".split()
    words += ["--pretrained_model_name_or_path", model, "--output_dir", out, "--"]
    words += "--validation_inference_steps 2 --num_validation_images 1 --lr_warmup_steps 2".split()
    computes = (*BACKWARD, "_scaled_dot_product_attention_math_for_mps")
    run("benchmark", words, tmp_path / "mps", *computes)  # also the trainers and workers that it starts
    found = json.loads((out / "benchmark.json").read_text())
    assert found["machine"]["device"] == "Apple GPU (MPS)" and found["machine"]["memory_gib"] == 22
    assert {row["status"] for row in found["rows"] + found["generation"]} == {"ok"}
    assert {row["memory_gib"] for row in found["rows"]} == {3.0}  # what torch.mps says in a trainer


@pytest.mark.very_slow
def test_train_classifier(sets, tmp_path):
    words = ["--real", sets / "real", "--synthetic", sets / "made", "--target", "colour", "--resolution", 32]
    words += "--max_train_steps 2 --train_batch_size 4 --num_workers 1".split()
    words += "--real_shares 1 --synthetic_ratios 1 --min_per_class 2".split()
    run("train_classifier", [*words, "--output_dir", tmp_path / "utility"], tmp_path / "mps")


def test_prepare_dataset(tmp_path):
    write_catalogue(tmp_path / "raw", 8, (48, 64), 0, ["Boots"], damage=False)
    words = ["--catalogue", tmp_path / "raw", "--output_dir", tmp_path / "data", "--resolution", 32, "--num_workers", 1]
    run("prepare_dataset", words, tmp_path / "mps")


@pytest.mark.very_slow
def test_check_environment_finds_it_ready(tmp_path):
    report = fake_mps.run("check_environment", ["--data_dir", tmp_path], tmp_path / "mps")
    probes = ("torch.float16", "torch.bfloat16", "bitsandbytes::")  # the only half precision and 8-bit AdamW on MPS
    assert report.broken and all(one.startswith(probes) for one in report.broken)
    assert "Apple GPU (MPS)" in (tmp_path / "mps/said.txt").read_text()


def test_dropout_is_the_same_where_it_is_computed_again(tmp_path):
    """Torch keeps no random state of MPS for checkpointing: without our options the gradient is another mask's."""
    (tmp_path / "dropout.py").write_text("""
import torch
from torch.utils.checkpoint import checkpoint
from utils import devices
x = torch.ones(64, device="mps", requires_grad=True)
drop = lambda x: torch.nn.functional.dropout(x.sin()).exp()
def gradient_is_right(**options):
    x.grad = None
    y = checkpoint(drop, x, **options)
    y.sum().backward()
    return torch.equal((y.detach() != 1).cpu(), (x.grad != 0).cpu())
assert not gradient_is_right(use_reentrant=False)
assert gradient_is_right(**devices.checkpoint_options(x.device))
""")
    fake_mps.run(str(tmp_path / "dropout"), [], tmp_path / "mps")


BREAKS = {
    "x.half()": "torch.float16",
    "torch.autocast('mps', torch.float16).__enter__()": "autocast",
    "torch.amp.GradScaler('mps')": "GradScaler",
    "torch.ones(2).pin_memory()": "pinned memory",
    "torch.cuda.empty_cache()": "torch.cuda.empty_cache",
}
FAILS = {
    "x.double()": "doesn't support float64",
    "torch.from_numpy(numpy.ones(2)).to('mps')": "doesn't support float64",
    "x + torch.ones(2)": "same device",
    "x.numpy()": "can't convert mps",
    "torch.nn.init.normal_(x, generator=torch.Generator())": "generator",
    "torch.linalg.eig(torch.eye(2, device='mps'))": "aten::linalg_eig",
    "torch.Generator('mps')": "Generator",
}


def test_what_a_script_must_not_do_is_found(tmp_path):
    lines = ["import numpy, torch", "x = torch.ones(2, device='mps')"]
    for line, message in FAILS.items():
        lines += [
            f"try: {line}",
            f"except Exception as e: assert {message!r} in str(e), e",
            "else: raise SystemExit(1)",
        ]
    (tmp_path / "bad.py").write_text("\n".join([*lines, *BREAKS, "raise SystemExit(0)"]))
    broken = fake_mps.run(str(tmp_path / "bad"), [], tmp_path / "mps").broken
    for line, name in BREAKS.items():
        assert any(one.startswith(name) and "bad.py" in one for one in broken), (line, broken)


def test_what_torch_fuses_on_a_mac_alone_has_a_kernel():
    fused = "linear linear_backward _mps_convolution_transpose _scaled_dot_product_attention_math_for_mps".split()
    assert {fake_mps.kind_of_kernel(f"aten::{name}") for name in fused} == {"kernel"}
    assert fake_mps.kind_of_kernel("aten::linalg_eig") == fake_mps.kind_of_kernel("other::add") == "missing"
