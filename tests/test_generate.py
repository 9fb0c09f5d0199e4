"""generate.py from end to end: one seed an image however it is made, every one checked, never half a set."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file

import generate
import prepare_dataset
from evaluation import adherence, features
from families import image_facts, kohya, lora, lora_mix, models, sampler
from generation import conditions, set_folder
from generation.finish import read_sessions
from generation.prompts import Prompt, read_prompts
from tests.tiny_models import build_tiny
from tests.tiny_runs import QUICK, make_images
from training.read_data import DataSet, read_training_records
from utils import image_checks, runs, storage
from utils.catalogue import Source
from utils.cli import UserError
from utils.devices import RETRY_SEEDS
from utils.files import write_safetensors

ROOT = Path(__file__).resolve().parent.parent
SHOES = [
    "--template",
    "a photo of {colour} {kind}",
    "--attribute",
    "colour=red,blue",
    "--attribute",
    "kind=boots,heels",
]


def words(out: Path, *more) -> list[str]:
    """A command line: 6 images of 64 x 64 pixels in 4 steps by the demo pipeline; `more` wins."""
    short = (
        "--pretrained_model_name_or_path demo --num_images 6 --resolution 64 --num_inference_steps 4 --num_workers 1"
    )
    return [str(word) for word in [*short.split(), *SHOES, "--output_dir", out, *more]]


def make(out: Path, *more) -> int:
    return make_images(*words(out, *more))


def pixels(out: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path), np.int16) for path in sorted((out / "images").glob("*.png"))])


def apart(first: np.ndarray, second: np.ndarray) -> int:
    """The largest difference, in levels of 255."""
    assert first.shape == second.shape
    return int(np.abs(first - second).max())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "set"
    assert make(out) == 0
    return out


def run(*command, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, **options
    )


# One seed an image


def draw_plainly(pipeline: DiffusionPipeline, line: dict) -> np.ndarray:
    """The image of a record as diffusers' own pipeline draws it."""
    made = pipeline(
        line["text"],
        generator=torch.Generator().manual_seed(line["seed"]),
        num_inference_steps=4,
        guidance_scale=7.5,
        height=64,
        width=64,
    )
    return np.asarray(made.images[0], np.int16)


def test_an_image_is_what_the_plain_pipeline_draws_of_its_prompt_and_seed(reference):
    pipeline = DiffusionPipeline.from_pretrained(models.DEMO_MODEL, dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    for line in lines(reference / "metadata.jsonl")[::3]:
        assert apart(draw_plainly(pipeline, line), np.asarray(Image.open(reference / line["file_name"]), np.int16)) <= 1


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "dpm++_sde", "heun"])
def test_batch_size_changes_no_image(tmp_path, scheduler):
    for batch in (1, 4):
        assert make(tmp_path / str(batch), "--batch_size", batch, "--scheduler", scheduler, "--num_images", 4) == 0
    assert apart(pixels(tmp_path / "1"), pixels(tmp_path / "4")) <= 1


def test_batch_of_one_draws_the_reference(reference, tmp_path):
    assert make(tmp_path / "set", "--batch_size", 1) == 0
    assert apart(pixels(tmp_path / "set"), pixels(reference)) <= 1
    assert (tmp_path / "set/metadata.jsonl").read_text() == (reference / "metadata.jsonl").read_text()


@pytest.mark.very_slow
def test_two_processes_make_the_same_set(reference, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2proc.yaml"]
    done = run(*launch, "--main_process_port", "0", "generate.py", *words(tmp_path / "set"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert apart(pixels(tmp_path / "set"), pixels(reference)) <= 1
    assert (tmp_path / "set/metadata.jsonl").read_text() == (reference / "metadata.jsonl").read_text()
    assert not list((tmp_path / "set").glob("metadata.*-of-*"))


def test_shards_in_any_order_make_the_same_set_and_the_last_finishes_it(reference, tmp_path):
    assert make(tmp_path / "set", "--shard", "1/2") == 0
    assert not (tmp_path / "set/report.json").exists() and len(list((tmp_path / "set/images").iterdir())) == 3
    assert make(tmp_path / "set", "--shard", "0/2") == 0
    assert (tmp_path / "set/metadata.jsonl").read_text() == (reference / "metadata.jsonl").read_text()
    assert apart(pixels(tmp_path / "set"), pixels(reference)) <= 1


# Work that survives


def test_killed_and_started_again_makes_the_same_set(reference, tmp_path):
    dies = """if 1:
        import os, sys, generate
        from generation import set_folder
        noted, count = set_folder.append_metrics, []
        def note(path, line):
            noted(path, line)
            count.append(1)
            if len(count) == 3:
                path.open("ab").write(b'{"file_name": "images/0000') and os.kill(os.getpid(), 9)
        set_folder.append_metrics = note
        generate.main(generate.parse_args(sys.argv[1:]))"""
    done = run("-c", dies, *words(tmp_path / "set", "--batch_size", 2))
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    images = tmp_path / "set/images"
    before = {path.name: path.stat().st_mtime_ns for path in images.glob("*.png")}
    (images / "000001.png").write_bytes((images / "000001.png").read_bytes()[:100])  # a name without all its data
    assert make(tmp_path / "set") == 0
    assert [one["made"] for one in read_sessions(tmp_path / "set")] == [1, 5]
    assert images.joinpath("000000.png").stat().st_mtime_ns == before["000000.png"]
    assert apart(pixels(tmp_path / "set"), pixels(reference)) <= 1
    assert (tmp_path / "set/metadata.jsonl").read_text() == (reference / "metadata.jsonl").read_text()


def test_a_finished_set_is_left_alone_and_said_to_be(reference, capsys):
    parsed = generate.parse_args(["--config", str(reference / "config.yaml")])  # as its own recipe
    assert parsed.output_dir == reference and parsed.seed == 0
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    assert make(reference, "--batch_size", 3) == 0
    assert "finished; nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in reference.rglob("*")}


def test_other_settings_in_the_same_folder_are_an_error_with_the_difference(reference):
    with pytest.raises(UserError, match="num_inference_steps was 4, now 5; .*seed was 0, now 7"):
        make(reference, "--num_inference_steps", 5, "--seed", 7)


SETTINGS = {"num_images": 2, "seed": 0, "min_clip_score": None}


def enter(folder: Path, prompts: list[str], settings: dict) -> int | None:
    """enter_folder with one prompt an image."""
    asked = [Prompt(text, {}) for text in prompts]
    more = {"num_images": len(asked), "prompts_sha256": set_folder.items_digest(asked)}
    return set_folder.enter_folder(
        folder, set_folder.IMAGES, SETTINGS | settings | more, asked, {"free"}, set_folder.Share(0, 1)
    )


def test_a_folder_without_an_image_takes_other_settings_but_not_from_under_a_running_process(tmp_path):
    lock = enter(tmp_path / "set", ["a"], {"seed": 1})
    with pytest.raises(UserError, match="another process is writing it"):
        enter(tmp_path / "set", ["a"], {"seed": 2})
    os.close(lock)
    os.close(enter(tmp_path / "set", ["a"], {"seed": 2}))
    assert runs.read_settings(tmp_path / "set")["seed"] == 2
    (tmp_path / "set/metadata.jsonl").write_text('{"file_name": "images/000000.png"}\n')
    with pytest.raises(UserError, match="seed was 2, now 3"):
        enter(tmp_path / "set", ["a"], {"seed": 3})


@pytest.mark.parametrize(
    "prompts, settings, told",
    [
        (["a", "c"], {}, r"\(some of its 2 images would have another prompt\)"),
        (["a", "c", "b"], {}, "another prompt, because shares are balanced over 3"),
        (["a"], {}, "num_images was 2, now 1: a set can't be made smaller"),
        (["a", "b"], {"lora_sha256": ["1"]}, r"\(what --lora gives has changed\)"),
    ],
)
def test_a_set_grows_where_its_images_stay_the_same(tmp_path, prompts, settings, told):
    os.close(enter(tmp_path, ["a", "b"], {}))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "images/000000.png"}\n')
    with pytest.raises(UserError, match=told):
        enter(tmp_path, prompts, settings)
    os.close(enter(tmp_path, ["a", "b", "c"], {"free": 1}))
    assert runs.read_settings(tmp_path)["num_images"] == 3


def test_a_set_of_an_earlier_version_goes_on_and_its_clip_score_is_read_as_a_cosine(tmp_path):
    old = {"webdataset": False, "shard_size": 1000, "min_clip_score": 25.0}
    os.close(enter(tmp_path, ["a", "b"], old))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "images/000000.png"}\n')
    os.close(enter(tmp_path, ["a", "b"], {"min_clip_score": 0.25}))
    with pytest.raises(UserError, match=r"min_clip_score was 0\.25, now 0\.3"):
        enter(tmp_path, ["a", "b"], {"min_clip_score": 0.3})
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("webdataset: false", "webdataset: true"))
    with pytest.raises(UserError, match=r"in tar shards, which this version neither writes nor reads; unpack"):
        enter(tmp_path, ["a", "b"], {"min_clip_score": 0.25})


def test_a_deleted_or_damaged_config_is_told_with_what_to_do(tmp_path, caplog):
    os.close(enter(tmp_path, ["a"], {}))
    (tmp_path / "config.yaml").write_text("{a")
    with pytest.raises(UserError, match="config.yaml is damaged .*remove that file to continue"):
        enter(tmp_path, ["a"], {})
    (tmp_path / "config.yaml").unlink()
    os.close(enter(tmp_path, ["a"], {"seed": 5}))
    assert runs.read_settings(tmp_path)["seed"] == 5 and "has no config.yaml any more" in caplog.text


@pytest.mark.parametrize("name, content", [("photo.jpg", "mine"), ("config.yaml", "{}"), ("config.yaml", "seed: 1")])
def test_a_folder_of_something_else_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"holds files that no script wrote \({name}\)"):
        make(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]


def test_a_recipe_with_an_output_dir_is_not_replaced(tmp_path):
    (tmp_path / "config.yaml").write_text("output_dir: here\nseed: 1\n")
    with pytest.raises(UserError, match="holds images of other settings"):
        make(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "output_dir: here\nseed: 1\n"


def test_sigterm_saves_what_is_at_hand_and_the_rest_follows(reference, tmp_path, monkeypatch, capsys):
    generate_images = generate.generate_images

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return generate_images(*args)

    monkeypatch.setattr(generate, "generate_images", interrupted)
    assert make(tmp_path / "set", "--batch_size", 2) == 128 + signal.SIGTERM
    said = f"stopped; 2 of {len(pixels(reference))} images are saved; the same command goes on"
    assert said in capsys.readouterr().out
    assert len(lines(tmp_path / "set/metadata.jsonl")) == 2
    monkeypatch.undo()
    assert make(tmp_path / "set") == 0
    assert f"look at {tmp_path / 'set/sheets/sheet-0001.jpg'}" in capsys.readouterr().out
    assert apart(pixels(tmp_path / "set"), pixels(reference)) <= 1


def test_out_of_memory_halves_the_batch(reference, tmp_path, monkeypatch):
    generate_batch, sizes = sampler._generate_batch, []

    def small(loaded, requests):
        sizes.append(len(requests))
        if len(requests) > 2:
            raise RuntimeError("CUDA out of memory")
        return generate_batch(loaded, requests)

    monkeypatch.setattr(sampler, "_generate_batch", small)
    assert make(tmp_path / "set") == 0
    assert sizes == [6, 3, 2, 2, 2]
    assert apart(pixels(tmp_path / "set"), pixels(reference)) <= 1


def test_images_that_went_missing_are_made_again_and_the_set_is_whole(reference, tmp_path):
    copy = Path(shutil.copytree(reference, tmp_path / "set"))
    (copy / "images/000004.png").unlink()
    for damaged in ("images/000002.png", "train/images/000003.png", "train/metadata.jsonl"):  # of images, not the end
        content = bytearray((copy / damaged).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / damaged).write_bytes(content)
    (copy / "train/mine.txt").write_text("mine")
    assert make(copy) == 0
    assert apart(pixels(copy), pixels(reference)) <= 1
    assert next(copy.glob("train.replaced-2*/mine.txt")) and not set_folder.find_damaged(copy)
    shutil.rmtree(next(copy.glob("train.replaced-2*")))
    assert prepare_dataset.main(prepare_dataset.parse_args(["--verify", str(copy), "--num_workers", "1"])) == 0


def test_economies_of_memory_change_no_image(reference, tmp_path):
    flags = ["--enable_vae_slicing", "--enable_vae_tiling", "--enable_attention_slicing"]
    assert make(tmp_path / "set", *flags) == 0
    assert apart(pixels(tmp_path / "set"), pixels(reference)) <= 1
    with pytest.raises(UserError, match="no GPU to offload from"):
        make(tmp_path / "other", "--enable_cpu_offload")


# A dataset


def test_datasets_and_verify_read_the_set(reference):
    read = datasets.load_dataset("imagefolder", data_dir=str(reference), cache_dir=str(reference.parent / "cache"))
    assert list(read) == ["train"] and len(read["train"]) == 6
    assert sorted(zip(read["train"]["colour"], read["train"]["kind"]))[0] == ("blue", "boots")
    assert read["train"][0]["text"] == lines(reference / "metadata.jsonl")[0]["text"]
    assert prepare_dataset.main(prepare_dataset.parse_args(["--verify", str(reference), "--num_workers", "1"])) == 0


def test_verify_finds_an_image_that_was_changed(reference, tmp_path):
    copy = Path(shutil.copytree(reference, tmp_path / "set"))
    Image.new("RGB", (64, 64)).save(copy / "train/images/000002.png")
    assert prepare_dataset.main(prepare_dataset.parse_args(["--verify", str(copy), "--num_workers", "1"])) == 1


def test_the_trainer_reads_the_set(reference):
    train, held_out = read_training_records([DataSet(Source(str(reference), "--train_data_dir"))])
    assert len(train) == 6 and held_out == []


# Checks


def test_rejected_images_are_kept_with_the_reason_and_get_the_next_seed(reference, tmp_path, monkeypatch):
    real = image_checks.find_fault

    def third_is_noise(image, finite):
        wanted = np.abs(np.asarray(image, np.int16) - pixels(reference)[2]).max() <= 1
        return "noise" if wanted else real(image, finite)

    monkeypatch.setattr(image_checks, "find_fault", third_is_noise)
    assert make(tmp_path / "set") == 0
    line = lines(tmp_path / "set/metadata.jsonl")[2]
    assert line["seed"] == 2 + RETRY_SEEDS
    kept = lines(tmp_path / "set/rejected/metadata.jsonl")
    assert [(one["seed"], one["reason"]) for one in kept] == [(2, "noise")]
    assert (
        apart(np.asarray(Image.open(tmp_path / "set/rejected" / kept[0]["file_name"]), np.int16), pixels(reference)[2])
        <= 1
    )
    assert json.loads((tmp_path / "set/report.json").read_text())["rejected"] == {"noise": 1}
    others = [0, 1, 3, 4, 5]
    assert apart(pixels(tmp_path / "set")[others], pixels(reference)[others]) <= 1


def test_an_image_without_a_good_seed_is_an_error_and_more_retries_go_on(tmp_path):
    words = ["--num_images", 2, "--min_clip_score", 0.99]
    with pytest.raises(UserError, match=r"2 images rejected with each of 2 seeds: .*not what its prompt says"):
        make(tmp_path / "set", *words, "--max_retries", 1)
    rejected = lines(tmp_path / "set/rejected/metadata.jsonl")
    assert len(rejected) == 4 and all(-1 <= one["clip_score"] < 0.99 for one in rejected)
    with pytest.raises(UserError, match="each of 3 seeds"):
        make(tmp_path / "set", *words, "--max_retries", 2)
    assert sorted(one["seed"] for one in lines(tmp_path / "set/rejected/metadata.jsonl"))[-2:] == [
        2 * RETRY_SEEDS,
        2 * RETRY_SEEDS + 1,
    ]


def test_accepted_images_carry_the_score_that_evaluate_gives_them(tmp_path):
    assert make(tmp_path / "set", "--num_images", 2, "--min_clip_score", -1) == 0
    encoder, rows = features.load_encoder("demo"), lines(tmp_path / "set/metadata.jsonl")
    found = features.image_features(encoder, [tmp_path / "set" / one["file_name"] for one in rows], None)
    scores = adherence.clip_scores(encoder, found, rows)
    assert [one["clip_score"] for one in rows] == pytest.approx(scores.tolist(), abs=1e-3)


def test_near_copies_of_training_images_are_rejected(reference, tmp_path):
    train = tmp_path / "train"
    train.mkdir()
    shutil.copy(reference / "images/000001.png", train / "one.png")
    assert make(tmp_path / "set", "--reject_near_train", train) == 0
    (line,) = lines(tmp_path / "set/rejected/metadata.jsonl")
    assert line["file_name"] == "000001-1.png" and line["reason"] == "near-copy of a training image"


def test_half_precision_that_gives_nan_falls_back_to_float32_once(reference, tmp_path, monkeypatch, caplog):
    load = models.load_denoiser

    def broken_in_half(model, dtype):
        unet = load(model, dtype)
        if dtype != torch.float32:
            unet.conv_out.weight.data.fill_(torch.nan)
        return unet

    monkeypatch.setattr(generate.models, "load_denoiser", broken_in_half)
    assert make(tmp_path / "set", "--mixed_precision", "bf16", "--batch_size", 4) == 0
    assert "all of the first 4 images are invalid (NaN latents) in torch.bfloat16; continuing in float32" in caplog.text
    assert apart(pixels(tmp_path / "set"), pixels(reference)) <= 1
    assert len(lines(tmp_path / "set/rejected/metadata.jsonl")) == 4


def test_a_model_that_gives_nan_in_float32_stops_at_once(tmp_path):
    build_tiny(tmp_path / "tiny", "sd1")
    weights = tmp_path / "tiny/unet/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_out.weight"].fill_(torch.nan)
    write_safetensors(weights, state, {"format": "pt"})
    words = ["--pretrained_model_name_or_path", tmp_path / "tiny", "--resolution", 32, "--batch_size", 4]
    with pytest.raises(UserError, match="all of the first 4 images are invalid .NaN latents.*precision is not the"):
        make(tmp_path / "set", *words)
    assert not list((tmp_path / "set/images").iterdir())


# LoRA


def write_lora(folder: Path, seed: int, base: str = "demo", model: str = str(models.DEMO_MODEL), family="sd1") -> Path:
    """A LoRA on UNet and text encoder whose effect is plain to see, in our format and in kohya's."""
    torch.manual_seed(seed)
    unet, (_, encoders) = (
        models.load_denoiser(model, torch.float32),
        models.load_text_encoders(model, family, torch.float32),
    )
    adapter = lora.Adapter(4, 8)
    parameters = lora.attach_lora(unet, adapter)
    for encoder in encoders:
        parameters += lora.attach_lora(encoder, adapter, lora.TEXT_TARGETS)
    for one in parameters:
        one.data.normal_(std=0.1)
    state, facts = lora.lora_state(unet, encoders), {"base_model": base}
    lora.save_lora(folder, state, unet, encoders, facts)
    kohya.save_kohya(folder / "kohya.safetensors", state, unet, encoders, family, facts)
    return folder


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    root = tmp_path_factory.mktemp("loras")
    return [write_lora(root / str(seed), seed) for seed in (1, 2)]


def expected(reference: Path, loras: list[Path], weights: list[float]) -> np.ndarray:
    """The set's images as diffusers draws them with these LoRAs beside the weights."""
    pipeline = DiffusionPipeline.from_pretrained(models.DEMO_MODEL, dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    names = [f"lora{i}" for i in range(len(loras))]
    for name, folder in zip(names, loras):
        pipeline.load_lora_weights(folder, adapter_name=name)
    pipeline.set_adapters(names, weights)
    return np.stack([draw_plainly(pipeline, line) for line in lines(reference / "metadata.jsonl")[:3]])


def test_a_lora_and_its_kohya_file_draw_what_diffusers_draws(reference, loras, tmp_path):
    wanted = expected(reference, loras[:1], [0.7])
    assert apart(wanted, pixels(reference)[:3]) > 20
    for name, path in (("ours", loras[0]), ("kohya", loras[0] / "kohya.safetensors")):
        assert make(tmp_path / name, "--lora", f"{path}:0.7", "--num_images", 3) == 0
        assert apart(pixels(tmp_path / name), wanted) <= 1, name


def test_several_loras_are_mixed_by_their_weights(reference, loras, tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft's, of a second adapter
        assert make(tmp_path / "set", "--lora", f"{loras[0]}:0.8", f"{loras[1]}:0.4", "--num_images", 3) == 0
    assert "LOAD REPORT" not in caplog.text
    assert apart(pixels(tmp_path / "set"), expected(reference, loras, [0.8, 0.4])) <= 1
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"lora: ['{loras[0]}:0.8', '{loras[1]}:0.4']\n")
    for line in (["--lora", f"{loras[0]}:0.8", "--lora", f"{loras[1]}:0.4"], ["--config", str(recipe)]):
        assert generate.parse_args(line).lora == [f"{loras[0]}:0.8", f"{loras[1]}:0.4"]


def test_the_base_model_is_the_one_that_the_loras_were_trained_on(loras, tmp_path, caplog):
    plain = ["--prompt", "shoes", "--output_dir", str(tmp_path / "set"), "--dry_run"]
    args = generate.parse_args([*plain, "--lora", *map(str, loras)])
    assert generate.find_parts(args).model == str(models.DEMO_MODEL) and args.pretrained_model_name_or_path == "demo"
    assert "no --pretrained_model_name_or_path: taking demo, which the LoRA was trained on" in caplog.text
    other = lora.save_lora(tmp_path, *(lora.read_lora(loras[0])[0], None, (), {"base_model": "some/model"}))
    velocity = lora.save_lora(
        tmp_path / "v", *(lora.read_lora(loras[0])[0], None, (), {"prediction_type": "v_prediction"})
    )
    of_velocity = [*plain, "--lora", str(velocity), "--pretrained_model_name_or_path", "demo"]
    with pytest.raises(
        UserError, match="trained to predict v_prediction, .* epsilon here; add --prediction_type v_pre"
    ):
        generate.find_parts(generate.parse_args(of_velocity))
    for accepted in (["--prediction_type", "v_prediction"], ["--allow_other_base"]):
        generate.find_parts(generate.parse_args([*of_velocity, *accepted]))
    ended = lora.save_lora(tmp_path / "end", *(lora.read_lora(loras[0])[0], None, (), {"zero_terminal_snr": "True"}))
    of_ended = [*plain, "--lora", str(ended), "--pretrained_model_name_or_path", "demo"]
    with pytest.raises(UserError, match="trained with --zero_terminal_snr; add it here, too"):
        generate.find_parts(generate.parse_args(of_ended))
    parts = generate.find_parts(generate.parse_args([*of_ended, "--zero_terminal_snr"]))
    assert sampler.load_base(parts, torch.float32).schedule.config["rescale_betas_zero_snr"]
    with pytest.raises(UserError, match="was trained on demo, and .* on some/model; choose one with --pretrained_"):
        generate.find_parts(generate.parse_args([*plain, "--lora", str(loras[0]), str(other)]))
    assert lora_mix.named_base([]) is None
    assert generate.parse_args(plain[:2]).output_dir.name == "stable-diffusion-v1-5"


def test_a_lora_of_another_family_or_base_is_refused_with_both_named(tmp_path, loras):
    build_tiny(tmp_path / "sdxl", "sdxl")
    other = write_lora(tmp_path / "lora", 3, "some/sdxl", str(tmp_path / "sdxl"), "sdxl")
    with pytest.raises(UserError, match=r"made for Stable Diffusion XL .*, but demo is Stable Diffusion 1.x"):
        make(tmp_path / "set", "--lora", other, "--allow_other_base")
    same = write_lora(tmp_path / "same", 1, base="stable-diffusion-v1-5/stable-diffusion-v1-5")
    with pytest.raises(UserError, match=r"trained on stable-diffusion-v1-5/.* and --pretrained.* is demo"):
        make(tmp_path / "set", "--lora", same)
    assert make(tmp_path / "set", "--lora", same, "--allow_other_base", "--num_images", 1) == 0


def test_what_is_no_lora_is_said_to_be_none(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="--lora .*cut.safetensors: can't be read"):
        make(tmp_path / "set", "--lora", tmp_path / "cut.safetensors")
    for weight in ("nan", "half", "1e400"):
        with pytest.raises(UserError, match=f"--lora .*cut.safetensors:{weight}: its weight is `{weight}`"):
            lora_mix.parse_lora(f"{tmp_path}/cut.safetensors:{weight}")
    with pytest.raises(UserError, match="cut.safetensors:-0.0: a LoRA of weight 0 does nothing; leave it out"):
        make(tmp_path / "set", "--lora", f"{tmp_path}/cut.safetensors:-0.0")
    with pytest.raises(UserError, match="holds no pytorch_lora_weights.safetensors"):
        make(tmp_path / "set", "--lora", tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        make(tmp_path / "set", "--lora", tmp_path / "nothing:0.5")


# Images to start from, or to keep to


def source_of(path: Path) -> str:
    """The digital source type that an image names in its XMP."""
    info = Image.open(path).info
    packet = info["xmp"] if path.suffix == ".jpg" else info["XML:com.adobe.xmp"].encode()
    (found,) = ElementTree.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    return found.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")


def test_a_model_is_named_by_its_folder_or_file_and_not_by_where_it_lies(tmp_path):
    (tmp_path / "sd.v1.5").mkdir()
    (tmp_path / "sd.v2.safetensors").touch()
    names = [str(tmp_path / name) for name in ("sd.v1.5", "sd.v2.safetensors")]
    assert [image_facts.short_name(name) for name in [*names, "owner/sd.v3"]] == ["sd.v1.5", "sd.v2", "owner/sd.v3"]


def test_an_image_says_how_it_was_made_and_that_it_is_synthetic(reference, loras, tmp_path, monkeypatch):
    synthetic = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    for line in lines(reference / "metadata.jsonl")[:2]:
        path = reference / line["file_name"]
        settings = f"Steps: 4, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: {line['seed']}, Size: 64x64, Model: demo"
        assert Image.open(path).info["parameters"] == f"{line['text']}\n{settings}" and source_of(path) == synthetic
    assert source_of(reference / "sheets/sheet-0001.jpg") == synthetic

    monkeypatch.setenv("HF_TOKEN", "a token of a test")
    more = ["--num_images", 1, "--lora", loras[0], f"{loras[1]}:0.4", "--clip_skip", 1, "--scheduler", "dpm++_karras"]
    more += ["--negative_prompt", "a token of a test: grün"]
    assert make(tmp_path / "set", *more) == 0
    (path,) = (tmp_path / "set/images").iterdir()
    mixed = f'Lora: "{loras[0].name}:1, {loras[1].name}:0.4"'
    said, content = Image.open(path).info["parameters"], path.read_bytes()
    assert "Negative prompt: ***: grün\nSteps: 4, Sampler: DPM++ 2M Karras" in said
    assert said.endswith(f", Model: demo, {mixed}, Clip skip: 2") and str(tmp_path) not in said
    path.unlink()
    assert make(tmp_path / "set", *more) == 0 and path.read_bytes() == content  # nothing of the time is in it
    assert make(tmp_path / "plain", *more, "--no-image_metadata") == 0
    assert np.array_equal(pixels(tmp_path / "plain"), pixels(tmp_path / "set"))
    assert not Image.open(tmp_path / "plain/images/000000.png").info
    assert "xmp" not in Image.open(tmp_path / "plain/sheets/sheet-0001.jpg").info


def test_image_to_image_varies_the_given_images_by_its_strength(reference, tmp_path):
    drawn = {}
    for strength in (0.25, 1.0):
        out = tmp_path / str(strength)
        words = ["--init_images", reference / "images", "--strength", strength, "--guidance_scale", 1]
        assert make(out, *words) == 0
        drawn[strength] = np.abs(pixels(out) - pixels(reference)).mean()
    assert drawn[0.25] < 0.75 * drawn[1.0]
    out = tmp_path / "single"
    assert make(out, *words[:2], "--strength", 0.25, "--guidance_scale", 1, "--batch_size", 1) == 0
    assert apart(pixels(out), pixels(tmp_path / "0.25")) <= 1
    assert source_of(out / "images/000000.png").endswith("/compositeWithTrainedAlgorithmicMedia")
    assert ", Denoising strength: 0.25, " in Image.open(out / "images/000000.png").info["parameters"]


def test_image_to_image_is_what_the_diffusers_pipeline_draws(reference, tmp_path):
    from diffusers import StableDiffusionImg2ImgPipeline

    assert make(tmp_path / "set", "--init_images", reference / "images", "--strength", 0.5, "--num_images", 1) == 0
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        models.DEMO_MODEL, dtype=torch.float32, safety_checker=None
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    (line,) = lines(tmp_path / "set/metadata.jsonl")
    assert line["init_image"] == str(reference / "images/000000.png") and "init_images" not in line
    drawn = pipeline(
        line["text"],
        image=Image.open(reference / "images/000000.png"),
        strength=0.5,
        num_inference_steps=4,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert apart(np.asarray(drawn, np.int16), pixels(tmp_path / "set")[0]) <= 1


def test_a_controlnet_draws_what_the_diffusers_pipeline_draws(reference, tmp_path):
    from diffusers import StableDiffusionControlNetPipeline

    torch.manual_seed(0)
    net = ControlNetModel.from_unet(
        models.load_denoiser(str(models.DEMO_MODEL), torch.float32),
        conditioning_embedding_out_channels=(16, 32, 32, 64),
    )
    for block in [*net.controlnet_down_blocks, net.controlnet_mid_block]:  # they begin at zero, with no effect
        torch.nn.init.normal_(block.weight, std=0.05)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=2)
    net.save_pretrained(tmp_path / "net")
    words = ["--controlnet", tmp_path / "net", "--control_images", reference / "images", "--num_images", 2]
    assert make(tmp_path / "canny", *words, "--control_type", "canny") == 0
    assert apart(pixels(tmp_path / "canny"), pixels(reference)[:2]) > 10
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        models.DEMO_MODEL, controlnet=net, dtype=torch.float32, safety_checker=None
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    line = lines(tmp_path / "canny/metadata.jsonl")[1]
    assert line["control_image"] == str(reference / "images/000001.png") and line["control_type"] == "canny"
    edges = conditions.canny_edges(Image.open(reference / "images/000001.png"))
    assert 0.005 < (np.asarray(edges) > 0).mean() < 0.5
    drawn = pipeline(
        line["text"], image=edges, num_inference_steps=4, guidance_scale=7.5, generator=torch.Generator().manual_seed(1)
    ).images[0]
    assert apart(np.asarray(drawn, np.int16), pixels(tmp_path / "canny")[1]) <= 1
    assert make(tmp_path / "none", *words) == 0
    assert apart(pixels(tmp_path / "none"), pixels(tmp_path / "canny")) > 1


def test_depth_is_estimated_by_a_transformers_model(reference, tmp_path):
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    config = DPTConfig(
        **sizes,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    torch.manual_seed(0)
    net = DPTForDepthEstimation(config)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    [layer for layer in net.head.modules() if isinstance(layer, torch.nn.Conv2d)][-1].bias.data.fill_(50)  # above ReLU
    net.save_pretrained(tmp_path / "depth")
    DPTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "depth")
    estimate = conditions.load_depth(str(tmp_path / "depth"), torch.device("cpu"))
    depth = estimate(Image.open(reference / "images/000000.png"))
    assert depth.size == (64, 64) and depth.mode == "RGB" and np.ptp(np.asarray(depth)) > 200


def test_what_is_no_controlnet_is_told_in_words(tmp_path):
    (tmp_path / "none.safetensors").write_bytes(b"cut")
    for place, told in (
        ("nope", "--controlnet nope: no such folder, and not a hub id"),
        (models.DEMO_MODEL / "unet", "a complete ControlNet .its config.json is of a UNet2DConditionModel"),
        (tmp_path, "--controlnet .*: does not contain a complete ControlNet"),
    ):
        with pytest.raises(UserError, match=told):
            models.load_controlnet(str(place), str(models.DEMO_MODEL), torch.float32)


def test_damaged_images_to_start_from_are_named_before_any_work(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    Image.new("RGB", (8, 8)).save(given / "a.png")
    (given / "b.png").write_bytes((given / "a.png").read_bytes()[:40])
    assert len(conditions.list_images("--init_images", given, 1)) == 2  # one image never comes to the second
    with pytest.raises(UserError, match="--init_images .*b.png: .*; remove or replace the file"):
        make(tmp_path / "set", "--init_images", given)
    assert not (tmp_path / "set").exists()


def test_a_controlnet_of_another_family_is_refused(reference, tmp_path):
    build_tiny(tmp_path / "tiny", "sd2")
    net = ControlNetModel.from_unet(models.load_denoiser(str(tmp_path / "tiny"), torch.float32))
    net.save_pretrained(tmp_path / "net")
    with pytest.raises(UserError, match="made for another family of models .cross_attention_dim 1024"):
        make(tmp_path / "set", "--controlnet", tmp_path / "net", "--control_images", reference / "images")


# Families, and mistakes


def test_a_model_that_names_no_size_asks_for_one(tmp_path):
    build_tiny(tmp_path / "tiny", "sd1")
    config = tmp_path / "tiny/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": None}))
    line = f"--pretrained_model_name_or_path {tmp_path}/tiny --prompt x --output_dir {tmp_path}/set".split()
    with pytest.raises(UserError, match="--resolution: .*tiny names no one side"):
        generate.main(generate.parse_args(line))


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_every_family_draws_what_its_pipeline_draws(tmp_path, family, monkeypatch):
    monkeypatch.setattr(image_checks, "find_fault", lambda image, finite: None)  # it draws nothing at all
    build_tiny(tmp_path / "tiny", family)
    words = ["--pretrained_model_name_or_path", tmp_path / "tiny", "--resolution", 32, "--num_images", 2]
    assert make(tmp_path / "set", *words, "--negative_prompt", "ugly") == 0
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "tiny")
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    line = lines(tmp_path / "set/metadata.jsonl")[1]
    drawn = pipeline(
        line["text"],
        negative_prompt="ugly",
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=4,
        guidance_scale=7.5,
        height=32,
        width=32,
    ).images[0]
    assert apart(np.asarray(drawn, np.int16), pixels(tmp_path / "set")[1]) <= 1


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--shard", "4/4"], "--shard 4/4"),
        (["--shard", "0/99999999999"], "N at most 100,000"),
        (["--shard", "-1/2"], "--shard -1/2: expected I/N"),
        (["--num_images", "1.5"], "--num_images 1.5: expected a whole number"),
        (["--controlnet", "x"], "--controlnet x: needs --control_images"),
        (["--control_type", "canny"], "--control_type canny: does nothing without --controlnet"),
        (["--strength", "0.5"], "--strength 0.5: does nothing without --init_images"),
        (["--clip_model", "x"], "--clip_model x: does nothing without --min_clip_score"),
        (["--init_images", "x", "--strength", "0.1"], "--strength 0.1"),
        (["--allow_other_base"], "--allow_other_base: does nothing without --lora"),
        (["--min_clip_score", "25"], "--min_clip_score 25: expected a number, -1 to 1 (the scale is the cosine)"),
        (["--min_clip_score", "nan"], "--min_clip_score nan: expected"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_mistakes_are_told_before_any_work(tmp_path, capsys, flags, told):
    with contextlib.suppress(SystemExit):
        generate.parse_args(words(tmp_path / "set", *flags))
    assert told in capsys.readouterr().err


def test_a_flag_of_a_recipe_that_does_nothing_is_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text("strength: 0.9\ncontrol_type: canny\n")
    args = generate.parse_args(words(tmp_path / "set", "--config", tmp_path / "recipe.yaml"))
    assert "`strength: 0.9` does nothing without --init_images" in caplog.text
    assert (args.strength, args.control_type) == (0.6, "none")


def test_images_never_go_into_the_run_of_their_lora(loras):
    with pytest.raises(UserError, match="--output_dir .*: contains --lora"):
        make(loras[0], "--lora", loras[0])


def test_dry_run_tells_the_plan_and_writes_nothing(tmp_path, capsys):
    assert make(tmp_path / "set", "--dry_run") == 0
    assert "6 images of 4 prompts" in capsys.readouterr().out and not (tmp_path / "set").exists()


def test_dry_run_tells_of_prompts_that_are_cut_off_without_reading_weights(loras, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(models, "_load_frozen", lambda *_: pytest.fail("weights are read"))
    folder = shutil.copytree(loras[0], tmp_path / "lora")
    write_safetensors(folder / "learned_embeds.safetensors", {"<sks>": torch.zeros(1, 4)})
    command = ["--pretrained_model_name_or_path", "demo", "--output_dir", str(tmp_path / "set"), "--dry_run"]
    command += ["--prompt", "<sks> " * 20]
    assert make_images(*command, "--lora", folder, "--allow_other_base") == 0
    assert "longer than" not in caplog.text  # the LoRA's word is one token
    assert make_images(*command) == 0
    assert "1 of 1 prompts are longer than the tokenizer's limit of 32 tokens" in caplog.text


@pytest.mark.parametrize("damage, said", [("half", "one matrix of two"), ("nan", "holds NaN or infinity")])
def test_a_lora_that_is_not_whole_is_refused(loras, tmp_path, damage, said):
    state, facts = lora.read_lora(loras[0])
    key = next(key for key in state if "lora_A" in key)
    if damage == "half":
        del state[key]
    else:
        state[key][0, 0] = float("nan")
    path = tmp_path / "broken.safetensors"
    write_safetensors(path, state, facts)
    with pytest.raises(UserError, match=said):
        make(tmp_path / "set", "--lora", path)


def test_an_attribute_never_hides_a_column_of_the_set(tmp_path):
    plan = tmp_path / "plan.jsonl"
    plan.write_text('{"text": "a shoe", "attributes": {"seed": "7"}, "weight": 1}\n')
    with pytest.raises(UserError, match="`seed`"):
        read_prompts(None, plan=plan)


# Kept elsewhere too


@pytest.fixture
def quick_sync(monkeypatch):
    for (module, name), value in QUICK.items():
        monkeypatch.setattr(f"{module}.{name}", value)


def test_a_set_that_is_kept_elsewhere_is_continued_on_another_machine(
    reference, in_s3, quick_sync, tmp_path, monkeypatch
):
    received, seen = [], []

    def stop_after_two(*args):
        seen.append(1)
        if len(seen) == 2:
            received.append(signal.SIGTERM)
        return record_item(*args)

    record_item = set_folder.record_item
    with monkeypatch.context() as patch:
        patch.setattr(generate, "record_item", stop_after_two)
        patch.setattr(runs, "catch_signals", lambda doing: received)
        assert make(tmp_path / "first", "--batch_size", 1, "--sync_to", in_s3) == 128 + signal.SIGTERM
    made = len(list((tmp_path / "first/images").glob("*.png")))
    assert 2 <= made < 6
    shutil.rmtree(tmp_path / "first")

    assert make(tmp_path / "second", "--sync_to", in_s3) == 0
    assert [one["made"] for one in read_sessions(tmp_path / "second")] == [made, 6 - made]
    assert apart(pixels(tmp_path / "second"), pixels(reference)) <= 1
    there = storage.list_place(storage.open_place(in_s3, "--sync_to"))
    assert there.keys() >= {"MANIFEST.json", "report.json", "train/images/000005.png", "images/000000.png"}
    assert make(tmp_path / "third", "--sync_to", in_s3) == 0  # finished there: only fetched
    assert apart(pixels(tmp_path / "third"), pixels(tmp_path / "second")) == 0


def test_shares_of_several_machines_come_together_in_their_place(reference, in_s3, quick_sync, tmp_path, capsys):
    assert make(tmp_path / "a", "--shard", "1/2", "--sync_to", in_s3) == 0
    assert "other shares still have to make 3 images" in capsys.readouterr().out
    assert make(tmp_path / "b", "--shard", "0/2", "--sync_to", in_s3) == 0
    assert (tmp_path / "b/metadata.jsonl").read_text() == (reference / "metadata.jsonl").read_text()
    assert apart(pixels(tmp_path / "b"), pixels(reference)) <= 1
    with pytest.raises(UserError, match="was made with other settings .*guidance_scale was 7.5, now 3"):
        make(tmp_path / "c", "--guidance_scale", 3, "--sync_to", in_s3)
